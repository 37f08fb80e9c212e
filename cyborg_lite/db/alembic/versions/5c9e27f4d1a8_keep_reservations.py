# SPDX-License-Identifier: Apache-2.0
"""Keep reservations"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '5c9e27f4d1a8'
down_revision = '8b3e6f1d2c97'

Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.add_column('allocations', sa.Column('starts_at', Moment))
    op.add_column('allocations', sa.Column('claim_by', Moment))
    op.add_column('allocations', sa.Column('reservation_uuid', sa.String(36)))
    op.create_index(op.f('ix_allocations_reservation_uuid'), 'allocations', ['reservation_uuid'])
    op.create_table(
        'promises',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('allocation_uuid', sa.String(36), nullable=False, index=True),
        sa.Column('accelerator_uuid', sa.String(36), nullable=False, index=True),
        sa.Column('device_uuid', sa.String(36), nullable=False),
        sa.Column('form', sa.String(32), nullable=False),
        sa.Column('starts_at', Moment, nullable=False),
        sa.Column('ends_at', Moment, nullable=False),
        sa.Index(None, 'device_uuid', 'starts_at'),
        # Texts are equal if their bytes are, as in the other databases.
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_nopad_bin',
    )

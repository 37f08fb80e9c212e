# SPDX-License-Identifier: Apache-2.0
"""Keep allocations"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = 'd3f81b6a0c24'
down_revision = 'f5a07c93e1b4'

Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.create_table(
        'allocations',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('uuid', sa.String(36), nullable=False, unique=True),
        sa.Column('name', sa.String(255)),
        sa.Column('state', sa.String(16), nullable=False),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('profile', sa.String(255)),
        sa.Column('groups', sa.JSON(), nullable=False),
        sa.Column('consumer_type', sa.String(255)),
        sa.Column('consumer_id', sa.String(255)),
        sa.Column('lease', sa.Integer()),
        sa.Column('lease_ends_at', Moment),
        sa.Column('released_at', Moment, index=True),
        sa.Column('accelerators', sa.JSON(), nullable=False),
        sa.Column('cause', sa.String(255)),
        sa.Column('active_name', sa.String(255)),
        sa.Column('idempotency_key', sa.String(255)),
        sa.Column('digest', sa.String(64), nullable=False),
        sa.Column('created_at', Moment, nullable=False),
        sa.Column('updated_at', Moment),
        sa.UniqueConstraint('project_id', 'active_name'),
        sa.UniqueConstraint('project_id', 'idempotency_key'),
        sa.Index(None, 'state', 'lease_ends_at'),
        sa.Index(None, 'project_id', 'name'),
        # Texts are equal if their bytes are, as in the other databases.
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_nopad_bin',
    )
    table = 'accelerator_requests'
    op.add_column(table, sa.Column('allocation_uuid', sa.String(36)))
    op.create_index(op.f('ix_accelerator_requests_allocation_uuid'), table, ['allocation_uuid'])
    op.add_column(
        'device_profiles',
        sa.Column('private', sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    # Accelerators of a class are found by it, in the order of their deployables.
    columns = ['key', 'value', 'deployable_id']
    op.create_index(op.f('ix_attributes_key_value_deployable_id'), 'attributes', columns)

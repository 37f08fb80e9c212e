# SPDX-License-Identifier: Apache-2.0
"""Queue allocations"""

from alembic import op
import sqlalchemy as sa

revision = 'a5e83c1d7f42'
down_revision = 'd3f81b6a0c24'


def upgrade() -> None:
    table, number = 'allocations', sa.Integer()
    op.add_column(table, sa.Column('priority', number, nullable=False, server_default='0'))
    op.add_column(table, sa.Column('queue', sa.String(255)))
    op.add_column(table, sa.Column('amount', number))
    op.add_column(table, sa.Column('wish', sa.JSON()))
    op.add_column(
        table, sa.Column('over_quota', sa.Boolean(), nullable=False, server_default=sa.false())
    )

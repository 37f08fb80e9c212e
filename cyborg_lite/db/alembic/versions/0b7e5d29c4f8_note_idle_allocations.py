# SPDX-License-Identifier: Apache-2.0
"""Note idle allocations"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '0b7e5d29c4f8'
down_revision = 'f1c84d7e2a90'

MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.add_column('allocations', sa.Column('idle_since', MOMENT))
    op.add_column(
        'allocations',
        sa.Column('idle_told', sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column('allocations', sa.Column('idle_until', MOMENT))

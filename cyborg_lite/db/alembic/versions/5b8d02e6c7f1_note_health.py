# SPDX-License-Identifier: Apache-2.0
"""Note the health of devices"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '5b8d02e6c7f1'
down_revision = 'c94e7b1f6a20'

Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    health = sa.Column('health', sa.String(16), nullable=False, server_default='unknown')
    op.add_column('devices', health)
    op.add_column('devices', sa.Column('health_reason', sa.String(64)))
    op.add_column('devices', sa.Column('health_since', Moment))

# SPDX-License-Identifier: Apache-2.0
"""Note idle devices"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = 'f1c84d7e2a90'
down_revision = 'b6f2d80c3e95'

MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.add_column('devices', sa.Column('idle_since', MOMENT))
    op.add_column('devices', sa.Column('used', sa.Boolean()))
    op.add_column('hosts', sa.Column('idle_after', sa.Integer()))

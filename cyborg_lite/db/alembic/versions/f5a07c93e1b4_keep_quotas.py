# SPDX-License-Identifier: Apache-2.0
"""Keep quotas"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = 'f5a07c93e1b4'
down_revision = 'c7e1a4f09b36'

Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.create_table(
        'quotas',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('uuid', sa.String(36), nullable=False, unique=True),
        sa.Column('project_id', sa.String(255), nullable=False, unique=True),
        sa.Column('limits', sa.JSON(), nullable=False),
        sa.Column('created_at', Moment, nullable=False),
        sa.Column('updated_at', Moment),
        # Texts are equal if their bytes are, as in the other databases.
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_nopad_bin',
    )

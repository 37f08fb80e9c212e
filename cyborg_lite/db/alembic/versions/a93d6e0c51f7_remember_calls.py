# SPDX-License-Identifier: Apache-2.0
"""Remember calls"""

from alembic import op
import sqlalchemy as sa

revision = 'a93d6e0c51f7'
down_revision = '7a2f9d4c61e0'


def upgrade() -> None:
    op.create_table(
        'calls',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('uuid', sa.String(36), nullable=False, unique=True),
        sa.Column('answer', sa.JSON()),
        sa.Column('created_at', sa.DateTime(), nullable=False, index=True),
        sa.Column('updated_at', sa.DateTime()),
        # Texts are equal if their bytes are, as in the other databases.
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_nopad_bin',
    )

# SPDX-License-Identifier: Apache-2.0
"""Remember instances"""

from alembic import op
import sqlalchemy as sa

revision = 'b17f4d2e8c05'
down_revision = 'a93d6e0c51f7'


def upgrade() -> None:
    op.create_table(
        'instances',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('uuid', sa.String(36), nullable=False, unique=True),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('created_at', sa.DateTime(), nullable=False, index=True),
        sa.Column('updated_at', sa.DateTime()),
        # Texts are equal if their bytes are, as in the other databases.
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_nopad_bin',
    )

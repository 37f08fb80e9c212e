# SPDX-License-Identifier: Apache-2.0
"""Note which hosts have fallen silent"""

from alembic import op
import sqlalchemy as sa

revision = '8c41d07be2f6'
down_revision = 'b754f9f71354'


def upgrade() -> None:
    op.add_column(
        'hosts', sa.Column('silent', sa.Boolean(), nullable=False, server_default=sa.false())
    )

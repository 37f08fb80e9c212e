# SPDX-License-Identifier: Apache-2.0
"""Note what is left"""

from alembic import op
import sqlalchemy as sa

revision = '8a4f1d6c3b97'
down_revision = '2d6f8b1e9c47'


def upgrade() -> None:
    op.add_column('devices', sa.Column('left_after', sa.String(64)))
    op.add_column(
        'hosts', sa.Column('observes', sa.Boolean(), nullable=False, server_default=sa.false())
    )

# SPDX-License-Identifier: Apache-2.0
"""Note rogue use"""

from alembic import op
import sqlalchemy as sa

revision = '2e8d0f5c94a1'
down_revision = '1d7c9e4b83f0'


def upgrade() -> None:
    op.add_column('devices', sa.Column('rogue', sa.String(255)))

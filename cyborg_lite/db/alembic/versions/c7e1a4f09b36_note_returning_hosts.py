# SPDX-License-Identifier: Apache-2.0
"""Note returning hosts"""

from alembic import op
import sqlalchemy as sa

revision = 'c7e1a4f09b36'
down_revision = 'd41f6b2a9e73'


def upgrade() -> None:
    op.add_column('hosts', sa.Column('returns', sa.JSON()))

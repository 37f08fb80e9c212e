# SPDX-License-Identifier: Apache-2.0
"""Pin secrets of agents"""

from alembic import op
import sqlalchemy as sa

revision = '9d4e2b71c6a8'
down_revision = '3f7c5a918e2d'


def upgrade() -> None:
    op.add_column('hosts', sa.Column('secret', sa.String(64)))

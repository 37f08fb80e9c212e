# SPDX-License-Identifier: Apache-2.0
"""Note access"""

from alembic import op
import sqlalchemy as sa

revision = '1d7c9e4b83f0'
down_revision = '9d4e2b71c6a8'


def upgrade() -> None:
    op.add_column('hosts', sa.Column('access', sa.String(16)))

# SPDX-License-Identifier: Apache-2.0
"""Know who shares a login"""

from alembic import op
import sqlalchemy as sa

revision = '8b3e6f1d2c97'
down_revision = '0b7e5d29c4f8'


def upgrade() -> None:
    op.add_column('allocations', sa.Column('claimed_name', sa.String(64)))
    op.add_column('allocations', sa.Column('note', sa.String(255)))

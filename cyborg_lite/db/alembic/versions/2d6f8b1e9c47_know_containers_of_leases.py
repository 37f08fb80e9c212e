# SPDX-License-Identifier: Apache-2.0
"""Know containers of leases"""

from alembic import op
import sqlalchemy as sa

revision = '2d6f8b1e9c47'
down_revision = '5c9e27f4d1a8'


def upgrade() -> None:
    op.add_column('allocations', sa.Column('container', sa.String(64)))

# SPDX-License-Identifier: Apache-2.0
"""Know users of allocations"""

from alembic import op
import sqlalchemy as sa

revision = 'b6f2d80c3e95'
down_revision = 'e7b3150c92da'


def upgrade() -> None:
    op.add_column('allocations', sa.Column('user_name', sa.String(255)))

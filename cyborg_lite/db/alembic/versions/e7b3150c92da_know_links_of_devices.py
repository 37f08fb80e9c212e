# SPDX-License-Identifier: Apache-2.0
"""Know links of devices"""

from alembic import op
import sqlalchemy as sa

revision = 'e7b3150c92da'
down_revision = '2e8d0f5c94a1'


def upgrade() -> None:
    op.add_column('devices', sa.Column('topology', sa.JSON()))

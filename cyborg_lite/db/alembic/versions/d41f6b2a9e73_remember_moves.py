# SPDX-License-Identifier: Apache-2.0
"""Remember moves"""

from alembic import op
import sqlalchemy as sa

revision = 'd41f6b2a9e73'
down_revision = 'b17f4d2e8c05'


def upgrade() -> None:
    op.add_column('accelerator_requests', sa.Column('moves', sa.JSON()))

# SPDX-License-Identifier: Apache-2.0
"""Lease messages"""

from alembic import op
import sqlalchemy as sa

revision = '4c1e7a90b2d8'
down_revision = '8c41d07be2f6'


def upgrade() -> None:
    op.add_column('messages', sa.Column('lease', sa.String(36)))

# SPDX-License-Identifier: Apache-2.0
"""Settle what all samples show"""

from alembic import op
import sqlalchemy as sa

revision = '3f7c5a918e2d'
down_revision = '6e1f9a3c7b05'


def upgrade() -> None:
    op.add_column('devices', sa.Column('nearest', sa.String(96)))
    further = sa.Column('further', sa.Integer(), nullable=False, server_default='0')
    op.add_column('devices', further)

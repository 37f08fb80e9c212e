# SPDX-License-Identifier: Apache-2.0
"""Count moves"""

from alembic import op
import sqlalchemy as sa

revision = 'e2b6d05f3a71'
down_revision = '4c1e7a90b2d8'


def upgrade() -> None:
    for table in ('accelerator_requests', 'devices'):
        counted = sa.Column('revision', sa.Integer(), nullable=False, server_default='0')
        op.add_column(table, counted)

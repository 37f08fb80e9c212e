# SPDX-License-Identifier: Apache-2.0
"""Act on the health of devices"""

from alembic import op
import sqlalchemy as sa

revision = '6e1f9a3c7b05'
down_revision = '5b8d02e6c7f1'


def upgrade() -> None:
    for column in (
        sa.Column('streak', sa.Integer(), nullable=False, server_default='0'),
        sa.Column('fault', sa.String(96)),
        sa.Column('withheld', sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column('alerted', sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column('changes', sa.JSON()),
    ):
        op.add_column('devices', column)
    op.add_column('hosts', sa.Column('looks', sa.JSON()))

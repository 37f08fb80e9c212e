# SPDX-License-Identifier: Apache-2.0
"""Create all tables"""

import typing

from alembic import op
import sqlalchemy as sa

revision = 'b754f9f71354'
down_revision = None


def upgrade() -> None:
    _create(
        'device_profiles',
        sa.Column('name', sa.String(255), nullable=False, unique=True),
        sa.Column('groups', sa.JSON(), nullable=False),
        sa.Column('description', sa.String(255)),
    )
    _create(
        'hosts',
        sa.Column('name', sa.String(255), nullable=False, unique=True),
        sa.Column('boot_id', sa.String(36), nullable=False),
        sa.Column('past_boots', sa.JSON(), nullable=False),
        sa.Column('sequence', sa.BigInteger(), nullable=False),
        sa.Column('digest', sa.String(64)),
        sa.Column('seen_at', sa.DateTime(), nullable=False),
        sa.Column('interval', sa.Integer(), nullable=False),
        sa.Column('drivers', sa.JSON(), nullable=False),
    )
    _create(
        'devices',
        sa.Column('type', sa.String(32), nullable=False),
        sa.Column('vendor', sa.String(255), nullable=False),
        sa.Column('model', sa.String(255), nullable=False),
        sa.Column('address', sa.String(255), nullable=False),
        sa.Column('numa_node', sa.Integer()),
        sa.Column('board', sa.JSON()),
        sa.Column('vendor_board', sa.JSON()),
        _link('hostname', 'hosts.name', sa.String(255)),
        sa.Column('status', sa.String(16), nullable=False),
        sa.Column('absences', sa.Integer(), nullable=False),
        sa.UniqueConstraint('hostname', 'address'),
    )
    _create(
        'deployables',
        sa.Column('name', sa.String(255), nullable=False, unique=True),
        sa.Column('driver_name', sa.String(100), nullable=False),
        sa.Column('rp_uuid', sa.String(36), nullable=False, unique=True),
        sa.Column('announced', sa.JSON()),
        sa.Column('bitstream_id', sa.String(36)),
        _link('device_id', 'devices.id'),
    )
    _create(
        'attach_handles',
        sa.Column('attach_type', sa.String(16), nullable=False),
        sa.Column('attach_info', sa.JSON(), nullable=False),
        _link('deployable_id', 'deployables.id'),
        sa.Column('lost', sa.Boolean(), nullable=False),
    )
    _create(
        'messages',
        sa.Column('kind', sa.String(16), nullable=False),
        sa.Column('key', sa.String(36), nullable=False),
        sa.Column('payload', sa.JSON(), nullable=False),
        sa.Column('attempts', sa.Integer(), nullable=False),
        sa.Column('due_at', sa.DateTime(), nullable=False, index=True),
        sa.Column('stamp', sa.String(36), nullable=False),
        sa.UniqueConstraint('kind', 'key'),
    )
    _create(
        'attributes',
        sa.Column('key', sa.String(255), nullable=False),
        sa.Column('value', sa.String(255), nullable=False),
        _link('deployable_id', 'deployables.id'),
        sa.Column('added', sa.Boolean(), nullable=False),
        sa.UniqueConstraint('deployable_id', 'key'),
    )
    _create(
        'accelerator_requests',
        sa.Column('state', sa.String(16), nullable=False),
        _link('device_profile_id', 'device_profiles.id'),
        sa.Column('device_profile_group_id', sa.Integer(), nullable=False),
        sa.Column('hostname', sa.String(255)),
        sa.Column('device_rp_uuid', sa.String(36)),
        sa.Column('instance_uuid', sa.String(36), index=True),
        sa.Column('project_id', sa.String(255), nullable=False, index=True),
        _link('attach_handle_id', 'attach_handles.id', nullable=True, unique=True),
    )


def _create(table: str, *columns: sa.schema.SchemaItem) -> None:
    """A table with the columns that all have; env.py gives the names to its constraints."""
    op.create_table(
        table,
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('uuid', sa.String(36), nullable=False, unique=True),
        *columns,
        sa.Column('created_at', sa.DateTime(), nullable=False),
        sa.Column('updated_at', sa.DateTime()),
        # Texts are equal if their bytes are, as in the other databases.
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_nopad_bin',
    )


def _link(
    name: str,
    target: str,
    type_: typing.Any = sa.Integer,
    nullable: bool = False,
    unique: bool = False,
) -> sa.Column[int]:
    key = sa.ForeignKey(target)
    return sa.Column(name, type_, key, nullable=nullable, index=True, unique=unique or None)

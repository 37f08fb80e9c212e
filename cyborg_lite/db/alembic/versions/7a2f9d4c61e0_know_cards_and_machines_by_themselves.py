# SPDX-License-Identifier: Apache-2.0
"""Know cards and machines by themselves

A card is known by its serial number, a machine by its identity, a handle by its form. Two rows of
one host may have one address: that of a card that is held and gone, and that of its successor.
"""

import json
import typing

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = '7a2f9d4c61e0'
down_revision = 'e2b6d05f3a71'

PCI = ('domain', 'bus', 'device', 'function')
#: The columns that hold a time, beside created_at and updated_at of every table.
TIMES = {'hosts': {'seen_at': False}, 'messages': {'due_at': False}}


def upgrade() -> None:
    for column in (
        sa.Column('agent', sa.String(36)),
        sa.Column('past_agents', sa.JSON()),
        sa.Column('machine', sa.String(64)),
        sa.Column('renamed_to', sa.String(255)),
        sa.Column('cloned', sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        op.add_column('hosts', column)
    for name in ('machine', 'renamed_to'):
        op.create_index(f'ix_hosts_{name}', 'hosts', [name])
    op.add_column('devices', sa.Column('serial', sa.String(255)))
    op.add_column('devices', sa.Column('unusable', sa.String(255)))
    label = sa.Column('label', sa.String(255), nullable=False, server_default=sa.text("''"))
    op.add_column('deployables', label)
    form = sa.Column('form', sa.String(32), nullable=False, server_default='part')
    op.add_column('attach_handles', form)
    op.add_column('attach_handles', sa.Column('iommu_group', sa.String(32)))
    op.add_column('accelerator_requests', sa.Column('ordinal', sa.Integer()))
    op.create_index(
        'ix_accelerator_requests_instance_uuid_ordinal',
        'accelerator_requests',
        ['instance_uuid', 'ordinal'],
        unique=True,
    )
    with op.batch_alter_table('devices') as devices:
        devices.drop_constraint('uq_devices_hostname_address', type_='unique')
    _fill(op.get_bind())
    if op.get_bind().dialect.name == 'mysql':
        _keep_microseconds()


def _keep_microseconds() -> None:
    tables = sa.inspect(op.get_bind()).get_table_names()
    for table in sorted(set(tables) - {'alembic_version'}):
        times = {'created_at': False, 'updated_at': True} | TIMES.get(table, {})
        for name, nullable in times.items():
            op.alter_column(
                table,
                name,
                type_=mysql.DATETIME(fsp=6),
                existing_type=mysql.DATETIME(),
                existing_nullable=nullable,
            )


def _fill(connection: sa.Connection) -> None:
    """What the columns of rows that are there say, which the next reports may not."""
    metadata = sa.MetaData()
    metadata.reflect(connection, only=('devices', 'deployables', 'attach_handles', 'hosts'))
    devices, parts = metadata.tables['devices'], metadata.tables['deployables']
    cards = {row.id: row for row in connection.execute(sa.select(devices))}
    address = {}
    for row in connection.execute(sa.select(parts)).all():
        card = cards[row.device_id]
        address[row.id] = card.address
        name = row.name.removeprefix(f'{card.hostname}_').replace(card.address, '', 1)
        if name:
            connection.execute(sa.update(parts).where(parts.c.id == row.id).values(label=name))
    handles = metadata.tables['attach_handles']
    for row in connection.execute(sa.select(handles).where(handles.c.attach_type == 'PCI')).all():
        if _is_function(row.attach_info, address[row.deployable_id]):
            whole = sa.update(handles).where(handles.c.id == row.id).values(form='whole')
            connection.execute(whole)
    # The next report of each host is read whatever it says.
    connection.execute(sa.update(metadata.tables['hosts']).values(digest=None))
    _number_requests(connection)


def _is_function(info: typing.Any, address: str) -> bool:
    """Whether a handle is the function at this address."""
    info = json.loads(info) if isinstance(info, str) else info
    if not isinstance(info, dict) or info.keys() != set(PCI):
        return False
    try:
        place, _, function = address.rpartition('.')
        given = [int(text, 16) for text in (*place.split(':'), function)]
        return given == [int(str(info[name]), 16) for name in PCI]
    except ValueError:
        return False


def _number_requests(connection: sa.Connection) -> None:
    requests = sa.Table('accelerator_requests', sa.MetaData(), autoload_with=connection)
    bound = sa.select(requests.c.id, requests.c.instance_uuid).where(
        requests.c.attach_handle_id.is_not(None), requests.c.instance_uuid.is_not(None)
    )
    numbers: dict[str, int] = {}
    for row in connection.execute(bound.order_by(requests.c.id)).all():
        number = numbers[row.instance_uuid] = numbers.get(row.instance_uuid, -1) + 1
        values = sa.update(requests).where(requests.c.id == row.id).values(ordinal=number)
        connection.execute(values)

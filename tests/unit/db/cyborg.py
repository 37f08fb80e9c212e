# SPDX-License-Identifier: Apache-2.0
"""A database of OpenStack Cyborg: its tables, and rows as its drivers and its API write them.

Source: the schema that ``cyborg-dbsync`` of openstack-cyborg 17.0.0 makes.
"""

from __future__ import annotations

import datetime
import itertools
import json
import typing
import uuid

import sqlalchemy as sa

#: the revision of 2026.2, and that of 2024.1
LAST, FIRST = 'b47c8f2d1e3a', '6c77bd6afea5'
PROJECT = 'c3a1e2f4b5d647a8900000000000aaaa'
TABLES = {
    'devices': 'type vendor model std_board_info vendor_board_info hostname status device_state',
    'deployables': 'parent_id root_id name num_accelerators device_id rp_uuid driver_name '
    'bitstream_id',
    'attributes': 'deployable_id key value',
    'controlpath_ids': 'device_id cpid_type cpid_info',
    'attach_handles': 'deployable_id cpid_id in_use attach_type attach_info',
    'device_profiles': 'name profile_json description',
    'extended_accelerator_requests': 'project_id state device_profile_id device_profile_group_id '
    'hostname device_rp_uuid instance_uuid attach_handle_id substate deployable_id',
    'quota_usages': 'project_id user_id resource in_use reserved until_refresh',
}
NUMBERS = ('_id', 'in_use', 'num_accelerators', 'reserved', 'until_refresh')


def _column(name: str) -> sa.Column[typing.Any]:
    number = name.endswith(NUMBERS) and name not in ('project_id', 'user_id', 'bitstream_id')
    return sa.Column(name, sa.Integer if number else sa.Text)


class Cyborg:
    """``cyborg.add('devices', ...)`` adds a row and returns it, what is not given filled in."""

    def __init__(self, url: str, revision: str = LAST) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        metadata = sa.MetaData()
        sa.Table('alembic_version', metadata, sa.Column('version_num', sa.String(32)))
        for table, columns in TABLES.items():
            names = columns.split()
            if revision == FIRST:
                names = [name for name in names if name != 'device_state']
            sa.Table(
                table,
                metadata,
                sa.Column('created_at', sa.DateTime),
                sa.Column('updated_at', sa.DateTime),
                sa.Column('id', sa.Integer, primary_key=True),
                sa.Column('uuid', sa.String(36)),
                *map(_column, names),
            )
        metadata.create_all(self.engine)
        self.tables = metadata.tables
        self._minutes = itertools.count()
        with self.engine.begin() as connection:
            connection.execute(
                sa.insert(self.tables['alembic_version']).values(version_num=revision)
            )

    def close(self) -> None:
        self.engine.dispose()

    def add(self, table: str, **values: typing.Any) -> typing.Any:
        start = datetime.datetime(2026, 1, 1, 12)
        created = start + datetime.timedelta(minutes=next(self._minutes))
        row = {'uuid': str(uuid.uuid4()), 'created_at': created} | values
        kept = self.tables[table]
        with self.engine.begin() as connection:
            answer = connection.execute(sa.insert(kept).values(**row))
            [number] = answer.inserted_primary_key
            return connection.execute(sa.select(kept).where(kept.c.id == number)).one()

    def change(self, table: str, row: typing.Any, **values: typing.Any) -> None:
        kept = self.tables[table]
        with self.engine.begin() as connection:
            connection.execute(sa.update(kept).where(kept.c.id == row.id).values(**values))

    def gpu(self, host: str = 'host-1', address: str = '0000:3b:00.0', **more: typing.Any) -> Card:
        """A card as Cyborg's NVIDIA driver reports it."""
        board = {'product_id': '1eb8', 'controller': '3D controller'}
        device = self.add(
            'devices',
            **{
                'type': 'GPU',
                'vendor': '10de',
                'model': 'TU104GL [Tesla T4]',
                'std_board_info': json.dumps(board),
                'vendor_board_info': json.dumps({'vendor_info': 'gpu_vb_info'}),
                'hostname': host,
                'status': 'enabled',
            }
            | more,
        )
        control = self.add(
            'controlpath_ids', device_id=device.id, cpid_type='PCI', cpid_info=slot(address)
        )
        name = f'{host}_{address}'
        part = self.part(device, name, rc='PGPU', trait0='CUSTOM_NVIDIA_1EB8')
        return Card(device, part, self.handle(part, slot(address), cpid_id=control.id))

    def part(self, device: typing.Any, name: str, driver: str = 'NVIDIA', **attributes: str):
        part = self.add(
            'deployables',
            name=name,
            num_accelerators=1,
            device_id=device.id,
            rp_uuid=str(uuid.uuid3(uuid.NAMESPACE_DNS, name)),
            driver_name=driver,
        )
        for key, value in attributes.items():
            # Cyborg writes them in the same moment.
            about = {'deployable_id': part.id, 'created_at': part.created_at}
            self.add('attributes', key=key, value=value, **about)
        return part

    def handle(self, part: typing.Any, info: str, **more: typing.Any):
        values = {'attach_type': 'PCI', 'attach_info': info, 'in_use': 0, 'cpid_id': 1} | more
        return self.add('attach_handles', deployable_id=part.id, **values)

    def profile(self, name: str = 'one-gpu', **more: typing.Any):
        groups = [{'resources:PGPU': '1', 'trait:CUSTOM_NVIDIA_1EB8': 'required'}]
        values = {'profile_json': json.dumps({'groups': groups}), 'description': None} | more
        return self.add('device_profiles', name=name, **values)

    def arq(self, profile: typing.Any, state: str = 'Initial', **more: typing.Any):
        values = {
            'state': state,
            'substate': 'Initial',
            'project_id': PROJECT,
            'device_profile_id': profile.id,
            'device_profile_group_id': 0,
        }
        return self.add('extended_accelerator_requests', **(values | more))

    def bound(self, profile: typing.Any, card: Card, **more: typing.Any):
        """A request that is bound to a card."""
        self.change('attach_handles', card.handle, in_use=1)
        values = {
            'hostname': card.device.hostname,
            'device_rp_uuid': card.part.rp_uuid,
            'instance_uuid': str(uuid.uuid4()),
            'attach_handle_id': card.handle.id,
            'deployable_id': card.part.id,
            'state': 'Bound',
        }
        return self.arq(profile, **(values | more))


class Card(typing.NamedTuple):
    device: typing.Any
    part: typing.Any
    handle: typing.Any


def slot(address: str) -> str:
    """A PCI address as Cyborg keeps it."""
    domain, bus, rest = address.split(':')
    device, function = rest.split('.')
    return json.dumps({'bus': bus, 'device': device, 'domain': domain, 'function': function})

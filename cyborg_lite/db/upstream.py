# SPDX-License-Identifier: Apache-2.0
"""Take over a database of OpenStack Cyborg.

Its schema ties little together, and some of upstream's bugs leave rows that contradict each
other: so nothing is trusted here.  What cannot be kept is left out, with its reason.  Where a
request loses an accelerator that its instance may still use, the device is disabled: nobody else
gets it before an operator has looked.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime
import json
import pathlib
import re
import typing
import uuid as uuidlib

from oslo_utils import timeutils
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from cyborg_lite.model import pci

#: The schemas that we read, by alembic's revision: those of the releases 2024.1 to 2026.2.
REVISIONS = ('6c77bd6afea5', '9625668549b5', 'a35b4295a0e5', 'b47c8f2d1e3a')
#: What is taken over, and where upstream keeps it.
TABLES = {
    'devices': model.Device,
    'deployables': model.Deployable,
    'attributes': model.Attribute,
    'attach_handles': model.AttachHandle,
    'device_profiles': model.DeviceProfile,
    'extended_accelerator_requests': model.ARQ,
}
#: Our driver for the cards of upstream's, by type of device and name.
DRIVERS = {
    ('AICHIP', 'huawei'): 'huawei_ascend',
    ('FPGA', 'XILINX'): 'xilinx_fpga',
    ('GPU', 'NVIDIA'): 'nvidia_gpu',
    ('QAT', 'intel'): 'intel_qat',
}
#: Device states in which something of the last tenant may be left.
UNCLEAN = ('pending_cleaning', 'cleaning', 'error')
#: The states of a request that holds nothing here.
FREE = ('Initial', 'Unbound', 'BindFailed', 'UnbindFailed', 'Deleting')
#: The states among these in which a request may still hold its accelerator.
LEAVING = ('UnbindFailed', 'Deleting')
#: The key of a trait that a driver of upstream's reports.
TRAIT = re.compile('traits?([0-9]{0,4})')
#: How long upstream takes, at most, to write the attributes of one report.
TOGETHER = datetime.timedelta(minutes=1)

Row = collections.abc.Mapping[str, typing.Any]
Kind = typing.TypeVar('Kind', bound=model.Base)


@dataclasses.dataclass
class Outcome:
    """What was taken over."""

    #: by table of upstream's, how many rows it has and how many there are of ours now
    counts: dict[str, tuple[int, int]]
    #: what was left out or changed, and why
    notes: list[str]


def take_over(database: engine.Database, url: str, project: str | None = None) -> Outcome:
    """Fill an empty database from one of upstream's, in one transaction.

    :param url: of upstream's database, which is only read.
    :param project: the project for requests that have none.
    :raises cyborg_lite.exception.Conflict: when ours is not empty, or not of this release.
    :raises cyborg_lite.exception.Invalid: when the other schema is not known.
    """
    rows = _read(url)
    if migration.version(database.engine) != migration.head():
        raise exception.Conflict(
            reason='The database is not of this release: run cyborg-lite-dbsync upgrade first.'
        )
    with database.writer() as session:
        for kind in (model.Host, *TABLES.values()):
            if session.scalar(sa.select(kind.id).limit(1)) is not None:
                raise exception.Conflict(
                    reason=f'The database has {kind.__tablename__} already: create an empty one, '
                    'run cyborg-lite-dbsync upgrade on it, and import into that.'
                )
        taken = _Takeover(project)
        taken.run(rows)
        session.add_all(taken.made)
        session.flush()
        counts = {
            table: (len(rows[table]), sum(type(row) is kind for row in taken.made))
            for table, kind in TABLES.items()
        }
    return Outcome(counts, taken.notes)


def _read(url: str) -> dict[str, list[Row]]:
    """All rows of upstream's tables, in the order of their ids."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == 'sqlite' and not pathlib.Path(parsed.database or '').is_file():
        raise exception.Invalid(reason=f'There is no file {parsed.database}.')  # not create one
    source = sa.create_engine(parsed)
    try:
        with source.connect() as connection:
            _refuse_unknown(connection)
            return {table: _rows(connection, table) for table in (*TABLES, 'controlpath_ids')}
    finally:
        source.dispose()


def _refuse_unknown(connection: sa.Connection) -> None:
    found = migration.version_of(connection)
    if found not in REVISIONS:
        raise exception.Invalid(
            reason=f'The database to import has the schema {found or "(none)"}: expected '
            f'OpenStack Cyborg at {", ".join(REVISIONS)} (2024.1 to 2026.2). Bring an older one '
            'there with cyborg-dbsync upgrade.'
        )


def _rows(connection: sa.Connection, table: str) -> list[Row]:
    every = sa.select(sa.text('*')).select_from(sa.table(table)).order_by(sa.column('id'))
    return [dict(row) for row in connection.execute(every).mappings()]


class _Takeover:
    """Rows of ours, made from rows of upstream's."""

    def __init__(self, project: str | None) -> None:
        self.made: list[model.Base] = []
        self.notes: list[str] = []
        self._project = project
        self._seen: set[tuple[str, str, str]] = set()
        self._hosts: dict[str, model.Host] = {}
        # What upstream has twice is one row of ours, under both of its numbers.
        self._devices: dict[int, model.Device] = {}
        self._parts: dict[int, model.Deployable] = {}
        self._handles: dict[int, model.AttachHandle] = {}
        self._profiles: dict[int, model.DeviceProfile] = {}
        # By the number of a handle, the deployable that it is of.
        self._part_of: dict[int, model.Deployable] = {}
        self._named: dict[tuple[int, str], model.Deployable] = {}
        self._providers: dict[str, model.Deployable] = {}
        # By host and place, what is there.
        self._places: dict[tuple[str, str], model.Device] = {}
        self._accelerators: dict[tuple[str, str], int] = {}

    def run(self, rows: dict[str, list[Row]]) -> None:
        names = collections.defaultdict(set)
        for row in rows['deployables']:
            names[row['device_id']].add(str(row['name']))
        addresses = {row['device_id']: row['cpid_info'] for row in rows['controlpath_ids']}
        for row in rows['devices']:
            self._try(self._add_device, row, 'Device', names[row['id']], addresses.get(row['id']))
        named = collections.defaultdict(set)
        for row in rows['deployables']:
            named[id(self._devices.get(row['device_id']))].add(row['name'])
        for row in rows['deployables']:
            self._try(self._add_part, row, 'Deployable', named)
        reported = _reported(rows['attributes'])
        for row in rows['attributes']:
            self._try(self._add_attribute, row, 'Attribute', row['id'] not in reported)
        for row in rows['attach_handles']:
            self._try(self._add_handle, row, 'Attach handle')
        for row in rows['device_profiles']:
            self._try(self._add_profile, row, 'Device profile')
        self._add_arqs(rows['extended_accelerator_requests'])
        self._note_leaks(rows['attach_handles'], rows['extended_accelerator_requests'])

    def _try(
        self, add: collections.abc.Callable[..., None], row: Row, what: str, *more: typing.Any
    ) -> bool:
        """Whether the row could be added; else a note says why not."""
        try:
            add(row, *more)
        except ValueError as reason:
            self.notes.append(f'{what} {_short(row["uuid"])} is left out: {reason}')
            return False
        return True

    def _make(self, kind: type[Kind], row: Row, **values: typing.Any) -> Kind:
        """A row of ours, with upstream's uuid and times.

        :raises ValueError: when a column cannot hold its value, or another row has it.
        """
        values['uuid'] = _uuid(row['uuid'])
        values['created_at'] = _time(row['created_at']) or timeutils.utcnow()
        values['updated_at'] = _time(row['updated_at'])
        columns = sa.inspect(kind).columns
        plain = [name for name in values if name in columns]
        for name in plain:
            _check(columns[name], values[name])
        unique = [name for name in plain if columns[name].unique]
        keys = {(kind.__tablename__, name, values[name]) for name in unique}
        if taken := keys & self._seen:
            raise ValueError(f'another one has the same {min(taken)[1]}')
        self._seen |= keys
        made = kind(**values)
        self.made.append(made)
        return made

    def _disable(self, device: model.Device | None, reason: str) -> None:
        if device is not None and device.status != 'maintaining':
            device.status = 'maintaining'
            self.notes.append(f'Device {device.uuid} is disabled: {reason}')

    def _add_device(self, row: Row, names: set[str], control: str | None) -> None:
        address = _address(row, names, control)
        if twin := self._places.get((row['hostname'], address)):
            self._devices[row['id']] = twin
            self.notes.append(f'Device {_short(row["uuid"])} is {twin.uuid} again: now it is one')
            return
        device = self._make(
            model.Device,
            row,
            type=row['type'],
            vendor=row['vendor'],
            model=row['model'],
            address=address,
            hostname=row['hostname'],
            status='enabled' if row['status'] == 'enabled' else 'maintaining',
            board=_object(row['std_board_info']),
            vendor_board=_object(row['vendor_board_info']),
        )
        self._devices[row['id']] = self._places[device.hostname, address] = device
        self._add_host(device)
        if row.get('device_state') in UNCLEAN:
            self._disable(device, f'its state is {row["device_state"]}')

    def _add_host(self, device: model.Device) -> None:
        """The host of a device: down until its agent reports."""
        name = device.hostname
        if name not in self._hosts:
            host = model.Host(name=name, boot_id='', seen_at=device.created_at, silent=True)
            self._hosts[name] = host
            self.made.append(host)

    def _add_part(self, row: Row, named: dict[int, set[str]]) -> None:
        device = _known(self._devices, row['device_id'], 'device')
        name = _name(device, str(row['name']), alone=len(named[id(device)]) == 1)
        if twin := self._named.get((id(device), name)):
            self._parts[row['id']] = twin
            self.notes.append(f'Deployable {_short(row["uuid"])} is {twin.uuid} again')
            return
        provider = row['rp_uuid'] and _uuid(row['rp_uuid'])
        if not provider or ('deployables', 'rp_uuid', provider) in self._seen:
            ours = str(uuidlib.uuid3(uuidlib.NAMESPACE_DNS, name))
            if provider:
                self.notes.append(
                    f'Deployable {row["uuid"]} is provider {ours} now: another one is {provider}'
                )
            provider = ours
        part = self._make(
            model.Deployable,
            row,
            name=name,
            label=name.removeprefix(f'{device.hostname}_').replace(device.address, '', 1),
            driver_name=_driver(device.type, row['driver_name']),
            rp_uuid=provider,
            bitstream_id=row['bitstream_id'],
            device=device,
        )
        self._parts[row['id']] = self._named[id(device), name] = self._providers[provider] = part

    def _add_attribute(self, row: Row, added: bool) -> None:
        part = _known(self._parts, row['deployable_id'], 'deployable')
        if (key := ('attributes', part.uuid, str(row['key']))) not in self._seen:
            own = {'key': row['key'], 'value': row['value'], 'added': added}
            self._make(model.Attribute, row, **own, deployable=part)
            self._seen.add(key)

    def _add_handle(self, row: Row) -> None:
        part = _known(self._parts, row['deployable_id'], 'deployable')
        self._part_of[row['id']] = part
        kind, info = row['attach_type'], _attach_info(row['attach_info'])
        place = part.device.hostname, json.dumps(info, sort_keys=True)
        first = self._accelerators.setdefault(place, row['id'])
        if first in self._handles:
            self._handles[row['id']] = self._handles[first]
            self._part_of[row['id']] = self._part_of[first]
            return
        handle = self._make(model.AttachHandle, row, attach_type=kind, attach_info=info)
        part.attach_handles.append(handle)
        self._handles[row['id']] = handle
        if kind == 'MDEV':
            handle.form = 'mdev'  # as the driver reports it: while it is held, its form stays
            self._disable(part.device, 'its type has to be in [agent] vgpu_types of its host')

    def _add_profile(self, row: Row) -> None:
        groups = (_object(row['profile_json']) or {}).get('groups')
        if not isinstance(groups, list) or not all(_is_group(group) for group in groups):
            raise ValueError('its groups cannot be read')
        self._profiles[row['id']] = self._make(
            model.DeviceProfile,
            row,
            name=row['name'],
            groups=[{key: str(value) for key, value in group.items()} for group in groups],
            description=row['description'] and str(row['description'])[:255],
        )

    def _add_arqs(self, rows: list[Row]) -> None:
        """The requests.  Of several that are bound to one accelerator the first one got it: the
        hypervisor refuses it to the others.
        """
        bound = [row for row in rows if row['state'] == 'Bound']
        owners: dict[int, Row] = {}
        for row in sorted(bound, key=_changed):
            if handle := self._handles.get(row['attach_handle_id']):
                owners.setdefault(id(handle), row)
        for row in rows:
            handle = self._handles.get(row['attach_handle_id'])
            owner = owners.get(id(handle)) if handle else None
            added = self._try(self._add_arq, row, 'ARQ', handle, owner)
            if _may_use(row) and not (added and owner):
                reason = f'ARQ {_short(row["uuid"])} was {_short(row["state"])} and may use it'
                self._disable(self._device_held(row), reason)

    def _add_arq(self, row: Row, handle: model.AttachHandle | None, owner: Row | None) -> None:
        profile = _known(self._profiles, row['device_profile_id'], 'device profile')
        group = row['device_profile_group_id']
        if not isinstance(group, int) or not 0 <= group < len(profile.groups):
            raise ValueError(f'its device profile has no group {group!r:.40}')
        project = row['project_id'] or self._project
        if not project:
            raise ValueError(
                'it has no project: run cyborg-dbsync online_data_migrations before, or give '
                '--project'
            )
        state, reason = _state(row, handle, owner)
        holds = handle if state == 'Bound' else None
        part = self._part_of[row['attach_handle_id']] if holds else None
        arq = self._make(
            model.ARQ,
            row,
            state=state,
            device_profile=profile,
            device_profile_group_id=group,
            hostname=row['hostname'],
            device_rp_uuid=part.rp_uuid if part else row['device_rp_uuid'],
            instance_uuid=row['instance_uuid'],
            project_id=project,
            attach_handle=holds,
            held_since=_time(row['updated_at'] or row['created_at']) if part else None,
            resource_class=part.resource_class if part else None,
        )
        if reason:
            self.notes.append(f'ARQ {arq.uuid} was {row["state"]} and is {state}: {reason}')

    def _device_held(self, row: Row) -> model.Device | None:
        """The device that a request was bound to, as far as the database tells."""
        part = self._part_of.get(row['attach_handle_id']) or self._parts.get(row['deployable_id'])
        part = part or self._providers.get(row['device_rp_uuid'])
        return part.device if part else None

    def _note_leaks(self, handles: list[Row], arqs: list[Row]) -> None:
        held = {row['attach_handle_id'] for row in arqs if _may_use(row)}
        for row in handles:
            if row['in_use'] and row['id'] in self._handles and row['id'] not in held:
                self.notes.append(
                    f'Attach handle {_short(row["uuid"])} was in use and no ARQ is bound to it: '
                    'it is free now'
                )


def _may_use(row: Row) -> bool:
    """Whether the instance of a request may use an accelerator."""
    return row['state'] == 'Bound' or bool(row['attach_handle_id'] and row['state'] in LEAVING)


def _reported(attributes: list[Row]) -> set[int]:
    """The numbers of the attributes that drivers reported, not operators: a driver counts its
    traits from 0 or 1 without a gap, and has them written with the class.
    """
    found = {row['id'] for row in attributes if row['key'] == 'rc'}
    times = {row['deployable_id']: row['created_at'] for row in attributes if row['id'] in found}
    last: collections.Counter[int] = collections.Counter()
    for row in sorted(attributes, key=lambda row: (len(str(row['key'])), str(row['key']))):
        match, part = TRAIT.fullmatch(str(row['key'])), row['deployable_id']
        written = _time(row['created_at']) or datetime.datetime.min
        is_late = written - (_time(times.get(part)) or datetime.datetime.max) > TOGETHER
        if match and int(match[1] or 0) <= last[part] + 1 and not is_late:
            last[part] = int(match[1] or 0)
            found.add(row['id'])
    return found


def _state(row: Row, handle: model.AttachHandle | None, owner: Row | None) -> tuple[str, str]:
    """The state that a request gets, and why if it is another one."""
    state = row['state']
    if state in FREE or (state == 'Bound' and handle and owner is row):
        return state, ''
    if state == 'BindStarted':
        return 'BindFailed', 'nobody goes on with it'
    if state != 'Bound':
        raise ValueError(f'its state is {state!r:.40}')
    if owner is None:
        return 'BindFailed', 'its attach handle is gone'
    return 'BindFailed', f'ARQ {_short(owner["uuid"])} holds its accelerator'


def _known(rows: dict[int, Kind], number: int, what: str) -> Kind:
    if number not in rows:
        raise ValueError(f'its {what} is gone')
    return rows[number]


def _address(row: Row, names: set[str], control: str | None) -> str:
    """Where a device is: by the name of its provider, HOST_ADDRESS, if that says so; by its
    control path; else by a name that no other device has.
    """
    prefix = f'{row["hostname"]}_'
    if len(names) == 1 and (name := min(names)).startswith(prefix):
        return pci.canonical_address(name.removeprefix(prefix))
    info = _object(control) or {}
    if info.keys() >= pci.PARTS.keys():
        return pci.canonical_address('{domain}:{bus}:{device}.{function}'.format(**info))
    return _uuid(row['uuid'])


def _name(device: model.Device, name: str, alone: bool) -> str:
    """The name under which our agent reports the deployable."""
    prefix = f'{device.hostname}_'
    name = device.address if alone else name
    return name if name.startswith(prefix) else prefix + name


def _driver(type_: str, name: str | None) -> str:
    return 'pci' if type_ == 'PCI' else DRIVERS.get((type_, name or ''), name or 'unknown')


def _attach_info(text: str) -> dict[str, str]:
    info = _object(text)
    if not info or not all(isinstance(value, str) for value in info.values()):
        raise ValueError(f'its attach_info is {text!r:.80}')
    try:
        # Upstream's fake driver says 0 where the others say 00.
        return pci.canonical_info(info)
    except ValueError:
        return info


def _is_group(group: typing.Any) -> bool:
    return isinstance(group, dict) and all(
        isinstance(value, str | int)
        and (not key.startswith('resources:') or re.fullmatch('[0-9]{1,9}', str(value)))
        for key, value in group.items()
    )


def _object(text: typing.Any) -> dict[str, typing.Any] | None:
    """The JSON object that a text is; None if it is none."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _changed(row: Row) -> tuple[datetime.datetime, int]:
    """When a row was last changed; its number tells equal times apart."""
    return _time(row['updated_at'] or row['created_at']) or datetime.datetime.max, row['id']


def _time(value: typing.Any) -> datetime.datetime | None:
    """A time in UTC; SQLite keeps it as text."""
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
    return value if isinstance(value, datetime.datetime) else None


def _uuid(value: typing.Any) -> str:
    return str(uuidlib.UUID(str(value)))


def _check(column: sa.Column[typing.Any], value: typing.Any) -> None:
    if value is None and not column.nullable:
        raise ValueError(f'it has no {column.name}')
    if value is None or not isinstance(column.type, sa.String):
        return
    plain = isinstance(value, str) and re.sub(r'\s', '', value).isprintable()
    if not plain or len(value) > (column.type.length or 0):
        raise ValueError(
            f'its {column.name} is {value!r:.80}: expected up to {column.type.length} characters'
        )


def _short(value: typing.Any) -> str:
    """A value of upstream's for a note: no more of it than a uuid has, and harmless to print."""
    return ascii(str(value))[1:-1][:36]

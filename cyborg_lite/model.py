# SPDX-License-Identifier: Apache-2.0
"""What cyborg_lite knows: hosts, devices, deployables, handles, profiles and requests.

Each concept is declared here, once.  A column's kind says who writes it::

    fact    a driver reports it; a report that differs changes it
    own     the service writes it
    link    it points to another row

``since`` is the API microversion that first shows the field, ``hidden`` keeps it
from the API altogether, ``doc`` is its line in the API reference.  The tables,
the report that an agent sends, its reconciliation, and the API's types, filters
and sort keys all follow from these declarations: a new field is one new entry.

What follows from other rows is not stored: a handle is in use if and only if an
accelerator request links to it, and a deployable has as many accelerators as it
has handles.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import types
import typing
import uuid as uuidlib

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

Facts = dict[str, typing.Any]
Version = tuple[int, int]

#: JSON with keys in order: made once, it costs a third of json.dumps().
_as_text = json.JSONEncoder(sort_keys=True).encode


def _column(
    kind: str,
    *type_: typing.Any,
    since: str = '2.0',
    hidden: bool = False,
    doc: str = '',
    **kwargs: typing.Any,
) -> orm.MappedColumn[typing.Any]:
    info = {'kind': kind, 'since': since, 'hidden': hidden}
    return orm.mapped_column(*type_, info=info, doc=doc, **kwargs)


def fact(type_: typing.Any, **kwargs: typing.Any) -> orm.MappedColumn[typing.Any]:
    """A column that a driver reports."""
    return _column('fact', type_, **kwargs)


def own(type_: typing.Any, **kwargs: typing.Any) -> orm.MappedColumn[typing.Any]:
    """A column that the service writes."""
    return _column('own', type_, **kwargs)


def link(target: str, hidden: bool = True, **kwargs: typing.Any) -> orm.MappedColumn[typing.Any]:
    """A column that points to another row."""
    return _column('link', sa.ForeignKey(target), hidden=hidden, index=True, **kwargs)


class shown(property):  # noqa: N801 - reads as the decorator that it is
    """A property that the API always shows beside the columns: it follows from other rows."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a resource as the API shows it."""

    name: str
    type: type
    nullable: bool
    since: str
    doc: str
    column: sa.Column[typing.Any] | None

    @property
    def version(self) -> Version:
        major, minor = self.since.split('.')
        return int(major), int(minor)


class Base(orm.DeclarativeBase):
    """A row: an id within the database, a uuid for everyone else."""

    metadata = sa.MetaData(
        naming_convention={
            'ix': 'ix_%(table_name)s_%(column_0_N_name)s',
            'uq': 'uq_%(table_name)s_%(column_0_N_name)s',
            'fk': 'fk_%(table_name)s_%(column_0_N_name)s',
            'pk': 'pk_%(table_name)s',
        }
    )

    #: the facts that tell one row from its siblings
    keys: typing.ClassVar[tuple[str, ...]] = ()
    #: the lists of rows that live and die with this one
    parts: typing.ClassVar[tuple[str, ...]] = ()

    id: orm.Mapped[int] = own(sa.Integer, primary_key=True, hidden=True, sort_order=-2)
    uuid: orm.Mapped[str] = own(
        sa.String(36),
        unique=True,
        sort_order=-1,
        # By it the database's answer to an INSERT of many rows is told apart.
        insert_sentinel=True,
        default=lambda: str(uuidlib.uuid4()),
        doc='The UUID of the resource.',
    )
    created_at: orm.Mapped[datetime.datetime] = own(
        sa.DateTime, default=timeutils.utcnow, doc='When the resource was created, ISO 8601, UTC.'
    )
    updated_at: orm.Mapped[datetime.datetime | None] = own(
        sa.DateTime,
        onupdate=timeutils.utcnow,
        doc='When the resource was last changed, ISO 8601, UTC; null if never.',
    )

    @classmethod
    def columns(cls, kind: str) -> list[sa.Column[typing.Any]]:
        return [c for c in cls._table().columns if c.info['kind'] == kind]

    @classmethod
    def _table(cls) -> sa.Table:
        return typing.cast('sa.Table', cls.__table__)

    @classmethod
    def fields(cls) -> tuple[Field, ...]:
        """What the API shows of this class, columns first, in order of declaration."""
        columns = [
            Field(c.name, c.type.python_type, bool(c.nullable), c.info['since'], c.doc or '', c)
            for c in cls._table().columns
            if not c.info['hidden']
        ]
        derived = []
        for name, value in vars(cls).items():
            if isinstance(value, shown):
                hint = typing.get_type_hints(value.fget)['return']
                options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
                base = typing.get_origin(options[0]) or options[0]
                nullable = type(None) in options
                derived.append(Field(name, base, nullable, '2.0', value.__doc__ or '', None))
        return tuple(columns + derived)

    @property
    def identity(self) -> str:
        return _as_text([getattr(self, name) for name in self.keys])

    @property
    def reported(self) -> bool:
        """Whether a driver's report owns this row, so that it goes when the report lacks it."""
        return True

    def facts(self) -> Facts:
        """This row and its parts as a driver reports them: plain data, ready for the wire."""
        row = {c.name: getattr(self, c.name) for c in self.columns('fact')}
        return row | {name: [part.facts() for part in getattr(self, name)] for name in self.parts}

    @classmethod
    def from_facts(cls, facts: Facts) -> typing.Self:
        """The row that these facts tell of.

        Facts that this release does not know are ignored, and those that are absent keep
        their default: agents and conductors of neighbouring releases work together.
        """
        known = {c.name: facts[c.name] for c in cls.columns('fact') if c.name in facts}
        parts = {
            name: [cls.part(name).from_facts(part) for part in facts.get(name, ())]
            for name in cls.parts
        }
        return cls(**known, **parts)

    @classmethod
    def part(cls, name: str) -> type[Base]:
        return typing.cast('type[Base]', cls.__mapper__.relationships[name].mapper.class_)


def _parts(target: str, parent: str | None = None) -> typing.Any:
    return orm.relationship(
        target, cascade='all, delete-orphan', order_by=f'{target}.id', back_populates=parent
    )


class Host(Base):
    """A machine whose agent reports, with what is known of its last report."""

    __tablename__ = 'hosts'

    name: orm.Mapped[str] = own(sa.String(255), unique=True, doc='The name of the host.')
    boot_id: orm.Mapped[str] = own(sa.String(36), hidden=True)
    # Boots that are over: a report that was sent before a reboot may arrive after it.
    past_boots: orm.Mapped[list[str]] = own(sa.JSON, default=list, hidden=True)
    sequence: orm.Mapped[int] = own(sa.BigInteger, default=0, hidden=True)
    # Null while the next report has to be read even if it is like the last one.
    digest: orm.Mapped[str | None] = own(sa.String(64), hidden=True)
    seen_at: orm.Mapped[datetime.datetime] = own(
        sa.DateTime, default=timeutils.utcnow, doc='When the host last reported, ISO 8601, UTC.'
    )
    # How often the host means to report, in seconds.
    interval: orm.Mapped[int] = own(sa.Integer, default=20, hidden=True)
    # True once a conductor has noticed that the host is down.
    silent: orm.Mapped[bool] = own(sa.Boolean, server_default=sa.false(), hidden=True)
    drivers: orm.Mapped[dict[str, Facts]] = own(
        sa.JSON,
        default=dict,
        doc='The drivers by name, each with its state (``ok`` or ``degraded``), the reason, and '
        'the number of devices that it found.',
    )

    found: orm.Mapped[list[Device]] = orm.relationship(back_populates='host', order_by='Device.id')

    @staticmethod
    def alive_since(interval: int) -> datetime.datetime:
        """Who means to report so often, and has not done so since then, is down."""
        return timeutils.utcnow() - datetime.timedelta(seconds=2.5 * interval)

    @shown
    def state(self) -> str:
        """``up``, or ``down`` when two reports in a row have not come."""
        return 'down' if self.seen_at < self.alive_since(self.interval) else 'up'

    @shown
    def devices(self) -> list[str]:
        """The UUIDs of the devices of the host."""
        return [device.uuid for device in self.found]


class Device(Base):
    """A physical accelerator card, or the PCI function that stands for it, in a host."""

    __tablename__ = 'devices'
    __table_args__ = (sa.UniqueConstraint('hostname', 'address'),)
    keys = ('address',)
    parts = ('deployables',)

    type: orm.Mapped[str] = fact(
        sa.String(32), doc='The kind of device: GPU, FPGA, AICHIP, QAT, NIC, SSD, PCI and so on.'
    )
    vendor: orm.Mapped[str] = fact(
        sa.String(255), doc='The vendor; for a PCI device its vendor id, four hexadecimal digits.'
    )
    model: orm.Mapped[str] = fact(sa.String(255), doc='The model, in words.')
    address: orm.Mapped[str] = fact(
        sa.String(255), since='2.50', doc='Where the host has the device: for PCI DDDD:BB:DD.F.'
    )
    numa_node: orm.Mapped[int | None] = fact(
        sa.Integer, since='2.50', doc='The NUMA node of the device; null if the host does not say.'
    )
    board: orm.Mapped[dict[str, typing.Any] | None] = fact(sa.JSON, hidden=True)
    vendor_board: orm.Mapped[dict[str, typing.Any] | None] = fact(sa.JSON, hidden=True)
    hostname: orm.Mapped[str] = link(
        'hosts.name', hidden=False, doc='The host that the device is in.'
    )
    status: orm.Mapped[str] = own(
        sa.String(16),
        default='enabled',
        since='2.3',
        doc='``enabled``, or ``maintaining`` while the device is disabled.',
    )
    # Counts the orders to enable or disable it: one that comes late meets no row.
    revision: orm.Mapped[int] = own(sa.Integer, server_default='0', default=0, hidden=True)
    # How many reports in a row have lacked the device.
    absences: orm.Mapped[int] = own(sa.Integer, default=0, hidden=True)

    host: orm.Mapped[Host] = orm.relationship(back_populates='found')
    deployables: orm.Mapped[list[Deployable]] = _parts('Deployable', parent='device')

    @shown
    def std_board_info(self) -> str:
        """What every board of this kind tells of itself: a JSON object, as text."""
        return _as_text(self.board or {})

    @shown
    def vendor_board_info(self) -> str:
        """What only boards of this vendor tell: a JSON object, as text."""
        return _as_text(self.vendor_board or {})

    @property
    def obstacle(self) -> str | None:
        """Why no accelerator of this device may be given out, if there is a reason."""
        if self.status != 'enabled':
            return f'is {self.status}'
        if self.absences:
            return 'is missing from its host'
        return f'is in {self.hostname}, which is down' if self.host.state == 'down' else None


class Deployable(Base):
    """The part of a device that is given out as one kind of resource: a resource provider."""

    __tablename__ = 'deployables'
    keys = ('name',)
    parts = ('attributes', 'attach_handles')

    name: orm.Mapped[str] = fact(
        sa.String(255), unique=True, doc='The name of the resource provider.'
    )
    driver_name: orm.Mapped[str] = fact(sa.String(100), doc='The driver that found the device.')
    rp_uuid: orm.Mapped[str] = own(
        sa.String(36), unique=True, doc='The UUID of the resource provider.'
    )
    # What Placement was, or is to be, told of the provider.
    announced: orm.Mapped[dict[str, typing.Any] | None] = own(
        sa.JSON(none_as_null=True), hidden=True
    )
    bitstream_id: orm.Mapped[str | None] = own(
        sa.String(36), doc='The image that the device is programmed with; null if none.'
    )
    device_id: orm.Mapped[int] = link(
        'devices.id', hidden=False, doc='The internal number of the device.'
    )

    device: orm.Mapped[Device] = orm.relationship(back_populates='deployables')
    attributes: orm.Mapped[list[Attribute]] = _parts('Attribute', parent='deployable')
    attach_handles: orm.Mapped[list[AttachHandle]] = _parts('AttachHandle')
    if typing.TYPE_CHECKING:
        handle_count: int  # counted by the query, see the end of this module

    @shown
    def parent_id(self) -> str | None:
        """Always null: a deployable has no parent."""
        return None

    @shown
    def root_id(self) -> str | None:
        """Always null: a deployable has no parent."""
        return None

    @shown
    def num_accelerators(self) -> int:
        """How many accelerators the deployable has, free or not."""
        return self.handle_count

    @shown
    def attributes_list(self) -> str:
        """The attributes: a JSON list of objects of one key each, as text."""
        return _as_text([{a.key: a.value} for a in self.attributes])

    # The attributes are the one place where class and traits are kept.

    @property
    def resource_class(self) -> str | None:
        return next((a.value for a in self.attributes if a.key == 'rc'), None)

    @resource_class.setter
    def resource_class(self, value: str) -> None:
        self.attributes.append(Attribute(key='rc', value=value))

    @property
    def traits(self) -> list[str]:
        return sorted({a.value for a in self.attributes if a.key.startswith('trait')})

    @traits.setter
    def traits(self, values: typing.Iterable[str]) -> None:
        for number, value in enumerate(sorted(set(values))):
            self.attributes.append(Attribute(key=f'trait{number}', value=value))


class Attribute(Base):
    """Something to know of a deployable: its resource class, a trait, or what an operator adds."""

    __tablename__ = 'attributes'
    __table_args__ = (sa.UniqueConstraint('deployable_id', 'key'),)
    keys = ('key',)

    key: orm.Mapped[str] = fact(
        sa.String(255), doc='``rc`` for the resource class, ``trait0``... for traits, or any name.'
    )
    value: orm.Mapped[str] = fact(sa.String(255), doc='The value, as text.')
    deployable_id: orm.Mapped[int] = link(
        'deployables.id', hidden=False, doc='The internal number of the deployable.'
    )
    deployable: orm.Mapped[Deployable] = orm.relationship(back_populates='attributes')
    # True for what an operator added through the API: no report takes it away.
    added: orm.Mapped[bool] = own(sa.Boolean, default=False, hidden=True)

    @property
    def reported(self) -> bool:
        return not self.added


class AttachHandle(Base):
    """What a hypervisor or a container runtime needs to attach one accelerator."""

    __tablename__ = 'attach_handles'
    keys = ('attach_info',)

    attach_type: orm.Mapped[str] = fact(sa.String(16))
    attach_info: orm.Mapped[dict[str, str]] = fact(sa.JSON)
    deployable_id: orm.Mapped[int] = link('deployables.id')
    # True for a handle that a request still holds, and that the last report lacks.
    lost: orm.Mapped[bool] = own(sa.Boolean, default=False, hidden=True)

    # Deleting a handle that a request holds is an error, not a way to take it away.
    arq: orm.Mapped[ARQ | None] = orm.relationship(
        back_populates='attach_handle', uselist=False, passive_deletes='all'
    )


class DeviceProfile(Base):
    """A named list of groups of resources that a workload may ask for."""

    __tablename__ = 'device_profiles'

    name: orm.Mapped[str] = own(sa.String(255), unique=True, doc='The name, unique in the cloud.')
    groups: orm.Mapped[list[dict[str, str]]] = own(
        sa.JSON, doc='The groups: objects of ``resources:``, ``trait:`` and ``accel:`` keys.'
    )
    description: orm.Mapped[str | None] = own(sa.String(255), doc='The description.')


class ARQ(Base):
    """An accelerator request: one accelerator wanted and, once it is bound, which one."""

    __tablename__ = 'accelerator_requests'

    #: the states in which a request waits for nothing
    RESOLVED: typing.ClassVar = ('Bound', 'BindFailed', 'Deleting')

    state: orm.Mapped[str] = own(
        sa.String(16),
        default='Initial',
        doc='Initial, BindStarted, Bound, Unbound, BindFailed, UnbindFailed or Deleting.',
    )
    device_profile_id: orm.Mapped[int] = link('device_profiles.id')
    device_profile_group_id: orm.Mapped[int] = own(
        sa.Integer, default=0, doc='Which group of the device profile is asked for, from 0.'
    )
    hostname: orm.Mapped[str | None] = own(
        sa.String(255), doc='The host to bind on, as the client named it; null until then.'
    )
    device_rp_uuid: orm.Mapped[str | None] = own(
        sa.String(36), doc='The resource provider to bind from; null until then.'
    )
    instance_uuid: orm.Mapped[str | None] = own(
        sa.String(36), index=True, doc='The instance that holds the accelerator; null if none.'
    )
    project_id: orm.Mapped[str] = own(
        sa.String(255), index=True, doc='The project that owns the request.'
    )
    # Counts its moves: who asks for one says which he saw, so that a late call meets no row.
    revision: orm.Mapped[int] = own(sa.Integer, server_default='0', default=0, hidden=True)
    # Unique: this link is the allocation, and the database refuses to make it twice.
    attach_handle_id: orm.Mapped[int | None] = link('attach_handles.id', unique=True)

    device_profile: orm.Mapped[DeviceProfile] = orm.relationship(lazy='joined', innerjoin=True)
    attach_handle: orm.Mapped[AttachHandle | None] = orm.relationship(
        back_populates='arq', lazy='joined'
    )

    @shown
    def device_profile_name(self) -> str:
        """The name of the device profile that the request was made from."""
        return self.device_profile.name

    @shown
    def attach_handle_type(self) -> str:
        """How to attach the accelerator, PCI and so on; empty until bound."""
        return self.attach_handle.attach_type if self.attach_handle else ''

    @shown
    def attach_handle_uuid(self) -> str | None:
        """The UUID of the attach handle; null until bound."""
        return self.attach_handle.uuid if self.attach_handle else None

    @shown
    def attach_handle_info(self) -> dict[str, str]:
        """What to attach, for PCI domain, bus, device and function; empty until bound."""
        return self.attach_handle.attach_info if self.attach_handle else {}


class Message(Base):
    """Something that another service is still to be told."""

    __tablename__ = 'messages'
    __table_args__ = (sa.UniqueConstraint('kind', 'key'),)

    kind: orm.Mapped[str] = own(sa.String(16), hidden=True)
    key: orm.Mapped[str] = own(sa.String(36), hidden=True)
    payload: orm.Mapped[dict[str, typing.Any]] = own(sa.JSON, default=dict, hidden=True)
    attempts: orm.Mapped[int] = own(sa.Integer, default=0, hidden=True)
    due_at: orm.Mapped[datetime.datetime] = own(sa.DateTime, index=True, hidden=True)
    # Another one whenever the message is replaced: who has sent the old one must not delete it.
    stamp: orm.Mapped[str] = own(sa.String(36), hidden=True)
    # Another one whenever it is taken to be sent; null while nobody sends it.
    lease: orm.Mapped[str | None] = own(sa.String(36), hidden=True)


Deployable.handle_count = orm.column_property(  # type: ignore[assignment]
    sa.select(sa.func.count(AttachHandle.id))
    .where(AttachHandle.deployable_id == Deployable.id)
    .correlate_except(AttachHandle)
    .scalar_subquery()
)

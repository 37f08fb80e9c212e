# SPDX-License-Identifier: Apache-2.0
"""Which accelerators an allocation can get, and what keeps the others from it.

What is free is told by the same conditions as everywhere: those of a device, of a request that
holds a handle, and of what excludes it.
"""

from __future__ import annotations

import collections.abc
import datetime
import functools
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import accelerators
from cyborg_lite.db import exclusion
from cyborg_lite.db import promises
from cyborg_lite.db import query as queries
from cyborg_lite.db import queue
from cyborg_lite.db import quotas
from cyborg_lite.model import base
from cyborg_lite.model import device as devices

_handle, _part, _device, _host = (
    model.AttachHandle, model.Deployable, model.Device, model.Host,
)  # fmt: skip
_promise = model.Promise
_class = orm.aliased(model.Attribute)
_trait = orm.aliased(model.Attribute)

#: How many statements are kept, one for all kinds that are asked for together, and of how many
#: classes and traits at most: users choose them, and each takes memory. SQLAlchemy takes longer to
#: make one than most databases take to execute it.
STATEMENTS, TERMS = 256, 16
#: What excludes an accelerator for a process of its host.
_CAUSES = exclusion.causes(_device, guest=False)
_USABLE = [~_handle.lost, *(~each.holds(_device, _host) for each in devices.OBSTACLES)]
_NOT_EXCLUDED = [~cause.holds for cause in _CAUSES]
# In this order: what is held needs no search for what excludes it.
_FREE = [*_USABLE, ~exclusion.HELD, *_NOT_EXCLUDED]

_START, _END = (sa.bindparam(name, type_=base.Moment) for name in ('start', 'end'))
_holding = (
    sa.select(model.ARQ.id)
    .outerjoin(model.Allocation, model.Allocation.uuid == model.ARQ.allocation_uuid)
    .where(model.ARQ.attach_handle_id == _handle.id)
    .correlate(_handle)
)
#: Whether the holder of an accelerator may hold it for ever.
_ENDLESS = _holding.where(model.Allocation.lease_ends_at.is_(None)).exists()
#: The conditions of an accelerator that can be kept from START to END.
_KEEPABLE = [
    *_USABLE,
    *_NOT_EXCLUDED,
    ~_holding.where(model.Allocation.lease_ends_at > _START).exists(),
    ~promises.overlaps(_START, _END),
]

#: The state of what is free, and kept for a reservation that starts too early.
RESERVED = 'reserved'
_state = accelerators.state(_CAUSES)
_free_now = _state == 'free'

#: As text: cards in equal places have equal texts, and each text is parsed once.
_TOPOLOGY = sa.cast(_device.topology, sa.Text)


_AMONG = _handle.id.in_(sa.bindparam('handles', expanding=True))

#: What free() can tell beside: nothing, whether anything waits or is limited, or what a holder is
#: shown, with whether anything is limited. The last locks the row of the owner's limits, too: the
#: hosts are locked before, as everywhere.
_TOLD: dict[str, tuple[typing.Any, ...]] = {
    '': (),
    'others': (queue.ANY.label('waits'), quotas.ANY.label('limited')),
    'details': (
        _handle.uuid, _handle.attach_type, _handle.attach_info, _part.rp_uuid,
        _part.driver_name.label('driver'), _device.uuid.label('device_uuid'), _device.type,
        _device.model, _device.vendor_board, _class.value.label('resource_class'),
        quotas.ANY.label('limited'), quotas.LOCKED.label('quota'),
    ),
}  # fmt: skip


class Kind(typing.NamedTuple):
    """The required class and traits of an accelerator."""

    resource_class: str
    required: frozenset[str]
    forbidden: frozenset[str]


Hosts = collections.abc.Collection[str] | None

#: When the lease ends that holds an accelerator; null without a lease, or an end of it.
_LEASE_ENDS = (
    sa.select(model.Allocation.lease_ends_at)
    .join(model.ARQ, model.ARQ.allocation_uuid == model.Allocation.uuid)
    .where(model.ARQ.attach_handle_id == _handle.id)
    .correlate(_handle)
    .scalar_subquery()
)
#: How many accelerators whose leases end are looked at.
MOST = 4096
#: How long before a reservation starts a lease has to end, in seconds: between the choice and the
#: begin of the lease some time passes.
MARGIN = 1


def kept_before(lease: int | None) -> sa.ColumnElement[bool]:
    """That a reservation needs an accelerator before such a lease has ended."""
    if lease is None:
        return promises.KEPT_FROM.is_not(None)
    end = timeutils.utcnow() + datetime.timedelta(seconds=lease + MARGIN)
    return end > promises.KEPT_FROM


def _state_for(lease: int | None) -> sa.ColumnElement[str]:
    """The state of an accelerator for one who wants it for so many seconds."""
    return sa.case((sa.and_(_free_now, kept_before(lease)), RESERVED), else_=_state)


def _has(trait: str) -> sa.ColumnElement[bool]:
    return sa.exists().where(
        _trait.deployable_id == _part.id, _trait.key.startswith('trait'), _trait.value == trait
    )


def _traits(kind: Kind) -> sa.ColumnElement[bool]:
    required = [_has(trait) for trait in sorted(kind.required)]
    return sa.and_(sa.true(), *required, *(~_has(trait) for trait in sorted(kind.forbidden)))


def _fits(kind: Kind) -> sa.ColumnElement[bool]:
    return sa.and_(_class.value == kind.resource_class, _traits(kind))


def _joined(query: sa.Select[typing.Any], outer: bool = False) -> sa.Select[typing.Any]:
    """
    :param outer: keep a deployable without accelerators, with nulls for those.
    """
    return (
        query.select_from(_class)
        .join(_part, _part.id == _class.deployable_id)
        .join(_handle, _handle.deployable_id == _part.id, isouter=outer)
        .join(_device, _device.id == _part.device_id)
        .join(_host, _host.name == _device.hostname)
        .where(_class.key == 'rc')
    )


def free(
    session: orm.Session,
    kinds: list[Kind],
    hosts: Hosts,
    limit: int | None = None,
    only: collections.abc.Collection[int] | None = None,
    told: str = '',
    among: collections.abc.Collection[int] | None = None,
    owner: str = '',
) -> list[sa.Row[typing.Any]]:
    """The free accelerators of these kinds, in a fixed order.

    Each row has the identity, since when a reservation needs it, for each kind whether it matches,
    and what else is told.

    :param limit: how many are read at most; None for all.
    :param only: the numbers of the kinds of which one has to match; None for any.
    :param told: what else is told: ``others``, or ``details``.
    :param among: the ids of the handles to look at; None for all.
    :param owner: the project whose limits are locked with ``details``.
    """
    terms = sum(1 + len(each.required) + len(each.forbidden) for each in kinds)
    statement = _free if terms <= TERMS else _free.__wrapped__
    matching = None if only is None else frozenset(only)
    given = [each is not None for each in (hosts, limit, among)]
    query = statement(tuple(kinds), *given, matching, told)
    return _run(session, query, hosts, most=limit, handles=[*(among or ())], owner=owner)


def details(session: orm.Session, handles: list[int], owner: str) -> list[sa.Row[typing.Any]]:
    """What a holder is shown of these accelerators, as free() tells it."""
    return list(queries.run(session, _DETAILS, {'handles': handles, 'owner': owner}))


def of_cards(
    session: orm.Session, host: str, addresses: collections.abc.Collection[str], lease: int | None
) -> list[sa.Row[typing.Any]]:
    """The accelerators of these cards of a host: their ids, addresses, classes, and states.

    :param lease: as for :func:`counted`.
    """
    shown: list[typing.Any] = [_handle.id, _device.address, _class.value.label('resource_class')]
    query = _joined(sa.select(*shown, _state_for(lease).label('state')))
    query = query.outerjoin(model.ARQ, model.ARQ.attach_handle_id == _handle.id)
    query = query.where(_device.hostname == host, _device.address.in_(addresses))
    return list(session.execute(query.order_by(_handle.id)))


def keepable(
    session: orm.Session,
    kinds: list[Kind],
    hosts: Hosts,
    start: datetime.datetime,
    end: datetime.datetime,
) -> list[sa.Row[typing.Any]]:
    """The accelerators of these kinds that can be kept for a reservation, as free() has them.

    In place of a time each row has whether its holder may hold it for ever.
    """
    query = _matching(tuple(kinds), hosts is not None, _ENDLESS, _KEEPABLE)
    return _run(session, query, hosts, start=start, end=end)


def ending(session: orm.Session, kinds: list[Kind], hosts: Hosts) -> list[sa.Row[typing.Any]]:
    """The accelerators of these kinds whose leases end, as free() has them, the first ones.

    In place of a time of a reservation each row has the end of the lease.
    """
    ends = _LEASE_ENDS.label('ends')
    query = _matching(tuple(kinds), hosts is not None, ends, [*_USABLE, _LEASE_ENDS.is_not(None)])
    query = query.order_by(None).order_by(ends, _handle.id).limit(MOST)
    return _run(session, query, hosts)


def _run(
    session: orm.Session, query: sa.Select[typing.Any], hosts: Hosts, **values: typing.Any
) -> list[sa.Row[typing.Any]]:
    """The rows of a statement of _matching()."""
    return list(queries.run(session, query, {'hosts': [*(hosts or ())], **values}))


_DETAILS = _joined(
    sa.select(
        *(_handle.id, _device.hostname.label('host'), _handle.form, _device.numa_node),
        *(_device.address, *_TOLD['details']),
    )
).where(_AMONG)


@functools.lru_cache(STATEMENTS)
def _free(
    kinds: tuple[Kind, ...],
    named: bool,
    limited: bool,
    among: bool,
    only: frozenset[int] | None,
    told: str,
) -> sa.Select[typing.Any]:
    """
    :param named: whether hosts are named.
    """
    query = _matching(kinds, named, promises.KEPT_FROM, _FREE, only).add_columns(*_TOLD[told])
    query = query.where(_AMONG) if among else query
    return query.limit(sa.bindparam('most', type_=sa.Integer())) if limited else query


def _matching(
    kinds: tuple[Kind, ...],
    named: bool,
    told: typing.Any,
    conditions: list[sa.ColumnElement[bool]],
    only: collections.abc.Collection[int] | None = None,
) -> sa.Select[typing.Any]:
    """
    :param told: what is told of each accelerator beside its identity.
    :param only: as for :func:`free`.
    """
    fits = [_fits(kind) for kind in kinds]
    shown: list[typing.Any] = [
        _handle.id, _device.hostname.label('host'), _device.id.label('device'), _handle.form,
        _device.numa_node, _device.address, _TOPOLOGY, told,
    ]  # fmt: skip
    shown += [fit.label(f'kind{number}') for number, fit in enumerate(fits)]
    asked = range(len(kinds)) if only is None else sorted(only)
    of_class = _class.value.in_({kinds[number].resource_class for number in asked})
    matches = sa.or_(*(fits[number] for number in asked))
    query = _joined(sa.select(*shown)).where(of_class, matches, *conditions)
    if named:
        query = query.where(_device.hostname.in_(sa.bindparam('hosts', expanding=True)))
    # As the index has them: with a limit the database stops early.
    return query.order_by(_class.deployable_id, _handle.id)


def first_kept(session: orm.Session, kinds: list[Kind], hosts: Hosts) -> sa.Row[typing.Any] | None:
    """The first reservation that needs accelerators of these kinds: its names, and its start."""
    kind = model.Allocation
    named = [kind.uuid, kind.name, kind.project_id, _promise.starts_at]
    query = _of_kinds(named, kinds, hosts).join(_promise, promises.CONCERNED)
    query = query.join(kind, kind.uuid == _promise.allocation_uuid)
    query = query.order_by(_promise.starts_at, _promise.id)
    return session.execute(query.limit(1)).one_or_none()


def first_ending(
    session: orm.Session, kinds: list[Kind], hosts: Hosts
) -> sa.Row[typing.Any] | None:
    """The lease whose end frees accelerators of these kinds first: its names, its end, and how many
    of which class it frees.
    """
    kind, by = model.Allocation, _class.value.label('resource_class')
    named = [kind.uuid, kind.name, kind.project_id, kind.lease_ends_at, by]
    query = _held([*named, sa.func.count(_handle.id).label('amount')], kinds, hosts)
    query = query.where(kind.lease_ends_at.is_not(None), *_USABLE).group_by(*named)
    query = query.order_by(kind.lease_ends_at, kind.uuid, by)
    return session.execute(query.limit(1)).one_or_none()


def clashes(
    session: orm.Session,
    kinds: list[Kind],
    hosts: Hosts,
    start: datetime.datetime,
    end: datetime.datetime,
) -> list[sa.Row[typing.Any]]:
    """The allocations that need or hold accelerators of these kinds at a time between these.

    They come by their end, each with the number of these accelerators.
    """
    kind = model.Allocation
    shown: list[typing.Any] = [kind.uuid, kind.name, kind.project_id, kind.state, kind.starts_at]
    shown.append(kind.lease_ends_at)
    named = [*shown, sa.func.count(sa.distinct(_handle.id)).label('amount')]
    kept = _of_kinds(named, kinds, hosts).join(_promise, promises.CONCERNED)
    kept = kept.join(kind, kind.uuid == _promise.allocation_uuid)
    kept = kept.where(_promise.starts_at < end, _promise.ends_at > start)
    held = _held(named, kinds, hosts).where(kind.lease_ends_at > start)
    found = [each for query in (kept, held) for each in session.execute(query.group_by(*shown))]
    return sorted(found, key=lambda row: (row.lease_ends_at, row.uuid))


def broken(session: orm.Session) -> list[int]:
    """The ids of the reservations that wait, and have an accelerator that cannot be used."""
    obstacles = [each.holds(_device, _host) for each in devices.OBSTACLES]
    query = (
        sa.select(model.Allocation.id)
        .join(_promise, _promise.allocation_uuid == model.Allocation.uuid)
        .outerjoin(_handle, _handle.uuid == _promise.accelerator_uuid)
        .outerjoin(_part, _part.id == _handle.deployable_id)
        .outerjoin(_device, _device.id == _part.device_id)
        .outerjoin(_host, _host.name == _device.hostname)
        .where(
            model.Allocation.state == RESERVED,
            sa.or_(_handle.id.is_(None), _handle.lost, *obstacles),
        )
    )
    return list(session.scalars(query.distinct().order_by(model.Allocation.id)))


def _of_kinds(columns: list[typing.Any], kinds: list[Kind], hosts: Hosts) -> sa.Select[typing.Any]:
    """These columns of the accelerators that match any of these kinds, on the hosts."""
    query = _joined(sa.select(*columns)).where(sa.or_(*map(_fits, kinds)))
    return query if hosts is None else query.where(_device.hostname.in_(hosts))


def _held(columns: list[typing.Any], kinds: list[Kind], hosts: Hosts) -> sa.Select[typing.Any]:
    """The same of those that an allocation holds, with columns of this."""
    query = _of_kinds(columns, kinds, hosts)
    query = query.join(model.ARQ, model.ARQ.attach_handle_id == _handle.id)
    return query.join(model.Allocation, model.Allocation.uuid == model.ARQ.allocation_uuid)


def counted(
    session: orm.Session,
    kinds: list[Kind],
    hosts: Hosts,
    by_device: bool = False,
    lease: int | None = None,
    near: bool = False,
) -> list[sa.Row[typing.Any]]:
    """The numbers of accelerators, by all facts that decide whether they can be allocated.

    Those of other classes are counted together: their class is null.  A card without accelerators
    has a row with the amount 0.

    :param by_device: count those of each device by themselves, and tell where it is.
    :param lease: for how many seconds they are wanted, None without an end: what is free and kept
        for a reservation that starts earlier is ``reserved``.
    :param near: count those on the hosts only: it takes as long as there are on these.
    """
    named = _class.value.in_({kind.resource_class for kind in kinds})
    on_hosts = sa.true() if hosts is None else _device.hostname.in_(hosts)
    columns: dict[str, typing.Any] = {
        'resource_class': _class.value,
        # The state takes longest to find.
        'state': sa.case((on_hosts, _state_for(lease))),
        'hostname': _device.hostname,
        'numa_node': _device.numa_node,
        'on_hosts': on_hosts,
    } | {f'traits{number}': _traits(kind) for number, kind in enumerate(kinds)}
    if by_device:
        columns |= {'device': _device.id, 'address': _device.address, 'topology': _TOPOLOGY}
    shown = [sa.case((named, column)).label(name) for name, column in columns.items()]
    rows = _joined(sa.select(_handle.id, *shown), outer=True)
    rows = rows.where(on_hosts) if near else rows
    each = rows.outerjoin(model.ARQ, model.ARQ.attach_handle_id == _handle.id).subquery('each')
    id, *alike = each.columns
    query = sa.select(*alike, sa.func.count(id).label('amount'))
    return list(session.execute(query.group_by(*alike)))

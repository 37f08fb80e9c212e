# SPDX-License-Identifier: Apache-2.0
"""Which accelerators an allocation can get, and what keeps the others from it.

What is free is told by the same conditions as everywhere: those of a device, of a request that
holds a handle, and of what excludes it.
"""

from __future__ import annotations

import collections.abc
import functools
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import accelerators
from cyborg_lite.db import exclusion
from cyborg_lite.db import query as queries
from cyborg_lite.model import device as devices

_handle, _part, _device, _host = (
    model.AttachHandle, model.Deployable, model.Device, model.Host,
)  # fmt: skip
_class = orm.aliased(model.Attribute)
_trait = orm.aliased(model.Attribute)

#: How many statements are kept, one for all kinds that are asked for together, and of how many
#: classes and traits at most: users choose them, and each takes memory. SQLAlchemy takes longer to
#: make one than most databases take to execute it.
STATEMENTS, TERMS = 256, 16
#: What excludes an accelerator for a process of its host.
_CAUSES = exclusion.causes(_device, guest=False)
_FREE = [
    ~_handle.lost,
    *(~each.holds(_device, _host) for each in devices.OBSTACLES),
    ~exclusion.HELD,
    *(~cause.holds for cause in _CAUSES),
]


#: As text: cards in equal places have equal texts, and each text is parsed once.
_TOPOLOGY = sa.cast(_device.topology, sa.Text)


class Kind(typing.NamedTuple):
    """The required class and traits of an accelerator."""

    resource_class: str
    required: frozenset[str]
    forbidden: frozenset[str]


Hosts = collections.abc.Collection[str] | None


def _has(trait: str) -> sa.ColumnElement[bool]:
    return sa.exists().where(
        _trait.deployable_id == _part.id, _trait.key.startswith('trait'), _trait.value == trait
    )


def _traits(kind: Kind) -> sa.ColumnElement[bool]:
    required = [_has(trait) for trait in sorted(kind.required)]
    return sa.and_(sa.true(), *required, *(~_has(trait) for trait in sorted(kind.forbidden)))


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
    session: orm.Session, kinds: list[Kind], hosts: Hosts, limit: int | None
) -> list[sa.Row[typing.Any]]:
    """The free accelerators of these kinds, in a fixed order.

    Each row has the identity, and then for each kind whether it matches.
    """
    terms = sum(1 + len(each.required) + len(each.forbidden) for each in kinds)
    statement = _free if terms <= TERMS else _free.__wrapped__
    query = statement(tuple(kinds), hosts is not None, limit is not None)
    return list(queries.run(session, query, {'hosts': [*(hosts or ())], 'most': limit}))


@functools.lru_cache(STATEMENTS)
def _free(kinds: tuple[Kind, ...], named: bool, limited: bool) -> sa.Select[typing.Any]:
    """
    :param named: whether hosts are named.
    """
    fits = [sa.and_(_class.value == kind.resource_class, _traits(kind)) for kind in kinds]
    shown: list[typing.Any] = [
        _handle.id, _device.hostname, _device.id.label('device'), _handle.form, _device.numa_node,
        _device.address, _TOPOLOGY,
    ]  # fmt: skip
    shown += [fit.label(f'kind{number}') for number, fit in enumerate(fits)]
    of_class = _class.value.in_({kind.resource_class for kind in kinds})
    query = _joined(sa.select(*shown)).where(of_class, sa.or_(*fits), *_FREE)
    if named:
        query = query.where(_device.hostname.in_(sa.bindparam('hosts', expanding=True)))
    # As the index has them: with a limit the database stops early.
    query = query.order_by(_class.deployable_id, _handle.id)
    return query.limit(sa.bindparam('most', type_=sa.Integer())) if limited else query


def counted(
    session: orm.Session, kinds: list[Kind], hosts: Hosts, by_device: bool = False
) -> list[sa.Row[typing.Any]]:
    """The numbers of accelerators, by all facts that decide whether they can be allocated.

    Those of other classes are counted together: their class is null.  A card without accelerators
    has a row with the amount 0.

    :param by_device: count those of each device by themselves, and tell where it is.
    """
    named = _class.value.in_({kind.resource_class for kind in kinds})
    columns = {
        'resource_class': _class.value,
        'state': accelerators.state(_CAUSES),
        'hostname': _device.hostname,
        'numa_node': _device.numa_node,
        'on_hosts': sa.true() if hosts is None else _device.hostname.in_(hosts),
    } | {f'traits{number}': _traits(kind) for number, kind in enumerate(kinds)}
    if by_device:
        columns |= {'device': _device.id, 'address': _device.address, 'topology': _TOPOLOGY}
    shown = [sa.case((named, column)).label(name) for name, column in columns.items()]
    rows = _joined(sa.select(_handle.id, *shown), outer=True)
    each = rows.outerjoin(model.ARQ, model.ARQ.attach_handle_id == _handle.id).subquery('each')
    id, *alike = each.columns
    query = sa.select(*alike, sa.func.count(id).label('amount'))
    return list(session.execute(query.group_by(*alike)))

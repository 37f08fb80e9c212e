# SPDX-License-Identifier: Apache-2.0
"""Accelerators: each attach handle, seen with its card, its state and its holder.

They are a view of other tables: nothing is stored of them, so that every query of a model can
filter and sort by whatever they show.
"""

from __future__ import annotations

import collections
import datetime
import functools
import json
import operator
import re
import types
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import exclusion
from cyborg_lite.db import idling
from cyborg_lite.model import Attribute
from cyborg_lite.model import base
from cyborg_lite.model import device as devices
from cyborg_lite.model import pci

_handle, _part, _device, _host = (
    model.AttachHandle, model.Deployable, model.Device, model.Host,
)  # fmt: skip
_class = orm.aliased(Attribute)

_causes = exclusion.causes(_device)
_held = model.ARQ.id.is_not(None)


def _joined(between: str, *texts: tuple[typing.Any, typing.Any]) -> sa.ColumnElement[typing.Any]:
    """The texts whose conditions hold, with a separator between two; null if none holds."""
    each = [sa.case((holds, between + text), else_='') for holds, text in texts]
    joined = functools.reduce(operator.add, each)
    return sa.func.nullif(sa.func.substr(joined, len(between) + 1), '')


def _by_state() -> dict[str, sa.ColumnElement[bool]]:
    """By state that keeps an accelerator from being free, the condition, in the order of STATES."""
    found: dict[str, sa.ColumnElement[bool]] = {'lost': _handle.lost.expression}
    for each in devices.OBSTACLES:
        holds = each.holds(_device, _host)
        found[each.state] = sa.or_(found[each.state], holds) if each.state in found else holds
    return found | {'held': _held}


_conditions = _by_state()
#: ``free``, or of the others in order: the first that holds is the state of an accelerator.
STATES = ('free', *_conditions, 'excluded')
_SEPARATOR = ','
# Of an accelerator that is neither free nor excluded all states, and the first; else null.
_standings = _joined(_SEPARATOR, *((holds, name) for name, holds in _conditions.items()))
_standing = sa.case(*((holds, name) for name, holds in _conditions.items()))
_obstacle = 'its device ' + _joined(
    devices.AND,
    *((each.holds(_device, _host), each.words(_device, _host)) for each in devices.OBSTACLES),
)


def state(causes: list[exclusion.Cause]) -> sa.ColumnElement[str]:
    """The state of an accelerator: the first of STATES that holds, by what may exclude it."""
    excluded = sa.case((exclusion.words(causes).is_not(None), 'excluded'), else_='free')
    return sa.func.coalesce(_standing, excluded)


# To filter and to sort by.  What is shown follows from the reason, since a list would look for what
# excludes each accelerator twice.
_state = state(_causes)
_reason = sa.case(
    (_standing.is_(None), exclusion.words(_causes)),
    else_=_joined(
        '; ', (_handle.lost, 'its host does not report it any more'),
        (_obstacle.is_not(None), _obstacle),
    ),
)  # fmt: skip
_vendor_id = sa.func.replace(sa.func.lower(_device.vendor), '0x', '')

#: What is shown, in order: a column, whether it can be null, and what it is.
_SHOWN: dict[str, tuple[typing.Any, bool, str]] = {
    'state': (_state, False,
              '``free``, or the first of these that holds: '
              + ', '.join(f'``{each}``' for each in STATES[1:]) + '.'),
    'reason': (_reason, True,
               'All reasons why it is not free, as a text; null if it is free or only held.'),
    'host': (_device.hostname, False, 'The host that it is in.'),
    'rogue': (_device.rogue, True,
              'The processes that use its device without a lease, as a text: pid, user, command, '
              'begin, container; null if there are none.'),
    'device_uuid': (_device.uuid, False, 'The UUID of its device.'),
    'type': (_device.type, False, 'The kind of its device: GPU, FPGA, AICHIP and so on.'),
    'vendor': (sa.case(pci.VENDORS, value=_vendor_id, else_=_device.vendor), False,
               'The vendor by name; the vendor id if the name is not known.'),
    'vendor_id': (_device.vendor, False, 'The vendor id as its device has it.'),
    'model': (_device.model, False, 'The name of the model.'),
    'address': (_device.address, False, 'Where the host has the device: for PCI DDDD:BB:DD.F.'),
    'numa_node': (_device.numa_node, True, 'The NUMA node; null if it is unknown.'),
    'resource_class': (_class.value, True, 'The resource class.'),
    'rp_uuid': (_part.rp_uuid, False, 'The UUID of the resource provider.'),
    'driver': (_part.driver_name, False, 'The driver that found it.'),
    'access': (_host.access, True,
               'The access to devices of its host: ``acl`` or ``advisory``; null if it is '
               'unknown.'),
    'attach_type': (_handle.attach_type, False, 'How to attach it: PCI, MDEV and so on.'),
    'attach_info': (_handle.attach_info, False, 'What to attach: for PCI its function.'),
    'health': (_device.health, False,
               'The health of its device in the last report: ``ok``, ``warning``, ``critical`` or '
               '``unknown``.'),
    'health_reason': (_device.health_reason, True,
                      'The reason of the health, as a code such as ``pcie_width``; null if there '
                      'is none.'),
    'health_since': (_device.health_since, True,
                     'The time since when this holds, ISO 8601, UTC; null before a report.'),
    'idle_since': (
        idling.since(), True,
        'The time since when it is held and its device does no work, ISO 8601, UTC; null if it is '
        'not held, or if its device has worked not long ago, or does not tell.',
    ),
    'arq_uuid': (model.ARQ.uuid, True, 'The request that holds it.'),
    'instance_uuid': (model.ARQ.instance_uuid, True, 'The instance that holds it.'),
    'allocation_uuid': (model.ARQ.allocation_uuid, True, 'The allocation that holds it.'),
    'project_id': (model.ARQ.project_id, True, 'The project of the request that holds it.'),
    'user_name': (model.Allocation.user_name, True,
                  'The user who created the allocation that holds it; null if none does.'),
    'claimed_name': (model.Allocation.claimed_name, True,
                     'The name that this user gave, which proves nothing; null if none was given.'),
    'note': (model.Allocation.note, True,
             'What the allocation is for, in words of the user; null if nothing was said.'),
    'container': (model.Allocation.container, True,
                  'The container of the process that holds it, by its id; null if it is in none, '
                  'or if no process holds it.'),
    'held_since': (
        sa.case((_held, model.ARQ.holds_since())), True,
        'The time since when it is held, ISO 8601, UTC; null if it is not held.',
    ),
}  # fmt: skip

_view = (
    sa.select(
        _handle.id,
        _handle.uuid,
        _handle.created_at,
        _handle.updated_at,
        _handle.deployable_id,
        _device.vendor_board,
        _host.idle_after,
        _standings.label('standings'),
        *(column.label(name) for name, (column, _, _) in _SHOWN.items()),
    )
    .select_from(_handle)
    .join(_part, _part.id == _handle.deployable_id)
    .join(_device, _device.id == _part.device_id)
    .join(_host, _host.name == _device.hostname)
    .outerjoin(model.ARQ, model.ARQ.attach_handle_id == _handle.id)
    .outerjoin(model.Allocation, model.Allocation.uuid == model.ARQ.allocation_uuid)
    .outerjoin(_class, sa.and_(_class.deployable_id == _part.id, _class.key == 'rc'))
    .subquery('accelerators')
)


def _described() -> sa.Subquery:
    """The view, with its columns described as those of tables are."""
    columns: typing.Iterable[typing.Any] = _view.columns
    for column in columns:
        if column.name in _SHOWN:
            _, column.nullable, column.doc = _SHOWN[column.name]
            hidden = False
        elif column.name == 'standings':
            hidden = True
        else:
            [of] = column.base_columns
            column.nullable, column.doc, hidden = of.nullable, of.doc, of.info['hidden']
        kind = 'link' if column.foreign_keys else 'own'
        column.info = {'kind': kind, 'since': '2.0', 'hidden': hidden}
    _view.columns['state'].info['shown'] = base.shown(
        str, 'standings', 'reason', make=lambda *standing: _states(*standing)[0], doc=''
    )
    _view.columns['idle_since'].info['shown'] = base.shown(
        datetime.datetime, 'idle_since', 'idle_after', make=idling.shown, doc=''
    )
    return _view


def _states(standings: str | None, reason: str | None) -> list[str]:
    """All states of an accelerator, by the columns of these names."""
    if standings:
        return standings.split(_SEPARATOR)
    return ['excluded' if reason else 'free']


class Accelerator(base.Base):
    """One thing that can be held: an attach handle, seen with its card."""

    __table__ = _described()

    if typing.TYPE_CHECKING:
        state: orm.Mapped[str]
        standings: orm.Mapped[str | None]
        reason: orm.Mapped[str | None]
        host: orm.Mapped[str]
        device_uuid: orm.Mapped[str]
        type: orm.Mapped[str]
        vendor: orm.Mapped[str]
        model: orm.Mapped[str]
        address: orm.Mapped[str]
        numa_node: orm.Mapped[int | None]
        resource_class: orm.Mapped[str | None]
        rp_uuid: orm.Mapped[str]
        driver: orm.Mapped[str]
        health: orm.Mapped[str]
        health_reason: orm.Mapped[str | None]
        held_since: orm.Mapped[datetime.datetime | None]
        attach_info: orm.Mapped[dict[str, str]]
        vendor_board: orm.Mapped[dict[str, typing.Any] | None]
        deployable_id: orm.Mapped[int]

    attributes: orm.Mapped[list[Attribute]] = orm.relationship(
        primaryjoin=lambda: Accelerator.deployable_id == orm.foreign(Attribute.deployable_id),
        viewonly=True,
    )

    traits = base.shown(
        list,
        'attributes.key',
        'attributes.value',
        make=lambda keys, values: sorted(
            {value for key, value in zip(keys, values, strict=True) if key.startswith('trait')}
        ),
        doc='The traits.',
    )
    ids = base.shown(
        dict,
        'vendor_board',
        'attach_info',
        make=devices.ids_of_part,
        doc="The ids by which the vendor's software knows it, as far as they are known: its own, "
        'or those of its card.',
    )
    states = base.shown(
        list,
        'standings',
        'reason',
        make=_states,
        doc='All states that hold, in the order of ``state``.',
    )


def is_in(state: str) -> sa.ColumnElement[bool]:
    """That an accelerator is in a state, whatever else it is."""
    if state not in _conditions:
        return Accelerator.state == state
    padded = _SEPARATOR + Accelerator.standings + _SEPARATOR
    return sa.func.coalesce(padded, '').contains(f'{_SEPARATOR}{state}{_SEPARATOR}')


def is_known_as(name: str, value: str) -> sa.ColumnElement[bool]:
    """That an accelerator has an id, of NAMES, in its ``ids``.

    The JSON is searched as text, in the form that it is stored in: hostile data that an engine
    does not take as JSON would fail the whole list. A key in it is told from a text by the quotes,
    which are escaped in a text.
    """
    own, of_card = (
        sa.cast(column, sa.Text) for column in (Accelerator.attach_info, Accelerator.vendor_board)
    )
    pairs = [f'"{name}": {json.dumps(value)}']
    if re.fullmatch('0|[1-9][0-9]*', value):
        pairs += [f'"{name}": {value}{end}' for end in ',}']
    keys = [f'"{each}": ' for each in sorted(devices.IDS)]
    return sa.or_(_has(own, pairs), sa.and_(~_has(own, keys), _has(of_card, pairs)))


def _has(text: sa.ColumnElement[str], parts: list[str]) -> sa.ColumnElement[bool]:
    """That a text has one of these parts.  LIKE ignores case on some engines."""
    return sa.or_(*(sa.func.replace(text, part, '') != text for part in parts))


def devices_without(session: orm.Session) -> list[types.SimpleNamespace]:
    """The devices that have no accelerators, with the fields of those that describe a device."""
    shown = ('host', 'device_uuid', 'type', 'vendor', 'model', 'address', 'numa_node')
    part = sa.select(_part).where(_part.device_id == _device.id)
    of_device = {each.state: _conditions[each.state] for each in devices.OBSTACLES}
    standings = _joined(_SEPARATOR, *((holds, name) for name, holds in of_device.items()))
    query = sa.select(
        *(_SHOWN[name][0].label(name) for name in shown),
        sa.func.coalesce(standings, 'unusable').label('standings'),
        sa.func.coalesce(_obstacle, 'its driver reports no accelerators of it').label('reason'),
        part.with_only_columns(sa.func.min(_part.id)).scalar_subquery().label('deployable_id'),
        part.with_only_columns(sa.func.min(_part.driver_name)).scalar_subquery().label('driver'),
    ).join(_host, _host.name == _device.hostname)
    given_out = part.join(_handle, _handle.deployable_id == _part.id)
    found = session.execute(query.where(~given_out.exists()).order_by(_device.id)).mappings()
    return [
        types.SimpleNamespace(**row, states=_states(row['standings'], row['reason']))
        for row in found
    ]


def summary(session: orm.Session) -> list[dict[str, typing.Any]]:
    """How many accelerators there are, and how many are free, by class, model and traits."""
    free = sa.func.sum(sa.case((Accelerator.state == 'free', 1), else_=0))
    counted = sa.select(
        Accelerator.deployable_id,
        Accelerator.resource_class,
        Accelerator.model,
        sa.func.count(Accelerator.id),
        free,
    ).group_by(Accelerator.deployable_id, Accelerator.resource_class, Accelerator.model)
    named = sa.select(Attribute).where(Attribute.key.startswith('trait'))
    traits = collections.defaultdict(set)
    for each in session.scalars(named):
        traits[each.deployable_id].add(each.value)
    totals: dict[tuple[typing.Any, ...], list[int]] = collections.defaultdict(lambda: [0, 0])
    for part, resource_class, name, total, free_ in session.execute(counted):
        sums = totals[resource_class or '', name, tuple(sorted(traits[part]))]
        sums[0] += total
        sums[1] += int(free_)
    return [
        {'resource_class': class_, 'model': name, 'traits': list(names),
         'total': total, 'free': free_}
        for (class_, name, names), (total, free_) in sorted(totals.items())
    ]  # fmt: skip

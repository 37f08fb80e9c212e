# SPDX-License-Identifier: Apache-2.0
"""What follows when an allocation is idle: none of its accelerators does any work.

The operator chooses: nothing, or the holder is told, or the allocation is also released after a
grace. Utilization alone frees nothing: the agent must have seen that no process has a device of the
allocation open, and what is unknown does not count.

Requests of instances are not part of allocations, and stay.
"""

from __future__ import annotations

import datetime
import typing

from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.conductor import releasing
from cyborg_lite.db import idling
from cyborg_lite.db import query
from cyborg_lite.model import base

LOG = log.getLogger(__name__)

#: What the operator may choose.
NOTHING, TELL, RELEASE = 'nothing', 'tell', 'release'

_Joinable = typing.TypeVar('_Joinable', bound=typing.Any)


class Policy(typing.NamedTuple):
    """What the operator has chosen."""

    action: str = NOTHING
    #: the seconds from when the holder is told to the release
    grace: int = 0


class Change(typing.NamedTuple):
    """A change of the idleness of an allocation."""

    id: int
    uuid: str
    #: the columns of its idleness: those that were read, and those to write
    before: dict[str, typing.Any]
    after: dict[str, typing.Any]

    @property
    def tells(self) -> bool:
        """Whether its holder is told now: once of each time without work."""
        same = self.before['idle_told'] and self.before['idle_since'] == self.after['idle_since']
        return bool(self.after['idle_told'] and not same)


def _held(statement: _Joinable) -> _Joinable:
    """A statement on requests, with the device and the host of what each holds."""
    return (
        statement.join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
        .join(model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id)
        .join(model.Device, model.Device.id == model.Deployable.device_id)
        .join(model.Host, model.Host.name == model.Device.hostname)
    )


_STATE = [getattr(model.Allocation, name) for name in model.Allocation.BUSY]
# That each request of an allocation holds a device that does no work.
_ALL_IDLE = sa.func.count(idling.since()) == sa.func.count()
_FOUND = (
    _held(
        sa.select(
            model.Allocation.id,
            model.Allocation.uuid,
            *_STATE,
            sa.func.max(idling.since()).label('since'),
            sa.func.max(model.Host.idle_after).label('after'),
            _ALL_IDLE.label('idle'),
        ).join(model.ARQ, model.ARQ.allocation_uuid == model.Allocation.uuid)
    )
    .where(model.Allocation.state == 'active')
    .group_by(model.Allocation.id, model.Allocation.uuid, *_STATE)
    .having(sa.or_(_ALL_IDLE, model.Allocation.idle_since.is_not(None)))
    .order_by(model.Allocation.id)
)
#: That a device of an allocation works, is used, or is not known not to be.
_IN_USE = (
    _held(sa.select(model.ARQ.id))
    .where(
        model.ARQ.allocation_uuid == model.Allocation.uuid,
        sa.or_(
            idling.since().is_(None),
            idling.since() > model.Allocation.idle_since,
            model.Device.used.is_(None),
            model.Device.used.is_(sa.true()),
        ),
    )
    .correlate(model.Allocation)
    .exists()
)


def changes(session: orm.Session, policy: Policy) -> list[Change]:
    """The changes of the allocations that are idle, or were."""
    found = []
    for row in session.execute(_FOUND):
        before = {name: getattr(row, name) for name in model.Allocation.BUSY}
        idle = row.idle and idling.is_long_ago(row.since, row.after)
        after = _wanted(before, row.since, policy) if idle else model.Allocation.BUSY
        if after != before:
            found.append(Change(row.id, row.uuid, before, after))
    return found


def _wanted(
    before: dict[str, typing.Any], since: datetime.datetime, policy: Policy
) -> dict[str, typing.Any]:
    until = None
    if policy.action == RELEASE:
        # Its holder was told a time: that stays, whatever the grace is now.
        until = before['idle_until'] if before['idle_since'] == since else None
        until = until or timeutils.utcnow() + datetime.timedelta(seconds=policy.grace)
    return {'idle_since': since, 'idle_told': policy.action != NOTHING, 'idle_until': until}


def note(session: orm.Session, change: Change) -> None:
    """Note a change, and tell the holder, unless another conductor does it or something came
    between.
    """
    kind = model.Allocation
    same = [getattr(kind, name).is_not_distinct_from(old) for name, old in change.before.items()]
    active = sa.update(kind).where(kind.id == change.id, kind.state == 'active', *same)
    if query.matched(session, active.values(**change.after)) and change.tells:
        until = change.after['idle_until']
        LOG.info(
            'Allocation %s has done no work since %s%s',
            *(change.uuid, base.iso(change.after['idle_since'])),
            f': it is released at {base.iso(until)} unless it is used' if until else '',
        )


def due(session: orm.Session, most: int) -> list[tuple[int, str]]:
    """The id of each allocation whose grace is over, and since when it is idle, ISO 8601, UTC."""
    kind = model.Allocation
    found = sa.select(kind.id, kind.idle_since).where(*_over()).order_by(kind.idle_until)
    return [(id, base.iso(since)) for id, since in session.execute(found.limit(most)) if since]


def release(session: orm.Session, id: int, since: str) -> None:
    """Release an idle allocation, unless it is used, renewed or released meanwhile."""
    if uuid := releasing.end_if(session, id, f'It had done no work since {since}.', *_over()):
        LOG.info('Allocation %s was released: it had done no work since %s', uuid, since)


def _over() -> list[sa.ColumnElement[bool]]:
    over = model.Allocation.idle_until <= timeutils.utcnow()
    return [model.Allocation.state == 'active', over, ~_IN_USE]

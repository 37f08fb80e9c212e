# SPDX-License-Identifier: Apache-2.0
"""How an allocation ends: it is renewed, released, or its lease is over."""

from __future__ import annotations

import datetime
import typing

from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import holding
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import leaving
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import queue
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import taking
from cyborg_lite.db import promises
from cyborg_lite.db import query

LOG = log.getLogger(__name__)

_ALLOCATION: sa.BindParameter[str] = sa.bindparam('allocation')
_OF_ALLOCATION = model.ARQ.allocation_uuid == _ALLOCATION
_END = holding.Ending(sa.delete(model.ARQ).where(_OF_ALLOCATION))
#: The hosts of what an allocation holds, by the names under which they report.
_HOSTS = (
    sa.select(sa.func.coalesce(model.Host.renamed_to, model.Host.name))
    .select_from(model.ARQ)
    .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
    .join(model.Deployable)
    .join(model.Device)
    .join(model.Host, model.Host.name == model.Device.hostname)
    .where(_OF_ALLOCATION)
)
#: What keeps an allocation from being renewed, by its state.
_NOT_RENEWED = {'queued': 'waits in the queue', 'reserved': 'has not started'}


def renew(session: orm.Session, ctxt: context.RequestContext, uuid: str, lease: int) -> None:
    """Let the lease of an active allocation end so many seconds from now.

    :raises cyborg_lite.exception.NotFound: when there is no such allocation.
    :raises cyborg_lite.exception.Conflict: when it is released, its lease has ended, it waits, or
        a reservation needs what it holds before.
    """
    same = [model.Allocation.uuid == uuid, *_visible(ctxt)]
    ends = model.Allocation.lease_ends_at
    # Under the lock no reservation is made of what it holds.
    hosts.lock(session, _HOSTS, allocation=uuid)
    held = model.Allocation.state == 'active', sa.or_(ends.is_(None), ends > timeutils.utcnow())
    move = sa.update(model.Allocation).where(*same, *held)
    # A renewal means that it is used.
    values = {'lease': lease, 'lease_ends_at': taking.end(lease), 'idle_until': None}
    if not query.matched(session, move.values(values)):
        found = query.get(session, model.Allocation, uuid, *_visible(ctxt), what='Allocation')
        why = _NOT_RENEWED.get(found.state, 'is released, or its lease ended')
        raise exception.Conflict(reason=f'Allocation {uuid} {why}: it cannot be renewed.')
    promises.refuse_longer(session, uuid, taking.end(lease))


def release(session: orm.Session, ctxt: context.RequestContext, uuid: str) -> None:
    """Release an allocation, active or queued; a released one is not changed.

    :raises cyborg_lite.exception.NotFound: when there is no such allocation.
    """
    allocation = query.get(session, model.Allocation, uuid, *_visible(ctxt), what='Allocation')
    end(session, allocation, 'It was deleted.')


def end(
    session: orm.Session, allocation: model.Allocation, cause: str, closed: bool = False
) -> None:
    """Free what an allocation holds, or take it from the queue; nothing if it is released.

    :param closed: whether the agent of its host has seen that no process of it has a card open.
    """
    if allocation.state == 'queued':
        serving.leave(session, allocation, cause)
        queue.wake(session)
    elif allocation.state == 'reserved':
        _cancel(session, allocation, cause)
    else:
        _release(session, allocation, cause, closed=closed)


def _cancel(session: orm.Session, allocation: model.Allocation, cause: str) -> None:
    """Keep nothing for a reservation any more.

    :raises sqlalchemy.orm.exc.StaleDataError: when it has started meanwhile: the call is retried.
    """
    uuid = allocation.uuid
    names = hosts.lock(session, promises.HOSTS, allocation=uuid)
    same = model.Allocation.id == allocation.id, model.Allocation.state == 'reserved'
    move = sa.update(model.Allocation).where(*same).values(**_released(cause), wish=None)
    if not query.matched(session, move):
        raise orm_exception.StaleDataError
    promises.drop(session, uuid)
    _tell(session, names)


def _released(cause: str) -> dict[str, typing.Any]:
    """The columns of an allocation that is released now."""
    gone = {'active_name': None, 'claim_by': None, **model.Allocation.BUSY}
    return {'state': 'released', 'cause': cause, 'released_at': timeutils.utcnow()} | gone


def expired(session: orm.Session, most: int) -> list[int]:
    """The ids of active allocations whose lease has ended, the oldest first."""
    over = sa.select(model.Allocation.id).where(*_over()).order_by(model.Allocation.lease_ends_at)
    return list(session.scalars(over.limit(most)))


def expire(session: orm.Session, id: int) -> None:
    """Release an allocation whose lease has ended, unless it was renewed or released meanwhile."""
    if uuid := end_if(session, id, 'Its lease ended.', *_over()):
        LOG.info('Allocation %s was released: its lease ended', uuid)


def end_if(
    session: orm.Session, id: int, cause: str, *conditions: sa.ColumnElement[bool]
) -> str | None:
    """Release an active allocation if it meets the conditions, also once its hosts are locked.

    :returns: its uuid; None if it was not released.
    """
    meets = sa.select(model.Allocation).where(model.Allocation.id == id, *conditions)
    allocation = session.scalars(meets).one_or_none()
    if allocation is None or not _release(session, allocation, cause, *conditions):
        return None
    return allocation.uuid


def end_short(session: orm.Session, uuid: str) -> None:
    """Release an active allocation that holds less than it was given: all or none."""
    named = sa.select(model.Allocation).where(model.Allocation.uuid == uuid)
    allocation = session.scalars(named).one_or_none()
    if allocation is None or allocation.reservation_uuid is not None:
        # What is leased from a reservation holds no request of its own.
        return
    held = (
        sa.select(sa.func.count())
        .select_from(model.ARQ)
        .where(model.ARQ.allocation_uuid == uuid, model.ARQ.attach_handle_id.is_not(None))
    )
    if (session.scalar(held) or 0) < len(allocation.accelerators):
        _release(session, allocation, 'It had lost accelerators: an audit released it.')


def sweep(session: orm.Session, uuid: str) -> None:
    """Free what is held for an allocation that is not active."""
    active = sa.select(model.Allocation.id).where(
        model.Allocation.uuid == uuid, model.Allocation.state == 'active'
    )
    found = hosts.locked(session, _HOSTS, allocation=uuid)
    if session.scalar(active) is None:
        leaving.note(session, uuid, found)
        _free(session, uuid, [name for name, _ in found])


def forget(session: orm.Session, kept: int) -> None:
    """Delete what was released more than so many seconds ago."""
    past = timeutils.utcnow() - datetime.timedelta(seconds=kept)
    old = model.Allocation.state == 'released', model.Allocation.released_at < past
    query.matched(session, sa.delete(model.Allocation).where(*old))


def _visible(ctxt: context.RequestContext) -> list[sa.ColumnElement[bool]]:
    return [] if ctxt.scope is None else [model.Allocation.project_id == ctxt.scope]


def _over() -> list[sa.ColumnElement[bool]]:
    ended = model.Allocation.lease_ends_at <= timeutils.utcnow()
    return [model.Allocation.state == 'active', ended]


def _release(
    session: orm.Session,
    allocation: model.Allocation,
    cause: str,
    *conditions: sa.ColumnElement[bool],
    closed: bool = False,
) -> bool:
    """Move an allocation to ``released`` if it is active; whether it was.

    Hosts are locked before what is held of them.
    """
    if allocation.state != 'active':
        return False
    uuid, profile = allocation.uuid, allocation.profile
    # What is leased from a reservation holds no request of its own.
    drawn = allocation.reservation_uuid is not None
    found = hosts.locked(session, _HOSTS, allocation=allocation.reservation_uuid or uuid)
    move = sa.update(model.Allocation).where(
        model.Allocation.id == allocation.id, model.Allocation.state == 'active', *conditions
    )
    if not query.matched(session, move.values(_released(cause))):
        return False
    if allocation.starts_at is not None:
        # What processes have leased from a reservation ends with it.
        leased = model.Allocation.reservation_uuid == uuid, model.Allocation.state == 'active'
        ended = _released('Its reservation ended.')
        query.matched(session, sa.update(model.Allocation).where(*leased).values(ended))
    if not closed:
        leaving.note(session, uuid, found, allocation if drawn else None)
    names = [] if drawn else [name for name, _ in found]
    _free(session, uuid, names, private=profile is None)
    return True


def _free(session: orm.Session, uuid: str, names: list[str], private: bool = True) -> None:
    """Free what is held for an allocation.

    :param names: its hosts, which are locked.
    :param private: whether it may have a device profile of its own.
    """
    _END.execute(session, {'allocation': uuid})
    if private:
        own = model.DeviceProfile.name == taking.private(uuid), model.DeviceProfile.private
        query.matched(session, sa.delete(model.DeviceProfile).where(*own))
    _tell(session, names)


def _tell(session: orm.Session, names: list[str]) -> None:
    """Tell Placement, and those that wait, that something of these hosts comes free."""
    outbox.put_all(session, hosts.changed(names))
    queue.wake(session)

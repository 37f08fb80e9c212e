# SPDX-License-Identifier: Apache-2.0
"""Accelerators that are kept for reservations.

A card is held in one form at a time, so a promise of one form keeps the others, too.
"""

from __future__ import annotations

import collections.abc
import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import query
from cyborg_lite.model import base

_promise = model.Promise
_own_device = (
    sa.select(model.Device.uuid)
    .join(model.Deployable, model.Deployable.device_id == model.Device.id)
    .where(model.Deployable.id == model.AttachHandle.deployable_id)
    .correlate(model.AttachHandle)
    .scalar_subquery()
)
_CONCERNS = sa.or_(
    _promise.accelerator_uuid == model.AttachHandle.uuid,
    _promise.form != model.AttachHandle.form,
)

#: Since when an accelerator is kept, in a statement that joins its device; null if it is not.
KEPT_FROM = (
    sa.select(sa.func.min(_promise.starts_at))
    .where(_promise.device_uuid == model.Device.uuid, _CONCERNS)
    .correlate(model.AttachHandle, model.Device)
    .scalar_subquery()
)
#: Whether an accelerator is kept, now or later.
KEPT = (
    sa.exists().where(_promise.device_uuid == _own_device, _CONCERNS).correlate(model.AttachHandle)
)


#: That a promise concerns an accelerator, in a statement that joins its device.
CONCERNED = sa.and_(_promise.device_uuid == model.Device.uuid, _CONCERNS)


def overlaps(start: typing.Any, end: typing.Any) -> sa.ColumnElement[bool]:
    """That an accelerator is kept at a time between these, in a statement that joins its device."""
    return (
        sa.exists()
        .where(
            _promise.device_uuid == model.Device.uuid,
            _CONCERNS,
            _promise.starts_at < end,
            _promise.ends_at > start,
        )
        .correlate(model.AttachHandle, model.Device)
    )


def keep(
    session: orm.Session,
    allocation: str,
    handles: collections.abc.Collection[int],
    start: datetime.datetime,
    end: datetime.datetime,
) -> None:
    """Keep these handles, whose hosts are locked, for an allocation."""
    columns = {
        'allocation_uuid': sa.literal(allocation),
        'accelerator_uuid': model.AttachHandle.uuid,
        'device_uuid': model.Device.uuid,
        'form': model.AttachHandle.form,
        'starts_at': sa.literal(start, _promise.starts_at.type),
        'ends_at': sa.literal(end, _promise.ends_at.type),
    }
    found = (
        sa.select(*columns.values())
        .select_from(model.AttachHandle)
        .join(model.Deployable)
        .join(model.Device)
        .where(model.AttachHandle.id.in_(handles))
    )
    session.execute(sa.insert(_promise).from_select(list(columns), found))


_OF = _promise.allocation_uuid == sa.bindparam('allocation')
_KEPT = (
    sa.select(model.AttachHandle.id)
    .join(_promise, _promise.accelerator_uuid == model.AttachHandle.uuid)
    .where(_OF)
)
_DROP = sa.delete(_promise).where(_OF)
#: The hosts of what is kept for an allocation.
HOSTS = (
    sa.select(model.Device.hostname)
    .join(_promise, _promise.device_uuid == model.Device.uuid)
    .where(_OF)
)
_NEEDED = (
    sa.select(sa.func.min(_promise.starts_at))
    .select_from(model.ARQ)
    .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
    .join(model.Deployable)
    .join(model.Device)
    .where(
        model.ARQ.allocation_uuid == sa.bindparam('allocation'),
        _promise.device_uuid == model.Device.uuid,
        _CONCERNS,
    )
)


def kept(session: orm.Session, allocation: str) -> set[int]:
    """The ids of the handles that are kept for an allocation."""
    return set(session.scalars(_KEPT, {'allocation': allocation}))


def drop(session: orm.Session, allocation: str) -> None:
    """Keep nothing for an allocation any more."""
    query.matched(session, _DROP, {'allocation': allocation})


def refuse_longer(session: orm.Session, allocation: str, end: datetime.datetime) -> None:
    """Return if an allocation may hold until then what it holds.

    :raises cyborg_lite.exception.Conflict: when a reservation needs something of it earlier.
    """
    needed_at: datetime.datetime | None = session.scalar(_NEEDED, {'allocation': allocation})
    if needed_at is not None and end > needed_at:
        raise exception.Conflict(
            reason=f'Accelerators of allocation {allocation} are reserved from '
            f'{base.iso(needed_at)}: it cannot be renewed for longer.'
        )

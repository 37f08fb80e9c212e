# SPDX-License-Identifier: Apache-2.0
"""Notifications of a cloud: the health of a device that somebody holds has other effects.

They go over the notifications of oslo.messaging, which other services listen to: what acts on them
is theirs.  The event is ``device.health``.  oslo.messaging drops what it cannot send after some
tries, without an error.
"""

from __future__ import annotations

import collections.abc
import typing

import oslo_messaging as messaging
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.conductor import outbox
from cyborg_lite.db import engine
from cyborg_lite.model import base

#: The type of the event.
EVENT = 'device.health'

#: What is told of a device, and of what holds each of its accelerators.
_DEVICE = (
    'uuid', 'hostname', 'type', 'vendor', 'model', 'address', 'health', 'health_reason',
)  # fmt: skip
_HOLDER = ('instance_uuid', 'allocation_uuid', 'project_id')


def put(session: orm.Session, devices: collections.abc.Iterable[model.Device]) -> None:
    """Have the holders of these devices notified, after the transaction."""
    outbox.put(session, outbox.NOTICE, {each.uuid: {} for each in devices})


class Sender:
    """Sends notifications."""

    def __init__(self, notifier: messaging.Notifier, database: engine.Database) -> None:
        self._notifier = notifier
        self._database = database

    def send(self, device: str) -> None:
        """Notify of the present health of a device; nothing if nobody holds it any more."""
        with self._database.reader() as session:
            told = _read(session, device)
        if told is not None:
            send = self._notifier.warn if told['device']['effects'] else self._notifier.info
            send({}, EVENT, told)


def _read(session: orm.Session, uuid: str) -> dict[str, typing.Any] | None:
    device = session.scalars(sa.select(model.Device).where(model.Device.uuid == uuid)).one_or_none()
    if device is None:
        return None
    arq, handle = model.ARQ, model.AttachHandle
    columns = [getattr(arq, name) for name in _HOLDER]
    query = (
        sa.select(handle.uuid.label('accelerator_uuid'), arq.uuid.label('arq_uuid'), *columns)
        .join(arq, arq.attach_handle_id == handle.id)
        .join(model.Deployable, model.Deployable.id == handle.deployable_id)
        .where(model.Deployable.device_id == device.id)
        .order_by(handle.id)
    )
    holders = [dict(row) for row in session.execute(query).mappings()]
    if not holders:
        return None
    about: dict[str, typing.Any] = {name: getattr(device, name) for name in _DEVICE}
    since = device.health_since and base.iso(device.health_since)
    about |= {'health_since': since, 'fault': device.fault, 'effects': device.effects}
    return {'device': about, 'holders': holders}

# SPDX-License-Identifier: Apache-2.0
"""Orders of an operator for devices and their parts.  Each locks the host, as a report does."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import leaving
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import queue
from cyborg_lite.db import query

#: The host of a deployable, by the type of what names it: its number, or its uuid.
_OF_DEPLOYABLE = {
    kind: hosts.OF_DEPLOYABLES.where(column == sa.bindparam('deployable'))
    for kind, column in ((int, model.Deployable.id), (str, model.Deployable.uuid))
}
_OF_ATTRIBUTE = hosts.OF_DEPLOYABLES.join(model.Attribute).where(
    model.Attribute.uuid == sa.bindparam('uuid')
)


def set_status(
    session: orm.Session,
    ctxt: context.RequestContext,
    uuid: str,
    status: str,
    seen: int | None = None,
) -> list[str]:
    """Enable or disable a device.  The call is idempotent.

    Who enables a disabled device says that nobody has it open whom an allocation has left there.

    :param seen: the revision of the device that the caller has read: a later order stays in force.
    :returns: the providers to send to Placement before the order is answered.
    :raises cyborg_lite.exception.NotFound: when there is no such device.
    """
    hosts.lock(session, hosts.OF_DEVICE, uuid=uuid)
    device = query.get(session, model.Device, uuid, what='Device')
    since = [] if seen is None else [model.Device.revision == seen]
    order = sa.update(model.Device).where(model.Device.id == device.id, *since)
    order = order.values(status=status, revision=model.Device.revision + 1)
    if status == 'enabled' != device.status and leaving.is_noted(device):
        order = order.values(leaving.NOTHING)
    if query.matched(session, order):
        session.refresh(device)
        if device.absences:
            # The next report, even an equal one, deletes the device if nothing needs it.
            device.host.digest = None
        # Also if it was disabled before: the answer to that order may have been lost.
        withdrawn = _withdrawn(device)
        outbox.announce(session, device.deployables, after=outbox.TELL if withdrawn else 0)
        queue.wake(session)
        return withdrawn
    # A later order applies, unless the device is deleted; or this one, if its answer was lost.
    device = query.get(session, model.Device, uuid, what='Device')
    return _withdrawn(device) if device.status == status else []


def _withdrawn(device: model.Device) -> list[str]:
    """The providers of a device that is disabled."""
    return [part.rp_uuid for part in device.deployables if device.status != 'enabled']


def add_attribute(
    session: orm.Session, ctxt: context.RequestContext, deployable: str | int, key: str, value: str
) -> str:
    """Add an attribute to a deployable, given by its number or its uuid; returns its uuid.

    :raises cyborg_lite.exception.NotFound: when there is no such deployable.
    :raises cyborg_lite.exception.Duplicate: when it has an attribute of this key.
    """
    same = model.Deployable.id if isinstance(deployable, int) else model.Deployable.uuid
    hosts.lock(session, _OF_DEPLOYABLE[type(deployable)], deployable=deployable)
    row = session.scalars(sa.select(model.Deployable).where(same == deployable)).one_or_none()
    if row is None:
        raise exception.NotFound(what='Deployable', id=deployable)
    if any(attribute.key == key for attribute in row.attributes):
        raise exception.Duplicate(what='Attribute', field='key', value=key)
    attribute = model.Attribute(key=key, value=value, added=True)
    row.attributes.append(attribute)
    session.flush()
    outbox.announce(session, [row])
    queue.wake(session)
    return attribute.uuid


def delete_attribute(session: orm.Session, ctxt: context.RequestContext, uuid: str) -> None:
    """Delete an attribute that was added through the API.

    :raises cyborg_lite.exception.NotFound: when there is no such attribute.
    :raises cyborg_lite.exception.Conflict: when a driver reports it.
    """
    hosts.lock(session, _OF_ATTRIBUTE, uuid=uuid)
    attribute = query.get(session, model.Attribute, uuid, what='Attribute')
    if attribute.reported:
        raise exception.Conflict(
            reason=f'Attribute {attribute.key} is reported by the driver '
            f'{attribute.deployable.driver_name}, and only that can take it away.'
        )
    part = attribute.deployable
    part.attributes.remove(attribute)
    # The driver may report the same: then the next report, even an equal one, brings it back.
    part.device.host.digest = None
    outbox.announce(session, [part])
    queue.wake(session)


def delete_device(session: orm.Session, ctxt: context.RequestContext, uuid: str) -> None:
    """Delete a device that is missing from its host, with its status and its attributes.

    :raises cyborg_lite.exception.NotFound: when there is no such device.
    :raises cyborg_lite.exception.Conflict: when it is there, or something of it is held.
    """
    hosts.lock(session, hosts.OF_DEVICE, uuid=uuid)
    device = query.get(session, model.Device, uuid, what='Device')
    if not device.absences:
        raise exception.Conflict(
            reason=f'Device {uuid} cannot be deleted: its host {device.hostname} reports it.'
        )
    if hosts.is_held(device, hosts.held(session, device.hostname)):
        raise exception.Conflict(
            reason=f'Device {uuid} cannot be deleted: accelerator requests hold some of it.'
        )
    hosts.remove(session, device)
    queue.wake(session)

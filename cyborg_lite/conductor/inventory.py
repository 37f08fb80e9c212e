# SPDX-License-Identifier: Apache-2.0
"""Make what the database holds of a host equal to what its agent reports."""

from __future__ import annotations

import collections.abc
import hashlib
import typing
import uuid as uuidlib

from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import turns
from cyborg_lite.db import query

LOG = log.getLogger(__name__)

#: how many boots of a host are remembered as over
PAST_BOOTS = 8


class Report(typing.TypedDict):
    """What an agent found on its host at one moment."""

    host: str
    #: which machine this is, whatever its name; None if it shows nothing that tells
    machine: typing.NotRequired[str | None]
    #: which start of an agent reports; both are new, and an agent of the release before lacks them
    agent: typing.NotRequired[str]
    #: which boot of the host this is, and the order of reports within it
    boot_id: str
    sequence: int
    #: after how many seconds the next one is due
    interval: int
    #: equal if and only if devices and drivers are equal
    digest: str
    devices: list[model.Facts]
    #: per driver its state, ``ok`` or ``degraded``, and the reason
    drivers: dict[str, model.Facts]


def receive(
    session: orm.Session, ctxt: context.RequestContext, report: Report, absences: int
) -> None:
    """Take a report in: one UPDATE if it says nothing new, nothing if it is late.

    :param absences: after how many reports without it a device is deleted.
    """
    mark = _mark(session, report)
    if _heartbeat(session, report, mark):
        return
    host = _claim(session, report)
    if host is None:
        LOG.warning(
            'A late report of host %s was dropped (boot %s): if others follow, two machines have '
            'this name',
            report['host'],
            report['boot_id'],
        )
        return
    settled = _reconcile(session, host, report, absences)
    host.digest = mark if settled else None


def _mark(session: orm.Session, report: Report) -> str:
    """What is kept of a report, so that one that says the same need not be read: it differs where
    others are to be told, too, as when Placement is configured later.
    """
    told = 'told' if outbox.tells(session, outbox.PROVIDER) else 'kept'
    return hashlib.sha256(f'{told} {report["digest"]}'.encode()).hexdigest()


def _heartbeat(session: orm.Session, report: Report, mark: str) -> bool:
    alive = (
        sa.update(model.Host)
        .where(
            model.Host.name == report['host'],
            model.Host.boot_id == report['boot_id'],
            model.Host.digest == mark,
            # Placement is to be told that it is back.
            ~model.Host.silent,
            model.Host.sequence < report['sequence'],
        )
        .values(
            seen_at=timeutils.utcnow(), sequence=report['sequence'], interval=report['interval']
        )
    )
    return _moved(session, alive) == 1


def _moved(session: orm.Session, statement: sa.Update | sa.Delete) -> int:
    """How many rows the statement met."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    return typing.cast('sa.CursorResult[typing.Any]', result).rowcount


def _claim(session: orm.Session, report: Report) -> model.Host | None:
    """The host, locked so that its reports are applied one at a time; None if this one is late."""
    rows = sa.select(model.Host).where(model.Host.name == report['host']).with_for_update()
    host = session.scalars(rows).one_or_none()
    if host is None:
        host = model.Host(name=report['host'], boot_id=report['boot_id'])
        session.add(host)
    elif report['boot_id'] == host.boot_id:
        if report['sequence'] <= host.sequence:
            return None
    elif report['boot_id'] in host.past_boots and not host.silent:
        # Only while another boot reports can this one be over: a wrong agent may have been stopped.
        return None
    else:
        others = [boot for boot in host.past_boots if boot != report['boot_id']]
        host.past_boots = [host.boot_id, *others][:PAST_BOOTS]
        host.boot_id = report['boot_id']
    host.sequence, host.seen_at = report['sequence'], timeutils.utcnow()
    host.drivers, host.interval, host.silent = report['drivers'], report['interval'], False
    # Devices link to the host by name: it has to be there first.
    session.flush()
    return host


def _reconcile(session: orm.Session, host: model.Host, report: Report, absences: int) -> bool:
    """Returns whether nothing is left that the next report, even an equal one, has to look at."""
    known = {device.identity: device for device in _known(session, report['host'])}
    held = _held(session, report['host']) if known else set()
    before = {
        part.rp_uuid: part.announced for device in known.values() for part in device.deployables
    }
    found = {device.identity: device for device in _found(report)}
    for identity, device in list(known.items()):
        if identity in found:
            device.absences = 0
            _prune(device, found[identity], held)
        elif not _stays(device, report['drivers'], held, absences):
            session.delete(known.pop(identity))
    # What goes is gone before what comes: a name may pass from one card to another.
    session.flush()
    waiting = _leave_out_twins(session, known, found)
    for identity, device in found.items():
        if identity in known:
            _update(known[identity], device)
        else:
            session.add(device)
            known[identity] = device
    session.flush()
    for device in known.values():
        # Known already: no need to ask the database for each.
        orm.attributes.set_committed_value(device, 'host', host)
    parts = [part for device in known.values() for part in device.deployables]
    _tell(session, parts, before)
    return not waiting and not any(_is_missing(device) for device in known.values())


def _tell(
    session: orm.Session,
    parts: list[model.Deployable],
    before: dict[str, model.Facts | None],
) -> None:
    """Have Placement told of what there is now, and of what is gone.

    :param before: by provider, what Placement was told before the report.
    """
    for part in parts:
        # Another row may have come in the place of one: the provider is the same.
        part.announced = part.announced or before.get(part.rp_uuid)
    outbox.announce(session, parts)
    gone = before.keys() - {part.rp_uuid for part in parts}
    outbox.put(session, outbox.PROVIDER, {each: outbox.retired(before[each]) for each in gone})


def _is_missing(row: model.Base) -> bool:
    """Whether this row, or one below, waits to be deleted or to come back."""
    if isinstance(row, model.Device | model.AttachHandle):
        missing = row.absences if isinstance(row, model.Device) else row.lost
        if missing:
            return True
    return any(_is_missing(child) for child in _children(row))


def _children(row: model.Base) -> collections.abc.Iterator[model.Base]:
    for part in row.parts:
        yield from getattr(row, part)


def _known(session: orm.Session, hostname: str) -> list[model.Device]:
    parts = orm.selectinload(model.Device.deployables)
    return query.find(
        session,
        model.Device,
        model.Device.hostname == hostname,
        options=[
            parts.selectinload(model.Deployable.attributes),
            parts.selectinload(model.Deployable.attach_handles),
        ],
    )


def _held(session: orm.Session, hostname: str) -> set[int]:
    """The ids of the host's handles that requests hold."""
    handles = (
        sa.select(model.ARQ.attach_handle_id)
        .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
        .join(model.Deployable)
        .join(model.Device)
        .where(model.Device.hostname == hostname)
    )
    return set(session.scalars(handles))


def _found(report: Report) -> collections.abc.Iterator[model.Device]:
    for facts in report['devices']:
        device = model.Device.from_facts(facts)
        device.hostname = report['host']
        for deployable in device.deployables:
            # The host's name makes the name unique: the same card may sit at the same address
            # in every host. The uuid follows from the name, as in upstream's providers.
            deployable.name = f'{report["host"]}_{deployable.name}'
            deployable.rp_uuid = str(uuidlib.uuid3(uuidlib.NAMESPACE_DNS, deployable.name))
        yield device


def _prune(known: model.Base, found: model.Base, held: set[int]) -> None:
    """Take away what the report lacks: but what a request holds stays, and is lost."""
    for part in known.parts:
        twins = {row.identity: row for row in getattr(found, part)}
        for row in list(getattr(known, part)):
            if row.identity in twins:
                _set_lost(row, False)
                _prune(row, twins[row.identity], held)
            elif _is_held(row, held):
                _set_lost(row, True)
            elif row.reported:
                getattr(known, part).remove(row)


def _set_lost(row: model.Base, lost: bool) -> None:
    """Note that a handle is lost, or all below; that they are found again, one by one."""
    if isinstance(row, model.AttachHandle):
        row.lost = lost
    for child in _children(row) if lost else ():
        _set_lost(child, lost)


def _is_held(row: model.Base, held: set[int]) -> bool:
    """Whether a request holds this handle, or one below."""
    if isinstance(row, model.AttachHandle):
        return row.id in held
    return any(_is_held(child, held) for child in _children(row))


def _stays(
    device: model.Device, drivers: dict[str, model.Facts], held: set[int], absences: int
) -> bool:
    """Note that a report lacks the device; False when that has been so for long enough."""
    silent = {
        name
        for name, driver in drivers.items()
        if driver['state'] != 'ok' and not driver.get('complete')
    }
    if silent & {deployable.driver_name for deployable in device.deployables}:
        return True  # its driver could not look: that says nothing of the device
    device.absences = min(device.absences + 1, absences)
    if device.absences < absences or _is_held(device, held):
        return True
    LOG.info('Device %s of host %s is gone', device.address, device.hostname)
    return False


def _leave_out_twins(
    session: orm.Session, known: dict[str, model.Device], found: dict[str, model.Device]
) -> bool:
    """Take from the found devices what another row still is, and say whether there was any.

    A missing device, or a lost handle, may have the name of a new provider or be the very
    accelerator of a new handle: given out again, it would have two holders.
    """
    parts = [part for device in known.values() for part in device.deployables]
    holders = {handle.identity: part.name for part in parts for handle in part.attach_handles}
    names = {part.name: part.device.identity for part in parts}
    new = {part.name for device in found.values() for part in device.deployables} - names.keys()
    query_ = sa.select(model.Deployable.name).where(model.Deployable.name.in_(new))
    elsewhere = set(session.scalars(query_)) if new else set()
    left_out: list[str] = []
    for identity, device in list(found.items()):
        before = len(left_out)
        for part in list(device.deployables):
            if part.name in elsewhere or names.get(part.name, identity) != identity:
                device.deployables.remove(part)
                left_out.append(part.name)
            else:
                left_out += _leave_out_handles(part, holders)
        if identity not in known and len(left_out) > before:
            del found[identity]  # it waits as a whole
    if left_out:
        LOG.warning('Still of another device, and so not reported: %s', ', '.join(left_out))
    return bool(left_out)


def _leave_out_handles(part: model.Deployable, holders: dict[str, str]) -> list[str]:
    twins = [h for h in part.attach_handles if holders.get(h.identity, part.name) != part.name]
    for handle in twins:
        part.attach_handles.remove(handle)
    return [f'{part.name} {handle.attach_info}' for handle in twins]


def _update(known: model.Base, found: model.Base) -> None:
    """Give the known row the facts of the found one, and the same to its parts."""
    for column in known.columns('fact'):
        value = getattr(found, column.name)
        if getattr(known, column.name) != value:
            setattr(known, column.name, value)
    for part in known.parts:
        rows = {row.identity: row for row in getattr(known, part)}
        for row in list(getattr(found, part)):
            if row.identity in rows:
                # What an operator has added under this key stays his.
                if rows[row.identity].reported:
                    _update(rows[row.identity], row)
            else:
                # A row has one parent: let go there before it is taken here.
                getattr(found, part).remove(row)
                getattr(known, part).append(row)


def set_status(
    session: orm.Session,
    ctxt: context.RequestContext,
    uuid: str,
    status: str,
    seen: int | None = None,
) -> list[str]:
    """Enable or disable a device, as often as you like.

    :param seen: the revision of the device that the caller saw: a later order than his stands.
    :returns: the providers of which Placement is to be told before the order is answered.
    :raises cyborg_lite.exception.NotFound: when there is no such device.
    """
    turns.wait(session, sa.select(model.Device.hostname).where(model.Device.uuid == uuid))
    device = query.get(session, model.Device, uuid, what='Device')
    since = [] if seen is None else [model.Device.revision == seen]
    order = sa.update(model.Device).where(model.Device.id == device.id, *since)
    if _moved(session, order.values(status=status, revision=model.Device.revision + 1)):
        session.refresh(device)
        withdrawn = device.status != 'enabled'
        outbox.announce(session, device.deployables, after=outbox.TELL if withdrawn else 0)
        # Also if it was disabled before: the answer to that order may have been lost.
        return [part.rp_uuid for part in device.deployables if withdrawn]
    # A later order stands, unless the device is gone.
    query.get(session, model.Device, uuid, what='Device')
    return []


def add_attribute(
    session: orm.Session, ctxt: context.RequestContext, deployable: str | int, key: str, value: str
) -> str:
    """Add an attribute to a deployable, given by its number or its uuid; returns its uuid.

    :raises cyborg_lite.exception.NotFound: when there is no such deployable.
    :raises cyborg_lite.exception.Duplicate: when it has an attribute of this key.
    """
    same = model.Deployable.id if isinstance(deployable, int) else model.Deployable.uuid
    turns.wait(session, turns.OF_DEPLOYABLES.where(same == deployable))
    row = session.scalars(sa.select(model.Deployable).where(same == deployable)).one_or_none()
    if row is None:
        raise exception.NotFound(what='Deployable', id=deployable)
    if any(attribute.key == key for attribute in row.attributes):
        raise exception.Duplicate(what='Attribute', field='key', value=key)
    attribute = model.Attribute(key=key, value=value, added=True)
    row.attributes.append(attribute)
    session.flush()
    outbox.announce(session, [row])
    return attribute.uuid


def delete_attribute(session: orm.Session, ctxt: context.RequestContext, uuid: str) -> None:
    """Delete an attribute; one that a driver reports comes back with the next change it reports.

    :raises cyborg_lite.exception.NotFound: when there is no such attribute.
    """
    hosts = turns.OF_DEPLOYABLES.join(model.Attribute)
    turns.wait(session, hosts.where(model.Attribute.uuid == uuid))
    attribute = query.get(session, model.Attribute, uuid, what='Attribute')
    part = attribute.deployable
    part.attributes.remove(attribute)
    outbox.announce(session, [part])

# SPDX-License-Identifier: Apache-2.0
"""Make what the database holds of a host equal to what its agent reports."""

from __future__ import annotations

import collections.abc
import typing
import uuid as uuidlib

from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import query

LOG = log.getLogger(__name__)

#: how many boots of a host are remembered as over
PAST_BOOTS = 8


class Report(typing.TypedDict):
    """What an agent found on its host at one moment."""

    host: str
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
    if _heartbeat(session, report):
        return
    host = _claim(session, report)
    if host is None:
        LOG.info('A late report of host %s was dropped', report['host'])
        return
    settled = _reconcile(session, report, absences)
    host.digest = report['digest'] if settled else None


def _heartbeat(session: orm.Session, report: Report) -> bool:
    alive = (
        sa.update(model.Host)
        .where(
            model.Host.name == report['host'],
            model.Host.boot_id == report['boot_id'],
            model.Host.digest == report['digest'],
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
    elif report['boot_id'] in host.past_boots:
        return None
    else:
        host.past_boots = [host.boot_id, *host.past_boots][:PAST_BOOTS]
        host.boot_id = report['boot_id']
    host.sequence, host.seen_at = report['sequence'], timeutils.utcnow()
    host.drivers, host.interval = report['drivers'], report['interval']
    # Devices link to the host by name: it has to be there first.
    session.flush()
    return host


def _reconcile(session: orm.Session, report: Report, absences: int) -> bool:
    """Returns whether nothing is left that the next report, even an equal one, has to look at."""
    known = _known(session, report['host'])
    held = _held(session, report['host']) if known else set()
    found = {device.identity: device for device in _found(report)}
    for device in known:
        if device.identity in found:
            device.absences = 0
            _update(device, found.pop(device.identity), held)
        else:
            _miss(session, device, report['drivers'], held, absences)
    session.flush()
    session.add_all(_without_clashes(session, list(found.values())))
    session.flush()
    kept = [device for device in known if device not in session.deleted]
    return not any(device.absences for device in kept) and not any(
        handle.lost for device in kept for part in device.deployables
        for handle in part.attach_handles
    )  # fmt: skip


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


def _update(known: model.Base, found: model.Base, held: set[int]) -> None:
    """Give the known row the facts of the found one, and the same to its parts."""
    for column in known.columns('fact'):
        value = getattr(found, column.name)
        if getattr(known, column.name) != value:
            setattr(known, column.name, value)
    for part in known.parts:
        rows = list(getattr(found, part))
        # A row has one parent: let go here before it is taken there.
        setattr(found, part, [])
        setattr(known, part, _merge(getattr(known, part), rows, held))


def _merge(
    known: collections.abc.Iterable[model.Base], found: list[model.Base], held: set[int]
) -> list[model.Base]:
    """The found rows, each as the known row of its identity if there is one, and what must stay."""
    rest = {row.identity: row for row in known}
    merged = []
    for row in found:
        twin = rest.pop(row.identity, None)
        if twin is None:
            merged.append(row)
        else:
            _update(twin, row, held)
            merged.append(twin)
    for row in merged:
        _set_lost(row, False)
    stay = [row for row in rest.values() if not row.reported or _is_held(row, held)]
    for row in stay:
        _set_lost(row, True)
    return merged + stay


def _set_lost(row: model.Base, lost: bool) -> None:
    if isinstance(row, model.AttachHandle) and row.lost != lost:
        row.lost = lost
    if lost:
        for part in row.parts:
            for child in getattr(row, part):
                _set_lost(child, lost)


def _is_held(row: model.Base, held: set[int]) -> bool:
    """Whether a request holds this handle, or one below."""
    if isinstance(row, model.AttachHandle):
        return row.id in held
    return any(_is_held(child, held) for part in row.parts for child in getattr(row, part))


def _miss(
    session: orm.Session,
    device: model.Device,
    drivers: dict[str, model.Facts],
    held: set[int],
    absences: int,
) -> None:
    """Note that a report lacks the device; delete it when that has been so for long enough."""
    silent = {name for name, driver in drivers.items() if driver['state'] != 'ok'}
    if silent & {deployable.driver_name for deployable in device.deployables}:
        return  # its driver could not look: that says nothing of the device
    device.absences = min(device.absences + 1, absences)
    if device.absences == absences and not _is_held(device, held):
        LOG.info('Device %s of host %s is gone', device.address, device.hostname)
        session.delete(device)


def _without_clashes(
    session: orm.Session, devices: list[model.Device]
) -> collections.abc.Iterator[model.Device]:
    """The new devices whose names are free: a missing device may still have one of them."""
    names = [deployable.name for device in devices for deployable in device.deployables]
    if not names:
        return
    query_ = sa.select(model.Deployable.name).where(model.Deployable.name.in_(names))
    taken = set(session.scalars(query_))
    for device in devices:
        clash = taken & {deployable.name for deployable in device.deployables}
        if clash:
            LOG.warning('Device %s waits: %s is still the name of another', device.address, clash)
        else:
            yield device


def set_status(session: orm.Session, ctxt: context.RequestContext, uuid: str, status: str) -> None:
    """Enable or disable a device, as often as you like.

    :raises cyborg_lite.exception.NotFound: when there is no such device.
    """
    device = query.get(session, model.Device, uuid, what='Device')
    device.status = status


def add_attribute(
    session: orm.Session, ctxt: context.RequestContext, deployable: str | int, key: str, value: str
) -> str:
    """Add an attribute to a deployable, given by its number or its uuid; returns its uuid.

    :raises cyborg_lite.exception.NotFound: when there is no such deployable.
    :raises cyborg_lite.exception.Duplicate: when it has an attribute of this key.
    """
    same = model.Deployable.id if isinstance(deployable, int) else model.Deployable.uuid
    row = session.scalars(sa.select(model.Deployable).where(same == deployable)).one_or_none()
    if row is None:
        raise exception.NotFound(what='Deployable', id=deployable)
    if any(attribute.key == key for attribute in row.attributes):
        raise exception.Duplicate(what='Attribute', field='key', value=key)
    attribute = model.Attribute(key=key, value=value, added=True)
    row.attributes.append(attribute)
    session.flush()
    return attribute.uuid


def delete_attribute(session: orm.Session, ctxt: context.RequestContext, uuid: str) -> None:
    """Delete an attribute; one that a driver reports comes back with the next change it reports.

    :raises cyborg_lite.exception.NotFound: when there is no such attribute.
    """
    session.delete(query.get(session, model.Attribute, uuid, what='Attribute'))

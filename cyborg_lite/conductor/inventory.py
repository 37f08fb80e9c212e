# SPDX-License-Identifier: Apache-2.0
"""Make what the database holds of a host equal to what its agent reports."""

from __future__ import annotations

import collections.abc
import typing

from oslo_log import log
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite.conductor import health
from cyborg_lite.conductor import heartbeat
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import leaving
from cyborg_lite.conductor import matching
from cyborg_lite.conductor import naming
from cyborg_lite.conductor import notices
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import queue
from cyborg_lite.db import query
from cyborg_lite.model import pci

LOG = log.getLogger(__name__)


class Report(heartbeat.Frame):
    """What an agent found on its host at one moment."""

    devices: list[model.Facts]


def receive(
    session: orm.Session,
    ctxt: context.RequestContext,
    report: Report,
    absences: int,
    policy: health.Policy = health.Policy(),  # noqa: B008 - it does not change
) -> None:
    """Make the rows of a host equal to a report; nothing if it is late.

    :param absences: after how many looks without it a device is deleted.
    :param policy: what follows from the health of a device.
    """
    host = hosts.claim(session, report)
    if host is None:
        return
    settled = _reconcile(session, host, report, absences, policy)
    host.digest = heartbeat.mark(session, report, policy) if settled else None
    queue.wake(session)


def _reconcile(
    session: orm.Session,
    host: model.Host,
    report: Report,
    absences: int,
    policy: health.Policy,
) -> bool:
    """Returns whether nothing is left that the next report, even an equal one, has to look at."""
    known = hosts.devices(session, host.name)
    held = hosts.held(session, host.name) if known else set()
    before = {part.rp_uuid: part.announced for device in known for part in device.deployables}
    silent, (looked, sampled) = _silent(report), _looked(host, report)
    # Their last look is known, or came soon after another: it is no further absence.
    early = report.get('looks', {}).keys() - sampled
    pairs = [
        (found, device)
        for found, device in matching.pair(known, list(_found(report)))
        if device is None or not silent.keys() & _drivers(device) - _drivers(found)
    ]
    present = {id(device) for _, device in pairs}
    absent = [device for device in known if id(device) not in present]
    for device in absent:
        # Nobody looks at it now: it is not known to be idle.
        device.idle_since = device.used = None
    mute = {each: names for each in absent if (names := silent.keys() & _drivers(each))}
    news = {
        device: health.silence(device, max(silent[name] for name in names), policy)
        for device, names in mute.items()
    }
    gone = [
        device
        for device in absent
        if device not in mute and not _stays(device, early, held, absences)
    ]
    for device in gone:
        known.remove(device)
        session.delete(device)
    for found, same in pairs:
        if same is not None:
            same.absences = 0
            _prune(same, found, held)
    # What goes is gone before what comes: a name may pass from one card to another.
    session.flush()
    pairs, waiting = _leave_out_twins(known, pairs, held)
    _name_new(session, host, pairs)
    _inherit_orders(session, host, pairs)
    ignored = False
    for found, same in pairs:
        if same is None:
            _tell_replaced(found, host, known)
            LOG.info('Device %s (%s) of host %s is new', found.address, found.model, host.name)
            found.host = host
            ignored |= leaving.is_noted(found)
            health.begin(found, policy)
            session.add(found)
            known.append(found)
        else:
            drivers = _drivers(found)
            ignored |= _keep_use(found, same, held, report, fresh=bool(drivers & looked))
            news[same] = health.weigh(same, found, policy, fresh=bool(drivers & sampled))
            _tell_moved(same, found)
            _move_lost(same, found)
            _update(same, found, held)
    parts = [part for device in known for part in device.deployables]
    naming.number_traits(session, parts)
    session.flush()
    for device in known:
        # Known already: no need to ask the database for each.
        orm.attributes.set_committed_value(device, 'host', host)
    _tell(session, parts, before)
    notices.put(session, [each for each in news if news[each] and hosts.is_held(each, held)])
    return not (waiting or ignored) and not any(
        _waits(device, held, absences, policy) for device in known
    )


def _keep_use(
    found: model.Device, same: model.Device, held: set[int], report: Report, fresh: bool
) -> bool:
    """Whether the report does not say who uses a device: then it is known otherwise, and stays.

    :param found: as it was reported.
    :param fresh: whether its driver has looked since the last report.
    """
    is_held = hosts.is_held(same, held)
    if leaving.is_noted(same):
        return leaving.keep(found, same, report, is_held, fresh)
    # An agent does not know who holds it, unless it is a lease.
    ignored = is_held and bool(found.rogue)
    if is_held:
        found.rogue = None
    return ignored


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
        if part.announced is None and before.get(part.rp_uuid) is not None:
            part.announced = before[part.rp_uuid]
    outbox.announce(session, parts)
    gone = before.keys() - {part.rp_uuid for part in parts}
    outbox.put(session, outbox.PROVIDER, {each: outbox.retired(before[each]) for each in gone})


def _waits(device: model.Device, held: set[int], absences: int, policy: health.Policy) -> bool:
    """Whether the next report has to look at this device, even if it says the same.

    A device that stays because an operator has decided something of it waits for another order.
    """
    if device.absences >= absences:
        return hosts.is_held(device, held)
    return _is_missing(device) or health.counts(device, policy)


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


def _found(report: Report) -> collections.abc.Iterator[model.Device]:
    for facts in report['devices']:
        device = model.Device.from_facts(facts)
        for deployable in device.deployables:
            deployable.label = deployable.name.replace(device.address, '', 1)
            for handle in deployable.attach_handles:
                # An agent of the release before, and most drivers, do not say.
                handle.form = handle.form or handle.default_form
        yield device


def _name_new(session: orm.Session, host: model.Host, pairs: list[matching.Pair]) -> None:
    """Name the deployables that are new.

    The host's name makes the name unique: the same card may sit at the same address in every host.
    """
    new = [
        part
        for found, device in pairs
        for part in found.deployables
        if part.identity not in {each.identity for each in (device.deployables if device else ())}
    ]
    for part in new:
        part.name = f'{host.name}_{part.name}'
    taken = naming.taken(session, [part.name for part in new]) if new else set()
    for part in new:
        if part.name in taken or len(part.name) > naming.LONGEST:
            naming.give(session, part, part.name)
        part.rp_uuid = naming.uuid_of(part.name)


def _inherit_orders(session: orm.Session, host: model.Host, pairs: list[matching.Pair]) -> None:
    """What an operator disabled under an earlier name of the machine is disabled under this one,
    and what an allocation left under that one is kept until it is closed.
    """
    new = [found for found, device in pairs if device is None]
    if not new or host.machine is None:
        return
    earlier = model.Device.host.has(model.Host.renamed_to == host.name)
    noted = model.Device.left_after.is_not(None)
    out = sa.or_(model.Device.status != 'enabled', model.Device.withheld, noted)
    for found, twin in matching.pair(query.find(session, model.Device, earlier, out), new):
        if twin is not None:
            found.status = twin.status
            hosts.inherit_note(found, twin)
            health.inherit(found, twin)


def _tell_replaced(found: model.Device, host: model.Host, known: list[model.Device]) -> None:
    for device in known:
        if device.identity == found.identity:
            LOG.warning(
                'Device %s (%s) at %s of host %s is gone, and another card is there (%s). Requests '
                'that hold the old one hold a lost device',
                device.uuid,
                device.model,
                device.address,
                host.name,
                found.model,
            )


def _tell_moved(device: model.Device, found: model.Device) -> None:
    if device.identity != found.identity:
        LOG.warning(
            'Device %s of host %s is at %s now: it was at %s',
            device.uuid,
            device.hostname,
            found.address,
            device.address,
        )


def _move_lost(device: model.Device, found: model.Device) -> None:
    """What a card lacks for now goes with it, and is known when it comes back."""
    if device.identity == found.identity:
        return
    for part in device.deployables:
        for handle in part.attach_handles:
            if handle.lost:
                info = pci.moved(handle.attach_info, device.address, found.address)
                handle.attach_info = info


def _prune(known: model.Base, found: model.Base, held: set[int]) -> None:
    """Take away what the report lacks: but what a request holds stays, and is lost."""
    for part in known.parts:
        twins = {row.identity: row for row in getattr(found, part)}
        for row in list(getattr(known, part)):
            if row.identity in twins:
                _set_lost(row, False)
                _prune(row, twins[row.identity], held)
            elif _is_kept(row, held):
                _set_lost(row, True)
            elif row.reported:
                getattr(known, part).remove(row)


def _set_lost(row: model.Base, lost: bool) -> None:
    """Note that a handle is lost, or all below; that they are found again, one by one."""
    if isinstance(row, model.AttachHandle):
        row.lost = lost
    for child in _children(row) if lost else ():
        _set_lost(child, lost)


def _is_kept(row: model.Base, held: set[int]) -> bool:
    """Whether a request holds this handle or one below, an operator added something to it, or its
    fault has to hold when the card comes back.
    """
    if isinstance(row, model.AttachHandle):
        return row.id in held
    if isinstance(row, model.Attribute):
        return False
    decided = isinstance(row, model.Device) and (row.status != 'enabled' or row.withheld)
    added = any(not child.reported for child in _children(row))
    return decided or added or any(_is_kept(child, held) for child in _children(row))


def _silent(report: Report) -> dict[str, int]:
    """The drivers that could not look, which says nothing of their devices: neither that one is
    gone, nor that one which another driver finds in its place is another.

    :returns: for how many seconds each was waited for; 0 if it answered, or does not say.
    """
    return {
        name: driver.get('waited', 0)
        for name, driver in report['drivers'].items()
        if driver['state'] != 'ok' and not driver.get('complete')
    }


def _looked(host: model.Host, report: Report) -> tuple[set[str], set[str]]:
    """The drivers that have looked since the last report that was read, and those of them whose
    looks are samples of health; notes their looks.

    A report that is sent again, or early because one driver was late, tells of old looks.
    """
    if 'looks' not in report:
        return set(report['drivers']), set(report['drivers'])
    agent, samples = report.get('agent'), report.get('samples', {})
    looks = {name: [agent, n, samples.get(name, n)] for name, n in report['looks'].items()}
    known, host.looks = host.looks or {}, looks
    looked = {name for name, look in looks.items() if look[:2] != known.get(name, [])[:2]}
    return looked, {name for name in looked if looks[name][::2] != known.get(name, [])[::2]}


def _drivers(device: model.Device) -> set[str]:
    return {part.driver_name for part in device.deployables}


def _stays(
    device: model.Device, early: collections.abc.Set[str], held: set[int], absences: int
) -> bool:
    """Note that a report lacks the device; False when that has been so for long enough.

    What a request holds stays, and so does what an operator has decided of the device: it has to
    hold when the card comes back.
    """
    if not device.absences or early.isdisjoint(_drivers(device)):
        device.absences = min(device.absences + 1, absences)
    if device.absences < absences or _is_kept(device, held):
        return True
    LOG.info('Device %s of host %s is gone', device.address, device.hostname)
    return False


def _leave_out_twins(
    known: list[model.Device], pairs: list[matching.Pair], held: set[int]
) -> tuple[list[matching.Pair], bool]:
    """The pairs without possible twins of other rows, and whether there were any.

    A missing device or a lost handle may be the same accelerator as a new handle: it would be
    allocated twice.  Another card at the address of a missing card is not a twin.
    """
    # A card that moved, by its serial number, is not at its old address.
    moved = {id(same) for found, same in pairs if same and same.identity != found.identity}
    holders = {
        handle.location: part
        for device in known
        if id(device) not in moved
        for part in device.deployables
        for handle in part.attach_handles
    }
    paired = {id(device) for _, device in pairs}
    missing = [device for device in known if id(device) not in paired and _is_kept(device, held)]
    staying, left_out = [], []
    for found, device in pairs:
        unknown = device is None and _may_be_one_of(found, missing)
        twins = [
            (part, handle)
            for part in found.deployables
            for handle in part.attach_handles
            if unknown or _is_twin(holders.get(handle.location), part, device)
        ]
        left_out += [f'{part.name} {handle.attach_info}' for part, handle in twins]
        if device is not None or not (twins or unknown):
            staying.append((found, device))
        for part, handle in twins:
            if device is not None:
                _withhold(device, handle)
            part.attach_handles.remove(handle)
    if left_out:
        LOG.warning(
            'Still of another device, and so not reported: %s. If that card does not come back, '
            'delete its device',
            ', '.join(left_out),
        )
    return staying, bool(left_out)


def _may_be_one_of(found: model.Device, missing: list[model.Device]) -> bool:
    """Whether a new card may be a missing card: its serial number cannot be read, or
    it is that of several cards, of which the missing one is one.
    """
    return any(
        device.serial and found.serial in (None, device.serial) and device.may_be(found)
        for device in missing
    )


def _withhold(device: model.Device, handle: model.AttachHandle) -> None:
    """Give out no handle of a known device that is left out of a report."""
    for part in device.deployables:
        for known in part.attach_handles:
            if known.identity == handle.identity:
                known.lost = True


def _is_twin(
    holder: model.Deployable | None, part: model.Deployable, device: model.Device | None
) -> bool:
    """Whether the accelerators of a known and of a found deployable may be the same."""
    if holder is None:
        return False
    if holder.device is device:
        return holder.identity != part.identity
    old, new = holder.device, part.device
    replaced = old.absences and old.identity == new.identity and not old.may_be(new)
    moved = old.serial and new.serial and old.serial != new.serial
    return not replaced and not moved


def _update(known: model.Base, found: model.Base, held: set[int]) -> None:
    """Give the known row the facts of the found one, and the same to its parts."""
    # The parts first: which is which follows from where the card was.
    for part in known.parts:
        rows = {row.identity: row for row in getattr(known, part)}
        for row in list(getattr(found, part)):
            if row.identity not in rows:
                # A row has one parent: let go there before it is taken here.
                getattr(found, part).remove(row)
                getattr(known, part).append(row)
            # An operator's own rows stay as they are.
            elif rows[row.identity].reported:
                _update(rows[row.identity], row, held)
    for column in known.columns('fact'):
        value = getattr(found, column.name)
        if getattr(known, column.name) != value and not _keeps(known, column.name, value, held):
            setattr(known, column.name, value)


def _keeps(row: model.Base, column: str, value: typing.Any, held: set[int]) -> bool:
    """Whether a row keeps a fact that a report tells otherwise."""
    if isinstance(row, model.AttachHandle):
        # What it excludes stays excluded while it is held.
        return column in ('form', 'iommu_group') and row.id in held
    if isinstance(row, model.Device):
        # The driver cannot ask the card for now.
        return column == 'serial' and value is None
    if isinstance(row, model.Deployable):
        # The provider's name stays, wherever the card goes.
        return column == 'name'
    # The numbers of traits are the service's: see _number_traits.
    return isinstance(row, model.Attribute) and row.is_trait and column == 'key'

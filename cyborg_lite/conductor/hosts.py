# SPDX-License-Identifier: Apache-2.0
"""Hosts: the lock of each, which report of it counts, and what becomes of its name.

A machine is itself, not its name.  A host whose machine reports under another name has been
renamed: what is held under the old name is not offered under the new one.  Two hosts that report
in turn under one machine identity are clones of an image: there the identity tells nothing.  One
report proves nothing: it may come late, also after a reboot.
"""

from __future__ import annotations

import collections.abc
import datetime
import functools
import typing

from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import health
from cyborg_lite.conductor import matching
from cyborg_lite.conductor import naming
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import trust
from cyborg_lite.db import leases
from cyborg_lite.db import query
from cyborg_lite.db import usages

LOG = log.getLogger(__name__)

#: how many boots, and starts of an agent, are remembered as over
PAST = 8
#: In how many turns two hosts report, each after the other, until they are taken for clones: a
#: report or two of the boot before may come late.
TURNS = 2
#: After how long without a report a clone is taken for a host that is gone for good.
GONE = datetime.timedelta(days=1)
#: The hosts of deployables: a condition says of which.
OF_DEPLOYABLES = sa.select(model.Device.hostname).join(model.Deployable)
#: The host of a device.
OF_DEVICE = sa.select(model.Device.hostname).where(model.Device.uuid == sa.bindparam('uuid'))
#: The host of a name.
NAMED = sa.select(sa.bindparam('name', type_=sa.String(255)))
#: By host, the last agent whose reports were refused: the log names each once.
_refused: dict[str, str] = {}


def lock(session: orm.Session, hostnames: sa.Select[typing.Any], **values: typing.Any) -> list[str]:
    """Lock these hosts until the transaction ends, as a report locks its own; returns their names.

    Reports, orders to devices, bindings and the healer change what is announced of a host. What is
    read before the lock may be stale.

    :param hostnames: a statement that is made once, with parameters.
    :param values: the values of its parameters.
    """
    return [name for name, _ in locked(session, hostnames, **values)]


def locked(
    session: orm.Session, hostnames: sa.Select[typing.Any], **values: typing.Any
) -> list[tuple[str, bool]]:
    """Lock hosts as :func:`lock` does; returns the name of each, and whether it observes."""
    return [(x.name, x.observes) for x in query.run(session, _locking(hostnames), values)]


@functools.cache
def _locking(hostnames: sa.Select[typing.Any]) -> sa.Select[typing.Any]:
    columns: list[typing.Any] = [model.Host.name, model.Host.observes]
    hosts = sa.select(*columns).where(model.Host.name.in_(hostnames))
    return hosts.order_by(model.Host.id).with_for_update()


def claim(session: orm.Session, report: trust.Claim) -> model.Host | None:
    """The host of a report, locked, with what the report says of it; None if the report is late."""
    named = sa.select(model.Host).where(model.Host.name == report['host']).with_for_update()
    host = session.scalars(named).one_or_none()
    if host is not None and trust.is_another(host, report):
        return None
    # If the identity cannot be read for now, the machine is assumed to be the same.
    machine = report.get('machine') or (host.machine if host else None)
    # An identity that was not known before tells as much as a new agent does.
    started = host is None or host.agent != report.get('agent') or host.machine != machine
    others = []
    if machine and (started or (host is not None and host.renamed_to)):
        others = _others(session, report['host'], machine)
        others = [other for other in others if trust.may_be_same(other, report)]
    if (host is not None and _is_late(host, report)) or _is_overtaken(report, others):
        _tell_late(host, report)
        return None
    if host is None:
        LOG.info('Host %s is new: its first report is taken', report['host'])
        host = model.Host(name=report['host'], boot_id=report['boot_id'], machine=machine)
        session.add(host)
    elif host.silent:
        LOG.info('Host %s is up again', host.name)
    _recognise(session, host, report, others, started)
    _note(host, report, machine)
    # Devices have a foreign key to the host's name: the host must exist first.
    session.flush()
    return host


def _is_overtaken(report: trust.Claim, others: list[model.Host]) -> bool:
    """Whether the machine has reported under another name since: in one boot sequences compare."""
    return any(
        other.boot_id == report['boot_id'] and other.sequence > report['sequence']
        for other in others
    )


def _is_late(host: model.Host, report: trust.Claim) -> bool:
    """Whether the report was sent before a report that was accepted."""
    agent = report.get('agent')
    if report['boot_id'] != host.boot_id:
        # Only while another boot reports can this one be over: a wrong agent may have been stopped.
        return report['boot_id'] in host.past_boots and not host.silent
    if agent == host.agent and agent is not None:
        return bool(report['sequence'] <= host.sequence)
    if agent is not None and host.agent is not None:
        return agent in (host.past_agents or ()) and not host.silent
    # An agent of the previous release. In another time namespace its sequence restarts.
    return bool(report['sequence'] <= host.sequence and not host.silent)


def _tell_late(host: model.Host | None, report: trust.Claim) -> None:
    agent = report.get('agent') or report['boot_id']
    twins = host is not None and report['boot_id'] == host.boot_id
    if host is not None and twins and agent in (host.past_agents or ()):
        if _refused.get(host.name) != agent:
            LOG.warning(
                'Two agents report as host %s. What the one says that was started first is '
                'dropped: stop one of them',
                host.name,
            )
        _refused[host.name] = agent
        return
    LOG.warning(
        'A late report of host %s was dropped (boot %s): if others follow, two machines have '
        'this name',
        report['host'],
        report['boot_id'],
    )


def _note(host: model.Host, report: trust.Claim, machine: str | None) -> None:
    """Note what the report says of itself."""
    if report['boot_id'] != host.boot_id:
        others = [boot for boot in host.past_boots or () if boot != report['boot_id']]
        host.past_boots = [host.boot_id, *others][:PAST]
        host.boot_id, host.past_agents = report['boot_id'], []
    elif host.agent and host.agent != report.get('agent'):
        earlier = [agent for agent in host.past_agents or () if agent != report.get('agent')]
        host.past_agents = [host.agent, *earlier][:PAST]
    host.agent, host.machine = report.get('agent'), machine
    host.secret = trust.digest(report)
    host.sequence, host.seen_at = report['sequence'], timeutils.utcnow()
    host.drivers, host.interval, host.silent = report['drivers'], report['interval'], False
    host.access = report.get('access')
    host.idle_after = report.get('idle_after') or None
    host.observes = bool(report.get('observes'))


def _recognise(
    session: orm.Session,
    host: model.Host,
    report: trust.Claim,
    others: list[model.Host],
    started: bool,
) -> None:
    """Note whether the machine had another name, or whether hosts are clones of each other.

    :param others: the other hosts of the machine identity.
    :param started: whether an agent was started since the last report, or the identity or the host
        is new.
    """
    machine = report.get('machine') or host.machine
    if machine != host.machine:
        host.cloned, host.renamed_to = False, None
    if started and all(_is_gone(other) for other in others):
        for each in (host, *others):
            each.cloned = False
    if host.cloned or any(other.cloned for other in others):
        host.cloned, host.renamed_to = bool(machine), None
    elif started and others:
        _take_name(session, host, others)
    elif host.renamed_to:
        _return(session, host, report, others)


def _take_name(session: orm.Session, host: model.Host, others: list[model.Host]) -> None:
    """Note that this is the name of the machine now, and that the others were."""
    host.renamed_to = None
    for other in others:
        other.renamed_to, other.returns = host.name, None
        announce_all(session, [other.name])
    LOG.warning(
        'Host %s reports from the machine that was %s: what is held there is not offered here. '
        'Rename the old host to the new name, or delete it',
        host.name,
        ', '.join(sorted(other.name for other in others)),
    )


def _return(
    session: orm.Session, host: model.Host, report: trust.Claim, others: list[model.Host]
) -> None:
    """Handle a report under the old name, from an agent that was not restarted.

    The report is late, or its machine differs from the machine with the new name.
    """
    other = next((each for each in others if each.name == host.renamed_to), None)
    if other is None:
        # The new name is gone, or was another machine's.
        host.renamed_to = None
        return
    turn = f'{other.boot_id} {other.agent} {other.sequence}'
    host.returns = sorted({turn, *(host.returns or ())})
    # In one boot reports have an order: this one is newer than the last one of the new name.
    if other.boot_id == report['boot_id'] or len(host.returns) >= TURNS:
        _tell_clones(host, other)
    elif other.silent:
        _take_name(session, host, others)


def _tell_clones(*twins: model.Host) -> None:
    for twin in twins:
        twin.cloned, twin.renamed_to, twin.digest = True, None, None
    LOG.warning(
        'Hosts %s have one machine identity, %s: they are clones of one image. Give each its '
        'own /etc/machine-id: until then a host that is renamed is not recognised',
        ', '.join(sorted(twin.name for twin in twins)),
        twins[0].machine,
    )


def _is_gone(host: model.Host) -> bool:
    """Whether a host has not reported for so long that it counts as gone for good."""
    return host.seen_at < timeutils.utcnow() - GONE


def _others(session: orm.Session, name: str, machine: str) -> list[model.Host]:
    """The other hosts of a machine identity, locked."""
    same = sa.select(model.Host).where(model.Host.machine == machine, model.Host.name != name)
    return list(session.scalars(same.order_by(model.Host.id).with_for_update()))


def changed(names: collections.abc.Iterable[str]) -> dict[str, dict[str, model.Facts]]:
    """The messages that reconcile these hosts with Placement in a later transaction.

    It costs this one little, and it need not lock the hosts: they are locked before what is held
    of them, never after.
    """
    return {outbox.HOST: messages(names)}


def messages(names: collections.abc.Iterable[str]) -> dict[str, model.Facts]:
    """A message for each of these hosts, by its key."""
    # A name may be longer than a key.
    return {naming.uuid_of(name): {'name': name} for name in sorted(names)}


def announce(session: orm.Session, name: str) -> None:
    """Lock a host, and have Placement told of what differs on it."""
    lock(session, NAMED, name=name)
    announce_all(session, [name])


def announce_all(
    session: orm.Session, names: collections.abc.Iterable[str], after: float = 0
) -> None:
    """Send the changes of locked hosts to Placement.

    Without Placement nothing is read.

    :param after: as for :func:`outbox.put`.
    """
    if outbox.tells(session, outbox.PROVIDER):
        for name in sorted(names):
            outbox.announce(session, parts(session, name), after=after)


def parts(session: orm.Session, hostname: str) -> list[model.Deployable]:
    """All deployables of a host, with what is announced of them."""
    return [part for device in devices(session, hostname) for part in device.deployables]


def devices(session: orm.Session, hostname: str) -> list[model.Device]:
    """All devices of a host, with all that is below them."""
    below = orm.selectinload(model.Device.deployables)
    return query.find(
        session,
        model.Device,
        model.Device.hostname == hostname,
        options=[
            orm.joinedload(model.Device.host),
            # One statement, rather than one for each whose health changes.
            orm.undefer(model.Device.changes),
            below.selectinload(model.Deployable.attributes),
            below.selectinload(model.Deployable.attach_handles),
        ],
    )


def held(session: orm.Session, hostname: str) -> set[int]:
    """The ids of the host's handles that requests hold."""
    handles = (
        sa.select(model.ARQ.attach_handle_id)
        .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
        .join(model.Deployable)
        .join(model.Device)
        .where(model.Device.hostname == hostname)
    )
    return set(session.scalars(handles))


def is_held(device: model.Device, held_ids: set[int]) -> bool:
    """Whether a request holds an accelerator of the device."""
    return any(
        handle.id in held_ids for part in device.deployables for handle in part.attach_handles
    )


def remove(session: orm.Session, device: model.Device) -> None:
    """Delete a device without holders, and remove its providers."""
    gone = {part.rp_uuid: outbox.retired(part.announced) for part in device.deployables}
    outbox.put(session, outbox.PROVIDER, gone)
    session.delete(device)


def delete(session: orm.Session, ctxt: context.RequestContext, name: str) -> None:
    """Delete a host that is down, with its devices: its providers go from Placement too.

    :raises cyborg_lite.exception.NotFound: when there is no such host.
    :raises cyborg_lite.exception.Conflict: when it is up, or something of it is held.
    """
    host = _down(session, name)
    held_ids = held(session, name)
    if held_ids:
        raise exception.Conflict(
            reason=f'Host {name} cannot be deleted: accelerator requests hold {len(held_ids)} of '
            'its accelerators. Delete what holds them: "openstack accelerator list '
            f'--host {name} --state held" shows them.'
        )
    for device in devices(session, name):
        remove(session, device)
    session.flush()
    _forget(session, host)
    # A machine that has no newer name has the one before.
    older = sa.update(model.Host).where(model.Host.renamed_to == name)
    session.execute(older.values(renamed_to=None, returns=None, digest=None))


def _forget(session: orm.Session, host: model.Host) -> None:
    """Delete the row of a host; the last host of a machine identity is not a clone any more."""
    session.delete(host)
    session.flush()
    if host.machine:
        left = _others(session, host.name, host.machine)
        if len(left) == 1:
            left[0].cloned = False


def rename(session: orm.Session, ctxt: context.RequestContext, name: str, to: str) -> None:
    """Give a host that is down its new name: what is bound stays bound, its providers follow.

    Where its agent has reported under the new name already, each card becomes one again: the row
    of which something is held stays, and the old one where nothing is.

    :raises cyborg_lite.exception.NotFound: when there is no such host.
    :raises cyborg_lite.exception.Conflict: when it is up, or when the two hosts are two machines.
    """
    session.execute(
        sa.select(model.Host.id)
        .where(model.Host.name.in_((name, to)))
        .order_by(model.Host.id)
        .with_for_update()
    )
    old = _down(session, name)
    if name == to:
        return
    new = session.scalars(sa.select(model.Host).where(model.Host.name == to)).one_or_none()
    if new is None:
        new = _copy(session, old, to)
    elif not _may_unite(old, new):
        raise exception.Conflict(
            reason=f'Host {name} cannot be renamed to {to}: there is a host {to}, and it is not '
            'known to be the same machine. If it is, stop its agent, and when it is down run '
            f'"openstack accelerator host delete {to}"; then rename {name}, and start the agent.'
        )
    _unite(session, old, new)
    _forget(session, old)
    new.digest = None
    announce_all(session, [to])
    LOG.info('Host %s is %s now', name, to)


def _down(session: orm.Session, name: str) -> model.Host:
    """The host of this name, locked, that must not be up."""
    lock(session, NAMED, name=name)
    host = query.get(session, model.Host, name, what='Host', by='name')
    if host.state == 'up':
        raise exception.Conflict(
            reason=f'Host {name} is up: stop its agent, and wait until "openstack accelerator host '
            f'show {name}" says down. With "cyborg-lite up", start that without this host.'
        )
    return host


def _may_unite(old: model.Host, new: model.Host) -> bool:
    """Whether two hosts are known to be one machine; a clone may be once the old one is gone."""
    if new.machine is None or new.machine != old.machine:
        return False
    return not new.cloned or _is_gone(old)


def _copy(session: orm.Session, old: model.Host, name: str) -> model.Host:
    """The same host under another name: devices link to a host by its name."""
    kept = {
        column.name: getattr(old, column.name)
        for column in model.Host.columns('own')
        if column.name not in ('id', 'uuid', 'name', 'renamed_to', 'updated_at')
    }
    # One of which the machine reports under a third name is still that machine.
    renamed_to = old.renamed_to if old.renamed_to != name else None
    new = model.Host(name=name, renamed_to=renamed_to, **kept)
    session.add(new)
    session.flush()
    return new


def _unite(session: orm.Session, old: model.Host, new: model.Host) -> None:
    """Bring the devices of the old host to the new one, each as one row."""
    before, after = held(session, old.name), held(session, new.name)
    moving = []
    for card, twin in matching.pair(devices(session, new.name), devices(session, old.name)):
        if twin is not None and is_held(twin, after) and not is_held(card, before):
            _inherit(session, twin, card)
            remove(session, card)
            continue
        if twin is not None and not is_held(twin, after):
            _inherit(session, card, twin)
            remove(session, twin)
        moving.append(card)
    # What goes is gone before what comes takes its name.
    session.flush()
    for card in moving:
        card.host = new
        for part in card.deployables:
            plain = part.name.removeprefix(f'{old.name}_')
            naming.give(session, part, f'{new.name}_{plain}')
        session.flush()
    leases.rename(session, old.name, new.name)
    moved = sa.update(model.ARQ).where(model.ARQ.attach_handle_id.in_(before))
    query.matched(session, moved.values(hostname=new.name))
    usages.rename(session, old.name, new.name)
    if new.renamed_to == old.name:
        new.renamed_to = None
        session.flush()
    # A name before that one is a name of the new one, too.
    earlier = sa.update(model.Host).where(model.Host.renamed_to == old.name)
    query.matched(session, earlier.values(renamed_to=new.name))
    session.expire(old, ['found'])


def _inherit(session: orm.Session, device: model.Device, twin: model.Device) -> None:
    """Keep what an operator decided of the row that goes, and its note."""
    if twin.status != 'enabled':
        device.status = twin.status
        device.revision += 1
    inherit_note(device, twin)
    health.inherit(device, twin)
    others = {other.identity: other for other in twin.deployables}
    for part in device.deployables:
        if other := others.get(part.identity):
            _inherit_attributes(part, other)
    naming.number_traits(session, device.deployables)


def inherit_note(device: model.Device, twin: model.Device) -> None:
    """Move the note of another row of the same card, unless this one has a note: see
    cyborg_lite.conductor.leaving.
    """
    if twin.left_after and not device.left_after:
        device.rogue, device.left_after = twin.rogue, twin.left_after
        twin.rogue = twin.left_after = None


def _inherit_attributes(part: model.Deployable, other: model.Deployable) -> None:
    """Keep what an operator added; a driver's trait of the same key gets another one after that."""
    for attribute in [each for each in other.attributes if each.added]:
        if key := naming.free_key(part, attribute):
            part.attributes.append(model.Attribute(key=key, value=attribute.value, added=True))

# SPDX-License-Identifier: Apache-2.0
"""Invariants of the idle service, checked in the database and in Placement.

Each function returns the violations as texts.
"""

from __future__ import annotations

import collections
import collections.abc
import datetime
import typing

from keystoneauth1 import adapter
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from tests.integration import deployment as deployment_

Wrong = collections.abc.Iterator[str]


def links(arqs: collections.abc.Sequence[model.ARQ], providers: dict[int, str]) -> Wrong:
    """I1 and I2.

    :param providers: the provider of each handle, by the id of the handle.
    """
    holders = collections.Counter(arq.attach_handle_id for arq in arqs if arq.attach_handle_id)
    for handle, count in holders.items():
        if count > 1:
            yield f'I1: handle {handle} has {count} holders'
    for arq in arqs:
        if (arq.state == 'Bound') != (arq.attach_handle_id is not None):
            yield f'I2: ARQ {arq.uuid} is {arq.state} and holds {arq.attach_handle_id}'
        elif arq.attach_handle_id and providers.get(arq.attach_handle_id) != arq.device_rp_uuid:
            yield f'I2: ARQ {arq.uuid} holds a handle of another provider'


def forms(session: orm.Session) -> Wrong:
    """I14: a card is held in one form at a time, under any name of its host."""
    held = (
        sa.select(
            sa.func.coalesce(model.Host.machine, model.Host.name),
            sa.func.coalesce(model.Device.serial, model.Device.address),
            model.AttachHandle,
        )
        .join(model.ARQ, model.ARQ.attach_handle_id == model.AttachHandle.id)
        .join(model.AttachHandle.deployable)
        .join(model.Deployable.device)
        .join(model.Device.host)
    )
    cards = collections.defaultdict(list)
    for machine, card, handle in session.execute(held):
        cards[machine, card].append(handle)
    for (machine, card), handles in cards.items():
        if len({handle.form for handle in handles}) > 1:
            yield f'I14: of {card} in {machine} are held {[handle.form for handle in handles]}'
        if len({handle.location for handle in handles}) < len(handles):
            yield f'I14: of {card} in {machine} one accelerator is held twice'


def allocations(session: orm.Session) -> Wrong:
    """I2: an allocation holds all its accelerators while it is active, and none otherwise."""
    held = dict(
        session.execute(
            sa.select(model.ARQ.allocation_uuid, sa.func.count(model.ARQ.attach_handle_id))
            .where(model.ARQ.allocation_uuid.is_not(None))
            .group_by(model.ARQ.allocation_uuid)
        ).all()
    )
    for each in session.query(model.Allocation):
        count = held.pop(each.uuid, 0)
        own = each.state == 'active' and each.reservation_uuid is None
        wanted = len(each.accelerators) if own else 0
        if count != wanted:
            yield f'I2: allocation {each.uuid} is {each.state} and holds {count} of {wanted}'
    for uuid in held:
        yield f'I2: requests of allocation {uuid} are left, and it is not there'


def concerned(*columns: typing.Any) -> sa.Select[typing.Any]:
    """By promise, what others hold of its card that it keeps: it, or another form of it."""
    kept, handle = model.Promise, model.AttachHandle
    return (
        sa.select(*columns)
        .select_from(kept)
        .join(model.Device, model.Device.uuid == kept.device_uuid)
        .join(model.Deployable, model.Deployable.device_id == model.Device.id)
        .join(handle, handle.deployable_id == model.Deployable.id)
        .join(model.ARQ, model.ARQ.attach_handle_id == handle.id)
        .outerjoin(model.Allocation, model.Allocation.uuid == model.ARQ.allocation_uuid)
        .where(sa.or_(handle.uuid == kept.accelerator_uuid, handle.form != kept.form))
    )


def reservations(session: orm.Session) -> Wrong:
    """I1: nothing is kept twice for one time, or held in a time for which it is kept for others.

    What is leased from reservations is theirs, and of one process each.
    """
    one, other = orm.aliased(model.Promise), orm.aliased(model.Promise)
    twice = sa.select(one.accelerator_uuid, one.allocation_uuid, other.allocation_uuid).join(
        other,
        sa.and_(
            one.id < other.id,
            one.device_uuid == other.device_uuid,
            one.starts_at < other.ends_at,
            other.starts_at < one.ends_at,
            sa.or_(one.accelerator_uuid == other.accelerator_uuid, one.form != other.form),
        ),
    )
    for accelerator, *kept in session.execute(twice):
        yield f'I1: kept for two at a time: {accelerator}, for {" and ".join(kept)}'
    kept, holder = model.Promise, model.Allocation
    shown = kept.accelerator_uuid, kept.allocation_uuid, kept.starts_at, holder.uuid
    longer = concerned(*shown).where(
        holder.uuid != kept.allocation_uuid, holder.lease_ends_at > kept.starts_at
    )
    for accelerator, reservation, start, allocation in session.execute(longer):
        yield (
            f'I1: kept for {reservation} from {start}: {accelerator}, and {allocation} holds it '
            'for longer'
        )
    yield from _drawn(session)


def _drawn(session: orm.Session) -> Wrong:
    drawn, whole = orm.aliased(model.Allocation), orm.aliased(model.Allocation)
    query = (
        sa.select(drawn.uuid, drawn.accelerators, whole.uuid, whole.state, whole.accelerators)
        .outerjoin(whole, whole.uuid == drawn.reservation_uuid)
        .where(drawn.reservation_uuid.is_not(None), drawn.state == 'active')
    )
    used: dict[str, str] = {}
    for uuid, accelerators, reservation, state, all_ in session.execute(query):
        if state != 'active':
            yield f'I2: {uuid} is leased from {reservation}, which is {state}'
        for each in accelerators:
            if each['uuid'] not in {known['uuid'] for known in all_ or ()}:
                yield f'I2: {uuid} has {each["uuid"]}, which is not of {reservation}'
            if (before := used.setdefault(each['uuid'], uuid)) != uuid:
                yield f'I1: {each["uuid"]} of {reservation} is leased to {before} and {uuid}'


def quotas(session: orm.Session) -> Wrong:
    """I3: no project has more requests than its own limits allow."""
    used: collections.Counter[tuple[str, str]] = collections.Counter()
    asked = sa.select(
        model.ARQ.project_id, model.ARQ.device_profile_group_id, model.DeviceProfile.groups
    ).join(model.DeviceProfile, model.DeviceProfile.id == model.ARQ.device_profile_id)
    for project, number, groups in session.execute(asked):
        # Each group asks for one class here.
        [name] = model.DeviceProfile.resources(groups[number])
        used.update([(project, name), (project, model.Quota.TOTAL)])
    for row in session.query(model.Quota):
        for name, limit in row.limits.items():
            if used[row.project_id, name] > limit >= 0:
                yield (
                    f'I3: project {row.project_id} has {used[row.project_id, name]} of {name}, and '
                    f'its limit is {limit}'
                )


def in_database(deployment: deployment_.Deployment) -> Wrong:
    """I1, I2, I3, I14, and the part of I6 that no message is left."""
    with deployment.database.reader() as session:
        joined = session.query(model.AttachHandle.id, model.Deployable.rp_uuid).join(
            model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id
        )
        providers = {row.id: row.rp_uuid for row in joined}
        yield from links(session.query(model.ARQ).all(), providers)
        yield from forms(session)
        yield from reservations(session)
        yield from allocations(session)
        yield from quotas(session)
        # The periodic messages of the healer are sent at once.
        late = timeutils.utcnow() - datetime.timedelta(seconds=10)
        for message in session.query(model.Message).filter(model.Message.created_at < late):
            yield f'I6: {message.kind} {message.key} waits'


def in_placement(deployment: deployment_.Deployment, placement: adapter.Adapter) -> Wrong:
    """I5: Placement equals the rows of deployables, and has no other providers below a host."""
    with deployment.database.reader() as session:
        held = {arq.attach_handle_id: arq.allocation_uuid for arq in session.query(model.ARQ)}
        parts = session.query(model.Deployable).all()
        kept = collections.defaultdict(set)
        for each in session.query(model.Promise):
            kept[each.device_uuid].add((each.accelerator_uuid, each.form))
        wanted = {part.rp_uuid: _wanted(part, held, kept[part.device.uuid]) for part in parts}
        places = {part.rp_uuid: (part.name, part.device.hostname) for part in parts}
    listed = placement.get('/resource_providers').json()['resource_providers']
    ours = {each['uuid'] for each in listed if each['parent_provider_uuid']}
    for rp_uuid in ours ^ wanted.keys():
        yield f'I5: provider {rp_uuid} is in one of Placement and the database only'
    for rp_uuid in ours & wanted.keys():
        found = _found(placement, rp_uuid)
        if found != wanted[rp_uuid]:
            yield f'I5: provider {rp_uuid} is {found}, and is to be {wanted[rp_uuid]}'
    names = {each['uuid']: each['name'] for each in listed}
    parents = {each['uuid']: names.get(each['parent_provider_uuid']) for each in listed}
    for rp_uuid in ours & places.keys():
        if (names[rp_uuid], parents[rp_uuid]) != places[rp_uuid]:
            yield f'I5: provider {rp_uuid} is {names[rp_uuid]} of {parents[rp_uuid]}'


def _wanted(
    part: model.Deployable, held: dict[int | None, str | None], kept: set[tuple[str, str]]
) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """The wanted content of Placement.

    :param held: the allocation of each held handle, if any, by the id of the handle.
    :param kept: what reservations keep of the device: the accelerator and its form.
    """
    total = len(part.attach_handles)
    device = part.device
    unfit = device.status != 'enabled' or device.absences or device.host.silent
    siblings = [handle for other in device.deployables for handle in other.attach_handles]
    taken = {handle.form for handle in siblings if handle.id in held}
    reserved = sum(
        handle.lost
        # Placement has the allocations of instances, but not ours.
        or held.get(handle.id) is not None
        or (handle.id not in held and bool(taken - {handle.form}))
        or (handle.id not in held and any(handle.uuid == a or handle.form != f for a, f in kept))
        for handle in part.attach_handles
    )
    reserved = total if unfit else reserved
    traits = {a.value for a in part.attributes if a.key.startswith('trait')}
    [resource_class] = [a.value for a in part.attributes if a.key == 'rc']
    return {resource_class: (total, reserved)}, traits | {'OWNER_CYBORG'}


def _found(placement: adapter.Adapter, uuid: str) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """The content of a provider in Placement; empty if it was deleted since."""
    path = f'/resource_providers/{uuid}'
    inventories = placement.get(f'{path}/inventories').json().get('inventories', {})
    traits = placement.get(f'{path}/traits').json().get('traits', [])
    return {k: (v['total'], v['reserved']) for k, v in inventories.items()}, set(traits)

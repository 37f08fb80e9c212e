# SPDX-License-Identifier: Apache-2.0
"""Allocations: place accelerators and bind them together, renew, release, and explain.

An allocation is a set of ordinary requests that are created bound, in one transaction: all or
none.  The database refuses to give a handle twice, here as everywhere.
"""

from __future__ import annotations

import collections.abc
import datetime
import hashlib
import typing
import uuid as uuidlib

from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import reasons
from cyborg_lite.db import candidates
from cyborg_lite.db import query
from cyborg_lite.model import base
from cyborg_lite.model import device as devices

LOG = log.getLogger(__name__)

#: What an allocation notes of an accelerator, beside its request and its ids.
ACCELERATOR = (
    'uuid', 'host', 'device_uuid', 'type', 'model', 'address', 'numa_node', 'attach_type',
    'attach_info',
)  # fmt: skip
#: How many free accelerators a choice looks at first; at all of them where these do not do.
WINDOW = 256


class Request(typing.TypedDict):
    """What a client asks for, in the form that the API has checked."""

    #: the device profile by its name or uuid; None if groups are given
    profile: str | None
    #: lists of groups as device profiles have them, in the order in which they are wanted, after
    #: the profile if there is one
    alternatives: list[list[dict[str, str]]]
    same_host: bool
    #: ``prefer`` or ``require``
    same_numa: str
    #: the only hosts to choose from; None for all
    hosts: list[str] | None
    name: typing.NotRequired[str | None]
    consumer: typing.NotRequired[dict[str, str] | None]
    lease: typing.NotRequired[int | None]
    #: the idempotency key; None if there is none
    key: typing.NotRequired[str | None]


def create(
    session: orm.Session, ctxt: context.RequestContext, request: Request, policy: str
) -> tuple[str, list[str]]:
    """Allocate what is asked for, all of it or nothing; returns the uuid of the allocation, and
    the providers of which Placement is to be told before the answer.

    :param policy: the name of the placing policy.
    :raises cyborg_lite.exception.NotFound: when there is no such device profile.
    :raises cyborg_lite.exception.Duplicate: when an active allocation of the project has the name.
    :raises cyborg_lite.exception.KeyReused: when another request had the idempotency key.
    :raises cyborg_lite.exception.CannotAllocate: when nothing that is free does, with the reasons.
    :raises cyborg_lite.exception.OverQuota: when the project may not have so many.
    """
    digest = hashlib.sha256(base.as_text(request).encode()).hexdigest()
    if same := _earlier(session, ctxt, request, digest):
        return same, []
    wanted = _wanted(session, request)
    chosen = _choose(session, wanted, request['hosts'], placing.policy(policy))
    if chosen is None:
        raise exception.CannotAllocate(
            **_refusal(reasons.explain(session, wanted, request['hosts'], None))
        )
    number, found = chosen
    found = _confirm(session, wanted, number, found, policy)
    uuid, profile = str(uuidlib.uuid4()), wanted.profiles[number]
    if profile.private:
        profile.name = _private(uuid)
        session.add(profile)
        session.flush()
    held = _bind(session, ctxt, uuid, profile, found)
    accelerators = [shown for _, shown in held]
    _add(session, ctxt, uuid, request, profile, digest, accelerators)
    names = {each.host for each in found}
    hosts.announce_all(session, names, after=outbox.TELL)
    told = outbox.tells(session, outbox.PROVIDER)
    return uuid, sorted({provider for provider, _ in held}) if told else []


def check(
    session: orm.Session, ctxt: context.RequestContext, request: Request, policy: str
) -> reasons.Explanation:
    """Whether what is asked for could be allocated now, and what keeps accelerators from it.

    :raises cyborg_lite.exception.NotFound: when there is no such device profile.
    """
    wanted = _wanted(session, request)
    chosen = _choose(session, wanted, request['hosts'], placing.policy(policy))
    return reasons.explain(session, wanted, request['hosts'], chosen and chosen[0])


def _refusal(explanation: reasons.Explanation) -> dict[str, typing.Any]:
    said = '; or '.join(each['reason'] or '' for each in explanation['alternatives'])
    return {'reason': said, 'explanation': explanation}


def _earlier(
    session: orm.Session, ctxt: context.RequestContext, request: Request, digest: str
) -> str | None:
    """The uuid of the allocation that was made for this very request before.

    The name is looked up with it.
    """
    key, name = request.get('key'), request.get('name')
    same = [
        column == value
        for column, value in (
            (model.Allocation.idempotency_key, key),
            (model.Allocation.active_name, name),
        )
        if value is not None
    ]
    if not same:
        return None
    mine = model.Allocation.project_id == ctxt.project_id
    found = session.scalars(
        sa.select(model.Allocation).where(mine, sa.or_(*same)).options(orm.lazyload('*'))
    ).all()
    for each in found:
        if key is not None and each.idempotency_key == key:
            if each.digest != digest:
                raise exception.KeyReused(key=key)
            return each.uuid
    if found:
        raise exception.Duplicate(what='Active allocation', field='name', value=name)
    return None


def _wanted(session: orm.Session, request: Request) -> reasons.Wanted:
    """What is wanted, alternative by alternative."""
    rows: list[model.DeviceProfile] = []
    if request['profile'] is not None:
        rows.append(profiles.find(session, request['profile']))
    rows += [model.DeviceProfile(groups=groups, private=True) for groups in request['alternatives']]
    kinds: dict[candidates.Kind, int] = {}
    sets = []
    for row in rows:
        slots = tuple(_slots(row.groups))
        _refuse_size(len(slots))
        sets.append(
            placing.Wanted(
                tuple(kinds.setdefault(slot, len(kinds)) for slot in slots),
                request['same_host'],
                request['same_numa'] == 'require',
            )
        )
    return reasons.Wanted(rows, list(kinds), sets)


def _slots(groups: list[dict[str, str]]) -> collections.abc.Iterator[candidates.Kind]:
    """For each accelerator of these groups what it has to be, in order."""
    total = sum(max(0, n) for group in groups for n in profiles.resources(group).values())
    _refuse_size(total)
    for group in groups:
        required, forbidden = map(frozenset, profiles.traits(group))
        for name, amount in profiles.resources(group).items():
            for _ in range(amount):
                yield candidates.Kind(name, required, forbidden)


def _refuse_size(total: int) -> None:
    if not 1 <= total <= binding.MOST:
        raise exception.Invalid(
            reason=f'Invalid groups: expected 1 to {binding.MOST} accelerators, got {total}.'
        )


def _candidate(row: sa.Row[typing.Any]) -> placing.Candidate:
    handle, host, device, form, node, *fits = tuple(row)
    kinds = frozenset(number for number, fit in enumerate(fits) if fit)
    return placing.Candidate(handle, host, device, form, node, kinds)


def _choose(
    session: orm.Session,
    wanted: reasons.Wanted,
    of_hosts: candidates.Hosts,
    rank: placing.Rank,
) -> tuple[int, placing.Chosen] | None:
    """The first alternative that can be had, by its number, and its accelerators."""
    window = WINDOW + 8 * max(len(each.kinds) for each in wanted.sets)
    rows = candidates.free(session, wanted.kinds, of_hosts, window)
    found = _first(rows, wanted, rank)
    if len(rows) == window and (found is None or found[0] > 0):
        # The first alternative may be further on.
        found = _first(candidates.free(session, wanted.kinds, of_hosts, None), wanted, rank)
    return found


def _first(
    rows: list[sa.Row[typing.Any]], wanted: reasons.Wanted, rank: placing.Rank
) -> tuple[int, placing.Chosen] | None:
    found = [_candidate(row) for row in rows]
    for number, each in enumerate(wanted.sets):
        if chosen := placing.place(found, each, rank):
            return number, chosen
    return None


def _confirm(
    session: orm.Session,
    wanted: reasons.Wanted,
    number: int,
    chosen: placing.Chosen,
    policy: str,
) -> placing.Chosen:
    """Choose again on the same hosts, now that they are locked: what was read before may be stale.

    :raises sqlalchemy.orm.exc.StaleDataError: when there is not enough left: the call is tried
        again.
    """
    names = {each.host for each in chosen}
    locked = hosts.lock(session, sa.select(model.Host.name).where(model.Host.name.in_(names)))
    rows = candidates.free(session, wanted.kinds, locked, None)
    again = placing.place(map(_candidate, rows), wanted.sets[number], placing.policy(policy))
    if again is None:
        raise orm_exception.StaleDataError
    return again


def _add(
    session: orm.Session,
    ctxt: context.RequestContext,
    uuid: str,
    request: Request,
    profile: model.DeviceProfile,
    digest: str,
    accelerators: list[dict[str, typing.Any]],
) -> None:
    name, lease = request.get('name'), request.get('lease')
    consumer = request.get('consumer') or {}
    row = {
        'uuid': uuid,
        'name': name,
        'active_name': name,
        'project_id': ctxt.project_id,
        'profile': None if profile.private else profile.name,
        'groups': [reasons.shown(group) for group in profile.groups],
        'consumer_type': consumer.get('type'),
        'consumer_id': consumer.get('id'),
        'lease': lease,
        'lease_ends_at': _end(lease) if lease else None,
        'idempotency_key': request.get('key'),
        'digest': digest,
        'accelerators': accelerators,
    }
    session.execute(sa.insert(model.Allocation), [row])


def _private(uuid: str) -> str:
    """The name of the profile that is an allocation's own."""
    return f'allocation-{uuid}'


def _end(lease: int) -> datetime.datetime:
    return timeutils.utcnow() + datetime.timedelta(seconds=lease)


def _bind(
    session: orm.Session,
    ctxt: context.RequestContext,
    uuid: str,
    profile: model.DeviceProfile,
    chosen: placing.Chosen,
) -> list[tuple[str, dict[str, typing.Any]]]:
    """Create the requests, each bound; returns of each the provider, and what it holds."""
    handles = _handles(session, [each.handle for each in chosen])
    found = [handles[each.handle] for each in chosen]
    places = [
        {
            'state': 'Bound',
            'allocation_uuid': uuid,
            'attach_handle_id': row.id,
            'hostname': row.host,
            'device_rp_uuid': row.rp_uuid,
            'moves': _moves(ctxt, row),
        }
        for row in found
    ]
    arqs = binding.make(session, ctxt, profile, places)
    return [(row.rp_uuid, _shown(row, arq)) for row, arq in zip(found, arqs, strict=True)]


def _moves(ctxt: context.RequestContext, row: sa.Row[typing.Any]) -> list[dict[str, typing.Any]]:
    place = {'hostname': row.host, 'device_rp_uuid': row.rp_uuid, 'accelerator_uuid': row.uuid}
    return model.ARQ().moved('Bound', None, ctxt.request_id, **place)


def _handles(session: orm.Session, ids: list[int]) -> dict[int, sa.Row[typing.Any]]:
    """What is to be known of these handles, by their ids."""
    device = model.Device
    query_ = (
        sa.select(
            model.AttachHandle.id,
            model.AttachHandle.uuid,
            model.AttachHandle.attach_type,
            model.AttachHandle.attach_info,
            model.Deployable.rp_uuid,
            device.uuid.label('device_uuid'),
            device.hostname.label('host'),
            *(device.type, device.model, device.address, device.numa_node, device.vendor_board),
        )
        .join(model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id)
        .join(device)
        .where(model.AttachHandle.id.in_(ids))
    )
    return {row.id: row for row in session.execute(query_)}


def _shown(row: sa.Row[typing.Any], arq: str) -> dict[str, typing.Any]:
    shown = {name: getattr(row, name) for name in ACCELERATOR}
    return shown | {'arq_uuid': arq, 'ids': devices.ids_of_part(row.vendor_board, row.attach_info)}


def renew(session: orm.Session, ctxt: context.RequestContext, uuid: str, lease: int) -> None:
    """Let the lease of an active allocation end so many seconds from now.

    :raises cyborg_lite.exception.NotFound: when there is no such allocation.
    :raises cyborg_lite.exception.Conflict: when it is released, or its lease has ended.
    """
    same = [model.Allocation.uuid == uuid, *_visible(ctxt)]
    ends = model.Allocation.lease_ends_at
    held = model.Allocation.state == 'active', sa.or_(ends.is_(None), ends > timeutils.utcnow())
    move = sa.update(model.Allocation).where(*same, *held)
    values = {'lease': lease, 'lease_ends_at': _end(lease)}
    if not query.matched(session, move.values(values)):
        query.get(session, model.Allocation, uuid, *_visible(ctxt), what='Allocation')
        raise exception.Conflict(reason=f'Allocation {uuid} is released, or its lease has ended.')


def release(session: orm.Session, ctxt: context.RequestContext, uuid: str) -> None:
    """Free what an allocation holds; one that is released stays as it is.

    :raises cyborg_lite.exception.NotFound: when there is no such allocation.
    """
    allocation = query.get(session, model.Allocation, uuid, *_visible(ctxt), what='Allocation')
    _release(session, allocation, 'It was deleted.')


def expired(session: orm.Session, most: int) -> list[int]:
    """The ids of active allocations whose lease has ended, the oldest first."""
    over = sa.select(model.Allocation.id).where(*_over()).order_by(model.Allocation.lease_ends_at)
    return list(session.scalars(over.limit(most)))


def expire(session: orm.Session, id: int) -> None:
    """Release an allocation whose lease has ended, unless it was renewed or released meanwhile."""
    ended = sa.select(model.Allocation).where(model.Allocation.id == id, *_over())
    allocation = session.scalars(ended).one_or_none()
    if allocation is not None and _release(session, allocation, 'Its lease ended.', *_over()):
        LOG.info('Allocation %s was released: its lease ended', allocation.uuid)


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
) -> bool:
    """Move an allocation to ``released`` if it is active; whether it was.

    Hosts are locked before what is held of them.
    """
    if allocation.state != 'active':
        return False
    uuid, profile = allocation.uuid, allocation.profile
    names = _hosts(session, uuid)
    hosts.lock(session, sa.select(model.Host.name).where(model.Host.name.in_(names)))
    move = sa.update(model.Allocation).where(
        model.Allocation.id == allocation.id, model.Allocation.state == 'active', *conditions
    )
    values = {
        'state': 'released',
        'cause': cause,
        'released_at': timeutils.utcnow(),
        'active_name': None,
    }
    if not query.matched(session, move.values(values)):
        return False
    query.matched(session, sa.delete(model.ARQ).where(model.ARQ.allocation_uuid == uuid))
    if profile is None:
        own = model.DeviceProfile.name == _private(uuid), model.DeviceProfile.private
        query.matched(session, sa.delete(model.DeviceProfile).where(*own))
    outbox.put_all(session, hosts.changed(names))
    return True


def _hosts(session: orm.Session, uuid: str) -> set[str]:
    """The hosts of what an allocation holds, by the names under which they report."""
    query_ = (
        sa.select(sa.func.coalesce(model.Host.renamed_to, model.Host.name))
        .select_from(model.ARQ)
        .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
        .join(model.Deployable)
        .join(model.Device)
        .join(model.Host, model.Host.name == model.Device.hostname)
        .where(model.ARQ.allocation_uuid == uuid)
    )
    return set(session.scalars(query_))

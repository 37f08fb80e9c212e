# SPDX-License-Identifier: Apache-2.0
"""Accelerator requests: create, bind, unbind, delete.

A request holds an accelerator if and only if it links to its handle, and the link is unique:
the database refuses to give a handle twice.  A state moves by one UPDATE that names the states
it may come from, and that says by its row count whether it moved.
"""

from __future__ import annotations

import collections
import collections.abc
import typing
import uuid as uuidlib

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import fitness
from cyborg_lite.conductor import holding
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import owners
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import queue
from cyborg_lite.conductor import quotas
from cyborg_lite.db import exclusion
from cyborg_lite.db import query as queries

#: From which states a request may come into each.
SOURCES: dict[str, tuple[str, ...]] = {
    'BindStarted': ('Initial', 'Unbound'),
    'Bound': ('Initial', 'Unbound', 'BindStarted'),
    'BindFailed': ('Initial', 'Unbound', 'BindStarted'),
    'Unbound': ('Bound', 'BindStarted', 'BindFailed', 'UnbindFailed', 'Unbound', 'Initial'),
    'UnbindFailed': ('Bound', 'BindFailed', 'UnbindFailed'),
    'Deleting': (
        'Initial', 'BindStarted', 'Bound', 'BindFailed', 'Unbound', 'UnbindFailed', 'Deleting',
    ),
}  # fmt: skip

#: The most requests that one call creates. What a profile names has no such bound: Nova's tests
#: create one of 9,999 accelerators.
MOST = 1000

#: By uuid, the revisions of requests that a caller saw; None if he does not say.
Seen = dict[str, int] | None


class Wish(typing.TypedDict):
    """The place at which to bind a request."""

    uuid: str
    hostname: str
    #: the provider that Placement or the caller has chosen
    device_rp_uuid: str
    instance_uuid: str
    #: the owner from now on
    project_id: str


def create(
    session: orm.Session, ctxt: context.RequestContext, profile: str, token: str | None = None
) -> list[str]:
    """Create a request for each accelerator of the profile; returns their uuids in order.

    :param token: what an API of the release before sends; nothing follows from it.
    :raises cyborg_lite.exception.NotFound: when there is no such profile.
    :raises cyborg_lite.exception.Invalid: when the profile asks for more than MOST.
    :raises cyborg_lite.exception.OverQuota: when the project may not have so many.
    """
    return make(session, ctxt, profiles.by_name(session, profile))


def make(
    session: orm.Session,
    ctxt: context.RequestContext,
    profile: model.DeviceProfile,
    places: list[dict[str, typing.Any]] | None = None,
) -> list[str]:
    """Create a request for each accelerator of the profile; returns their uuids in order.

    All requests are created here.

    :param places: what else is noted of each request, in order: an allocation binds at once.
    :raises cyborg_lite.exception.Invalid: when the profile asks for more than MOST.
    :raises cyborg_lite.exception.OverQuota: when the project may not have so many.
    """
    # Cyborg let amounts below zero pass, and such profiles are imported.
    amounts = [max(0, sum(profiles.resources(group).values())) for group in profile.groups]
    # First: a profile may name two billion, and a list of them does not fit in memory.
    if sum(amounts) > MOST:
        raise exception.Invalid(
            reason=f'Device profile {profile.name} asks for {sum(amounts)} accelerators: expected '
            f'{MOST} at most in one request.'
        )
    groups = [number for number, amount in enumerate(amounts) for _ in range(amount)]
    if not groups:
        return []
    # Read a moment ago: a quota that is set meanwhile counts for the next one.
    if profile.limited is not False:
        quotas.claim(session, ctxt.project_id or '', quotas.asked(profile.groups, amounts))
    uuids = [str(uuidlib.uuid4()) for _ in groups]
    rows = [
        {
            'uuid': uuid,
            'device_profile_id': profile.id,
            'device_profile_group_id': group,
            'project_id': ctxt.project_id,
            **place,
        }
        for uuid, group, place in zip(uuids, groups, places or [{}] * len(groups), strict=True)
    ]
    session.execute(sa.insert(model.ARQ), rows)
    return uuids


def bind(
    session: orm.Session,
    ctxt: context.RequestContext,
    wishes: list[Wish],
    seen: Seen = None,
    vouched: dict[str, list[str]] | None = None,
) -> None:
    """Give each request a free accelerator of its provider: all of them or none.

    :param vouched: by provider, traits that Placement knows of it and we do not.
    :raises cyborg_lite.exception.NotFound: when a request does not exist for the caller.
    :raises cyborg_lite.exception.Conflict: when a request is not in a state to be bound.
    :raises cyborg_lite.exception.Invalid: when an instance has requests already, or is wished to be
        in two places, or when a provider is not of the host that is named.
    :raises cyborg_lite.exception.CannotBind: when a provider has not what is wished.
    :raises cyborg_lite.exception.OverQuota: when a project may not have what another one gives it.
    """
    fitness.refuse_scattered(wishes)
    rp_uuids = {wish['device_rp_uuid'] for wish in wishes}
    of_providers = hosts.OF_DEPLOYABLES.where(model.Deployable.rp_uuid.in_(rp_uuids))
    ours = hosts.lock(session, of_providers)
    arqs = _load_free(session, ctxt, wishes, seen)
    if not arqs:
        return
    providers = _providers(session, rp_uuids, ours)
    for wish in wishes:
        provider = providers.get(wish['device_rp_uuid'])
        more = (vouched or {}).get(wish['device_rp_uuid'], ())
        fitness.check(wish, provider, arqs[wish['uuid']], more)
    quotas.claim_moved(
        session,
        [
            (wish['project_id'], providers[wish['device_rp_uuid']].resource_class or '')
            for wish in wishes
            if wish['project_id'] != arqs[wish['uuid']].project_id
        ],
    )
    affected = _take(session, ctxt, wishes, arqs, providers)
    outbox.put_all(session, hosts.changed(affected) | _events(wishes, 'completed'))


def _take(
    session: orm.Session,
    ctxt: context.RequestContext,
    wishes: list[Wish],
    arqs: dict[str, model.ARQ],
    providers: dict[str, model.Deployable],
) -> set[str]:
    """Bind each request; returns the hosts where that excludes what is free."""
    by_place = collections.defaultdict(list)
    for wish in wishes:
        by_place[wish['device_rp_uuid'], wish['instance_uuid']].append(wish)
    ordinals: dict[str, int] = collections.Counter()
    affected, now = set(), timeutils.utcnow()
    for (rp_uuid, instance), together in by_place.items():
        provider, rows = providers[rp_uuid], {}
        handles = _free_handles(session, provider, together)
        for wish, handle in zip(together, handles, strict=True):
            arq, place = arqs[wish['uuid']], _place(wish)
            shown = place | {'accelerator_uuid': handle.uuid}
            moves = arq.moved('Bound', None, ctxt.request_id, now, **shown)
            held = holding.given(handle.id, provider.resource_class, now)
            rows[arq.id] = place | held | {'moves': moves, 'ordinal': ordinals[instance]}
            ordinals[instance] += 1
            if handle.excludes:
                affected.add(provider.device.hostname)
        uuids = [wish['uuid'] for wish in together]
        free = _unmoved([arqs[uuid] for uuid in uuids])
        if _move(session, uuids, 'Bound', free, updated_at=now, **_each(rows)) != len(uuids):
            raise _changed(*uuids)
    return affected


def fail(
    session: orm.Session,
    ctxt: context.RequestContext,
    wishes: list[Wish],
    seen: Seen = None,
    reason: str | None = None,
) -> None:
    """Note that these requests could not be bound, why, and where they should have been.

    A request that another call has bound meanwhile stays bound, and Nova gets no message for it.
    """
    found = _load(session, ctxt, [wish['uuid'] for wish in wishes], orm.undefer(model.ARQ.moves))
    arqs = {arq.uuid: arq for arq in found if not _has_moved(arq, seen)}
    failed = []
    for wish in wishes:
        arq, place = arqs.get(wish['uuid']), _place(wish)
        if arq is None:
            continue
        moves = arq.moved('BindFailed', reason, ctxt.request_id, **place)
        since = model.ARQ.revision == arq.revision
        if _move(session, [arq.uuid], 'BindFailed', since, moves=moves, **place):
            failed.append(wish)
    outbox.put_all(session, _events(failed, 'failed'))


def _events(wishes: list[Wish], status: str) -> dict[str, dict[str, model.Facts]]:
    """The messages that are sent to Nova, one for each instance."""
    events: dict[str, model.Facts] = collections.defaultdict(dict)
    for wish in wishes:
        events[wish['instance_uuid']][wish['uuid']] = status
    return {outbox.EVENT: dict(events)}


def unbind(
    session: orm.Session, ctxt: context.RequestContext, uuids: list[str], seen: Seen = None
) -> None:
    """Free what these requests hold; a request that holds nothing does not change.

    :raises cyborg_lite.exception.NotFound: when a request does not exist for the caller.
    :raises cyborg_lite.exception.Conflict: when a request holds what the caller has not seen.
    """
    arqs = _load(session, ctxt, uuids, orm.undefer(model.ARQ.moves))
    _refuse_missing(uuids, {arq.uuid for arq in arqs})
    _refuse_allocated(arqs)
    _refuse_moved([arq for arq in arqs if arq.attach_handle_id is not None], seen)
    freed = holding.excluding(session, arqs)
    owners.remember(session, ctxt, arqs)
    bound, now = [arq for arq in arqs if not _has_moved(arq, seen)], timeutils.utcnow()
    moves = {arq.id: {'moves': arq.moved('Unbound', None, ctxt.request_id, now)} for arq in bound}
    move = _to(
        'Unbound',
        [arq.uuid for arq in bound],
        _unmoved(bound),
        hostname=None,
        device_rp_uuid=None,
        instance_uuid=None,
        ordinal=None,
        **_each(moves),
    )
    moved = holding.end(session, move.values(holding.NOTHING), bound, now)
    if moved != sum(arq.state in SOURCES['Unbound'] for arq in bound):
        raise orm_exception.StaleDataError
    queue.freed(session, arqs, freed)


def delete(
    session: orm.Session, ctxt: context.RequestContext, uuids: list[str], seen: Seen = None
) -> list[str]:
    """Delete these requests and free what they hold; returns the uuids that do not exist.

    :param seen: the revisions that were checked, for a caller that may not delete held requests.
    :raises cyborg_lite.exception.Conflict: when a request has moved since; none is deleted then.
    """
    arqs = _load(session, ctxt, uuids)
    _refuse_allocated(arqs)
    _refuse_moved(arqs, seen)
    found = {arq.uuid for arq in arqs}
    freed = holding.excluding(session, arqs)
    owners.remember(session, ctxt, arqs)
    _delete(session, arqs)
    queue.freed(session, arqs, freed)
    return [uuid for uuid in uuids if uuid not in found]


def delete_of(
    session: orm.Session, ctxt: context.RequestContext, instance: str, seen: Seen = None
) -> None:
    """Delete the requests of an instance."""
    of = [model.ARQ.instance_uuid == instance, model.ARQ.visible(ctxt.scope, ctxt.vouched)]
    if seen is not None:
        # Those that the instance has been given since are others.
        of.append(model.ARQ.uuid.in_(seen))
    locked = sa.select(model.ARQ).where(*of).options(orm.lazyload('*'))
    arqs = list(session.scalars(locked.order_by(model.ARQ.id).with_for_update()))
    freed = holding.excluding(session, arqs)
    owners.remember(session, ctxt, arqs)
    _delete(session, arqs)
    queue.freed(session, arqs, freed)


def _delete(session: orm.Session, arqs: list[model.ARQ]) -> None:
    """Delete these as they were read.

    :raises sqlalchemy.orm.exc.StaleDataError: when one has moved since: the call is tried again.
    """
    if not arqs:
        return
    gone = sa.delete(model.ARQ).where(model.ARQ.id.in_([arq.id for arq in arqs]), _unmoved(arqs))
    if holding.end(session, gone, arqs) != len(arqs):
        raise orm_exception.StaleDataError


def _each(rows: dict[int, dict[str, typing.Any]]) -> dict[str, typing.Any]:
    """What to set of requests, by their ids: for one statement that changes all of them."""
    names = next(iter(rows.values()), {})
    return {name: _values(name, {id: row[name] for id, row in rows.items()}) for name in names}


def _values(name: str, known: dict[int, typing.Any]) -> typing.Any:
    first, *more = known.values()
    if all(value == first for value in more):
        return first
    kind = sa.inspect(model.ARQ).columns[name].type
    texts = {id: sa.literal(value, kind) for id, value in known.items()}
    return sa.case(texts, value=model.ARQ.id)


def _unmoved(arqs: list[model.ARQ]) -> sa.ColumnElement[bool]:
    """That requests have not moved since they were read, should the lock on them be lost."""
    return sa.tuple_(model.ARQ.id, model.ARQ.revision).in_([(arq.id, arq.revision) for arq in arqs])


def _visible(ctxt: context.RequestContext, uuids: list[str]) -> sa.ColumnElement[bool]:
    """That a request is one of these, and the caller may see it."""
    return sa.and_(model.ARQ.uuid.in_(uuids), model.ARQ.visible(ctxt.scope, ctxt.vouched))


def _load_free(
    session: orm.Session, ctxt: context.RequestContext, wishes: list[Wish], seen: Seen
) -> dict[str, model.ARQ]:
    """The requests that are wished to be bound, by uuid: each may be, and its instance has none.

    They are not locked: the bind checks the revision of each.  If this call is a retry that has
    bound them already, none are left.
    """
    uuids = [wish['uuid'] for wish in wishes]
    instances = {wish['instance_uuid'] for wish in wishes}
    visible = _visible(ctxt, uuids)
    # Both questions are of the same table.
    query = (
        sa.select(model.ARQ, visible)
        .where(sa.or_(visible, model.ARQ.instance_uuid.in_(instances)))
        .options(orm.undefer(model.ARQ.moves))
    )
    rows = session.execute(query).all()
    arqs = {arq.uuid: arq for arq, ours in rows if ours}
    _refuse_missing(uuids, arqs)
    _refuse_allocated(arqs.values())
    if all(_is_done(arqs[wish['uuid']], wish, seen) for wish in wishes):
        return {}
    _refuse_moved(arqs.values(), seen)
    for arq in arqs.values():
        if arq.state not in SOURCES['BindStarted']:
            raise exception.Conflict(
                reason=f'ARQ {arq.uuid} is {arq.state}: unbind it before it is bound again, with '
                f'"openstack accelerator unbind {arq.uuid}".'
            )
    for arq, _ in rows:
        if arq.instance_uuid in instances:
            raise exception.Invalid(
                reason=f'Instance {arq.instance_uuid} already has accelerator requests: '
                f'"openstack accelerator list --instance {arq.instance_uuid}" shows them.'
            )
    return arqs


def _is_done(arq: model.ARQ, wish: Wish, seen: Seen) -> bool:
    """Whether a request is bound as is wished, and has not moved otherwise since it was seen."""
    if seen is None or arq.revision != seen.get(arq.uuid, 0) + 1 or arq.state != 'Bound':
        return False
    return all(getattr(arq, name) == value for name, value in _place(wish).items())


def _load(
    session: orm.Session, ctxt: context.RequestContext, uuids: list[str], *options: typing.Any
) -> list[model.ARQ]:
    """Those of these requests that there are, locked."""
    # MariaDB locks whatever is joined, and a profile is of many requests.
    query = sa.select(model.ARQ).where(_visible(ctxt, uuids)).options(orm.lazyload('*'), *options)
    return list(session.scalars(query.order_by(model.ARQ.id).with_for_update()))


def _refuse_missing(uuids: list[str], found: collections.abc.Container[str]) -> None:
    missing = sorted(uuid for uuid in uuids if uuid not in found)
    if missing:
        raise exception.NotFound(what='ARQ', id=', '.join(missing))


def _refuse_allocated(arqs: collections.abc.Iterable[model.ARQ]) -> None:
    """What an allocation holds goes with the allocation, all at once."""
    for arq in arqs:
        if arq.allocation_uuid is not None:
            raise exception.HeldByAllocation(uuid=arq.uuid, allocation=arq.allocation_uuid)


def _refuse_moved(arqs: collections.abc.Iterable[model.ARQ], seen: Seen) -> None:
    moved = [arq.uuid for arq in arqs if _has_moved(arq, seen)]
    if moved:
        raise _changed(*moved)


def _has_moved(arq: model.ARQ, seen: Seen) -> bool:
    """Whether a request has moved since the caller saw it."""
    return seen is not None and seen.get(arq.uuid) != arq.revision


def _changed(*uuids: str) -> exception.CyborgError:
    return exception.Conflict(reason=f'ARQ {", ".join(uuids)} changed meanwhile: try again.')


def _providers(
    session: orm.Session, rp_uuids: collections.abc.Iterable[str], hosts: list[str]
) -> dict[str, model.Deployable]:
    """The providers on hosts that are locked: a provider of another host may change."""
    query = (
        sa.select(model.Deployable)
        .where(
            model.Deployable.rp_uuid.in_(rp_uuids),
            model.Deployable.device.has(model.Device.hostname.in_(hosts)),
        )
        .options(
            orm.joinedload(model.Deployable.device).joinedload(model.Device.host),
            orm.joinedload(model.Deployable.attributes),
        )
    )
    return {row.rp_uuid: row for row in session.scalars(query).unique()}


def _free_handles(
    session: orm.Session, provider: model.Deployable, wishes: list[Wish]
) -> list[typing.Any]:
    """A free handle for each wish of an instance: its ids, and whether it excludes others."""
    instance, project, wanted = wishes[0]['instance_uuid'], wishes[0]['project_id'], len(wishes)
    excludes = exclusion.excludes(provider.device.hostname).label('excludes')
    query = (
        sa.select(model.AttachHandle.id, model.AttachHandle.uuid, model.AttachHandle.form, excludes)
        .where(
            model.AttachHandle.deployable_id == provider.id,
            ~model.AttachHandle.lost,
            ~sa.exists().where(model.ARQ.attach_handle_id == model.AttachHandle.id),
            *exclusion.free(provider, instance),
        )
        .order_by(model.AttachHandle.id)
    )
    handles = list(session.execute(query.limit(wanted)))
    if len({handle.form for handle in handles}) > 1:
        # Accelerators that are bound together must have one form.
        handles = _of_one_form(list(session.execute(query)), wanted)
    if len(handles) < wanted:
        reason = exclusion.reason(session, provider, instance)
        if reason:
            raise exception.ProviderUnfit(provider=provider.rp_uuid, reason=reason)
        raise fitness.exhausted(session, provider, project, len(handles), wanted)
    return handles


def _of_one_form(handles: list[typing.Any], wanted: int) -> list[typing.Any]:
    """As many handles as are wanted, of the first form that has them, or of that which has most."""
    by_form = collections.defaultdict(list)
    for handle in handles:
        by_form[handle.form].append(handle)
    enough = (group for group in by_form.values() if len(group) >= wanted)
    return next(enough, max(by_form.values(), key=len))[:wanted]


def _place(wish: Wish) -> dict[str, typing.Any]:
    return {name: value for name, value in wish.items() if name != 'uuid'}


def _move(
    session: orm.Session,
    uuids: list[str],
    state: str,
    *conditions: sa.ColumnElement[bool],
    **values: typing.Any,
) -> int:
    """Bring into a state those requests that it may come from; returns how many."""
    return queries.matched(session, _to(state, uuids, *conditions, **values))


def _to(
    state: str, uuids: list[str], *conditions: sa.ColumnElement[bool], **values: typing.Any
) -> sa.Update:
    """What brings into a state those requests that it may come from."""
    return (
        sa.update(model.ARQ)
        .where(model.ARQ.uuid.in_(uuids), model.ARQ.state.in_(SOURCES[state]), *conditions)
        .values(state=state, revision=model.ARQ.revision + 1, **values)
    )

# SPDX-License-Identifier: Apache-2.0
"""Accelerator requests: create, bind, unbind, delete.

A request holds an accelerator if and only if it links to its handle, and the link is unique:
the database refuses to give a handle twice.  A state moves by one UPDATE that names the states
it may come from, and that says by its row count whether it moved.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
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
from cyborg_lite.db import arqs as arqs_
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

#: By uuid, the revisions of requests that a caller saw; None if they are not given.
Seen = dict[str, int] | None

_HOSTS = hosts.OF_DEPLOYABLES.where(arqs_.OF_PROVIDERS)
_CREATE = sa.insert(model.ARQ)
_DELETE = holding.Ending(sa.delete(model.ARQ).where(arqs_.UNMOVED))


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
    if quotas.may_be(session, profile.limited is not False):
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
    queries.run(session, _CREATE, rows)
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
    rp_uuids = sorted({wish['device_rp_uuid'] for wish in wishes})
    # A provider of a host that is not locked may change.
    ours = hosts.lock(session, _HOSTS, providers=rp_uuids)
    arqs = _load_free(session, ctxt, wishes, seen)
    if not arqs:
        return
    providers = arqs_.providers(session, rp_uuids, ours)
    for wish in wishes:
        provider = providers.get(wish['device_rp_uuid'])
        more = (vouched or {}).get(wish['device_rp_uuid'], ())
        fitness.check(wish, provider, arqs[wish['uuid']], more)
    moved = [
        (wish['project_id'], providers[wish['device_rp_uuid']].resource_class or '')
        for wish in wishes
        if wish['project_id'] != arqs[wish['uuid']].project_id
    ]
    quotas.claim_moved(session, moved)
    affected = _take(session, ctxt, wishes, arqs, providers)
    if moved:
        # Their former projects may have more now.
        queue.wake(session)
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
        mine = [arqs[wish['uuid']] for wish in together]
        if _move(session, mine, 'Bound', updated_at=now, **_each(rows)) != len(mine):
            raise _changed(*(arq.uuid for arq in mine))
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
    found = arqs_.locked(session, _sight(ctxt), [wish['uuid'] for wish in wishes], moves=True)
    arqs = {arq.uuid: arq for arq in found if not _has_moved(arq, seen)}
    failed = []
    for wish in wishes:
        arq, place = arqs.get(wish['uuid']), _place(wish)
        if arq is None:
            continue
        moves = arq.moved('BindFailed', reason, ctxt.request_id, **place)
        if _move(session, [arq], 'BindFailed', moves=moves, **place):
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
    arqs = arqs_.locked(session, _sight(ctxt), uuids, moves=True)
    _refuse_missing(uuids, {arq.uuid for arq in arqs})
    _refuse_allocated(arqs)
    _refuse_moved([arq for arq in arqs if arq.attach_handle_id is not None], seen)
    freed = holding.excluding(session, arqs)
    owners.remember(session, ctxt, arqs)
    bound, now = [arq for arq in arqs if not _has_moved(arq, seen)], timeutils.utcnow()
    moves = {arq.id: {'moves': arq.moved('Unbound', None, ctxt.request_id, now)} for arq in bound}
    place = dict.fromkeys(('hostname', 'device_rp_uuid', 'instance_uuid', 'ordinal'))
    move = _to('Unbound').values(**place, **holding.NOTHING, **_each(moves))
    moved = holding.Ending(move).execute(session, arqs_.read(bound), bound, now)
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
    arqs = arqs_.locked(session, _sight(ctxt), uuids)
    _refuse_allocated(arqs)
    _refuse_moved(arqs, seen)
    found = {arq.uuid for arq in arqs}
    freed = holding.excluding(session, arqs)
    owners.remember(session, ctxt, arqs)
    _delete(session, arqs)
    queue.freed(session, arqs, freed, deleted=True)
    return [uuid for uuid in uuids if uuid not in found]


def delete_of(
    session: orm.Session, ctxt: context.RequestContext, instance: str, seen: Seen = None
) -> None:
    """Delete the requests of an instance."""
    # Those that the instance has been given since it was seen are others.
    arqs = arqs_.locked_of(session, _sight(ctxt), instance, seen)
    freed = holding.excluding(session, arqs)
    owners.remember(session, ctxt, arqs)
    _delete(session, arqs)
    queue.freed(session, arqs, freed, deleted=True)


def _delete(session: orm.Session, arqs: list[model.ARQ]) -> None:
    """Delete these as they were read.

    :raises sqlalchemy.orm.exc.StaleDataError: when one has moved since: the call is tried again.
    """
    if not arqs:
        return
    if _DELETE.execute(session, arqs_.read(arqs), arqs) != len(arqs):
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


def _sight(ctxt: context.RequestContext) -> arqs_.Sight:
    return arqs_.Sight(ctxt.scope, ctxt.vouched)


def _load_free(
    session: orm.Session, ctxt: context.RequestContext, wishes: list[Wish], seen: Seen
) -> dict[str, model.ARQ]:
    """The requests that are wished to be bound, by uuid: each may be, and its instance has none.

    They are not locked: the bind checks the revision of each.  If this call is a retry that has
    bound them already, none are left.
    """
    uuids = [wish['uuid'] for wish in wishes]
    instances = {wish['instance_uuid'] for wish in wishes}
    rows = arqs_.to_bind(session, _sight(ctxt), uuids, instances)
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


def _free_handles(
    session: orm.Session, provider: model.Deployable, wishes: list[Wish]
) -> list[typing.Any]:
    """A free handle for each wish of an instance: its ids, and whether it excludes others."""
    instance, project, wanted = wishes[0]['instance_uuid'], wishes[0]['project_id'], len(wishes)
    handles = arqs_.free_handles(session, provider, instance, wanted)
    if len({handle.form for handle in handles}) > 1:
        # Accelerators that are bound together must have one form.
        handles = _of_one_form(arqs_.free_handles(session, provider, instance), wanted)
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


def _move(session: orm.Session, arqs: list[model.ARQ], state: str, **values: typing.Any) -> int:
    """Bring into a state those of these requests that it may come from, and that have not moved
    since they were read; returns how many.
    """
    known = {name: new for name, new in values.items() if not isinstance(new, sa.ColumnElement)}
    move = _changing(state, frozenset(known))
    if len(known) < len(values):
        move = move.values({name: values[name] for name in values.keys() - known.keys()})
    parameters = {f'new_{name}': new for name, new in known.items()}
    return queries.matched(session, move, arqs_.read(arqs) | parameters)


@functools.cache
def _changing(state: str, names: frozenset[str]) -> sa.Update:
    """What brings requests into a state, and sets these columns by parameters."""
    return _to(state).values({name: sa.bindparam(f'new_{name}') for name in sorted(names)})


def _to(state: str) -> sa.Update:
    return (
        sa.update(model.ARQ)
        .where(arqs_.UNMOVED, model.ARQ.state.in_(SOURCES[state]))
        .values(state=state, revision=model.ARQ.revision + 1)
    )

# SPDX-License-Identifier: Apache-2.0
"""Allocations: place accelerators and bind them together, renew, release, and explain.

An allocation is a set of ordinary requests that are created bound, in one transaction: all or
none.  The database refuses to give a handle twice, here as everywhere.
"""

from __future__ import annotations

import hashlib
import typing
import uuid as uuidlib

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import backfill
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import queue
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import taking
from cyborg_lite.db import candidates
from cyborg_lite.model import base

#: How many free accelerators a choice looks at first; at all of them where these do not do.
WINDOW = 256


class Request(typing.TypedDict):
    """What a client asks for, in the form that the API has checked."""

    #: the device profile by its name or uuid; None if groups are given
    profile: str | None
    #: lists of groups as device profiles have them, in the order in which they are wanted, after
    #: the profile if there is one
    alternatives: list[taking.Groups]
    same_host: bool
    #: ``prefer`` or ``require``
    same_numa: str
    #: ``prefer``, also if it is absent, or ``require``
    link: typing.NotRequired[str]
    #: the only hosts to choose from; None for all
    hosts: list[str] | None
    name: typing.NotRequired[str | None]
    claimed_name: typing.NotRequired[str]
    note: typing.NotRequired[str]
    consumer: typing.NotRequired[dict[str, str] | None]
    lease: typing.NotRequired[int | None]
    #: the idempotency key; None if there is none
    key: typing.NotRequired[str | None]
    #: whether it waits where nothing is free, and its priority then
    queue: typing.NotRequired[bool]
    priority: typing.NotRequired[int]
    #: when its reservation starts, in ISO 8601 and UTC; absent if it is none: see reserving
    starts_at: typing.NotRequired[str]
    #: whether it is refused, and not queued, if it could not be served even if all were free
    possible: typing.NotRequired[bool]


def create(
    session: orm.Session,
    ctxt: context.RequestContext,
    request: Request,
    policy: str,
    uuid: str | None = None,
) -> tuple[str, list[str]]:
    """Allocate all accelerators of a request, or none, or queue the request.

    :param policy: the name of the placing policy.
    :param uuid: that of the new allocation; by default it is made here.
    :returns: the uuid of the allocation, and the providers that must be sent to Placement before
        the answer.
    :raises cyborg_lite.exception.NotFound: when there is no such device profile.
    :raises cyborg_lite.exception.Duplicate: when an active allocation of the project has the name.
    :raises cyborg_lite.exception.KeyReused: when another request had the idempotency key.
    :raises cyborg_lite.exception.CannotAllocate: when too few fit and are free, with the reasons.
    :raises cyborg_lite.exception.OverQuota: when it exceeds the quota of the project; if it
        may be queued, when it exceeds the limit itself.
    :raises cyborg_lite.exception.Conflict: when too many of the project are queued already.
    """
    digest = hashlib.sha256(base.as_text(request).encode()).hexdigest()
    if same := _earlier(session, ctxt, request, digest):
        return same, []
    wanted, kinds = _wanted(session, request)
    rank = placing.policy(policy)
    choice = _choose(session, wanted, kinds, request['hosts'], rank)
    uuid = uuid or str(uuidlib.uuid4())
    if choice.found is None:
        explanation = _explain(session, wanted, request, choice)
        could = any(each['fits_if_all_were_free'] for each in explanation['alternatives'])
        if not request.get('queue') or (request.get('possible') and not could):
            raise exception.CannotAllocate(reason=_said(explanation), explanation=explanation)
        reason = f'It waits: {_said(explanation)}.'
    else:
        number, found = choice.found
        profile = wanted.profiles[number]
        found = taking.confirm(session, kinds, wanted.sets[number], found, rank, choice.allowed)
        try:
            taken = taking.take(session, ctxt, uuid, profile, found, after=outbox.TELL)
        except exception.OverQuota as error:
            if not request.get('queue'):
                raise
            reason = error.message
        else:
            row = _row(ctxt, uuid, request, profile, digest)
            row['lease_ends_at'] = taking.end(row['lease']) if row['lease'] else None
            held = {'state': 'active', 'accelerators': taken.accelerators}
            session.execute(sa.insert(model.Allocation), [row | held])
            return uuid, sorted(taken.providers)
    row = _row(ctxt, uuid, request, wanted.profiles[0], digest) | {'cause': reason[:255]}
    serving.join(session, ctxt, _wish(ctxt, request, wanted), row, choice.found is not None)
    queue.joined(session)
    return uuid, []


def check(
    session: orm.Session, ctxt: context.RequestContext, request: Request, policy: str
) -> reasons.Explanation:
    """Whether what is asked for could be allocated now, and what keeps accelerators from it.

    :raises cyborg_lite.exception.NotFound: when there is no such device profile.
    """
    wanted, kinds = _wanted(session, request)
    choice = _choose(session, wanted, kinds, request['hosts'], placing.policy(policy))
    return _explain(session, wanted, request, choice)


def _explain(
    session: orm.Session, wanted: reasons.Wanted, request: Request, choice: Choice
) -> reasons.Explanation:
    chosen = choice.found and choice.found[0]
    explanation = reasons.explain(session, wanted, request['hosts'], chosen)
    if chosen is None and choice.ahead:
        for each in explanation['alternatives']:
            each['reason'] += f', and {choice.ahead} allocations wait for what is free'
    return explanation


def _said(explanation: reasons.Explanation) -> str:
    return '; or '.join(each['reason'] or '' for each in explanation['alternatives'])


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


def _wanted(session: orm.Session, request: Request) -> tuple[reasons.Wanted, taking.Kinds]:
    """What is wanted, alternative by alternative, and the kinds of accelerators."""
    rows: list[model.DeviceProfile] = []
    if request['profile'] is not None:
        rows.append(profiles.find(session, request['profile']))
    rows += [model.DeviceProfile(groups=groups, private=True) for groups in request['alternatives']]
    kinds: taking.Kinds = {}
    alternatives = [row.groups for row in rows]
    together = request['same_host'], request['same_numa'], request.get('link', 'prefer')
    sets = taking.sets(alternatives, *together, kinds)
    return reasons.Wanted(rows, list(kinds), sets), kinds


class Choice(typing.NamedTuple):
    """What an allocation could have."""

    #: the first alternative that can be had, by its number, and its accelerators
    found: tuple[int, placing.Chosen] | None
    #: the handles that it may choose from; None for all
    allowed: frozenset[int] | None = None
    #: how many wait for accelerators of the same classes
    ahead: int = 0


def _choose(
    session: orm.Session,
    wanted: reasons.Wanted,
    kinds: taking.Kinds,
    of_hosts: candidates.Hosts,
    rank: placing.Rank,
) -> Choice:
    """Choose among the free accelerators that no queued allocation can use."""
    window = WINDOW + 8 * max(len(each.kinds) for each in wanted.sets)
    free = taking.free(session, kinds, of_hosts, window)
    found = backfill.first(free, wanted.sets, rank)
    if len(free) == window and (found is None or found[0] > 0):
        # The first alternative may be further on.
        found = backfill.first(taking.free(session, kinds, of_hosts), wanted.sets, rank)
    if found is None:
        return Choice(None)
    ahead = serving.ahead(session, kinds)
    if not ahead:
        return Choice(found)
    left: list[placing.Candidate] = []
    reserved: set[int] = set()
    for part in serving.parts(ahead, kinds, serving.refusals(session, ahead)):
        free = taking.free(session, part.kinds, of_hosts)
        capacity = serving.capacity(session, part)
        left = backfill.unreserved(part.entries, free, capacity, reserved)
    allowed = frozenset(each.handle for each in left)
    return Choice(backfill.first(left, wanted.sets, rank), allowed, len(ahead))


def _wish(ctxt: context.RequestContext, request: Request, wanted: reasons.Wanted) -> serving.Wish:
    named = request['profile'] is not None
    return {
        'profile': wanted.profiles[0].uuid if named else None,
        'alternatives': [profile.groups for profile in wanted.profiles],
        'same_host': request['same_host'],
        'same_numa': request['same_numa'],
        'link': request.get('link', 'prefer'),
        'hosts': request['hosts'],
        'request_id': ctxt.request_id,
    }


def _row(
    ctxt: context.RequestContext,
    uuid: str,
    request: Request,
    profile: model.DeviceProfile,
    digest: str,
) -> dict[str, typing.Any]:
    """The columns of an allocation that do not depend on its state."""
    name, consumer = request.get('name'), request.get('consumer') or {}
    return {
        'uuid': uuid,
        'name': name,
        'active_name': name,
        'project_id': ctxt.project_id,
        'user_name': ctxt.user[:255] if ctxt.user else None,
        **{field: request.get(field) for field in model.Allocation.LABELS},
        'profile': None if profile.private else profile.name,
        'groups': [reasons.shown(group) for group in profile.groups],
        'consumer_type': consumer.get('type'),
        'consumer_id': consumer.get('id'),
        'priority': request.get('priority', 0),
        'lease': request.get('lease'),
        'idempotency_key': request.get('key'),
        'digest': digest,
    }

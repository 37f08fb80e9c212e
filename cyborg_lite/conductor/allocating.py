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
from cyborg_lite.conductor import choosing
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import queue
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import taking
from cyborg_lite.model import base


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
    digest = digest_of(request)
    if same := earlier(session, ctxt, request, digest):
        return same, []
    wanted, kinds = wanted_of(session, request)
    rank, lease = placing.policy(policy), request.get('lease')
    uuid = uuid or str(uuidlib.uuid4())
    project = ctxt.project_id or ''
    chooser = choosing.Chooser(session, project, wanted, kinds, request['hosts'], lease, rank)
    while found := (choice := chooser.choose()).found:
        number, chosen = found
        profile = wanted.profiles[number]
        of_set = wanted.sets[number], chosen, rank, lease, choice.allowed, choice.cut
        shown = taking.confirm(session, kinds, project, *of_set)
        try:
            noted = outbox.TELL, choice.counted
            taken = taking.take(session, ctxt, uuid, profile, shown, *noted)
        except exception.OverQuota as error:
            # It was exceeded meanwhile. Another alternative may be within it.
            chooser.over[number] = error
        else:
            store(session, row_of(ctxt, uuid, request, profile, digest), taken)
            return uuid, sorted(taken.providers)
    reason = _refusal(session, ctxt, wanted, request, choice, chooser)
    row = row_of(ctxt, uuid, request, wanted.profiles[0], digest) | {'cause': reason[:255]}
    over_quota = len(chooser.over) == len(wanted.sets)
    serving.join(session, ctxt, wish_of(ctxt, request, wanted), row, over_quota)
    queue.joined(session)
    return uuid, []


def store(session: orm.Session, row: dict[str, typing.Any], taken: taking.Taken) -> None:
    """Store an allocation that is active now.

    :param row: its columns: see row_of().
    """
    held = {
        'state': 'active',
        'accelerators': taken.accelerators,
        'lease_ends_at': taking.end(row['lease']) if row['lease'] else None,
    }
    session.execute(sa.insert(model.Allocation), [row | held])


def check(
    session: orm.Session, ctxt: context.RequestContext, request: Request, policy: str
) -> reasons.Explanation:
    """Whether what is asked for could be allocated now, what keeps accelerators from it, and when
    leases end that would make it fit.

    :raises cyborg_lite.exception.NotFound: when there is no such device profile.
    """
    wanted, kinds = wanted_of(session, request)
    rank, lease, project = placing.policy(policy), request.get('lease'), ctxt.project_id or ''
    chooser = choosing.Chooser(session, project, wanted, kinds, request['hosts'], lease, rank)
    choice = chooser.choose()
    explanation = _explain(session, ctxt, wanted, request, choice, chooser.over)
    _look_ahead(session, explanation, wanted, request, choice, chooser)
    return explanation


def _refusal(
    session: orm.Session,
    ctxt: context.RequestContext,
    wanted: reasons.Wanted,
    request: Request,
    choice: choosing.Choice,
    chooser: choosing.Chooser,
) -> str:
    """Why a request waits.

    :raises cyborg_lite.exception.OverQuota, cyborg_lite.exception.CannotAllocate: when it does not.
    """
    lasting = chooser.lasting() if request.get('queue') else {}
    over = lasting or chooser.over
    first = next(iter(over.values()), None)
    if first is not None and request.get('queue') and not lasting:
        return first.message
    explanation = _explain(session, ctxt, wanted, request, choice, over)
    if first is not None:
        raise exception.OverQuota(**first.kwargs, explanation=explanation)
    if not request.get('queue'):
        _look_ahead(session, explanation, wanted, request, choice, chooser)
    impossible = request.get('possible') and not reasons.could_fit(explanation)
    if impossible or not request.get('queue'):
        raise reasons.refusal(explanation)
    return f'It waits: {reasons.said(explanation)}.'


def _explain(
    session: orm.Session,
    ctxt: context.RequestContext,
    wanted: reasons.Wanted,
    request: Request,
    choice: choosing.Choice,
    over: choosing.Over,
) -> reasons.Explanation:
    chosen = choice.found and choice.found[0]
    of_hosts, lease = request['hosts'], request.get('lease')
    explanation = reasons.explain(session, wanted, of_hosts, chosen, lease, over)
    if chosen is None and choice.ahead:
        for each in explanation['alternatives']:
            each['reason'] += f', and {choice.ahead} allocations wait for what is free'
    if chosen is None and len(over) < len(wanted.sets):
        reasons.name_reservation(session, wanted, of_hosts, explanation, ctxt.project_id)
    return explanation


def _look_ahead(
    session: orm.Session,
    explanation: reasons.Explanation,
    wanted: reasons.Wanted,
    request: Request,
    choice: choosing.Choice,
    chooser: choosing.Chooser,
) -> None:
    """Say when leases end that make a refused request fit; nothing if others wait for them."""
    if reasons.could_fit(explanation) and choice.found is None and not choice.ahead:
        ending = taking.ending(session, wanted.kinds, request['hosts'])
        reasons.add_times(explanation, chooser.within, choice.free, ending)


def digest_of(request: Request) -> str:
    """The digest by which a repeated request is known."""
    return hashlib.sha256(base.as_text(request).encode()).hexdigest()


def earlier(
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


def wanted_of(session: orm.Session, request: Request) -> tuple[reasons.Wanted, taking.Kinds]:
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


def wish_of(ctxt: context.RequestContext, request: Request, wanted: reasons.Wanted) -> serving.Wish:
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


def row_of(
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
        **reasons.described(profile),
        'consumer_type': consumer.get('type'),
        'consumer_id': consumer.get('id'),
        'priority': request.get('priority', 0),
        'lease': request.get('lease'),
        'idempotency_key': request.get('key'),
        'digest': digest,
    }

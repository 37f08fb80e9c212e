# SPDX-License-Identifier: Apache-2.0
"""The queue of allocations: to join it, and to be served from it.

Each allocation is served in a transaction of its own.  Conductors may serve at the same time: the
database refuses to serve one twice, or to give a handle twice.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import itertools
import types
import typing

from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import taking
from cyborg_lite.conductor import turns
from cyborg_lite.db import candidates
from cyborg_lite.db import query
from cyborg_lite.db import queue
from cyborg_lite.model import base

LOG = log.getLogger(__name__)

#: The most allocations of one project that may wait.
MOST = 1000
#: Of how many kinds of accelerators what is free is read by one statement: each makes it longer.
#: What those wait for that come after them is read by the next.
KINDS = 64


class Wish(typing.TypedDict):
    """What an allocation waits for, as its row keeps it."""

    #: the uuid of the device profile of the first alternative; None if that was given by groups
    profile: str | None
    alternatives: list[taking.Groups]
    same_host: bool
    same_numa: str
    hosts: list[str] | None
    #: the id of the API request that asked for it
    request_id: str | None


#: By the key of a wish, for each of its alternatives the limit that it would exceed; None for none.
Refusals = collections.abc.Mapping[str, collections.abc.Sequence[exception.OverQuota | None]]


class Part(typing.NamedTuple):
    """Some of those that wait, in the order of their turns, and the kinds that they want."""

    entries: list[turns.Entry]
    kinds: taking.Kinds


def waiting(session: orm.Session) -> list[sa.Row[typing.Any]]:
    """Those that wait, in the order of their turns."""
    limited = sa.exists(sa.select(model.Quota.id)).label('limited')
    more = model.Allocation.wish, model.Allocation.lease, model.Allocation.cause, limited
    rows = queue.waiting(session, *more)
    return queue.in_turn(rows)


def ahead(session: orm.Session, kinds: taking.Kinds) -> list[sa.Row[typing.Any]]:
    """Those that wait for accelerators of these resource classes, and not for their quota."""
    classes = {kind.resource_class for kind in kinds}
    rows = waiting(session)
    return [row for row in rows if not row.over_quota and _classes(row.wish) & classes]


def refusals(
    session: orm.Session,
    rows: collections.abc.Iterable[sa.Row[typing.Any]],
    known: collections.abc.Container[str] = (),
) -> Refusals:
    """Which alternatives of these a quota refuses now: nothing that is free is kept for those.

    :param known: keys of which it is known already.
    """
    keys = {key: row for row in rows if row.limited and (key := _key(row)) not in known}
    asked = {
        key: (row.project_id, [_amounts(groups) for groups in row.wish['alternatives']])
        for key, row in keys.items()
    }
    return quotas.refusals(session, asked) if asked else {}


def parts(
    rows: collections.abc.Iterable[sa.Row[typing.Any]],
    kinds: taking.Kinds,
    refused: Refusals = types.MappingProxyType({}),
) -> collections.abc.Iterator[Part]:
    """These in parts of so few kinds that one statement reads what is free of them.

    :param kinds: those that each part has beside its own.
    :param refused: by key, which alternatives a quota refuses now.
    """
    part = Part([], dict(kinds))
    for row in rows:
        if len(part.kinds) - len(kinds) > KINDS - taking.KINDS:
            yield part
            part = Part([], dict(kinds))
        barred = refused.get(_key(row), ()) if refused else ()
        part.entries.append(_entry(row, part.kinds, barred))
    if part.entries:
        yield part


def _classes(wish: Wish) -> set[str]:
    groups = (group for groups in wish['alternatives'] for group in groups)
    return {name for group in groups for name in model.DeviceProfile.resources(group)}


def _entry(
    row: sa.Row[typing.Any],
    kinds: taking.Kinds,
    refused: collections.abc.Iterable[exception.OverQuota | None],
) -> turns.Entry:
    wish: Wish = row.wish
    sets = taking.sets(wish['alternatives'], wish['same_host'], wish['same_numa'], kinds)
    allowed = [None if no else wanted for wanted, no in itertools.zip_longest(sets, refused)]
    hosts = None if wish['hosts'] is None else frozenset(wish['hosts'])
    return turns.Entry(row.id, tuple(allowed), hosts)


def stock(session: orm.Session, kinds: taking.Kinds) -> turns.Stock:
    """All accelerators of these kinds as if all were free; they are read when they are needed."""
    named = list(kinds)
    rows = functools.cache(lambda: candidates.counted(session, named, None))
    return turns.Stock(
        lambda: reasons.amounts(rows(), named),
        lambda wanted: reasons.all_free(rows(), named, wanted),
    )


def join(
    session: orm.Session,
    ctxt: context.RequestContext,
    wish: Wish,
    row: dict[str, typing.Any],
    over_quota: bool = False,
) -> None:
    """Let an allocation wait.

    :param row: what else is known of it.
    :raises cyborg_lite.exception.Conflict: when too many of the project wait already.
    :raises cyborg_lite.exception.OverQuota: when the project may never have so many.
    """
    mine = model.Allocation.state == 'queued', model.Allocation.project_id == ctxt.project_id
    count = session.scalar(sa.select(sa.func.count(model.Allocation.id)).where(*mine))
    if (count or 0) >= MOST:
        raise exception.Conflict(
            reason=f'{count} allocations of the project wait: expected fewer than {MOST}.'
        )
    amounts = [_amounts(groups) for groups in wish['alternatives']]
    quotas.refuse_more_than_limit(session, ctxt.project_id or '', amounts)
    [(first, _), *_] = amounts[0].most_common(1)
    waits = {'state': 'queued', 'queue': first, 'amount': amounts[0].total()}
    waits |= {'wish': wish, 'over_quota': over_quota, 'accelerators': []}
    session.execute(sa.insert(model.Allocation), [row | waits])


def _amounts(groups: taking.Groups) -> collections.Counter[str]:
    """How many accelerators of each resource class groups want."""
    found: collections.Counter[str] = collections.Counter()
    for group in groups:
        found.update(model.DeviceProfile.resources(group))
    return found


def leave(session: orm.Session, allocation: model.Allocation, cause: str) -> None:
    """Let an allocation that waits wait no more.

    :raises sqlalchemy.orm.exc.StaleDataError: when it was served meanwhile: the call is tried
        again.
    """
    values = {'state': 'released', 'cause': cause, 'released_at': timeutils.utcnow()}
    _move(session, allocation.id, **values, active_name=None)


def serve(
    session: orm.Session, ctxt: context.RequestContext, policy: str, over: dict[str, str]
) -> bool:
    """Serve one of those that wait, if any can be served; returns whether to look again.

    :param policy: the name of the placing policy.
    :param over: those that their quota holds up are added to it, each wish once, with the reason.
    """
    rows = {row.id: row for row in waiting(session)}
    refused = refusals(session, rows.values(), over)
    for key, each in refused.items():
        if refusal := quotas.first_if_all(each):
            over[key] = refusal.message
    served = [row for row in rows.values() if _key(row) not in over]
    rank = placing.policy(policy)
    kept: set[int] = set()
    for part in parts(served, {}, refused):
        free = taking.free(session, part.kinds, None)
        grants = turns.grants(part.entries, free, stock(session, part.kinds), rank, kept)
        if grant := next(grants, None):
            row = rows[grant.entry.id]
            try:
                _give(session, row, grant, part.kinds, rank)
            except exception.OverQuota as error:
                over[_key(row)] = error.message
                return True
            more = len(part.entries) < len(served) or next(grants, None) is not None
            return more or bool(over) or any(each.over_quota for each in rows.values())
    _note(session, rows.values(), over)
    return False


def _key(row: sa.Row[typing.Any]) -> str:
    """What is the same of allocations that a quota holds up alike."""
    wish = {name: value for name, value in row.wish.items() if name != 'request_id'}
    return base.as_text([row.project_id, wish])


def _give(
    session: orm.Session,
    row: sa.Row[typing.Any],
    grant: turns.Grant,
    kinds: taking.Kinds,
    rank: placing.Rank,
) -> None:
    wish: Wish = row.wish
    chosen = taking.confirm(session, kinds, grant.wanted, grant.chosen, rank, grant.allowed)
    profile = _profile(session, wish, grant.number)
    owner = context.RequestContext(
        project_id=row.project_id, request_id=wish['request_id'], overwrite=False
    )
    taken = taking.take(session, owner, row.uuid, profile, chosen, limited=row.limited)
    _move(
        session,
        row.id,
        state='active',
        cause=None,
        profile=None if profile.private else profile.name,
        groups=[reasons.shown(group) for group in profile.groups],
        accelerators=taken.accelerators,
        lease_ends_at=taking.end(row.lease) if row.lease else None,
    )
    LOG.info('Allocation %s is active: it waited since %s', row.uuid, row.created_at)


def _profile(session: orm.Session, wish: Wish, number: int) -> model.DeviceProfile:
    """The device profile of an alternative; one of its own where it has gone or is changed."""
    groups = wish['alternatives'][number]
    if number == 0 and wish['profile'] is not None:
        named = sa.select(model.DeviceProfile).where(model.DeviceProfile.uuid == wish['profile'])
        profile = session.scalars(named).one_or_none()
        if profile and profile.groups == groups:
            return profile
    return model.DeviceProfile(groups=groups, private=True)


def _move(session: orm.Session, id: int, **values: typing.Any) -> None:
    """Take an allocation out of the queue, if it is still in it."""
    same = model.Allocation.id == id, model.Allocation.state == 'queued'
    gone = {'queue': None, 'amount': None, 'wish': None, 'over_quota': False}
    move = sa.update(model.Allocation).where(*same).values(**gone, **values)
    if not query.matched(session, move):
        raise orm_exception.StaleDataError


def _note(
    session: orm.Session, rows: collections.abc.Iterable[sa.Row[typing.Any]], over: dict[str, str]
) -> None:
    """Note which of these their quota holds up, and why, where that has changed."""
    changed: dict[str | None, list[int]] = collections.defaultdict(list)
    for row in rows:
        reason = over[_key(row)][:255] if _key(row) in over else None
        if row.over_quota != (reason is not None) or (reason and reason != row.cause):
            changed[reason].append(row.id)
    for reason, ids in changed.items():
        same = model.Allocation.id.in_(ids), model.Allocation.state == 'queued'
        cause = reason or 'It waits for its turn.'
        values = {'over_quota': reason is not None, 'cause': cause}
        query.matched(session, sa.update(model.Allocation).where(*same).values(**values))

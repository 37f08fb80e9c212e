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
from cyborg_lite.conductor import backfill
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import taking
from cyborg_lite.db import candidates
from cyborg_lite.db import query
from cyborg_lite.db import queue
from cyborg_lite.db import quotas as quotas_
from cyborg_lite.model import base

LOG = log.getLogger(__name__)

#: The maximum number of queued allocations of one project.
MOST = 1000
#: The maximum number of kinds whose free accelerators one statement reads: each makes it longer.
#: The next statement reads the kinds of the allocations that follow.
KINDS = 64


class Wish(typing.TypedDict):
    """The request of a queued allocation, as its row stores it."""

    #: the uuid of the device profile of the first alternative; None if that was given by groups
    profile: str | None
    alternatives: list[taking.Groups]
    same_host: bool
    same_numa: str
    #: absent if the previous release queued it
    link: typing.NotRequired[str]
    hosts: list[str] | None
    #: the id of the API request that asked for it
    request_id: str | None


#: How many hosts are named in a statement.
NAMED = 1000

#: By the key of an allocation, the limit that each of its alternatives would exceed, or None.
Refusals = collections.abc.Mapping[str, collections.abc.Sequence[exception.OverQuota | None]]


#: What is read of a queued allocation beside what decides its turn.
_READ = (
    model.Allocation.wish,
    model.Allocation.lease,
    model.Allocation.cause,
    quotas_.ANY.label('limited'),
)


class Part(typing.NamedTuple):
    """Some queued allocations, in the order of service, and the kinds that they request."""

    entries: list[backfill.Entry]
    kinds: taking.Kinds

    @property
    def hosts(self) -> candidates.Hosts:
        """The only hosts that any of them can use; None for all, and if they name too many."""
        named: set[str] = set()
        for each in self.entries:
            if each.hosts is None:
                return None
            named.update(each.hosts)
        return named if len(named) <= NAMED else None


def waiting(session: orm.Session) -> list[sa.Row[typing.Any]]:
    """The queued allocations, in the order of service."""
    return queue.in_turn(queue.waiting(session, *_READ))


def ahead(session: orm.Session, kinds: taking.Kinds) -> list[sa.Row[typing.Any]]:
    """The allocations that wait for accelerators of these resource classes, not for a quota."""
    classes = {kind.resource_class for kind in kinds}
    rows = waiting(session)
    return [row for row in rows if not row.over_quota and _classes(row.wish) & classes]


def refusals(
    session: orm.Session,
    rows: collections.abc.Iterable[sa.Row[typing.Any]],
    known: collections.abc.Container[str] = (),
    counted: quotas.Counted | None = None,
) -> Refusals:
    """The alternatives that a quota refuses now: no free accelerator is reserved for them.

    :param known: the keys whose refusals are known already.
    :param counted: as for quotas.refusals.
    """
    keys = {
        key: row
        for row in rows
        if quotas.may_be(session, row.limited) and (key := _key(row)) not in known
    }
    asked = {
        key: (row.project_id, [_amounts(groups) for groups in row.wish['alternatives']])
        for key, row in keys.items()
    }
    return quotas.refusals(session, asked, counted)


def parts(
    rows: collections.abc.Iterable[sa.Row[typing.Any]],
    kinds: taking.Kinds,
    refused: Refusals = types.MappingProxyType({}),
) -> collections.abc.Iterator[Part]:
    """Split queued allocations so that one statement reads the free accelerators of each part.

    :param kinds: the kinds that each part has beside those of its allocations.
    :param refused: by key, the alternatives that a quota refuses now.
    """
    part = Part([], dict(kinds))
    for row in rows:
        if len(part.kinds) - len(kinds) > KINDS - taking.KINDS:
            yield part
            part = Part([], dict(kinds))
        barred = refused.get(_key(row), ()) if refused else ()
        part.entries.append(entry(row, part.kinds, barred))
    if part.entries:
        yield part


def _classes(wish: Wish) -> set[str]:
    groups = (group for groups in wish['alternatives'] for group in groups)
    return {name for group in groups for name in model.DeviceProfile.resources(group)}


def entry(
    row: sa.Row[typing.Any],
    kinds: taking.Kinds,
    refused: collections.abc.Iterable[exception.OverQuota | None] = (),
) -> backfill.Entry:
    """The entry of an allocation by its request.

    :param kinds: those of its accelerators are added to it.
    :param refused: for each alternative the limit that it would exceed, or None.
    """
    wish: Wish = row.wish
    together = wish['same_host'], wish['same_numa'], wish.get('link', 'prefer')
    sets = taking.sets(wish['alternatives'], *together, kinds)
    allowed = [None if no else wanted for wanted, no in itertools.zip_longest(sets, refused)]
    hosts = None if wish['hosts'] is None else frozenset(wish['hosts'])
    return backfill.Entry(row.id, tuple(allowed), hosts, row.lease)


def capacity(session: orm.Session, part: Part) -> backfill.Capacity:
    """All accelerators of the kinds of a part, free or held; they are read at their first use."""
    named = list(part.kinds)
    linked = any(wanted and wanted.linked for each in part.entries for wanted in each.sets)
    rows = functools.cache(lambda: candidates.counted(session, named, None, by_device=linked))
    return backfill.Capacity(
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
    """Add an allocation to the queue.

    :param row: its other columns.
    :raises cyborg_lite.exception.Conflict: when too many allocations of the project are queued.
    """
    mine = model.Allocation.state == 'queued', model.Allocation.project_id == ctxt.project_id
    count = session.scalar(sa.select(sa.func.count(model.Allocation.id)).where(*mine))
    if (count or 0) >= MOST:
        raise exception.Conflict(
            reason=f'{count} allocations of the project wait: expected fewer than {MOST}.'
        )
    amounts = [_amounts(groups) for groups in wish['alternatives']]
    [(first, _), *_] = amounts[0].most_common(1)
    waits = {'state': 'queued', 'queue': first, 'amount': amounts[0].total()}
    waits |= {'wish': wish, 'over_quota': over_quota, 'accelerators': []}
    session.execute(sa.insert(model.Allocation), [row | waits])


def _amounts(groups: taking.Groups) -> collections.Counter[str]:
    """The number of accelerators that groups request, by resource class."""
    found: collections.Counter[str] = collections.Counter()
    for group in groups:
        found.update(model.DeviceProfile.resources(group))
    return found


def leave(session: orm.Session, allocation: model.Allocation, cause: str) -> None:
    """Take an allocation out of the queue without serving it.

    :raises sqlalchemy.orm.exc.StaleDataError: when it was served meanwhile: the call is retried.
    """
    values = {'state': 'released', 'cause': cause, 'released_at': timeutils.utcnow()}
    _move(session, allocation.id, **values, active_name=None)


def serve(
    session: orm.Session, ctxt: context.RequestContext, policy: str, over: dict[str, str]
) -> bool:
    """Serve one queued allocation, if any can be served; returns whether to look again.

    :param policy: the name of the placing policy.
    :param over: the reason by key for each allocation that a quota holds up; this adds to it.
    """
    rows = {row.id: row for row in waiting(session)}
    refused = refusals(session, rows.values(), over)
    for key, each in refused.items():
        if refusal := quotas.first_if_all(each):
            over[key] = refusal.message
    served = [row for row in rows.values() if _key(row) not in over]
    rank = placing.policy(policy)
    reserved: set[int] = set()
    for part in parts(served, {}, refused):
        free = taking.free(session, part.kinds, part.hosts)
        grants = backfill.grants(part.entries, free, capacity(session, part), rank, reserved)
        if grant := next(grants, None):
            row = rows[grant.entry.id]
            try:
                _give(session, row, grant, part.kinds, rank, _key(row) in refused)
            except exception.OverQuota as error:
                over[_key(row)] = error.message
                return True
            more = len(part.entries) < len(served) or next(grants, None) is not None
            return more or bool(over) or any(each.over_quota for each in rows.values())
    _note(session, rows.values(), over)
    return False


def _key(row: sa.Row[typing.Any]) -> str:
    """The key of an allocation: a quota holds up all allocations with an equal key alike."""
    wish = {name: value for name, value in row.wish.items() if name != 'request_id'}
    return base.as_text([row.project_id, wish])


def _give(
    session: orm.Session,
    row: sa.Row[typing.Any],
    grant: backfill.Grant,
    kinds: taking.Kinds,
    rank: placing.Rank,
    counted: bool,
) -> None:
    wish: Wish = row.wish
    project = row.project_id or ''
    of_set = grant.wanted, grant.chosen, rank, row.lease, grant.allowed
    chosen = taking.confirm(session, kinds, project, *of_set)
    own = profile(session, wish, grant.number)
    taken = taking.take(session, owner(row), row.uuid, own, chosen, counted=counted)
    _move(
        session,
        row.id,
        state='active',
        cause=None,
        **reasons.described(own),
        accelerators=taken.accelerators,
        lease_ends_at=taking.end(row.lease) if row.lease else None,
    )
    LOG.info('Allocation %s is active: it waited since %s', row.uuid, row.created_at)


def owner(row: sa.Row[typing.Any]) -> context.RequestContext:
    """The context of those who asked for an allocation that is served now."""
    return context.RequestContext(
        project_id=row.project_id, request_id=row.wish['request_id'], overwrite=False
    )


def profile(session: orm.Session, wish: Wish, number: int) -> model.DeviceProfile:
    """The device profile of an alternative; a private one if it was deleted or changed."""
    groups = wish['alternatives'][number]
    if number == 0 and wish['profile'] is not None:
        named = sa.select(model.DeviceProfile).where(model.DeviceProfile.uuid == wish['profile'])
        found = session.scalars(named).one_or_none()
        if found and found.groups == groups:
            return found
    return model.DeviceProfile(groups=groups, private=True)


def _move(session: orm.Session, id: int, **values: typing.Any) -> None:
    """Change an allocation that is still queued, and take it out of the queue."""
    same = model.Allocation.id == id, model.Allocation.state == 'queued'
    gone = {'queue': None, 'amount': None, 'wish': None, 'over_quota': False}
    move = sa.update(model.Allocation).where(*same).values(**gone, **values)
    if not query.matched(session, move):
        raise orm_exception.StaleDataError


def _note(
    session: orm.Session, rows: collections.abc.Iterable[sa.Row[typing.Any]], over: dict[str, str]
) -> None:
    """Store which allocations a quota holds up, and the reason, where this has changed."""
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

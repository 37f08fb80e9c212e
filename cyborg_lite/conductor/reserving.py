# SPDX-License-Identifier: Apache-2.0
"""Reservations: allocations that start at a time.

A reservation keeps accelerators by name from its start to its end (see model.Promise): what is
kept is not given to a lease that would end later, and a lease without an end ends later. So what
is promised is there, unless a card fails, or a holder that may stay for ever was there before: such
holders are warned by the reason of their allocations, and the reservation takes other accelerators
if they stay.

At its start a reservation becomes active, before the queue is served. Processes lease from it; if
none does in time, it is released.
"""

from __future__ import annotations

import collections
import collections.abc
import datetime
import math
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
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import backfill
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import queue
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import releasing
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import taking
from cyborg_lite.db import candidates
from cyborg_lite.db import promises
from cyborg_lite.db import query
from cyborg_lite.model import base

LOG = log.getLogger(__name__)

#: How far ahead a reservation may start, in seconds: a year.
AHEAD = 366 * 24 * 3600
#: The maximum number of reservations of one project that have not started.
MOST = 1000
#: How many clashing allocations an error names.
NAMED = 4
#: What is said of a reservation that waits for holders after its start.
WAITS = 'It has started, and waits: too few of its accelerators are free.'

_kind = model.Allocation
_active = _kind.state == 'active'
_READ = (
    _kind.id, _kind.uuid, _kind.project_id, _kind.consumer_type, _kind.starts_at,
    _kind.lease_ends_at, _kind.lease, _kind.wish, _kind.cause,
)  # fmt: skip


def create(
    session: orm.Session,
    ctxt: context.RequestContext,
    request: allocating.Request,
    policy: str,
    uuid: str | None = None,
) -> tuple[str, list[str]]:
    """Keep all accelerators of a request from its start to the end of its lease, or none.

    :param policy, uuid: as for allocating.create.
    :returns: as allocating.create does.
    :raises cyborg_lite.exception.Conflict: when too few are left at that time, and it names what
        clashes; or when the project has too many reservations.
    :raises cyborg_lite.exception.CannotAllocate: when there would be too few at any time.
    :raises cyborg_lite.exception.OverQuota: when the project may not have so many together with
        what it has reserved for that time.
    """
    digest = allocating.digest_of(request)
    if same := allocating.earlier(session, ctxt, request, digest):
        return same, []
    start, end = _window(request)
    wanted, kinds = allocating.wanted_of(session, request)
    rank = placing.policy(policy)
    found = _choose(session, kinds, wanted.sets, request['hosts'], (start, end), rank)
    if found is None:
        explanation = reasons.explain(session, wanted, request['hosts'], None)
        raise _refusal(session, ctxt, request, wanted, (start, end), explanation)
    number, chosen = found
    names = taking.lock(session, chosen)
    profile = wanted.profiles[number]
    try:
        _refuse_over_quota(session, ctxt.project_id or '', profile.groups, start, end)
    except exception.OverQuota as error:
        over = {number: error}
        explanation = reasons.explain(session, wanted, request['hosts'], None, over=over)
        raise exception.OverQuota(**error.kwargs, explanation=explanation) from None
    # What was read before the lock may be stale.
    again = _choose(session, kinds, [wanted.sets[number]], names, (start, end), rank)
    if again is None:
        raise orm_exception.StaleDataError
    _refuse_many(session, ctxt.project_id or '')
    uuid = uuid or str(uuidlib.uuid4())
    row = allocating.row_of(ctxt, uuid, request, profile, digest) | {
        'state': 'reserved',
        'starts_at': start,
        'lease_ends_at': end,
        'accelerators': [],
        'amount': len(again[1]),
        'wish': allocating.wish_of(ctxt, request, wanted),
    }
    session.execute(sa.insert(_kind), [row])
    promises.keep(session, uuid, [each.handle for each in again[1]], start, end)
    hosts.announce_all(session, names)
    look_at_next_start(session)
    return uuid, []


def check(
    session: orm.Session, ctxt: context.RequestContext, request: allocating.Request, policy: str
) -> reasons.Explanation:
    """Whether what is asked for could be reserved now, and what clashes."""
    window = _window(request)
    wanted, kinds = allocating.wanted_of(session, request)
    rank = placing.policy(policy)
    found = _choose(session, kinds, wanted.sets, request['hosts'], window, rank)
    explanation = reasons.explain(session, wanted, request['hosts'], found and found[0])
    if found is None:
        _refusal(session, ctxt, request, wanted, window, explanation)
    return explanation


def _window(request: allocating.Request) -> tuple[datetime.datetime, datetime.datetime]:
    """The start and the end of a reservation.

    :raises cyborg_lite.exception.Invalid: when it has no end, or does not start in time.
    """
    start, lease = datetime.datetime.fromisoformat(request['starts_at']), request.get('lease')
    now = timeutils.utcnow()
    if not now < start <= now + datetime.timedelta(seconds=AHEAD):
        raise exception.Invalid(
            reason=f'Invalid starts_at: expected a time to come, within {AHEAD} seconds, got '
            f'{base.iso(start)}; it is {base.iso(now)} now.'
        )
    if lease is None:
        raise exception.Invalid(reason='Invalid lease: a reservation needs one, in seconds.')
    return start, start + datetime.timedelta(seconds=lease)


Found = tuple[int, placing.Chosen]


def _choose(
    session: orm.Session,
    kinds: taking.Kinds,
    sets: collections.abc.Sequence[placing.Wanted | None],
    of_hosts: candidates.Hosts,
    window: tuple[datetime.datetime, datetime.datetime],
    rank: placing.Rank,
) -> Found | None:
    """Choose what can be kept: at best nothing of what a holder may keep for ever."""
    rows = candidates.keepable(session, list(kinds), of_hosts, *window)
    sure = [taking.candidate(row) for row in rows if not row[taking.KEPT]]
    found = backfill.first(sure, sets, rank)
    if found or len(sure) == len(rows):
        return found
    return backfill.first(map(taking.candidate, rows), sets, rank)


def _refusal(
    session: orm.Session,
    ctxt: context.RequestContext,
    request: allocating.Request,
    wanted: reasons.Wanted,
    window: tuple[datetime.datetime, datetime.datetime],
    explanation: reasons.Explanation,
) -> exception.CyborgError:
    """The error that names what overlaps with such a reservation, if it could be kept at all.

    :param explanation: that of the present, which gets the reasons of the error.
    """
    rows = candidates.clashes(session, wanted.kinds, request['hosts'], *window)
    # What could not be kept at any time is not prevented by what overlaps.
    if not rows or not reasons.could_fit(explanation):
        return reasons.refusal(explanation)
    first = [_in_words(row, ctxt.project_id) for row in rows[:NAMED]]
    more = f' and {len(rows) - NAMED} more' if len(rows) > NAMED else ''
    start, end = map(base.iso, window)
    reason = (
        f'Too few accelerators are left from {start} to {end}: it overlaps with '
        f'{", ".join(first)}{more}'
    )
    for each in explanation['alternatives']:
        each['fits'], each['reason'] = False, reason
    return exception.Conflict(reason=f'{reason}.', explanation=explanation)


def _in_words(row: sa.Row[typing.Any], project: str | None) -> str:
    """An allocation in words.

    :param project: as for reasons.called().
    """
    begins = f'from {base.iso(row.starts_at)} ' if row.state == 'reserved' else ''
    what = 'reservation' if row.starts_at else 'allocation'
    named = reasons.called(row, project)
    return f'{what} {named} ({row.amount} {begins}until {base.iso(row.lease_ends_at)})'


def _refuse_many(session: orm.Session, project: str) -> None:
    mine = _kind.state == 'reserved', _kind.project_id == project
    count = session.scalar(sa.select(sa.func.count(_kind.id)).where(*mine)) or 0
    if count >= MOST:
        raise exception.Conflict(
            reason=f'The project has {count} reservations: expected fewer than {MOST}.'
        )


def _refuse_over_quota(
    session: orm.Session,
    project: str,
    groups: taking.Groups,
    start: datetime.datetime,
    end: datetime.datetime,
) -> None:
    """Refuse more than the limits, with what the project has reserved at that time.

    What it holds now is counted when the reservation starts, as for the queue.
    """
    mine = sa.select(_kind.groups).where(
        _kind.state == 'reserved',
        _kind.project_id == project,
        _kind.starts_at < end,
        _kind.lease_ends_at > start,
    )
    amounts: collections.Counter[str] = collections.Counter()
    for group in groups:
        amounts.update(profiles.resources(group))
    for shown in session.scalars(mine):
        for each in shown:
            amounts.update(each['resources'])
    quotas.refuse_more_than_limit(session, project, [amounts])


def look_at_next_start(session: orm.Session) -> None:
    """Have a conductor look at the moment when the next reservation starts, if that is soon.

    It is called more often than that, so a later start is not missed.
    """
    now = timeutils.utcnow()
    soon = now + datetime.timedelta(seconds=outbox.PATIENCE)
    coming = _kind.state == 'reserved', _kind.starts_at > now, _kind.starts_at <= soon
    first = session.scalar(sa.select(sa.func.min(_kind.starts_at)).where(*coming))
    if first is not None:
        queue.look_at_start(session, (first - now).total_seconds())


def due(session: orm.Session) -> list[int]:
    """The ids of the reservations that have to start, in the order of their starts."""
    started = sa.select(_kind.id).where(
        _kind.state == 'reserved', _kind.starts_at <= timeutils.utcnow()
    )
    return list(session.scalars(started.order_by(_kind.starts_at, _kind.id)))


def start(
    session: orm.Session, ctxt: context.RequestContext, id: int, policy: str, grace: int
) -> None:
    """Give a reservation that has to start its accelerators, or others if they are not free.

    If too few are free, it keeps its own, and is tried again when something comes free.

    :param policy: the name of the placing policy.
    :param grace: for how many seconds it is kept if no process leases from it.
    """
    row = _read(session, id)
    now = timeutils.utcnow()
    if row is None or not row.starts_at <= now < row.lease_ends_at:
        return
    entry, kinds, own = _reopen(session, row)
    rank, left = placing.policy(policy), (row.lease_ends_at - now).total_seconds()
    found = _first(session, entry, kinds, own, left, rank)
    if found is None:
        _keep_again(session, row, entry, kinds, own, rank, WAITS)
        return
    number, chosen = found
    profile = serving.profile(session, row.wish, number)
    handles = [each.handle for each in chosen]
    shown = taking.details(session, handles, row.project_id or '')
    try:
        taken = taking.take(session, serving.owner(row), row.uuid, profile, shown)
    except exception.OverQuota as error:
        _keep_again(session, row, entry, kinds, own, rank, error.message)
        return
    claimed = row.consumer_type not in (None, _kind.PROCESS)
    _move(
        session,
        id,
        state='active',
        cause=None,
        wish=None,
        **reasons.described(profile),
        accelerators=taken.accelerators,
        claim_by=None if claimed else now + datetime.timedelta(seconds=grace),
    )
    LOG.info('Reservation %s is active', row.uuid)


def mend(session: orm.Session, id: int, policy: str) -> None:
    """Keep other accelerators for a reservation if those that it has cannot be used."""
    row = _read(session, id)
    if row is not None:
        entry, kinds, own = _reopen(session, row)
        _keep_again(session, row, entry, kinds, own, placing.policy(policy), row.cause)


def _read(session: orm.Session, id: int) -> sa.Row[typing.Any] | None:
    return session.execute(
        sa.select(*_READ).where(_kind.id == id, _kind.state == 'reserved')
    ).one_or_none()


def _reopen(
    session: orm.Session, row: sa.Row[typing.Any]
) -> tuple[backfill.Entry, taking.Kinds, set[int]]:
    """Lock the hosts of what is kept for a reservation, and keep it no more.

    :returns: what it needs, and the handles that were kept.
    """
    hosts.lock(session, promises.HOSTS, allocation=row.uuid)
    own = promises.kept(session, row.uuid)
    promises.drop(session, row.uuid)
    kinds: taking.Kinds = {}
    return serving.entry(row, kinds), kinds, own


def _first(
    session: orm.Session,
    entry: backfill.Entry,
    kinds: taking.Kinds,
    own: set[int],
    left: float,
    rank: placing.Rank,
) -> Found | None:
    """What is free for a reservation, on hosts that are locked: its own, or else any.

    :param left: for how many seconds it lasts.
    """

    def fit(of_hosts: candidates.Hosts) -> Found | None:
        free = taking.free(session, kinds, of_hosts)
        # Nobody else has been promised its own for that time.
        mine = [each for each in free if each.handle in own]
        others = [each for each in free if each.handle in own or each.fits(math.ceil(left))]
        return backfill.first(mine, entry.sets, rank) or backfill.first(others, entry.sets, rank)

    found = fit(entry.hosts)
    if found is None or {each.handle for each in found[1]} <= own:
        return found
    again = fit(taking.lock(session, found[1]))
    if again is None:
        raise orm_exception.StaleDataError
    return again


def _keep_again(
    session: orm.Session,
    row: sa.Row[typing.Any],
    entry: backfill.Entry,
    kinds: taking.Kinds,
    own: set[int],
    rank: placing.Rank,
    cause: str | None,
) -> None:
    """Keep the accelerators of a reservation again, or others if those cannot be kept."""
    window = max(row.starts_at, timeutils.utcnow()), row.lease_ends_at
    rows = candidates.keepable(session, list(kinds), entry.hosts, *window)
    mine = [each for each in map(taking.candidate, rows) if each.handle in own]
    handles = own
    if backfill.first(mine, entry.sets, rank) is None:
        found = _choose(session, kinds, entry.sets, entry.hosts, window, rank)
        if found is not None:
            names = taking.lock(session, found[1])
            found = _choose(session, kinds, entry.sets, names, window, rank)
            if found is None:
                raise orm_exception.StaleDataError
            handles = {each.handle for each in found[1]}
            LOG.info('Reservation %s keeps other accelerators now', row.uuid)
    promises.keep(session, row.uuid, handles, row.starts_at, row.lease_ends_at)
    if cause != row.cause:
        _move(session, row.id, cause=cause and cause[:255])


def _move(session: orm.Session, id: int, **values: typing.Any) -> None:
    """Change a reservation that has not started."""
    same = _kind.id == id, _kind.state == 'reserved'
    if not query.matched(session, sa.update(_kind).where(*same).values(**values)):
        raise orm_exception.StaleDataError


def lapsed(session: orm.Session, most: int) -> list[int]:
    """The ids of reservations that nobody has used in time, or that have never started."""
    now = timeutils.utcnow()
    unused = sa.and_(_kind.state == 'active', _kind.claim_by <= now)
    missed = sa.and_(_kind.state == 'reserved', _kind.lease_ends_at <= now)
    found = sa.select(_kind.id).where(sa.or_(unused, missed)).order_by(_kind.id)
    return list(session.scalars(found.limit(most)))


def lapse(session: orm.Session, id: int) -> None:
    """Release such a reservation, unless it was used or released meanwhile."""
    allocation = session.get(_kind, id)
    if allocation is None:
        return
    now, cause = timeutils.utcnow(), 'Nobody used it in time.'
    ends = allocation.lease_ends_at
    if allocation.state == 'reserved' and ends is not None and ends <= now:
        releasing.end(session, allocation, 'It could not start before its end.')
    elif uuid := releasing.end_if(session, id, cause, _active, _kind.claim_by <= now):
        LOG.info('Reservation %s was released: nobody used it in time', uuid)

# SPDX-License-Identifier: Apache-2.0
"""How an allocation gets its accelerators: choose free ones, lock their hosts, bind them.

It is the same for an allocation that is served at once and for one from the queue.
"""

from __future__ import annotations

import collections
import collections.abc
import datetime
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import holding
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import topology
from cyborg_lite.db import candidates
from cyborg_lite.db import engine
from cyborg_lite.model import device as devices

#: What an allocation notes of an accelerator, beside its request and its ids.
ACCELERATOR = (
    'uuid', 'host', 'device_uuid', 'type', 'model', 'address', 'numa_node', 'attach_type',
    'attach_info', 'form', 'driver',
)  # fmt: skip

#: The most kinds of accelerators of one request: each makes the statements longer.
KINDS = 16

#: The hosts of these names.
_NAMED = sa.select(model.Host.name).where(
    model.Host.name.in_(sa.bindparam('names', expanding=True))
)

#: Where such a row has what is told of an accelerator beside its identity.
KEPT = 7

#: The number of each kind that is wanted.
Kinds = dict[candidates.Kind, int]
Groups = list[dict[str, str]]
#: What an allocation shows of accelerators.
Rows = list[sa.Row[typing.Any]]


class Taken(typing.NamedTuple):
    """What an allocation holds."""

    #: as the allocation shows them, in order
    accelerators: list[dict[str, typing.Any]]
    providers: set[str]


def sets(
    alternatives: collections.abc.Iterable[Groups],
    same_host: bool,
    same_numa: str,
    link: str,
    kinds: Kinds,
) -> list[placing.Wanted]:
    """What is wanted together, alternative by alternative.

    :param kinds: new kinds are added to it.
    """
    found: list[placing.Wanted] = []
    for groups in alternatives:
        asked = list(_asked(groups))
        refuse_size(sum(amount for _, amount in asked))
        numbers: list[int] = []
        for kind, amount in asked:
            numbers += [kinds.setdefault(kind, len(kinds))] * amount
        required = same_numa == 'require', link == 'require'
        found.append(placing.Wanted(tuple(numbers), same_host, *required))
    amount = len({number for wanted in found for number in wanted.kinds})
    if amount > KINDS:
        raise exception.Invalid(
            reason=f'Invalid groups: expected at most {KINDS} kinds of accelerators, each a '
            f'resource class with its traits, got {amount}.'
        )
    return found


def _asked(groups: Groups) -> collections.abc.Iterator[tuple[candidates.Kind, int]]:
    """The kinds of accelerators that these groups ask for, in order, and how many of each."""
    for group in groups:
        required, forbidden = map(frozenset, profiles.traits(group))
        for name, amount in profiles.resources(group).items():
            if amount > 0:
                yield candidates.Kind(name, required, forbidden), amount


def refuse_size(total: int) -> None:
    if not 1 <= total <= binding.MOST:
        raise exception.Invalid(
            reason=f'Invalid groups: expected 1 to {binding.MOST} accelerators, got {total}.'
        )


def free(
    session: orm.Session,
    kinds: Kinds,
    of_hosts: candidates.Hosts,
    limit: int | None = None,
    only: collections.abc.Collection[int] | None = None,
) -> list[placing.Candidate]:
    """The free accelerators of these kinds, also those that reservations need later.

    :param limit: how many at most; None for all.
    :param only: the numbers of the kinds of which one has to match; None for any.
    """
    return _spared(candidates.free(session, list(kinds), of_hosts, limit, only), kinds)


class Look(typing.NamedTuple):
    """What is free, and whether others may have a claim on it."""

    free: list[placing.Candidate]
    #: whether an allocation waits, and whether there may be limits
    waits: bool
    limited: bool


def look(session: orm.Session, kinds: Kinds, of_hosts: candidates.Hosts, limit: int) -> Look:
    """Like free(), and tells whether others may have a claim; of nothing nobody has one."""
    rows = candidates.free(session, list(kinds), of_hosts, limit, told='others')
    waits, limited = (rows[0].waits, rows[0].limited) if rows else (False, False)
    return Look(_spared(rows, kinds), bool(waits), quotas.may_be(session, bool(limited)))


def _spared(rows: list[sa.Row[typing.Any]], kinds: Kinds) -> list[placing.Candidate]:
    """The candidates of these rows, each with the time until a reservation needs it."""
    now = timeutils.utcnow() + datetime.timedelta(seconds=candidates.MARGIN)
    found = ((candidate(row, len(kinds)), row[KEPT]) for row in rows)
    return [
        each if at is None else each._replace(spare=(at - now).total_seconds())
        for each, at in found
    ]


def ending(
    session: orm.Session, kinds: list[candidates.Kind], of_hosts: candidates.Hosts
) -> list[tuple[datetime.datetime, placing.Candidate]]:
    """The accelerators of these kinds whose leases end, each with the time."""
    rows = candidates.ending(session, kinds, of_hosts)
    return [(row[KEPT], candidate(row)) for row in rows]


def candidate(row: sa.Row[typing.Any], number: int | None = None) -> placing.Candidate:
    """The candidate of a row of cyborg_lite.db.candidates.

    :param number: of how many kinds it tells, if it tells more after them.
    """
    handle, host, device, form, node, address, told, _, *fits = tuple(row)
    kinds = frozenset(number for number, fit in enumerate(fits[:number]) if fit)
    place = topology.place(address, told)
    return placing.Candidate(handle, host, device, form, node, kinds, place)


def confirm(
    session: orm.Session,
    kinds: Kinds,
    owner: str,
    wanted: placing.Wanted,
    chosen: placing.Chosen,
    rank: placing.Rank,
    lease: int | None,
    allowed: collections.abc.Container[int] | None = None,
    cut: bool = False,
) -> Rows:
    """Look again on the same hosts, now that they are locked: what was read before may be stale.

    What was chosen is taken if it is still free, or else the best of what is free there now.

    :param owner: the project whose limits are locked with it.
    :param lease: for how many seconds they are wanted; None without an end.
    :param allowed: the ids of the handles to choose from; None for all.
    :param cut: whether it was chosen from a part of what these hosts have: a host may have a better
        set.
    :returns: what is shown of each, in order.
    :raises sqlalchemy.orm.exc.StaleDataError: when there is not enough left: the call is tried
        again.
    """
    locked = lock(session, chosen)
    for among in (None,) if cut else ([each.handle for each in chosen], None):
        rows = candidates.free(
            session, list(kinds), locked, told='details', among=among, owner=owner
        )
        found = [each for each in _spared(rows, kinds) if each.fits(lease)]
        if allowed is not None:
            found = [each for each in found if each.handle in allowed]
        if again := placing.place(found, wanted, rank):
            by_handle = {row.id: row for row in rows}
            return [by_handle[each.handle] for each in again]
    raise orm_exception.StaleDataError


def lock(session: orm.Session, chosen: placing.Chosen) -> list[str]:
    """Lock the hosts of these accelerators; returns their names."""
    names = {each.host for each in chosen}
    if engine.has_one_writer(session.get_bind()):
        return sorted(names)
    return hosts.lock(session, _NAMED, names=names)


def take(
    session: orm.Session,
    ctxt: context.RequestContext,
    uuid: str,
    profile: model.DeviceProfile,
    chosen: Rows,
    after: float = 0,
    counted: bool = False,
) -> Taken:
    """Create the requests of an allocation, each bound, on hosts that are locked.

    :param profile: a private one is stored now.
    :param chosen: what is shown of each accelerator: see confirm() and details().
    :param after: as for :func:`outbox.put`.
    :param counted: whether this transaction has counted that it is within the quota.
    :raises cyborg_lite.exception.OverQuota: when it exceeds the quota of the project; nothing
        was written then.
    """
    # With one writer what this transaction has counted holds until it ends.
    counts = not (counted and engine.has_one_writer(session.get_bind()))
    # As the rows were read under the lock: limits may have been set while it was waited for.
    if counts and quotas.may_be(session, bool(chosen[0].limited)):
        # Before anything is written: it may be refused.
        has_row = chosen[0].quota is not None
        quotas.claim(session, ctxt.project_id or '', asked(profile), has_row)
    profile.limited = False
    if profile.private:
        profile.name = private(uuid)
        session.add(profile)
        session.flush()
    now = timeutils.utcnow()
    places = [
        {
            'state': 'Bound',
            'allocation_uuid': uuid,
            'hostname': row.host,
            'device_rp_uuid': row.rp_uuid,
            'moves': _moves(ctxt, row, now),
        }
        | holding.given(row.id, row.resource_class, now)
        for row in chosen
    ]
    arqs = binding.make(session, ctxt, profile, places)
    hosts.announce_all(session, {each.host for each in chosen}, after=after)
    return Taken(
        [_shown(row, arq) for row, arq in zip(chosen, arqs, strict=True)],
        {row.rp_uuid for row in chosen} if outbox.tells(session, outbox.PROVIDER) else set(),
    )


def asked(profile: model.DeviceProfile) -> collections.Counter[str]:
    """How many requests of each resource class an allocation of a profile makes."""
    amounts = [sum(profiles.resources(group).values()) for group in profile.groups]
    return quotas.asked(profile.groups, amounts)


def end(lease: int) -> datetime.datetime:
    """When a lease that begins now ends."""
    return timeutils.utcnow() + datetime.timedelta(seconds=lease)


def private(uuid: str) -> str:
    """The name of the profile that is an allocation's own."""
    return f'allocation-{uuid}'


def _moves(
    ctxt: context.RequestContext, row: sa.Row[typing.Any], at: datetime.datetime
) -> list[dict[str, typing.Any]]:
    place = {'hostname': row.host, 'device_rp_uuid': row.rp_uuid, 'accelerator_uuid': row.uuid}
    return model.ARQ().moved('Bound', None, ctxt.request_id, at, **place)


def details(session: orm.Session, handles: list[int], owner: str) -> Rows:
    """What is shown of these accelerators, in order.

    :param owner: the project whose limits are locked with it.
    """
    found = {row.id: row for row in candidates.details(session, handles, owner)}
    return [found[id] for id in handles]


def _shown(row: sa.Row[typing.Any], arq: str) -> dict[str, typing.Any]:
    shown = {name: getattr(row, name) for name in ACCELERATOR}
    return shown | {'arq_uuid': arq, 'ids': devices.ids_of_part(row.vendor_board, row.attach_info)}

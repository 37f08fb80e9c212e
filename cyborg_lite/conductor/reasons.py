# SPDX-License-Identifier: Apache-2.0
"""Why an allocation is refused: how many accelerators each filter takes away.

It tells numbers, and neither hosts nor holders: a tenant may see it.
"""

from __future__ import annotations

import bisect
import collections
import collections.abc
import datetime
import itertools
import types
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import journal
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import topology
from cyborg_lite.db import accelerators
from cyborg_lite.db import candidates
from cyborg_lite.model import base

#: In order: an accelerator is counted for the first that takes it away. Those between are states.
FILTERS = (
    'class', 'trait', 'hosts', *(s for s in accelerators.STATES if s != 'free'),
    candidates.RESERVED, 'quota', 'topology',
)  # fmt: skip

#: The states that do not end with a lease: a reason counts the accelerators in each.
BLOCKED = tuple(s for s in accelerators.STATES if s not in ('free', 'held', 'excluded'))
#: How many hosts a reason names, and how many characters of each.
NAMED, LONGEST = 3, 64

Explanation = dict[str, typing.Any]
Rows = list[sa.Row[typing.Any]]


class Wanted(typing.NamedTuple):
    """Alternatives, in the order in which they are wanted."""

    #: the device profile of each; a profile without a row yet is private
    profiles: list[model.DeviceProfile]
    #: the properties that accelerators must have, for all of them
    kinds: list[candidates.Kind]
    #: of each the kinds of its accelerators, by their numbers
    sets: list[placing.Wanted]


def explain(
    session: orm.Session,
    wanted: Wanted,
    hosts: candidates.Hosts,
    chosen: int | None,
    lease: int | None = None,
    over: collections.abc.Mapping[int, exception.OverQuota] = types.MappingProxyType({}),
    near: bool = False,
) -> Explanation:
    """What the filters leave of all accelerators, for each alternative.

    :param chosen: the number of the alternative that can be allocated now; None if none can.
    :param lease: for how many seconds they are wanted; None without an end.
    :param over: by the number of an alternative the quota that it exceeds.
    :param near: as for candidates.counted.
    """
    tried = wanted.sets if chosen is None else wanted.sets[: chosen + 1]
    linked = any(each.linked for each in tried)
    rows = candidates.counted(session, wanted.kinds, hosts, linked, lease, near)
    alternatives = [
        _alternative(rows, wanted.kinds, each, number == chosen or number in over)
        for number, each in enumerate(tried)
    ]
    for each, of_set in zip(alternatives, tried, strict=True):
        if each['reason'] and hosts is not None:
            each['reason'] += _strange(rows, wanted.kinds, of_set, hosts)
    for number, refusal in over.items():
        _refuse(alternatives[number], refusal.message)
    return {'fits': chosen is not None and chosen not in over, 'alternatives': alternatives}


def add_times(
    explanation: Explanation,
    sets: collections.abc.Sequence[placing.Wanted | None],
    free: placing.Chosen,
    ending: list[tuple[datetime.datetime, placing.Candidate]],
) -> None:
    """Say of each alternative when it fits, if it does once leases have ended.

    :param sets: None for an alternative that would not fit then.
    :param free: what is free now.
    """
    for each, wanted in zip(explanation['alternatives'], sets, strict=False):
        if at := wanted and _fits_at(wanted, free, ending):
            each['fits_at'] = base.iso(at)
            each['reason'] += f'; enough are free at {base.iso(at)}, when leases end'


def _fits_at(
    wanted: placing.Wanted,
    free: placing.Chosen,
    ending: list[tuple[datetime.datetime, placing.Candidate]],
) -> datetime.datetime | None:
    times = sorted({at for at, _ in ending})

    def fits(at: datetime.datetime) -> bool:
        freed = [each for end, each in ending if end <= at]
        return placing.place([*free, *freed], wanted, placing.binpack) is not None

    number = bisect.bisect_left(times, True, key=fits)
    return times[number] if number < len(times) else None


def _refuse(alternative: Explanation, over: str) -> None:
    """Take from an alternative what is left of it, as a quota does."""
    for each in alternative['requests']:
        each['removed']['quota'], each['left'] = each['left'], 0
    alternative |= {'fits': False, 'reason': over.removesuffix('.')}


def name_reservation(
    session: orm.Session,
    wanted: Wanted,
    hosts: candidates.Hosts,
    explanation: Explanation,
    project: str | None,
) -> None:
    """Say in the reasons which reservation comes first, if any keeps something from them.

    A lease that ends before may have it.

    :param project: as for called().
    """
    short = [
        each
        for each in explanation['alternatives']
        if any(one['removed'][candidates.RESERVED] for one in each['requests'])
    ]
    first = candidates.first_kept(session, wanted.kinds, hosts) if short else None
    if first is not None:
        for each in short:
            each['reason'] += (
                f', and some are kept for reservation {called(first, project)} from '
                f'{base.iso(first.starts_at)}: a lease that ends before may have them'
            )


def ending(
    session: orm.Session,
    wanted: Wanted,
    hosts: candidates.Hosts,
    explanation: Explanation,
    over: collections.abc.Container[int],
    project: str | None,
) -> str:
    """Which lease frees first what one of the alternatives can use; empty if none does.

    An alternative that would not fit if all were free, or that a quota refuses, can use nothing.

    :param over: the numbers of the alternatives that a quota refuses.
    :param project: as for called().
    """
    useful = {
        kind
        for number, told in enumerate(explanation['alternatives'])
        if told['fits_if_all_were_free'] and number not in over
        for kind in wanted.sets[number].kinds
    }
    kinds = [wanted.kinds[kind] for kind in sorted(useful)]
    first = candidates.first_ending(session, kinds, hosts) if kinds else None
    if first is None:
        return ''
    return (
        f'{first.amount} of {first.resource_class} {"comes" if first.amount == 1 else "come"} free '
        f'when lease {called(first, project)} ends at {base.iso(first.lease_ends_at)}'
    )


def called(row: sa.Row[typing.Any], project: str | None) -> str:
    """What an allocation is called: its uuid, and its name for those of its own project."""
    return f'{row.uuid} {row.name}' if row.name and row.project_id == project else str(row.uuid)


def said(explanation: Explanation) -> str:
    """The reasons of all alternatives in one text."""
    return '; or '.join(each['reason'] or '' for each in explanation['alternatives'])


def could_fit(explanation: Explanation) -> bool:
    """Whether an alternative would fit if all accelerators were free."""
    return any(each['fits_if_all_were_free'] for each in explanation['alternatives'])


def refusal(explanation: Explanation) -> exception.CannotAllocate:
    """The error for a request of which no alternative can be had."""
    return exception.CannotAllocate(reason=said(explanation), explanation=explanation)


def described(profile: model.DeviceProfile) -> dict[str, typing.Any]:
    """The columns of an allocation that say what it was given; a private profile has no name."""
    return {
        'profile': None if profile.private else profile.name,
        'groups': [shown(group) for group in profile.groups],
    }


def shown(group: dict[str, str]) -> dict[str, typing.Any]:
    """A group of a profile in the form in which allocations are asked for."""
    required, forbidden = profiles.traits(group)
    traits = dict.fromkeys(required, 'required') | dict.fromkeys(forbidden, 'forbidden')
    return {'resources': profiles.resources(group), 'traits': dict(sorted(traits.items()))}


def _alternative(
    rows: Rows, kinds: list[candidates.Kind], wanted: placing.Wanted, fits: bool
) -> Explanation:
    amounts = collections.Counter(wanted.kinds)
    counts = {kind: _counted(rows, kinds, kind) for kind in amounts}
    # There are enough of each, and not together.
    apart = not fits and all(counts[kind]['left'] >= amounts[kind] for kind in amounts)
    for count in counts.values() if apart else ():
        count['removed']['topology'], count['left'] = count['left'], 0
    asked = [_asked(kinds[kind], amounts[kind]) | counts[kind] for kind in amounts]
    could = (
        fits or placing.place(all_free(rows, kinds, wanted), wanted, placing.binpack) is not None
    )
    reason = None if fits else _reason(rows, kinds, wanted, could)
    told = {'fits': fits, 'fits_if_all_were_free': could, 'fits_at': None}
    return told | {'reason': reason, 'requests': asked}


def _asked(kind: candidates.Kind, amount: int) -> dict[str, typing.Any]:
    return {
        'resource_class': kind.resource_class,
        'amount': amount,
        'required': sorted(kind.required),
        'forbidden': sorted(kind.forbidden),
    }


def _counted(rows: Rows, kinds: list[candidates.Kind], kind: int) -> dict[str, typing.Any]:
    found = collections.Counter({name: 0 for name in ('left', *FILTERS)})
    for row in rows:
        found[_filter(row, kinds, kind)] += row.amount
    left = found.pop('left')
    return {'candidates': sum(row.amount for row in rows), 'removed': dict(found), 'left': left}


def _filter(row: sa.Row[typing.Any], kinds: list[candidates.Kind], kind: int) -> str:
    """What takes these accelerators away; ``left`` if nothing does."""
    if row.resource_class != kinds[kind].resource_class:
        return 'class'
    if not getattr(row, f'traits{kind}'):
        return 'trait'
    if not row.on_hosts:
        return 'hosts'
    return 'left' if row.state == 'free' else str(row.state)


def _is_of(row: sa.Row[typing.Any], kinds: list[candidates.Kind], kind: int) -> bool:
    """Whether these accelerators are of a kind and on one of the hosts, in whatever state."""
    return _filter(row, kinds, kind) not in ('class', 'trait', 'hosts')


def all_free(
    rows: Rows, kinds: list[candidates.Kind], wanted: placing.Wanted
) -> collections.abc.Iterator[placing.Candidate]:
    """The accelerators as if all were free; of those that are alike no more than are wanted."""
    numbers = itertools.count()
    for row in rows:
        fit = frozenset(kind for kind in set(wanted.kinds) if _is_of(row, kinds, kind))
        for number in itertools.islice(numbers, min(row.amount, len(wanted.kinds)) if fit else 0):
            each = placing.Candidate(number, row.hostname, number, '', row.numa_node, fit)
            if wanted.linked:
                each = each._replace(
                    device=row.device, place=topology.place(row.address, row.topology)
                )
            yield each


def amounts(rows: Rows, kinds: list[candidates.Kind]) -> dict[int, collections.Counter[str]]:
    """The number of accelerators on each host, held or free, by the number of each kind."""
    found: dict[int, collections.Counter[str]] = {}
    for kind in range(len(kinds)):
        found[kind] = collections.Counter()
        for row in rows:
            if _is_of(row, kinds, kind):
                found[kind][row.hostname] += row.amount
    return found


def _reason(rows: Rows, kinds: list[candidates.Kind], wanted: placing.Wanted, could: bool) -> str:
    amounts = collections.Counter(wanted.kinds)
    needs = ' and '.join(f'{n} of {_named(kinds[kind])}' for kind, n in amounts.items())
    where = ' in one NUMA node' if wanted.same_numa else ' on one host' if wanted.together else ''
    where += ' and in a ring of links' if wanted.linked else ''
    free = ', '.join(_free(rows, kinds, kind) for kind in amounts)
    never = '' if could else f', and even if all were free {_at_most(rows, kinds, wanted)}'
    if wanted.linked and not any(each.place.links for each in all_free(rows, kinds, wanted)):
        never = ', and no links between cards are known'
    return f'needs {needs}{where if len(wanted.kinds) > 1 else ""}: {free}{never}'


def _strange(
    rows: Rows,
    kinds: list[candidates.Kind],
    wanted: placing.Wanted,
    hosts: collections.abc.Collection[str],
) -> str:
    """Which of the only hosts have nothing of a class, or do not exist: a name may be mistaken."""
    text = ''
    for name in dict.fromkeys(kinds[kind].resource_class for kind in wanted.kinds):
        known = {row.hostname for row in rows if row.on_hosts and row.resource_class == name}
        if strange := sorted({*hosts} - known):
            first = ', '.join(journal.plain(each)[:LONGEST] for each in strange[:NAMED])
            more = f' and {len(strange) - NAMED} more' if len(strange) > NAMED else ''
            which, are, have = (
                ('host', 'is', 'has') if len(strange) == 1 else ('hosts', 'are', 'have')
            )
            text += f'; {which} {first}{more} {are} unknown or {have} no {name}'
    return text


def _at_most(rows: Rows, kinds: list[candidates.Kind], wanted: placing.Wanted) -> str:
    """What there would be if all accelerators were free, which is not enough."""
    for kind, amount in collections.Counter(wanted.kinds).items():
        together: collections.Counter[typing.Any] = collections.Counter()
        for row in rows:
            if _is_of(row, kinds, kind):
                place = row.hostname, row.numa_node if wanted.same_numa else None
                together[place if wanted.together else None] += row.amount
        most = max(together.values(), default=0)
        if most < amount:
            where = ' in one NUMA node' if wanted.same_numa else ' on one host'
            return f'there would be {most or "none"}{where if wanted.together else ""}'
    return 'no host would have such a set' if wanted.together else 'there would be no such set'


def _named(kind: candidates.Kind) -> str:
    traits = [*sorted(kind.required), *(f'no {trait}' for trait in sorted(kind.forbidden))]
    return f'{kind.resource_class} with {", ".join(traits)}' if traits else kind.resource_class


def _free(rows: Rows, kinds: list[candidates.Kind], kind: int) -> str:
    by_host: collections.Counter[str] = collections.Counter()
    by_filter: collections.Counter[str] = collections.Counter()
    for row in rows:
        by_filter[_filter(row, kinds, kind)] += row.amount
        if row.amount and _filter(row, kinds, kind) == 'left':
            by_host[row.hostname] += row.amount
    counts = ', '.join(f'{by_filter[name]} {name}' for name in BLOCKED if by_filter[name])
    blocked = f' ({counts})' if counts else ''
    if not by_host:
        # Waiting does not help where no card has the class or the traits.
        fit = not by_filter.keys() <= {'class', 'trait'}
        return f'no {_named(kinds[kind])} {"is free" if fit else "is known"}{blocked}'
    most, total = max(by_host.values()), sum(by_host.values())
    on = f'on {len(by_host)} host{"s" if len(by_host) > 1 else ""}'
    return f'{total} of {kinds[kind].resource_class} free {on}, at most {most} on one{blocked}'

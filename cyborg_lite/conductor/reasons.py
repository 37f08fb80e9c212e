# SPDX-License-Identifier: Apache-2.0
"""Why an allocation is refused: how many accelerators each filter takes away.

It tells numbers, and neither hosts nor holders: a tenant may see it.
"""

from __future__ import annotations

import collections
import collections.abc
import itertools
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import topology
from cyborg_lite.db import accelerators
from cyborg_lite.db import candidates

#: In order: an accelerator is counted for the first that takes it away. Those between are states.
FILTERS = (
    'class', 'trait', 'hosts', *(s for s in accelerators.STATES if s != 'free'), 'topology',
)  # fmt: skip

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
    session: orm.Session, wanted: Wanted, hosts: candidates.Hosts, chosen: int | None
) -> Explanation:
    """What the filters leave of all accelerators, for each alternative.

    :param chosen: the number of the alternative that can be allocated now; None if none can.
    """
    tried = wanted.sets if chosen is None else wanted.sets[: chosen + 1]
    linked = any(each.linked for each in tried)
    rows = candidates.counted(session, wanted.kinds, hosts, by_device=linked)
    alternatives = [
        _alternative(rows, wanted.kinds, each, number == chosen)
        for number, each in enumerate(tried)
    ]
    return {'fits': chosen is not None, 'alternatives': alternatives}


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
    return {'fits': fits, 'fits_if_all_were_free': could, 'reason': reason, 'requests': asked}


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
    never = '' if could else ', and all accelerators together would not do'
    if wanted.linked and not any(each.place.links for each in all_free(rows, kinds, wanted)):
        never = ', and no links between cards are known'
    return f'needs {needs}{where if len(wanted.kinds) > 1 else ""}: {free}{never}'


def _named(kind: candidates.Kind) -> str:
    traits = [*sorted(kind.required), *(f'no {trait}' for trait in sorted(kind.forbidden))]
    return f'{kind.resource_class} with {", ".join(traits)}' if traits else kind.resource_class


def _free(rows: Rows, kinds: list[candidates.Kind], kind: int) -> str:
    by_host: collections.Counter[str] = collections.Counter()
    for row in rows:
        if row.amount and _filter(row, kinds, kind) == 'left':
            by_host[row.hostname] += row.amount
    if not by_host:
        # Waiting does not help where no card has the class or the traits.
        fit = any(_filter(row, kinds, kind) not in ('class', 'trait') for row in rows)
        return f'no {_named(kinds[kind])} {"is free" if fit else "is known"}'
    most, total = max(by_host.values()), sum(by_host.values())
    on = f'on {len(by_host)} host{"s" if len(by_host) > 1 else ""}'
    return f'{total} of {kinds[kind].resource_class} free {on}, at most {most} on one'

# SPDX-License-Identifier: Apache-2.0
"""In which order allocations that wait are served: plain data in, plain data out.

There is a queue for each resource class.  Higher priorities go first.  Among those of one priority
it is the turn of the project that holds the fewest accelerators of the class, those counted that
come to it by the turns before; among those of one project the oldest goes first.

What has waited for PATIENCE seconds goes before all that has not, whatever its priority and its
project, and the oldest of it first.  So nothing starves: from then on no allocation that came later
goes before it.
"""

from __future__ import annotations

import collections
import collections.abc
import datetime
import heapq
import typing

#: How long an allocation waits at most, in seconds, until none that came later goes before it.
PATIENCE = 3600
#: The lowest and the highest priority.
LOWEST, HIGHEST = -100, 100


class Waiting(typing.NamedTuple):
    """An allocation that waits."""

    #: it grows with the time of arrival
    id: int
    project: str
    #: the resource class whose queue it waits in
    queue: str
    priority: int
    since: datetime.datetime
    #: how many accelerators it wants
    amount: int
    #: how many accelerators of the class its project holds now
    held: int


def in_turn(waiting: collections.abc.Iterable[Waiting], now: datetime.datetime) -> list[Waiting]:
    """These in the order in which they are served."""
    oldest = now - datetime.timedelta(seconds=PATIENCE)
    first: list[Waiting] = []
    levels: dict[int, list[Waiting]] = collections.defaultdict(list)
    for each in sorted(waiting):
        (first if each.since <= oldest else levels[-each.priority]).append(each)
    held: collections.Counter[tuple[str, str]] = collections.Counter()
    for each in (*first, *(each for level in levels.values() for each in level)):
        held[each.project, each.queue] = each.held
    for each in first:
        held[each.project, each.queue] += each.amount
    shared = (each for level in sorted(levels) for each in _shared(levels[level], held))
    return [*first, *shared]


def _shared(
    waiting: list[Waiting], held: collections.Counter[tuple[str, str]]
) -> collections.abc.Iterator[Waiting]:
    """These, with the projects in turn; what each gets is added to what it holds."""
    lines: dict[tuple[str, str], collections.deque[Waiting]] = collections.defaultdict(
        collections.deque
    )
    for each in waiting:
        lines[each.project, each.queue].append(each)
    turns = [(held[key], line[0].id, key) for key, line in lines.items()]
    heapq.heapify(turns)
    while turns:
        *_, key = heapq.heappop(turns)
        served = lines[key].popleft()
        held[key] += served.amount
        yield served
        if line := lines[key]:
            heapq.heappush(turns, (held[key], line[0].id, key))

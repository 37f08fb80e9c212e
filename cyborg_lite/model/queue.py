# SPDX-License-Identifier: Apache-2.0
"""The order in which queued allocations are served: plain data in, plain data out.

There is a queue for each resource class.  Higher priorities go first.  Among those of one priority
the next is of the project that holds the fewest accelerators of the class, including those of its
allocations that come earlier in this order.  Among those of one project the oldest goes first.

Allocations that have waited for PATIENCE seconds go before all others, whatever their priority and
project, the oldest first.  So nothing starves: from then on no later allocation goes first.
"""

from __future__ import annotations

import collections
import collections.abc
import datetime
import heapq
import typing

#: The time after which no later allocation goes before a queued one, in seconds.
PATIENCE = 3600
#: The lowest and the highest priority.
LOWEST, HIGHEST = -100, 100


class Waiting(typing.NamedTuple):
    """A queued allocation."""

    #: grows with the time of arrival
    id: int
    project: str
    #: the resource class of its queue
    queue: str
    priority: int
    since: datetime.datetime
    #: the number of accelerators that it needs
    amount: int
    #: the number of accelerators of the class that its project holds now
    held: int


def in_turn(waiting: collections.abc.Iterable[Waiting], now: datetime.datetime) -> list[Waiting]:
    """The allocations in the order in which they are served."""
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
    """The allocations in fair order of projects; each adds its amount to its project."""
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

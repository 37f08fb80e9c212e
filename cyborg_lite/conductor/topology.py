# SPDX-License-Identifier: Apache-2.0
"""Topology: which sets of the free cards of a host are best.  Plain data in, plain data out.

A set in one NUMA node is preferred to a set across nodes.  Then the set with the fastest ring is
preferred: a ring is an order of the cards, and is as fast as its slowest pair of neighbours.  Of
equal sets the one is chosen that leaves the best rest for later requests: the rest with the fastest
ring, and then the one whose pairs are fastest in total.

The sets are compared once for each type of host and each combination of free cards.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import itertools
import json
import typing

#: How fast two cards exchange data: by one direct link, below one PCI bridge, in one NUMA node, and
#: otherwise. Only the order matters: these are GB/s of NVLink 2 and PCIe 3.0 x16.
LINK, BRIDGE, NODE, ACROSS = 25, 12, 10, 7
#: How many common bridges count: each makes a pair faster, but never as fast as a link.
BRIDGES = 8
#: The maximum number of cards, and of their sets, that are compared.
CARDS, SETS = 32, 2048
#: The maximum size of a ring that is searched. In a larger one each card must have links of that
#: speed to half of the others: then there is a ring (Dirac's theorem).
RING = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where a card is, see ``Device.topology``.  Equal only to itself: see :func:`place`."""

    address: str = ''
    bridges: tuple[str, ...] = ()
    links: collections.abc.Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        return bool(self.bridges or self.links)


UNKNOWN = Place()


@functools.lru_cache(16384)
def place(address: str, text: str | None) -> Place:
    """The place of a card: the same object for equal values, so that it is compared quickly.

    :param text: its topology, as JSON; None if nothing is known.
    """
    told = json.loads(text or '{}') or {}
    return Place(address, tuple(told.get('bridges', ())), told.get('links', {}))


class Card(typing.NamedTuple):
    """A free card."""

    place: Place
    numa_node: int | None
    #: cards with different labels cannot replace each other
    label: int = 0


class Set(typing.NamedTuple):
    """Some of the cards, by their numbers."""

    members: tuple[int, ...]
    in_one_node: bool
    #: whether they form a ring of direct links
    linked: bool


class Shape(typing.NamedTuple):
    """What hosts of one type with the same free cards have in common."""

    nodes: tuple[int | None, ...]
    labels: tuple[int, ...]
    #: of each card, the speeds to all cards; to itself 0
    speeds: tuple[tuple[int, ...], ...]


def speed(one: Card, other: Card) -> int:
    """How fast two cards exchange data."""
    ours, theirs = one.place, other.place
    links = max(ours.links.get(theirs.address, 0), theirs.links.get(ours.address, 0))
    if links:
        return LINK * links
    pairs = zip(ours.bridges, theirs.bridges, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if common:
        return BRIDGE + min(common, BRIDGES)
    near = one.numa_node is not None and one.numa_node == other.numa_node
    return NODE if near else ACROSS


@functools.lru_cache(4096)
def sets(cards: tuple[Card, ...], count: int) -> tuple[Set, ...] | None:
    """The sets of so many cards, the best first; None if there are too many to compare.

    Of the sets with equal properties, and with cards of the same labels, it has the best one.
    """
    if len(cards) > CARDS:
        return None
    nodes, labels = tuple(each.numa_node for each in cards), tuple(each.label for each in cards)
    speeds = tuple(
        tuple(0 if one is other else speed(one, other) for other in cards) for one in cards
    )
    return _sets(Shape(nodes, labels, speeds), count)


@functools.lru_cache(4096)
def _sets(shape: Shape, count: int) -> tuple[Set, ...] | None:
    groups = _alike(shape)
    ways = [*itertools.islice(_ways([len(group) for group in groups], count), SETS + 1)]
    if len(ways) > SETS:
        return None
    rings, near = _Rings(shape.speeds), [sum(row) for row in shape.speeds]
    found = []
    for way in ways:
        taken = zip(groups, way, strict=True)
        members = tuple(sorted(n for group, amount in taken for n in group[:amount]))
        rest = tuple(n for n in range(len(near)) if n not in members)
        nodes = {shape.nodes[n] for n in members}
        in_one_node = count == 1 or (len(nodes) == 1 and None not in nodes)
        ring, left = rings.speed(members), rings.speed(rest) if len(rest) <= RING else 0
        # The pairs that the rest loses: those of a member, counted once.
        lost = sum(near[n] for n in members) - sum(
            shape.speeds[n][m] for n, m in itertools.combinations(members, 2)
        )
        each = Set(members, in_one_node, count == 1 or ring >= LINK)
        found.append(((-in_one_node, -ring, -left, lost, members), each))
    best: dict[typing.Any, Set] = {}
    for _, each in sorted(found):
        labels = tuple(sorted(shape.labels[n] for n in each.members))
        best.setdefault((each.in_one_node, each.linked, labels), each)
    return tuple(best.values())


def _alike(shape: Shape) -> list[list[int]]:
    """Groups of cards that can replace each other: to exchange two of a group changes nothing."""
    groups: list[list[int]] = []
    for number in range(len(shape.nodes)):
        for group in groups:
            if _are_alike(shape, group[0], number):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _are_alike(shape: Shape, one: int, other: int) -> bool:
    if (shape.nodes[one], shape.labels[one]) != (shape.nodes[other], shape.labels[other]):
        return False
    pairs = enumerate(zip(shape.speeds[one], shape.speeds[other], strict=True))
    return all(ours == theirs for n, (ours, theirs) in pairs if n not in (one, other))


def _ways(sizes: list[int], count: int) -> collections.abc.Iterator[tuple[int, ...]]:
    """The ways to take so many from groups of these sizes: how many from each."""
    if not sizes:
        yield ()
        return
    size, *more = sizes
    for amount in range(max(0, count - sum(more)), min(size, count) + 1):
        for way in _ways(more, count - amount):
            yield amount, *way


class _Rings:
    """The fastest rings of sets of cards."""

    def __init__(self, speeds: tuple[tuple[int, ...], ...]) -> None:
        values = {value for row in speeds for value in row} - {0}
        #: by speed, the fastest first: the cards that each card reaches as fast, as bits
        self._near = {
            value: [sum(1 << n for n, v in enumerate(row) if v >= value) for row in speeds]
            for value in sorted(values, reverse=True)
        }
        self._known: dict[tuple[int, ...], int] = {}

    def speed(self, members: tuple[int, ...]) -> int:
        """The speed of the slowest pair in the fastest ring of these cards; 0 for one card."""
        if len(members) < 2:
            return 0
        if members not in self._known:
            fast = (value for value, near in self._near.items() if _is_ring(members, near))
            self._known[members] = next(fast)
        return self._known[members]


def _is_ring(members: tuple[int, ...], near: list[int]) -> bool:
    """Whether an order of the cards exists in which each reaches the next, and the last the first.

    :param near: by card, the cards that it reaches, as bits.
    """
    bits = sum(1 << n for n in members)
    fewest = min((near[n] & bits).bit_count() for n in members)
    if len(members) == 2:
        return fewest == 1
    if 2 * fewest >= len(members):
        return True
    if fewest < 2 or len(members) > RING:
        return False
    first, *others = members
    #: the cards on a path from the first one, and its end
    paths = {(1 << first, first)}
    for _ in others:
        paths = {
            (passed | 1 << n, n)
            for passed, end in paths
            for n in others
            if near[end] >> n & 1 and not passed >> n & 1
        }
    return any(near[first] >> end & 1 for _, end in paths)

# SPDX-License-Identifier: Apache-2.0
"""Placing: which free accelerators an allocation gets.  Plain data in, plain data out.

On a host a set in one NUMA node is preferred to a set across nodes, and then a set of linked cards:
:mod:`cyborg_lite.conductor.topology` compares the sets.  Where cards are given out in parts, or
only their nodes are known, the node with the fewest free accelerators of those with enough is
chosen, so that larger sets remain for later requests.  A policy, an entry point of
``cyborg_lite.placing``, ranks the hosts.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import typing

from stevedore import driver

from cyborg_lite.conductor import topology

#: A policy: the rank of a host, from the numbers of its free and of the requested accelerators. The
#: host with the lowest rank is tried first.
Rank = collections.abc.Callable[[int, int], float]


class Candidate(typing.NamedTuple):
    """A free accelerator."""

    #: the id of its handle
    handle: int
    host: str
    #: the id of its device, its form, and its NUMA node if that is known
    device: int
    form: str
    numa_node: int | None
    #: the requested kinds that it matches
    kinds: frozenset[int]
    #: where its device is
    place: topology.Place = topology.UNKNOWN
    #: for how many seconds it is free until a reservation needs it; None without an end
    spare: float | None = None

    def fits(self, lease: int | None) -> bool:
        """Whether it is free for a lease of so many seconds; None for one without an end."""
        return self.spare is None or (lease is not None and lease <= self.spare)


class Wanted(typing.NamedTuple):
    """A set of accelerators that are requested together."""

    #: the kind of each accelerator, in order
    kinds: tuple[int, ...]
    same_host: bool = True
    #: whether a set across NUMA nodes is refused
    same_numa: bool = False
    #: whether a set is refused unless its cards form a ring of direct links
    linked: bool = False

    @property
    def together(self) -> bool:
        """Whether they must be on one host."""
        return self.same_host or self.same_numa or self.linked


Chosen = list[Candidate]
#: Whether a set is in one NUMA node, and whether its cards are linked.
Grade = tuple[bool, bool]


def binpack(free: int, wanted: int) -> float:
    """Prefer the fullest host with room: other hosts stay free for requests of a whole host."""
    return free - wanted


def spread(free: int, wanted: int) -> float:
    """Prefer the emptiest host: a failed or busy host affects fewer allocations."""
    return wanted - free


@functools.cache
def policy(name: str) -> Rank:
    """The policy of this name.

    :raises stevedore.exception.NoMatches: when none is installed.
    """
    return typing.cast('Rank', driver.DriverManager('cyborg_lite.placing', name).driver)


def place(
    candidates: collections.abc.Iterable[Candidate], wanted: Wanted, rank: Rank
) -> Chosen | None:
    """An accelerator for each requested one, in order; None if the candidates have no such set."""
    kinds = frozenset(wanted.kinds)
    found = [each for each in candidates if not kinds.isdisjoint(each.kinds)]
    if len(found) < len(wanted.kinds):
        return None
    by_host = _grouped(found, lambda each: each.host)
    count = len(wanted.kinds)
    ranked = sorted(by_host, key=lambda host: (rank(len(by_host[host]), count), host))
    best = True, count == 1 or any(each.place.links for each in found)
    sets: dict[Grade, Chosen] = {}
    for host in ranked:
        chosen, grade = _within(by_host[host], wanted)
        if chosen:
            sets.setdefault(grade, chosen)
            if grade >= best:
                break
    if sets or wanted.together:
        return sets[max(sets)] if sets else None
    return _match([each for host in ranked for each in by_host[host]], wanted.kinds)


def _within(found: Chosen, wanted: Wanted) -> tuple[Chosen | None, Grade]:
    """The best set on one host, and its grade."""
    count = len(wanted.kinds)
    if len(found) < count:
        return None, (False, False)
    cards = _grouped(found, lambda each: each.device)
    ring = wanted.linked and count > 1
    if ring or (len(cards) == len(found) and any(each.place.is_known for each in found)):
        best = _of_cards(list(cards.values()), wanted)
        if best or ring:
            return best or (None, (False, False))
    chosen, in_one_node = _of_nodes(found, wanted)
    return chosen, (in_one_node, count == 1)


def _of_cards(cards: list[Chosen], wanted: Wanted) -> tuple[Chosen, Grade] | None:
    """The best set with one accelerator of each of its cards.

    None also if the sets are too many to compare.
    """
    cards = sorted(cards, key=lambda card: (card[0].place.address, card[0].device))
    kinds = [frozenset(wanted.kinds).intersection(_first(card)) for card in cards]
    labels = {fit: label for label, fit in enumerate(dict.fromkeys(kinds))}
    places = tuple(
        topology.Card(card[0].place, card[0].numa_node, labels[fit])
        for card, fit in zip(cards, kinds, strict=True)
    )
    for each in topology.sets(places, len(wanted.kinds)) or ():
        if each.in_one_node < wanted.same_numa or each.linked < wanted.linked:
            continue
        members = [cards[number][0]._replace(kinds=kinds[number]) for number in each.members]
        if chosen := _match(members, wanted.kinds):
            of = {cards[number][0].device: _first(cards[number]) for number in each.members}
            matched = zip(chosen, wanted.kinds, strict=True)
            grade = each.in_one_node, each.linked
            return [of[card.device][kind] for card, kind in matched], grade
    return None


def _first(card: Chosen) -> dict[int, Candidate]:
    """The first accelerator of a card of each kind."""
    return {kind: each for each in reversed(card) for kind in each.kinds}


def _of_nodes(found: Chosen, wanted: Wanted) -> tuple[Chosen | None, bool]:
    """A set on one host by the NUMA nodes alone, and whether it is in one of them."""
    count = len(wanted.kinds)
    nodes = _grouped(found, lambda each: each.numa_node)
    # An unknown node can be any node: two accelerators of it may not share one.
    fullest = sorted(nodes, key=lambda node: (node is None, len(nodes[node]), node))
    for node in fullest:
        known = node is not None or count == 1
        if known and (chosen := _match(nodes[node], wanted.kinds)):
            return chosen, True
    if wanted.same_numa:
        return None, False
    # Use as few nodes as possible.
    across = [each for node in reversed(fullest) for each in nodes[node]]
    return _match(across, wanted.kinds), False


def _match(found: Chosen, kinds: tuple[int, ...]) -> Chosen | None:
    """A different candidate for each kind; candidates of one device have one form."""
    matching = _Matching(_in_order(found), kinds)
    # Kinds with the fewest matching candidates come first.
    for kind in sorted(kinds, key=lambda kind: len(matching.fit[kind])):
        if not matching.add(kind):
            return None
    held = {kind: iter(matching.held(kind)) for kind in set(kinds)}
    return [next(held[kind]) for kind in kinds]


def _in_order(found: Chosen) -> Chosen:
    """Partly used cards come first, and of each card the form with the most candidates."""
    on_device = collections.Counter(each.device for each in found)
    in_form = collections.Counter((each.device, each.form) for each in found)
    place_ = {handle.handle: number for number, handle in enumerate(found)}
    nodes = {node: number for number, node in enumerate(dict.fromkeys(e.numa_node for e in found))}
    hosts = {host: number for number, host in enumerate(dict.fromkeys(e.host for e in found))}
    return sorted(
        found,
        key=lambda each: (
            hosts[each.host],
            nodes[each.numa_node],
            on_device[each.device],
            each.device,
            -in_form[each.device, each.form],
            place_[each.handle],
        ),
    )


class _Matching:
    """Assigns accelerators to kinds, one kind after another, by augmenting paths."""

    def __init__(self, found: Chosen, kinds: tuple[int, ...]) -> None:
        self.fit = {k: [each for each in found if k in each.kinds] for k in set(kinds)}
        self._left = {kind: iter(fit) for kind, fit in self.fit.items()}
        #: by handle
        self._kind: dict[int, int] = {}
        self._forms: dict[int, str] = {}

    def held(self, kind: int) -> Chosen:
        return [each for each in self.fit[kind] if self._kind.get(each.handle) == kind]

    def add(self, kind: int) -> bool:
        """Assign an accelerator to a kind; this may reassign accelerators of other kinds."""
        came: dict[int, tuple[int, Candidate] | None] = {kind: None}
        for current in (queue := [kind]):
            if free := self._next(current):
                self._take(free, current, came)
                return True
            for each in self._held_by_others(current):
                other = self._kind[each.handle]
                if other not in came:
                    came[other] = current, each
                    queue.append(other)
        return False

    def _held_by_others(self, kind: int) -> Chosen:
        return [each for each in self.fit[kind] if self._kind.get(each.handle, kind) != kind]

    def _next(self, kind: int) -> Candidate | None:
        """The next unused accelerator; a skipped one is not returned again."""
        for each in self._left[kind]:
            form = self._forms.get(each.device, each.form)
            if each.handle not in self._kind and form == each.form:
                return each
        return None

    def _take(
        self, free: Candidate, kind: int, came: dict[int, tuple[int, Candidate] | None]
    ) -> None:
        self._forms[free.device] = free.form
        self._kind[free.handle] = kind
        while step := came[kind]:
            kind, moved = step
            self._kind[moved.handle] = kind


Key = typing.TypeVar('Key')


def _grouped(found: Chosen, key: collections.abc.Callable[[Candidate], Key]) -> dict[Key, Chosen]:
    groups: dict[Key, Chosen] = collections.defaultdict(list)
    for each in found:
        groups[key(each)].append(each)
    return groups

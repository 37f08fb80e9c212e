# SPDX-License-Identifier: Apache-2.0
"""Which of the free accelerators an allocation gets: plain data in, plain data out.

Inside a host a set in one NUMA node goes before one across nodes, and of the nodes where it fits
the one with the fewest free: what others may want together stays together.  Which host goes first
is for a policy, an entry point of ``cyborg_lite.placing``.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import typing

from stevedore import driver

#: A policy: by how many accelerators of a host are free, and how many are wanted, its rank. The
#: host of the lowest rank is tried first.
Rank = collections.abc.Callable[[int, int], float]


class Candidate(typing.NamedTuple):
    """A free accelerator."""

    #: the id of its handle
    handle: int
    host: str
    #: the id of its device, in which form it gives it out, and its NUMA node if that is known
    device: int
    form: str
    numa_node: int | None
    #: the kinds of those wanted that it is
    kinds: frozenset[int]


class Wanted(typing.NamedTuple):
    """What is wanted together."""

    #: the kind of each accelerator, in order
    kinds: tuple[int, ...]
    same_host: bool = True
    #: whether a set across NUMA nodes is refused
    same_numa: bool = False


Chosen = list[Candidate]


def binpack(free: int, wanted: int) -> float:
    """The fullest host that has room: others stay whole for what needs a whole host."""
    return free - wanted


def spread(free: int, wanted: int) -> float:
    """The emptiest host: what fails or is busy with one hits fewer."""
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
    """An accelerator for each that is wanted, in order; None if these have no such set."""
    kinds = frozenset(wanted.kinds)
    found = [each for each in candidates if not kinds.isdisjoint(each.kinds)]
    if len(found) < len(wanted.kinds):
        return None
    by_host = _grouped(found, lambda each: each.host)
    count = len(wanted.kinds)
    ranked = sorted(by_host, key=lambda host: (rank(len(by_host[host]), count), host))
    apart = None
    for host in ranked:
        chosen, together = _within(by_host[host], wanted)
        if chosen and together:
            return chosen
        apart = apart or chosen
    if apart or wanted.same_host or wanted.same_numa:
        return apart
    return _match([each for host in ranked for each in by_host[host]], wanted.kinds)


def _within(found: Chosen, wanted: Wanted) -> tuple[Chosen | None, bool]:
    """A set on one host, and whether it is in one NUMA node."""
    count = len(wanted.kinds)
    if len(found) < count:
        return None, False
    nodes = _grouped(found, lambda each: each.numa_node)
    # A node that is not known may be any: two such are not known to share one.
    fullest = sorted(nodes, key=lambda node: (node is None, len(nodes[node]), node))
    for node in fullest:
        known = node is not None or count == 1
        if known and (chosen := _match(nodes[node], wanted.kinds)):
            return chosen, True
    if wanted.same_numa:
        return None, False
    # Across nodes: as few as possible.
    across = [each for node in reversed(fullest) for each in nodes[node]]
    return _match(across, wanted.kinds), False


def _match(found: Chosen, kinds: tuple[int, ...]) -> Chosen | None:
    """One of these for each kind, all different, and those of one device in one form."""
    matching = _Matching(_in_order(found), kinds)
    # What few are fit for goes first.
    for kind in sorted(kinds, key=lambda kind: len(matching.fit[kind])):
        if not matching.add(kind):
            return None
    held = {kind: iter(matching.held(kind)) for kind in set(kinds)}
    return [next(held[kind]) for kind in kinds]


def _in_order(found: Chosen) -> Chosen:
    """Cards that are used in part go first, and of a card the form that has most."""
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
    """Which accelerator serves which kind, one kind after another."""

    def __init__(self, found: Chosen, kinds: tuple[int, ...]) -> None:
        self.fit = {k: [each for each in found if k in each.kinds] for k in set(kinds)}
        self._left = {kind: iter(fit) for kind, fit in self.fit.items()}
        #: by handle
        self._kind: dict[int, int] = {}
        self._forms: dict[int, str] = {}

    def held(self, kind: int) -> Chosen:
        return [each for each in self.fit[kind] if self._kind.get(each.handle) == kind]

    def add(self, kind: int) -> bool:
        """Serve one more of a kind; others may have to be served by another accelerator then."""
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

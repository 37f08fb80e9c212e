# SPDX-License-Identifier: Apache-2.0
"""Which of the allocations that wait get what is free: plain data in, plain data out.

They are looked at in the order of their turns.  One that cannot be served keeps what is free and
could be of use to it, so that nothing behind it delays it; what cannot be of use to it goes to
those behind.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import typing

from cyborg_lite.conductor import placing

#: The only hosts to choose from; None for all.
Hosts = frozenset[str] | None

#: The number of accelerators on each host, held or free, by kind.
Amounts = dict[int, collections.Counter[str]]


class Stock:
    """All accelerators as if all were free, and the hosts that could ever serve a set.

    A tenant may queue many impossible sets. An amount that no host has is found by counts alone,
    and the result for a set is used again for equal ones.
    """

    def __init__(
        self,
        amounts: collections.abc.Callable[[], Amounts],
        read: collections.abc.Callable[
            [placing.Wanted], collections.abc.Iterable[placing.Candidate]
        ],
    ) -> None:
        """:param read: the accelerators that may be a part of a set, at least as many as it needs.

        Both are called at their first use.
        """
        self._read = read
        self._amounts = functools.cache(amounts)
        self._known: dict[tuple[placing.Wanted, Hosts], frozenset[str]] = {}

    @property
    def is_known(self) -> bool:
        """Whether it was read."""
        return bool(self._known)

    def able(self, wanted: placing.Wanted, hosts: Hosts) -> frozenset[str]:
        """The hosts of these that could serve a set; if it may span hosts, all of them or none."""
        together = wanted.same_host or wanted.same_numa
        key = wanted, None if together else hosts
        if key not in self._known:
            self._known[key] = self._together(wanted) if together else self._apart(wanted, hosts)
        found = self._known[key]
        return found if hosts is None else found & hosts

    def _together(self, wanted: placing.Wanted) -> frozenset[str]:
        enough = [
            {host for host, n in self._amounts()[kind].items() if n >= need}
            for kind, need in collections.Counter(wanted.kinds).items()
        ]
        return self._exactly(wanted, frozenset(set.intersection(*enough)))

    def _apart(self, wanted: placing.Wanted, hosts: Hosts) -> frozenset[str]:
        places: set[str] = set()
        for kind, need in collections.Counter(wanted.kinds).items():
            of = self._amounts()[kind]
            mine = {host: n for host, n in of.items() if hosts is None or host in hosts}
            if sum(mine.values()) < need:
                return frozenset()
            places |= mine.keys()
        found = [each for each in self._read(wanted) if each.host in places]
        return frozenset(places) if _fits(found, wanted) else frozenset()

    def _exactly(self, wanted: placing.Wanted, hosts: frozenset[str]) -> frozenset[str]:
        """Those of these hosts whose accelerators, by NUMA node and form, make up the set."""
        by_host = collections.defaultdict(list)
        for each in self._read(wanted) if hosts else ():
            if each.host in hosts:
                by_host[each.host].append(each)
        return frozenset(host for host, found in by_host.items() if _fits(found, wanted))


#: The sets and the hosts of an entry.
Key = tuple[tuple[placing.Wanted | None, ...], Hosts]


class Entry(typing.NamedTuple):
    """A queued allocation."""

    id: int
    #: its alternatives in order; None for one that its quota refuses now
    sets: tuple[placing.Wanted | None, ...]
    #: the only hosts to choose from; None for all
    hosts: Hosts = None

    def fit(self, candidates: collections.abc.Iterable[placing.Candidate]) -> placing.Chosen:
        """Those of these that it may have, as a part of any of its sets."""
        kinds = frozenset(kind for wanted in filter(None, self.sets) for kind in wanted.kinds)
        return [
            each
            for each in candidates
            if not kinds.isdisjoint(each.kinds) and (self.hosts is None or each.host in self.hosts)
        ]

    @property
    def key(self) -> Key:
        """Entries with an equal key are served alike: if the first cannot be, none can."""
        return self.sets, self.hosts


class Grant(typing.NamedTuple):
    """What an allocation gets."""

    entry: Entry
    #: which of its sets
    number: int
    chosen: placing.Chosen
    #: the handles that it could choose from
    allowed: frozenset[int]

    @property
    def wanted(self) -> placing.Wanted:
        """The set that it gets."""
        return typing.cast('placing.Wanted', self.entry.sets[self.number])


def grants(
    entries: collections.abc.Iterable[Entry],
    free: collections.abc.Iterable[placing.Candidate],
    stock: Stock,
    rank: placing.Rank,
    kept: set[int] | None = None,
) -> collections.abc.Iterator[Grant]:
    """The allocations that can be served now, in order.

    :param entries: in the order of their turns.
    :param kept: the handles that earlier entries keep; those that these keep are added.
    """
    kept = set() if kept is None else kept
    left = {each.handle: each for each in free if each.handle not in kept}
    failed: set[Key] = set()
    for entry in _possible(entries, stock, failed):
        fit = entry.fit(left.values())
        found = first(fit, entry.sets, rank) if fit else None
        if found:
            gone = {each.handle for each in found[1]}
            yield Grant(entry, *found, frozenset(each.handle for each in fit))
        else:
            failed.add(entry.key)
            gone = _useful(fit, _able(entry, stock)) if fit else set()
            kept |= gone
        for handle in gone:
            del left[handle]


def unclaimed(
    entries: collections.abc.Iterable[Entry],
    free: collections.abc.Iterable[placing.Candidate],
    stock: Stock,
    kept: set[int] | None = None,
) -> list[placing.Candidate]:
    """What is of use to none of those that wait: others may have it without asking for a turn.

    :param kept: as for :func:`grants`.
    """
    kept = set() if kept is None else kept
    free = list(free)
    left = [each for each in free if each.handle not in kept]
    seen: set[Key] = set()
    for entry in _possible(entries, stock, seen):
        seen.add(entry.key)
        if fit := entry.fit(left):
            kept |= _useful(fit, _able(entry, stock))
            left = [each for each in left if each.handle not in kept]
    return [each for each in free if each.handle not in kept]


def _possible(
    entries: collections.abc.Iterable[Entry], stock: Stock, settled: set[Key]
) -> collections.abc.Iterator[Entry]:
    """The entries whose key is not settled, without those that the stock can never serve.

    The stock is not read for this: the first entry may be served at once.

    :param settled: the caller adds to it meanwhile.
    """
    for entry in entries:
        if entry.key not in settled and (not stock.is_known or _able(entry, stock)):
            yield entry


def first(
    found: collections.abc.Iterable[placing.Candidate],
    sets: collections.abc.Iterable[placing.Wanted | None],
    rank: placing.Rank,
) -> tuple[int, placing.Chosen] | None:
    """The first of these sets that can be had, by its number, and its accelerators."""
    found = list(found)
    for number, wanted in enumerate(sets):
        chosen = placing.place(found, wanted, rank) if wanted else None
        if chosen:
            return number, chosen
    return None


Able = list[tuple[frozenset[int], frozenset[str]]]


def _able(entry: Entry, stock: Stock) -> Able:
    """The kinds of each set that could ever be had, and the hosts that could serve it."""
    return [
        (frozenset(wanted.kinds), hosts)
        for wanted in filter(None, entry.sets)
        if (hosts := stock.able(wanted, entry.hosts))
    ]


def _useful(fit: placing.Chosen, able: Able) -> set[int]:
    """Those of these that may be a part of what is given to this one at some time.

    A host that could not serve it even if all of it were free is of no use to it.
    """
    return {
        each.handle
        for kinds, hosts in able
        for each in fit
        if each.host in hosts and not kinds.isdisjoint(each.kinds)
    }


def _fits(found: placing.Chosen, wanted: placing.Wanted) -> bool:
    return placing.place(found, wanted, placing.binpack) is not None

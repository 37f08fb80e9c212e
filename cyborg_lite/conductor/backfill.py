# SPDX-License-Identifier: Apache-2.0
"""Backfill: which queued allocations get the free accelerators.  Plain data in, plain data out.

The entries of the queue are served in order.  An entry that cannot be served now reserves the free
accelerators that it could use, so that later entries do not delay it.  Accelerators that it cannot
use go to later entries.
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


class Capacity:
    """All accelerators, free or held, and the hosts that could serve a set if all were free.

    A tenant may queue many impossible sets. Counts alone find an amount that no host has, and the
    result for a set is reused for equal sets.
    """

    def __init__(
        self,
        amounts: collections.abc.Callable[[], Amounts],
        read: collections.abc.Callable[
            [placing.Wanted], collections.abc.Iterable[placing.Candidate]
        ],
    ) -> None:
        """:param read: returns the accelerators that may be part of a set, as many as it needs.

        Both functions are called at their first use.
        """
        self._read = read
        self._amounts = functools.cache(amounts)
        self._known: dict[tuple[placing.Wanted, Hosts], frozenset[str]] = {}

    @property
    def is_known(self) -> bool:
        """Whether the accelerators were read."""
        return bool(self._known)

    def able(self, wanted: placing.Wanted, hosts: Hosts) -> frozenset[str]:
        """The given hosts that could serve a set; if it may span hosts, all of them or none."""
        key = wanted, None if wanted.together else hosts
        if key not in self._known:
            found = self._together(wanted) if wanted.together else self._apart(wanted, hosts)
            self._known[key] = found
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
        """The given hosts whose accelerators make up the set, by NUMA node, link and form."""
        by_host = collections.defaultdict(list)
        for each in self._read(wanted) if hosts else ():
            if each.host in hosts:
                by_host[each.host].append(each)
        return frozenset(host for host, found in by_host.items() if _fits(found, wanted))


#: The sets, the hosts and the lease of an entry.
Key = tuple[tuple[placing.Wanted | None, ...], Hosts, int | None]


class Entry(typing.NamedTuple):
    """A queued allocation."""

    id: int
    #: its alternatives in order; None for an alternative that the quota refuses now
    sets: tuple[placing.Wanted | None, ...]
    #: the only hosts to choose from; None for all
    hosts: Hosts = None
    #: the length of its lease in seconds; None if it has no end
    lease: int | None = None

    def fit(self, candidates: collections.abc.Iterable[placing.Candidate]) -> placing.Chosen:
        """The candidates that can be part of any of its sets, until its lease ends."""
        kinds = frozenset(kind for wanted in filter(None, self.sets) for kind in wanted.kinds)
        return [
            each
            for each in candidates
            if not kinds.isdisjoint(each.kinds)
            and (self.hosts is None or each.host in self.hosts)
            and each.fits(self.lease)
        ]

    @property
    def key(self) -> Key:
        """Entries with an equal key have equal needs: if one cannot be served, none can."""
        return self.sets, self.hosts, self.lease


class Grant(typing.NamedTuple):
    """The accelerators that an entry gets."""

    entry: Entry
    #: the number of the set
    number: int
    chosen: placing.Chosen
    #: the handles that it could choose from
    allowed: frozenset[int]

    @property
    def wanted(self) -> placing.Wanted:
        """The set that is served."""
        return typing.cast('placing.Wanted', self.entry.sets[self.number])


def grants(
    entries: collections.abc.Iterable[Entry],
    free: collections.abc.Iterable[placing.Candidate],
    capacity: Capacity,
    rank: placing.Rank,
    reserved: set[int] | None = None,
) -> collections.abc.Iterator[Grant]:
    """The entries that can be served now, in order.

    :param entries: in the order of service.
    :param reserved: the handles that earlier entries reserve; those of these entries are added.
    """
    reserved = set() if reserved is None else reserved
    left = {each.handle: each for each in free if each.handle not in reserved}
    failed: set[Key] = set()
    for entry in _possible(entries, capacity, failed):
        fit = entry.fit(left.values())
        found = first(fit, entry.sets, rank) if fit else None
        if found:
            gone = {each.handle for each in found[1]}
            yield Grant(entry, *found, frozenset(each.handle for each in fit))
        else:
            failed.add(entry.key)
            gone = _useful(fit, _able(entry, capacity)) if fit else set()
            reserved |= gone
        for handle in gone:
            del left[handle]


def unreserved(
    entries: collections.abc.Iterable[Entry],
    free: collections.abc.Iterable[placing.Candidate],
    capacity: Capacity,
    reserved: set[int] | None = None,
) -> list[placing.Candidate]:
    """The free accelerators that no entry can use: a request outside the queue may have them.

    :param reserved: as for :func:`grants`.
    """
    reserved = set() if reserved is None else reserved
    free = list(free)
    left = [each for each in free if each.handle not in reserved]
    seen: set[Key] = set()
    for entry in _possible(entries, capacity, seen):
        seen.add(entry.key)
        if fit := entry.fit(left):
            reserved |= _useful(fit, _able(entry, capacity))
            left = [each for each in left if each.handle not in reserved]
    return [each for each in free if each.handle not in reserved]


def _possible(
    entries: collections.abc.Iterable[Entry], capacity: Capacity, settled: set[Key]
) -> collections.abc.Iterator[Entry]:
    """The entries whose key is not settled, without those that could never be served.

    This alone does not read the capacity: the first entry may be served at once.

    :param settled: the caller adds to it during the iteration.
    """
    for entry in entries:
        if entry.key not in settled and (not capacity.is_known or _able(entry, capacity)):
            yield entry


def first(
    found: collections.abc.Iterable[placing.Candidate],
    sets: collections.abc.Iterable[placing.Wanted | None],
    rank: placing.Rank,
) -> tuple[int, placing.Chosen] | None:
    """The first set that the candidates can serve: its number, and its accelerators."""
    found = list(found)
    for number, wanted in enumerate(sets):
        chosen = placing.place(found, wanted, rank) if wanted else None
        if chosen:
            return number, chosen
    return None


Able = list[tuple[frozenset[int], frozenset[str]]]


def _able(entry: Entry, capacity: Capacity) -> Able:
    """The kinds of each set that could be served if all were free, and the hosts for it."""
    return [
        (frozenset(wanted.kinds), hosts)
        for wanted in filter(None, entry.sets)
        if (hosts := capacity.able(wanted, entry.hosts))
    ]


def _useful(fit: placing.Chosen, able: Able) -> set[int]:
    """The handles that the entry could use now or later.

    A host that could not serve it even if all its accelerators were free is of no use to it.
    """
    return {
        each.handle
        for kinds, hosts in able
        for each in fit
        if each.host in hosts and not kinds.isdisjoint(each.kinds)
    }


def _fits(found: placing.Chosen, wanted: placing.Wanted) -> bool:
    return placing.place(found, wanted, placing.binpack) is not None

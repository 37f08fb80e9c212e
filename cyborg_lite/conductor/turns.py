# SPDX-License-Identifier: Apache-2.0
"""Which of the allocations that wait get what is free: plain data in, plain data out.

They are looked at in the order of their turns.  One that cannot be served keeps what is free and
could be of use to it, so that nothing behind it delays it; what cannot be of use to it goes to
those behind.
"""

from __future__ import annotations

import collections.abc
import typing

from cyborg_lite.conductor import placing

Known = collections.abc.Callable[[placing.Wanted], collections.abc.Iterable[placing.Candidate]]


class Entry(typing.NamedTuple):
    """A queued allocation."""

    id: int
    #: its alternatives in order; None for one that its quota refuses now
    sets: tuple[placing.Wanted | None, ...]
    #: the only hosts to choose from; None for all
    hosts: frozenset[str] | None = None

    def fits(self, candidate: placing.Candidate) -> bool:
        """Whether it may have an accelerator, as a part of any of its sets."""
        if self.hosts is not None and candidate.host not in self.hosts:
            return False
        return any(candidate.kinds.intersection(wanted.kinds) for wanted in filter(None, self.sets))


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
    known: Known,
    rank: placing.Rank,
    kept: set[int] | None = None,
) -> collections.abc.Iterator[Grant]:
    """The allocations that can be served now, in order.

    :param entries: in the order of their turns.
    :param known: all accelerators that there are, as if all were free.
    :param kept: the handles that earlier entries keep; those that these keep are added.
    """
    kept = set() if kept is None else kept
    left = {each.handle: each for each in free if each.handle not in kept}
    for entry in entries:
        fit = [each for each in left.values() if entry.fits(each)]
        found = first(fit, entry.sets, rank) if fit else None
        if found:
            gone = {each.handle for each in found[1]}
            yield Grant(entry, *found, frozenset(each.handle for each in fit))
        else:
            gone = _useful(entry, fit, known) if fit else set()
            kept |= gone
        for handle in gone:
            del left[handle]


def unclaimed(
    entries: collections.abc.Iterable[Entry],
    free: collections.abc.Iterable[placing.Candidate],
    known: Known,
    kept: set[int] | None = None,
) -> list[placing.Candidate]:
    """What is of use to none of those that wait: others may have it without asking for a turn.

    :param kept: as for :func:`grants`.
    """
    kept = set() if kept is None else kept
    free = list(free)
    for entry in entries:
        if fit := [each for each in free if each.handle not in kept and entry.fits(each)]:
            kept |= _useful(entry, fit, known)
    return [each for each in free if each.handle not in kept]


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


def _useful(entry: Entry, fit: placing.Chosen, known: Known) -> set[int]:
    """Those of these that may be a part of what is given to this one at some time.

    A host that could not serve it even if all of it were free is of no use to it.
    """
    return {
        each.handle
        for wanted in filter(None, entry.sets)
        for hosts in [_able(entry, wanted, known)]
        for each in fit
        if each.host in hosts and each.kinds.intersection(wanted.kinds)
    }


def _able(entry: Entry, wanted: placing.Wanted, known: Known) -> set[str]:
    """The hosts from which this set could be had if all accelerators were free."""
    found = [each for each in known(wanted) if entry.fits(each)]
    hosts = {each.host for each in found}
    if wanted.same_host or wanted.same_numa:
        return {host for host in hosts if _fits([e for e in found if e.host == host], wanted)}
    return hosts if _fits(found, wanted) else set()


def _fits(found: placing.Chosen, wanted: placing.Wanted) -> bool:
    return placing.place(found, wanted, placing.binpack) is not None

# SPDX-License-Identifier: Apache-2.0
"""Which free accelerators a request outside the queue gets: none that those before it can use.

Before it come the allocations that wait and the reservations; and a quota may refuse what is free.
A choice looks at some of what is free, and at more only where that does not do.
"""

from __future__ import annotations

import collections
import collections.abc
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite.conductor import backfill
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import taking
from cyborg_lite.db import candidates

#: How many free accelerators are looked at first, and then, beside MORE for each of a request. At
#: last all are.
WINDOWS, MORE = (256, 4096), 8
#: The alternatives that exceed a quota, by their numbers.
Over = dict[int, exception.OverQuota]
#: The first alternative that can be had, by its number, and its accelerators.
Found = tuple[int, placing.Chosen]


class Choice(typing.NamedTuple):
    """What a request could have."""

    found: Found | None
    #: what is free, if none of the alternatives can be had
    free: placing.Chosen = []
    #: the handles that it may choose from; None for all
    allowed: frozenset[int] | None = None
    #: how many wait for accelerators of the same classes
    ahead: int = 0
    #: whether hosts may have more than was read of them
    cut: bool = False
    #: whether it was counted that what is found is within the quota
    counted: bool = False


class _Before(typing.NamedTuple):
    """What comes before a request."""

    #: the allocations that wait for accelerators of the same classes
    waiting: list[sa.Row[typing.Any]]
    #: of those, the alternatives that a quota refuses now
    refused: serving.Refusals


class Chooser:
    """Chooses for one request, in one transaction."""

    def __init__(
        self,
        session: orm.Session,
        project: str,
        wanted: reasons.Wanted,
        kinds: taking.Kinds,
        hosts: candidates.Hosts,
        lease: int | None,
        rank: placing.Rank,
    ) -> None:
        """
        :param hosts: the only hosts to choose from; None for all.
        :param lease: for how many seconds they are wanted; None without an end.
        """
        #: alternatives that are not looked at; choose() adds those that only a quota refuses
        self.over: Over = {}
        #: of each alternative the limit that it exceeds, or None; nothing if it was not counted
        self._refused: collections.abc.Sequence[exception.OverQuota | None] = ()
        #: whether there may be a quota of the project, as the last choice has seen
        self._limited = False
        self._session, self._project, self._wanted, self._kinds = session, project, wanted, kinds
        self._hosts, self._lease, self._rank = hosts, lease, rank

    @property
    def within(self) -> list[placing.Wanted | None]:
        """The alternatives, with None for those that exceed a quota."""
        return self._only(range(len(self._wanted.sets)))

    def lasting(self) -> Over:
        """The alternatives, if each is more than a limit itself: it helps nothing to wait."""
        refused = self._refused or quotas.beyond_limits(self._session, self._project, self._asked)
        found = {number: each for number, each in enumerate(refused) if each and each.is_lasting}
        return found if len(found) == len(refused) else {}

    @property
    def _asked(self) -> list[collections.Counter[str]]:
        """How many of each resource class the alternatives ask for."""
        return [taking.asked(each) for each in self._wanted.profiles]

    def choose(self) -> Choice:
        """Choose for the first alternative for which there is enough."""
        sets = self._wanted.sets
        more = MORE * max(len(each.kinds) for each in sets)
        first, *further = [each + more for each in WINDOWS]
        windows = iter([*further, None])
        look = taking.look(self._session, self._kinds, self._hosts, first)
        self._limited = look.limited
        window: int | None = first
        free, before, best = look.free, None, Choice(None)
        tried = [number for number, each in enumerate(self.within) if each]
        while True:
            choice = Choice(None, self._fit(free))
            if found := self._first(choice.free, tried):
                before = before or self._look_before(look.waits)
                choice = self._after(before, choice.free, found, tried, window)
            full = window is not None and len(free) >= window
            if choice.found or not best.found:
                best = choice._replace(cut=full)
            # Those before what is found may be further on.
            end = best.found[0] if best.found else len(sets)
            tried = [number for number in tried if number < end and number not in self.over]
            if not full or not tried:
                return best
            window = next(windows)
            free = self._read(self._kinds, tried, window)

    def _only(self, numbers: collections.abc.Container[int]) -> list[placing.Wanted | None]:
        """The alternatives, with None for those that are not among these or exceed a quota."""
        return [
            each if number in numbers and number not in self.over else None
            for number, each in enumerate(self._wanted.sets)
        ]

    def _first(self, free: placing.Chosen, tried: list[int]) -> Found | None:
        """The first of these alternatives that can be had."""
        return backfill.first(free, self._only(tried), self._rank)

    def _read(
        self, kinds: taking.Kinds, tried: list[int], window: int | None
    ) -> list[placing.Candidate]:
        """What is free for these alternatives, and which of the kinds it has."""
        only = {kind for number in tried for kind in self._wanted.sets[number].kinds}
        return taking.free(self._session, kinds, self._hosts, window, only)

    def _fit(self, free: list[placing.Candidate]) -> list[placing.Candidate]:
        """What no reservation needs before the lease has ended."""
        return [each for each in free if each.fits(self._lease)]

    def _look_before(self, waits: bool) -> _Before:
        counted: quotas.Counted = {}
        if self._limited:
            own = {None: (self._project, self._asked)}
            self._refused = quotas.refusals(self._session, own, counted).get(None, ())
        if not waits or quotas.first_if_all(self._refused):
            return _Before([], {})
        waiting = serving.ahead(self._session, self._kinds)
        return _Before(waiting, serving.refusals(self._session, waiting, counted=counted))

    def _after(
        self,
        before: _Before,
        free: placing.Chosen,
        found: Found | None,
        tried: list[int],
        window: int | None,
    ) -> Choice:
        """Choose what is left by those before; note the alternatives that a quota refuses."""
        while found and self._refused and (refusal := self._refused[found[0]]):
            self.over[found[0]] = refusal
            found = self._first(free, tried)
        counted = bool(self._refused)
        if found is None or not before.waiting:
            return Choice(found, free, counted=counted)
        left: list[placing.Candidate] = []
        reserved: set[int] = set()
        for part in serving.parts(before.waiting, self._kinds, before.refused):
            # What those before ask for may be of other kinds: then it is read which these are.
            alike = part.kinds.keys() == self._kinds.keys()
            there = free if alike else self._read(part.kinds, tried, window)
            capacity = serving.capacity(self._session, part)
            left = self._fit(backfill.unreserved(part.entries, there, capacity, reserved))
        allowed, count = frozenset(each.handle for each in left), len(before.waiting)
        return Choice(self._first(left, tried), [], allowed, count, counted=counted)

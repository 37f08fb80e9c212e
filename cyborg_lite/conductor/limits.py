# SPDX-License-Identifier: Apache-2.0
"""The limits that Keystone keeps, as far as they are known here.

A transaction counts by what is known, and never asks: it holds locks.  If it needs limits that are
not known, it is rolled back; the limits are read, and the transaction is tried again.
"""

from __future__ import annotations

import collections.abc
import threading
import time
import typing

from cyborg_lite import exception


class Unread(Exception):
    """The limits of some projects are not known, or were read too long ago."""

    def __init__(self, projects: frozenset[str]) -> None:
        super().__init__(', '.join(sorted(projects)))
        self.projects = projects


class Source(typing.Protocol):
    """Keystone: see cyborg_lite.clients.keystone."""

    def defaults(self) -> dict[str, int]:
        """The limits of projects that have none of their own, by resource class and in total."""

    def of(self, project: str) -> dict[str, int]:
        """The limits of a project of its own."""


class Limits:
    """What was read of limits; any thread may ask."""

    def __init__(self, source: Source, seconds: float) -> None:
        """:param seconds: how long what was read counts."""
        self._source, self._seconds = source, seconds
        # By project, and of the defaults by None: until when it counts, by time.monotonic().
        self._read: dict[str | None, tuple[float, dict[str, int]]] = {}
        # Concurrent calls that miss the same limits read them once.
        self._reading = threading.Lock()
        self._failed = 0.0
        self._error: exception.CyborgError | None = None

    def known(self, projects: collections.abc.Collection[str]) -> dict[str, dict[str, int]]:
        """What is limited of each of these projects.

        :raises Unread: when that is not known of each of them.
        """
        now = time.monotonic()
        unread = frozenset(each for each in projects if self._find(each, now) is None)
        if unread:
            raise Unread(unread)
        return {each: typing.cast('dict[str, int]', self._find(each, now)) for each in projects}

    def _find(self, project: str | None, now: float) -> dict[str, int] | None:
        until, found = self._read.get(project, (now, {}))
        return found if now < until else None

    def read(self, projects: collections.abc.Collection[str]) -> dict[str, dict[str, int]]:
        """Read the limits of these projects that are not known; returns those of all.

        :raises cyborg_lite.exception.LimitsAway: when Keystone does not say them.
        """
        began = time.monotonic()
        with self._reading:
            # Another call failed while this one waited: to ask again would take as long.
            if self._error is not None and self._failed >= began:
                raise self._error
            try:
                return {each: self._merged(each) for each in projects}
            except exception.CyborgError as error:
                self._failed, self._error = time.monotonic(), error
                raise

    def _merged(self, project: str) -> dict[str, int]:
        found = self._find(project, time.monotonic())
        if found is None:
            defaults = self._find(None, time.monotonic())
            if defaults is None:
                defaults = self._keep(None, self._source.defaults())
            found = self._keep(project, defaults | self._source.of(project))
        return found

    def _keep(self, project: str | None, found: dict[str, int]) -> dict[str, int]:
        now = time.monotonic()
        # Another dictionary: others iterate over this one.
        kept = {name: each for name, each in self._read.items() if now < each[0]}
        self._read = kept | {project: (now + self._seconds, found)}
        return found

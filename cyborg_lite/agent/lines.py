# SPDX-License-Identifier: Apache-2.0
"""Lines of clients: first come, first served."""

from __future__ import annotations

import collections.abc
import contextlib
import math
import threading
import typing


class Line:
    """The clients that wait for one reservation, in the order in which they came."""

    def __init__(self) -> None:
        self.tickets: list[object] = []
        #: what the first of them waits for, for all of them
        self.shown: dict[str, typing.Any] = {'reason': 'It waits behind others.'}
        #: how many accelerators the reservation has, as far as it is known
        self.has: float = math.inf

    def place(self, ticket: object) -> int:
        """The place of a client: 1 if it is the first."""
        return self.tickets.index(ticket) + 1


class Lines:
    """The lines of a host, by the user and the reservation as this user gives it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[tuple[int, str], Line] = {}

    @contextlib.contextmanager
    def joined(self, uid: int, reservation: str) -> collections.abc.Iterator[tuple[Line, object]]:
        """Stand in a line meanwhile; yields it, and the ticket of the client."""
        ticket = object()
        with self._lock:
            line = self._lines.setdefault((uid, reservation), Line())
            line.tickets.append(ticket)
        try:
            yield line, ticket
        finally:
            with self._lock:
                line.tickets.remove(ticket)
                if not line.tickets:
                    del self._lines[uid, reservation]

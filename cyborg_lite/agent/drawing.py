# SPDX-License-Identifier: Apache-2.0
"""Leases from a reservation: a client waits for its start, and for what others use of it.

Clients of one user that give the same reservation wait in a line: only the first one asks, so that
one who wants many accelerators gets them before those who came later.
"""

from __future__ import annotations

import math
import time
import typing

import oslo_messaging as messaging

from cyborg_lite import exception
from cyborg_lite.agent import leases
from cyborg_lite.agent import lines
from cyborg_lite.agent import processes
from cyborg_lite.agent import terms

#: How often a waiting client is checked to be connected, in seconds.
CHECK = 0.2
#: The least and the most time between two questions whether a reservation has started, in seconds:
#: it may be cancelled.
SOON, LATER = 0.5, 60.0
#: The most time between two questions once it has started, in seconds: what it waits for may be
#: held by others than leases of this host.
BUSY = 5.0

Words = dict[str, typing.Any]


class Client(typing.Protocol):
    """A client that waits."""

    def send(self, words: Words) -> None:
        """Send an answer; raises if the client has gone."""

    def refuse_if_gone(self, timeout: float = 0.0) -> None:
        """Return after so many seconds; raises if the client has gone."""


def take(
    served: leases.Leases, asking: Client, process: processes.Process, request: Words
) -> leases.Lease:
    """Lease for a process from a reservation, once it has started and has enough.

    :param asking: it is told what it waits for.
    :raises cyborg_lite.exception.CyborgError: when the request is refused, also because the
        reservation has ended meanwhile.
    """
    waits = {'state': 'queued', 'host': served.host.name}
    waited = False
    with served.lines.joined(process.uid, str(request['reservation'])) as (line, ticket):
        while True:
            waited |= _wait_for_turn(asking, line, ticket, waits, request.get('count') or 1)
            before = served.uuids()
            try:
                return served.take(process, request)
            except exception.Conflict as error:
                if 'starts_at' not in error.kwargs:
                    raise
                told = {name: error.kwargs.get(name) for name in ('in_use', 'reservation')}
                line.shown = {'reason': error.message} | told
                # Conductors of the release before do not say it.
                line.has = error.kwargs.get('has', math.inf)
                left = terms.until(error.kwargs['starts_at'])
                # The longer ago it was to start, the rarer the questions.
                away = min(max(SOON, abs(left)), LATER if left > 0 else BUSY)
                waited = True
            except exception.NotFound as error:
                if not waited:
                    raise
                over = 'It has ended, or was cancelled, while this request waited.'
                raise exception.Conflict(reason=f'{error.message} {over}') from None
            except (messaging.MessagingException, exception.CyborgError) as error:
                # An outage ends no wait, as in the queue.
                if not waited or getattr(error, 'code', 503) < 500:
                    raise
                away = SOON
            asking.send(waits | line.shown | {'position': 1})
            _pause(served, asking, before, away)


def _wait_for_turn(
    asking: Client, line: lines.Line, ticket: object, waits: Words, count: int
) -> bool:
    """Wait until a client is the first of its line; returns whether others were before it.

    One that asks for more than there is has no turn to wait for: it is refused.
    """
    told: Words = {}
    while (place := line.place(ticket)) > 1 and count <= line.has:
        if told != (now := waits | line.shown | {'position': place}):
            asking.send(now)
            told = now
        asking.refuse_if_gone(CHECK)
    return bool(told)


def _pause(served: leases.Leases, asking: Client, before: set[str], seconds: float) -> None:
    """Wait so long, or until one of these leases of the host has ended: its part may be enough."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and before <= served.uuids():
        asking.refuse_if_gone(min(CHECK, seconds))

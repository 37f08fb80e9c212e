# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for a condition: they poll it, so any process may change it.

They hold no lock and no transaction between two polls.
"""

from __future__ import annotations

import collections.abc
import time

from cyborg_lite.api import rest

#: The time between two polls, in seconds.
INTERVAL = 0.2


def wait(done: collections.abc.Callable[[], bool], seconds: float) -> None:
    """Return once the condition holds, or after so many seconds.

    While the database is unavailable the condition counts as not met: the wait goes on.
    Return at once if too many requests wait already: each occupies a thread of the web server.
    """
    slots, stopping = rest.call().waiting, rest.call().stopping
    if seconds <= 0 or not slots.acquire(blocking=False):
        return
    try:
        end = time.monotonic() + seconds
        while not _holds(done) and (left := end - time.monotonic()) > 0 and not stopping():
            time.sleep(min(left, INTERVAL))
    finally:
        slots.release()


def _holds(done: collections.abc.Callable[[], bool]) -> bool:
    try:
        return done()
    except Exception as error:
        if rest.away(error) is None:
            raise
        return False

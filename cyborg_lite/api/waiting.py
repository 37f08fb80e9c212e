# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for something: it is looked for again and again, and nothing is held between.

So it does not matter which process brings it about.
"""

from __future__ import annotations

import collections.abc
import time

from cyborg_lite.api import rest

#: How often it is looked for, in seconds.
INTERVAL = 0.2


def wait(done: collections.abc.Callable[[], bool], seconds: float) -> None:
    """Return once it is done, or after so many seconds.

    Return at once where too many requests wait already: each takes a thread of the web server.
    """
    slots, stopping = rest.call().waiting, rest.call().stopping
    if seconds <= 0 or not slots.acquire(blocking=False):
        return
    try:
        end = time.monotonic() + seconds
        while not done() and (left := end - time.monotonic()) > 0 and not stopping():
            time.sleep(min(left, INTERVAL))
    finally:
        slots.release()

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite`` from its first moment to its last: Ctrl-C ends it without a traceback while
modules load, and no thread that hangs keeps it from its end.
"""

from __future__ import annotations

import os
import sys
import threading
import time

#: The status of a command that Ctrl-C ended: 128 and the number of SIGINT.
INTERRUPTED = 130
#: How long threads may take to end once the command has, in seconds.
PATIENCE = 0.5


def main() -> int:
    try:
        from cyborg_lite.cmd import main as command

        status = command.main()
        _end_threads(status)
        return status
    except KeyboardInterrupt:
        return INTERRUPTED


def _end_threads(status: int) -> None:
    """End the process here if threads are still busy: Python would wait for them.

    What they have not committed is rolled back, and nobody was told that it was done.
    """
    end = time.monotonic() + PATIENCE
    others = [t for t in threading.enumerate() if t is not threading.current_thread()]
    awaited = [t for t in others if not t.daemon]
    for thread in awaited:
        thread.join(max(0.0, end - time.monotonic()))
    busy = [t.name for t in awaited if t.is_alive()]
    if busy:
        import logging

        log = logging.getLogger(__name__)
        log.warning('The process ends while threads are busy: %s', ', '.join(busy))
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)

# SPDX-License-Identifier: Apache-2.0
"""The entry point of ``cyborg-lite``: a thread that hangs does not delay the exit.

Ctrl-C ends the command without a traceback, even while modules load: before :func:`main` hardly
any is loaded.
"""

from __future__ import annotations

#: The status of a command that Ctrl-C ended: 128 and the number of SIGINT.
INTERRUPTED = 130
#: How long the exit waits for threads, in seconds.
PATIENCE = 0.5


def main() -> int:
    try:
        from cyborg_lite.cmd import main as command

        status = command.main()
        _end_threads(status)
        return status
    except KeyboardInterrupt:
        import signal

        # Python would print the traceback of a second interrupt during its end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED


def _end_threads(status: int) -> None:
    """Exit at once if threads are still busy: Python would wait for them.

    Their open transactions are rolled back, and no client received an answer for them.
    """
    import os
    import sys
    import threading
    import time

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

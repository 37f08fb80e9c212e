# SPDX-License-Identifier: Apache-2.0
"""Threads that work until they are told to stop."""

from __future__ import annotations

import collections.abc
import contextlib
import threading

from oslo_log import log

LOG = log.getLogger(__name__)

#: The longest wait after a failure, in seconds; the first is one second, and each doubles.
PATIENCE = 16


class Worker:
    """A thread that does its work again and again until it is told to stop.

    No exception ends it, not even one of the log: the work is started again after a wait.
    """

    def __init__(
        self, name: str, work: collections.abc.Callable[[], float], delay: float = 0.0
    ) -> None:
        """A worker, which does not run yet.

        :param work: returns after how many seconds it is to be done again, or sooner if woken.
        :param delay: how long to wait before the work is done first, in seconds.
        """
        self._work = work
        self._wait = delay
        self._failures = 0
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop: work that takes long looks at this now and then."""
        return self._stopping

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have the work done now, or once more if it is being done."""
        self._woken.set()

    def stop(self) -> None:
        """Tell it to stop, after what is in hand."""
        self._stopping = True
        self._woken.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has stopped, for at most so many seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            # Even the wait is inside: an exception may be raised in a thread from outside.
            try:
                self._woken.wait(self._wait)
                self._woken.clear()
                if not self._stopping:
                    self._wait = self._work()
                    self._failures = 0
            except BaseException:  # SystemExit, too, is no order to stop
                with contextlib.suppress(BaseException):
                    self._fail()

    def _fail(self) -> None:
        self._wait = min(2**self._failures, PATIENCE)
        self._failures = min(self._failures + 1, PATIENCE)
        LOG.exception(
            'The work of thread %s failed: it is started again in %d s',
            self._thread.name,
            self._wait,
        )

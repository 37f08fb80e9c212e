# SPDX-License-Identifier: Apache-2.0
"""Threads that work until they are stopped."""

from __future__ import annotations

import collections.abc
import contextlib
import threading

from oslo_log import log

from cyborg_lite import context

LOG = log.getLogger(__name__)

#: The longest backoff after a failure, in seconds; the first is one second, and each doubles.
PATIENCE = 16


class Worker:
    """A thread that repeats its work until it is stopped.

    No exception ends it, not even one of the log: the work is retried after a backoff.
    """

    def __init__(
        self, name: str, work: collections.abc.Callable[[], float], delay: float = 0.0
    ) -> None:
        """A worker that is not started yet.

        :param work: returns the seconds until its next run; :meth:`wake` starts it earlier.
        :param delay: the time before the first run, in seconds.
        """
        self._work = work
        self._wait = delay
        self._failures = 0
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested: long work checks this periodically."""
        return self._stopping

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Run the work now, or once more if it is running."""
        self._woken.set()

    def stop(self) -> None:
        """Request a stop after the work in progress."""
        self._stopping = True
        self._woken.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has stopped, for at most so many seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            # The wait is inside, too: another thread may raise an exception in this one.
            try:
                self._woken.wait(self._wait)
                self._woken.clear()
                if not self._stopping:
                    context.forget()
                    self._wait = self._work()
                    self._failures = 0
            except BaseException:  # not even SystemExit stops the worker
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

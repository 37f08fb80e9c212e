# SPDX-License-Identifier: Apache-2.0
"""Calls that may never return, each in a thread of its own."""

from __future__ import annotations

import collections.abc
import concurrent.futures
import threading
import typing

Answer = typing.TypeVar('Answer')


def call(
    name: str, function: collections.abc.Callable[[], Answer]
) -> concurrent.futures.Future[Answer]:
    """Call a function in a daemon thread: a pool would wait for a hung thread at exit.

    :param name: the name of the thread
    """
    future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # SystemExit must end only this thread
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future

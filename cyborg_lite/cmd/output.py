# SPDX-License-Identifier: Apache-2.0
"""Standard output of the commands, whatever it is: a pipe that closes, a narrow encoding, nothing.

Text of hardware and of the network is printed: it may have any character.
"""

from __future__ import annotations

import collections.abc
import functools
import io
import os
import signal
import sys

#: The status of a command whose output pipe was closed, as in shells.
PIPED = 128 + signal.SIGPIPE


def prepared(main: collections.abc.Callable[[], int]) -> collections.abc.Callable[[], int]:
    """A command that writes what its output can take, and ends quietly with the reader of it."""

    @functools.wraps(main)
    def prepared_main() -> int:
        _prepare()
        try:
            try:
                return main()
            finally:
                # Also if the parser of the arguments ends the process.
                sys.stdout.flush()
        except BrokenPipeError:
            # The rest of the output would raise an error at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPED

    return prepared_main


def _prepare() -> None:
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:
            # The caller has closed it, as "command >&-" does.
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115 - it stays open
        elif isinstance(stream, io.TextIOWrapper):
            # "?" for a character that the locale does not have.
            stream.reconfigure(errors='replace')

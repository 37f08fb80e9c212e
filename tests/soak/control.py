# SPDX-License-Identifier: Apache-2.0
"""What the soak tells its processes through a directory: nothing of it is in the service.

A fault that is to befall the next who comes by is a file; who takes it away has it.  A clock that
is wrong is a file, too, which says by how much.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

#: How long a process goes by what it has read of its clock, in seconds.
FRESH = 0.2


class Control:
    """The directory, as either side sees it."""

    def __init__(self, place: pathlib.Path) -> None:
        self._faults = place / 'faults'
        self._clocks = place / 'clocks'
        self._faults.mkdir(parents=True, exist_ok=True)
        self._clocks.mkdir(exist_ok=True)

    def issue(self, kind: str, fault: str, number: int) -> None:
        """Have this befall the next of its kind."""
        (self._faults / f'{kind}.{fault}.{number}').touch()

    def take(self, kind: str) -> str | None:
        """A fault of this kind that nobody else has, if there is one."""
        for name in os.listdir(self._faults):
            if name.startswith(f'{kind}.'):
                with contextlib.suppress(FileNotFoundError):
                    (self._faults / name).unlink()
                    return name.split('.')[1]
        return None

    def waiting(self) -> bool:
        """Whether there is a fault that has befallen nobody yet."""
        return any(self._faults.iterdir())

    def withdraw(self) -> list[str]:
        """Take back what has befallen nobody; returns the kinds."""
        left = []
        for file in list(self._faults.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
                left.append(file.name.split('.')[0])
        return left

    def set_clock(self, service: str, seconds: float) -> None:
        new = self._clocks / f'{service}.new'
        new.write_text(str(seconds))
        new.rename(self._clocks / service)

    def clock(self, service: str) -> Clock:
        return Clock(self._clocks / service)


class Clock:
    """By how much the clock of a process is wrong."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file
        self._read = 0.0
        self._seconds = 0.0

    def seconds(self) -> float:
        now = time.monotonic()
        if now - self._read > FRESH:
            self._read = now
            with contextlib.suppress(FileNotFoundError):
                self._seconds = float(self._file.read_text())
        return self._seconds

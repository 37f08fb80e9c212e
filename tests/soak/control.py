# SPDX-License-Identifier: Apache-2.0
"""Control of the soak's processes through a directory, without changes of the service.

A fault for the next process of a kind is a file; the process that removes the file gets the fault.
The offset of a clock is a file, too.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

#: How long a process caches the offset of its clock, in seconds.
FRESH = 0.2


class Control:
    """The directory, for both sides."""

    def __init__(self, place: pathlib.Path) -> None:
        self._faults = place / 'faults'
        self._clocks = place / 'clocks'
        self._faults.mkdir(parents=True, exist_ok=True)
        self._clocks.mkdir(exist_ok=True)

    def issue(self, kind: str, fault: str, number: int) -> None:
        """Issue a fault for the next process of a kind."""
        (self._faults / f'{kind}.{fault}.{number}').touch()

    def take(self, kind: str) -> str | None:
        """Take a fault of this kind, if there is one."""
        for name in os.listdir(self._faults):
            if name.startswith(f'{kind}.'):
                with contextlib.suppress(FileNotFoundError):
                    (self._faults / name).unlink()
                    return name.split('.')[1]
        return None

    def waiting(self) -> bool:
        """Whether there is a fault that was not taken yet."""
        return any(self._faults.iterdir())

    def withdraw(self) -> list[str]:
        """Remove faults that were not taken; returns their kinds."""
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
    """The offset of the clock of a process."""

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

# SPDX-License-Identifier: Apache-2.0
"""Figures, each with its target."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import resource
import statistics
import subprocess
import time
import typing

TICK = os.sysconf('SC_CLK_TCK')


class Figure(typing.NamedTuple):
    what: str
    value: float
    unit: str
    #: the target; None for a figure of the machine itself, or if there is none
    aim: float | None = None

    def __str__(self) -> str:
        aim = '' if self.aim is None else f'{self.aim:10g}'
        return f'{self.what:52} {self.value:10.2f} {self.unit:9} {aim}'.rstrip()


def p50(
    work: collections.abc.Callable[[], object], times: int, clock: typing.Any = time.perf_counter
) -> float:
    """How long the work takes in most cases, in milliseconds."""
    took = []
    for _ in range(times):
        begun = clock()
        work()
        took.append((clock() - begun) * 1000)
    return statistics.median(took)


def cpu(work: collections.abc.Callable[[], object], times: int) -> float:
    """The CPU time that the work takes in this process, in milliseconds."""
    return p50(work, times, time.process_time)


def command(*words: str | pathlib.Path) -> float:
    """The CPU time of a command, in seconds; the least of three."""
    took = []
    for _ in range(3):
        before = _children()
        subprocess.run(words, capture_output=True, check=True)
        took.append(_children() - before)
    return min(took)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spent(pids: collections.abc.Iterable[int]) -> float:
    """The CPU time of these processes until now, in seconds."""
    stats = [pathlib.Path(f'/proc/{pid}/stat').read_text() for pid in pids]
    # Source: proc(5); the name before it may have blanks.
    fields = [stat.rpartition(')')[2].split() for stat in stats]
    return sum(int(field[11]) + int(field[12]) for field in fields) / TICK


def spent_below(pids: list[int]) -> float:
    """The CPU time of processes and of all below them: PostgreSQL has one for each connection."""
    tasks = [each for pid in pids for each in pathlib.Path(f'/proc/{pid}/task').glob('*/children')]
    children = [int(child) for each in tasks for child in each.read_text().split()]
    return spent(pids) + (spent_below(children) if children else 0)


def idle() -> float:
    """How long the cores of this machine were idle until now, in seconds (proc(5), /proc/stat)."""
    all_cores = pathlib.Path('/proc/stat').read_text().partition('\n')[0]
    unused, waiting = all_cores.split()[4:6]
    return (int(unused) + int(waiting)) / TICK


def memory(pids: collections.abc.Iterable[int]) -> float:
    """The memory of these processes, what they share counted once (PSS), in MB."""
    total = 0
    for pid in pids:
        lines = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:]
        total += next(int(line.split()[1]) for line in lines if line.startswith('Pss:'))
    return total / 1024


def fdatasync(place: pathlib.Path) -> float:
    """The number of writes to the disk per second."""
    with (place / 'synced').open('wb', buffering=0) as file:

        def write() -> None:
            file.write(b'x' * 512)
            os.fdatasync(file.fileno())

        return 1000 / p50(write, 300)

# SPDX-License-Identifier: Apache-2.0
"""Leases of processes: how long ``cyborg-lite run`` takes, and what ``kill -9`` leaves.

``tox -e bench -- --leases 1000``: so many processes lease accelerators, and are killed at random.
"""

from __future__ import annotations

import collections.abc
from concurrent import futures
import contextlib
import functools
import json
import math
import pathlib
import random
import selectors
import shlex
import statistics
import subprocess
import threading
import time
import typing

import requests

from cyborg_lite import client
from tests.bench import measure
from tests.bench.measure import Figure
from tests.integration import process
from tests.unit.cmd import process as up_

HOST = 'hgx-8gpu'
#: How often a command is timed.
TIMES = 31
#: The processes that lease at once: at times they want more than the eight cards of the host.
WORKERS, MOST = 6, 2
SEED = 13
#: The share of processes that are killed after some time, mostly before they have a lease; others
#: are killed after some time with it. The longest such time, in seconds.
EARLY, LATEST = 0.25, 0.3
#: The time between two questions whether a lease is released, and when it counts as lost, in
#: seconds.
PAUSE, BOUND = 0.01, 60
#: What a process executes: it tells its lease and its accelerators, and holds them.
HOLD = f'echo "${client.ALLOCATION}" "${client.DEVICES}"; exec sleep 600'


def commands(up: up_.Up, socket: pathlib.Path) -> collections.abc.Iterator[Figure]:
    """What the commands take while nothing else is asked of the service."""
    run = [up_.COMMAND, 'run', '--quiet', '--socket', socket, '--', 'true']
    took = []
    for _ in range(TIMES):
        took.append(measure.p50(functools.partial(subprocess.run, run, check=True), 1))
        # The agent releases the lease after the end of the command.
        process.until(lambda: not _held(up))
    yield Figure('cyborg-lite run -- true, p50', statistics.median(took), 'ms')
    yield Figure('cyborg-lite run -- true, CPU', measure.command(*run), 's', 0.25)
    # Each has a parent of its own, and so a lease of its own.
    discover = shlex.join([f'{up_.COMMAND}-discover', '--socket', str(socket)])
    spent = measure.command('sh', '-c', f'{discover}; exit $?')
    yield Figure('cyborg-lite-discover, CPU', spent, 's', 0.3)


def killed(place: pathlib.Path, count: int) -> collections.abc.Iterator[Figure]:
    """What is left of so many leases whose processes are killed."""
    with up_.Up(place, '--host', HOST) as up, futures.ThreadPoolExecutor(WORKERS) as pool:
        kills = _Kills(up, place / 'state' / client.SOCKET)
        took = list(pool.map(kills.one, range(count)))
        # Also what was given to a process that did not live to tell it.
        ended = _wait(lambda: not _held(up), time.monotonic())
        left = _held(up) if ended == math.inf else 0
    yield Figure(f'{count:,} leases of killed processes: lost', took.count(math.inf) + left, '', 0)
    yield Figure('  cards that two processes had at once', kills.twice, '', 0)
    yield Figure('  processes killed before they had a lease', kills.early, '')
    p50, p99 = (sorted(took)[count * part // 100] * 1000 for part in (50, 99))
    yield Figure('  from kill -9 to free, p50', p50, 'ms', 1000)
    yield Figure('  from kill -9 to free, p99', p99, 'ms', 1000)


class _Kills:
    """Processes that are killed, and the cards that they have until then."""

    def __init__(self, up: up_.Up, socket: pathlib.Path) -> None:
        self._up = up
        self._run = [up_.COMMAND, 'run', '--quiet', '--socket', socket]
        self._lock = threading.Lock()
        self._had: set[str] = set()
        self.twice = self.early = 0

    def one(self, number: int) -> float:
        """Kill processes until one had a lease: the seconds until that is released."""
        chance = random.Random(f'{SEED} {number}')
        while True:
            patience = chance.uniform(0, LATEST) if chance.random() < EARLY else None
            lease = self._kill(chance.randint(1, MOST), patience, chance.uniform(0, LATEST))
            if lease is not None:
                uuid, moment = lease
                return _wait(functools.partial(self._released, uuid), moment)

    def _kill(self, amount: int, patience: float | None, delay: float) -> tuple[str, float] | None:
        """Kill a process some time after it has its lease; returns that, and the moment.

        :param patience: when to kill it if it has none until then; None to wait for it.
        """
        run = [*self._run, '-n', str(amount), '--', 'sh', '-c', HOLD]
        with subprocess.Popen(
            run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as made:
            try:
                if not _is_readable(made.stdout, patience):
                    with self._lock:
                        self.early += 1
                    return None
                uuid, _, devices = made.stdout.readline().partition(' ')
                with self._having([each['id'] for each in json.loads(devices)]):
                    time.sleep(delay)
                return uuid, time.monotonic()
            finally:
                made.kill()

    @contextlib.contextmanager
    def _having(self, cards: list[str]) -> collections.abc.Iterator[None]:
        with self._lock:
            self.twice += len(self._had.intersection(cards))
            self._had.update(cards)
        yield
        with self._lock:
            self._had.difference_update(cards)

    def _released(self, uuid: str) -> bool:
        url = f'{self._up.url}/v2/allocations/{uuid}'
        return bool(requests.get(url, timeout=BOUND).json()['state'] == 'released')


def _is_readable(file: typing.IO[str], timeout: float | None) -> bool:
    """Whether it is, before the timeout."""
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(timeout))


def _held(up: up_.Up) -> int:
    answer = requests.get(f'{up.url}/v2/accelerators?state=held', timeout=BOUND)
    return len(answer.json()['accelerators'])


def _wait(condition: collections.abc.Callable[[], bool], begun: float) -> float:
    """The seconds from a moment until a condition holds; infinite if it does not in time."""
    while not condition():
        if time.monotonic() - begun > BOUND:
            return math.inf
        time.sleep(PAUSE)
    return time.monotonic() - begun

# SPDX-License-Identifier: Apache-2.0
"""The faults of a run: planned from a seed, injected in time, and counted."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import dataclasses
import functools
import os
import random
import signal
import threading
import time

from oslo_db import exception as db_exception
import sqlalchemy as sa

from tests.integration import deployment as deployment_
from tests.integration import process
from tests.soak import cloud as cloud_
from tests.soak import history

#: The number of faults of each kind in five minutes. Some may find no target.
RATES = {
    'kill': 120,
    'stop': 60,
    'message': 105,
    'placement': 105,
    'deadlock': 42,
    'disconnect': 40,
    'database restart': 20,
    'broker restart': 8,
    'database outage': 2,
    'broker outage': 2,
    'clock': 12,
}
MINUTES = 5
#: The kinds that are serialized; each row has a thread of its own.
LANES = (
    ('kill', 'stop', 'clock'),
    ('message', 'placement', 'deadlock'),
    ('disconnect',),
    ('database restart', 'database outage'),
    ('broker restart', 'broker outage'),
)
MESSAGE = ('lost', 'unanswered', 'late', 'doubled')
PLACEMENT = ('conflict', 'unavailable', 'silent', 'late')
#: The signals of a normal stop of a database, and of a crash.
HOW = {
    'postgresql': {'SIGTERM': signal.SIGINT, 'SIGKILL': signal.SIGQUIT},
    'mysql': {'SIGTERM': signal.SIGTERM, 'SIGKILL': signal.SIGKILL},
}
#: The statements that find a connection, a busy one first, and that end it.
CUT = {
    'postgresql': (
        'SELECT pid FROM pg_stat_activity WHERE usename = current_user '
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
        "ORDER BY state = 'idle', random() LIMIT 1",
        'SELECT pg_terminate_backend({})',
    ),
    'mysql': (
        'SELECT id FROM information_schema.processlist '
        "WHERE db = database() AND id <> connection_id() ORDER BY command = 'Sleep', rand() "
        'LIMIT 1',
        'KILL CONNECTION {}',
    ),
}
#: How long the last faults wait for a target, in seconds.
PATIENCE = 30
#: The share of killed services that are killed with their supervisor.
WHOLE = 0.2
#: How long a service is paused, in seconds.
STOPS = (3, 20)
#: The length of an outage, in seconds: longer than all retries of a request; the API stops after
#: its ``response_timeout``, a conductor after 20 tries of its transaction, and the bus after 9
#: seconds. It starts early enough for requests after it.
OUTAGES = {'database outage': 18, 'broker outage': 12}
EARLY = 0.5
#: The duration and the size of clock jumps, in seconds.
JUMPS = (2, 8)
JUMP = 60


@dataclasses.dataclass(frozen=True, order=True)
class Fault:
    """A planned fault, so many seconds after the start."""

    at: float
    kind: str
    #: the service, or the kind of the fault
    target: str = ''
    seconds: float = 0
    #: for a kill: also the supervisor; for a clock: backwards
    other: bool = False


def plan(seed: str, seconds: float) -> list[Fault]:
    """Faults for a duration, with the rates of RATES."""
    draw = random.Random(f'faults {seed}')
    scale = seconds / 60 / MINUTES
    made = []
    for kind, rate in RATES.items():
        for _ in range(max(1, round(rate * scale))):
            at = draw.uniform(0, seconds * (EARLY if kind in OUTAGES else 1))
            made.append(_fault(draw, at, kind, scale))
    return sorted(made)


def _fault(draw: random.Random, at: float, kind: str, scale: float) -> Fault:
    services = [
        *(f'conductor-{number}' for number in range(cloud_.CONDUCTORS)),
        *(f'api-{number}' for number in range(cloud_.APIS)),
        *(f'agents-{number}' for number in range(cloud_.AGENTS)),
    ]
    target, seconds = '', 0.0
    if kind in ('kill', 'stop', 'clock'):
        target = draw.choice(services)
    if kind == 'clock':
        seconds = draw.uniform(*JUMPS)
    elif kind == 'stop':
        least, most = STOPS
        seconds = draw.uniform(least, most) * max(scale, 0.3)
    elif kind == 'message':
        target = draw.choice(MESSAGE)
    elif kind == 'placement':
        target = draw.choice(PLACEMENT)
    elif kind == 'deadlock':
        target = 'detected'
    elif kind.endswith(('restart', 'outage')):
        target, seconds = draw.choice(['SIGTERM', 'SIGKILL']), OUTAGES.get(kind, 0.0)
    rare = draw.random() < (0.5 if kind == 'clock' else WHOLE)
    return Fault(at, kind, target, seconds, rare)


class Injector:
    """Injects the planned faults, late rather than never."""

    def __init__(self, cloud: cloud_.Cloud, faults: list[Fault]) -> None:
        self._cloud = cloud
        self._timers: list[threading.Timer] = []
        self._issued = 0
        self.done: collections.Counter[str] = collections.Counter()
        self.errors: list[str] = []
        self.outages: list[history.Outage] = []
        self._begun = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=([f for f in faults if f.kind in lane],))
            for lane in LANES
        ]

    def start(self) -> None:
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait until all faults are injected, and undo those that last."""
        for thread in self._threads:
            thread.join()
        for timer in self._timers:
            timer.join()
        for name in self._cloud.services:
            self._cloud.control.set_clock(name, 0)
        end = time.monotonic() + PATIENCE
        while self._cloud.control.waiting() and time.monotonic() < end:
            time.sleep(0.1)
        self.done.subtract(self._cloud.control.withdraw())

    def _run(self, faults: list[Fault]) -> None:
        for fault in faults:
            time.sleep(max(0.0, self._begun + fault.at - time.monotonic()))
            try:
                getattr(self, '_' + fault.kind.replace(' ', '_'))(fault)
                self.done[fault.kind] += 1
            except Exception as error:
                self.errors.append(f'{fault}: {error!r}')

    def _kill(self, fault: Fault) -> None:
        server = self._cloud.services[fault.target]
        if fault.other:
            server.restart(signal.SIGKILL)
            return
        for pid in process.until(functools.partial(deployment_.workers, server), 30):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _stop(self, fault: Fault) -> None:
        group = self._cloud.services[fault.target].process.pid
        os.killpg(group, signal.SIGSTOP)
        self._later(fault.seconds, functools.partial(_continue, group))

    def _clock(self, fault: Fault) -> None:
        set_clock = functools.partial(self._cloud.control.set_clock, fault.target)
        set_clock(-JUMP if fault.other else JUMP)
        self._later(fault.seconds, lambda: set_clock(0))

    def _later(self, seconds: float, do: collections.abc.Callable[[], None]) -> None:
        timer = threading.Timer(seconds, do)
        timer.start()
        self._timers.append(timer)

    def _message(self, fault: Fault) -> None:
        self._issue(fault)

    def _placement(self, fault: Fault) -> None:
        self._issue(fault)

    def _deadlock(self, fault: Fault) -> None:
        self._issue(fault)

    def _issue(self, fault: Fault) -> None:
        self._issued += 1
        self._cloud.control.issue(fault.kind, fault.target, self._issued)

    def _disconnect(self, fault: Fault) -> None:
        """Cut a connection to the database with its transaction."""
        process.until(self._cut)  # the database may be down

    def _cut(self) -> bool:
        away = (sa.exc.DBAPIError, db_exception.DBError)
        with contextlib.suppress(*away), self._cloud.database.engine.begin() as connection:
            find, end = CUT[connection.dialect.name]
            number = connection.execute(sa.text(find)).scalar()
            if number is not None:
                connection.execute(sa.text(end.format(number)))
                return True
        return False

    def _database_restart(self, fault: Fault) -> None:
        server = self._cloud.engine.server
        server.restart(HOW[self._cloud.database.engine.dialect.name][fault.target])

    def _database_outage(self, fault: Fault) -> None:
        server = self._cloud.engine.server
        server.halt(HOW[self._cloud.database.engine.dialect.name][fault.target])
        self._wait('database', server, fault.seconds)

    def _broker_restart(self, fault: Fault) -> None:
        self._cloud.broker.server.restart(signal.Signals[fault.target])

    def _broker_outage(self, fault: Fault) -> None:
        server = self._cloud.broker.server
        server.halt(signal.Signals[fault.target])
        self._wait('broker', server, fault.seconds)

    def _wait(self, name: str, server: process.Server, seconds: float) -> None:
        """Keep a stopped server down for so long, and start it again."""
        since = time.monotonic()
        time.sleep(seconds)
        self.outages.append(history.Outage(name, since, time.monotonic()))
        server.start()


def _continue(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGCONT)

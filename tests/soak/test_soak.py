# SPDX-License-Identifier: Apache-2.0
"""A cloud under load, to which everything happens that happens to clouds: no promise is broken.

``SOAK_SECONDS`` says for how long (60), ``SOAK_SEED`` with which faults and wishes (any),
``SOAK_HOSTS`` how many hosts each of the four agents' processes has (25), ``SOAK_DATABASE`` on
which database (postgresql, or mariadb).  The seed decides what is done and when; what comes of it
depends on the machine as well.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import random
import statistics
import time

import pytest
import requests
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from tests.soak import clients as clients_
from tests.soak import cloud as cloud_
from tests.soak import faults as faults_
from tests.soak import history as history_

SECONDS = float(os.environ.get('SOAK_SECONDS') or 60)
SEED = os.environ.get('SOAK_SEED') or str(random.SystemRandom().randrange(10**6))
HOSTS = int(os.environ.get('SOAK_HOSTS') or 25)
CLIENTS = 32
#: How often it is told how far it has come, in seconds.
TELL = 10
#: How long a planted bug has to show, in seconds.
PLANTED = 10
#: How long it may take until all is at rest after the last fault, in seconds. A minute is promised,
#: to those who do not run other tests beside it.
REST = 120


@dataclasses.dataclass
class Result:
    """What was done, and what came of it."""

    seed: str
    seconds: float
    #: how long it took: faults are late rather than left out
    took: float
    operations: history_.History
    faults: collections.Counter[str]
    statuses: collections.Counter[str]
    #: how long it took to come to rest
    rest: float
    wrong: list[str]
    #: every request there is in the end
    final: dict[str, history_.Seen]

    def table(self) -> str:
        rows = [
            f'seed {self.seed}, {self.seconds:g} s, in fact {self.took:.0f} s, {CLIENTS} clients, '
            f'{cloud_.DATABASE}'
        ]
        for kind, count in sorted(self.faults.items()):
            rows.append(f'  {kind:<24}{count:>8}')
        rows.append(f'  {"faults":<24}{sum(self.faults.values()):>8}')
        rows.append(f'  {"":<12}{"ok":>8}{"fail":>8}{"unknown":>8}{"p50 ms":>10}{"p99 ms":>10}')
        by_kind = collections.defaultdict(list)
        for operation in self.operations:
            by_kind[operation.kind].append(operation)
        for kind, operations in sorted(by_kind.items()):
            rows.append(f'  {kind:<12}{_row(operations)}')
        bound = sum(len(o.arqs) for o in by_kind['bind'] if o.outcome == 'ok')
        rows.append(f'  {"operations":<24}{len(self.operations):>8}, accelerators bound {bound}')
        odd = [f'{k}: {n}' for k, n in sorted(self.statuses.items()) if k.split()[1][0] in '05']
        rows.append(f'  no answer (0) and 5xx: {", ".join(odd)}')
        rows.append(f'  at rest after {self.rest:.0f} s, violations {len(self.wrong)}')
        again = f'SOAK_DATABASE={cloud_.DATABASE} SOAK_SEED={self.seed} SOAK_HOSTS={HOSTS}'
        rows.append(f'  again: {again} SOAK_SECONDS={self.seconds:g} tox -e soak')
        return '\n'.join(rows)


def _row(operations: history_.History) -> str:
    outcomes = collections.Counter(each.outcome for each in operations)
    times = [o.returned - o.invoked for o in operations if o.outcome == 'ok'] or [0]
    # One alone has no quantiles.
    cuts = statistics.quantiles(times * 2, n=100)
    counts = ''.join(f'{outcomes[each]:>8}' for each in ('ok', 'fail', 'unknown'))
    return f'{counts}{cuts[49] * 1000:>10.0f}{cuts[98] * 1000:>10.0f}'


class Soak:
    """One run."""

    def __init__(self, cloud: cloud_.Cloud, seed: str, faults: list[faults_.Fault]) -> None:
        self._cloud, self._seed = cloud, seed
        self._injector = faults_.Injector(cloud, faults)
        self._create_profiles()
        self._clients = list(clients_.population(cloud, seed, CLIENTS))

    def _create_profiles(self) -> None:
        for name in {provider.resource_class for provider in self._cloud.providers()}:
            for number in range(1, clients_.MOST + 1):
                profile = {'name': f'{name}-{number}', 'groups': [{f'resources:{name}': number}]}
                url = f'{self._cloud.urls[0]}/device_profiles'
                answer = requests.post(url, json=[profile], headers=cloud_.ADMIN, timeout=60)
                assert answer.status_code == 201, answer.text

    def run(self, seconds: float, patience: float = REST) -> Result:
        """:param patience: how long it may take to come to rest."""
        begun = time.monotonic()
        for client in self._clients:
            client.start()
        self._injector.start()
        while (left := begun + seconds - time.monotonic()) > 0:
            time.sleep(min(TELL, left))
            self._tell(time.monotonic() - begun)
        self._injector.end()
        for client in self._clients:
            client.stop()
        for client in self._clients:
            client.join()
        self._clients[0].put_back()
        took = time.monotonic() - begun
        rest, wrong = self._rest(patience)
        return self._judge(seconds, took, rest, wrong)

    def _tell(self, seconds: float) -> None:
        done = sum(len(client.history) for client in self._clients)
        faults = sum(self._injector.done.values())
        print(f'{seconds:4.0f} s: {done} operations, {faults} faults', flush=True)

    def _rest(self, patience: float) -> tuple[float, list[str]]:
        """How long it takes until all is at rest, and what is wrong then."""
        begun = time.monotonic()
        while True:
            took = time.monotonic() - begun
            wrong = list(self._cloud.resting())
            # To ask Placement takes long, and it is asked when it should be right.
            if not wrong or took > patience:
                wrong += self._cloud.wrong()
            if not wrong or took > patience:
                return took, wrong
            time.sleep(1)

    def _judge(self, seconds: float, took: float, rest: float, wrong: list[str]) -> Result:
        operations = [each for client in self._clients for each in client.history]
        wrong += [f'{client.name}: {client.error!r}' for client in self._clients if client.error]
        wrong += self._injector.errors
        final = self._final()
        wrong += history_.check(operations, final, outages=self._injector.outages)
        statuses = sum((client.statuses for client in self._clients), collections.Counter())
        wrong += [f'T11: {n} times {what}' for what, n in statuses.items() if what[-3:] == '500']
        done = self._injector.done
        return Result(self._seed, seconds, took, operations, done, statuses, rest, wrong, final)

    def _final(self) -> dict[str, history_.Seen]:
        """Every request there is."""
        url = f'{self._cloud.urls[0]}/accelerator_requests?limit=10000'
        answer = requests.get(url, headers=cloud_.ADMIN, timeout=60).json()
        return {row['uuid']: clients_.show(row) for row in answer['arqs']}


@contextlib.contextmanager
def soak(place: pathlib.Path, seed: str, faults: list[faults_.Fault], hosts: int, bug: str = ''):
    begun = time.monotonic()
    print(f'seed {seed}', flush=True)
    with contextlib.ExitStack() as stack:
        cloud = cloud_.Cloud(stack, place, hosts, bug)
        cloud.settle()
        print(f'{len(cloud.hosts)} hosts after {time.monotonic() - begun:.0f} s', flush=True)
        yield cloud, Soak(cloud, seed, faults)


def test_no_promise_is_broken(tmp_path_factory, record_property):
    faults = faults_.plan(SEED, SECONDS)
    place = tmp_path_factory.mktemp('soak')
    with soak(place, SEED, faults, HOSTS) as (cloud, running):
        result = running.run(SECONDS)
        record_property('soak', result.table())
        print(result.table(), flush=True)
    assert not result.wrong, '\n'.join([result.table(), *result.wrong[:50]])
    assert sum(result.faults.values()) > 0.8 * len(faults)


#: By the bug that is planted, which promise it breaks.
BUGS = {'given twice': 'I1', 'kept': 'I6'}


@pytest.mark.parametrize('bug', BUGS)
def test_planted_bug_is_found(bug, tmp_path_factory):
    """So that finding nothing says something."""
    place = tmp_path_factory.mktemp('bug')
    with soak(place, SEED, [], 1, bug) as (cloud, running):
        _drop_unique(cloud.database.engine, model.ARQ.attach_handle_id)
        result = running.run(PLANTED, patience=0)
    wrong = history_.check(result.operations, result.final)
    found = [each for each in wrong if each.startswith(BUGS[bug])]
    print(f'{bug}: {len(found)} violations, such as {found[:1]}')
    assert found


def _drop_unique(engine: sa.Engine, column: orm.InstrumentedAttribute[int | None]) -> None:
    table = model.ARQ.__table__
    [name] = [index.name for index in table.indexes if column.name in index.columns]
    drop = [f'DROP INDEX {name}']
    if engine.dialect.name == 'mysql':
        # It demands an index for a foreign key.
        drop = [f'CREATE INDEX other ON {table} ({column.name})', f'DROP INDEX {name} ON {table}']
    with engine.begin() as door:
        for statement in drop:
            door.execute(sa.text(statement))

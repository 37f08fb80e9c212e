# SPDX-License-Identifier: Apache-2.0
"""A cloud under load with all kinds of faults keeps its promises.

``SOAK_SECONDS`` is the duration (60), ``SOAK_SEED`` chooses faults and requests (random),
``SOAK_HOSTS`` how many hosts each of the four agents' processes has (25), ``SOAK_DATABASE`` on
which database (postgresql, or mariadb).  The seed determines the plan; the result also depends on
the machine.
"""

from __future__ import annotations

import collections
import collections.abc
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
from tests.soak import allocations
from tests.soak import clients as clients_
from tests.soak import cloud as cloud_
from tests.soak import faults as faults_
from tests.soak import history as history_
from tests.soak import operators
from tests.soak import watch as watch_

SECONDS = float(os.environ.get('SOAK_SECONDS') or 60)
SEED = os.environ.get('SOAK_SEED') or str(random.SystemRandom().randrange(10**6))
HOSTS = int(os.environ.get('SOAK_HOSTS') or 25)
CLIENTS = 32
#: The interval of progress messages, in seconds.
TELL = 10
#: The duration of a run with a planted bug, in seconds; an immediate finding ends it sooner.
PLANTED = 20
SEEN = 120
#: The maximum recovery time after the last fault, in seconds. A minute is promised, without other
#: load on the machine.
REST = 120


@dataclasses.dataclass
class Result:
    """The operations and results of a run."""

    seed: str
    seconds: float
    #: the duration: faults may be late, but are not left out
    took: float
    operations: history_.History
    faults: collections.Counter[str]
    #: the changes of machines
    changes: collections.Counter[str]
    statuses: collections.Counter[str]
    #: the recovery time
    rest: float
    wrong: list[str]
    #: every request at the end
    final: dict[str, history_.Seen]

    def table(self) -> str:
        rows = [
            f'seed {self.seed}, {self.seconds:g} s, in fact {self.took:.0f} s, {CLIENTS} clients, '
            f'{cloud_.DATABASE}'
        ]
        for what, done in (('faults', self.faults), ('changes of machines', self.changes)):
            for kind, count in sorted(done.items()):
                rows.append(f'  {kind:<24}{count:>8}')
            rows.append(f'  {what:<24}{sum(done.values()):>8}')
        rows.append(f'  {"":<14}{"ok":>8}{"fail":>8}{"unknown":>8}{"p50 ms":>10}{"p99 ms":>10}')
        by_kind = collections.defaultdict(list)
        for operation in self.operations:
            by_kind[operation.kind].append(operation)
        for kind, operations in sorted(by_kind.items()):
            rows.append(f'  {kind:<14}{_row(operations)}')
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
    # A single value has no quantiles.
    cuts = statistics.quantiles(times * 2, n=100)
    counts = ''.join(f'{outcomes[each]:>8}' for each in ('ok', 'fail', 'unknown'))
    return f'{counts}{cuts[49] * 1000:>10.0f}{cuts[98] * 1000:>10.0f}'


class Soak:
    """One run."""

    def __init__(self, cloud: cloud_.Cloud, seed: str, faults: list[faults_.Fault]) -> None:
        self._cloud, self._seed = cloud, seed
        self._injector = faults_.Injector(cloud, faults)
        self._create_profiles()
        self._limit()
        self.watch = watch_.Watch(cloud)
        users, self._technician = operators.population(cloud, seed, CLIENTS, self.watch)
        self._clients = [*users, self._technician]

    def _create_profiles(self) -> None:
        for name in {provider.resource_class for provider in self._cloud.providers()}:
            for number in range(1, clients_.MOST + 1):
                profile = {'name': f'{name}-{number}', 'groups': [{f'resources:{name}': number}]}
                url = f'{self._cloud.urls[0]}/device_profiles'
                answer = requests.post(url, json=[profile], headers=cloud_.ADMIN, timeout=60)
                assert answer.status_code == 201, answer.text

    def _limit(self) -> None:
        """Consumers alone have a quota: they leave no requests that nobody knows."""
        url = f'{self._cloud.urls[0]}/quotas/{allocations.PROJECT}'
        body = {'limits': {model.Quota.TOTAL: allocations.LIMIT}}
        answer = requests.patch(url, json=body, headers=cloud_.ADMIN, timeout=60)
        assert answer.status_code == 200, answer.text

    def run(self, seconds: float, patience: float = REST, watched: bool = False) -> Result:
        """Run the load and the faults.

        :param patience: the maximum recovery time.
        :param watched: whether the first violation ends the run.
        """
        begun = time.monotonic()
        self.watch.start()
        for client in self._clients:
            client.start()
        self._injector.start()
        while (left := begun + seconds - time.monotonic()) > 0:
            if watched and self.watch.wrong:
                break
            time.sleep(min(1 if watched else TELL, left))
            self._tell(time.monotonic() - begun)
        self._injector.end()
        for client in self._clients:
            client.stop()
        for client in self._clients:
            client.join()
        self._technician.finish()
        took = time.monotonic() - begun
        rest, wrong = self._rest(patience)
        self.watch.stop()
        return self._judge(seconds, took, rest, wrong)

    def _tell(self, seconds: float) -> None:
        done = sum(len(client.history) for client in self._clients)
        faults = sum(self._injector.done.values())
        print(f'{seconds:4.0f} s: {done} operations, {faults} faults', flush=True)

    def _rest(self, patience: float) -> tuple[float, list[str]]:
        """The recovery time, and the violations afterwards."""
        begun = time.monotonic()
        while True:
            took = time.monotonic() - begun
            wrong = list(self._cloud.resting())
            # Reading Placement takes long, so it is checked last.
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
        wrong += self.watch.wrong
        wrong += self.check(operations, final, self._injector.outages)
        statuses = sum((client.statuses for client in self._clients), collections.Counter())
        wrong += [f'T11: {n} times {what}' for what, n in statuses.items() if what[-3:] == '500']
        changes = self._technician.changes
        done = self._injector.done
        return Result(
            *(self._seed, seconds, took, operations, done, changes, statuses, rest, wrong, final)
        )

    def check(
        self,
        operations: history_.History,
        final: dict[str, history_.Seen],
        outages: collections.abc.Iterable[history_.Outage] = (),
    ) -> list[str]:
        """The impossible answers to clients."""
        stories, wrong = allocations.stories(operations)
        with self._cloud.database.reader() as session:
            kept = sa.select(model.Allocation.name, model.Allocation.state).where(
                model.Allocation.state != 'released', model.Allocation.reservation_uuid.is_(None)
            )
            wrong += allocations.check(stories, session.execute(kept).all())
        others = allocations.holds(stories, self.watch.handles)
        return [*wrong, *history_.check(operations, final, self.watch.cards(), outages, others)]

    def _final(self) -> dict[str, history_.Seen]:
        """Every request that is not part of an allocation."""
        url = f'{self._cloud.urls[0]}/accelerator_requests?limit=10000'
        answer = requests.get(url, headers=cloud_.ADMIN, timeout=60).json()
        of_allocations = {arq.uuid for arq in self._cloud.rows(model.ARQ) if arq.allocation_uuid}
        return {
            row['uuid']: clients_.show(row)
            for row in answer['arqs']
            if row['uuid'] not in of_allocations
        }


@contextlib.contextmanager
def soak(
    place: pathlib.Path,
    seed: str,
    faults: list[faults_.Fault],
    hosts: int,
    bug: str = '',
    kinds: collections.abc.Collection[str] = (),
):
    begun = time.monotonic()
    print(f'seed {seed}', flush=True)
    with contextlib.ExitStack() as stack:
        cloud = cloud_.Cloud(stack, place, hosts, bug, kinds)
        cloud.settle()
        print(f'{len(cloud.machines)} hosts after {time.monotonic() - begun:.0f} s', flush=True)
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


@dataclasses.dataclass(frozen=True)
class Bug:
    """A planted bug, and the text of its violation."""

    found: str
    #: the shipped host that shows it
    kind: str = ''
    #: whether the database's constraint is removed, too
    alone: bool = False
    #: whether it may take long until it shows
    rare: bool = False


BUGS = {
    'given twice': Bug('I1:', alone=True),
    'kept': Bug('I6:'),
    'given in a reserved time': Bug('I1: kept', rare=True),
    'beyond limits': Bug('I3: project', rare=True),
    'two forms': Bug('I14: of', 'mixed-alveo-qat'),
    'another card': Bug('I14: ARQ', 'atlas-300i-duo'),
}


@pytest.mark.parametrize('bug', BUGS)
def test_planted_bug_is_found(bug, tmp_path_factory):
    """This shows that the checks can fail."""
    planted = BUGS[bug]
    place = tmp_path_factory.mktemp('bug')
    with soak(place, SEED, [], 1, bug, [planted.kind] if planted.kind else ()) as (cloud, running):
        if planted.alone:
            _drop_unique(cloud.database.engine, model.ARQ.attach_handle_id)
        watched = planted.rare or bool(planted.kind)
        result = running.run(SEEN if watched else PLANTED, patience=0, watched=watched)
        told = running.check(result.operations, result.final)
    found = [each for each in (*told, *running.watch.wrong) if each.startswith(planted.found)]
    print(f'{bug}: {len(found)} violations, such as {found[:1]}')
    assert found, result.table()


def _drop_unique(engine: sa.Engine, column: orm.InstrumentedAttribute[int | None]) -> None:
    table = model.ARQ.__table__
    [name] = [index.name for index in table.indexes if column.name in index.columns]
    drop = [f'DROP INDEX {name}']
    if engine.dialect.name == 'mysql':
        # It requires an index for a foreign key.
        drop = [f'CREATE INDEX other ON {table} ({column.name})', f'DROP INDEX {name} ON {table}']
    with engine.begin() as connection:
        for statement in drop:
            connection.execute(sa.text(statement))

# SPDX-License-Identifier: Apache-2.0
"""The service as processes over RabbitMQ and PostgreSQL, and clients that go through HTTP."""

from __future__ import annotations

import collections
import collections.abc
from concurrent import futures
import contextlib
import functools
import itertools
import pathlib
import statistics
import subprocess
import sys
import time
import typing
import uuid

import oslo_messaging as messaging
import requests
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import model
from tests import support
from tests.bench import alone
from tests.bench import echo
from tests.bench import measure
from tests.bench.measure import Figure
from tests.integration import deployment as deployment_
from tests.integration import process
from tests.integration import servers

CONF = '[DEFAULT]\ndebug = false\n[api]\nauth_strategy = noauth\n[agent]\nenabled_drivers = fake\n'
CARDS, ROWS = 64, 1000
#: The numbers of clients, and the target cycles per second.
CLIENTS = {1: 40, 8: 80, 32: 80}
SECONDS = 5
CALLS, STEPS = 300, 100


def figures(place: pathlib.Path) -> collections.abc.Iterator[Figure]:
    with contextlib.ExitStack() as stack:
        bus, database = process.enter(
            stack, servers.rabbitmq(place / 'bus'), servers.postgresql(place / 'database')
        )
        cloud = deployment_.Deployment(stack, place, bus, database, CONF)
        conductor = cloud.conductor()
        process.until(lambda: cloud.answers(0))
        url, api = cloud.api()
        agent = cloud.agent()
        yield from _floor(stack, cloud)
        yield from _call(cloud)
        providers = _fill(cloud, url)
        pids = {
            'API': deployment_.workers(api),
            'conductor': deployment_.workers(conductor),
            'agent': deployment_.workers(agent),
            'database': [database.server.process.pid],
        }
        yield from _steps(url, providers[0])
        for clients, aim in CLIENTS.items():
            yield from _cycles(url, providers, pids, clients, aim)
        yield from _lists(cloud, url)
        for name, aim in (('API', 120), ('conductor', 100), ('agent', 60)):
            yield Figure(f'memory of one {name} (PSS)', measure.memory(pids[name]), 'MB', aim)


def _floor(
    stack: contextlib.ExitStack, cloud: deployment_.Deployment
) -> collections.abc.Iterator[Figure]:
    address = f'127.0.0.1:{servers.free_port()}'
    words = ['tests.bench.hello:application', '--bind', address, '--threads', '8']
    cloud.start('gunicorn', *words, number=1)
    with requests.Session() as session:
        hello = measure.p50(lambda: session.get(f'http://{address}/'), 300)
    yield Figure('hello-WSGI over HTTP, p50', hello, 'ms')
    with cloud.database.engine.connect() as connection:
        select = sa.text('SELECT 1 FROM hosts WHERE id = 1')
        yield Figure(
            'SELECT by primary key, p50', measure.p50(lambda: connection.execute(select), 500), 'ms'
        )


def _call(cloud: deployment_.Deployment) -> collections.abc.Iterator[Figure]:
    """A call that does nothing: no call of ours is cheaper."""
    words = [sys.executable, '-m', 'tests.bench.echo', str(cloud.file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == 'ready\n'
            target = messaging.Target(topic=echo.TARGET.topic)
            client = messaging.get_rpc_client(echo.transport(str(cloud.file)), target)
            measure.p50(lambda: client.call({}, 'echo'), 20)
            served, called = measure.spent([server.pid]), time.process_time()
            p50 = measure.p50(lambda: client.call({}, 'echo'), CALLS)
            called = (time.process_time() - called) * 1000 / CALLS
            served = (measure.spent([server.pid]) - served) * 1000 / CALLS
        finally:
            server.kill()
    yield Figure('oslo.messaging: call over RabbitMQ, p50', p50, 'ms')
    yield Figure('oslo.messaging: CPU of the caller', called, 'ms')
    yield Figure('oslo.messaging: CPU of the server', served, 'ms')


def _fill(cloud: deployment_.Deployment, url: str) -> list[str]:
    """Report cards; returns the resource providers."""
    _report(cloud, support.HOST, CARDS)
    profile = [{'name': 'one', 'groups': [{'resources:FPGA': '1'}]}]
    requests.post(f'{url}/device_profiles', json=profile, timeout=60).raise_for_status()
    with cloud.database.reader() as session:
        ours = sa.select(model.Deployable.rp_uuid).join(model.Deployable.device)
        return list(session.scalars(ours.where(model.Device.hostname == support.HOST)))


def _report(cloud: deployment_.Deployment, host: str, count: int) -> None:
    cards = [support.card(f'{number:03x}').facts() for number in range(count)]
    cloud.bus.conductor(context.service(), timeout=60).report(
        host=host, boot_id='boot-1', sequence=1, interval=3600, digest='one',
        devices=cards, drivers={'fake': {'state': 'ok', 'reason': '', 'devices': count}},
    )  # fmt: skip


def _lists(cloud: deployment_.Deployment, url: str) -> collections.abc.Iterator[Figure]:
    """How long a page takes where there are a thousand rows of each kind."""
    _report(cloud, 'host-of-many', ROWS)
    with cloud.database.writer() as session:
        groups = [{'resources:FPGA': '1'}]
        session.add_all(model.DeviceProfile(name=f'p{n}', groups=groups) for n in range(ROWS))
    many = [{'name': 'many', 'groups': [{'resources:FPGA': str(ROWS)}]}]
    for path, body in (
        ('device_profiles', many),
        ('accelerator_requests', {'device_profile_name': 'many'}),
    ):
        requests.post(f'{url}/{path}', json=body, timeout=60).raise_for_status()
    with requests.Session() as session:

        def get(path: str) -> None:
            session.get(f'{url}/{path}', timeout=60).raise_for_status()

        for name in alone.LISTS:
            for rows in (10, ROWS):
                path = f'{name}?limit={rows}'
                took = measure.p50(functools.partial(get, path), 30)
                yield Figure(f'RabbitMQ: list of {rows:,} {name}, p50', took, 'ms')


def _steps(url: str, provider: str) -> collections.abc.Iterator[Figure]:
    """How long each request takes while there are no others."""
    arqs, took = f'{url}/accelerator_requests', collections.defaultdict(list)
    with requests.Session() as session:

        def ask(name: str, method: str, path: str, body: typing.Any = None) -> typing.Any:
            begun = time.perf_counter()
            answer = session.request(method, path, json=body, timeout=60)
            took[name].append((time.perf_counter() - begun) * 1000)
            answer.raise_for_status()
            return answer.json() if answer.content else None

        for _ in range(STEPS):
            instance, name = str(uuid.uuid4()), uuid.uuid4().hex
            profile = [{'name': name, 'groups': [{'resources:FPGA': '1'}]}]
            ask('POST of a profile', 'POST', f'{url}/device_profiles', profile)
            made = ask('POST of a request', 'POST', arqs, {'device_profile_name': 'one'})
            wish = support.wish(provider, support.HOST, instance)
            ask('bind', 'PATCH', arqs, {made['arqs'][0]['uuid']: wish})
            ask('get by instance', 'GET', f'{arqs}?instance={instance}')
            ask('delete by instance', 'DELETE', f'{arqs}?instance={instance}')
    for name, times in took.items():
        yield Figure(f'RabbitMQ: {name}, p50', statistics.median(times), 'ms')


def _cycles(
    url: str, providers: list[str], pids: dict[str, list[int]], clients: int, aim: float
) -> collections.abc.Iterator[Figure]:
    before = {name: measure.spent_below(each) for name, each in pids.items()}
    begun = time.monotonic()
    until = begun + SECONDS
    with futures.ThreadPoolExecutor(clients) as pool:
        # Each client has providers of its own, so that no client waits for another.
        jobs = [pool.submit(_work, url, providers[n], until) for n in range(clients)]
        done = sum(job.result() for job in jobs)
    took = time.monotonic() - begun
    yield Figure(f'RabbitMQ: cycles, {clients} clients', done / took, '/s', aim)
    for name, most in (('API', 8), ('conductor', 10), ('database', 6)):
        used = (measure.spent_below(pids[name]) - before[name]) * 1000 / done
        yield Figure(f'RabbitMQ: CPU per cycle of the {name}, {clients} clients', used, 'ms', most)


def _work(url: str, provider: str, until: float) -> int:
    """Repeat create, bind, show, delete; returns the number of cycles."""
    arqs = f'{url}/accelerator_requests'
    with requests.Session() as session:
        for number in itertools.count():
            if time.monotonic() > until and number:
                return number
            instance = str(uuid.uuid4())
            made = session.post(arqs, json={'device_profile_name': 'one'}, timeout=60).json()
            wish = support.wish(provider, support.HOST, instance)
            session.patch(arqs, json={made['arqs'][0]['uuid']: wish}, timeout=60).raise_for_status()
            shown = session.get(f'{arqs}?instance={instance}', timeout=60).json()['arqs']
            assert [arq['state'] for arq in shown] == ['Bound'], shown
            session.delete(f'{arqs}?instance={instance}', timeout=60).raise_for_status()
    raise AssertionError

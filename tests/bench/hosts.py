# SPDX-License-Identifier: Apache-2.0
"""How long it takes until the first reports of many hosts are answered, and until Placement knows
their devices; who has the cores meanwhile; and what later reports cost.

``tox -e bench -- --hosts 1000``; it is not a test, as the result depends on the machine.  A few
threads send the reports over RabbitMQ. Two conductors write them to PostgreSQL, where Placement has
a database of its own, and send them to Placement.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import pathlib
import tempfile
import time
import typing

import requests
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import model
from tests import support
from tests.bench import measure
from tests.integration import compute
from tests.integration import deployment as deployment_
from tests.integration import process
from tests.integration import servers

DEVICES = 8
CONDUCTORS = 2
#: The number of concurrent reports.
THREADS = 16
#: The processes of Placement, and the threads of each.
PLACEMENT = ('--workers', '2', '--threads', '4')
CONF = """
[DEFAULT]
debug = false
[placement]
auth_type = admin_token
token = admin
endpoint = {placement}
endpoint_override = {placement}
"""
PLACEMENT_CONF = """
[placement_database]
connection = {placement}
[api]
auth_strategy = noauth2
"""


def run(count: int) -> None:
    hosts = [f'host-{number}' for number in range(count)]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        place = pathlib.Path(directory)
        # Servers of databases refuse to run as root: their directories are open to others.
        place.chmod(0o755)
        bus, database = process.enter(
            stack, servers.rabbitmq(place / 'bus'), servers.postgresql(place / 'database')
        )
        url, placement = _placement(stack, place / 'placement', database)
        conf = CONF.format(placement=url)
        cloud = deployment_.Deployment(stack, place, bus, database, conf)
        conductors = [cloud.conductor(number) for number in range(CONDUCTORS)]
        for number in range(CONDUCTORS):
            process.until(functools.partial(cloud.answers, number))
        _make_roots(url, hosts)
        programs = {
            'conductors': [each.process.pid for each in conductors],
            'database': [database.server.process.pid],
            'RabbitMQ': [bus.server.process.pid],
            'Placement': [placement.process.pid],
            'this program': [os.getpid()],
        }
        for name in ('from cold', 'unchanged', 'unchanged'):
            tell(name, cloud, programs, hosts)
        print(f'{len(cloud.rows(model.Host))} hosts, {len(cloud.rows(model.Device))} devices')


def _placement(
    stack: contextlib.ExitStack, place: pathlib.Path, database: str
) -> tuple[str, process.Server]:
    place.mkdir()
    text = PLACEMENT_CONF.format(**compute.databases(database, 'placement'))
    (place / 'placement.conf').write_text(text)
    process.run('placement-manage', '--config-file', place / 'placement.conf', 'db', 'sync')
    address = f'127.0.0.1:{servers.free_port()}'
    server = stack.enter_context(
        process.serving(
            *('gunicorn', 'placement.wsgi.api:application', '--bind', address, *PLACEMENT),
            ready='Booting worker',
            log=place / 'log',
            OS_PLACEMENT_CONFIG_DIR=str(place),
        )
    )
    url = f'http://{address}'
    process.until(functools.partial(_answers, url))
    return url, server


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=10).status_code == 200
    except requests.RequestException:
        return False


def _make_roots(url: str, hosts: list[str]) -> None:
    """Create the providers of the hosts, as Nova does."""
    headers = {'X-Auth-Token': 'admin', 'OpenStack-API-Version': 'placement 1.39'}
    with requests.Session() as session:
        for name in hosts:
            path, body = f'{url}/resource_providers', {'name': name}
            session.post(path, json=body, headers=headers, timeout=60).raise_for_status()


def tell(
    name: str,
    cloud: deployment_.Deployment,
    programs: dict[str, list[int]],
    hosts: list[str],
) -> None:
    """Send one report of each host, and wait until Placement has been told."""
    before, idle = _spent(programs), measure.idle()
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(functools.partial(report, cloud), hosts))
    answered = time.monotonic() - begun
    process.until(functools.partial(_is_told, cloud), 600)
    known = time.monotonic() - begun
    after = _spent(programs)
    print(
        f'{name}: {len(hosts)} reports of {DEVICES} devices; the last is answered after '
        f'{answered:.1f} s, and Placement knows all after {known:.1f} s'
    )
    for program, spent in after.items():
        print(f'  {program:<14}{spent - before[program]:8.1f} s of CPU')
    print(f'  {"idle":<14}{measure.idle() - idle:8.1f} s of {os.cpu_count()} cores', flush=True)


def _spent(programs: dict[str, list[int]]) -> dict[str, float]:
    return {
        name: measure.spent(pids) if name == 'this program' else measure.spent_below(pids)
        for name, pids in programs.items()
    }


def _is_told(cloud: deployment_.Deployment) -> bool:
    """Whether no message is left."""
    with cloud.database.reader() as session:
        return not session.scalar(sa.select(sa.func.count(model.Message.id)))


def report(cloud: deployment_.Deployment, host: str) -> None:
    cloud.bus.conductor(context.service(), timeout=300).report(
        host=host,
        boot_id='boot-1',
        sequence=time.monotonic_ns(),
        interval=3600,
        digest='the same',
        devices=devices(),
        drivers={'fake': {'state': 'ok', 'reason': '', 'devices': DEVICES}},
    )


def devices() -> list[dict[str, typing.Any]]:
    return [support.card(f'{number:02x}').facts() for number in range(DEVICES)]

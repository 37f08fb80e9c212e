# SPDX-License-Identifier: Apache-2.0
"""The time of the first reports of a thousand hosts with eight devices, and the cost of later
ones.

``tox -e bench -- --hosts 1000``; it is not a test, as the result depends on the machine.  A few
threads send the reports of all hosts over RabbitMQ; two conductors write them to PostgreSQL.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import pathlib
import tempfile
import time
import typing

from cyborg_lite import context
from cyborg_lite import model
from tests import support
from tests.bench import measure
from tests.integration import deployment as deployment_
from tests.integration import process
from tests.integration import servers

DEVICES = 8
CONDUCTORS = 2
#: The number of concurrent reports.
THREADS = 16


def run(count: int) -> None:
    hosts = [f'host-{number}' for number in range(count)]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        place = pathlib.Path(directory)
        bus, database = process.enter(
            stack, servers.rabbitmq(place / 'bus'), servers.postgresql(place / 'database')
        )
        cloud = deployment_.Deployment(stack, place, bus, database, '[DEFAULT]\ndebug = false\n')
        conductors = [cloud.conductor(number) for number in range(CONDUCTORS)]
        for number in range(CONDUCTORS):
            process.until(functools.partial(cloud.answers, number))
        for name in ('from cold', 'unchanged', 'unchanged'):
            tell(name, cloud, conductors, hosts)
        print(f'{len(cloud.rows(model.Host))} hosts, {len(cloud.rows(model.Device))} devices')


def tell(
    name: str,
    cloud: deployment_.Deployment,
    conductors: list[process.Server],
    hosts: list[str],
) -> None:
    """Send one report of each host."""
    cpu, begun = spent(conductors), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(functools.partial(report, cloud), hosts))
    took, cpu = time.monotonic() - begun, spent(conductors) - cpu
    print(
        f'{name}: {len(hosts)} reports of {DEVICES} devices in {took:.1f} s; '
        f'{cpu / len(hosts) * 1000:.2f} ms of conductor CPU each',
        flush=True,
    )


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


def spent(services: list[process.Server]) -> float:
    """The CPU time of the worker processes, in seconds."""
    return measure.spent(pid for service in services for pid in deployment_.workers(service))

# SPDX-License-Identifier: Apache-2.0
"""The service in one process over SQLite: ``cyborg-lite up`` without its web server."""

from __future__ import annotations

import collections.abc
import io
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import typing
import uuid

import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite import service as service_
from tests import databases
from tests import support
from tests.bench import hello
from tests.bench import measure
from tests.bench.measure import Figure

ARQS = '/v2/accelerator_requests'
LISTS = ('devices', 'deployables', 'device_profiles', 'accelerator_requests', 'accelerators')
#: Repeats a request on one connection, in another process, whose CPU time is not counted.
CLIENT = """
import http.client, sys
host, port, path, times = sys.argv[1:]
connection = http.client.HTTPConnection(host, int(port))
for _ in range(int(times)):
    connection.request('GET', path, headers={'OpenStack-API-Version': 'accelerator 2.3'})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
"""
#: The target CPU time of a list, in milliseconds, by its rows.
AIMS = {1000: {'devices': 20.0}}


def ask(app: typing.Any, method: str, url: str, body: typing.Any = None) -> typing.Any:
    """The answer of an application, without a client or a server."""
    path, _, query = url.partition('?')
    sent = b'' if body is None else json.dumps(body).encode()
    environ = {
        'REQUEST_METHOD': method, 'SCRIPT_NAME': '', 'PATH_INFO': path, 'QUERY_STRING': query,
        'SERVER_NAME': 'localhost', 'SERVER_PORT': '80', 'SERVER_PROTOCOL': 'HTTP/1.1',
        'HTTP_HOST': 'localhost:80', 'REMOTE_ADDR': '127.0.0.1', 'wsgi.version': (1, 0),
        'wsgi.url_scheme': 'http', 'wsgi.input': io.BytesIO(sent), 'wsgi.errors': sys.stderr,
        'wsgi.multithread': True, 'wsgi.multiprocess': False, 'wsgi.run_once': False,
        'CONTENT_LENGTH': str(len(sent)), 'CONTENT_TYPE': 'application/json' if sent else '',
        'HTTP_OPENSTACK_API_VERSION': 'accelerator 2.3',
    }  # fmt: skip
    statuses: list[str] = []
    answer = b''.join(app(environ, lambda status, *_: statuses.append(status)))
    assert statuses[0].startswith('2'), (method, url, statuses, answer)
    return json.loads(answer) if answer else None


def figures(place: pathlib.Path) -> collections.abc.Iterator[Figure]:
    yield from _of(place, 10)
    yield from _of(place, 1000)


def _of(place: pathlib.Path, rows: int) -> collections.abc.Iterator[Figure]:
    """The figures of a service that has so many rows of each kind."""
    directory = place / str(rows)
    directory.mkdir()
    with databases.Files().empty() as url:
        file = pathlib.Path(url.removeprefix('sqlite:///'))
        # On the disk of the bench, with the default settings of the database.
        shutil.copy(file, directory)
        service = support.Service(f'sqlite:///{directory / file.name}')
        try:
            _fill(service, rows)
            service_.spare_garbage_collection()
            app = service.embedded.application
            if rows == 10:
                yield from _small(service, app)
                yield from _cycle(service, app)
                yield from _report(service)
            for name in LISTS:
                work = measure.cpu(lambda path=f'/v2/{name}': ask(app, 'GET', path), 15)
                aim = AIMS.get(rows, {}).get(name)
                yield Figure(f'list of {rows:,} {name}, CPU', work, 'ms', aim)
        finally:
            service.stop()


def _fill(service: support.Service, rows: int) -> None:
    service.report(*(support.card(f'{number:03x}') for number in range(rows)))
    groups = [{'resources:FPGA': '1'}]
    with service.database.writer() as session:
        session.add_all(model.DeviceProfile(name=f'p{n}', groups=groups) for n in range(rows - 1))
    service.profile(FPGA=rows)
    service.arqs()
    service.profile('one')


def _small(service: support.Service, app: typing.Any) -> collections.abc.Iterator[Figure]:
    row = ask(app, 'GET', '/v2/devices?limit=1')['devices'][0]
    devices = sa.select(model.Device.__table__).where(model.Device.__table__.c.uuid == row['uuid'])

    def select() -> None:
        with service.database.reader() as session:
            session.connection().execute(devices).all()

    path = f'/v2/devices/{row["uuid"]}'
    floor, sql = _served(hello.application, path), measure.cpu(select, 500)
    yield Figure('hello-WSGI by our web server, CPU', floor, 'ms')
    yield Figure('SELECT by key in a transaction (SQLite), CPU', sql, 'ms')
    aim = round(3 * floor + sql, 2)
    yield Figure('GET of one device by our web server, CPU', _served(app, path), 'ms', aim)
    yield Figure('GET of one device, CPU', measure.cpu(lambda: ask(app, 'GET', path), 300), 'ms')


def _served(app: typing.Any, path: str, times: int = 500) -> float:
    """The CPU time of a request in this process, which serves it, in milliseconds."""
    serving = service_.listen(app, '127.0.0.1', 0)
    thread = threading.Thread(target=serving.serve)
    thread.start()
    host, port = serving.bind_addr
    asking = [sys.executable, '-c', CLIENT, host, str(port), path]
    try:
        subprocess.run([*asking, '50'], check=True)
        begun = time.process_time()
        subprocess.run([*asking, str(times)], check=True)
        return (time.process_time() - begun) * 1000 / times
    finally:
        serving.stop()
        thread.join()


def _cycle(service: support.Service, app: typing.Any) -> collections.abc.Iterator[Figure]:
    part = service.rows(model.Deployable)[0]
    made: list[str] = []
    instances = [str(uuid.uuid4()) for _ in range(100)]

    def create() -> None:
        [arq] = ask(app, 'POST', ARQS, {'device_profile_name': 'one'})['arqs']
        made.append(arq['uuid'])

    def bind() -> None:
        wish = support.wish(part.rp_uuid, support.HOST, instances[-1])
        ask(app, 'PATCH', ARQS, {made[-1]: wish})

    def delete() -> None:
        ask(app, 'DELETE', f'{ARQS}?instance={instances.pop()}')

    took: dict[str, list[float]] = {'create': [], 'bind': [], 'delete': []}
    for _ in range(len(instances)):
        for step in (create, bind, delete):
            took[step.__name__].append(measure.p50(step, 1))
    for name, times in took.items():
        yield Figure(f'embedded: {name}, p50', sorted(times)[len(times) // 2], 'ms', 6)
    total = sum(sum(times) for times in took.values())
    yield Figure('embedded: cycles, one client', 1000 * 100 / total, '/s', 100)


def _report(service: support.Service) -> collections.abc.Iterator[Figure]:
    cards = [support.card(f'{number:03x}') for number in range(10)]
    taken = measure.cpu(lambda: service.report(*cards), 100)
    facts = measure.cpu(lambda: [card.facts() for card in cards], 100)
    yield Figure('unchanged report, conductor, CPU', taken - facts, 'ms', 0.5)

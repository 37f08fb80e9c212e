# SPDX-License-Identifier: Apache-2.0
"""The service in one process over SQLite: ``cyborg-lite up`` without its web server."""

from __future__ import annotations

import base64
import collections.abc
import contextlib
import io
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
import typing
import uuid

import bcrypt
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite import service as service_
from cyborg_lite.api import app as app_
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
host, port, path, times, login = sys.argv[1:]
connection = http.client.HTTPConnection(host, int(port))
headers = {'OpenStack-API-Version': 'accelerator 2.3', 'Authorization': login}
for _ in range(int(times)):
    connection.request('GET', path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
"""
LOGIN = f'Basic {base64.b64encode(b"bench:secret").decode()}'
#: Creates and releases allocations on so many connections at once; prints how many a second.
PAIRS = """
import concurrent.futures, http.client, json, sys, time
host, port, clients, seconds = sys.argv[1], *map(int, sys.argv[2:])
end = time.monotonic() + seconds

def work(_):
    connection, done = http.client.HTTPConnection(host, port), 0

    def ask(method, path, body=None):
        connection.request(method, path, body, {'Content-Type': 'application/json'})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status in (201, 204), text
        return text

    while time.monotonic() < end:
        made = json.loads(ask('POST', '/v2/allocations', '{"profile": "one"}'))
        ask('DELETE', '/v2/allocations/' + made['uuid'])
        done += 1
    return done

with concurrent.futures.ThreadPoolExecutor(clients) as pool:
    print(sum(pool.map(work, range(clients))) / seconds)
"""
#: How many clients allocate at once, for how many seconds, and from how many cards.
CLIENTS, SECONDS, CARDS = 32, 5, 64
#: How many accelerators are allocated, and bound, to compare both.
AMOUNTS = (1, 8)
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
    with _service(place, 10) as service:
        app = service.embedded.application
        yield from _small(service, app, _with_passwords(place, service))
        yield from _cycle(service, app)
        for amount in AMOUNTS:
            yield from _against_binds(service, app, amount)
        yield from _report(service)
        yield from _lists(app, 10)
    with _service(place, CARDS) as service:
        with _serving(service.embedded.application) as (host, port):
            pairs = float(_run(PAIRS, host, port, CLIENTS, SECONDS))
        yield Figure(f'embedded: allocations, {CLIENTS} clients over HTTP', pairs, '/s', 150)
    with _service(place, 1000) as service:
        yield from _lists(service.embedded.application, 1000)


@contextlib.contextmanager
def _service(place: pathlib.Path, rows: int) -> collections.abc.Iterator[support.Service]:
    """A service that has so many rows of each kind."""
    with opened(place / str(rows)) as service:
        _fill(service, rows)
        service_.spare_garbage_collection()
        yield service


@contextlib.contextmanager
def opened(directory: pathlib.Path) -> collections.abc.Iterator[support.Service]:
    """A service whose database is in a new directory."""
    directory.mkdir()
    with databases.Files().empty() as url:
        file = pathlib.Path(url.removeprefix('sqlite:///'))
        # On the disk of the bench, with the default settings of the database.
        shutil.copy(file, directory)
        service = support.Service(f'sqlite:///{directory / file.name}')
        try:
            yield service
        finally:
            service.stop()


def _lists(app: typing.Any, rows: int) -> collections.abc.Iterator[Figure]:
    for name in LISTS:
        work = measure.cpu(lambda path=f'/v2/{name}': ask(app, 'GET', path), 15)
        aim = AIMS.get(rows, {}).get(name)
        yield Figure(f'list of {rows:,} {name}, CPU', work, 'ms', aim)


def _fill(service: support.Service, rows: int) -> None:
    service.report(*(support.card(f'{number:03x}') for number in range(rows)))
    groups = [{'resources:FPGA': '1'}]
    with service.database.writer() as session:
        session.add_all(model.DeviceProfile(name=f'p{n}', groups=groups) for n in range(rows - 1))
    service.profile(FPGA=rows)
    service.arqs()
    service.profile('one')


def _with_passwords(place: pathlib.Path, service: support.Service) -> typing.Any:
    """The application of a service, for users that log in."""
    users = place / 'users'
    users.write_text(f'bench:{bcrypt.hashpw(b"secret", bcrypt.gensalt()).decode()}\n')
    defaults = {'api__auth_strategy': 'http_basic', 'api__http_basic_auth_user_file': str(users)}
    return app_.application(
        options.load(files=[], **defaults), service.database, service.embedded.bus
    )


def _small(
    service: support.Service, app: typing.Any, guarded: typing.Any
) -> collections.abc.Iterator[Figure]:
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
    work = _served(guarded, path)
    yield Figure('GET of one device, with a password, CPU', work, 'ms', aim)
    yield Figure('GET of one device, CPU', measure.cpu(lambda: ask(app, 'GET', path), 300), 'ms')


def _served(app: typing.Any, path: str, times: int = 500) -> float:
    """The CPU time of a request in this process, which serves it, in milliseconds."""
    with _serving(app) as (host, port):
        _run(CLIENT, host, port, path, 50, LOGIN)
        begun = time.process_time()
        _run(CLIENT, host, port, path, times, LOGIN)
        return (time.process_time() - begun) * 1000 / times


@contextlib.contextmanager
def _serving(app: typing.Any) -> collections.abc.Iterator[tuple[str, int]]:
    """The address at which this process serves an application."""
    serving = service_.listen(app, '127.0.0.1', 0)
    thread = threading.Thread(target=serving.serve)
    thread.start()
    try:
        yield serving.bind_addr
    finally:
        serving.stop()
        thread.join()


def _run(text: str, *arguments: object) -> str:
    """What a client prints: it is a process of its own."""
    words = [sys.executable, '-c', text, *map(str, arguments)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


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
    yield Figure('embedded: bind in the conductor, CPU', _bind_cpu(service, part), 'ms', 3)
    for name, times in took.items():
        yield Figure(f'embedded: {name}, p50', sorted(times)[len(times) // 2], 'ms', 6)
    total = sum(sum(times) for times in took.values())
    yield Figure('embedded: cycles, one client', 1000 * 100 / total, '/s', 100)


def _against_binds(
    service: support.Service, app: typing.Any, amount: int, times: int = 60
) -> collections.abc.Iterator[Figure]:
    """What an allocation takes beside the requests, created and bound, that are the same."""
    name = f'of-{amount}'
    service.profile(name, FPGA=amount)
    parts = service.rows(model.Deployable)[:amount]
    took: dict[str, list[float]] = {'bind': [], 'allocate': []}
    for _ in range(times):
        instance = str(uuid.uuid4())
        begun = time.process_time()
        arqs = ask(app, 'POST', ARQS, {'device_profile_name': name})['arqs']
        pairs = zip(arqs, parts, strict=True)
        places = [(arq['uuid'], part.rp_uuid) for arq, part in pairs]
        wishes = {arq: support.wish(rp_uuid, support.HOST, instance) for arq, rp_uuid in places}
        ask(app, 'PATCH', ARQS, wishes)
        took['bind'].append(time.process_time() - begun)
        ask(app, 'DELETE', f'{ARQS}?instance={instance}')
        begun = time.process_time()
        made = ask(app, 'POST', '/v2/allocations', {'profile': name})
        took['allocate'].append(time.process_time() - begun)
        ask(app, 'DELETE', f'/v2/allocations/{made["uuid"]}')
    bound, allocated = (statistics.median(took[each]) * 1000 for each in ('bind', 'allocate'))
    yield Figure(f'embedded: create and bind of {amount}, CPU', bound, 'ms')
    aim = 1.3 * bound
    yield Figure(f'embedded: allocation of {amount}, CPU', allocated, 'ms', round(aim, 2))


def _bind_cpu(service: support.Service, part: model.Deployable, times: int = 100) -> float:
    """The CPU time of a bind without the API, in milliseconds."""
    user = context.RequestContext(project_id='p', is_admin=True, overwrite=False)
    conductor, used = service.embedded.bus.conductor(user), 0.0
    for _ in range(times):
        [uuid_] = conductor.create_arqs(profile='one')
        instance = str(uuid.uuid4())
        wish = {
            'uuid': uuid_, 'hostname': support.HOST, 'device_rp_uuid': part.rp_uuid,
            'instance_uuid': instance, 'project_id': 'p',
        }  # fmt: skip
        begun = time.process_time()
        conductor.bind(wishes=[wish])
        used += time.process_time() - begun
        conductor.delete_arqs_of(instance=instance)
    return used * 1000 / times


def _report(service: support.Service) -> collections.abc.Iterator[Figure]:
    cards = [support.card(f'{number:03x}') for number in range(10)]
    taken = measure.cpu(lambda: service.report(*cards), 100)
    facts = measure.cpu(lambda: [card.facts() for card in cards], 100)
    yield Figure('unchanged report, conductor, CPU', taken - facts, 'ms', 0.5)

# SPDX-License-Identifier: Apache-2.0
"""An unavailable broker, database or disk: requests fail in time with the reason."""

import contextlib
import json
import os
import pathlib
import signal
import time

import httpx
import pytest

from tests.integration import deployment as deployment_
from tests.integration import process
from tests.integration import servers

TIMEOUT = 10
#: The additional time of a request on a busy machine, in seconds.
BESIDE = 1
#: The outage of the database, in seconds: longer than all retries.
AWAY = 30
CONF = f'[api]\nauth_strategy = noauth\nresponse_timeout = {TIMEOUT}\n'
RABBITMQCTL = '/usr/lib/rabbitmq/bin/rabbitmqctl'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('outages')


@pytest.fixture(scope='module')
def deployment(place):
    with contextlib.ExitStack() as stack:
        bus, url = process.enter(
            stack,
            servers.rabbitmq(place / 'rabbitmq'),
            servers.postgresql(place / 'postgresql'),
        )
        made = deployment_.Deployment(stack, place, bus, url, CONF)
        made.broker, made.postgresql = bus.server, url.server
        made.conductor()
        made.url, _ = made.api()
        yield made


class Client:
    """Requests to the API, with their durations."""

    def __init__(self, url):
        self._url = url
        self.took = 0.0

    def __call__(self, method, path, body=None):
        begun = time.monotonic()
        headers = {'Content-Type': 'application/json'}
        answer = httpx.request(method, f'{self._url}{path}', json=body, headers=headers, timeout=90)
        self.took = time.monotonic() - begun
        return answer

    def create(self, name):
        body = [{'name': name, 'groups': [{'resources:FPGA': '1', 'accel:x': 'y' * 250}] * 50}]
        return self('POST', '/device_profiles', body)

    def health(self, more=''):
        root = self._url.removesuffix('/v2')
        return httpx.get(f'{root}/healthcheck{more}', timeout=30)


@pytest.fixture
def client(deployment):
    made = Client(deployment.url)
    process.until(lambda: made.health().status_code == 200)
    assert made.health('/live').status_code == 200
    return made


def said(answer):
    return json.loads(answer.json()['error_message'])['faultstring']


def watermark(deployment, fraction):
    # The environment of the broker: its cookie, its name, the port of its mapper.
    environ = deployment.broker._environ
    process.run(RABBITMQCTL, 'set_vm_memory_high_watermark', fraction, **environ)


def test_a_broker_that_has_blocked_its_publishers(deployment, client):
    assert client.create('before').status_code == 201
    watermark(deployment, '0.00001')
    try:
        for number in range(3):
            answer = client.create(f'blocked-{number}')
            assert client.took <= TIMEOUT + BESIDE, number
            # The broker accepts the first message of a connection.
            assert answer.status_code in (201, 503)
        assert answer.status_code == 503
        assert 'message bus' in said(answer)
        assert client('GET', '/device_profiles').status_code == 200
        process.until(lambda: client.health().status_code == 503)
        answer = client.health()
        assert answer.elapsed.total_seconds() < 5
        assert 'message bus' in answer.text
        assert client.health('/live').status_code == 200
    finally:
        watermark(deployment, '0.6')
    process.until(lambda: client.create(f'after-{time.monotonic_ns()}').status_code == 201)
    process.until(lambda: client.health().status_code == 200)


def test_a_database_that_is_away_for_longer_than_the_retries(deployment, client):
    halted = time.monotonic()
    deployment.postgresql.halt(signal.SIGQUIT)
    try:
        # The result is cached for a second.
        process.until(lambda: client.health().status_code == 503)
        assert 'database' in client.health().text
        assert client.health('/live').status_code == 200
        while time.monotonic() < halted + AWAY:
            answer = client.create(f'away-{time.monotonic_ns()}')
            assert (answer.status_code, client.took <= TIMEOUT + BESIDE) == (503, True), answer.text
            assert 'database' in said(answer)
        # If the conductor times out first, it reports the error itself.
        patient = deployment.bus.conductor(deployment_.CALLER, timeout=60)
        with pytest.raises(Exception, match='database cannot be used') as raised:
            patient.create_device_profile(profile={'name': 'away', 'groups': []})
        assert raised.value.code == 503
        # So does an API that starts only now.
        late = Client(deployment.api()[0])
        for asked in (client, late):
            answer = asked('GET', '/device_profiles')
            assert answer.status_code == 503
            assert asked.took <= TIMEOUT + BESIDE
            assert 'database' in said(answer)
    finally:
        deployment.postgresql.start()
    process.until(lambda: client.create(f'after-{time.monotonic_ns()}').status_code == 201)
    process.until(lambda: late('GET', '/device_profiles').status_code == 200)


@contextlib.contextmanager
def up_on_a_small_disk(place):
    """``cyborg-lite up`` with a state directory of a megabyte, and that directory from here."""
    state = place / 'state'
    state.mkdir()
    whose = [] if os.geteuid() == 0 else ['--user', '--map-root-user']
    mount = 'mount -t tmpfs -o size=1m,mode=700 tmpfs "$0" && exec "$@"'
    command = [process.BIN / 'cyborg-lite', 'up', '--host', 'mixed-alveo-qat', '--port', '0']
    (place / 'conf').write_text(f'[DEFAULT]\nlog_file = {place}/log\n')
    running = process.serving(
        *('/usr/bin/unshare', '--mount', *whose, 'sh', '-c', mount, str(state)),
        *(*command, '--state-dir', str(state), '--config-file', str(place / 'conf')),
        ready=r'The API answers at (http://127.0.0.1:\d+)/',
        log=place / 'output',
        PYTHONUNBUFFERED='1',
    )
    with running as server:
        yield f'{server.ready[1]}/v2', pathlib.Path(f'/proc/{server.process.pid}/root{state}')


def fill(file):
    with file.open('wb', buffering=0) as full, contextlib.suppress(OSError):
        while True:
            full.write(b'x' * 512)


def test_a_disk_that_is_full(tmp_path):
    with up_on_a_small_disk(tmp_path) as (url, state):
        client = Client(url)
        assert client.create('before').status_code == 201
        fill(state / 'fill')
        answers = [client.create(f'full-{number}') for number in range(20)]
        refused = [answer for answer in answers if answer.status_code != 201]
        assert refused
        for answer in refused:
            assert answer.status_code == 503, answer.text
            assert 'database cannot be used' in said(answer)
        process.until(lambda: client.health().status_code == 503)
        assert 'database' in client.health().text
        assert client.health('/live').status_code == 200
        for path in ('/device_profiles', '/devices', '/deployables', '/hosts', '/attributes'):
            assert client('GET', path).status_code == 200, path
        (state / 'fill').unlink()
        process.until(lambda: client.create(f'after-{time.monotonic_ns()}').status_code == 201)
        process.until(lambda: client.health().status_code == 200)

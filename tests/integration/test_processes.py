# SPDX-License-Identifier: Apache-2.0
"""API, conductors and agent as separate processes, over RabbitMQ and a database."""

from concurrent import futures
import contextlib
import dataclasses
import os
import pathlib
import signal
import uuid

import oslo_messaging as messaging
import pytest
import requests
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite import rpc
from tests import support
from tests.integration import deployment
from tests.integration import process
from tests.integration import servers

CONF = (
    deployment.CONF
    + """
[api]
auth_strategy = noauth
response_timeout = 20
[agent]
enabled_drivers = fake
report_interval = 1
"""
)
#: In CI the processes use one database, and at night the other: the functional tests cover the
#: differences.
DATABASES = os.environ.get('CYBORG_LITE_PROCESS_DATABASES', 'postgresql').split()


@dataclasses.dataclass
class Cloud:
    url: str
    conf: pathlib.Path
    database: str
    conductors: list[process.Server]
    agent: process.Server

    def get(self, path):
        return requests.get(f'{self.url}{path}', timeout=60).json()

    def ask(self, method, path, body=None):
        return requests.request(method, f'{self.url}{path}', json=body, timeout=60)

    def host(self):
        return self.get('/devices')['devices'][0]['hostname']

    def cycle(self):
        """Create a request, bind it, see it bound, delete it."""
        answer = self.ask('POST', '/accelerator_requests', {'device_profile_name': 'one'})
        [arq] = answer.json()['arqs']
        provider = self.get('/deployables')['deployables'][0]['rp_uuid']
        patch = {arq['uuid']: support.wish(provider, self.host(), str(uuid.uuid4()))}
        assert self.ask('PATCH', '/accelerator_requests', patch).status_code == 202
        assert self.get(f'/accelerator_requests/{arq["uuid"]}')['state'] == 'Bound'
        path = f'/accelerator_requests?arqs={arq["uuid"]}'
        assert self.ask('DELETE', path).status_code == 204


@pytest.fixture(scope='module')
def bus(tmp_path_factory):
    with servers.rabbitmq(tmp_path_factory.mktemp('bus') / 'rabbitmq') as url:
        yield url


@pytest.fixture(scope='module', params=DATABASES)
def cloud(request, bus, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(servers.DATABASES[request.param](place / 'database'))
        yield _start(stack, place, bus, database, f'host-{request.param}')


def _start(stack, place: pathlib.Path, bus: str, database: str, host: str) -> Cloud:
    conf = place / 'cyborg-lite.conf'
    conf.write_text(CONF.format(bus=bus, database=database, host=host))
    process.run('cyborg-lite-dbsync', '--config-file', conf, 'upgrade')

    def start(name, ready, number=0):
        return stack.enter_context(
            process.serving(
                name, '--config-file', conf, ready=ready, log=place / f'{name}-{number}'
            )
        )

    conductors = [
        start('cyborg-lite-conductor', 'Creating new RPC server|start', n) for n in (1, 2)
    ]
    agent = start('cyborg-lite-agent', 'Creating new RPC server|start')
    port = servers.free_port()
    stack.enter_context(
        process.serving(
            'gunicorn',
            'cyborg_lite.wsgi.api:application',
            *('--bind', f'127.0.0.1:{port}', '--workers', '2', '--threads', '8'),
            ready='Booting worker',
            log=place / 'gunicorn',
            CYBORG_LITE_CONFIG_FILE=str(conf),
        )
    )
    made = Cloud(f'http://127.0.0.1:{port}/v2', conf, database, conductors, agent)
    process.until(lambda: _answers(made) and made.get('/hosts')['hosts'])
    group = {'resources:FPGA': '1'}
    made.ask('POST', '/device_profiles', [{'name': 'one', 'groups': [group]}])
    return made


def _answers(cloud: Cloud) -> bool:
    try:
        return cloud.ask('GET', '').status_code == 200
    except requests.ConnectionError:
        return False


def test_a_call_without_a_server_fails_at_once(bus):
    """An agent that starts before the first conductor would wait for a minute."""
    alone = rpc.Bus(options.load(files=[]), bus, exchange='alone')
    with pytest.raises(messaging.MessageUndeliverable):
        alone.conductor(context.service(), timeout=60).report()
    alone.close()


def test_agent_that_starts_before_the_first_conductor(tmp_path):
    """It reports as soon as a conductor runs, long before the next report is due; and logs its
    wait.
    """
    # The directory has the host's name.
    place = tmp_path / 'alone'
    place.mkdir()
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(servers.rabbitmq(tmp_path / 'rabbitmq'))
        made = deployment.Deployment(
            stack,
            place,
            bus,
            f'sqlite:///{place}/cyborg_lite.sqlite',
            '[agent]\nenabled_drivers = fake\nreport_interval = 3600\n',
        )
        made.agent()
        log = place / 'cyborg-lite-agent-0'
        process.until(lambda: 'waits for a conductor to report to' in log.read_text())
        made.conductor()
        process.until(lambda: made.rows(model.Host))
        process.until(lambda: 'a conductor took the report' in log.read_text())
        assert log.read_text().count('waits for a conductor to report to') == 1


def test_a_call_without_a_broker_fails_in_time(tmp_path):
    """The API answers 503 then, as without a conductor."""
    with servers.rabbitmq(tmp_path / 'rabbitmq') as url:
        alone = rpc.Bus(options.load(files=[]), url)
        peer = alone.conductor(context.service(), timeout=60)
        with pytest.raises(messaging.MessageUndeliverable):
            peer.report()
        url.server.end()
        # One uses the existing connection; the others need new ones.
        with futures.ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(peer.report) for _ in range(4)]
        for call in calls:
            with pytest.raises(messaging.MessageDeliveryFailure):
                call.result()
        url.server.start()
        with pytest.raises(messaging.MessageUndeliverable):
            peer.report()
        alone.close()


def test_an_agent_reports_and_a_request_is_bound(cloud):
    [host] = cloud.get('/hosts')['hosts']
    assert host['state'] == 'up'
    assert host['drivers']['fake']['state'] == 'ok'
    cloud.cycle()


def test_sixteen_accelerators_go_to_sixteen_requests(cloud):
    groups = [{'resources:FPGA': '16'}]
    cloud.ask('POST', '/device_profiles', [{'name': 'sixteen', 'groups': groups}])
    answer = cloud.ask('POST', '/accelerator_requests', {'device_profile_name': 'sixteen'})
    arqs = [arq['uuid'] for arq in answer.json()['arqs']]
    provider = cloud.get('/deployables')['deployables'][0]['rp_uuid']
    wish = support.wish(provider, cloud.host(), support.INSTANCE)
    assert cloud.ask('PATCH', '/accelerator_requests', dict.fromkeys(arqs, wish)).status_code == 202
    bound = cloud.get(f'/accelerator_requests?instance={support.INSTANCE}')['arqs']
    assert len({arq['attach_handle_uuid'] for arq in bound}) == 16
    path = f'/accelerator_requests?instance={support.INSTANCE}'
    assert cloud.ask('DELETE', path).status_code == 204


def test_options_are_changed_while_processes_run(cloud):
    """SIGHUP: the next worker has the mutable options, and continues the work."""
    text = cloud.conf.read_text().replace('report_interval = 1', 'report_interval = 2')
    cloud.conf.write_text(text.replace('debug = true', 'debug = false'))
    cloud.agent.reload()
    engine = sa.create_engine(cloud.database)
    with engine.connect().execution_options(isolation_level='AUTOCOMMIT') as connection:
        process.until(lambda: connection.scalar(sa.select(model.Host.interval)) == 2)
    engine.dispose()
    logs = [cloud.conf.with_name(f'cyborg-lite-conductor-{n}') for n in (1, 2)]
    for conductor in cloud.conductors:
        conductor.reload()
    process.until(lambda: all('graceful exiting of service' in log.read_text() for log in logs))
    cloud.cycle()
    for log in logs:
        ended = log.read_text().rpartition('graceful exiting of service')[2]
        assert ' DEBUG ' not in ended, ended
    assert all(each.process.poll() is None for each in (*cloud.conductors, cloud.agent))


def test_another_conductor_replaces_a_killed_one(cloud):
    first = cloud.conductors[0].process
    # Also its worker, in the same process group.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(process.PATIENCE)
    for _ in range(3):
        cloud.cycle()


def test_a_conductor_and_an_agent_stop_on_sigterm(cloud):
    assert cloud.agent.stop() == 0
    assert cloud.conductors[1].stop() == 0
    # The API still reads, and answers 503 without a conductor.
    assert cloud.get('/devices')['devices']
    body = {'device_profile_name': 'one'}
    assert cloud.ask('POST', '/accelerator_requests', body).status_code == 503

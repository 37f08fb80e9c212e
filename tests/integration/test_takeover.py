# SPDX-License-Identifier: Apache-2.0
"""Three equal conductors: one is stopped or killed, and the others do its work."""

import collections
import concurrent.futures
import contextlib
import threading
import time
import uuid

import oslo_messaging as messaging
import pytest
import sqlalchemy as sa
import webob

from cyborg_lite import model
from tests import support
from tests.integration import deployment as deployment_
from tests.integration import invariants
from tests.integration import peers
from tests.integration import process
from tests.integration import servers

NOVA = """
[nova]
auth_type = admin_token
token = t
endpoint = {url}
endpoint_override = {url}
"""
HANDLES = 12
#: The time after which another conductor takes over the work of a dead one, in seconds.
PROMISE = 60


class Deaf(peers.Peers):
    """A Nova that does not answer until the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.hears = threading.Event()
        self.asked = threading.Semaphore(0)

    def _listen(self, request: webob.Request) -> webob.Response:
        self.asked.release()
        self.hears.wait(PROMISE)
        return super()._listen(request)


@pytest.fixture(scope='module')
def nova():
    with peers.peers(Deaf) as made:
        yield made
        made.hears.set()


@pytest.fixture(scope='module')
def deployment(tmp_path_factory, nova):
    place = tmp_path_factory.mktemp('takeover')
    conf = NOVA.format(url=f'{nova.url}/compute/v2.1')
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(servers.rabbitmq(place / 'rabbitmq'))
        url = stack.enter_context(servers.postgresql(place / 'database'))
        yield deployment_.Deployment(stack, place, bus, url, conf)


@pytest.fixture
def conductors(deployment, nova):
    nova.hears.set()
    made = [deployment.conductor(number) for number in range(3)]
    for number in range(3):
        process.until(lambda number=number: deployment.answers(number))
    yield made
    for each in made:
        deployment_.kill(each)


def prepare(deployment, count):
    """New requests, and the binds of each for an instance of its own."""
    facts = [support.card(handles=HANDLES).facts()]
    report = {'host': 'node-1', 'boot_id': 'b', 'sequence': time.monotonic_ns(), 'interval': 3600}
    deployment.call('report', **report, digest='d', devices=facts, drivers={})
    profile = {'name': str(uuid.uuid4()), 'groups': [{'resources:FPGA': str(count)}]}
    deployment.call('create_device_profile', profile=profile)
    arqs = deployment.call('create_arqs', profile=profile['name'], token=str(uuid.uuid4()))
    [part] = [row for row in deployment.rows(model.Deployable) if row.name.startswith('node-1_')]
    return [
        {
            'uuid': arq,
            'hostname': 'node-1',
            'device_rp_uuid': part.rp_uuid,
            'instance_uuid': str(uuid.uuid4()),
            'project_id': 'p',
        }
        for arq in arqs
    ]


@contextlib.contextmanager
def in_hand(deployment, wishes, timeout):
    """Concurrent bind calls, which wait for locked rows until the block ends. Yields their
    futures.
    """
    arqs = [wish['uuid'] for wish in wishes]
    with (
        concurrent.futures.ThreadPoolExecutor(len(wishes)) as pool,
        deployment.database.writer() as session,
    ):
        rows = sa.select(model.ARQ.id).where(model.ARQ.uuid.in_(arqs)).with_for_update()
        assert len(session.scalars(rows).all()) == len(wishes)
        calls = [pool.submit(deployment.call, 'bind', timeout, wishes=[wish]) for wish in wishes]
        process.until(lambda: waiting(deployment) == len(wishes))
        yield calls


def waiting(deployment):
    """The number of transactions that wait for a lock."""
    locks = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with deployment.database.reader() as session:
        return session.scalar(sa.text(locks))


def outcomes(calls):
    """The numbers of answered and of unanswered calls."""
    return collections.Counter(type(call.exception()) for call in calls)


def test_a_stopped_conductor_finishes_calls_in_progress(deployment, conductors):
    wishes = prepare(deployment, HANDLES)
    with in_hand(deployment, wishes, timeout=60) as calls:
        conductors[0].process.terminate()
        # It accepts no more calls, but others do: the broker would send it a third of them.
        for _ in range(6):
            deployment.call('unbind', timeout=20, uuids=[])
        assert conductors[0].process.poll() is None
    assert outcomes(calls) == {type(None): HANDLES}
    assert conductors[0].process.wait(60) == 0
    assert {row.state for row in deployment.rows(model.ARQ)} == {'Bound'}
    assert list(rested(deployment)) == []
    deployment.call('delete_arqs', uuids=[wish['uuid'] for wish in wishes])


def test_calls_of_a_killed_conductor_can_be_retried(deployment, conductors):
    """Its callers get no answer, in the API a 503, and retry."""
    wishes = prepare(deployment, HANDLES)
    with in_hand(deployment, wishes, timeout=20) as calls:
        deployment_.kill(conductors[0])
    seen = outcomes(calls)
    # The three of them share the work.
    assert seen[messaging.MessagingTimeout]
    assert seen[type(None)]
    assert set(seen) == {messaging.MessagingTimeout, type(None)}
    states = {row.uuid: row.state for row in deployment.rows(model.ARQ)}
    for wish, call in zip(wishes, calls, strict=True):
        done = call.exception() is None
        assert states[wish['uuid']] == ('Bound' if done else 'Initial')
        if not done:
            deployment.call('bind', wishes=[wish])
    assert list(rested(deployment)) == []
    deployment.call('delete_arqs', uuids=[wish['uuid'] for wish in wishes])


def test_another_conductor_sends_messages_of_a_killed_one(deployment, nova):
    nova.hears.clear()
    while nova.asked.acquire(blocking=False):
        pass  # what was asked before
    first = deployment.conductor(3)
    [wish] = prepare(deployment, 1)
    deployment.call('bind', wishes=[wish])
    assert nova.asked.acquire(timeout=process.PATIENCE), 'Nova was not asked'
    others = [deployment.conductor(number) for number in (4, 5)]
    deployment_.kill(first)
    end = time.monotonic() + PROMISE
    process.until(lambda: nova.asked.acquire(blocking=False), end - time.monotonic())
    nova.hears.set()
    process.until(lambda: not deployment.rows(model.Message))
    told = nova.events(wish['instance_uuid'], 1)
    assert {(event['tag'], event['status']) for event in told} == {(wish['uuid'], 'completed')}
    deployment.call('delete_arqs', uuids=[wish['uuid']])
    for each in others:
        deployment_.kill(each)


def test_reports_of_a_host_are_serialized(deployment, conductors):
    """With any conductors, and in any order, the latest report is stored."""
    for first in range(0, 80, 4):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: report(deployment, number), range(first, first + 4)))
        [host] = [row for row in deployment.rows(model.Host) if row.name == 'node-2']
        assert host.sequence == first + 3
        [device] = [row for row in deployment.rows(model.Device) if row.hostname == 'node-2']
        assert device.model == f'model {first + 3}'


def report(deployment, sequence):
    facts = support.card('5e', model=f'model {sequence}').facts()
    about = {'host': 'node-2', 'boot_id': 'b', 'sequence': sequence, 'interval': 3600}
    deployment.call('report', **about, digest=str(sequence), devices=[facts], drivers={})


def rested(deployment):
    """The violations once all events were sent."""
    process.until(lambda: not deployment.rows(model.Message))
    yield from invariants.in_database(deployment)

# SPDX-License-Identifier: Apache-2.0
"""Holders of a device are notified when its health has other effects, over a bus in memory."""

import queue
import uuid

import oslo_messaging as messaging
import pytest

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite.conductor import health
from cyborg_lite.conductor import manager
from cyborg_lite.conductor import notices
from cyborg_lite.conductor import outbox
from cyborg_lite.db import accelerators
from tests import support
from tests.unit.conductor import test_leases

#: Longer than a notification takes, in seconds.
BOUND = 60


class Endpoint:
    """What other services of a cloud hear."""

    def __init__(self):
        self.heard = queue.Queue()

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        self.heard.put(('info', publisher_id, event_type, payload))

    def warn(self, ctxt, publisher_id, event_type, payload, metadata):
        self.heard.put(('warn', publisher_id, event_type, payload))


@pytest.fixture
def listened():
    """What is heard, and a bus whose notifications are listened to."""
    conf = options.load(files=[], host='conductor-1')
    bus, endpoint = rpc.Bus(conf, 'fake://'), Endpoint()
    assert bus.notifier() is None
    topic = f'notifications-{uuid.uuid4()}'
    for option, value in {'driver': ['messagingv2'], 'topics': [topic]}.items():
        conf.set_override(option, value, group='oslo_messaging_notifications')
    transport = messaging.get_notification_transport(conf, url='fake://')
    target = messaging.Target(topic=topic)
    listener = messaging.get_notification_listener(transport, [target], [endpoint], 'threading')
    listener.start()
    yield endpoint.heard, bus
    listener.stop()
    listener.wait()
    bus.close()
    transport.cleanup()


@pytest.fixture
def told(conductor, listened):
    """What is heard; the conductor notifies on the bus that is listened to."""
    heard, bus = listened
    conductor._manager = manager.Manager(conductor.conf, conductor.database, bus.notifier())
    return heard


def report(conductor, *told, times=1):
    for _ in range(times):
        card = support.card()
        card.health, card.health_reason = told or ('ok', None)
        conductor.report(card, agent='agent-1')


AGENT = {'host': support.HOST, 'agent': 'agent-1'}


def test_the_holder_of_a_faulty_device_is_notified_at_both_ends(conductor, told):
    report(conductor)
    row = test_leases.lease(conductor, AGENT)
    report(conductor, 'critical', 'xid_79', times=3)
    assert support.send_batch(conductor._manager.outbox, outbox.NOTICE)
    level, publisher, event, payload = told.get(timeout=BOUND)
    assert (level, publisher, event) == ('warn', 'accelerator.conductor-1', notices.EVENT)
    about = payload['device']
    assert (about['address'], about['hostname']) == ('0000:3b:00.0', support.HOST)
    assert (about['health'], about['health_reason']) == ('critical', 'xid_79')
    assert (about['fault'], about['effects']) == ('critical: xid_79', ['no_new', 'tell'])
    [holder] = payload['holders']
    [held] = row['accelerators']
    assert holder == {
        'accelerator_uuid': held['uuid'],
        'arq_uuid': held['arq_uuid'],
        'instance_uuid': None,
        'allocation_uuid': row['uuid'],
        'project_id': 'jane',
    }
    # The same again is no news.
    report(conductor, 'critical', 'xid_79', times=2)
    assert not support.send_batch(conductor._manager.outbox, outbox.NOTICE)
    report(conductor, times=3)
    assert support.send_batch(conductor._manager.outbox, outbox.NOTICE)
    level, _, _, payload = told.get(timeout=BOUND)
    assert (level, payload['device']['effects']) == ('info', [])


def test_holders_of_other_devices_are_not_named(conductor, told):
    def report(*health):
        faulty = support.card('3b')
        faulty.health, faulty.health_reason = health
        conductor.report(support.card('5e'), faulty, agent='agent-1')

    report('ok', None)
    for pid in (7, 8):
        test_leases.lease(conductor, AGENT, {'pid': pid})
    for _ in range(3):
        report('critical', 'xid_79')
    assert support.send_batch(conductor._manager.outbox, outbox.NOTICE)
    payload = told.get(timeout=BOUND)[3]
    [accelerator] = [
        each.uuid
        for each in conductor.rows(accelerators.Accelerator)
        if each.address == payload['device']['address']
    ]
    assert [each['accelerator_uuid'] for each in payload['holders']] == [accelerator]
    assert told.empty()


def notices_due(conductor):
    return [each for each in conductor.rows(model.Message) if each.kind == outbox.NOTICE]


@pytest.mark.parametrize(
    ('text', 'next_'),
    [
        # Another fault with the same effects.
        ('', ('critical', 'xid_48')),
        # The same effect for holders, but the device is given out again.
        ('xid_48 = "tell"\n', ('critical', 'xid_48')),
    ],
)
def test_a_fault_that_turns_into_another_is_notified(conductor, listened, tmp_path, text, next_):
    policy = tmp_path / 'policy.toml'
    policy.write_text(text)
    conductor.conf.set_override('health_policy', str(policy), group='conductor')
    conductor._manager = manager.Manager(conductor.conf, conductor.database, listened[1].notifier())
    report(conductor)
    test_leases.lease(conductor, AGENT)
    report(conductor, 'critical', 'xid_79', times=3)
    assert support.send_batch(conductor._manager.outbox, outbox.NOTICE)
    report(conductor, *next_, times=3)
    assert len(notices_due(conductor)) == 1


def test_a_fault_with_other_effects_by_another_policy_is_notified(conductor, told):
    report(conductor)
    test_leases.lease(conductor, AGENT)
    report(conductor, 'critical', 'xid_79', times=3)
    assert support.send_batch(conductor._manager.outbox, outbox.NOTICE)
    conductor._manager.reports._policy = health.Policy((('critical', frozenset({'tell'})),))
    report(conductor, 'critical', 'xid_79')
    assert len(notices_due(conductor)) == 1


def test_nobody_is_notified_of_a_free_device(conductor, told):
    report(conductor)
    report(conductor, 'critical', 'xid_79', times=3)
    assert conductor.rows(model.Message) == []
    assert told.empty()


def test_a_holder_that_has_left_is_not_notified(conductor, told, listened):
    report(conductor)
    row = test_leases.lease(conductor, AGENT)
    report(conductor, 'warning', 'pcie_width', times=3)
    test_leases.end(conductor, AGENT, row)
    assert support.send_batch(conductor._manager.outbox, outbox.NOTICE)
    listened[1].notifier().info({}, 'a later one', {})
    assert told.get(timeout=BOUND)[2] == 'a later one'


def test_a_policy_that_tells_nobody_notifies_nobody(conductor, listened, tmp_path):
    policy = tmp_path / 'policy.toml'
    policy.write_text('critical = "no_new"\n')
    conductor.conf.set_override('health_policy', str(policy), group='conductor')
    notifier = listened[1].notifier()
    conductor._manager = manager.Manager(conductor.conf, conductor.database, notifier)
    report(conductor)
    test_leases.lease(conductor, AGENT)
    report(conductor, 'critical', 'xid_79', times=3)
    assert notices_due(conductor) == []


def test_without_a_driver_nothing_is_noted(conductor):
    report(conductor)
    test_leases.lease(conductor, AGENT)
    report(conductor, 'critical', 'xid_79', times=3)
    assert notices_due(conductor) == []


def test_in_one_process_there_is_nobody_to_notify():
    assert rpc.Local().notifier() is None


@pytest.mark.parametrize('drivers', [[], [''], ['noop'], ['', 'noop']])
def test_without_a_driver_no_transport_is_made(drivers):
    """Its URL may be that of a cloud without notifications."""
    conf = options.load(files=[])
    bus = rpc.Bus(conf, 'fake://')
    assert bus.notifier() is None
    for option, value in {'driver': drivers, 'transport_url': 'nonsense'}.items():
        conf.set_override(option, value, group='oslo_messaging_notifications')
    bus._url = None
    assert bus.notifier() is None
    conf.set_override('driver', ['noop', 'messaging'], group='oslo_messaging_notifications')
    with pytest.raises(messaging.InvalidTransportURL):
        bus.notifier()
    bus.close()


def test_a_bus_closes_the_transport_of_its_notifications(listened, monkeypatch):
    closed = []
    transport = listened[1].notifier().transport
    monkeypatch.setattr(transport, 'cleanup', lambda: closed.append(transport))
    listened[1].close()
    assert closed == [transport]


@pytest.mark.parametrize(('given', 'used'), [(-1, rpc.RETRIES), (0, 0), (7, 7)])
def test_the_retries_have_an_end(given, used):
    """A conductor must be able to stop while the broker is away."""
    conf = options.load(files=[])
    bus = rpc.Bus(conf, 'fake://')
    assert bus.notifier() is None
    for option, value in {'driver': ['messagingv2'], 'retry': given}.items():
        conf.set_override(option, value, group='oslo_messaging_notifications')
    assert bus.notifier().retry == used
    bus.close()

# SPDX-License-Identifier: Apache-2.0
"""A service of the cloud hears over RabbitMQ that a device that somebody holds is faulty."""

import contextlib
import time

import oslo_messaging as messaging
import pytest

from cyborg_lite import context
from tests import support
from tests.integration import deployment as deployment_
from tests.integration import process
from tests.integration import servers
from tests.unit.conductor import direct
from tests.unit.conductor import test_notices

CONF = """
[api]
auth_strategy = noauth
[oslo_messaging_notifications]
driver = messagingv2
[conductor]
health_bad_samples = 1
"""


@pytest.fixture(scope='module')
def deployment(tmp_path_factory):
    place = tmp_path_factory.mktemp('notices')
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(servers.rabbitmq(place / 'rabbitmq'))
        url = stack.enter_context(servers.postgresql(place / 'database'))
        made = deployment_.Deployment(stack, place, bus, url, CONF)
        made.conductor()
        yield made


@pytest.fixture
def heard(deployment):
    """What a listener on the broker hears."""
    endpoint = test_notices.Endpoint()
    transport = messaging.get_notification_transport(deployment.conf)
    target = messaging.Target(topic='notifications')
    listener = messaging.get_notification_listener(transport, [target], [endpoint], 'threading')
    listener.start()
    yield endpoint.heard
    listener.stop()
    listener.wait()
    transport.cleanup()


def test_a_fault_of_a_held_device_is_heard(deployment, heard):
    about = {'host': support.HOST, 'agent': 'agent-1'}
    holder = {
        'boot_id': 'b', 'pid': 7, 'started': 1, 'uid': 1000, 'user': 'jane', 'command': 'python',
    }  # fmt: skip

    def report(**health):
        told = {'boot_id': 'boot-1', 'sequence': time.monotonic_ns(), 'interval': 3600}
        told |= {'devices': [support.card(**health).facts()], 'drivers': direct.OK}
        told['digest'] = str(health)
        process.until(lambda: deployment.answers(0))
        deployment.call('report', **about, **told)

    report(health='ok')
    agent = deployment.bus.leases(context.service())
    row = agent.lease(process=holder, request={}, **about)
    report(health='critical', health_reason='xid_79')
    level, publisher, event, payload = heard.get(timeout=test_notices.BOUND)
    assert (level, publisher, event) == ('warn', 'accelerator.conductor-0', 'device.health')
    assert payload['device']['fault'] == 'critical: xid_79'
    assert [each['allocation_uuid'] for each in payload['holders']] == [row['uuid']]

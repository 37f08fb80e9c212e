# SPDX-License-Identifier: Apache-2.0
"""The delay of messages to Placement and Nova, with separate processes and database servers.

A withdrawal reaches Placement before its answer, and due messages are sent at once.
"""

import contextlib
import time
import uuid

from keystoneauth1 import adapter
import pytest

from cyborg_lite import model
from cyborg_lite.clients import placement as client
from tests import support
from tests.integration import deployment as deployment_
from tests.integration import placement as placement_
from tests.integration import process
from tests.integration import servers

HOST = 'node-1'
CARD = support.card(handles=16)
OTHER = support.card('5e')
ARQS = '/accelerator_requests'
ROUNDS = 20
#: The maximum delay of an event, in seconds: one is promised; a busy machine may take twice as
#: long. A lost wake-up takes longer.
PROMISE = 1
LIMIT = 2
# Messages that are not sent at once are sent much later.
CONF = """
[api]
auth_strategy = keystone
[conductor]
outbox_interval = 15
healing_interval = 3600
"""


@pytest.fixture(scope='module')
def bus(place):
    with servers.rabbitmq(place / 'news-rabbitmq') as url:
        yield url


@pytest.fixture(scope='module')
def placement(place, cloud):
    with placement_.placement(place / 'news-placement', cloud):
        yield adapter.Adapter(
            cloud.session('service-b', 'b'),
            service_type='placement',
            default_microversion=client.MICROVERSION,
        )


@pytest.fixture(scope='module', params=sorted(servers.DATABASES))
def site(request, place, bus, cloud, peers, placement):
    """Two conductors and an API, with two cards."""
    conf = CONF + ''.join(map(cloud.section, ('keystone_authtoken', 'nova', 'placement')))
    here = place / f'news-{request.param}'
    here.mkdir()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(servers.DATABASES[request.param](here / 'database'))
        made = Site(deployment_.Deployment(stack, here, bus, url, conf), cloud, peers, placement)
        yield made
        made.leave()


class Site:
    def __init__(self, deployment, cloud, peers, placement):
        self.deployment, self.peers, self.placement = deployment, peers, placement
        for number in range(2):
            deployment.conductor(number)
        url, _ = deployment.api()
        session = cloud.api('admin', service='service').session
        self.api = adapter.Adapter(session, endpoint_override=url)
        self.root = placement.post('/resource_providers', json={'name': HOST}).json()['uuid']
        facts = [card.facts() for card in (CARD, OTHER)]
        about = {'host': HOST, 'boot_id': 'boot-1', 'sequence': 1, 'interval': 3600}
        deployment.call('report', **about, digest='1', devices=facts, drivers={})
        process.until(lambda: not deployment.rows(model.Message))
        rows = {row.address: row for row in deployment.rows(model.Device)}
        parts = {row.device_id: row.rp_uuid for row in deployment.rows(model.Deployable)}
        self.device = rows[OTHER.address].uuid
        self.other = parts[rows[OTHER.address].id]
        self.provider = parts[rows[CARD.address].id]

    def reserved(self):
        answer = self.placement.get(f'/resource_providers/{self.other}/inventories')
        return answer.json()['inventories']['FPGA']['reserved']

    def bind(self, arq):
        """Returns the seconds from the answer to the event in Nova."""
        instance = str(uuid.uuid4())
        wish = {arq: support.wish(self.provider, HOST, instance)}
        self.api.patch(ARQS, json=wish)
        answered = time.monotonic()
        assert self.peers.events(instance, 1)
        return time.monotonic() - answered

    def leave(self):
        for provider in (self.provider, self.other, self.root):
            self.placement.delete(f'/resource_providers/{provider}')


def test_news_arrive_at_once(site):
    groups = [{'resources:FPGA': '1'}]
    site.api.post('/device_profiles', json=[{'name': 'one', 'groups': groups}])
    stale, late, orders = 0, [], []
    for _ in range(ROUNDS):
        made = site.api.post(ARQS, json={'device_profile_name': 'one'}).json()['arqs']
        began = time.monotonic()
        site.api.post(f'/devices/{site.device}/disable')
        orders.append(time.monotonic() - began)
        stale += not site.reserved()
        # Messages to both services are due at the same time.
        site.api.post(f'/devices/{site.device}/enable')
        late.append(site.bind(made[0]['uuid']))
        site.api.delete(f'{ARQS}?arqs={made[0]["uuid"]}')
        process.until(lambda: not site.reserved())
    in_time = len([seconds for seconds in late if seconds <= PROMISE])
    print(
        f'{site.deployment.database.engine.dialect.name}: {stale} of {ROUNDS} first looks stale, '
        f'a disable takes at most {max(orders):.2f} s, {in_time} of {ROUNDS} events within '
        f'{PROMISE} s, the last after {max(late):.2f} s'
    )
    assert stale == 0
    assert max(late) < LIMIT

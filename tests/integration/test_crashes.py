# SPDX-License-Identifier: Apache-2.0
"""A service is killed at each failpoint and restarted; nothing is lost or allocated twice.

After each death the invariants I1 to I9 and I14 are checked.  I13 is about cleaning, which is not
tested here.  One cloud serves for all points: the supervisor restarts the killed process.
"""

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import signal
import time
import uuid

from keystoneauth1 import adapter
from keystoneauth1 import exceptions
from oslo_db import exception as db_exception
import oslo_messaging as messaging
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.clients import placement as client
from tests import support
from tests.integration import deployment as deployment_
from tests.integration import failpoints
from tests.integration import holders
from tests.integration import invariants
from tests.integration import placement as placement_
from tests.integration import process
from tests.integration import servers

CONF = """
[api]
auth_strategy = keystone
response_timeout = 4
[conductor]
absences = 1
outbox_interval = 1
healing_interval = 1
user_projects = {user}:{project}
[agent]
enabled_drivers = fake
report_interval = 3600
socket = {socket}
"""
HOST = 'node-1'
SOCKET = 'agent.sock'
#: The host that goes down in each cycle.
SILENT = 'node-2'
#: The host that is renamed while an accelerator of it is bound, its new name, and the host that is
#: deleted.
OLD, NEW, GONE = 'node-3', 'node-4', 'node-5'
#: The name of the deployable of a whole card, by its address.
WHOLE = '{}_whole'
ARQS = '/accelerator_requests'
ALLOCATIONS = '/allocations'
REMOVE = [{'path': '/hostname', 'op': 'remove'}]
#: In CI all points are tested on one database; at night on the others.
DATABASES = os.environ.get('CYBORG_LITE_CRASH_DATABASES', 'postgresql').split()
#: How many points of a cycle a service dies at. In CI it dies at several of one cycle, since a
#: cycle takes seconds, and the points that lie beside others are left to the night; at night each
#: has one death. Others take over the work of a dead service only after a while: so the points of
#: one cycle are far apart.
DEATHS = int(os.environ.get('CYBORG_LITE_CRASH_DEATHS', '6'))
POINTS = [each for each in failpoints.POINTS if DEATHS == 1 or each not in failpoints.BESIDE]
CYCLES = -(-len(POINTS) // DEATHS)
TOGETHER = [POINTS[i::CYCLES] for i in range(CYCLES)]


@pytest.fixture(scope='module')
def bus(place):
    with servers.rabbitmq(place / 'rabbitmq') as url:
        yield url


@pytest.fixture(scope='module')
def placement(place, cloud):
    with placement_.placement(place / 'placement', cloud):
        session = cloud.session('service-b', 'b')
        yield adapter.Adapter(
            session,
            service_type='placement',
            raise_exc=False,
            default_microversion=client.MICROVERSION,
        )


@pytest.fixture(scope='module', params=DATABASES)
def region(request, place, bus, cloud, peers, placement):
    here = place / request.param
    here.mkdir()
    limited = cloud.identity.find_project('limited') or cloud.identity.create_project(
        name='limited', domain_id='default'
    )
    conf = CONF.format(user=holders.USER, project=limited.id, socket=here / SOCKET)
    conf += ''.join(map(cloud.section, ('keystone_authtoken', 'nova', 'placement')))
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(DATABASE_SERVERS[request.param](here / 'database'))
        control = failpoints.Control(here / 'failpoints')
        made = deployment_.Deployment(stack, here, bus, url, conf, control.place)
        for name in (HOST, SILENT, OLD, NEW, GONE, made.conf.host):
            placement.post('/resource_providers', json={'name': name})
        running = Region(cloud, made, control, peers, placement, limited.id)
        running.rehearse()
        running.rest()
        yield running
    # Conductors that still ran would make some of its providers again.
    running.leave()


@contextlib.contextmanager
def sqlite(place):
    place.mkdir()
    yield f'sqlite:///{place}/database'


DATABASE_SERVERS = {'sqlite': sqlite, **servers.DATABASES}


class Client:
    """Retries until there is an answer, like Nova and others; the answers are in ``history``."""

    def __init__(self, api):
        self._api = api
        self.history = []

    def ask(self, method, path, body=None, wanted=(200, 201, 202, 204), done=(), **headers):
        """Make a request, and retry while its result is unknown.

        :param done: further statuses of a retry that mean success.
        """
        wanted = {*wanted}
        end = time.monotonic() + process.PATIENCE
        while time.monotonic() < end:
            answer = self._try(method, path, body, headers)
            status = answer.status_code if answer is not None else 0
            self.history.append((method, path, status))
            if status in wanted:
                return answer
            assert status in (0, 503), (answer.text, self.history)
            wanted |= {*done}
        raise AssertionError(f'No answer: {self.history[-5:]}')

    def _try(self, method, path, body, headers):
        try:
            return self._api.request(path, method, json=body, headers=headers)
        except exceptions.ClientException:
            return None


class Region:
    """A cloud, and the knowledge of its clients."""

    _numbers = itertools.count(1)

    def __init__(self, cloud, deployment, control, peers, placement, limited):
        self.cloud, self.deployment, self.control = cloud, deployment, control
        self.peers, self.placement = peers, placement
        self.place = deployment.file.parent
        self.services = {'conductor': deployment.conductor(), 'agent': deployment.agent()}
        url, self.services['api'] = deployment.api()
        made = cloud.api('admin', service='service')
        self.api = adapter.Adapter(made.session, endpoint_override=url, raise_exc=False)
        stranger = cloud.api('member', 'b').session
        self.stranger = adapter.Adapter(stranger, endpoint_override=url, raise_exc=False)
        self.client = Client(self.api)
        #: the project of local processes, which has a quota
        self.limited = limited
        #: the local processes that lease
        self.holders = []
        self.left = None
        self.consumer = None
        #: the last report of each host
        self.told = {}
        #: the points that removing the objects of a cycle reaches, and creating them
        self.clearing, self.building = set(), set()

    def leave(self):
        """Delete its providers in Placement: the next database does not have them."""
        for holder in self.holders:
            holder.end()
        known = self.placement.get('/resource_providers').json()['resource_providers']
        for each in sorted(known, key=lambda each: each['parent_provider_uuid'] is None):
            self.placement.delete(f'/resource_providers/{each["uuid"]}')

    # Calls of clients and reports of a host

    def rehearse(self):
        """Go through two cycles without a death, and note which part of the second reaches what."""
        self.cycle()
        begun = len(self.control.reached())
        self.left.clear()
        self.rest()
        cleared = len(self.control.reached())
        self.left = None
        self.cycle()
        reached = self.control.reached()
        self.clearing, self.building = {*reached[begun:cleared]}, {*reached[cleared:]}

    def cycle(self, *points):
        """Every request of the API: first remove the objects of the last cycle, then create new
        ones.

        :param points: the points that are armed.  One that creating objects reaches is armed in
            between: later requests do not repair the loss.
        """
        self.client.history.clear()
        early = [point for point in points if point not in self.building]
        # What neither part reaches is reached by a young service only.
        young = {point.partition(' ')[0] for point in early if point not in self.clearing}
        self.control.arm(*early)
        for service in young:
            self.restart(service)
        if self.left:
            self.left.clear()
        if points:
            self.rest()
            self.control.arm(*({*points} - {*early}))
        self.left = Cycle(self, next(self._numbers))
        self.left.build()

    def hold(self):
        """A local process that leases."""
        self.holders.append(holders.Holder(self.deployment, self.place / SOCKET))
        return self.holders[-1]

    def report(self, *devices, host=HOST):
        """Report like an agent, which retries without an answer."""
        facts = [device.facts() for device in devices]
        process.until(lambda: self._report(host, facts))

    def _report(self, host, facts):
        self.told[host] = {
            'host': host,
            'boot_id': 'boot-1',
            'sequence': time.monotonic_ns(),
            'interval': 3600,
            'digest': hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
            'devices': facts,
            'drivers': {'fake': {'state': 'ok', 'reason': '', 'devices': len(facts)}},
        }
        try:
            self.deployment.call('report', timeout=4, **self.told[host])
        except (messaging.MessagingException, messaging.MessageUndeliverable):
            return False
        return True

    def fall_silent(self, host):
        """Make a host silent for a long time: a conductor has to notice it."""
        # A conductor that was just started waits for two and a half intervals.
        self._change(host, seen_at=datetime.datetime(2000, 1, 1), interval=1)

    def go_down(self, host):
        """Let a host count as silent, as a conductor notes it."""
        self._change(host, seen_at=datetime.datetime(2000, 1, 1), interval=1, silent=True)

    def _change(self, host, **values):
        with self.deployment.database.writer() as session:
            session.execute(sa.update(model.Host).where(model.Host.name == host).values(values))

    def disturb(self, provider):
        """Move a provider, and allocate another class of it."""
        self.consumer = f'/allocations/{uuid.uuid4()}'
        process.until(lambda: self._disturb(f'/resource_providers/{provider}'))

    def _disturb(self, path):
        ask = self.placement
        found = ask.get(path)
        if found.status_code == 404:  # Placement gets it a little later
            return True
        [root] = ask.get(f'/resource_providers?name={SILENT}').json()['resource_providers']
        body = {'name': f'moved-{found.json()["uuid"]}', 'parent_provider_uuid': root['uuid']}
        ask.put(path, json=body)
        inventories = ask.get(f'{path}/inventories').json()
        inventories['inventories']['CUSTOM_OLD'] = {'total': 1}
        ask.put('/resource_classes/CUSTOM_OLD')
        if ask.put(f'{path}/inventories', json=inventories).status_code != 200:
            return False
        allocation = {
            'allocations': {found.json()['uuid']: {'resources': {'CUSTOM_OLD': 1}}},
            'project_id': 'p',
            'user_id': 'u',
            'consumer_generation': None,
            'consumer_type': 'INSTANCE',
        }
        ask.put(self.consumer, json=allocation)
        return self._allocated()

    def _allocated(self):
        return bool(self.placement.get(self.consumer).json()['allocations'])

    def let_go(self):
        """Delete the allocations of the old class."""
        self.placement.delete(self.consumer)
        process.until(lambda: not self._allocated())

    # Faults

    def restart(self, name):
        for pid in deployment_.workers(self.services[name]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def rest(self):
        """Wait until all hosts are marked and all messages are sent."""
        process.until(self._resting)

    def _resting(self):
        self._let_leases_end()
        hosts = self.deployment.rows(model.Host)
        overdue = [row for row in hosts if row.seen_at < row.alive_since(row.interval)]
        return all(row.silent for row in overdue) and not self.deployment.rows(model.Message)

    def served(self, name):
        """Wait until an allocation is not queued any more."""

        def is_active():
            self._let_leases_end()
            return self.client.ask('GET', f'{ALLOCATIONS}/{name}').json()['state'] == 'active'

        process.until(is_active)

    def expire(self, name):
        """Make the lease of an allocation end, and wait for its release."""
        ends = sa.update(model.Allocation).where(model.Allocation.active_name == name)
        with self.deployment.database.writer() as session:
            session.execute(ends.values(lease_ends_at=datetime.datetime(2000, 1, 1)))
        path = f'{ALLOCATIONS}/{name}'
        process.until(lambda: self.client.ask('GET', path).json()['state'] == 'released')

    def kept(self):
        """The device of which a reservation keeps an accelerator."""
        query = (
            sa.select(model.Device)
            .join(model.Deployable, model.Deployable.device_id == model.Device.id)
            .join(model.AttachHandle, model.AttachHandle.deployable_id == model.Deployable.id)
            .join(model.Promise, model.Promise.accelerator_uuid == model.AttachHandle.uuid)
        )
        with self.deployment.database.reader() as session:
            found = session.scalars(query).one()
            session.expunge_all()
        return found

    def begin(self, name):
        """Let the time of a reservation come."""
        now = timeutils.utcnow() - datetime.timedelta(seconds=1)
        begins = sa.update(model.Allocation).where(model.Allocation.active_name == name)
        with self.deployment.database.writer() as session:
            session.execute(begins.values(starts_at=now))

    def _let_leases_end(self):
        """End the leases of messages at once: their takeover has a test of its own."""
        # A conductor may change the same messages: this is retried.
        deadlock = contextlib.suppress(db_exception.DBDeadlock)
        with deadlock, self.deployment.database.writer() as session:
            session.execute(sa.update(model.Message).values(due_at=model.Message.created_at))

    # Checks

    def wrong(self):
        yield from invariants.in_database(self.deployment)
        yield from self._wrong_in_placement()
        yield from self.left.wrong()
        yield from self._late()

    def _wrong_in_placement(self):
        """I5, after the healer has reconciled all hosts: a conductor may have died between a
        release and its message.
        """
        wrong = []

        def is_right():
            wrong[:] = invariants.in_placement(self.deployment, self.placement)
            return not wrong

        with contextlib.suppress(AssertionError):
            process.until(is_right)
        yield from wrong

    def _late(self):
        """I8: a repeated report changes nothing."""
        before = self._dump()
        self.deployment.call('report', **self.told[HOST])
        if self._dump() != before:
            yield 'I8: a report that came again changed something'

    def _dump(self):
        """All rows, except hosts, as another host reports meanwhile, and periodic messages."""
        moving = {'hosts', 'messages'}
        tables = [t for t in model.Base.metadata.sorted_tables if t.name not in moving]
        with self.deployment.database.reader() as session:
            return [sorted(map(str, session.execute(sa.select(table)))) for table in tables]


class Cycle:
    """Requests, with some in each state at the end, and all other operations."""

    def __init__(self, region, number):
        self.region, self.number = region, number
        self.ask = region.client.ask
        self.profile = f'profile-{number}'
        self.pair, self.failed = str(uuid.uuid4()), str(uuid.uuid4())
        self.card = support.card('3b', handles=4)
        self.tried = support.card('3c')
        self.passing = support.card(f'{0x100 + number:x}', resource_class=f'CUSTOM_CARD_{number}')
        self.split = split('3d')
        self.pulled = support.card('3e')
        self.moving = support.card('4a')
        #: a card that allocations hold one after another
        self.queued_for = support.card('4d', resource_class='CUSTOM_QUEUED_FOR')
        #: cards of which one is reserved, and the reservation, which is cancelled after its start
        self.for_later = [
            support.card(bus, resource_class='CUSTOM_FOR_LATER') for bus in ('4e', '4f')
        ]
        self.reservation = f'reservation-{number}'
        #: what the project of local processes may have: one accelerator
        self.limits = {'total': 1, f'CUSTOM_LIMITED_{number}': number}
        #: the local process that holds one at the end
        self.holder = None
        #: the allocations: at the end the last one holds the card
        self.allocations = [f'{name}-{number}' for name in ('first', 'second', 'last')]

    def build(self):
        staying = [self.card, self.tried, self.passing, self.split, self.queued_for]
        staying += self.for_later
        self.region.report(*staying, self.pulled)
        self.region.report(self.moving, host=OLD)
        parts = self.ask('GET', '/deployables').json()['deployables']
        self.parts = {part['name'].partition('_')[2]: part for part in parts}
        group = {'resources:FPGA': '8'}
        body = [{'name': self.profile, 'groups': [group]}]
        self.ask('POST', '/device_profiles', body, done=[409])
        body = {'device_profile_name': self.profile}
        made = self.ask('POST', ARQS, body).json()['arqs']
        uuids = (each['uuid'] for each in made)
        self.first, self.second, self.freed, self.refused, self.fresh, *uuids = uuids
        self.kept, self.excluded, self.stale = uuids
        # A retry answers 409: it is bound already.
        self.bind(self.pair, self.card, self.first, self.second, done=[409])
        self.bind(str(uuid.uuid4()), self.card, self.freed, done=[409])
        self.ask('PATCH', ARQS, {self.freed: REMOVE})
        self.bind(self.failed, self.passing, self.refused, wanted=[409])
        self.device = self.uuid(self.tried)
        # I4: it is not allocated.
        self.region.disturb(self.parts[self.tried.address]['rp_uuid'])
        self.ask('POST', f'/devices/{self.device}/disable')
        self.region.let_go()
        self.bind(str(uuid.uuid4()), self.tried, self.freed, wanted=[409])
        self.ask('PATCH', ARQS, {self.freed: REMOVE})
        self.attribute = {
            'deployable_id': self.parts[self.tried.address]['uuid'],
            'key': f'trait-{self.number}',
            'value': f'CUSTOM_TRAIT_{self.number}',
        }
        self.ask('POST', '/attributes', self.attribute, done=[409])
        self.pull(staying)
        self.region.report(support.card('5e'), host=SILENT)
        self.region.fall_silent(SILENT)
        self.rename()
        self.region.report(support.card('4b'), host=GONE)
        self.region.go_down(GONE)
        self.ask('DELETE', f'/hosts/{GONE}', done=[404])
        self.vanish()
        self.exclude()
        self.limit()
        self.allocate()
        self.reserve()
        self.lease()
        self.states = {
            **dict.fromkeys([self.first, self.second, self.kept], 'Bound'),
            **dict.fromkeys([self.refused, self.excluded], 'BindFailed'),
            **{self.freed: 'Unbound', self.fresh: 'Initial'},
        }

    def pull(self, staying):
        """Delete a missing card that was kept for its added attribute.

        :param staying: the cards that are still present.
        """
        note = {'deployable_id': self.parts[self.pulled.address]['uuid'], 'key': 'note'}
        self.ask('POST', '/attributes', note | {'value': 'rack 4'}, done=[409])
        pulled = self.uuid(self.pulled)
        self.region.report(*staying)
        self.ask('DELETE', f'/devices/{pulled}', done=[404])

    def rename(self):
        """Rename a host that is down while an accelerator of it is bound."""
        self.bind(str(uuid.uuid4()), self.moving, self.kept, host=OLD, done=[409])
        self.region.go_down(OLD)
        self.ask('PATCH', f'/hosts/{OLD}', {'name': NEW}, done=[404])

    def vanish(self):
        """Free the accelerators of an instance that Nova does not know."""
        instance = str(uuid.uuid4())
        self.bind(instance, self.card, self.stale, done=[409])
        self.ask('DELETE', f'/instances/{instance}', done=[404])

    def exclude(self):
        """Hold a card as a whole, so that no part of it can be bound; then free it."""
        self.bind_part(str(uuid.uuid4()), WHOLE.format(self.split.address), self.freed, done=[409])
        self.bind(str(uuid.uuid4()), self.split, self.excluded, wanted=[409])
        self.ask('PATCH', ARQS, {self.freed: REMOVE})

    def limit(self):
        quota = f'/quotas/{self.region.limited}'
        self.ask('PATCH', quota, {'limits': self.limits})
        self.ask('DELETE', quota, done=[404])
        self.ask('PATCH', quota, {'limits': self.limits})

    def allocate(self):
        """Released accelerators, also by the end of a lease, go to the next in the queue."""
        groups = [{'resources': {'CUSTOM_QUEUED_FOR': 1}}]
        for name in self.allocations:
            body = {'name': name, 'groups': groups, 'queue': True, 'lease': 3600}
            self.ask('POST', ALLOCATIONS, body, **{'Idempotency-Key': name})
        first, second, last = self.allocations
        self.ask('PATCH', f'{ALLOCATIONS}/{first}', {'lease': 7200})
        self.ask('DELETE', f'{ALLOCATIONS}/{first}')
        self.region.served(second)
        self.region.expire(second)
        self.region.served(last)

    def reserve(self):
        """A reservation keeps another card than a disabled one, starts when its time has come,
        and is cancelled.
        """
        start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        body = {
            'name': self.reservation,
            'groups': [{'resources': {'CUSTOM_FOR_LATER': 1}}],
            'starts_at': start.isoformat(timespec='seconds'),
            'lease': 7200,
        }
        self.ask('POST', ALLOCATIONS, body, **{'Idempotency-Key': self.reservation})
        kept = self.region.kept()
        [address] = {card.address for card in self.for_later} & {kept.address}
        self.ask('POST', f'/devices/{kept.uuid}/disable')
        process.until(lambda: self.region.kept().address != address)
        self.ask('POST', f'/devices/{kept.uuid}/enable')
        self.region.begin(self.reservation)
        self.region.served(self.reservation)
        self.ask('DELETE', f'{ALLOCATIONS}/{self.reservation}')

    def lease(self):
        """A process waits for the quota that another one has, until that has ended."""
        first = self.region.hold()
        first.until('active')
        self.holder = self.region.hold()
        self.holder.until('queued')
        first.end()
        self.holder.until('active')

    def uuid(self, card):
        device = self.parts[card.address]['device_id']
        rows = self.region.deployment.rows(model.Device)
        [found] = [row.uuid for row in rows if row.id == device]
        return found

    def bind(self, instance, card, *arqs, host=HOST, **more):
        self.bind_part(instance, card.address, *arqs, host=host, **more)

    def bind_part(self, instance, name, *arqs, host=HOST, **more):
        wish = support.wish(self.parts[name]['rp_uuid'], host, instance)
        self.ask('PATCH', ARQS, dict.fromkeys(arqs, wish), **more)

    def clear(self):
        self.holder.end()
        process.until(lambda: self.holder.lease is None)
        for name in (*self.allocations, self.reservation):
            self.ask('DELETE', f'{ALLOCATIONS}/{name}', done=[404])
        self.ask('DELETE', f'{ARQS}?instance={self.pair}')
        rest = ','.join([self.freed, self.refused, self.fresh, self.kept, self.excluded])
        self.ask('DELETE', f'{ARQS}?arqs={rest}', done=[404])
        # The list also has requests whose answer was lost.
        for arq in self.ask('GET', ARQS).json()['arqs']:
            self.ask('DELETE', f'{ARQS}/{arq["uuid"]}', done=[404])
        self.ask('POST', f'/devices/{self.device}/enable')
        found = self.ask('GET', f'/attributes?key={self.attribute["key"]}').json()['attributes']
        for attribute in found:
            self.ask('DELETE', f'/attributes/{attribute["uuid"]}', done=[404])
        self.ask('DELETE', f'/device_profiles/{self.profile}', done=[404])
        self.ask('DELETE', f'/hosts/{NEW}', done=[404])

    def wrong(self):
        """Differences from the answers: of I4, I6, I7 and I9."""
        rows = {row.uuid: row for row in self.region.deployment.rows(model.ARQ)}
        kept = rows.get(self.kept)
        if kept and kept.hostname != NEW:
            yield f'I6: what is held of the renamed host is on {kept.hostname}'
        for arq, state in self.states.items():
            found = rows.pop(arq, None)
            if (found and found.state) != state:
                yield f'I6: ARQ {arq} is {found and found.state}, and was answered to be {state}'
        yield from self._allocated(rows)
        for row in rows.values():
            # The answer was lost: the request is unknown, and holds nothing.
            if row.state != 'Initial':
                yield f'I6: ARQ {row.uuid} is {row.state}, and nobody knows it'
        yield from self._told()
        yield from self._devices()
        yield from self._hosts()
        yield from self._strange()

    def _allocated(self, rows):
        """The allocations: only the last one, and the process, hold an accelerator."""
        found = {row.name: row for row in self.region.deployment.rows(model.Allocation)}
        states = {name: found[name].state for name in self.allocations}
        if [*states.values()] != ['released', 'released', 'active']:
            yield f'I6: the allocations are {states}'
        if (state := found[self.reservation].state) != 'released':
            yield f'I6: the reservation is {state}'
        lease = self.holder.lease
        if lease is None or lease.state != 'active':
            yield f'I6: the lease of the process is {lease and lease.state}'
            return
        wanted = {found[self.allocations[-1]].uuid, lease.uuid}
        held = [row for row in rows.values() if row.allocation_uuid]
        there = sorted((row.allocation_uuid, row.state) for row in held)
        if there != sorted((each, 'Bound') for each in wanted):
            yield f'I6: requests of allocations are {there}, expected one for each of {wanted}'
        for row in held:
            del rows[row.uuid]
        limits = {row.project_id: row.limits for row in self.region.deployment.rows(model.Quota)}
        if limits != {self.region.limited: self.limits}:
            yield f'I6: the limits are {limits}'
        yield from self._usage([row.project_id for row in held])

    def _usage(self, projects):
        """I3: the quota counts what the process holds, and nothing else."""
        quotas = self.ask('GET', f'/quotas/{self.region.limited}').json()['quotas']
        used = {each['resource']: (each['used'], each['limit']) for each in quotas}
        if projects.count(self.region.limited) != 1 or used['total'] != (1, 1):
            yield f'I3: requests are of the projects {projects}, and {used} is counted'

    def _told(self):
        events = [
            event
            for instance in (self.pair, self.failed)
            for event in self.region.peers.events(instance, 1, timeout=0)
        ]
        told = {(event['tag'], event['status']) for event in events}
        wanted = {(self.first, 'completed'), (self.second, 'completed'), (self.refused, 'failed')}
        if told != wanted:
            yield f'I6: Nova was told {told}, and was to be told {wanted}'

    def _devices(self):
        devices = {row.address: row for row in self.region.deployment.rows(model.Device)}
        staying = (self.card, self.tried, self.passing, self.split, self.moving)
        staying = (*staying, self.queued_for, *self.for_later)
        for card in staying:
            if card.address not in devices:
                yield f'I9: {card.address} is gone'
                return
        if devices[self.tried.address].status != 'maintaining':
            yield 'I6: the disabled device is enabled'
        if self.pulled.address in devices:
            yield 'I6: the deleted device is there'
        if devices[self.moving.address].hostname != NEW:
            yield 'I6: the card of the renamed host is not there under the new name'

    def _hosts(self):
        names = {row.name for row in self.region.deployment.rows(model.Host)}
        if names & {OLD, GONE} or NEW not in names:
            yield f'I6: after a rename and a deletion there are the hosts {sorted(names)}'

    def _strange(self):
        """I7: another project's request looks like an absent one."""
        none = str(uuid.uuid4())
        mine, other = (self.region.stranger.get(f'{ARQS}/{each}') for each in (self.first, none))
        texts = mine.text.replace(self.first, none), other.text
        if (mine.status_code, texts[0]) != (404, texts[1]):
            yield f'I7: {mine.status_code} {mine.text}'


def split(bus):
    """A card with the forms whole and two parts."""
    card, [whole] = support.card(bus, handles=[1, 2]), support.card(bus).deployables
    whole.name = WHOLE.format(card.address)
    whole.attach_handles[0].form = 'whole'
    card.deployables.append(whole)
    return card


# The tests


def test_the_cycle_reaches_every_point(region):
    """A new transaction, call or request needs a point that the cycle reaches."""
    assert {*region.control.reached()} == {*failpoints.POINTS}


def test_the_invariants_hold_without_a_death(region):
    assert list(region.wrong()) == []


@pytest.mark.parametrize('points', TOGETHER, ids=' and '.join)
def test_death(region, points):
    services = {point.partition(' ')[0] for point in points}
    try:
        region.cycle(*points)
        if not region.control.fired():
            region.cycle()  # its first part removes the last cycle
        if not region.control.fired():
            # Only one that is young comes by.
            for service in services:
                region.restart(service)
            region.cycle()
        process.until(region.control.fired)
    finally:
        region.control.disarm()
    region.rest()
    assert list(region.wrong()) == [], region.client.history

# SPDX-License-Identifier: Apache-2.0
"""The resource providers in the real Placement application."""

import hashlib
import threading
import uuid

from keystoneauth1 import exceptions
import oslo_messaging as messaging
from oslo_utils import timeutils
from placement.tests.functional.fixtures import placement as fixtures
import pytest
import sqlalchemy as sa

from cyborg_lite import clients
from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite.clients import placement
from cyborg_lite.conductor import manager
from cyborg_lite.conductor import outbox
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests import support
from tests.functional import test_retries
from tests.unit.conductor import test_leases

CARD = support.card(handles=16)
NAME = 'host-1_0000:3b:00.0'
RP_UUID = str(uuid.uuid3(uuid.NAMESPACE_DNS, NAME))


class Cloud:
    """A conductor, and its Placement."""

    def __init__(self, directory, database_url, endpoint, more=''):
        """:param more: sections of the configuration beside those of Placement and the database."""
        file = directory / 'cyborg_lite.conf'
        file.write_text(
            f'[placement]\nauth_type = admin_token\ntoken = admin\nendpoint = {endpoint}\n'
            f'endpoint_override = {endpoint}\n'
            f'[database]\nconnection = {database_url}\n{more}'
        )
        self.conf = options.load(files=[str(file)])
        self.database = engine.Database(self.conf)
        migration.upgrade(self.database.engine)
        self.manager = manager.Manager(self.conf, self.database)
        self.client = clients.connect(self.conf, 'placement', placement.MICROVERSION)
        self.calls = []
        self._sequence = 0
        self._watch(self.manager.outbox._placement)

    def _watch(self, ours):
        call = ours._call
        # The fixture's Placement has one connection to its in-memory database.
        one = threading.Lock()

        def watched(method, url, *args, **kwargs):
            self.calls.append((method, url))
            with one:
                return call(method, url, *args, **kwargs)

        ours._call = watched

    def report(self, *devices, agent=None):
        self._sequence += 1
        facts = [device.facts() for device in devices]
        self.manager.report(
            context.service(),
            host='host-1',
            agent=agent,
            boot_id='boot-1',
            sequence=self._sequence,
            interval=3600,
            digest=hashlib.sha256(str(facts).encode()).hexdigest(),
            devices=facts,
            drivers={'fake': {'state': 'ok', 'reason': '', 'devices': len(devices)}},
        )

    def send(self):
        """Send what is due; a message that fails waits."""
        self.calls.clear()
        support.send(self.manager.outbox)

    def waiting(self):
        with self.database.reader() as session:
            return [row.key for row in session.query(model.Message)]

    def hurry(self):
        """Make all messages due."""
        with self.database.writer() as session:
            for row in session.query(model.Message):
                row.due_at = row.created_at

    def add_root(self, name='host-1'):
        root = {'name': name, 'uuid': str(uuid.uuid4())}
        return self.client.post('/resource_providers', json=root).json()

    def provider(self):
        return self.client.get(f'/resource_providers/{RP_UUID}').json()

    def change(self, **more):
        """Rename or move our provider."""
        known = self.provider()
        body = {key: known[key] for key in ('name', 'parent_provider_uuid')} | more
        self.client.put(f'/resource_providers/{RP_UUID}', json=body)

    def put_traits(self, *names):
        """Add traits to our provider, like an operator."""
        for name in names:
            self.client.put(f'/traits/{name}')
        url = f'/resource_providers/{RP_UUID}/traits'
        found = self.client.get(url).json()
        self.client.put(url, json=found | {'traits': [*found['traits'], *names]})

    def allocate(self, resource_class, consumer_type='INSTANCE'):
        """Allocate one to a consumer, like Nova; returns its uuid.

        :param consumer_type: None to tell none, as before types were known.
        """
        consumer = str(uuid.uuid4())
        allocation = {
            'allocations': {RP_UUID: {'resources': {resource_class: 1}}},
            'project_id': 'p',
            'user_id': 'u',
            'consumer_generation': None,
        }
        if consumer_type is not None:
            allocation['consumer_type'] = consumer_type
        version = '1.28' if consumer_type is None else '1.38'
        self.client.put(f'/allocations/{consumer}', json=allocation, microversion=version)
        return consumer

    def inventory(self):
        url = f'/resource_providers/{RP_UUID}/inventories'
        return self.client.get(url).json()['inventories']

    def traits(self):
        return set(self.client.get(f'/resource_providers/{RP_UUID}/traits').json()['traits'])

    def add_attribute(self, key, value):
        with self.database.reader() as session:
            part = session.query(model.Deployable).one().id
        self.manager.create_attribute(context.service(), deployable=part, key=key, value=value)

    def device(self):
        with self.database.reader() as session:
            return session.query(model.Device).one().uuid


@pytest.fixture
def cloud(tmp_path, database_url):
    with fixtures.PlacementFixture() as real:
        made = Cloud(tmp_path, database_url, real.endpoint)
        yield made
        made.database.close()


@pytest.fixture
def known(cloud):
    """The cloud after a first report was sent."""
    cloud.root = cloud.add_root()
    cloud.report(CARD)
    cloud.send()
    return cloud


def test_a_card_becomes_a_provider_below_its_host(known):
    provider = known.client.get(f'/resource_providers/{RP_UUID}').json()
    assert provider['name'] == NAME
    assert provider['parent_provider_uuid'] == known.root['uuid']
    fpga = known.inventory()['FPGA']
    assert (fpga['total'], fpga['max_unit'], fpga['reserved']) == (16, 16, 0)
    assert known.traits() == {'CUSTOM_FAKE_DEVICE', 'OWNER_CYBORG'}
    assert not known.waiting()


def test_an_unchanged_report_calls_nobody(known):
    known.report(CARD)
    known.send()
    assert known.calls == []


def test_a_change_takes_three_calls(known):
    known.report(support.card(handles=15))
    known.send()
    assert len(known.calls) == 3, known.calls
    assert known.inventory()['FPGA']['total'] == 15


def names(calls):
    """The calls for names, which a conductor makes once."""
    return [url for _, url in calls if url.startswith(('/traits/', '/resource_classes/'))]


def test_a_new_provider_takes_three_calls_and_its_host_two(cloud):
    cloud.add_root()
    cloud.report(*[support.card(f'{number:02x}') for number in range(8)])
    cloud.send()
    assert not cloud.waiting()
    assert sorted(names(cloud.calls)) == sorted(set(names(cloud.calls)))
    assert len(cloud.calls) - len(names(cloud.calls)) == 2 + 8 * 3, cloud.calls


def methods(calls):
    return sorted(method for method, _ in calls)


def test_a_provider_that_is_as_it_should_be_is_only_read(known):
    """Each write increases the generation, and then writes of others are refused."""
    generation = known.provider()['generation']
    known.manager.healer.heal()
    known.send()
    assert methods(known.calls) == ['GET', 'GET', 'GET'], known.calls
    assert known.provider()['generation'] == generation


def test_an_inventory_that_somebody_has_changed_is_put_again(known):
    url = f'/resource_providers/{RP_UUID}/inventories'
    found = known.client.get(url).json()
    found['inventories']['FPGA']['reserved'] = 3
    known.client.put(url, json=found)
    known.manager.healer.heal()
    known.send()
    assert methods(known.calls) == ['GET', 'GET', 'GET', 'PUT'], known.calls
    assert known.inventory()['FPGA']['reserved'] == 0


def test_traits_alone_leave_the_inventory(known):
    known.report(support.card(handles=16, traits=['CUSTOM_OTHER']))
    known.send()
    written = [url for method, url in known.calls if method == 'PUT' and 'providers' in url]
    assert written == [f'/resource_providers/{RP_UUID}/traits']


def test_another_device_of_a_host_takes_three_calls(known):
    known.report(CARD, support.card('4b'))
    known.send()
    assert len(known.calls) == 3, known.calls


def test_a_provider_that_another_conductor_has_just_made_is_made_once(known):
    other = manager.Manager(known.conf, known.database)
    known.report(CARD, support.card('4b'))
    [message] = support.take(known.manager.outbox, outbox.PROVIDER)
    other.outbox._send_now(message.kind, message.key)
    assert known.manager.outbox._try(message) is None
    assert len(known.client.get('/resource_providers').json()['resource_providers']) == 3


def test_a_host_whose_root_was_made_anew_gets_its_providers(known):
    """A cached root that was deleted is looked up again."""
    known.client.delete(f'/resource_providers/{RP_UUID}')
    known.client.delete(f'/resource_providers/{known.root["uuid"]}')
    root = known.add_root()
    known.report(CARD, support.card('4b'))
    known.send()
    known.hurry()
    known.send()
    assert not known.waiting()
    made = known.client.get(f'/resource_providers?in_tree={root["uuid"]}').json()
    assert len(made['resource_providers']) == 2


def test_a_disabled_device_is_reserved_and_an_enabled_one_is_not(known):
    for status, reserved in (('maintaining', 16), ('enabled', 0)):
        known.manager.set_device_status(context.service(), uuid=known.device(), status=status)
        known.send()
        fpga = known.inventory()['FPGA']
        # Upstream loses max_unit at the first disable.
        assert (fpga['reserved'], fpga['max_unit']) == (reserved, 16)


def test_a_missing_device_is_reserved_and_a_gone_one_is_removed(known):
    known.report()
    known.send()
    assert known.inventory()['FPGA']['reserved'] == 16
    for _ in range(2):
        known.report()
    known.send()
    with pytest.raises(exceptions.NotFound):
        known.inventory()


def test_a_trait_that_a_card_no_longer_has_goes(known):
    known.report(support.card(handles=16, traits=['CUSTOM_OTHER']))
    known.send()
    assert known.traits() == {'CUSTOM_OTHER', 'OWNER_CYBORG'}


def test_a_host_without_a_root_provider_waits_for_it(cloud):
    cloud.report(CARD)
    cloud.send()
    assert cloud.waiting() == [RP_UUID]
    cloud.add_root()
    cloud.hurry()
    cloud.send()
    assert cloud.inventory()['FPGA']['total'] == 16
    assert not cloud.waiting()


def test_a_generation_that_somebody_else_has_moved_is_read_again(known, monkeypatch):
    ours = known.manager.outbox._placement
    generation = ours._generation
    stale = iter([0])
    monkeypatch.setattr(ours, '_generation', lambda p: next(stale, None) or generation(p))
    known.report(support.card(handles=15))
    known.send()
    assert known.inventory()['FPGA']['total'] == 15


def test_a_provider_that_changes_again_and_again_waits(known, monkeypatch):
    ours = known.manager.outbox._placement
    monkeypatch.setattr(ours, '_generation', lambda provider: 0)
    known.report(support.card(handles=15))
    known.send()
    assert known.waiting() == [RP_UUID]


@pytest.mark.parametrize('name', ['CUSTOM_no trait', 'HW_NO_SUCH_TRAIT', 'CUSTOM_A/../../x'])
def test_a_trait_that_placement_does_not_take_costs_only_that_trait(known, name):
    """An operator may add any attribute."""
    known.add_attribute('trait7', name)
    known.add_attribute('trait8', 'CUSTOM_OTHER')
    known.send()
    assert not known.waiting()
    assert known.traits() == {'CUSTOM_FAKE_DEVICE', 'CUSTOM_OTHER', 'OWNER_CYBORG'}


def test_a_trait_may_be_named_as_a_resource_class(known):
    known.report(support.card(resource_class='CUSTOM_ONE', traits=['CUSTOM_ONE']))
    known.send()
    assert known.traits() == {'CUSTOM_ONE', 'OWNER_CYBORG'}
    assert known.inventory()['CUSTOM_ONE']['total'] == 1


def test_a_trait_that_somebody_has_deleted_is_made_again(known):
    for traits in (['CUSTOM_ONE'], []):
        known.report(support.card(handles=16, traits=traits))
        known.send()
    known.client.delete('/traits/CUSTOM_ONE')
    known.report(support.card(handles=16, traits=['CUSTOM_ONE']))
    known.send()
    assert known.waiting() == [RP_UUID]
    known.hurry()
    known.send()
    assert known.traits() == {'CUSTOM_ONE', 'OWNER_CYBORG'}


def test_a_provider_that_somebody_has_deleted_comes_back(known):
    """Placement may also have been restored from a backup, without notice."""
    known.client.delete(f'/resource_providers/{RP_UUID}')
    known.report(CARD)
    known.send()
    assert known.calls == []
    known.manager.healer.heal()
    known.send()
    assert known.inventory()['FPGA']['total'] == 16


def test_an_allocation_of_another_is_never_removed(known):
    consumer = known.allocate('FPGA')
    for _ in range(3):
        known.report()
    known.send()
    assert known.client.get(f'/allocations/{consumer}').json()['allocations']
    # It is retried until Nova has released it.
    assert known.waiting() == [RP_UUID]
    known.client.delete(f'/allocations/{consumer}')
    known.hurry()
    known.send()
    with pytest.raises(exceptions.NotFound):
        known.inventory()


def test_a_change_while_a_message_is_sent_is_not_lost(known, monkeypatch):
    """The sender of the old state must not delete the message of the new state."""
    ours = known.manager.outbox._placement
    settle = ours.settle

    def change_meanwhile(*args):
        settle(*args)
        monkeypatch.undo()
        known.report(support.card(handles=14))

    known.report(support.card(handles=15))
    monkeypatch.setattr(ours, 'settle', change_meanwhile)
    known.send()
    assert known.inventory()['FPGA']['total'] == 14


def test_a_conductor_that_dies_leaves_its_message_to_another(known):
    known.report(support.card(handles=15))
    assert support.take(known.manager.outbox, outbox.PROVIDER)
    assert not support.take(known.manager.outbox, outbox.PROVIDER)
    known.hurry()
    known.send()
    assert known.inventory()['FPGA']['total'] == 15


def test_a_message_in_progress_is_not_sent_twice(known):
    """Two concurrent senders could leave the old state."""
    known.report(support.card(handles=15))
    [held] = support.take(known.manager.outbox, outbox.PROVIDER)
    known.report(support.card(handles=14))
    assert not support.take(known.manager.outbox, outbox.PROVIDER)
    known.manager.outbox._settle([(held, None)])
    known.send()
    assert known.inventory()['FPGA']['total'] == 14
    assert not known.waiting()


def test_one_of_two_conductors_claims_a_message(known):
    known.report(support.card(handles=15))
    sender = known.manager.outbox
    found = [sender._look(outbox.PROVIDER)[0] for _ in range(2)]
    assert [len(sender._claim(each)) for each in found] == [1, 0]


def test_a_slow_conductor_does_not_end_the_lease_of_another(known):
    known.report(support.card(handles=15))
    [slow] = support.take(known.manager.outbox, outbox.PROVIDER)
    known.hurry()
    assert support.take(known.manager.outbox, outbox.PROVIDER)
    known.manager.outbox._settle([(slow, None)])
    assert known.waiting() == [RP_UUID]
    assert not support.take(known.manager.outbox, outbox.PROVIDER)


@pytest.mark.parametrize('moment', ['GET', 'PUT'])
def test_a_slow_conductor_does_not_overwrite_a_newer_state(known, monkeypatch, moment):
    """Another conductor sent the new state before this one sends the old state."""
    other = manager.Manager(known.conf, known.database)
    ours = known.manager.outbox._placement
    call = ours._call

    def stall(method, *args):
        if method == moment:
            monkeypatch.undo()
            known.report(support.card(handles=14))
            known.hurry()
            assert support.send(other.outbox)
        answer = call(method, *args)
        if method == moment:
            # The slow conductor may die now.
            assert known.inventory()['FPGA']['total'] == 14
        return answer

    known.report(support.card(handles=15))
    monkeypatch.setattr(ours, '_call', stall)
    known.send()
    assert known.inventory()['FPGA']['total'] == 14


def test_a_slow_conductor_restores_a_provider_that_it_removed(known, monkeypatch):
    """Placement does not show that the provider is needed again."""
    other = manager.Manager(known.conf, known.database)
    ours = known.manager.outbox._placement
    call = ours._call

    def stall(*args):
        monkeypatch.undo()
        known.report(CARD)
        known.hurry()
        assert support.send(other.outbox)
        return call(*args)

    for _ in range(3):
        known.report()
    monkeypatch.setattr(ours, '_call', stall)
    known.send()
    assert known.inventory()['FPGA']['total'] == 16


# Withdrawals reach Placement before the answer


def test_a_disabled_device_is_reserved_before_the_answer(known):
    known.manager.set_device_status(context.service(), uuid=known.device(), status='maintaining')
    assert known.inventory()['FPGA']['reserved'] == 16
    assert not known.waiting()


def test_a_disabled_device_is_reserved_before_the_answer_though_another_has_the_message(known):
    known.report(support.card(handles=15))
    assert support.take(known.manager.outbox, outbox.PROVIDER)
    known.manager.set_device_status(context.service(), uuid=known.device(), status='maintaining')
    assert known.inventory()['FPGA']['reserved'] == 15


@pytest.fixture
def adopted(cloud, monkeypatch):
    """Adopt a card that a process uses; returns whether a thread could send it meanwhile."""
    cloud.add_root()
    cloud.report(support.card(), agent='agent-1')
    cloud.send()
    told, sent = cloud.manager.outbox.tell, []

    def tell(providers):
        sent.append(support.take(cloud.manager.outbox, outbox.PROVIDER))
        told(providers)

    calls = cloud.manager.leases._calls._replace(tell=tell)
    monkeypatch.setattr(cloud.manager.leases, '_calls', calls)
    cloud.manager.leases.lease(
        context.service(),
        host='host-1',
        agent='agent-1',
        process=test_leases.PROCESS,
        request={'addresses': ['0000:3b:00.0']},
    )
    return sent


def test_what_a_process_adopts_is_reserved_before_the_answer(cloud, adopted):
    """By the thread that answers: the others leave it to that one for a while."""
    assert cloud.inventory()['FPGA']['reserved'] == 1
    assert not cloud.waiting()
    assert adopted == [[]]


def test_a_repeated_disable_waits_for_placement(known, monkeypatch):
    """The first call may have been answered before Placement was updated."""
    monkeypatch.setattr(outbox.Sender, 'tell', lambda *_: None)
    known.manager.set_device_status(context.service(), uuid=known.device(), status='maintaining')
    monkeypatch.undo()
    assert known.inventory()['FPGA']['reserved'] == 0
    known.manager.set_device_status(context.service(), uuid=known.device(), status='maintaining')
    assert known.inventory()['FPGA']['reserved'] == 16


def test_a_disable_is_answered_although_placement_hangs(known, monkeypatch):
    monkeypatch.setattr(outbox, 'TELL', 0.1)
    ours = known.manager.outbox._placement
    call, back = ours._call, threading.Event()

    def hang(*args, **kwargs):
        back.wait()
        return call(*args, **kwargs)

    monkeypatch.setattr(ours, '_call', hang)
    try:
        known.manager.set_device_status(
            context.service(), uuid=known.device(), status='maintaining'
        )
        assert known.inventory()['FPGA']['reserved'] == 0
        # Nothing is locked meanwhile.
        known.report(support.card(handles=15))
    finally:
        back.set()
    known.manager.outbox.stop()
    known.hurry()
    known.send()
    assert known.inventory()['FPGA']['reserved'] == 15


def test_a_disable_is_answered_although_placement_refuses(cloud):
    """There is no root provider."""
    cloud.report(CARD)
    cloud.manager.set_device_status(context.service(), uuid=cloud.device(), status='maintaining')
    assert cloud.waiting() == [RP_UUID]


# A provider that changes its resource class


@pytest.fixture
def allocated(known):
    """With one FPGA allocated to a consumer."""
    known.consumer = known.allocate('FPGA')
    return known


def test_a_class_that_is_allocated_stays_and_is_offered_no_more(allocated):
    allocated.report(support.card(handles=4, resource_class='VGPU'))
    allocated.send()
    inventory = allocated.inventory()
    assert inventory.keys() == {'FPGA'}
    assert (inventory['FPGA']['total'], inventory['FPGA']['reserved']) == (16, 16)
    assert allocated.waiting() == [RP_UUID]


def test_the_new_class_is_offered_when_nothing_of_the_old_is_allocated(allocated):
    allocated.report(support.card(handles=4, resource_class='VGPU'))
    allocated.send()
    allocated.client.delete(f'/allocations/{allocated.consumer}')
    allocated.hurry()
    allocated.send()
    inventory = allocated.inventory()
    assert inventory.keys() == {'VGPU'}
    assert (inventory['VGPU']['total'], inventory['VGPU']['reserved']) == (4, 0)
    assert not allocated.waiting()


def test_a_class_that_comes_back_is_offered_again(allocated):
    allocated.report(support.card(handles=4, resource_class='VGPU'))
    allocated.send()
    allocated.report(CARD)
    allocated.hurry()
    allocated.send()
    assert allocated.inventory()['FPGA']['reserved'] == 0
    assert not allocated.waiting()


def test_the_healer_offers_the_new_class_too(allocated):
    """The message may have been lost."""
    allocated.report(support.card(handles=4, resource_class='VGPU'))
    allocated.send()
    with allocated.database.writer() as session:
        session.execute(sa.delete(model.Message))
    allocated.client.delete(f'/allocations/{allocated.consumer}')
    allocated.manager.healer.heal()
    allocated.send()
    assert allocated.inventory().keys() == {'VGPU'}


def test_a_gone_provider_that_is_allocated_is_offered_no_more(allocated):
    """Its accelerators may have disappeared without being reserved before."""
    with allocated.database.writer() as session:
        for row in (model.Attribute, model.AttachHandle, model.Deployable, model.Device):
            session.execute(sa.delete(row))
    with allocated.manager.outbox.session() as session:
        outbox.put(session, outbox.PROVIDER, {RP_UUID: {}})
    allocated.send()
    assert allocated.inventory()['FPGA']['reserved'] == 16
    assert allocated.waiting() == [RP_UUID]


# Traits of others


def test_a_trait_of_an_operator_stays(known):
    known.put_traits('CUSTOM_RACK_7')
    for traits in (['CUSTOM_ONE'], ['CUSTOM_TWO']):
        known.report(support.card(handles=16, traits=traits))
        known.send()
    assert known.traits() == {'CUSTOM_RACK_7', 'CUSTOM_TWO', 'OWNER_CYBORG'}
    known.manager.healer.heal()
    known.send()
    assert known.traits() == {'CUSTOM_RACK_7', 'CUSTOM_TWO', 'OWNER_CYBORG'}


def test_traits_that_went_before_they_were_told_go(known):
    """After two changes, of which the first may or may not have been sent."""
    for traits in (['CUSTOM_ONE'], ['CUSTOM_TWO']):
        known.report(support.card(handles=16, traits=traits))
    known.send()
    assert known.traits() == {'CUSTOM_TWO', 'OWNER_CYBORG'}


def test_an_operator_may_put_what_was_ours(known):
    known.report(support.card(handles=16, traits=[]))
    known.send()
    known.put_traits('CUSTOM_FAKE_DEVICE')
    known.report(support.card(handles=15, traits=[]))
    known.send()
    assert known.traits() == {'CUSTOM_FAKE_DEVICE', 'OWNER_CYBORG'}


# The root and the name of a provider


def test_a_provider_below_another_root_is_moved(known):
    other = known.add_root('old-name')
    known.change(parent_provider_uuid=other['uuid'])
    known.report(support.card(handles=15))
    known.send()
    assert known.provider()['parent_provider_uuid'] == known.root['uuid']
    assert known.inventory()['FPGA']['total'] == 15


def test_a_provider_stays_where_it_is_while_the_right_root_is_not_there(known):
    """Withdrawals must not wait for it."""
    known.client.put(f'/resource_providers/{known.root["uuid"]}', json={'name': 'old-name'})
    known.report(support.card(handles=15))
    known.send()
    assert known.provider()['parent_provider_uuid'] == known.root['uuid']
    assert known.inventory()['FPGA']['total'] == 15


def test_a_provider_deeper_in_the_tree_of_its_host_stays_there(known):
    below = {'name': 'numa-0', 'parent_provider_uuid': known.root['uuid']}
    made = known.client.post('/resource_providers', json=below).json()
    known.change(parent_provider_uuid=made['uuid'])
    known.report(support.card(handles=15))
    known.send()
    assert known.provider()['parent_provider_uuid'] == made['uuid']


def test_a_provider_of_another_name_is_renamed(known):
    known.change(name='old-name_0000:3b:00.0')
    known.report(support.card(handles=15))
    known.send()
    assert known.provider()['name'] == NAME


def test_a_name_that_another_provider_has_is_told(cloud, caplog):
    other = {'name': NAME, 'parent_provider_uuid': cloud.add_root()['uuid']}
    uuid_ = cloud.client.post('/resource_providers', json=other).json()['uuid']
    cloud.report(CARD)
    cloud.send()
    assert cloud.waiting() == [RP_UUID]
    # Placement logs the name as well, in this process.
    told = [record for record in caplog.records if record.name.startswith('cyborg_lite')]
    [warning] = [record.getMessage() for record in told if NAME in record.getMessage()]
    assert f'openstack resource provider delete {uuid_}' in warning
    cloud.client.delete(f'/resource_providers/{uuid_}')
    cloud.hurry()
    cloud.send()
    assert cloud.inventory()['FPGA']['total'] == 16


def test_a_name_that_another_provider_has_is_told_when_one_is_renamed(known, caplog):
    known.change(name='old-name_0000:3b:00.0')
    other = {'name': NAME, 'parent_provider_uuid': known.root['uuid']}
    uuid_ = known.client.post('/resource_providers', json=other).json()['uuid']
    known.report(support.card(handles=15))
    known.send()
    assert known.waiting() == [RP_UUID]
    assert f'openstack resource provider delete {uuid_}' in caplog.text


# Exclusion, and the requirements of requests


def functions(*numbers, **more):
    """A card with these functions as accelerators; 0 is the card itself."""
    device = support.card(handles=numbers, **more)
    for handle in device.deployables[0].attach_handles:
        handle.attach_type = 'PCI'
    return device


def take(cloud, **group):
    """Bind a request of a new profile to our provider; returns its uuid."""
    ctxt, name = context.RequestContext(is_admin=True, project_id='p'), str(uuid.uuid4())
    groups = [{'resources:FPGA': '1', **group}]
    cloud.manager.create_device_profile(ctxt, profile={'name': name, 'groups': groups})
    [arq] = cloud.manager.create_arqs(ctxt, profile=name)
    wish = {'uuid': arq, 'hostname': 'host-1', 'device_rp_uuid': RP_UUID, 'project_id': 'p'}
    cloud.manager.bind(ctxt, wishes=[wish | {'instance_uuid': str(uuid.uuid4())}])
    return arq


@pytest.mark.parametrize(('before', 'after'), [((0,), (1, 2, 3)), ((1, 2), (0,))])
def test_an_excluded_accelerator_is_not_offered(known, before, after):
    known.report(functions(*before))
    arq = take(known)
    known.report(functions(*after))
    known.send()
    offered = known.inventory()['FPGA']
    assert offered['reserved'] == offered['total']
    # It is offered again at once, not only after the next report.
    known.manager.delete_arqs(context.service(), uuids=[arq])
    known.send()
    offered = known.inventory()['FPGA']
    assert offered['total'] - offered['reserved'] == len(after)


def test_an_accelerator_excluded_by_a_bind_is_not_offered(known):
    known.report(functions(0, 1, 2))
    known.send()
    assert known.inventory()['FPGA']['reserved'] == 0
    arq = take(known)
    known.send()
    assert known.inventory()['FPGA']['reserved'] == 2
    known.manager.unbind(context.service(), uuids=[arq])
    known.send()
    assert known.inventory()['FPGA']['reserved'] == 0


def test_a_trait_of_an_operator_in_placement_counts_at_bind(known):
    asked = {'trait:CUSTOM_RACK_7': 'required'}
    with pytest.raises(messaging.ExpectedException):
        take(known, **asked)
    known.put_traits('CUSTOM_RACK_7')
    take(known, **asked)


def test_accelerators_of_an_allocation_are_reserved_before_the_answer(known):
    """After the release it can be scheduled to again."""
    request = {
        'profile': None,
        'alternatives': [[{'resources:FPGA': '3'}]],
        'same_host': True,
        'same_numa': 'prefer',
        'hosts': None,
    }
    caller = context.RequestContext(project_id='p', is_admin=True, overwrite=False)
    made = known.manager.create_allocation(caller, request=request)
    assert known.inventory()['FPGA']['reserved'] == 3
    known.report(support.card(handles=16, numa_node=1))
    known.send()
    assert known.inventory()['FPGA']['reserved'] == 3
    known.manager.release_allocation(caller, uuid=made)
    known.send()
    assert known.inventory()['FPGA']['reserved'] == 0


def test_a_lost_accelerator_that_is_held_is_reserved(known):
    """It counts as long as it is held, and must not be allocated again."""
    take(known)
    with known.database.reader() as session:
        held = session.query(model.ARQ).one().attach_handle.attach_info['function']
    left = [number for number in range(16) if f'{number:x}' != held]
    known.report(support.card(handles=left))
    known.send()
    fpga = known.inventory()['FPGA']
    assert (fpga['total'], fpga['reserved']) == (16, 1)


def test_a_faulty_device_is_reserved_and_has_a_trait_until_it_recovers(known):
    def look(**health):
        known.report(support.card(handles=16, **health))
        known.send()
        return known.inventory()['FPGA']['reserved'], known.traits()

    traits = {'CUSTOM_FAKE_DEVICE', 'OWNER_CYBORG'}
    bad = {'health': 'critical', 'health_reason': 'xid_79'}
    for _ in range(2):
        assert look(**bad) == (0, traits)
    assert look(**bad) == (16, traits | {'CUSTOM_ACCEL_UNHEALTHY'})
    for _ in range(2):
        assert look(health='ok') == (16, traits | {'CUSTOM_ACCEL_UNHEALTHY'})
    assert look(health='ok') == (0, traits)


def test_messages_of_a_dead_conductor_are_sent_within_a_minute(known):
    known.report(support.card(handles=15))
    [message] = support.take(known.manager.outbox, outbox.PROVIDER)
    [interval] = [each for each in options.conductor.OPTS if each.name == 'outbox_interval']
    wait = (message.due_at - timeutils.utcnow()).total_seconds()
    assert 30 < wait <= 60 - interval.type.max


def test_providers_follow_a_host_that_is_renamed_and_go_with_it(known):
    root = known.add_root('host-2')
    arq = take(known)
    with known.database.writer() as session:
        session.execute(sa.update(model.Host).values(silent=True))
    known.manager.rename_host(context.service(), name='host-1', to='host-2')
    known.send()
    provider = known.provider()
    assert provider['name'] == 'host-2_0000:3b:00.0'
    assert provider['parent_provider_uuid'] == root['uuid']
    known.manager.delete_arqs(context.service(), uuids=[arq])
    known.manager.delete_host(context.service(), name='host-2')
    known.send()
    assert known.client.get(f'/resource_providers/{RP_UUID}', raise_exc=False).status_code == 404


@pytest.mark.parametrize('free', ['delete_arqs_of', 'delete_arqs', 'unbind'])
def test_a_freed_accelerator_is_offered_after_an_unanswered_commit(cloud, free):
    cloud.add_root()
    card = support.card(handles=3)
    for handle, form in zip(card.deployables[0].attach_handles, ['whole', 'vf', 'vf'], strict=True):
        handle.form = form
    cloud.report(card)
    cloud.send()
    ctxt = context.RequestContext(is_admin=True, project_id='p', overwrite=False)
    profile = {'name': 'one', 'groups': [{'resources:FPGA': '1'}]}
    cloud.manager.create_device_profile(ctxt, profile=profile)
    [arq] = cloud.manager.create_arqs(ctxt, profile='one')
    place = {'hostname': 'host-1', 'device_rp_uuid': RP_UUID, 'project_id': 'p'}
    wish = {'uuid': arq, 'instance_uuid': support.INSTANCE, **place}
    cloud.manager.bind(ctxt, wishes=[wish])
    cloud.send()
    before = cloud.inventory()['FPGA']['reserved']
    what = {'instance': support.INSTANCE} if free == 'delete_arqs_of' else {'uuids': [arq]}
    with test_retries.commit_lost(cloud.database):
        getattr(cloud.manager, free)(ctxt, **what)
    cloud.hurry()
    cloud.send()
    assert cloud.inventory()['FPGA']['reserved'] < before


def test_placement_is_updated_before_the_answer_after_an_unanswered_commit(known):
    with test_retries.commit_lost(known.database):
        known.manager.set_device_status(
            context.service(), uuid=known.device(), status='maintaining', seen=0
        )
    inventory = known.inventory()['FPGA']
    assert inventory['reserved'] == inventory['total']

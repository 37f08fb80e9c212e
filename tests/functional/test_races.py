# SPDX-License-Identifier: Apache-2.0
"""Many concurrent callers: nothing is allocated twice, and there is no 5xx."""

import collections
import datetime
import random
import threading
import time
import uuid

import pytest
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite.api import accelerator_requests
from cyborg_lite.conductor import manager
from cyborg_lite.db import engine
from tests import support

ARQS = '/v2/accelerator_requests'
GROUPS = [{'resources:FPGA': '1'}]


def holders(service):
    """The requests that hold each handle; the states must match."""
    found = collections.defaultdict(list)
    for arq in service.rows(model.ARQ):
        assert (arq.attach_handle_id is not None) == (arq.state == 'Bound'), vars(arq)
        if arq.attach_handle_id is not None:
            found[arq.attach_handle_id].append(arq.uuid)
    assert all(len(arqs) == 1 for arqs in found.values())
    return found


def provider(service):
    return service.rows(model.Deployable)[0].rp_uuid


def test_64_callers_share_15_handles(service, race):
    service.report(support.card(handles=15))
    service.profile(FPGA=64)
    arqs, rp_uuid = service.arqs(), provider(service)
    answers = race(*(lambda api, arq=arq: api.bind(arq, provider=rp_uuid) for arq in arqs))
    statuses = collections.Counter(answer.status_int for answer in answers)
    assert statuses == {202: 15, 404: 49}
    assert len(holders(service)) == 15
    for arq, answer in zip(arqs, answers, strict=True):
        shown = service.api.get(f'{ARQS}/{arq}').json
        if answer.status_int == 202:
            assert shown['state'] == 'Bound'
            assert shown['attach_handle_info']['function']
        else:
            assert 'free attach handle' in support.fault(answer)
            assert shown['state'] == 'BindFailed'
            assert (shown['attach_handle_uuid'], shown['attach_handle_info']) == (None, {})


def test_callers_that_want_many_get_all_or_none(service, race):
    service.report(support.card(handles=15))
    service.profile(FPGA=4)
    rp_uuid = provider(service)
    lots = [service.arqs() for _ in range(8)]
    answers = race(
        *(
            lambda api, lot=lot, n=n: api.bind(
                *lot, provider=rp_uuid, instance=str(uuid.UUID(int=n))
            )
            for n, lot in enumerate(lots)
        )
    )
    assert collections.Counter(answer.status_int for answer in answers) == {202: 3, 404: 5}
    assert len(holders(service)) == 12
    states = {arq.uuid: arq.state for arq in service.rows(model.ARQ)}
    assert all(len({states[arq] for arq in lot}) == 1 for lot in lots)


def test_one_request_is_bound_once(service, race):
    service.report(support.card(handles=16))
    service.profile()
    [arq], rp_uuid = service.arqs(), provider(service)
    answers = race(*[lambda api: api.bind(arq, provider=rp_uuid)] * 16)
    assert collections.Counter(answer.status_int for answer in answers) == {202: 1, 409: 15}
    assert list(holders(service).values()) == [[arq]]


def test_one_instance_is_bound_once(service, race):
    service.report(support.card(handles=16))
    service.profile(FPGA=16)
    arqs, rp_uuid = service.arqs(), provider(service)
    answers = race(
        *(
            lambda api, arq=arq: api.bind(arq, provider=rp_uuid, instance=support.INSTANCE)
            for arq in arqs
        )
    )
    assert collections.Counter(answer.status_int for answer in answers) == {202: 1, 400: 15}
    assert len(holders(service)) == 1


def test_one_instance_is_bound_on_one_host(service, race):
    hosts = ['host-1', 'host-2', 'host-3', 'host-4']
    for number, host in enumerate(hosts):
        service.report(support.card(f'{number:02x}'), host=host)
    service.profile(FPGA=8)
    arqs, providers = service.arqs(), [part.rp_uuid for part in service.rows(model.Deployable)]

    def bind(api, number):
        rp_uuid, host = providers[number % 4], hosts[number % 4]
        return api.bind(arqs[number], provider=rp_uuid, host=host, instance=support.INSTANCE)

    answers = race(*(lambda api, n=n: bind(api, n) for n in range(8)))
    assert collections.Counter(answer.status_int for answer in answers) == {202: 1, 400: 7}
    assert len(holders(service)) == 1


@pytest.mark.parametrize(
    ('field', 'version', 'statuses'),
    [('name', '2.0', {201: 1, 409: 31}), ('uuid', '2.3', {201: 1, 500: 31})],
)
def test_a_profile_is_created_once(service, race, field, version, statuses):
    def create(n):
        same = {'name': 'same'} if field == 'name' else {'uuid': support.INSTANCE}
        body = [{'name': f'p{n}', 'groups': GROUPS} | same]
        return lambda api: api.at(version).post('/v2/device_profiles', body)

    answers = race(*(create(n) for n in range(32)))
    assert collections.Counter(answer.status_int for answer in answers) == statuses
    refused = [support.fault(answer) for answer in answers if answer.status_int != 201]
    assert all('already exists' in text for text in refused)
    assert len(service.rows(model.DeviceProfile)) == 1


def test_a_profile_is_deleted_once(service, race):
    for n in range(8):
        service.profile(f'p{n}')

    def delete(n):
        return lambda api: api.delete(f'/v2/device_profiles/p{n}')

    answers = race(*(delete(n) for n in range(8) for _ in range(4)))
    assert collections.Counter(answer.status_int for answer in answers) == {204: 8, 404: 24}


def test_a_name_comes_and_goes(service, race):
    """Concurrent creates and deletes of one name: each deleted profile had been created."""

    def create(api):
        return api.post('/v2/device_profiles', [{'name': 'same', 'groups': GROUPS}])

    def delete(api):
        return api.delete('/v2/device_profiles/same')

    def churn(api):
        return [(create(api).status_int, delete(api).status_int) for _ in range(4)]

    pairs = [pair for pairs in race(*[churn] * 12) for pair in pairs]
    created, deleted = (collections.Counter(statuses) for statuses in zip(*pairs, strict=True))
    # A profile that is deleted before it can be shown is a 404, too.
    assert created.keys() <= {201, 404, 409}
    assert deleted.keys() <= {204, 404}
    left = created[201] + created[404] - deleted[204]
    assert left == len(service.rows(model.DeviceProfile))


@pytest.fixture
def conductors(service):
    """Two conductors on the database of the service, as in separate processes."""
    databases = [engine.Database(service.conf) for _ in range(2)]
    yield [manager.Manager(service.conf, database) for database in databases]
    for database in databases:
        database.close()


def report(host, *devices, sequence=1):
    facts = [device.facts() for device in devices]
    said = {'host': host, 'boot_id': 'boot-1', 'sequence': sequence, 'interval': 3600}
    return said | {'digest': str(sequence), 'devices': facts, 'drivers': {}}


def test_two_conductors_that_take_one_report_keep_two_devices(service, race, conductors):
    """Upstream keeps four."""
    reports = [report(f'host-{n}', support.card('3b', 2), support.card('3c', 2)) for n in range(8)]
    race(
        *(
            lambda _, said=said, conductor=conductor: conductor.report(context.service(), **said)
            for said in reports
            for conductor in conductors * 2
        )
    )
    assert len(service.rows(model.Host)) == 8
    assert len(service.rows(model.Device)) == 16
    assert len(service.rows(model.Deployable)) == 16
    assert len(service.rows(model.AttachHandle)) == 32


def test_the_last_report_is_what_stays(service, race, conductors):
    """Whichever conductor takes which report: each has a card more, and the last has two."""
    cards = [support.card(f'{n:02x}') for n in range(8)]
    said = [report('host-1', *cards[: n + 1], sequence=n + 1) for n in range(7)]
    said.append(report('host-1', *cards[:2], sequence=8))
    race(
        *(
            lambda _, each=each, conductor=conductor: conductor.report(context.service(), **each)
            for each in said
            for conductor in conductors
        )
    )
    present = [row.address for row in service.rows(model.Device) if not row.absences]
    assert sorted(present) == ['0000:00:00.0', '0000:01:00.0']
    [host] = service.rows(model.Host)
    assert (host.sequence, host.boot_id) == (8, 'boot-1')


def test_an_attribute_is_created_once(service, race):
    service.report(support.card())
    body = {'deployable_id': 1, 'key': 'colour', 'value': 'red'}
    answers = race(*[lambda api: api.post('/v2/attributes', body)] * 16)
    assert collections.Counter(answer.status_int for answer in answers) == {201: 1, 409: 15}


def test_a_profile_goes_or_is_used(service, race):
    """Deleting a profile while requests of it are created: one of the two is refused."""
    for n in range(8):
        service.profile(f'p{n}')

    def create(n):
        return lambda api: api.post(ARQS, {'device_profile_name': f'p{n}'})

    def delete(n):
        return lambda api: api.delete(f'/v2/device_profiles/p{n}')

    answers = race(*(make(n) for n in range(8) for make in (create, delete)))
    pairs = {(created.status_int, deleted.status_int) for created, deleted in
             zip(answers[::2], answers[1::2], strict=True)}  # fmt: skip
    assert pairs <= {(201, 409), (404, 204)}
    assert len(service.rows(model.ARQ)) == len(service.rows(model.DeviceProfile))


@pytest.mark.parametrize('seed', [1, 2])
def test_a_storm_leaves_no_handle_with_two_holders(service, race, seed):
    """Bind, unbind and delete the same requests from all sides, while the device comes and goes."""
    service.report(support.card(handles=4))
    service.profile(FPGA=12)
    rp_uuid = provider(service)
    [device] = service.rows(model.Device)
    arqs = service.arqs()
    actions = {
        'bind': (lambda api, arq: api.bind(arq, provider=rp_uuid), {202, 400, 404, 409}),
        'unbind': (lambda api, arq: api.unbind(arq), {202, 404, 409}),
        'delete': (lambda api, arq: api.delete(f'{ARQS}/{arq}'), {204, 404}),
        'create': (lambda api, _: api.post(ARQS, {'device_profile_name': 'profile-1'}), {201}),
        'look': (lambda api, arq: api.get(f'{ARQS}/{arq}'), {200, 404}),
        'list': (lambda api, _: api.get(f'{ARQS}?bind_state=resolved'), {200}),
        'disable': (lambda api, _: api.post(f'/v2/devices/{device.uuid}/disable'), {204}),
        'enable': (lambda api, _: api.post(f'/v2/devices/{device.uuid}/enable'), {204}),
    }
    weights = [10, 6, 1, 1, 3, 1, 1, 3]

    def storm(number):
        chance = random.Random(f'{seed} {number}')

        def blow(api):
            for _ in range(20):
                [name] = chance.choices(list(actions), weights)
                act, expected = actions[name]
                answer = act(api, chance.choice(arqs))
                assert answer.status_int in expected, (name, answer.status, answer.body)
                seen[name, answer.status_int] += 1

        return blow

    seen = collections.Counter()
    race(*(storm(number) for number in range(12)))
    assert len(holders(service)) <= 4
    # There was contention: some were bound, and some were refused.
    assert seen['bind', 202]
    assert seen['bind', 404] + seen['bind', 409]
    # Afterwards all unbound requests can be bound.
    service.api.post(f'/v2/devices/{device.uuid}/enable')
    left = [arq.uuid for arq in service.rows(model.ARQ)]
    assert service.api.unbind(*left).status_int == 202
    assert not holders(service)
    assert service.api.bind(*left[:4], provider=rp_uuid).status_int == 202
    assert len(holders(service)) == 4


@pytest.mark.parametrize('together', [1, 3])
def test_allocations_that_come_and_go_give_nothing_twice(service, race, together):
    """32 callers with one allocation each request more than there is."""
    cards = [support.card(f'{n:02x}', numa_node=n // 4) for n in range(8)]
    service.report(*cards)
    service.report(*cards, host='host-2')
    body = {'groups': [{'resources': {'FPGA': together}}]}

    def churn(api):
        seen = []
        for _ in range(2):
            answer = api.post('/v2/allocations', body)
            assert answer.status_int in (201, 409), answer.text
            seen.append(answer.status_int)
            if answer.status_int == 201:
                path = f'/v2/allocations/{answer.json["uuid"]}'
                held = {each['uuid'] for each in answer.json['accelerators']}
                assert len(held) == together
                with lock:
                    assert not held & taken, 'given twice'
                    taken.update(held)
                assert api.get(path).json['state'] == 'active'
                with lock:
                    taken.difference_update(held)
                assert api.delete(path).status_int == 204
        return collections.Counter(seen)

    lock, taken = threading.Lock(), set()
    seen = sum(race(*[churn] * 32), collections.Counter())
    # Requests are refused only while all accelerators are held.
    assert seen[201] >= 2 * (len(cards) // together)
    assert service.rows(model.ARQ) == []
    assert service.rows(model.DeviceProfile) == []
    assert {row.state for row in service.rows(model.Allocation)} == {'released'}
    whole = {'groups': [{'resources': {'FPGA': 16}}], 'same_host': False}
    assert service.api.post('/v2/allocations', whole).status_int == 201


def test_a_queue_gives_nothing_twice_and_leaves_nobody_waiting(service, race):
    """Eight callers that each wait for two allocations and release them share three cards."""
    service.report(*(support.card(f'{n:02x}') for n in range(3)))
    body = {'groups': [{'resources': {'FPGA': 1}}], 'queue': True}

    def churn(api):
        made = [api.post('/v2/allocations', body).json['uuid'] for _ in range(2)]
        for each in made:
            path = f'/v2/allocations/{each}'
            answer = api.get(f'{path}?wait=60')
            while answer.json['state'] == 'queued' and time.monotonic() < end:
                answer = api.get(f'{path}?wait=60')
            assert answer.json['state'] == 'active', answer.text
            [held] = [each['uuid'] for each in answer.json['accelerators']]
            with lock:
                assert held not in taken, 'given twice'
                taken.add(held)
            with lock:
                taken.discard(held)
            assert api.delete(path).status_int == 204

    lock, taken, end = threading.Lock(), set(), time.monotonic() + 120
    race(*[churn] * 8)
    assert service.rows(model.ARQ) == []
    assert {row.state for row in service.rows(model.Allocation)} == {'released'}


def test_allocations_and_binds_share_what_there_is(service, race):
    service.report(support.card(handles=15))
    service.profile(FPGA=16)
    arqs, rp_uuid = service.arqs(), provider(service)
    body = {'groups': [{'resources': {'FPGA': 1}}]}
    answers = race(
        *(lambda api, arq=arq: api.bind(arq, provider=rp_uuid) for arq in arqs),
        *[lambda api: api.post('/v2/allocations', body)] * 16,
    )
    statuses = collections.Counter(answer.status_int for answer in answers)
    assert statuses[202] + statuses[201] == 15
    assert statuses[404] + statuses[409] == 17
    assert len(holders(service)) == 15


def test_one_key_makes_one_allocation(service, race):
    service.report(support.card(handles=15))
    body = {'groups': [{'resources': {'FPGA': 1}}]}
    key = {'Idempotency-Key': 'a'}
    answers = race(*[lambda api: api.post('/v2/allocations', body, **key)] * 16)
    assert {answer.status_int for answer in answers} == {201}
    assert len({answer.json['uuid'] for answer in answers}) == 1
    assert len(holders(service)) == 1


def test_one_name_is_of_one_allocation(service, race):
    service.report(support.card(handles=15))
    body = {'groups': [{'resources': {'FPGA': 1}}], 'name': 'a'}
    answers = race(*[lambda api: api.post('/v2/allocations', body)] * 16)
    statuses = collections.Counter(answer.status_int for answer in answers)
    assert statuses == {201: 1, 409: 15}


def test_a_lease_is_renewed_or_ends(service, race):
    """Renewals, deletes and the healers of two conductors: accelerators are freed once."""
    service.report(support.card(handles=8))
    body = {'groups': [{'resources': {'FPGA': 1}}], 'lease': 1}
    made = [service.api.post('/v2/allocations', body).json['uuid'] for _ in range(8)]
    with service.database.writer() as session:
        past = datetime.datetime(2000, 1, 1)
        session.execute(sa.update(model.Allocation).values(lease_ends_at=past))
    healers = [service.manager.healer] * 2
    race(
        *(lambda _, healer=healer: healer.expire() for healer in healers),
        *(lambda api, each=each: api.delete(f'/v2/allocations/{each}') for each in made),
        *(lambda api, each=each: api.patch(f'/v2/allocations/{each}', {'lease': 60})
          for each in made),
    )  # fmt: skip
    assert {row.state for row in service.rows(model.Allocation)} == {'released'}
    assert service.rows(model.ARQ) == []


def test_a_tenant_frees_nothing_that_nova_binds_meanwhile(service, monkeypatch):
    """OSSA-2023-003: the card would be free while a server still uses it."""
    service.report(support.card())
    service.profile()
    [arq] = service.arqs()
    wish = {
        'uuid': arq,
        'hostname': support.HOST,
        'device_rp_uuid': provider(service),
        'instance_uuid': support.INSTANCE,
        'project_id': service.rows(model.ARQ)[0].project_id,
    }
    look = accelerator_requests.AcceleratorRequests._seen_free

    def then_bind(controller, uuids):
        seen = look(controller, uuids)
        service.conductor.bind(wishes=[wish])
        return seen

    # As for users of Keystone without a service token.
    monkeypatch.setattr(accelerator_requests, '_may_act_for_instances', lambda: False)
    monkeypatch.setattr(accelerator_requests.AcceleratorRequests, '_seen_free', then_bind)
    answer = service.api.delete(f'{ARQS}?arqs={arq}')
    assert answer.status_int == 409
    assert 'changed meanwhile' in support.fault(answer)
    assert [row.state for row in service.rows(model.ARQ)] == ['Bound']

# SPDX-License-Identifier: Apache-2.0
"""/v2/allocations: accelerators that one consumer allocates and releases together."""

import collections
import datetime
import unittest.mock
import uuid

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.api import app
from cyborg_lite.conductor import choosing
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import releasing
from cyborg_lite.model import base
from tests import support

PATH = '/v2/allocations'
NPU = {'resources': {'CUSTOM_NPU': 1}}


def npu(bus, numa_node=0, **more):
    facts = {'type': 'AICHIP', 'vendor': '19e5', 'model': 'Ascend 910B3', 'numa_node': numa_node}
    facts |= {'resource_class': 'CUSTOM_NPU', 'traits': ['CUSTOM_NPU_910B']}
    return support.card(bus, **(facts | more))


def eight(service, host='host-1', **more):
    """A host of eight cards, four in each NUMA node."""
    service.report(*(npu(f'{n:02x}', n // 4, **more) for n in range(8)), host=host)


def groups(amount=1, resource_class='CUSTOM_NPU', **traits):
    return [{'resources': {resource_class: amount}, 'traits': traits}]


def allocate(service, body=None, query='', **headers):
    return service.api.post(f'{PATH}{query}', body or {'groups': [NPU]}, **headers)


def got(service, amount=1, **more):
    answer = allocate(service, {'groups': groups(amount)} | more)
    assert answer.status_int == 201, answer.text
    return answer.json


def refused(answer, status):
    assert answer.status_int == status, answer.text
    return support.fault(answer)


def held(service):
    return {each['uuid'] for each in service.api.get('/v2/accelerators?state=held').json[
        'accelerators']}  # fmt: skip


def heal(service):
    service.manager.healer.heal()


def change(service, kind, **values):
    with service.database.writer() as session:
        session.execute(sa.update(kind).values(**values))


def test_a_part_of_a_card_has_ids_of_its_own(service):
    card = npu('c1', resource_class='CUSTOM_MIG_1G_10GB', vendor_board={'uuid': 'GPU-1'})
    card.deployables[0].attach_handles = [
        model.AttachHandle(attach_type='MIG', attach_info={'uuid': 'MIG-7'}, form='mig')
    ]
    service.report(card)
    [mine] = got(service, groups=groups(1, 'CUSTOM_MIG_1G_10GB'))['accelerators']
    assert mine['ids'] == {'uuid': 'MIG-7'}
    assert service.api.get(f'/v2/accelerators/{mine["uuid"]}').json['ids'] == {'uuid': 'MIG-7'}


def test_one_request_gives_accelerators_with_their_ids(service):
    board = {'npu_id': 3, 'chips': [{'chip_id': 0, 'phy_id': 3}]}
    service.report(npu('c1', vendor_board=board))
    consumer = {'type': 'process', 'id': 'host-1:4711'}
    answer = allocate(service, {'groups': [NPU], 'name': 'train-7', 'consumer': consumer,
                                'lease': 3600})  # fmt: skip
    assert answer.status_int == 201
    made = answer.json
    [handle], [device] = service.rows(model.AttachHandle), service.rows(model.Device)
    [arq] = service.rows(model.ARQ)
    assert made['accelerators'] == [
        {
            'uuid': handle.uuid,
            'arq_uuid': arq.uuid,
            'host': 'host-1',
            'device_uuid': device.uuid,
            'type': 'AICHIP',
            'model': 'Ascend 910B3',
            'address': '0000:c1:00.0',
            'numa_node': 0,
            'attach_type': 'TEST_PCI',
            'attach_info': handle.attach_info,
            'form': 'part',
            'driver': 'fake',
            'ids': {'npu_id': 3, 'chips': [{'chip_id': 0, 'phy_id': 3}]},
        }
    ]
    assert (made['state'], made['reason'], made['name']) == ('active', None, 'train-7')
    assert (made['consumer'], made['lease'], made['profile']) == (consumer, 3600, None)
    assert made['groups'] == [NPU | {'traits': {}}]
    ends = datetime.datetime.fromisoformat(made['lease_ends_at']).replace(tzinfo=None)
    assert abs((ends - timeutils.utcnow()).total_seconds() - 3600) < 60
    assert made['links'] == [{'rel': 'self', 'href': f'http://localhost{PATH}/{made["uuid"]}'}]
    for id in made['uuid'], 'train-7':
        assert service.api.get(f'{PATH}/{id}').json == made
    assert (arq.state, arq.instance_uuid, arq.allocation_uuid) == ('Bound', None, made['uuid'])
    [row] = service.api.get(f'/v2/accelerators?allocation_uuid={made["uuid"]}').json['accelerators']
    assert (row['uuid'], row['state'], row['instance_uuid']) == (handle.uuid, 'held', None)


@pytest.mark.parametrize('by', ['name', 'uuid'])
def test_by_a_profile(service, by):
    eight(service)
    profile = service.profile(CUSTOM_NPU=2)
    made = allocate(service, {'profile': profile[by]}).json
    assert (made['profile'], made['groups']) == ('profile-1', groups(2))
    assert len(made['accelerators']) == 2
    arqs = service.api.get('/v2/accelerator_requests').json['arqs']
    assert {arq['device_profile_name'] for arq in arqs} == {'profile-1'}
    assert service.api.delete(f'{PATH}/{made["uuid"]}').status_int == 204
    assert service.api.delete('/v2/device_profiles/profile-1').status_int == 204


def test_the_groups_of_an_allocation_are_no_profile_of_others(service):
    eight(service)
    made = got(service)
    [private] = service.rows(model.DeviceProfile)
    assert service.api.get('/v2/device_profiles').json['device_profiles'] == []
    for id in private.name, private.uuid:
        assert service.api.at('2.3').get(f'/v2/device_profiles/{id}').status_int == 404
        assert service.api.delete(f'/v2/device_profiles/{id}').status_int == 404
        assert allocate(service, {'profile': id}).status_int == 404
        arq = {'device_profile_name': id}
        assert service.api.post('/v2/accelerator_requests', arq).status_int == 404
    service.api.delete(f'{PATH}/{made["uuid"]}')
    assert service.rows(model.DeviceProfile) == []


def test_traits_are_required_and_forbidden(service):
    service.report(npu('01'), npu('02', traits=['CUSTOM_NPU_310P']), npu('03', traits=[]))
    for traits, bus in (
        ({'CUSTOM_NPU_910B': 'required'}, '01'),
        ({'CUSTOM_NPU_910B': 'forbidden', 'CUSTOM_NPU_310P': 'forbidden'}, '03'),
        ({'CUSTOM_NPU_910B': 'forbidden'}, '02'),
    ):
        [found] = allocate(service, {'groups': groups(**traits)}).json['accelerators']
        assert found['address'] == f'0000:{bus}:00.0'


def test_groups_of_many_classes_come_in_order(service):
    service.report(npu('01'), npu('02', resource_class='PGPU'), npu('03'), support.card('04'))
    asked = [*groups(1, 'FPGA'), {'resources': {'CUSTOM_NPU': 2, 'PGPU': 1}}]
    made = allocate(service, {'groups': asked}).json
    buses = [each['address'][5:7] for each in made['accelerators']]
    assert (buses[0], sorted(buses[1:3]), buses[3]) == ('04', ['01', '03'], '02')


def test_the_first_alternative_that_fits_is_used(service):
    service.report(npu('01'), *(npu(f'{n:02x}', traits=['CUSTOM_NPU_310P']) for n in range(2, 8)))
    body = {
        'groups': groups(2, CUSTOM_NPU_910B='required'),
        'alternatives': [groups(4, CUSTOM_NPU_310P='required'), groups(1)],
    }
    assert len(allocate(service, body).json['accelerators']) == 4
    made = allocate(service, body).json
    assert made['groups'] == groups(1)
    assert len(made['accelerators']) == 1


def test_together_on_one_host_unless_it_may_be_apart(service):
    for host in 'host-1', 'host-2':
        service.report(npu('01'), npu('02'), host=host)
    assert 'on one host' in refused(allocate(service, {'groups': groups(3)}), 409)
    made = got(service, 3, same_host=False)
    assert len({each['host'] for each in made['accelerators']}) == 2


def test_two_share_a_numa_node_whenever_two_free_ones_do(service):
    eight(service)
    for _ in range(4):
        made = got(service, 2)
        assert len({each['numa_node'] for each in made['accelerators']}) == 1
    assert refused(allocate(service), 409)


def test_same_numa_can_be_required(service):
    service.report(npu('01', 0), npu('02', 1))
    answer = allocate(service, {'groups': groups(2), 'same_numa': 'require'})
    assert 'in one NUMA node' in refused(answer, 409)
    assert len(got(service, 2)['accelerators']) == 2


def linked(service):
    """Two hosts of three cards: on the second, two are linked, in different NUMA nodes."""
    service.report(*(npu(f'{n:02x}') for n in range(3)))
    places = [npu(f'{n:02x}', n // 2) for n in range(3)]
    places[1].topology = {'links': {places[2].address: 2}}
    service.report(*places, host='host-2')


def test_links_can_be_required(service):
    linked(service)
    made = got(service, 2, link='require')
    assert [(e['host'], e['address'][5:7]) for e in made['accelerators']] == [
        ('host-2', '01'),
        ('host-2', '02'),
    ]
    answer = allocate(service, {'groups': groups(2), 'link': 'require'})
    assert refused(answer, 409) == (
        'Cannot allocate: needs 2 of CUSTOM_NPU on one host and in a ring of links: 4 of '
        'CUSTOM_NPU free on 2 hosts, at most 3 on one.'
    )
    assert len(got(service, 2, link='prefer')['accelerators']) == 2
    assert len(got(service, 1, link='require')['accelerators']) == 1


@pytest.mark.parametrize(
    ('amount', 'more', 'fits'),
    [(2, {}, True), (3, {}, False), (2, {'same_numa': 'require'}, False)],
)
def test_what_links_exclude_is_topology(service, amount, more, fits):
    linked(service)
    body = {'groups': groups(amount), 'link': 'require'} | more
    assert allocate(service, body, '?dry_run=true').json['fits'] is fits
    got(service, 2, link='require')
    [alternative] = allocate(service, body, '?dry_run=true').json['alternatives']
    assert (alternative['fits'], alternative['fits_if_all_were_free']) == (False, fits)
    [request] = alternative['requests']
    assert +collections.Counter(request['removed']) == {'held': 2, 'topology': 4}
    assert request['left'] == 0


@pytest.mark.parametrize(
    ('amount', 'more', 'said'),
    [
        (9, {}, 'there would be 8 on one host'),
        (5, {'same_numa': 'require'}, 'there would be 4 in one NUMA node'),
        (11, {'same_host': False}, 'there would be 10'),
        (3, {'link': 'require'}, 'no host would have such a set'),
    ],
)
def test_a_refusal_says_what_there_would_be(service, amount, more, said):
    eight(service)
    one, other = npu('01'), npu('02')
    one.topology = {'links': {other.address: 1}}
    service.report(one, other, host='host-2')
    got(service, 1)
    refusal = refused(allocate(service, {'groups': groups(amount)} | more), 409)
    assert refusal.endswith(f', and even if all were free {said}.')


def test_a_refusal_says_when_leases_end(service):
    """The second of three leases frees enough; those without an end do not count."""
    service.report(*(npu(f'{n:02x}') for n in range(4)))
    for lease in (3600, 60, 600, None):
        got(service, **({'lease': lease} if lease else {}))
    ends = sorted(filter(None, (a.lease_ends_at for a in service.rows(model.Allocation))))
    for amount, at in ((1, ends[0]), (2, ends[1]), (3, ends[2]), (4, None)):
        body = {'groups': groups(amount)}
        answer = allocate(service, body)
        [alternative] = answer.json['errors'][0]['explanation']['alternatives']
        said = refused(answer, 409)
        assert alternative['fits_at'] == (at and base.iso(at))
        expected = f'; enough are free at {at and base.iso(at)}, when leases end'
        assert (expected in said) == (at is not None)
        dry = allocate(service, body, '?dry_run=true').json
        assert dry['alternatives'][0]['fits_at'] == (at and base.iso(at))
    # It waits for what is held, and its reason is that of the moment.
    queued = allocate(service, {'groups': groups(), 'queue': True}).json
    first, second, _ = sorted(
        (each for each in service.rows(model.Allocation) if each.lease_ends_at),
        key=lambda each: each.lease_ends_at,
    )
    for lease in first, second:
        coming = f'lease {lease.uuid} ends at {base.iso(lease.lease_ends_at)}.'
        shown = service.api.get(f'{PATH}/{queued["uuid"]}').json
        assert shown['reason'].startswith('It waits: needs 1 of ')
        assert shown['reason'].endswith(f'; 1 of CUSTOM_NPU comes free when {coming}')
        service.api.patch(f'{PATH}/{lease.uuid}', {'lease': 7200})
    assert service.api.patch(f'{PATH}/{first.uuid}', {'lease': 60}).status_int == 200
    ends[0] = min(a.lease_ends_at for a in service.rows(model.Allocation) if a.lease_ends_at)
    [alternative] = allocate(service, None, '?dry_run=true').json['alternatives']
    assert alternative['fits_at'] == base.iso(ends[0])


def test_a_dry_run_counts_the_quota(service):
    """What it says is what the request would get."""
    eight(service)
    got(service, 2)
    project = service.rows(model.Allocation)[0].project_id
    service.conductor.update_quota(project=project, limits={'CUSTOM_NPU': 3})
    body = {'groups': groups(2), 'alternatives': [groups(3)]}
    found = allocate(service, body, '?dry_run=true').json
    alternative, other = found['alternatives']
    whose = f'asked for in project {project}'
    assert other['reason'].endswith(f'2 used, and 3 {whose}')
    quota = f'Quota exceeded for CUSTOM_NPU: the limit is 3, 2 used, and 2 {whose}'
    assert (found['fits'], alternative['fits'], alternative['reason']) == (False, False, quota)
    assert alternative['fits_if_all_were_free'] is True
    [request] = alternative['requests']
    assert +collections.Counter(request['removed']) == {'held': 2, 'quota': 6}
    assert request['left'] == 0
    answer = allocate(service, body)
    assert refused(answer, 403) == f'{quota}.'
    assert answer.json['errors'][0]['explanation'] == found
    assert allocate(service, {'groups': groups(1)}, '?dry_run=true').json['fits']


@pytest.mark.parametrize('lease', [None, 60])
def test_an_alternative_within_the_quota_is_taken(service, lease):
    """The first one is over it, though its accelerators are free."""
    eight(service)
    got(service, 2, **({'lease': lease} if lease else {}))
    project = service.rows(model.Allocation)[0].project_id
    service.conductor.update_quota(project=project, limits={'CUSTOM_NPU': 3})
    body = {'groups': groups(2), 'alternatives': [groups(7), groups(1)]}
    first, second, third = allocate(service, body, '?dry_run=true').json['alternatives']
    assert [each['fits'] for each in (first, second, third)] == [False, False, True]
    assert 'Quota exceeded' in first['reason']
    assert '6 of CUSTOM_NPU free' in second['reason']
    # No lease that ends would help the first, nor was a third one asked for.
    assert (first['fits_at'], second['fits_at']) == (None, None)
    made = allocate(service, body).json
    assert (made['state'], len(made['accelerators'])) == ('active', 1)
    body['alternatives'].pop()
    refusal = allocate(service, body)
    assert 'Quota exceeded' in refused(refusal, 403)
    first, second = refusal.json['errors'][0]['explanation']['alternatives']
    assert first['fits_at'] is None


def test_a_refusal_says_that_no_links_are_known(service):
    """A driver may not tell links: other cards would not help."""
    service.report(*(npu(f'0{number}') for number in range(1, 5)))
    said = refused(allocate(service, {'groups': groups(2), 'link': 'require'}), 409)
    assert 'and in a ring of links: ' in said
    assert ', and no links between cards are known' in said


def test_a_repeated_key_with_other_links_is_another_request(service):
    linked(service)
    key = {'Idempotency-Key': 'a'}
    first = allocate(service, {'groups': groups(2)}, **key).json['uuid']
    assert allocate(service, {'groups': groups(2)}, **key).json['uuid'] == first
    assert refused(allocate(service, {'groups': groups(2), 'link': 'require'}, **key), 422)


def test_only_from_the_hosts_that_are_named(service):
    for n in range(3):
        service.report(npu('01'), host=f'host-{n}')
    made = got(service, hosts=['host-2', 'host-9'])
    assert made['accelerators'][0]['host'] == 'host-2'
    answer = allocate(service, {'groups': groups(), 'hosts': ['host-2']})
    assert refused(answer, 409)
    [request] = answer.json['errors'][0]['explanation']['alternatives'][0]['requests']
    assert (request['removed']['hosts'], request['removed']['held']) == (2, 1)


@pytest.mark.parametrize(('policy', 'first'), [('binpack', 'host-2'), ('spread', 'host-1')])
def test_the_policy_chooses_the_host(database_url, policy, first):
    service = support.Service(database_url, conductor__placing=policy)
    try:
        for host in 'host-1', 'host-2':
            service.report(npu('01'), npu('02'), npu('03'), host=host)
        got(service, hosts=['host-2'])
        assert got(service)['accelerators'][0]['host'] == first
    finally:
        service.stop()


def test_release_frees_all_and_can_be_repeated(service):
    eight(service)
    made = got(service, 3, name='a')
    assert len(held(service)) == 3
    for _ in range(2):
        assert service.api.delete(f'{PATH}/{made["uuid"]}').status_int == 204
        assert service.api.delete(f'{PATH}/a').status_int == 204
        assert held(service) == set()
    shown = service.api.get(f'{PATH}/{made["uuid"]}').json
    assert (shown['state'], shown['reason']) == ('released', 'It was deleted.')
    assert shown['accelerators'] == made['accelerators']
    assert shown['released_at']
    assert service.rows(model.ARQ) == []
    assert got(service, 8, name='a')['uuid'] != made['uuid']


def test_unknown_allocations_are_not_found(service):
    for id in str(uuid.uuid4()), 'none':
        assert 'not found' in refused(service.api.get(f'{PATH}/{id}'), 404)
        assert 'not found' in refused(service.api.delete(f'{PATH}/{id}'), 404)
        assert 'not found' in refused(service.api.patch(f'{PATH}/{id}', {'lease': 1}), 404)
    assert 'not found' in refused(allocate(service, {'profile': 'none'}), 404)


def test_a_name_is_of_one_active_allocation_of_a_project(service, member):
    eight(service)
    made = got(service, name='a')
    assert 'already exists' in refused(allocate(service, {'groups': [NPU], 'name': 'a'}), 409)
    member('p2')
    other = got(service, name='a')
    assert service.api.get(f'{PATH}/a').json['uuid'] == other['uuid'] != made['uuid']


def test_a_tenant_sees_and_releases_his_own(service, member):
    eight(service)
    member('p1')
    mine = got(service)
    member('p2')
    for answer in (
        service.api.get(f'{PATH}/{mine["uuid"]}'),
        service.api.delete(f'{PATH}/{mine["uuid"]}'),
        service.api.patch(f'{PATH}/{mine["uuid"]}', {'lease': 1}),
    ):
        assert refused(answer, 404)
    assert service.api.get(PATH).json == {'allocations': []}
    member('p3', 'admin,member,reader')
    assert service.api.get(PATH).json['allocations'] == [mine]
    assert service.api.delete(f'{PATH}/{mine["uuid"]}').status_int == 204
    member('p1', 'reader')
    assert service.api.get(f'{PATH}/{mine["uuid"]}').json['state'] == 'released'
    assert refused(allocate(service), 403)


def test_a_repeated_key_gives_the_same_allocation(service, member):
    eight(service)
    key = {'Idempotency-Key': 'c5d1"é'.encode().decode('latin-1')}
    first = allocate(service, **key)
    again = allocate(service, **key)
    assert (first.status_int, again.status_int) == (201, 201)
    assert first.json == again.json
    assert len(held(service)) == 1
    assert 'another request' in refused(allocate(service, {'groups': groups(2)}, **key), 422)
    member('p2')
    assert allocate(service, **key).json['uuid'] != first.json['uuid']
    for bad in '', 'a' * 256, 'a\x07':
        assert 'Idempotency-Key' in refused(allocate(service, **{'Idempotency-Key': bad}), 400)


def test_a_lease_ends(service):
    eight(service)
    made, other, third = got(service, 2, lease=60), got(service), got(service, lease=60)
    renewed = service.api.patch(f'{PATH}/{third["uuid"]}', {'lease': 7200})
    assert renewed.status_int == 200
    assert renewed.json['lease_ends_at'] > third['lease_ends_at']
    heal(service)
    assert len(held(service)) == 4
    past = timeutils.utcnow() - datetime.timedelta(seconds=1)
    with service.database.writer() as session:
        row = sa.update(model.Allocation).where(model.Allocation.uuid == made['uuid'])
        session.execute(row.values(lease_ends_at=past))
    assert 'ended' in refused(service.api.patch(f'{PATH}/{made["uuid"]}', {'lease': 1}), 409)
    heal(service)
    states = {each['uuid']: (each['state'], each['reason'])
              for each in service.api.get(PATH).json['allocations']}  # fmt: skip
    assert states == {
        made['uuid']: ('released', 'Its lease ended.'),
        other['uuid']: ('active', None),
        third['uuid']: ('active', None),
    }
    assert len(held(service)) == 2
    assert refused(service.api.patch(f'{PATH}/{made["uuid"]}', {'lease': 1}), 409)


def test_a_lease_that_is_renewed_before_its_end_is_written_does_not_end(service):
    eight(service)
    got(service, lease=60)
    now = timeutils.utcnow()
    change(service, model.Allocation, lease_ends_at=now - datetime.timedelta(seconds=1))
    [row] = service.rows(model.Allocation)

    def renew(session, names, **values):
        """Another party's step, after the lease was read and before hosts are locked."""
        later = sa.update(model.Allocation).values(lease_ends_at=now + datetime.timedelta(hours=1))
        session.execute(later.execution_options(synchronize_session=False))
        return lock(session, names, **values)

    lock = hosts.locked
    with (
        unittest.mock.patch.object(hosts, 'locked', renew),
        service.database.writer() as session,
    ):
        releasing.expire(session, row.id)
    assert [each.state for each in service.rows(model.Allocation)] == ['active']
    assert len(held(service)) == 1


def test_a_released_allocation_is_deleted_after_a_time(service):
    eight(service)
    made, old, active = got(service), got(service), got(service)
    for each in made, old:
        service.api.delete(f'{PATH}/{each["uuid"]}')
    past = timeutils.utcnow() - datetime.timedelta(days=8)
    with service.database.writer() as session:
        row = sa.update(model.Allocation).where(model.Allocation.uuid == old['uuid'])
        session.execute(row.values(released_at=past))
    heal(service)
    uuids = {each['uuid'] for each in service.api.get(PATH).json['allocations']}
    assert uuids == {made['uuid'], active['uuid']}


def test_its_requests_are_freed_through_it_alone(service, member):
    eight(service)
    made = got(service, 2)
    arqs = [each['arq_uuid'] for each in made['accelerators']]
    provider = service.rows(model.Deployable)[7].rp_uuid
    path = '/v2/accelerator_requests'
    for answer in (
        service.api.delete(f'{path}?arqs={arqs[0]}'),
        service.api.delete(f'{path}/{arqs[1]}'),
        service.api.unbind(arqs[0]),
        service.api.bind(arqs[0], provider=provider),
    ):
        assert f'allocation {made["uuid"]}' in refused(answer, 409)
    assert len(held(service)) == 2
    shown = service.api.get(f'{path}/{arqs[0]}').json
    assert (shown['state'], shown['instance_uuid']) == ('Bound', None)


STATES = {
    'disabled': (model.Device, {'status': 'maintaining'}),
    'missing': (model.Device, {'absences': 1}),
    'lost': (model.AttachHandle, {'lost': True}),
    'unusable': (model.Device, {'unusable': 'it has a bridge'}),
    'host down': (model.Host, {'silent': True}),
}


@pytest.mark.parametrize('state', STATES)
def test_states_are_respected_and_shown(service, state):
    service.report(npu('01'), npu('02'))
    made = got(service)
    kind, values = STATES[state]
    change(service, kind, **values)
    answer = allocate(service)
    assert f'no CUSTOM_NPU is free (2 {state})' in refused(answer, 409)
    [request] = answer.json['errors'][0]['explanation']['alternatives'][0]['requests']
    # An accelerator counts for the first of its states, even if it is also held.
    assert request['removed'][state] == 2
    shown = service.api.get(f'{PATH}/{made["uuid"]}').json
    assert shown['state'] == 'active'
    assert made['accelerators'][0]['uuid'] in shown['reason']


def test_a_card_without_accelerators_is_counted(service):
    card = npu('01')
    card.deployables[0].attach_handles.clear()
    service.report(card)
    answer = allocate(service)
    said = 'no CUSTOM_NPU is free, and even if all were free there would be none'
    assert said in refused(answer, 409)
    [request] = answer.json['errors'][0]['explanation']['alternatives'][0]['requests']
    assert (request['candidates'], request['left']) == (0, 0)
    assert set(request['removed'].values()) == {0}


def test_an_unknown_trait_is_told_from_a_held_card(service):
    service.report(npu('01'))
    groups = [{'resources': {'CUSTOM_NPU': 1}, 'traits': {'CUSTOM_NPU_910X': 'required'}}]
    answer = service.api.post(PATH, {'groups': groups})
    assert 'no CUSTOM_NPU with CUSTOM_NPU_910X is known' in refused(answer, 409)


def test_hosts_without_the_class_are_named(service):
    """Their names may be mistaken; they come from the request, and are cut."""
    service.report(npu('01'))
    service.report(support.card('02'), host='host-2')
    long = 'z' * 100
    for named, said in (
        (['host-1'], 'there would be 1 on one host.'),
        (['host-1', 'host-2'], '; host host-2 is unknown or has no CUSTOM_NPU.'),
        (['a\nb', long], f'; hosts a?b, {"z" * 64} are unknown or have no CUSTOM_NPU.'),
        ([*'abcde'], '; hosts a, b, c and 2 more are unknown or have no CUSTOM_NPU.'),
    ):
        for queued in False, True:
            body = {'groups': groups(2), 'hosts': named, 'queue': queued}
            answer = allocate(service, body)
            text = answer.json['reason'] if queued else refused(answer, 409)
            assert text.endswith(said)


def forms():
    device = npu('01')
    [part] = device.deployables
    part.attach_handles[0].form = 'whole'
    for n in range(1, 4):
        info = {'domain': '0000', 'bus': '01', 'device': '00', 'function': f'{n}'}
        handle = model.AttachHandle(attach_type='TEST_PCI', attach_info=info, form='vf')
        part.attach_handles.append(handle)
    return device


def test_a_card_is_given_out_in_one_form(service):
    service.report(forms())
    assert refused(allocate(service, {'groups': groups(4)}), 409)
    made = got(service, 3)
    assert {each['attach_info']['function'] for each in made['accelerators']} == {'1', '2', '3'}
    answer = allocate(service)
    [request] = answer.json['errors'][0]['explanation']['alternatives'][0]['requests']
    assert (request['removed']['held'], request['removed']['excluded']) == (3, 1)


def grouped(*buses):
    cards = [npu(bus) for bus in buses]
    for each in cards:
        each.deployables[0].attach_handles[0].iommu_group = '7'
    return cards


def test_an_iommu_group_is_of_processes_or_of_one_guest(service):
    service.report(*grouped('01', '02', '03'))
    got(service)
    got(service)
    service.profile(CUSTOM_NPU=1)
    [arq] = service.arqs()
    answer = service.api.bind(arq, provider=service.rows(model.Deployable)[2].rp_uuid)
    assert 'IOMMU group 7' in refused(answer, 409)


def test_an_iommu_group_of_a_guest_is_not_for_processes(service):
    service.report(*grouped('01', '02'))
    service.profile(CUSTOM_NPU=1)
    [arq] = service.arqs()
    provider = service.rows(model.Deployable)[0].rp_uuid
    assert service.api.bind(arq, provider=provider).status_int == 202
    answer = allocate(service)
    assert refused(answer, 409)
    [request] = answer.json['errors'][0]['explanation']['alternatives'][0]['requests']
    assert (request['removed']['held'], request['removed']['excluded']) == (1, 1)


def test_a_held_accelerator_is_not_bound_for_an_instance(service):
    service.report(npu('01'))
    made = got(service)
    service.profile(CUSTOM_NPU=1)
    [arq] = service.arqs()
    provider = service.rows(model.Deployable)[0].rp_uuid
    assert service.api.bind(arq, provider=provider).status_int == 404
    service.api.delete(f'{PATH}/{made["uuid"]}')
    [arq] = service.arqs()
    assert service.api.bind(arq, provider=provider).status_int == 202
    assert refused(allocate(service), 409)


def test_a_refusal_counts_what_each_filter_drops(service, member):
    eight(service)
    service.report(support.card('01'), npu('02', traits=['CUSTOM_NPU_310P']), host='host-2')
    got(service, 7)
    member('p2')
    body = {'groups': groups(2, CUSTOM_NPU_910B='required')}
    answer = allocate(service, body)
    text = refused(answer, 409)
    assert text == (
        'Cannot allocate: needs 2 of CUSTOM_NPU with CUSTOM_NPU_910B on one host: 1 of CUSTOM_NPU '
        'free on 1 host, at most 1 on one.'
    )
    assert 'host-' not in answer.text
    explanation = answer.json['errors'][0]['explanation']
    [alternative] = explanation['alternatives']
    [request] = alternative['requests']
    removed = collections.Counter(request['removed'])
    assert +removed == {'class': 1, 'trait': 1, 'held': 7}
    assert (request['candidates'], request['left'], request['amount']) == (10, 1, 2)
    assert (explanation['fits'], alternative['fits_if_all_were_free']) == (False, True)
    tried = allocate(service, body, '?dry_run=true')
    assert (tried.status_int, tried.json) == (200, explanation)


def test_enough_accelerators_on_different_hosts_are_topology(service):
    for host in 'host-1', 'host-2':
        service.report(npu('01'), npu('02'), host=host)
    explanation = allocate(service, {'groups': groups(3)}, '?dry_run=true').json
    [alternative] = explanation['alternatives']
    assert alternative['requests'][0]['removed']['topology'] == 4
    assert alternative['fits_if_all_were_free'] is False


def test_the_quota_of_the_project_counts(service):
    eight(service)
    project = app.ALONE['X-Project-Id']
    limits = {'limits': {'CUSTOM_NPU': 2}}
    assert service.api.patch(f'/v2/quotas/{project}', limits).status_int == 200
    service.profile(CUSTOM_NPU=1)
    made = got(service, 2)
    for body in {'groups': [NPU]}, {'profile': 'profile-1'}:
        assert 'CUSTOM_NPU' in refused(allocate(service, body), 403)
    assert len(held(service)) == len(service.rows(model.ARQ)) == 2
    assert len(service.rows(model.Allocation)) == 1
    service.api.delete(f'{PATH}/{made["uuid"]}')
    assert allocate(service, {'profile': 'profile-1'}).status_int == 201


def test_the_quota_is_checked_under_its_lock(service, monkeypatch):
    """The check before it reads without a lock: another request may come in between."""
    eight(service)
    project = app.ALONE['X-Project-Id']
    service.conductor.update_quota(project=project, limits={'CUSTOM_NPU': 1})
    monkeypatch.setattr(quotas, 'refusals', lambda *_: {})
    assert 'CUSTOM_NPU' in refused(allocate(service, {'groups': groups(2)}), 403)
    body = {'groups': groups(2), 'alternatives': [groups(1)]}
    assert len(allocate(service, body).json['accelerators']) == 1


def test_what_was_chosen_is_taken_if_it_is_still_free(service):
    """Nothing else of a locked host is read then."""
    eight(service)
    with support.losing_chosen(0) as chosen, service.statements() as sent:
        made = got(service, 2)
    [card] = [each for each in service.rows(model.AttachHandle) if each.id == chosen[0]]
    assert card.uuid in {each['uuid'] for each in made['accelerators']}
    reads = [each for each in sent if each.startswith('SELECT attach_handles')]
    assert ['attach_handles.id IN' in each for each in reads] == [False, True]


def test_the_best_set_is_chosen_where_only_a_part_of_a_host_was_read(service, monkeypatch):
    for number in range(14):
        service.report(npu('01'), host=f'host-{number}')
    service.report(*(npu(f'{n:02x}', int(n > 0)) for n in range(3)), host='host-x')
    # The first two of the last host, which are on two nodes, are read with all others.
    monkeypatch.setattr(choosing, 'WINDOWS', (16 - 2 * choosing.MORE, 4096))
    assert {each['numa_node'] for each in got(service, 2)['accelerators']} == {1}


@pytest.mark.parametrize(('cards', 'choices'), [(2, 1), (1, 2)])
def test_what_was_chosen_is_lost_before_its_host_is_locked(service, cards, choices):
    """Another one of the host is taken, or all begins again."""
    service.report(*(npu(f'{n:02x}') for n in range(cards)))
    with support.losing_chosen(1) as chosen:
        [mine] = got(service)['accelerators']
    assert len(chosen) == choices
    # What is begun again has never lost it.
    assert mine['address'] == f'0000:{cards - 1:02x}:00.0'


def test_a_dry_run_takes_nothing(service):
    eight(service)
    answer = allocate(service, {'groups': groups(8)}, '?dry_run=true')
    assert (answer.status_int, answer.json['fits']) == (200, True)
    assert (held(service), service.rows(model.Allocation)) == (set(), [])
    assert allocate(service, None, '?dry_run=maybe').status_int == 400


def test_the_owner_is_told_that_the_agent_has_fallen_silent(service, member, monkeypatch):
    service.report(npu('01'))
    member('p')
    made = got(service)
    # For a day this conductor was there to take a report.
    change(service, model.Host, seen_at=timeutils.utcnow() - datetime.timedelta(days=1))
    monkeypatch.setattr(service.manager.healer, '_watching', datetime.datetime.min)
    heal(service)
    shown = service.api.get(f'{PATH}/{made["uuid"]}').json
    assert (shown['state'], shown['accelerators']) == ('active', made['accelerators'])
    where = f'Accelerator {made["accelerators"][0]["uuid"]} cannot be used: its device is in host-1'
    assert shown['reason'] == f'{where}, which is down.'
    [listed] = service.api.get(PATH).json['allocations']
    assert listed['reason'] == shown['reason']
    service.report(npu('01'), sequence=99)
    assert service.api.get(f'{PATH}/{made["uuid"]}').json['reason'] is None


def test_a_profile_is_checked_for_hosts(service):
    """Those of other hosts are counted, and not named."""
    for number in range(3):
        service.report(npu('01'), npu('02'), host=f'host-{number}')
    service.profile(CUSTOM_NPU=2)
    body = {'profile': 'profile-1', 'hosts': ['host-1']}
    found = allocate(service, body, '?dry_run=true').json
    [request] = found['alternatives'][0]['requests']
    assert (found['fits'], request['left'], request['removed']['hosts']) == (True, 2, 4)
    got(service, hosts=['host-1'])
    found = allocate(service, body, '?dry_run=true').json
    [request] = found['alternatives'][0]['requests']
    assert (found['fits'], request['removed']['hosts'], request['removed']['held']) == (False, 4, 1)
    assert 'host-' not in found['alternatives'][0]['reason']
    # Without hosts all are candidates.
    found = service.api.post('/v2/device_profiles/profile-1/check').json
    [request] = found['alternatives'][0]['requests']
    assert (found['fits'], request['removed']['hosts'], request['left']) == (True, 0, 5)


def test_a_profile_can_be_checked(service):
    eight(service)
    service.profile(CUSTOM_NPU=2)
    path = '/v2/device_profiles/{}/check'
    for id in 'profile-1', service.rows(model.DeviceProfile)[0].uuid:
        assert service.api.post(path.format(id)).json['fits'] is True
    got(service, 7)
    assert service.api.post(path.format('profile-1')).json['fits'] is False
    assert service.api.post(path.format('none')).status_int == 404


def test_lists_are_filtered_sorted_and_paged(service):
    eight(service)
    for n in range(5):
        got(service, name=f'n{n}', consumer={'type': 'process', 'id': f'{n % 2}'})
    service.api.delete(f'{PATH}/n4')

    def names(query):
        answer = service.api.get(f'{PATH}?{query}')
        assert answer.status_int == 200, answer.text
        return [each['name'] for each in answer.json['allocations']]

    assert names('state=active&sort_key=name&sort_dir=desc') == ['n3', 'n2', 'n1', 'n0']
    assert names('consumer_id=1&consumer_type=process') == ['n1', 'n3']
    assert names('name=n2') == ['n2']
    first = service.api.get(f'{PATH}?limit=2').json
    marker = first['allocations'][-1]['uuid']
    assert first['allocations_links'][0]['href'].endswith(f'limit=2&marker={marker}')
    assert names(f'limit=9&marker={marker}') == ['n2', 'n3', 'n4']
    for bad in 'state=broken', 'colour=red', 'sort_key=accelerators', 'limit=-1':
        assert service.api.get(f'{PATH}?{bad}').status_int == 400


HUGE = {'resources': {'CUSTOM_NPU': 1001}}
#: Invalid bodies, and a part of each error.
BAD = [
    ({}, 'profile or groups'),
    ([], 'body'),
    ('text', 'body'),
    ({'profile': 'a', 'groups': [NPU]}, 'profile'),
    ({'profile': 1}, 'profile'),
    ({'profile': ''}, 'profile'),
    ({'profile': ['a']}, 'profile'),
    ({'profile': 'a\0b'}, 'NUL'),
    ({'profile': '\ud800'}, 'JSON'),
    ({'groups': []}, 'groups'),
    ({'groups': {}}, 'groups'),
    ({'groups': [{}]}, 'resources'),
    ({'groups': [[NPU]]}, 'groups'),
    ({'groups': [{'resources': {}}]}, 'resources'),
    ({'groups': [{'resources': {'CUSTOM_NPU': 0}}]}, 'CUSTOM_NPU'),
    ({'groups': [{'resources': {'CUSTOM_NPU': -1}}]}, 'CUSTOM_NPU'),
    ({'groups': [{'resources': {'CUSTOM_NPU': True}}]}, 'CUSTOM_NPU'),
    ({'groups': [{'resources': {'CUSTOM_NPU': '1'}}]}, 'CUSTOM_NPU'),
    ({'groups': [{'resources': {'CUSTOM_NPU': 1.5}}]}, 'CUSTOM_NPU'),
    ({'groups': [{'resources': {'CUSTOM_NPU': 10**30}}]}, 'CUSTOM_NPU'),
    ({'groups': [HUGE]}, 'CUSTOM_NPU'),
    ({'groups': [{'resources': {'CUSTOM_A': 600, 'CUSTOM_B': 600}}]}, '1000'),
    ({'groups': [{'resources': {'CUSTOM_A': 1000}}, NPU]}, '1000'),
    ({'groups': [{'resources': {'npu': 1}}]}, 'npu'),
    ({'groups': [{'resources': {'': 1}}]}, 'groups[0]'),
    ({'groups': [{'resources': {"CUSTOM_'; DROP TABLE hosts": 1}}]}, 'groups[0]'),
    ({'groups': [NPU | {'traits': {'CUSTOM_A': 'wanted'}}]}, 'CUSTOM_A'),
    ({'groups': [NPU | {'traits': {'a': 'required'}}]}, 'trait:a'),
    ({'groups': [NPU | {'traits': ['CUSTOM_A']}]}, 'traits'),
    ({'groups': [NPU | {'count': 2}]}, 'count'),
    ({'groups': [NPU] * 17}, 'groups'),
    ({'groups': [NPU], 'alternatives': [NPU]}, 'alternatives'),
    ({'groups': [NPU], 'alternatives': [[HUGE]]}, 'alternatives'),
    ({'groups': [NPU], 'alternatives': [[]]}, 'alternatives'),
    ({'groups': [NPU], 'alternatives': [[NPU]] * 9}, 'alternatives'),
    ({'groups': [NPU], 'same_host': 'true'}, 'same_host'),
    ({'groups': [NPU], 'same_host': None}, 'same_host'),
    ({'groups': [NPU], 'same_numa': 'always'}, 'same_numa'),
    ({'groups': [NPU], 'same_numa': ['require']}, 'same_numa'),
    ({'groups': [NPU], 'link': 'always'}, 'link'),
    ({'groups': [NPU], 'link': ['require']}, 'link'),
    ({'groups': [NPU], 'link': True}, 'link'),
    ({'groups': [NPU], 'link': None}, 'link'),
    ({'groups': [NPU], 'queue': 1}, 'queue'),
    ({'groups': [NPU], 'queue': 'true'}, 'queue'),
    ({'groups': [NPU], 'queue': True, 'priority': 101}, 'priority'),
    ({'groups': [NPU], 'queue': True, 'priority': -101}, 'priority'),
    ({'groups': [NPU], 'queue': True, 'priority': '1'}, 'priority'),
    ({'groups': [NPU], 'queue': True, 'priority': True}, 'priority'),
    ({'groups': [NPU], 'queue': True, 'priority': 0.5}, 'priority'),
    ({'groups': [NPU], 'hosts': []}, 'hosts'),
    ({'groups': [NPU], 'hosts': 'a'}, 'hosts'),
    ({'groups': [NPU], 'hosts': [1]}, 'hosts'),
    ({'groups': [NPU], 'hosts': ['a'] * 1001}, 'hosts'),
    ({'groups': [NPU], 'name': ''}, 'name'),
    ({'groups': [NPU], 'name': 'a b'}, 'name'),
    ({'groups': [NPU], 'name': 'a' * 256}, 'name'),
    ({'groups': [NPU], 'name': 'a\n'}, 'name'),
    ({'groups': [NPU], 'name': support.INSTANCE}, 'name'),
    ({'groups': [NPU], 'consumer': 'me'}, 'consumer'),
    ({'groups': [NPU], 'consumer': {'type': 'a'}}, 'consumer'),
    ({'groups': [NPU], 'consumer': {'type': 'a', 'id': 1}}, 'consumer'),
    ({'groups': [NPU], 'consumer': {'type': 'a', 'id': 'b' * 256}}, 'consumer'),
    ({'groups': [NPU], 'consumer': {'type': 'a', 'id': 'b', 'more': 1}}, 'consumer'),
    ({'groups': [NPU], 'lease': 0}, 'lease'),
    ({'groups': [NPU], 'lease': '60'}, 'lease'),
    ({'groups': [NPU], 'lease': True}, 'lease'),
    ({'groups': [NPU], 'lease': 10**12}, 'lease'),
    ({'groups': [NPU], 'lease': None}, 'lease'),
    ({'groups': [NPU], 'nested': {'a': [[[[]]]]}}, 'nested'),
]


@pytest.mark.parametrize(('body', 'named'), BAD, ids=lambda value: str(value)[:60])
def test_bad_input_is_refused_and_named(empty, body, named):
    assert named in refused(empty.api.post(PATH, body), 400)
    assert empty.rows(model.Allocation) == []


@pytest.mark.parametrize('body', [{}, [], {'lease': 0}, {'lease': '1'}, {'name': 'a'},
                                  {'lease': 60, 'name': 'a'}, {'lease': 10**12}])  # fmt: skip
def test_a_bad_renewal_is_refused(empty, body):
    assert refused(empty.api.patch(f'{PATH}/{support.INSTANCE}', body), 400)


@pytest.fixture(scope='module')
def empty(databases):
    """An empty service, for tests of refusals."""
    with databases.empty() as url:
        made = support.Service(url)
        yield made
        made.stop()


def test_bodies_of_other_kinds(empty):
    assert refused(empty.api.post(PATH, b'{'), 400)
    assert refused(empty.api.post(PATH), 400)
    assert refused(empty.api.request('POST', PATH, b'a', **{'Content-Type': 'text/plain'}), 415)
    assert refused(empty.api.post(PATH, b'[' * 50_000), 400)


def test_a_profile_with_too_many_or_no_accelerators(service):
    service.profile('huge', CUSTOM_NPU=2**31 - 1)
    service.profile('none', CUSTOM_NPU=1)
    change(service, model.DeviceProfile, groups=[{'resources:CUSTOM_NPU': '0'}])
    assert '1000' in refused(allocate(service, {'profile': 'none'}), 400)
    change(service, model.DeviceProfile, groups=[{'resources:CUSTOM_NPU': str(2**31 - 1)}])
    assert '1000' in refused(allocate(service, {'profile': 'huge'}), 400)
    assert refused(service.api.post('/v2/device_profiles/huge/check'), 400)


def test_a_thousand_at_once(service):
    cards = [npu(f'{n:02x}', handles=8) for n in range(125)]
    service.report(*cards)
    made = got(service, 1000)
    assert len({each['uuid'] for each in made['accelerators']}) == 1000
    assert service.api.delete(f'{PATH}/{made["uuid"]}').status_int == 204
    assert held(service) == set()

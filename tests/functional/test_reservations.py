# SPDX-License-Identifier: Apache-2.0
"""Reservations: allocations that start at a time."""

import collections
import datetime
import unittest.mock
import uuid

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite.conductor import auditing
from cyborg_lite.conductor import drawing
from cyborg_lite.conductor import releasing
from cyborg_lite.conductor import reserving
from cyborg_lite.conductor import taking
from cyborg_lite.db import engine
from cyborg_lite.db import exclusion
from cyborg_lite.db import promises
from cyborg_lite.model import base
from tests import support

PATH = '/v2/allocations'
HOUR = 3600
#: In whole seconds, as times are shown. The hosts of tests are up for two and a half hours.
NOW = datetime.datetime(2026, 11, 27, 18)


class Clock:
    """The time for all code, which stands still until a test moves it."""

    def __init__(self):
        self.now = NOW

    def utcnow(self):
        return self.now

    def advance(self, seconds):
        self.now += datetime.timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timeutils, 'utcnow', made.utcnow)
    return made


def npu(bus, numa_node=0, **more):
    facts = {'resource_class': 'CUSTOM_NPU', 'traits': ['CUSTOM_A'], 'numa_node': numa_node}
    return support.card(bus, **(facts | more))


def npus(service, number, host='host-1'):
    service.report(*(npu(f'{n:02x}', n // 4) for n in range(number)), host=host)


def at(seconds):
    return base.iso(NOW + datetime.timedelta(seconds=seconds))


def body(amount=1, **more):
    return {'groups': [{'resources': {'CUSTOM_NPU': amount}}]} | more


def reserve(service, amount=1, start=HOUR, lease=HOUR, **more):
    answer = service.api.post(PATH, body(amount, starts_at=at(start), lease=lease, **more))
    assert answer.status_int == 201, answer.text
    return answer.json


def allocate(service, amount=1, **more):
    answer = service.api.post(PATH, body(amount, **more))
    assert answer.status_int == 201, answer.text
    return answer.json


def refused(service, status=409, **asked):
    answer = service.api.post(PATH, body(**asked))
    assert answer.status_int == status, answer.text
    return support.fault(answer)


def show(service, id):
    return service.api.get(f'{PATH}/{id}').json


def release(service, id):
    assert service.api.delete(f'{PATH}/{id}').status_int == 204


def serve(service):
    service.manager._serve_queue({'late': True})


def heal(service):
    service.manager.healer.heal()


def limit(service, project, most):
    answer = service.api.patch(f'/v2/quotas/{project}', {'limits': {'CUSTOM_NPU': most}})
    assert answer.status_int == 200, answer.text


def held(allocation):
    return {each['uuid'] for each in allocation['accelerators']}


def test_a_reservation_starts_and_ends_in_time(service, clock):
    npus(service, 4)
    made = reserve(service, 4, name='night', lease=HOUR)
    assert (made['state'], made['accelerators'], made['reason']) == ('reserved', [], None)
    assert (made['starts_at'], made['lease_ends_at']) == (at(HOUR), at(2 * HOUR))
    clock.advance(HOUR - 1)
    serve(service)
    assert show(service, 'night')['state'] == 'reserved'
    clock.advance(1)
    serve(service)
    found = show(service, 'night')
    assert (found['state'], len(found['accelerators'])) == ('active', 4)
    assert (found['claim_by'], found['lease_ends_at']) == (at(HOUR + 900), at(2 * HOUR))
    assert not service.rows(model.Promise)
    [usage] = {row.allocation_uuid for row in service.rows(model.ARQ)}
    assert usage == made['uuid']
    deliveries = service.api.get(f'{PATH}/night/deliveries').json['deliveries']
    assert len(deliveries) == 1


def test_the_queue_looks_at_the_moment_of_the_start(service, clock):
    npus(service, 1)
    reserve(service, start=30)
    [message] = [each for each in service.rows(model.Message) if each.key == 'start']
    assert message.due_at == NOW + datetime.timedelta(seconds=30)
    with service.database.writer() as session:
        session.execute(sa.delete(model.Message))
    # A later one is looked for again.
    heal(service)
    [message] = [each for each in service.rows(model.Message) if each.key == 'start']
    assert message.due_at == NOW + datetime.timedelta(seconds=30)
    clock.advance(30)
    support.send(service.manager.outbox)
    [found] = service.rows(model.Allocation)
    assert found.state == 'active'


def test_an_overlap_is_refused_and_names_what_clashes(service, clock):
    npus(service, 4)
    mine = reserve(service, 3, name='first')
    said = refused(service, amount=2, starts_at=at(2 * HOUR - 1), lease=10)
    assert f'reservation {mine["uuid"]} first (3 from {at(HOUR)} until {at(2 * HOUR)})' in said
    # Side by side, before, and after.
    reserve(service, 1)
    reserve(service, 4, start=60, lease=HOUR - 60)
    reserve(service, 4, start=2 * HOUR)


def test_a_lease_that_ends_later_clashes(service, clock):
    npus(service, 2)
    lease = allocate(service, 1, lease=HOUR + 1)
    said = refused(service, amount=2, starts_at=at(HOUR), lease=10)
    assert f'allocation {lease["uuid"]} (1 until {at(HOUR + 1)})' in said
    reserve(service, 2, start=HOUR + 1)


def test_other_projects_learn_no_name(service, clock):
    npus(service, 1)
    reserve(service, name='secret')
    with service.database.writer() as session:
        session.execute(sa.update(model.Allocation).values(project_id='other'))
    assert 'secret' not in refused(service, starts_at=at(HOUR), lease=10)


def test_more_than_there_is_cannot_be_reserved(service, clock):
    npus(service, 2)
    said = refused(service, amount=3, starts_at=at(HOUR), lease=10)
    assert 'even if all were free there would be 2' in said


def test_a_lease_that_ends_before_may_have_what_is_reserved(service, clock):
    npus(service, 2)
    mine = reserve(service, 1)
    allocate(service, 1)
    said = refused(service, lease=HOUR)
    assert f'kept for reservation {mine["uuid"]} from {at(HOUR)}' in said
    assert mine['uuid'] in refused(service)
    allocate(service, 1, lease=HOUR - 2)


def test_what_waits_gets_nothing_that_a_reservation_needs(service, clock):
    npus(service, 2)
    other = allocate(service, 2, lease=60)
    mine = reserve(service, 1)
    endless = allocate(service, 2, queue=True)
    assert mine['uuid'] in endless['reason'] or 'free' in endless['reason']
    short = allocate(service, 1, queue=True, lease=60)
    release(service, other['uuid'])
    serve(service)
    assert show(service, endless['uuid'])['state'] == 'queued'
    # What waits reserves the other one; a short lease does not delay it on the kept one.
    assert show(service, short['uuid'])['state'] == 'active'
    clock.advance(HOUR)
    serve(service)
    assert show(service, mine['uuid'])['state'] == 'active'
    clock.advance(HOUR)
    heal(service)
    serve(service)
    assert show(service, endless['uuid'])['state'] == 'active'


def test_explain_counts_what_is_reserved(service, clock):
    npus(service, 2)
    reserve(service, 2)
    answer = service.api.post(f'{PATH}?dry_run=true', body(1)).json
    [alternative] = answer['alternatives']
    assert (answer['fits'], alternative['requests'][0]['removed']['reserved']) == (False, 2)
    short = service.api.post(f'{PATH}?dry_run=true', body(1, lease=60)).json
    assert short['fits']


def test_a_dry_run_of_a_reservation_reserves_nothing(service, clock):
    npus(service, 1)
    asked = body(1, starts_at=at(HOUR), lease=60)
    assert service.api.post(f'{PATH}?dry_run=true', asked).json['fits']
    mine = reserve(service, 1)
    answer = service.api.post(f'{PATH}?dry_run=true', asked).json
    assert not answer['fits']
    assert mine['uuid'] in answer['alternatives'][0]['reason']
    assert len(service.rows(model.Allocation)) == 1


def test_a_holder_without_an_end_is_warned_and_may_stay(service, clock):
    npus(service, 2)
    endless = allocate(service, 2)
    assert endless['reason'] is None
    mine = reserve(service, 2)
    assert f'reserved from {at(HOUR)}' in show(service, endless['uuid'])['reason']
    clock.advance(HOUR)
    serve(service)
    found = show(service, mine['uuid'])
    assert (found['state'], 'waits' in found['reason']) == ('reserved', True)
    # It comes before all that waits.
    other = allocate(service, 1, queue=True)
    release(service, endless['uuid'])
    serve(service)
    assert show(service, mine['uuid'])['state'] == 'active'
    assert show(service, mine['uuid'])['reason'] is None
    assert show(service, other['uuid'])['state'] == 'queued'


def test_it_starts_when_something_comes_free(service, clock):
    npus(service, 1)
    endless = allocate(service, 1)
    mine = reserve(service, 1)
    clock.advance(HOUR)
    serve(service)
    with service.database.writer() as session:
        session.execute(sa.delete(model.Message))
    with unittest.mock.patch.object(service.manager.outbox, '_wake'):
        release(service, endless['uuid'])
    [message] = [each for each in service.rows(model.Message) if each.kind == 'queue']
    assert message.payload == {'late': True}
    support.send(service.manager.outbox)
    assert show(service, mine['uuid'])['state'] == 'active'


def test_it_starts_when_a_request_that_its_quota_counts_is_deleted(service, clock):
    """Which holds nothing: nothing comes free by it."""
    npus(service, 1)
    mine = reserve(service, 1)
    service.profile(CUSTOM_NPU=1)
    [arq] = service.arqs()
    limit(service, mine['project_id'], 1)
    clock.advance(HOUR)
    serve(service)
    assert show(service, mine['uuid'])['state'] == 'reserved'
    with service.database.writer() as session:
        session.execute(sa.delete(model.Message))
    with unittest.mock.patch.object(service.manager.outbox, '_wake'):
        assert service.api.delete(f'/v2/accelerator_requests?arqs={arq}').status_int == 204
    support.send(service.manager.outbox)
    assert show(service, mine['uuid'])['state'] == 'active'


def test_another_form_of_a_reserved_card_is_kept(service, clock):
    card = npu('c1')
    card.deployables[0].attach_handles = [
        model.AttachHandle(
            attach_type='PCI',
            attach_info={'domain': '0000', 'bus': 'c1', 'device': '00', 'function': function},
            form=form,
        )
        for function, form in (('0', 'whole'), ('1', 'vf'))
    ]
    service.report(card)
    mine = reserve(service, 1)
    assert mine['uuid'] in refused(service)
    assert mine['uuid'] in refused(service, starts_at=at(HOUR), lease=60)
    reserve(service, 1, start=60, lease=60)


def test_what_holders_may_keep_is_reserved_last(service, clock):
    npus(service, 8)
    endless = allocate(service, 4)
    reserve(service, 4)
    assert show(service, endless['uuid'])['reason'] is None


def test_others_are_taken_if_a_holder_stays(service, clock):
    npus(service, 2)
    endless = allocate(service, 1)
    short = allocate(service, 1, lease=HOUR + 60)
    mine = reserve(service, 1)
    release(service, short['uuid'])
    clock.advance(HOUR)
    serve(service)
    found = show(service, mine['uuid'])
    assert found['state'] == 'active'
    assert not held(found) & held(endless)


@pytest.mark.parametrize('by', ['uuid', 'night'])
def test_one_id_cancels_all(service, clock, by):
    npus(service, 4)
    mine = reserve(service, 4, name='night')
    release(service, mine['uuid'] if by == 'uuid' else by)
    found = show(service, mine['uuid'])
    assert (found['state'], found['reason']) == ('released', 'It was deleted.')
    assert not service.rows(model.Promise)
    allocate(service, 4)
    reserve(service, 0 + 4, name='night', start=HOUR)


def test_a_no_show_expires(service, clock):
    npus(service, 1)
    mine = reserve(service, 1)
    clock.advance(HOUR)
    serve(service)
    clock.advance(899)
    heal(service)
    assert show(service, mine['uuid'])['state'] == 'active'
    clock.advance(1)
    heal(service)
    found = show(service, mine['uuid'])
    assert (found['state'], found['reason']) == ('released', 'Nobody used it in time.')
    assert not service.rows(model.ARQ)


def test_a_reservation_of_another_consumer_stays(service, clock):
    npus(service, 1)
    mine = reserve(service, 1, consumer={'type': 'job', 'id': '7'})
    clock.advance(HOUR)
    serve(service)
    assert show(service, mine['uuid'])['claim_by'] is None
    clock.advance(1000)
    heal(service)
    assert show(service, mine['uuid'])['state'] == 'active'


def test_one_that_could_not_start_ends(service, clock):
    npus(service, 1)
    allocate(service, 1)
    mine = reserve(service, 1)
    clock.advance(2 * HOUR)
    heal(service)
    found = show(service, mine['uuid'])
    assert (found['state'], found['reason']) == ('released', 'It could not start before its end.')


def test_a_lease_is_not_renewed_into_a_reservation(service, clock):
    npus(service, 1)
    lease = allocate(service, 1, lease=60)
    mine = reserve(service, 1)
    answer = service.api.patch(f'{PATH}/{lease["uuid"]}', {'lease': HOUR + 1})
    assert answer.status_int == 409
    assert at(HOUR) in support.fault(answer)
    assert service.api.patch(f'{PATH}/{lease["uuid"]}', {'lease': HOUR}).status_int == 200
    answer = service.api.patch(f'{PATH}/{mine["uuid"]}', {'lease': HOUR})
    assert 'has not started' in support.fault(answer)


@pytest.mark.parametrize('harm', ['gone', 'disabled'])
def test_others_are_kept_in_place_of_what_fails(service, clock, harm):
    npus(service, 2)
    mine = reserve(service, 1)
    [promise] = service.rows(model.Promise)
    devices = {each.uuid: each for each in service.rows(model.Device)}
    bad = devices[promise.device_uuid]
    if harm == 'gone':
        [good] = [each for each in devices.values() if each.uuid != bad.uuid]
        for _ in range(4):
            service.report(npu(good.address[5:7]))
    else:
        with service.database.writer() as session:
            session.execute(
                sa.update(model.Device)
                .where(model.Device.uuid == bad.uuid)
                .values(status='disabled')
            )
    heal(service)
    [promise] = service.rows(model.Promise)
    assert (promise.device_uuid in devices, promise.device_uuid != bad.uuid) == (True, True)
    assert mine['uuid'] in refused(service)
    clock.advance(HOUR)
    serve(service)
    assert show(service, mine['uuid'])['state'] == 'active'


def test_nova_and_placement_get_nothing_that_is_kept(service, clock):
    service.report(npu('01'))
    service.profile(CUSTOM_NPU=1)
    reserve(service, 1)
    [part] = service.rows(model.Deployable)
    [arq] = service.arqs()
    answer = service.api.bind(arq, provider=part.rp_uuid)
    assert 'free attach handle' in support.fault(answer)
    with service.database.reader() as session:
        parts = session.scalars(sa.select(model.Deployable)).all()
        [handle] = service.rows(model.AttachHandle)
        assert exclusion.allocated(session, parts) == {handle.id}


def test_quota_counts_what_is_reserved_for_that_time(service, clock):
    npus(service, 8)
    project = allocate(service, 1, lease=60)['project_id']
    limit(service, project, 4)
    reserve(service, 3)
    said = refused(service, 403, amount=2, starts_at=at(HOUR), lease=60)
    assert 'CUSTOM_NPU' in said
    reserve(service, 4, start=2 * HOUR)


def test_a_project_has_a_limited_number(service, clock, monkeypatch):
    monkeypatch.setattr(reserving, 'MOST', 1)
    npus(service, 2)
    reserve(service)
    assert 'expected fewer than 1' in refused(service, starts_at=at(HOUR), lease=60)


def test_a_reservation_over_quota_waits(service, clock):
    npus(service, 3)
    mine = reserve(service, 2)
    running = allocate(service, 1)
    project = mine['project_id']
    limit(service, project, 2)
    clock.advance(HOUR)
    serve(service)
    found = show(service, mine['uuid'])
    assert (found['state'], 'CUSTOM_NPU' in found['reason']) == ('reserved', True)
    assert len(service.rows(model.Promise)) == 2
    release(service, running['uuid'])
    serve(service)
    assert show(service, mine['uuid'])['state'] == 'active'


@pytest.mark.parametrize(
    ('asked', 'said'),
    [
        ({'starts_at': 'tomorrow', 'lease': 60}, 'Invalid starts_at: expected a time in ISO'),
        ({'starts_at': '2026-11-27T17:59:59', 'lease': 60}, 'expected a time to come'),
        ({'starts_at': '2028-11-27', 'lease': 60}, 'expected a time to come'),
        ({'starts_at': '2026-11-28'}, 'Invalid lease'),
        ({'starts_at': '2026-11-28', 'lease': 60, 'queue': True}, 'Invalid queue'),
    ],
)
def test_bad_requests_name_the_field(service, clock, asked, said):
    npus(service, 1)
    assert said in refused(service, 400, **asked)


def test_a_zone_is_understood(service, clock):
    npus(service, 1)
    asked = body(1, starts_at='2026-11-28T09:00:00+08:00', lease=60)
    assert service.api.post(PATH, asked).json['starts_at'] == '2026-11-28T01:00:00+00:00'


def test_the_same_request_reserves_once(service, clock):
    npus(service, 2)
    asked = body(1, starts_at=at(HOUR), lease=60)
    key = {'Idempotency-Key': 'k'}
    first, second = (service.api.post(PATH, asked, **key).json for _ in range(2))
    assert first['uuid'] == second['uuid']
    assert len(service.rows(model.Promise)) == 1


def draw(service, reservation, count=None, project=None, number=1):
    """Lease for a process from a reservation, as a conductor does for an agent."""
    [row] = [each for each in service.rows(model.Allocation) if each.uuid == reservation]
    ctxt = context.RequestContext(project_id=project or row.project_id, overwrite=False)
    request = {'consumer': {'type': model.Allocation.PROCESS, 'id': f'host-1/b/{number}/0/0/u/c'}}
    with service.manager.outbox.session() as session:
        child = str(uuid.UUID(int=number))
        return drawing.draw(session, ctxt, reservation, count, request, 'host-1', child)


def test_processes_lease_from_a_reservation(service, clock):
    npus(service, 4)
    mine = reserve(service, 4)
    with pytest.raises(Exception, match='It starts at'):
        draw(service, mine['uuid'])
    clock.advance(HOUR)
    serve(service)
    first = show(service, draw(service, mine['uuid'], 3, number=1))
    second = show(service, draw(service, mine['uuid'], number=2))
    assert (len(held(first)), len(held(second))) == (3, 1)
    assert held(first) | held(second) == held(show(service, mine['uuid']))
    assert not held(first) & held(second)
    assert first['reservation_uuid'] == mine['uuid']
    with pytest.raises(Exception, match='0 are left'):
        draw(service, mine['uuid'], number=3)
    # It was used: it is no no-show.
    clock.advance(1000)
    heal(service)
    assert show(service, mine['uuid'])['state'] == 'active'
    # What a process gives back is there for the next one, and held by nobody else.
    release(service, first['uuid'])
    assert len(held(show(service, draw(service, mine['uuid'], number=4)))) == 3
    refused(service)
    release(service, mine['uuid'])
    states = {each.state for each in service.rows(model.Allocation)}
    assert states == {'released'}
    allocate(service, 4)


def test_another_project_leases_nothing_from_it(service, clock):
    npus(service, 1)
    mine = reserve(service, 1)
    clock.advance(HOUR)
    serve(service)
    with pytest.raises(Exception, match='not found'):
        draw(service, mine['uuid'], project='other')


def test_an_audit_finds_nothing_wrong_with_it(service, clock):
    npus(service, 2)
    mine = reserve(service, 2)
    clock.advance(HOUR)
    serve(service)
    child = draw(service, mine['uuid'], 1)
    with service.database.reader() as session:
        assert not auditing._short(session)
        assert not auditing._left(session)
    with service.manager.outbox.session() as session:
        releasing.end_short(session, child)
    assert show(service, child)['state'] == 'active'


def test_16_callers_reserve_no_more_than_there_is(service, clock, race):
    npus(service, 8)
    asked = body(2, starts_at=at(HOUR), lease=HOUR)
    answers = race(*[lambda api: api.post(PATH, asked)] * 16)
    assert collections.Counter(each.status_int for each in answers) == {201: 4, 409: 12}
    promised = collections.Counter(each.accelerator_uuid for each in service.rows(model.Promise))
    assert set(promised.values()) == {1}
    assert len(promised) == 8


def test_what_is_read_before_the_lock_counts_no_more(service, clock):
    """Another reservation is made meanwhile."""
    npus(service, 2)
    lock, window = taking.lock, [NOW + datetime.timedelta(seconds=n * HOUR) for n in (1, 2)]

    def late(session, chosen):
        names = lock(session, chosen)
        promises.keep(session, 'other', [each.handle for each in chosen], *window)
        return names

    with unittest.mock.patch.object(taking, 'lock', late):
        reserve(service, 1)
    assert len({each.accelerator_uuid for each in service.rows(model.Promise)}) == 2


def test_reservations_and_leases_at_once_give_nothing_twice(service, clock, race):
    npus(service, 8)
    later = body(1, starts_at=at(HOUR), lease=HOUR)
    long = body(1, lease=2 * HOUR)
    answers = race(*[lambda api: api.post(PATH, later), lambda api: api.post(PATH, long)] * 8)
    made = [each for each in answers if each.status_int == 201]
    assert len(made) == 8
    assert {each.status_int for each in answers} == {201, 409}
    kept = {each.accelerator_uuid for each in service.rows(model.Promise)}
    leased = {mine for each in made for mine in held(each.json)}
    assert not kept & leased
    assert len(kept) + len(leased) == 8
    clock.advance(HOUR)
    serve(service)
    states = [each.state for each in service.rows(model.Allocation)]
    assert states == ['active'] * 8


def test_renewals_and_reservations_at_once_give_nothing_twice(service, clock, race):
    npus(service, 4)
    leases = [allocate(service, 1, lease=60)['uuid'] for _ in range(4)]
    later = body(1, starts_at=at(HOUR), lease=HOUR)
    answers = race(
        *(lambda api, id=id: api.patch(f'{PATH}/{id}', {'lease': 2 * HOUR}) for id in leases),
        *[lambda api: api.post(PATH, later)] * 4,
    )
    assert {each.status_int for each in answers} <= {200, 201, 409}
    assert sum(each.status_int < 300 for each in answers) == 4


def test_a_renewal_waits_for_a_reservation_in_progress(service, clock):
    """The hosts of what is renewed are locked first."""
    npus(service, 1)
    lease = allocate(service, 1, lease=60)['uuid']
    with service.statements(but='outbox') as made:
        assert service.api.patch(f'{PATH}/{lease}', {'lease': HOUR}).status_int == 200
    [first, *_] = [each for each in made if 'FROM hosts' in each and 'ORDER BY hosts.id' in each]
    later = [each for each in made if 'FROM promises' in each or 'promises.starts_at' in each]
    assert made.index(first) < made.index(later[0])


def test_conductors_start_a_reservation_once(service, clock, race):
    npus(service, 4)
    mine = reserve(service, 4)
    clock.advance(HOUR)
    race(*[lambda _: serve(service)] * 16)
    assert show(service, mine['uuid'])['state'] == 'active'
    assert len(service.rows(model.ARQ)) == 4


def test_a_reservation_takes_few_statements(service, clock):
    npus(service, 8)
    asked = body(4, starts_at=at(HOUR), lease=HOUR)
    with service.statements(but='outbox') as made:
        assert service.api.post(PATH, asked).status_int == 201
    assert len(made) <= 14, made


@pytest.mark.parametrize('by', ['profile', 'groups'])
@pytest.mark.parametrize('reason', ['overlap', 'quota', 'never'])
def test_a_refusal_is_explained_in_six_statements(service, clock, by, reason):
    npus(service, 8)
    mine = reserve(service, 6, hosts=['host-1'])
    if reason == 'quota':
        limit(service, mine['project_id'], 7)
    amount, status = {'overlap': (3, 409), 'quota': (2, 403), 'never': (9, 409)}[reason]
    service.profile(CUSTOM_NPU=amount)
    wanted = body(amount) if by == 'groups' else {'profile': 'profile-1'}
    with service.statements(but='outbox') as made:
        answer = service.api.post(PATH, wanted | {'starts_at': at(HOUR), 'lease': HOUR})
    assert answer.status_int == status, answer.text
    explanation = answer.json['errors'][0]['explanation']
    [told] = explanation['alternatives']
    assert (explanation['fits'], told['fits']) == (False, False)
    assert told['fits_if_all_were_free'] == (reason != 'never')
    assert told['reason'] in support.fault(answer)
    words = {'overlap': f'it overlaps with reservation {mine["uuid"]}',
             'quota': 'the limit is 7', 'never': 'even if all were free'}  # fmt: skip
    assert words[reason] in told['reason']
    [asked] = told['requests']
    assert (asked['amount'], asked['candidates']) == (amount, 8)
    assert asked['removed']['quota'] == (2 if reason == 'quota' else 0)
    sent = [each for each in made if not each.startswith('BEGIN')]
    # A server locks the host before it counts what is reserved.
    locks = reason == 'quota' and not engine.has_one_writer(service.database.engine)
    assert len(sent) <= 6 + locks, sent


def test_another_conductor_starts_what_one_has_reserved(database_url, clock):
    """All that has to be done is in the database: the first one has ended."""
    first = support.Service(database_url)
    npus(first, 2)
    mine = reserve(first, 2, start=30)
    first.stop()
    clock.advance(30)
    second = support.Service(database_url)
    try:
        support.send(second.manager.outbox)
        serve(second)
        assert show(second, mine['uuid'])['state'] == 'active'
    finally:
        second.stop()

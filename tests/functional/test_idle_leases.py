# SPDX-License-Identifier: Apache-2.0
"""Accelerators that are held and do no work."""

import datetime
import logging
import unittest.mock
import uuid as uuidlib

from oslo_utils import fixture
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.conductor import healing
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import idling
from tests import support

BEGAN = datetime.datetime(2026, 11, 10, 12, 0, 0)
AFTER = 1800

# Models refer to utcnow() itself: only oslo.utils can replace what it returns.
pytestmark = pytest.mark.filterwarnings('ignore:.*time.* is deprecated:DeprecationWarning')


@pytest.fixture
def clock():
    """A clock that stands still until a test advances it."""
    with fixture.TimeFixture(BEGAN) as made:
        yield made


def at(seconds):
    """So many seconds after the beginning."""
    return BEGAN + datetime.timedelta(seconds=seconds)


def shown(seconds):
    """The same, as the API shows it."""
    return f'{at(seconds).isoformat()}+00:00'


def npu(bus='3b', idle=None, used=None, **more):
    """A card that is idle since so many seconds after the beginning."""
    since = None if idle is None else at(idle)
    facts = {'type': 'AICHIP', 'resource_class': 'CUSTOM_NPU', 'idle_since': since, 'used': used}
    return support.card(bus, **(facts | more))


def report(service, *cards, **more):
    """Report as an agent that knows of idle cards."""
    service.report(*cards, **({'idle_after': AFTER} | more))


def allocate(service, amount=1, **more):
    groups = [{'resources': {'CUSTOM_NPU': amount}}]
    answer = service.api.post('/v2/allocations', {'groups': groups} | more)
    assert answer.status_int == 201, answer.text
    return answer.json['uuid']


def idle(service, query=''):
    """Since when each accelerator is idle, by the order of their cards."""
    found = service.api.get(f'/v2/accelerators?sort_key=address{query}').json['accelerators']
    for each in found:
        assert service.api.get(f'/v2/accelerators/{each["uuid"]}').json == each
    return [each['idle_since'] for each in found]


def test_a_held_accelerator_is_idle_since_its_device_is(clock, service):
    report(service, npu('3b'), npu('5e'))
    allocate(service, 2)
    clock.advance_time_seconds(100 + AFTER)
    report(service, npu('3b', idle=100), npu('5e'))
    assert idle(service) == [shown(100), None]
    clock.advance_time_seconds(60)
    report(service, npu('3b'), npu('5e'))
    assert idle(service) == [None, None]


def test_nobody_is_idle_before_the_accelerator_was_theirs(clock, service):
    """A card is idle before it is given out; the job needs time until it computes."""
    clock.advance_time_seconds(AFTER)
    report(service, npu(idle=0))
    assert idle(service) == [None]
    uuid = allocate(service)
    assert idle(service) == [None]
    clock.advance_time_seconds(AFTER - 1)
    assert idle(service) == [None]
    clock.advance_time_seconds(1)
    assert idle(service) == [shown(AFTER)]
    service.api.delete(f'/v2/allocations/{uuid}')
    assert idle(service) == [None]


def test_what_an_instance_holds_is_idle(clock, service):
    report(service, npu())
    service.profile(CUSTOM_NPU=1)
    [part] = service.rows(model.Deployable)
    [arq] = service.arqs()
    service.api.bind(arq, provider=part.rp_uuid)
    clock.advance_time_seconds(AFTER)
    report(service, npu(idle=0))
    assert idle(service) == [shown(0)]


def test_an_agent_of_the_release_before_does_not_say(clock, service):
    service.report(npu())
    allocate(service)
    clock.advance_time_seconds(AFTER)
    service.report(npu())
    assert idle(service) == [None]


@pytest.mark.parametrize('state', ['absent', 'silent', 'failed'])
def test_a_card_that_nobody_looks_at_is_not_idle(clock, service, state):
    report(service, npu('3b'), npu('5e'))
    allocate(service, 2)
    clock.advance_time_seconds(AFTER)
    report(service, npu('3b', idle=0), npu('5e'))
    assert idle(service) == [shown(0), None]
    if state == 'silent':
        clock.advance_time_seconds(3 * 3600)
        with service.database.writer() as session:
            healing.notice_silence(session)
    elif state == 'absent':
        report(service, npu('5e'))
    else:
        failed = {'state': 'degraded', 'reason': 'discover() failed', 'devices': 0}
        report(service, drivers={'fake': failed})
    assert idle(service) == [None, None]


def test_a_host_with_a_fast_clock_is_not_idle_in_the_future(clock, service):
    report(service, npu())
    allocate(service)
    report(service, npu(idle=7200))
    assert [device.idle_since for device in service.rows(model.Device)] == [BEGAN]
    clock.advance_time_seconds(AFTER)
    assert idle(service) == [shown(0)]


@pytest.mark.parametrize(
    'told', [7, 'yesterday', '', [], True, '0001-01-01T00:00:00+14:00', '9999-12-31T23:59:59-14:00']
)
def test_an_invalid_time_does_not_drop_the_card(service, told):
    report(service, npu())
    facts = npu().facts() | {'idle_since': told, 'used': False}
    report(service, devices=[facts], digest='other')
    [device] = service.rows(model.Device)
    assert (device.idle_since, device.used, device.absences) == (None, None, 0)


def test_use_is_known_of_idle_cards_only(clock, service):
    for number, (idle_, told, known) in enumerate(
        [(0, True, True), (0, False, False), (0, None, None), (None, True, None), (0, 'yes', None)]
    ):
        report(service, npu(idle=idle_, used=told), digest=str(number))
        [device] = service.rows(model.Device)
        assert (device.idle_since is None, device.used) == (idle_ is None, known)


def test_an_unchanged_report_of_an_idle_card_is_a_heartbeat(clock, service):
    report(service, npu())
    for _ in range(2):
        report(service, npu(idle=0, used=False))
    clock.advance_time_seconds(20)
    with service.statements() as seen:
        report(service, npu(idle=0, used=False))
    assert len(seen) <= 2, seen


# What the operator has chosen

GRACE = 600


def heal(service):
    service.manager.healer.heal()


def choose(service, action):
    """What happens to idle leases."""
    service.embedded.conf.set_override('idle_leases', action, 'conductor')
    service.embedded.conf.set_override('idle_grace', GRACE, 'conductor')


def look(service, uuid):
    """The state, the time without work and the reason of an allocation."""
    row = service.api.get(f'/v2/allocations/{uuid}').json
    assert row in service.api.get('/v2/allocations').json['allocations']
    return row['state'], row['idle_since'], row['reason']


@pytest.fixture
def leased(clock, service):
    """An allocation of two idle cards; a function reports them anew after so many seconds."""
    report(service, npu('3b'), npu('5e'))
    uuid = allocate(service, 2, lease=30 * 24 * 3600)

    def later(seconds, first=0, second=0, used=False):
        clock.advance_time_seconds(seconds)
        report(service, npu('3b', idle=first, used=used), npu('5e', idle=second, used=False))
        heal(service)
        return look(service, uuid)

    later.uuid = uuid
    return later


def messages(caplog):
    return [each.getMessage() for each in caplog.records if 'no work' in each.getMessage()]


WORDS = f'It has done no work since {shown(0)}'


def test_nothing_happens_by_default(service, leased, caplog):
    caplog.set_level(logging.INFO)
    assert leased(AFTER - 1) == ('active', None, None)
    assert leased(1) == ('active', shown(0), None)
    assert leased(30 * 3600) == ('active', shown(0), None)
    assert messages(caplog) == []


def test_an_allocation_is_idle_if_all_that_it_holds_is(service, leased):
    choose(service, 'release')
    assert leased(AFTER, second=None) == ('active', None, None)
    assert leased(AFTER, second=None) == ('active', None, None)
    assert leased(20, second=AFTER)[1] == shown(AFTER)
    assert leased(20, second=None) == ('active', None, None)


def test_a_holder_is_told_once_of_each_time_without_work(service, leased, caplog):
    caplog.set_level(logging.INFO)
    choose(service, 'tell')
    told = f'Allocation {leased.uuid} has done no work since'
    for _ in range(3):
        assert leased(AFTER) == ('active', shown(0), f'{WORDS}.')
    assert messages(caplog) == [f'{told} {shown(0)}']
    assert leased(20, first=None) == ('active', None, None)
    assert leased(AFTER, first=5420)[:2] == ('active', shown(5420))
    assert messages(caplog) == [f'{told} {shown(0)}', f'{told} {shown(5420)}']
    assert leased(AFTER, first=5420)[0] == 'active'
    assert len(messages(caplog)) == 2


def test_work_that_no_healer_has_seen_ends_the_time(clock, service, leased, caplog):
    """All conductors were away meanwhile."""
    caplog.set_level(logging.INFO)
    choose(service, 'release')
    leased(AFTER)
    clock.advance_time_seconds(GRACE)
    assert leased(AFTER, second=AFTER + 60)[:2] == ('active', shown(AFTER + 60))
    assert len(messages(caplog)) == 2


def test_an_idle_allocation_is_released_after_a_grace(service, leased, caplog):
    caplog.set_level(logging.INFO)
    choose(service, 'release')
    until = f'is released at {shown(AFTER + GRACE)} unless it is used'
    assert leased(AFTER) == ('active', shown(0), f'{WORDS}, and {until}.')
    assert leased(GRACE - 1)[0] == 'active'
    [handle] = {each['state'] for each in accelerators(service)}
    assert handle == 'held'
    assert leased(1) == ('released', None, f'It had done no work since {shown(0)}.')
    assert {each['state'] for each in accelerators(service)} == {'free'}
    heal(service)
    assert messages(caplog) == [
        f'Allocation {leased.uuid} has done no work since {shown(0)}: it {until}',
        f'Allocation {leased.uuid} was released: it had done no work since {shown(0)}',
    ]


def accelerators(service):
    return service.api.get('/v2/accelerators').json['accelerators']


@pytest.mark.parametrize('used', [True, None])
def test_nothing_is_freed_while_a_process_may_have_it_open(service, leased, used):
    """Also where that cannot be known: utilization alone proves nothing."""
    choose(service, 'release')
    assert leased(AFTER, used=used)[:2] == ('active', shown(0))
    assert leased(10 * GRACE, used=used)[:2] == ('active', shown(0))
    assert leased(1, used=False)[0] == 'released'


def test_a_grace_that_was_told_stays(service, leased):
    choose(service, 'release')
    told = leased(AFTER)[2]
    assert shown(AFTER + GRACE) in told
    service.embedded.conf.set_override('idle_grace', 1, 'conductor')
    assert leased(GRACE - 1)[2] == told
    assert leased(1)[0] == 'released'


def test_an_operator_may_choose_anew(service, leased):
    choose(service, 'release')
    leased(AFTER)
    choose(service, 'tell')
    assert leased(GRACE) == ('active', shown(0), f'{WORDS}.')
    choose(service, 'nothing')
    assert leased(GRACE) == ('active', shown(0), None)


def test_a_renewal_begins_the_grace_anew(service, leased, caplog):
    caplog.set_level(logging.INFO)
    choose(service, 'release')
    leased(AFTER)
    answer = service.api.patch(f'/v2/allocations/{leased.uuid}', {'lease': 24 * 3600})
    assert answer.status_int == 200
    until = f'{WORDS}, and is released at {shown(AFTER + 2 * GRACE)} unless it is used.'
    assert leased(GRACE) == ('active', shown(0), until)
    assert len(messages(caplog)) == 1
    assert leased(GRACE)[0] == 'released'


@pytest.mark.parametrize('event', ['busy', 'used', 'renewed', 'released'])
def test_what_comes_between_keeps_it(clock, service, leased, event):
    """After it was due, and before its host is locked."""
    choose(service, 'release')
    leased(AFTER)
    clock.advance_time_seconds(GRACE)
    lock = hosts.locked
    steps = {
        'busy': sa.update(model.Device).where(model.Device.address == '0000:5e:00.0').values(
            idle_since=None),
        'used': sa.update(model.Device).where(model.Device.address == '0000:5e:00.0').values(
            used=True),
        'renewed': sa.update(model.Allocation).values(idle_until=None),
        'released': sa.update(model.Allocation).values(
            state='released', cause='It was deleted.', **model.Allocation.BUSY),
    }  # fmt: skip

    def between(session, names, **values):
        session.execute(steps[event].execution_options(synchronize_session=False))
        return lock(session, names, **values)

    with unittest.mock.patch.object(hosts, 'locked', between):
        with service.database.writer() as session:
            [(id, since)] = idling.due(session, 10)
        with service.database.writer() as session:
            idling.release(session, id, since)
    state, _, reason = look(service, leased.uuid)
    assert (state, reason) != ('released', f'It had done no work since {shown(0)}.')
    assert {each['state'] for each in accelerators(service)} == {'held'}


def test_of_two_conductors_one_tells_and_one_releases(clock, service, leased, caplog):
    """Both have found it, and the second one comes late."""
    caplog.set_level(logging.INFO)
    policy = idling.Policy('release', GRACE)
    clock.advance_time_seconds(AFTER)
    report(service, npu('3b', idle=0, used=False), npu('5e', idle=0, used=False))
    with service.database.writer() as session:
        [change] = idling.changes(session, policy)
    for _ in range(2):
        with service.database.writer() as session:
            idling.note(session, change)
    clock.advance_time_seconds(GRACE)
    with service.database.writer() as session:
        [(id, since)] = idling.due(session, 10)
    for _ in range(2):
        with service.database.writer() as session:
            idling.release(session, id, since)
    assert [each.partition(leased.uuid)[2].split(' since')[0] for each in messages(caplog)] == [
        ' has done no work', ' was released: it had done no work',
    ]  # fmt: skip


def test_what_an_instance_holds_is_never_released(clock, service):
    choose(service, 'release')
    report(service, npu())
    service.profile(CUSTOM_NPU=1)
    [part] = service.rows(model.Deployable)
    [arq] = service.arqs()
    service.api.bind(arq, provider=part.rp_uuid, instance=str(uuidlib.uuid4()))
    for _ in range(4):
        clock.advance_time_seconds(AFTER)
        report(service, npu(idle=0, used=False))
        heal(service)
    assert [each['state'] for each in accelerators(service)] == ['held']


def test_what_a_user_releases_is_not_idle_any_more(service, leased):
    choose(service, 'tell')
    leased(AFTER)
    service.api.delete(f'/v2/allocations/{leased.uuid}')
    assert look(service, leased.uuid) == ('released', None, 'It was deleted.')


def test_a_fault_is_told_before_idleness(service, leased):
    choose(service, 'tell')
    leased(AFTER)
    [device, _] = service.rows(model.Device)
    service.api.post(f'/v2/devices/{device.uuid}/disable')
    assert 'is maintaining' in look(service, leased.uuid)[2]

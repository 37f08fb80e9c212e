# SPDX-License-Identifier: Apache-2.0
"""The health of devices, and its effects."""

import datetime
import time

from oslo_utils import fixture
from oslo_utils import timeutils
import pytest

from cyborg_lite import model
from tests import support

# Models refer to utcnow() itself: only oslo.utils can replace what it returns.
pytestmark = pytest.mark.filterwarnings('ignore:.*time.* is deprecated:DeprecationWarning')


@pytest.fixture
def clock():
    """A clock that a test advances by seconds."""
    with fixture.TimeFixture(datetime.datetime(2026, 11, 27)) as made:

        def move(seconds=0):
            made.advance_time_seconds(seconds)
            return timeutils.utcnow().isoformat() + '+00:00'

        yield move


def sick(reason='xid_79', level='critical', bus='3b', **more):
    """A card with bad health."""
    return support.card(bus, health=level, health_reason=reason, **more)


def well(bus='3b', **more):
    return support.card(bus, health='ok', **more)


def shown(service, *names, bus='3b'):
    """These fields of the accelerators of a card."""
    rows = service.api.get('/v2/accelerators').json['accelerators']
    [*rows] = [row for row in rows if row['address'] == f'0000:{bus}:00.0']
    assert rows
    values = {tuple(row[name] for name in names) for row in rows}
    [value] = values
    return value


FAULTY = 'its device is faulty (critical: xid_79)'
HEALTH = ('health', 'health_reason', 'health_since')


def test_health_is_shown_with_its_reason_and_its_time(service, clock):
    service.report(support.card())
    # The report has no health, like one of the previous release.
    assert shown(service, *HEALTH) == ('unknown', None, clock())
    clock(20)
    began = clock()
    service.report(sick('pcie_width', 'warning'))
    assert shown(service, *HEALTH) == ('warning', 'pcie_width', began)
    clock(20)
    service.report(sick('pcie_width', 'warning', model='renamed'))
    assert shown(service, *HEALTH) == ('warning', 'pcie_width', began)
    clock(20)
    service.report(sick())
    assert shown(service, *HEALTH) == ('critical', 'xid_79', clock())


def test_accelerators_are_found_by_health(service):
    service.report(sick('pcie_width', 'warning'), well('4c'))
    for name, value, found in (
        ('health', 'warning', ['0000:3b:00.0']),
        ('health', 'ok', ['0000:4c:00.0']),
        ('health_reason', 'pcie_width', ['0000:3b:00.0']),
        ('health_reason', 'xid_79', []),
    ):
        answer = service.api.get(f'/v2/accelerators?{name}={value}')
        assert [row['address'] for row in answer.json['accelerators']] == found


def test_the_health_is_unknown_while_the_driver_does_not_answer(service, clock):
    """Effects stay; of a driver that has failed, the last health stays."""
    failed = {'fake': {'state': 'degraded', 'reason': 'it raised', 'devices': 0}}
    late = {'fake': failed['fake'] | {'reason': 'no answer', 'waited': 20}}
    service.report(sick())
    began = clock()
    service.report(drivers=failed, digest='1')
    assert shown(service, *HEALTH) == ('critical', 'xid_79', began)
    clock(20)
    since = clock()
    for digest in '23':
        service.report(drivers=late, digest=digest)
        assert shown(service, *HEALTH) == ('unknown', 'no_answer_in_20_s', since)
        assert shown(service, 'state', 'reason') == ('faulty', FAULTY)
        clock(20)
    service.report(sick())
    assert shown(service, *HEALTH) == ('critical', 'xid_79', clock())


def test_an_invalid_health_does_not_drop_the_card(service):
    facts = well().facts() | {'health': 'fine \u202e' * 99, 'health_reason': ['x']}
    service.report(devices=[facts])
    assert shown(service, *HEALTH[:2]) == ('unknown', None)


def test_upstreams_resources_are_as_they_were(service):
    """Resources of Cyborg must have no additional fields."""
    service.report(sick())
    [device] = service.api.get('/v2/devices').json['devices']
    assert not {name for name in device if 'health' in name}


def take_out(service, **more):
    """Report a card until it is faulty."""
    service.report(well(**more))
    for _ in range(3):
        service.report(sick(**more))


def allocate(service, **more):
    groups = [{'resources': {'FPGA': 1}}]
    return service.api.post('/v2/allocations', {'groups': groups} | more)


FAULTY = 'its device is faulty (critical: xid_79)'


def test_a_free_card_is_withdrawn_and_comes_back(service):
    take_out(service)
    assert shown(service, 'state', 'reason') == ('faulty', FAULTY)
    assert service.api.get('/v2/accelerators?free=true').json['accelerators'] == []
    assert len(service.api.get('/v2/accelerators?state=faulty').json['accelerators']) == 1
    service.profile()
    provider = service.rows(model.Deployable)[0].rp_uuid
    [arq] = service.arqs()
    refused = service.api.bind(arq, provider=provider)
    assert refused.status_int == 409
    assert FAULTY in support.fault(refused)
    for _ in range(3):
        assert shown(service, 'state') == ('faulty',)
        service.report(well())
    assert shown(service, 'state', 'reason') == ('free', None)
    service.api.unbind(arq)
    assert service.api.bind(arq, provider=provider).status_int == 202


def test_an_allocation_does_not_choose_a_faulty_card(service):
    service.report(well(), well('4c'))
    for _ in range(3):
        service.report(sick(), well('4c'))
    [taken] = allocate(service).json['accelerators']
    assert taken['address'] == '0000:4c:00.0'
    refused = allocate(service)
    assert refused.status_int == 409
    wanted = {'groups': [{'resources': {'FPGA': 1}}]}
    check = service.api.post('/v2/allocations?dry_run=true', wanted)
    [asked] = check.json['alternatives'][0]['requests']
    assert (asked['removed']['faulty'], asked['removed']['held'], asked['left']) == (1, 1, 0)


def test_a_queued_allocation_gets_a_card_that_comes_back(service):
    take_out(service)
    waiting = allocate(service, queue=True).json
    assert waiting['state'] == 'queued'
    for _ in range(3):
        service.report(well())
    support.send(service.manager.outbox)
    end = time.monotonic() + 30
    while service.rows(model.Message):
        assert time.monotonic() < end
        time.sleep(0.01)
    found = service.api.get(f'/v2/allocations/{waiting["uuid"]}').json
    assert (found['state'], len(found['accelerators'])) == ('active', 1)


def test_a_held_accelerator_stays_held_and_its_holder_is_told(service):
    service.report(well())
    made = allocate(service).json
    for _ in range(3):
        service.report(sick())
    assert shown(service, 'state', 'reason') == ('faulty', FAULTY)
    assert shown(service, 'allocation_uuid', 'health') == (made['uuid'], 'critical')
    [row] = service.api.get('/v2/accelerators?state=held').json['accelerators']
    assert row['states'] == ['faulty', 'held']
    found = service.api.get(f'/v2/allocations/{made["uuid"]}').json
    uuid = made['accelerators'][0]['uuid']
    said = f'Accelerator {uuid} has a device that is not well (critical: xid_79).'
    assert (found['state'], found['reason']) == ('active', said)
    for _ in range(3):
        service.report(well())
    assert service.api.get(f'/v2/allocations/{made["uuid"]}').json['reason'] is None


def test_a_warning_is_told_and_withdraws_nothing(service):
    service.report(well(handles=2))
    made = allocate(service).json
    for _ in range(3):
        service.report(sick('pcie_width', 'warning', handles=2))
    states = [row['state'] for row in service.api.get('/v2/accelerators').json['accelerators']]
    assert sorted(states) == ['free', 'held']
    found = service.api.get(f'/v2/allocations/{made["uuid"]}').json
    assert '(warning: pcie_width)' in found['reason']


def test_the_history_of_a_device(service, clock):
    service.report(support.card())
    [device] = service.rows(model.Device)
    path = f'/v2/devices/{device.uuid}/health'
    began = clock()
    assert service.api.get(path).json == {
        'health': 'unknown', 'reason': None, 'since': began, 'fault': None, 'effects': [],
        'history': [],
    }  # fmt: skip
    times = []
    for _ in range(3):
        times.append(clock(20))
        service.report(sick())
    first, _, taken_out = times
    change = {'health': 'critical', 'reason': 'xid_79'}
    assert service.api.get(path).json == {
        'health': 'critical', 'reason': 'xid_79', 'since': first, 'fault': 'critical: xid_79',
        'effects': ['no_new', 'tell'],
        'history': [
            change | {'at': first, 'effects': []},
            change | {'at': taken_out, 'effects': ['no_new', 'tell']},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ('path', 'status'),
    [
        (f'/v2/devices/{support.INSTANCE}/health', 404),
        ('/v2/devices/no-uuid/health', 404),
        ('/v2/devices/{}/health?limit=1', 400),
    ],
)
def test_a_history_that_is_not_there(service, path, status):
    service.report(well())
    answer = service.api.get(path.format(service.rows(model.Device)[0].uuid))
    assert answer.status_int == status
    assert 'errors' in answer.json


def test_a_member_sees_no_history(service, member):
    service.report(well())
    member('p2')
    uuid = service.rows(model.Device)[0].uuid
    assert service.api.get(f'/v2/devices/{uuid}/health').status_int == 403


def test_a_sample_that_changes_nothing_writes_nothing(service):
    """A second equal sample is not even processed."""
    take_out(service)
    service.report(sick())
    with service.statements() as statements:
        service.report(sick())
    assert len([each for each in statements if not each.startswith('BEGIN')]) <= 2, statements
    assert not [each for each in statements if 'devices' in each]

# SPDX-License-Identifier: Apache-2.0
"""/v2/usages: the time that accelerators were held, by project and host."""

import csv
import datetime
import io
import types
import urllib.parse
import uuid

from cliff.formatters import commaseparated
from osc_lib import exceptions
from oslo_utils import fixture
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.osc import usages as commands
from tests import support
from tests.functional import test_fuzz
from tests.functional import test_sdk

PATH = '/v2/usages'
ARQS = '/v2/accelerator_requests'
OWN = '00000000000000000000000000000001'
BEGAN = datetime.datetime(2026, 11, 10, 12, 0, 0, 900000)
url, sdk = test_sdk.url, test_sdk.sdk

# Models refer to utcnow() itself: only oslo.utils can replace what it returns.
pytestmark = pytest.mark.filterwarnings('ignore:.*time.* is deprecated:DeprecationWarning')


@pytest.fixture
def clock():
    """A clock that stands still until a test advances it."""
    with fixture.TimeFixture(BEGAN) as made:
        yield made


@pytest.fixture
def card(clock, service):
    """A card of four accelerators, and its provider."""
    service.report(support.card(handles=4))
    service.profile()
    [part] = service.rows(model.Deployable)
    return part.rp_uuid


def shown(service, query='', api=None, **arguments):
    arguments = urllib.parse.urlencode(arguments)
    answer = (api or service.api).get(f'{PATH}?{arguments}{query}')
    assert answer.status_int == 200, answer.text
    return answer.json


def rows(service, *by, **arguments):
    """The seconds by the values of keys."""
    found = shown(service, group_by=','.join(by), **arguments)['usages']
    return {tuple(row[key] for key in by): row['device_seconds'] for row in found}


def seconds(service, **arguments):
    """The total seconds."""
    return sum(rows(service, 'project_id', **arguments).values())


def bound(service, provider, instance=None, **more):
    [arq] = service.arqs()
    answer = service.api.bind(arq, provider=provider, instance=instance or support.INSTANCE, **more)
    assert answer.status_int == 202, answer.text
    return arq


def allocated(service, **more):
    body = {'groups': [{'resources': {'FPGA': 1}}]} | more
    answer = service.api.post('/v2/allocations', body)
    assert answer.status_int == 201, answer.text
    return answer.json['uuid']


# Each way to free an accelerator, by what holds it


def delete(service, arq):
    assert service.api.delete(f'{ARQS}?arqs={arq}').status_int == 204


def delete_one(service, arq):
    assert service.api.delete(f'{ARQS}/{arq}').status_int == 204


def delete_of_instance(service, _arq):
    assert service.api.delete(f'{ARQS}?instance={support.INSTANCE}').status_int == 204


def unbind(service, arq):
    assert service.api.unbind(arq).status_int == 202


@pytest.mark.parametrize('free', [delete, delete_one, delete_of_instance, unbind])
def test_each_way_to_free_a_request_ends_its_usage(service, clock, card, free):
    arq = bound(service, card)
    clock.advance_time_seconds(100)
    assert seconds(service) == 100
    free(service, arq)
    clock.advance_time_seconds(50)
    assert rows(service, 'project_id', 'resource_class', 'host') == {(OWN, 'FPGA', 'host-1'): 100}
    [interval] = service.rows(model.Usage)
    [device] = service.rows(model.Device)
    assert (interval.arq_uuid, interval.instance_uuid) == (arq, support.INSTANCE)
    assert (interval.device_uuid, interval.allocation_uuid) == (device.uuid, None)
    assert interval.accelerator_uuid in {each.uuid for each in service.rows(model.AttachHandle)}
    assert interval.began_at == BEGAN
    assert interval.ended_at == BEGAN + datetime.timedelta(seconds=100)


def test_an_instance_that_an_administrator_frees_ends_its_usage(service, clock, card, monkeypatch):
    """Nova does not know the instance any more."""
    arq = bound(service, card)
    monkeypatch.setattr(service.manager.outbox, 'knows', lambda instance: False)
    clock.advance_time_seconds(100)
    answer = service.api.delete(f'/v2/instances/{support.INSTANCE}')
    assert answer.status_int == 204, answer.text
    clock.advance_time_seconds(50)
    assert seconds(service) == 100
    assert [row.arq_uuid for row in service.rows(model.Usage)] == [arq]


@pytest.mark.parametrize('free', [delete, unbind])
def test_a_bind_that_fails_later_ends_and_begins_no_usage(service, clock, card, free):
    """A request is bound, freed, and then cannot be bound again."""
    arq = bound(service, card)
    clock.advance_time_seconds(100)
    unbind(service, arq)
    nowhere = str(uuid.uuid4())
    assert service.api.bind(arq, provider=nowhere, instance=support.INSTANCE).status_int == 404
    [row] = service.rows(model.ARQ)
    assert (row.state, row.held_since) == ('BindFailed', None)
    clock.advance_time_seconds(50)
    free(service, arq)
    clock.advance_time_seconds(50)
    assert seconds(service) == 100
    assert len(service.rows(model.Usage)) == 1


def test_a_failure_among_requests_ends_no_usage_of_others(service, clock, card):
    """All are bound or none: what was bound before goes on to be counted."""
    held = bound(service, card)
    [one], [other] = service.arqs(), service.arqs()
    wishes = {
        one: support.wish(card, support.HOST, str(uuid.uuid4())),
        other: support.wish(str(uuid.uuid4()), support.HOST, str(uuid.uuid4())),
    }
    clock.advance_time_seconds(100)
    assert service.api.patch(ARQS, wishes).status_int == 404
    states = {row.uuid: row.state for row in service.rows(model.ARQ)}
    assert states == {held: 'Bound', one: 'BindFailed', other: 'BindFailed'}
    clock.advance_time_seconds(50)
    assert seconds(service) == 150
    assert service.rows(model.Usage) == []


def release(service, allocation):
    assert service.api.delete(f'/v2/allocations/{allocation}').status_int == 204


def expire(service, _allocation):
    service.manager.healer.heal()


@pytest.mark.parametrize('free', [release, expire])
def test_each_way_to_free_an_allocation_ends_its_usage(service, clock, card, free):
    allocation = allocated(service, lease=100)
    clock.advance_time_seconds(100)
    free(service, allocation)
    clock.advance_time_seconds(50)
    assert rows(service, 'project_id', 'resource_class', 'host') == {(OWN, 'FPGA', 'host-1'): 100}
    [interval] = service.rows(model.Usage)
    assert (interval.allocation_uuid, interval.instance_uuid) == (allocation, None)


def test_a_queued_allocation_counts_from_its_service(service, clock, card):
    first = allocated(service, groups=[{'resources': {'FPGA': 4}}])
    allocated(service, queue=True)
    clock.advance_time_seconds(10)
    release(service, first)
    # While the clock stands still no message becomes due.
    service.manager._serve_all()
    assert len(service.rows(model.ARQ)) == 1
    clock.advance_time_seconds(5)
    assert seconds(service) == 4 * 10 + 5


def test_a_request_is_counted_each_time_that_it_is_bound(service, clock, card):
    arq = bound(service, card)
    for _ in range(3):
        clock.advance_time_seconds(2)
        unbind(service, arq)
        clock.advance_time_seconds(10)
        service.api.bind(arq, provider=card, instance=support.INSTANCE)
    clock.advance_time_seconds(1)
    assert seconds(service) == 3 * 2 + 1
    assert len(service.rows(model.Usage)) == 3


def test_a_request_without_an_accelerator_has_no_usage(service, clock, card):
    arqs = service.arqs() + service.arqs()
    service.api.bind(arqs[0], provider=str(uuid.uuid4()), instance=support.INSTANCE)
    clock.advance_time_seconds(10)
    delete(service, ','.join(arqs))
    assert shown(service)['usages'] == [] == service.rows(model.Usage)


def test_a_call_that_is_refused_ends_nothing(service, clock, card):
    arq = bound(service, card)
    allocated(service)
    clock.advance_time_seconds(10)
    [held] = [each.uuid for each in service.rows(model.ARQ) if each.allocation_uuid]
    assert service.api.delete(f'{ARQS}?arqs={arq},{held}').status_int == 409
    assert service.rows(model.Usage) == []
    assert seconds(service) == 20


def test_usage_equals_the_history(service, clock, card):
    """In whole seconds, at any fraction of a second."""
    arq = bound(service, card)
    clock.advance_time_seconds(1.2)
    unbind(service, arq)
    moves = service.api.get(f'{ARQS}/{arq}/history').json['history'][1:]
    began, ended = (datetime.datetime.fromisoformat(move['at']) for move in moves)
    assert [move['state'] for move in moves] == ['Bound', 'Unbound']
    assert seconds(service) == (ended - began).total_seconds() == 2


def test_a_clock_that_is_behind_makes_no_negative_usage(service, clock, card):
    arq = bound(service, card)
    clock.advance_time_seconds(-100)
    delete(service, arq)
    clock.advance_time_seconds(200)
    assert seconds(service) == 0


# Changes of hosts and devices


def down(service):
    with service.database.writer() as session:
        old = sa.update(model.Host).where(model.Host.name == 'host-1')
        session.execute(old.values(silent=True))


def test_usage_outlives_its_device_and_its_host(service, clock, card):
    arq = bound(service, card)
    clock.advance_time_seconds(10)
    delete(service, arq)
    down(service)
    assert service.api.delete('/v2/hosts/host-1').status_int == 204
    assert service.rows(model.Device) == []
    assert rows(service, 'host') == {('host-1',): 10}


def test_a_host_that_is_renamed_takes_its_usage_along(service, clock, card):
    delete(service, bound(service, card))
    arq = bound(service, card)
    clock.advance_time_seconds(10)
    delete(service, arq)
    arq = bound(service, card)
    clock.advance_time_seconds(10)
    down(service)
    answer = service.api.patch('/v2/hosts/host-1', {'name': 'host-2'})
    assert answer.status_int == 200, answer.text
    clock.advance_time_seconds(10)
    assert rows(service, 'host') == {('host-2',): 30}
    assert rows(service, 'host', host='host-1') == {}
    [accelerator] = service.api.get('/v2/accelerators?state=held').json['accelerators']
    assert accelerator['held_since'] == '2026-11-10T12:00:10+00:00'


def test_the_old_name_of_a_host_may_be_another_machines(service, clock, card):
    """A rename changes the name in what is over, and nothing else: usage is never mixed."""
    delete(service, bound(service, card))
    arq = bound(service, card)
    clock.advance_time_seconds(10)
    delete(service, arq)
    before = intervals(service)
    down(service)
    assert service.api.patch('/v2/hosts/host-1', {'name': 'host-2'}).status_int == 200
    assert intervals(service) == [row | {'host': 'host-2'} for row in before]
    service.report(support.card('4b'), host='host-1')
    allocated(service, hosts=['host-1'])
    clock.advance_time_seconds(5)
    assert rows(service, 'host') == {('host-2',): 10, ('host-1',): 5}


def intervals(service):
    with service.database.reader() as session:
        return [dict(row) for row in session.execute(sa.select(model.Usage.__table__)).mappings()]


def test_the_class_is_that_at_which_it_was_bound(service, clock, card):
    arq = bound(service, card)
    clock.advance_time_seconds(10)
    with service.database.writer() as session:
        session.execute(sa.update(model.Attribute).filter_by(key='rc').values(value='CUSTOM_NEW'))
    assert rows(service, 'resource_class') == {('FPGA',): 10}
    delete(service, arq)
    assert rows(service, 'resource_class') == {('FPGA',): 10}


def test_a_bind_by_the_previous_release_counts(service, clock, card):
    arq = bound(service, card)
    with service.database.writer() as session:
        session.execute(sa.update(model.ARQ).values(held_since=None, resource_class=None))
    clock.advance_time_seconds(10)
    assert rows(service, 'resource_class') == {('FPGA',): 10}
    delete(service, arq)
    assert rows(service, 'resource_class') == {('FPGA',): 10}


# Requests


PERIODS = [
    ('2026-11-10T12:00:00Z', '2026-11-10T12:01:40Z', 100 + 100),
    ('2026-11-10T12:00:30Z', '2026-11-10T12:00:40Z', 10 + 10),
    ('2026-11-10T13:00:30+01:00', '2026-11-10 12:00:40', 10 + 10),
    ('2026-11-10T12:01:00', '2026-11-10T12:03:00', 40 + 120),
    ('2026-11-10', '2026-11-11', 100 + 250),
    ('2026-11-10', '9999-12-31', 100 + 250),
    ('0001-01-01', '2026-11-10T12:00', 0),
    ('2026-11-10T12:04:11Z', '2026-11-12', 0),
]


def test_a_period_counts_what_is_in_it(service, clock, card):
    """One accelerator was held for 100 seconds, the other is held for 250."""
    first = bound(service, card)
    bound(service, card, instance=str(uuid.uuid4()))
    clock.advance_time_seconds(100)
    delete(service, first)
    clock.advance_time_seconds(150)
    found = [(start, end, seconds(service, start=start, end=end)) for start, end, _ in PERIODS]
    assert found == PERIODS


def test_periods_and_groups_add_up(service, clock, card):
    for number in range(4):
        arq = bound(service, card, instance=str(uuid.uuid4()))
        clock.advance_time_seconds(0.7 * (number + 1))
        if number % 2:
            delete(service, arq)
    times = [f'2026-11-10T12:00:{each:02}' for each in range(12)]
    each = [
        seconds(service, start=start, end=end) for start, end in zip(times, times[1:], strict=False)
    ]
    assert sum(each) == seconds(service, start=times[0], end=times[-1]) == seconds(service)


def test_by_default_it_is_this_month_until_now(service, clock, card):
    timeutils.set_time_override(datetime.datetime(2026, 10, 31, 23, 0))
    service.report(support.card(handles=4))
    bound(service, card)
    timeutils.set_time_override(datetime.datetime(2026, 11, 1, 0, 0, 10))
    answer = shown(service)
    assert (answer['start'], answer['end']) == (
        '2026-11-01T00:00:00+00:00', '2026-11-01T00:00:10+00:00',
    )  # fmt: skip
    assert answer['usages'] == [
        {'project_id': OWN, 'resource_class': 'FPGA', 'host': 'host-1', 'device_seconds': 10}
    ]
    assert list(answer)[0] == 'usages'
    answer = shown(service, end='2026-11-01')
    assert answer['start'] == '2026-10-01T00:00:00+00:00'
    assert [row['device_seconds'] for row in answer['usages']] == [3600]


def test_groups_and_filters(service, clock, card):
    service.report(support.card('4b', handles=2, resource_class='CUSTOM_NPU'), host='host-2')
    member = support.Api(support.local(test_fuzz.member_of(service)))
    for api, name, amount in ((service.api, 'CUSTOM_NPU', 2), (member, 'FPGA', 3)):
        body = {'groups': [{'resources': {name: amount}}]}
        assert api.post('/v2/allocations', body).status_int == 201
    allocated(service)
    clock.advance_time_seconds(10)
    theirs = test_fuzz.MEMBERS
    assert rows(service, 'project_id', 'resource_class', 'host') == {
        (OWN, 'CUSTOM_NPU', 'host-2'): 20,
        (OWN, 'FPGA', 'host-1'): 10,
        (theirs, 'FPGA', 'host-1'): 30,
    }
    assert rows(service, 'resource_class') == {('CUSTOM_NPU',): 20, ('FPGA',): 40}
    assert rows(service, 'host') == {('host-1',): 40, ('host-2',): 20}
    assert rows(service, 'project_id', 'host') == rows(service, 'project_id', 'host') == {
        (OWN, 'host-1'): 10, (OWN, 'host-2'): 20, (theirs, 'host-1'): 30,
    }  # fmt: skip
    assert rows(service, 'host', project_id=OWN) == {('host-1',): 10, ('host-2',): 20}
    assert rows(service, 'project_id', resource_class='CUSTOM_NPU') == {(OWN,): 20}
    assert rows(service, 'project_id', host='host-1', project_id=theirs) == {(theirs,): 30}
    assert rows(service, 'project_id', host='nowhere') == {}


def test_a_member_sees_the_usage_of_the_own_project(service, clock, card):
    member = support.Api(support.local(test_fuzz.member_of(service)))
    bound(service, card)
    body = {'groups': [{'resources': {'FPGA': 3}}]}
    assert member.post('/v2/allocations', body).status_int == 201
    clock.advance_time_seconds(10)
    for query in '', f'project_id={test_fuzz.MEMBERS}':
        [row] = shown(service, query, api=member)['usages']
        assert (row['project_id'], row['device_seconds']) == (test_fuzz.MEMBERS, 30)
    assert shown(service, f'project_id={OWN}', api=member)['usages'] == []


def test_pages_hold_all(service, clock, card):
    for number in range(3):
        service.report(support.card('4b', handles=1), host=f'host-{number + 2}')
    for number in range(4):
        allocated(service, hosts=[f'host-{number + 1}'])
    clock.advance_time_seconds(10)
    found, path = [], f'{PATH}?limit=3&group_by=host'
    while path:
        answer = service.api.get(path).json
        found.append([row['host'] for row in answer['usages']])
        [path] = [link['href'] for link in answer.get('usages_links', ())] or [None]
    assert found == [['host-1', 'host-2', 'host-3'], ['host-4']]
    assert shown(service, limit=0)['usages'] == []


BAD = [
    *(('start', each) for each in ('', 'yesterday', '2026-13-01', '20261101', '2026-W01-1',
        '1e9', '2026-11-10T12:00:00 00:00', '9999-12-31T23:59-23:59',
        '0001-01-01T00:00+23:59', '٢٠٢٦-11-01')),
    ('start', '2026-11-10T12:00:02'),
    ('end', 'now'),
    ('end', '2026-11-10T25:00:00'),
    ('start', '2027-01-01'),
    ('group_by', ''),
    ('group_by', 'device'),
    ('group_by', 'host,,device'),
    ('limit', '-1'),
    ('offset', 'x'),
    ('offset', '-1'),
    ('marker', str(uuid.UUID(int=1))),
    ('project', 'p'),
]  # fmt: skip


def test_bad_input_is_refused_by_its_name(service, clock):
    for name, value in BAD:
        answer = service.api.get(f'{PATH}?{urllib.parse.urlencode({name: value})}')
        assert answer.status_int == 400, (name, value)
        assert name in support.fault(answer)


def test_a_report_takes_one_statement(service, clock, card):
    for _ in range(3):
        delete(service, bound(service, card))
    bound(service, card)
    with service.statements() as statements:
        shown(service)
    assert len([each for each in statements if not each.startswith('BEGIN')]) == 1


# The command


@pytest.fixture
def run(sdk):
    """``run(*words)``: the shown columns and rows."""
    client = types.SimpleNamespace(sdk_connection=types.SimpleNamespace(accelerator=sdk))

    def run(*words):
        command = commands.ListUsages(types.SimpleNamespace(client_manager=client), None)
        columns, shown = command.take_action(command.get_parser('usage').parse_args([*words]))
        return columns, list(shown)

    return run


def test_the_command_lists_them_for_a_spreadsheet(clock, run, service):
    release(service, allocated(service))
    allocated(service)
    clock.advance_time_seconds(10)
    columns, listed = run()
    written = io.StringIO()
    formatter = commaseparated.CSVLister()
    options = types.SimpleNamespace(quote_mode='nonnumeric')
    formatter.emit_list(columns, listed, written, options)
    assert list(csv.reader(io.StringIO(written.getvalue()))) == [
        ['project_id', 'resource_class', 'host', 'device_seconds'],
        [OWN, 'FPGA', 'host-1', '10'],
    ]
    assert run('--group-by', 'host', '--group-by', 'project_id') == (
        ('project_id', 'host', 'device_seconds'), [(OWN, 'host-1', 10)],
    )  # fmt: skip
    assert run('--start', '2026-11-10T12:00:05', '--end', '2026-11-11', '--host', 'host-1') == (
        columns, [(OWN, 'FPGA', 'host-1', 5)],
    )  # fmt: skip
    assert run('--project', 'x', '--resource-class', 'FPGA') == (columns, [])


def test_the_command_says_what_is_refused(run):
    with pytest.raises(exceptions.CommandError, match='Invalid start: expected a date or a time'):
        run('--start', 'yesterday')

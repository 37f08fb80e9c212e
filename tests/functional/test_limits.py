# SPDX-License-Identifier: Apache-2.0
"""Limits that Keystone keeps: usage is counted here, and nothing waits for Keystone under a lock.

A stand-in has the limits; those of the real Keystone are in tests/integration/test_limits.py.
"""

import collections
import concurrent.futures
import threading
import types

import pytest

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import limits
from cyborg_lite.osc import quotas as commands
from tests import support
from tests.functional import test_quotas

QUOTAS, ALONE = test_quotas.QUOTAS, test_quotas.ALONE
shown, post = test_quotas.shown, test_quotas.post
#: How long limits count, in seconds.
SECONDS = 30


class Source:
    """A stand-in for Keystone: its limits, and what was asked."""

    def __init__(self):
        self.of_all, self.own = {'total': 2}, collections.defaultdict(dict)
        self.calls, self.away = [], False
        self.called = lambda: None

    def defaults(self):
        return self._answer('defaults', self.of_all)

    def of(self, project):
        return self._answer(project, self.own[project])

    def _answer(self, call, found):
        self.calls.append(call)
        self.called()
        if self.away:
            raise exception.LimitsAway(reason='no answer')
        return dict(found)


@pytest.fixture
def clock(monkeypatch):
    made = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(limits, 'time', types.SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def service(database_url, source, clock):
    made = support.Service(database_url, quota__driver='keystone')
    made.manager.limits = limits.Limits(source, SECONDS)
    made.profile()
    yield made
    made.stop()


def test_a_request_beyond_a_limit_is_refused(service, source):
    assert [post(service.api).status_int for _ in range(3)] == [201, 201, 403]
    said = support.fault(post(service.api))
    said, _, project = said.partition(' in project ')
    assert said == 'Quota exceeded for total: the limit is 2, 2 used, and 1 asked for'
    assert project == f'{service.rows(model.ARQ)[0].project_id}.'


def test_a_limit_of_a_project_precedes_the_registered_one(service, source):
    source.of_all['FPGA'] = 0
    source.own[ALONE] |= {'total': 1, 'FPGA': -1}
    assert [post(service.api).status_int for _ in range(2)] == [201, 403]


def test_what_keystone_does_not_limit_is_not_limited(service, source):
    source.of_all.clear()
    assert [post(service.api).status_int for _ in range(3)] == [201] * 3


def test_limits_are_read_once_for_their_time(service, source, clock):
    source.of_all['total'] = 100
    for _ in range(5):
        post(service.api)
    assert source.calls == ['defaults', ALONE]
    other = context.RequestContext(project_id='other', overwrite=False)
    service.embedded.bus.conductor(other).create_arqs(profile='profile-1')
    assert source.calls[2:] == ['other']
    clock.now += SECONDS - 1
    post(service.api)
    assert len(source.calls) == 3
    source.of_all['total'] = 7
    clock.now += 1
    assert [post(service.api).status_int for _ in range(2)] == [201, 403]
    assert source.calls[3:] == ['defaults', ALONE]


def test_no_transaction_is_open_while_keystone_is_asked(service, source):
    """It would keep others waiting for what it has locked."""
    seen = []

    def write():
        # SQLite would let nobody write; the others tell of the connections in use.
        service.database.probe()
        seen.append(service.database.engine.pool.checkedout())

    source.called = write
    # Threads of the conductor may have looked just now, and no more of them look meanwhile.
    idle = service.database.engine.pool.checkedout()
    assert post(service.api).status_int == 201
    assert len(seen) == 2
    assert max(seen) <= idle


def test_while_keystone_is_away_nothing_is_created(service, source, clock):
    source.away = True
    answer = post(service.api)
    assert answer.status_int == 503
    assert support.fault(answer) == (
        'The limits of the project cannot be read from Keystone: no answer. Try again.'
    )
    assert service.rows(model.ARQ) == []
    source.away = False
    clock.now += 1
    assert post(service.api).status_int == 201
    source.away = True
    assert post(service.api).status_int == 201  # they still count
    clock.now += SECONDS
    assert post(service.api).status_int == 503


def test_others_do_not_wait_once_more_for_an_answer_that_did_not_come(source, clock):
    """They waited for the same question."""
    known = limits.Limits(source, SECONDS)
    asked, answered = threading.Event(), threading.Event()

    def hang():
        asked.set()
        assert answered.wait(60)
        clock.now += 20

    source.away, source.called = True, hang
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(known.read, ['a'])
        assert asked.wait(60)
        others = [pool.submit(known.read, [name]) for name in ('a', 'b')]
        answered.set()
        for each in (first, *others):
            with pytest.raises(exception.LimitsAway):
                each.result(60)
    assert source.calls == ['defaults']


def test_what_counts_no_more_is_forgotten(source, clock):
    known = limits.Limits(source, SECONDS)
    for number in range(5):
        known.read([str(number)])
    assert len(known._read) == 6
    clock.now += SECONDS
    known.read(['last'])
    assert known._read.keys() == {None, 'last'}


@pytest.mark.parametrize('count', [64])
def test_racing_clients_get_exactly_the_limit(service, source, count):
    source.own[ALONE]['FPGA'] = 8
    source.own[ALONE]['total'] = -1
    ready = threading.Barrier(count, timeout=60)

    def create(_):
        caller = context.RequestContext(project_id=ALONE, overwrite=False)
        conductor = service.embedded.bus.conductor(caller)
        ready.wait()
        try:
            return bool(conductor.create_arqs(profile='profile-1'))
        except exception.OverQuota:
            return False

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        assert sum(pool.map(create, range(count))) == 8
    assert len(service.rows(model.ARQ)) == 8
    assert source.calls == ['defaults', ALONE]


def test_an_allocation_waits_for_a_limit_of_keystone(service, source, clock):
    service.report(support.card(handles=4))
    body = {'groups': [{'resources': {'FPGA': 2}}], 'queue': True}
    first, second = (service.api.post('/v2/allocations', body) for _ in range(2))
    assert (first.json['state'], second.json['state']) == ('active', 'queued')
    assert 'Quota exceeded for total' in second.json['reason']
    path = f'/v2/allocations/{second.json["uuid"]}'
    service.manager._serve_all()
    assert service.api.get(path).json['state'] == 'queued'
    source.of_all['total'] = 4
    clock.now += SECONDS
    service.manager._serve_all()
    assert service.api.get(path).json['state'] == 'active'


def test_limits_of_keystone_are_not_changed_here(service):
    told = [
        service.api.get(QUOTAS),
        service.api.patch(f'{QUOTAS}/{ALONE}', {'limits': {'total': 1}}),
        service.api.delete(f'{QUOTAS}/{ALONE}'),
    ]
    assert [answer.status_int for answer in told] == [409] * 3
    for answer in told:
        assert 'openstack limit' in support.fault(answer)
    assert service.rows(model.Quota) == []


def test_limits_of_keystone_are_shown_with_our_usage(service, source):
    source.own[ALONE]['FPGA'] = 1
    post(service.api)
    answer = service.api.get(f'{QUOTAS}/own')
    assert shown(answer) == {'total': (2, 1), 'FPGA': (1, 1)}
    assert answer.json['source'] == 'keystone'
    assert list(commands._rows(answer.json)) == [
        ('total', 2, 1, 'keystone'), ('FPGA', 1, 1, 'keystone')]  # fmt: skip
    assert shown(service.api.get(f'{QUOTAS}/defaults')) == {'total': (2, 0)}
    source.away = True
    assert service.api.get(f'{QUOTAS}/nobody').status_int == 503


def test_limits_that_are_kept_here_are_not_read_from_keystone(database_url):
    made = support.Service(database_url)
    try:
        assert made.api.get(f'{QUOTAS}/own').json['source'] == 'database'
        with pytest.raises(exception.Conflict, match='driver is database'):
            made.conductor.show_limits(project='a')
    finally:
        made.stop()

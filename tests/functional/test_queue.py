# SPDX-License-Identifier: Apache-2.0
"""The queue of allocations."""

import contextlib
import datetime
import threading
import time
import unittest.mock

from oslo_db import exception as db_exception
import oslo_messaging as messaging
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite.api import allocations
from cyborg_lite.api import app
from cyborg_lite.api import waiting
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import taking
from cyborg_lite.conductor import waiting as waiting_
from cyborg_lite.db import engine
from cyborg_lite.model import queue
from tests import support

PATH = '/v2/allocations'
ALONE = app.ALONE['X-Project-Id']


def npu(bus, **more):
    return support.card(bus, **({'resource_class': 'CUSTOM_NPU', 'traits': ['CUSTOM_A']} | more))


def npus(service, number, host='host-1', **more):
    service.report(*(npu(f'{n:02x}', **more) for n in range(number)), host=host)


def body(amount=1, resource_class='CUSTOM_NPU', traits=None, **more):
    group = {'resources': {resource_class: amount}, 'traits': traits or {}}
    return {'groups': [group], **more}


def ask(service, amount=1, **more):
    """A queued allocation."""
    answer = service.api.post(PATH, body(amount, **({'queue': True} | more)))
    assert answer.status_int == 201, answer.text
    return answer.json['uuid']


def show(service, uuid):
    return service.api.get(f'{PATH}/{uuid}').json


def state(service, uuid):
    return show(service, uuid)['state']


def release(service, *uuids):
    for uuid in uuids:
        assert service.api.delete(f'{PATH}/{uuid}').status_int == 204
    service.settle()


def active(service, *uuids):
    return [uuid for uuid in uuids if state(service, uuid) == 'active']


def test_an_allocation_is_served_at_once_if_enough_are_free(service):
    npus(service, 1)
    made = service.api.post(PATH, body(queue=True, priority=5)).json
    assert (made['state'], made['position'], made['priority']) == ('active', None, 5)


def test_an_allocation_waits_until_something_is_released(service):
    npus(service, 1)
    first = ask(service)
    waits = service.api.post(PATH, body(queue=True, name='a', lease=60)).json
    assert (waits['state'], waits['position']) == ('queued', 1)
    assert waits['reason'] == 'It waits: needs 1 of CUSTOM_NPU: no CUSTOM_NPU is free.'
    assert (waits['accelerators'], waits['lease_ends_at'], waits['lease']) == ([], None, 60)
    assert [each['uuid'] for each in service.api.get(f'{PATH}?state=queued').json['allocations']] \
        == [waits['uuid']]  # fmt: skip
    assert service.api.patch(f'{PATH}/a', {'lease': 60}).status_int == 409
    release(service, first)
    served = show(service, 'a')
    assert (served['uuid'], served['state'], served['reason']) == (waits['uuid'], 'active', None)
    assert (served['position'], len(served['accelerators'])) == (None, 1)
    ends = datetime.datetime.fromisoformat(served['lease_ends_at']).replace(tzinfo=None)
    assert 0 < (ends - timeutils.utcnow()).total_seconds() <= 60
    [arq] = service.rows(model.ARQ)
    assert (arq.allocation_uuid, arq.state, arq.project_id) == (waits['uuid'], 'Bound', ALONE)
    [row] = [r for r in service.rows(model.Allocation) if r.uuid == waits['uuid']]
    assert (row.queue, row.amount, row.over_quota) == (None, None, False)


def test_the_hosts_of_what_waits_are_shown(service):
    npus(service, 1)
    first = ask(service, hosts=['host-1'])
    waits, other = ask(service, hosts=['host-2', 'host-1']), ask(service)
    found = service.api.get(PATH).json['allocations']
    expected = {first: None, waits: ['host-2', 'host-1'], other: None}
    assert {each['uuid']: each['hosts'] for each in found} == expected
    assert {uuid: show(service, uuid)['hosts'] for uuid in expected} == expected
    release(service, first)
    assert (show(service, waits)['state'], show(service, waits)['hosts']) == ('active', None)


def test_a_profile_is_remembered(service):
    npus(service, 1)
    first = ask(service)
    service.profile(CUSTOM_NPU=1)
    asked = {'profile': 'profile-1', 'queue': True}
    named, gone = (service.api.post(PATH, asked).json['uuid'] for _ in range(2))
    assert show(service, named)['profile'] == 'profile-1'
    release(service, first)
    assert (show(service, named)['state'], show(service, named)['profile']) == \
        ('active', 'profile-1')  # fmt: skip
    release(service, named)
    assert state(service, gone) == 'active'
    release(service, gone)
    # After the profile was deleted, the stored groups are used.
    first, gone = ask(service), service.api.post(PATH, asked).json['uuid']
    assert service.api.delete('/v2/device_profiles/profile-1').status_int == 204
    release(service, first)
    assert (show(service, gone)['state'], show(service, gone)['profile']) == ('active', None)


def test_priorities_go_first_and_then_the_oldest(service):
    npus(service, 1)
    held = ask(service)
    low, first, second, high = (ask(service, priority=n) for n in (-1, 0, 0, 7))
    order = [high, first, second, low]
    assert [show(service, each)['position'] for each in order] == [1, 2, 3, 4]
    for each in order:
        release(service, held)
        assert active(service, *order) == [each]
        held = each


def test_a_priority_above_0_is_the_administrator_s(service, member):
    npus(service, 1)
    member('a')
    for priority in (1, 100):
        answer = service.api.post(PATH, body(queue=True, priority=priority))
        assert answer.status_int == 403
        assert 'cyborg:allocation:priority' in support.fault(answer)
    assert service.rows(model.Allocation) == []
    for priority in (0, -100):
        assert service.api.post(PATH, body(queue=True, priority=priority)).status_int == 201


def test_projects_share_by_what_they_hold(service, member):
    npus(service, 3)
    member('b')
    held_b = ask(service)
    member('a')
    held = [ask(service), ask(service)]
    waits_a = [ask(service), ask(service)]
    member('b')
    waits_b = [ask(service), ask(service)]
    # b holds one and a two: b comes first, and then they alternate.
    assert [show(service, each)['position'] for each in waits_b] == [1, 3]
    member('a')
    assert [show(service, each)['position'] for each in waits_a] == [2, 4]
    assert service.api.get(f'{PATH}/{waits_b[0]}').status_int == 404
    member('c', 'admin,member,reader')
    release(service, held_b)
    assert active(service, *waits_a, *waits_b) == [waits_b[0]]
    release(service, waits_b[0])
    assert active(service, *waits_a, *waits_b) == [waits_b[1]]
    release(service, *held)
    assert active(service, *waits_a) == waits_a


def test_there_is_a_queue_for_each_class(service):
    npus(service, 1)
    service.report(support.card('01'), host='host-2')
    held, other = ask(service), ask(service, resource_class='FPGA')
    waits = [ask(service), ask(service, resource_class='FPGA', priority=9)]
    assert [show(service, each)['position'] for each in waits] == [1, 1]
    release(service, held)
    assert active(service, *waits) == [waits[0]]
    release(service, other)
    assert active(service, *waits) == waits


def test_accelerators_that_the_first_cannot_use_go_to_the_next(service):
    npus(service, 2)
    service.report(npu('01', traits=['CUSTOM_B']), host='host-2')
    held = [ask(service, hosts=['host-1']), ask(service, hosts=['host-1'])]
    third = ask(service)
    wide = ask(service, 2, traits={'CUSTOM_A': 'required'})
    narrow = ask(service)
    release(service, held[0])
    # The freed card is kept for the wide one.
    assert active(service, wide, narrow) == []
    release(service, third)
    # host-2 can never serve the wide one.
    assert active(service, wide, narrow) == [narrow]
    release(service, held[1])
    assert active(service, wide, narrow) == [wide, narrow]


def test_a_host_without_links_is_of_no_use_where_they_are_required(service):
    cards = [npu(f'{n:02x}') for n in range(2)]
    cards[0].topology = {'links': {cards[1].address: 1}}
    service.report(*cards)
    npus(service, 2, host='host-2')
    held = ask(service, hosts=['host-1'])
    pair = ask(service, 2, link='require')
    assert state(service, pair) == 'queued'
    # Of three no host has a ring: it could never be served, and nothing is kept for it.
    never = ask(service, 3, link='require')
    assert state(service, ask(service, 2)) == 'active'
    assert service.api.post(PATH, body()).status_int == 409
    release(service, held)
    assert active(service, pair, never) == [pair]
    assert {each['host'] for each in show(service, pair)['accelerators']} == {'host-1'}


def test_a_wish_of_the_previous_release_is_served(service):
    npus(service, 2)
    held, waits = ask(service, 2), ask(service, 2)
    with service.database.writer() as session:
        row = session.query(model.Allocation).filter_by(uuid=waits).one()
        row.wish = {name: value for name, value in row.wish.items() if name != 'link'}
    release(service, held)
    assert active(service, waits) == [waits]


def test_a_host_that_is_too_small_is_of_no_use(service):
    npus(service, 2)
    service.report(npu('01'), host='host-2')
    held = ask(service, 2)
    wide = ask(service, 2)
    assert state(service, ask(service)) == 'active'
    assert state(service, wide) == 'queued'
    assert state(service, held) == 'active'


@pytest.mark.parametrize(
    ('wishes', 'read'),
    [
        ([['host-1'], ['host-1', 'host-2']], {'host-1', 'host-2'}),
        ([['host-1'], None], None),
        ([['host-1'], [f'host-{n}' for n in range(1000)]], {f'host-{n}' for n in range(1000)}),
        ([['other'], [f'host-{n}' for n in range(1000)]], None),
    ],
)
def test_a_step_reads_the_hosts_that_are_named(service, monkeypatch, wishes, read):
    npus(service, 1)
    held = ask(service)
    plain, seen = taking.free, []
    monkeypatch.setattr(taking, 'free', lambda *got: seen.append(got[2]) or plain(*got))
    first, _ = (ask(service, **({'hosts': hosts} if hosts else {})) for hosts in wishes)
    seen.clear()
    release(service, held)
    assert seen[0] == read
    assert state(service, first) == ('active' if 'host-1' in wishes[0] else 'queued')


def test_an_unqueued_request_takes_nothing_from_queued_ones(service):
    npus(service, 2)
    held = [ask(service), ask(service)]
    wide = ask(service, 2)
    release(service, held[0])
    answer = service.api.post(PATH, body())
    assert answer.status_int == 409
    assert '1 of CUSTOM_NPU free on 1 host, at most 1 on one, and 1 allocations wait for what is ' \
        'free' in support.fault(answer)  # fmt: skip
    tried = service.api.post(f'{PATH}?dry_run=true', body()).json
    assert tried['fits'] is False
    service.report(npu('01', traits=['CUSTOM_B']), host='host-2')
    assert service.api.post(PATH, body()).status_int == 201
    release(service, wide)
    assert service.api.post(PATH, body()).status_int == 201


@pytest.mark.parametrize('order', ['AABB', 'BBAA'])
@pytest.mark.parametrize('lost', [False, True])
def test_accelerators_kept_for_the_queue_stay_kept_when_hosts_are_locked(service, order, lost):
    """What is chosen in place of a lost one on a locked host is not kept either."""
    cards = [npu(f'{n:02x}', traits=[f'CUSTOM_{each}']) for n, each in enumerate(order)]
    service.report(*cards)
    one, two = (ask(service, traits={'CUSTOM_A': 'required'}) for _ in range(2))
    waits = ask(service, 2, traits={'CUSTOM_A': 'required'})
    release(service, one)
    with support.losing_chosen(int(lost)):
        [mine] = service.api.post(PATH, body()).json['accelerators']
    assert mine['address'] == f'0000:{order.index("B") + lost:02x}:00.0'
    release(service, two)
    assert state(service, waits) == 'active'


def nonsense(number, amount=16, **more):
    """A request with the maximum number of kinds, none of which exists."""
    groups = [
        {'resources': {'CUSTOM_NPU': 1}, 'traits': {f'CUSTOM_{number}_{each}': 'required'}}
        for each in range(amount)
    ]
    return {'groups': groups, 'queue': True, 'priority': 100} | more


def test_requests_of_many_kinds_block_no_others(service):
    """One statement reads the free accelerators of so many kinds; the next reads more kinds."""
    npus(service, 1)
    for number in range(6):
        assert service.api.post(PATH, nonsense(number)).status_int == 201
    service.settle()
    mine = ask(service)
    service.settle()
    assert state(service, mine) == 'active'
    behind = ask(service)
    release(service, mine)
    assert state(service, behind) == 'active'


def test_kept_accelerators_stay_kept_beyond_many_kinds(service):
    npus(service, 2)
    held = ask(service)
    first = ask(service, 2)
    for number in range(6):
        assert service.api.post(PATH, nonsense(number, priority=0)).status_int == 201
    last = ask(service, priority=-1)
    service.settle()
    assert (state(service, first), state(service, last)) == ('queued', 'queued')
    answer = service.api.post(PATH, body())
    assert answer.status_int == 409, answer.text
    release(service, held)
    assert (state(service, first), state(service, last)) == ('active', 'queued')


def test_a_request_of_many_kinds_keeps_its_place(service):
    npus(service, 2)
    ask(service)
    first = ask(service, 2)
    service.settle()
    alternatives = [nonsense(0, 15)['groups']]
    answer = service.api.post(PATH, body() | {'alternatives': alternatives})
    assert answer.status_int == 409, answer.text
    assert state(service, first) == 'queued'


@pytest.mark.parametrize('query', ['', '?dry_run=true'])
def test_too_many_kinds_are_refused(service, query):
    npus(service, 1)
    asked = nonsense(0) | {'alternatives': [nonsense(1, 1)['groups']]}
    answer = service.api.post(f'{PATH}{query}', asked)
    assert answer.status_int == 400
    assert 'at most 16 kinds' in support.fault(answer)


def test_a_profile_that_is_another_by_now_is_not_used(service):
    npus(service, 1)
    held = ask(service)
    made = {'name': 'p', 'groups': [{'resources:CUSTOM_NPU': '1'}]}
    uuid = service.api.post('/v2/device_profiles', [made]).json['uuid']
    waits = service.api.post(PATH, {'profile': 'p', 'queue': True}).json['uuid']
    with service.database.writer() as session:
        profile = session.query(model.DeviceProfile).filter_by(uuid=uuid).one()
        profile.groups = [{'resources:CUSTOM_NPU': '3'}]
    release(service, held)
    shown = show(service, waits)
    assert (shown['state'], len(shown['accelerators'])) == ('active', 1)


def test_a_deleted_queued_allocation_leaves_the_queue(service):
    npus(service, 2)
    held = [ask(service), ask(service)]
    wide, narrow = ask(service, 2, name='wide'), ask(service)
    release(service, held[0])
    assert active(service, wide, narrow) == []
    release(service, wide)
    assert active(service, narrow) == [narrow]
    shown = show(service, 'wide')
    assert (shown['state'], shown['reason']) == ('released', 'It was deleted.')
    assert (shown['position'], shown['accelerators']) == (None, [])
    assert ask(service, name='wide') != wide
    release(service, wide)


def test_a_long_wait_goes_first(service, member):
    npus(service, 1)
    member('a')
    held = ask(service)
    old = ask(service, priority=queue.LOWEST)
    member('b', 'admin,member,reader')
    new = ask(service, priority=queue.HIGHEST)
    assert show(service, new)['position'] == 1
    with service.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(seconds=queue.PATIENCE)
        session.execute(sa.update(model.Allocation)
                        .where(model.Allocation.uuid == old).values(created_at=past))  # fmt: skip
    assert show(service, new)['position'] == 2
    member('a')
    release(service, held)
    assert state(service, old) == 'active'


def limit(service, project=ALONE, **limits):
    assert service.api.patch(f'/v2/quotas/{project}', {'limits': limits}).status_int == 200
    service.settle()


NEEDS = 'It waits: needs {} of CUSTOM_NPU on one host: '


def test_the_first_of_a_queue_is_told_what_is_free_now(service):
    npus(service, 3)
    held = [ask(service) for _ in range(3)]
    first = ask(service, 3)
    assert show(service, first)['reason'] == NEEDS.format(3) + 'no CUSTOM_NPU is free.'
    for amount in 1, 2:
        release(service, held.pop())
        free = f'{amount} of CUSTOM_NPU free on 1 host, at most {amount} on one.'
        assert show(service, first)['reason'] == NEEDS.format(3) + free
    npus(service, 1, 'host-2')
    free = '3 of CUSTOM_NPU free on 2 hosts, at most 2 on one.'
    assert show(service, first)['reason'] == NEEDS.format(3) + free
    release(service, *held)
    assert show(service, first)['reason'] is None


def test_whether_it_could_ever_be_served_is_told_as_it_is_now(service):
    npus(service, 1)
    ask(service)
    never, unknown = ask(service, 2), ask(service, resource_class='CUSTOM_NONE')
    said = [show(service, each)['reason'] for each in (never, unknown)]
    assert 'even if all were free there would be 1 on one host' in said[0]
    assert said[1].startswith('It waits: needs 1 of CUSTOM_NONE: no CUSTOM_NONE is known, ')
    npus(service, 2)
    free = '1 of CUSTOM_NPU free on 1 host, at most 1 on one.'
    assert show(service, never)['reason'] == NEEDS.format(2) + free


def test_what_must_be_possible_waits_only_if_it_could_be_served(service):
    npus(service, 2)
    held = ask(service)
    assert state(service, ask(service, 2, possible=True)) == 'queued'
    for wanted in {'amount': 3}, {'resource_class': 'CUSTOM_NONE'}, {'hosts': ['host-9']}:
        answer = service.api.post(PATH, body(**wanted, queue=True, possible=True))
        assert answer.status_int == 409
        [found] = answer.json['errors'][0]['explanation']['alternatives']
        assert not found['fits_if_all_were_free']
        assert state(service, ask(service, **wanted)) == 'queued'
    # One alternative is enough, and so is what is over the quota.
    served = [[{'resources': {'CUSTOM_NPU': 2}}]]
    assert state(service, ask(service, 3, possible=True, alternatives=served)) == 'queued'
    limit(service, CUSTOM_NPU=1)
    assert state(service, ask(service, possible=True)) == 'queued'
    assert state(service, held) == 'active'


def test_those_behind_are_told_what_the_first_waits_for(service, member):
    npus(service, 4)
    held = ask(service, 3, lease=60)
    ends = show(service, held)['lease_ends_at']
    first = ask(service, 2, traits={'CUSTOM_A': 'required'}, hosts=['host-1'], priority=1)
    member('other')
    second, third = ask(service), ask(service)
    free = '1 of CUSTOM_NPU free on 1 host, at most 1 on one'
    own = f'It waits: needs 1 of CUSTOM_NPU: {free}; '
    before = f'needs 2 of CUSTOM_NPU with CUSTOM_A on one host: {free}'
    comes = f'; 3 of CUSTOM_NPU come free when lease {held} ends at {ends}.'
    # Another project is not told what the first asks for.
    numbers = ['1 allocation comes before it', '2 allocations come before it']
    reasons = [show(service, each)['reason'] for each in (second, third)]
    assert reasons == [f'{own}{each}{comes}' for each in numbers]
    assert service.api.get(f'{PATH}/{first}').status_int == 404
    member(ALONE, 'admin,member,reader')
    reasons = [show(service, each)['reason'] for each in (second, third)]
    needs = [f', which {before}', f', the first {before}']
    full = [f'{own}{each}{need}{comes}' for each, need in zip(numbers, needs, strict=True)]
    assert reasons == full
    member(ALONE)
    mine = ask(service)
    assert show(service, mine)['reason'] == full[1].replace('2 allocations', '3 allocations')


def test_what_is_over_its_quota_does_not_come_before(service, member):
    npus(service, 2)
    held = ask(service, 2)
    limit(service, CUSTOM_NPU=2)
    over = ask(service)
    service.settle()
    member('other')
    later = ask(service, 2)
    assert show(service, later)['reason'] == NEEDS.format(2) + 'no CUSTOM_NPU is free.'
    member(ALONE, 'admin,member,reader')
    quota = 'Quota exceeded for CUSTOM_NPU: the limit is 2, 2 used, and 1 asked for'
    assert show(service, over)['reason'] == f'{quota} in project {ALONE}.'
    assert state(service, held) == 'active'


def test_what_waits_is_told_which_alternative_its_quota_refuses(service, member):
    npus(service, 3)
    limit(service, CUSTOM_NPU=2)
    ask(service)
    waits = ask(service, 2, alternatives=[[{'resources': {'CUSTOM_NONE': 1}}]])
    none = 'needs 1 of CUSTOM_NONE: no CUSTOM_NONE is known, and even if all were free there ' \
        'would be none on one host'  # fmt: skip
    quota = 'Quota exceeded for CUSTOM_NPU: the limit is 2, {} used, and 2 asked for in ' \
        f'project {ALONE}'  # fmt: skip
    assert show(service, waits)['reason'] == f'It waits: {quota.format(1)}; or {none}.'
    ask(service)
    assert show(service, waits)['reason'] == f'It waits: {quota.format(2)}; or {none}.'
    # Those behind are not told of it.
    member('other')
    behind = ask(service, 4, priority=-1)
    member(ALONE, 'admin,member,reader')
    told = show(service, behind)['reason']
    assert ('Quota' in told, 'which needs 2 of CUSTOM_NPU on one host: ' in told) == (False, True)


@pytest.mark.parametrize(
    'error',
    [
        messaging.MessagingTimeout(),
        messaging.MessageUndeliverable(None, None, 'topic', {}),
        messaging.RemoteError('NoSuchMethod', 'explain_waiting'),
        exception.LimitsAway(reason='Keystone is away'),
        exception.DatabaseAway(reason='a conductor cannot reach it'),
    ],
    ids=type,
)
def test_the_stored_reason_is_shown_if_no_conductor_explains_it(service, monkeypatch, error):
    npus(service, 2)
    waits = ask(service, 3)
    stored = show(service, waits)['reason']
    npus(service, 1, 'host-2')
    assert show(service, waits)['reason'] != stored

    def call(*_, **__):
        raise error

    monkeypatch.setattr(rpc.Peer, '_call', call)
    assert show(service, waits)['reason'] == stored


def test_the_quota_counts_when_an_allocation_is_served(service, member):
    npus(service, 3)
    held = [ask(service) for _ in range(3)]
    waits = [ask(service), ask(service)]
    limit(service, CUSTOM_NPU=2)
    release(service, held[0])
    assert active(service, *waits) == []
    for each in waits:
        shown = show(service, each)
        assert shown['reason'] == (
            'Quota exceeded for CUSTOM_NPU: the limit is 2, 2 used, and 1 asked for in project '
            f'{shown["project_id"]}.'
        )
    # Accelerators beyond their quota are free for others.
    member('other', 'admin,member,reader')
    assert (other := service.api.post(PATH, body())).status_int == 201
    release(service, other.json['uuid'])
    # New requests go before those that their quota blocks.
    limit(service, CUSTOM_NPU=3)
    assert active(service, *waits) == [waits[0]]
    release(service, held[1])
    assert active(service, *waits) == waits
    assert len(service.rows(model.ARQ)) == 3


def test_what_a_quota_holds_up_comes_last(service, member):
    npus(service, 2)
    held = [ask(service) for _ in range(2)]
    first = ask(service)
    limit(service, CUSTOM_NPU=1)
    member('other', 'admin,member,reader')
    later = [ask(service) for _ in range(2)]
    service.settle()
    positions = {each['uuid']: each['position'] for each in
                 service.api.get(f'{PATH}?state=queued').json['allocations']}  # fmt: skip
    assert positions == {first: 3, later[0]: 1, later[1]: 2}
    assert show(service, first)['position'] == 3
    member(ALONE, 'admin,member,reader')
    release(service, held[0])
    assert active(service, first, *later) == later[:1]
    assert show(service, first)['position'] == 2


def test_the_quota_is_checked_under_its_lock(service, monkeypatch):
    """The check before it reads without a lock: another request may come in between."""
    npus(service, 3)
    held = [ask(service) for _ in range(3)]
    waits = ask(service)
    limit(service, CUSTOM_NPU=2)
    monkeypatch.setattr(serving, 'refusals', lambda *_: {})
    release(service, held[0])
    assert state(service, waits) == 'queued'
    assert show(service, waits)['reason'].startswith('Quota exceeded for CUSTOM_NPU: ')


def test_nothing_is_kept_for_an_allocation_over_its_quota(service, member):
    """Two are requested and one is free: the quota would refuse two anyway."""
    npus(service, 2)
    held = [ask(service) for _ in range(2)]
    waits = ask(service, 2)
    limit(service, CUSTOM_NPU=1)
    member('other', 'admin,member,reader')
    other = ask(service)
    member(ALONE, 'admin,member,reader')
    release(service, held[0])
    assert active(service, waits, other) == [other]
    assert show(service, waits)['reason'].startswith('Quota exceeded for CUSTOM_NPU: ')


def test_an_alternative_that_a_quota_refuses_is_passed_over(service):
    npus(service, 4)
    limit(service, CUSTOM_NPU=2)
    made = ask(service, 3, alternatives=[[{'resources': {'CUSTOM_NPU': 1}}]])
    service.settle()
    shown = show(service, made)
    assert (shown['state'], len(shown['accelerators'])) == ('active', 1)


def test_nothing_is_kept_for_an_alternative_that_a_quota_refuses(service, member):
    npus(service, 3)
    limit(service, CUSTOM_NPU=2)
    member('other', 'admin,member,reader')
    ask(service)
    member(ALONE, 'admin,member,reader')
    waits = ask(service, 3, alternatives=[[{'resources': {'CUSTOM_OTHER': 1}}]])
    service.settle()
    member('other', 'admin,member,reader')
    assert service.api.post(PATH, body()).status_int == 201
    member(ALONE, 'admin,member,reader')
    assert state(service, waits) == 'queued'


def test_an_allocation_waits_for_an_exhausted_quota(service):
    npus(service, 3)
    limit(service, CUSTOM_NPU=1)
    assert service.api.post(PATH, body()).status_int == 201
    assert service.api.post(PATH, body()).status_int == 403
    waits = ask(service)
    assert 'Quota exceeded' in show(service, waits)['reason']
    assert state(service, waits) == 'queued'
    answer = service.api.post(PATH, body(2, queue=True))
    assert (answer.status_int, 'limit is 1' in support.fault(answer)) == (403, True)
    [told] = answer.json['errors'][0]['explanation']['alternatives']
    assert told['reason'].startswith('Quota exceeded for CUSTOM_NPU: the limit is 1')
    assert service.api.delete(f'/v2/quotas/{ALONE}').status_int == 204
    service.settle()
    assert state(service, waits) == 'active'


def test_an_alternative_within_the_limit_waits(service):
    """None of the alternatives can be had, and the first one never."""
    npus(service, 1)
    limit(service, CUSTOM_NPU=1, total=3)
    ask(service)
    within = [[{'resources': {'CUSTOM_NPU': 1}}]]
    assert state(service, ask(service, 2, alternatives=within)) == 'queued'
    never = [[{'resources': {'CUSTOM_OTHER': 4}}]]
    answer = service.api.post(PATH, body(2, queue=True, alternatives=never))
    assert answer.status_int == 403
    first, second = answer.json['errors'][0]['explanation']['alternatives']
    assert 'for CUSTOM_NPU: the limit is 1' in first['reason']
    assert 'for total: the limit is 3' in second['reason']


def test_what_a_quota_holds_up_is_told_of_no_lease_that_ends(service):
    """It shows a number of the class, and no holder; the lease would not help."""
    npus(service, 4)
    limit(service, CUSTOM_NPU=2)
    lease = service.api.post(PATH, body(2, lease=60)).json['uuid']
    waits = ask(service)
    service.settle()
    assert 'free when lease' not in show(service, waits)['reason']
    assert show(service, waits)['position'] == 1
    limit(service, CUSTOM_NPU=9)
    service.settle()
    assert state(service, waits) == 'active'
    waits = ask(service, 4)
    assert f'; 2 of CUSTOM_NPU come free when lease {lease} ends at ' in \
        show(service, waits)['reason']  # fmt: skip


def test_only_a_lease_that_helps_is_named(service, member):
    """Its accelerators are of the class, the traits and the hosts; others learn no name."""
    npus(service, 1)
    npus(service, 1, 'host-2', traits=['CUSTOM_B'])
    held = [
        service.api.post(PATH, body(hosts=[host], lease=lease, name=f'{host}-x')).json
        for host, lease in (('host-1', 60), ('host-2', 7200))
    ]
    first, second = (f'lease {each["uuid"]} {each["name"]} ends at' for each in held)
    other = [[{'resources': {'CUSTOM_NPU': 1}}]]
    for wanted, named in (
        ({}, first),
        ({'hosts': ['host-2']}, second),
        ({'traits': {'CUSTOM_B': 'required'}}, second),
        ({'amount': 2, 'same_host': False}, first),
        # None of them could be served if all were free.
        ({'amount': 2}, None),
        ({'resource_class': 'CUSTOM_NONE'}, None),
        ({'hosts': ['host-9']}, None),
        ({'resource_class': 'CUSTOM_NONE', 'alternatives': other}, first),
    ):
        said = show(service, ask(service, **wanted))['reason']
        assert ('ends at' in said, (named or '') in said) == (named is not None, True), said
    [device] = [each.uuid for each in service.rows(model.Device) if each.hostname == 'host-1']
    assert service.api.post(f'/v2/devices/{device}/disable').status_int == 204
    assert first not in show(service, ask(service))['reason']
    member('other')
    said = show(service, ask(service))['reason']
    assert (held[1]['uuid'] in said, held[1]['name'] in said) == (True, False)


def test_a_lease_that_helps_only_what_a_quota_refuses_is_not_named(service, member):
    """The other alternative is within the quota, and waits for a later end."""
    npus(service, 2)
    npus(service, 1, 'host-2', traits=['CUSTOM_B'])
    service.api.post(PATH, body(2, hosts=['host-1'], lease=60))
    member('other', 'admin,member,reader')
    later = service.api.post(PATH, body(hosts=['host-2'], lease=7200)).json['uuid']
    member(ALONE, 'admin,member,reader')
    limit(service, CUSTOM_NPU=3)
    traits = {'CUSTOM_B': 'required'}
    waits = ask(service, 2, alternatives=[body(traits=traits)['groups']])
    assert (
        f'; 1 of CUSTOM_NPU comes free when lease {later} ends at' in show(service, waits)['reason']
    )


def test_the_limit_that_is_exceeded_for_good_is_named(service):
    npus(service, 5)
    limit(service, CUSTOM_NPU=3, total=2)
    ask(service)
    for wanted in body(3), body(3, queue=True):
        answer = service.api.post(PATH, wanted)
        assert (answer.status_int, 'for total: ' in support.fault(answer)) == (403, True)


def test_an_allocation_waits_for_requests_that_hold_nothing(service):
    """They count for the quota until they are deleted."""
    npus(service, 3)
    service.profile(CUSTOM_NPU=1)
    limit(service, CUSTOM_NPU=1)
    [arq] = service.arqs()
    waits = ask(service)
    assert state(service, waits) == 'queued'
    assert service.api.delete(f'/v2/accelerator_requests/{arq}').status_int == 204
    service.settle()
    assert state(service, waits) == 'active'


def test_an_allocation_waits_for_a_request_that_gets_another_project(service):
    npus(service, 3)
    service.profile(CUSTOM_NPU=1)
    limit(service, CUSTOM_NPU=1)
    [arq] = service.arqs()
    waits = ask(service)
    part = service.rows(model.Deployable)[0]
    patch = support.wish(part.rp_uuid, 'host-1', support.INSTANCE)
    patch.append({'op': 'add', 'path': '/project_id', 'value': 'p'})
    moved = service.api.at('2.1').patch('/v2/accelerator_requests', {arq: patch})
    assert moved.status_int == 202
    service.settle()
    assert state(service, waits) == 'active'


def test_each_release_serves_the_queue(service):
    """One device is disabled, one held by Nova, one by an allocation with a lease."""
    npus(service, 3)
    service.profile(CUSTOM_NPU=1)
    [disabled, *_] = service.rows(model.Device)
    [_, bound, last] = service.rows(model.Deployable)

    def bind():
        [arq] = service.arqs()
        answer = service.api.bind(arq, provider=bound.rp_uuid, instance=support.INSTANCE)
        assert answer.status_int == 202
        return arq

    def then(answer, status=204):
        assert answer.status_int == status, answer.text
        service.settle()
        assert state(service, waits) == 'active'
        release(service, waits)
        return ask(service)

    arq = bind()
    assert service.api.post(f'/v2/devices/{disabled.uuid}/disable').status_int == 204
    ask(service, lease=3600)
    waits = ask(service)
    waits = then(service.api.unbind(arq), 202)
    release(service, waits)
    bind()
    waits = ask(service)
    path = f'/v2/accelerator_requests?instance={support.INSTANCE}'
    waits = then(service.api.delete(path))
    release(service, waits)
    bind()
    waits = ask(service)
    waits = then(service.api.post(f'/v2/devices/{disabled.uuid}/enable'))
    held, waits = waits, ask(service)
    npus(service, 1, 'host-2')
    service.settle()
    assert state(service, waits) == 'active'
    new = ask(service, traits={'CUSTOM_NEW': 'required'})
    attribute = {'deployable_id': last.id, 'key': 'trait7', 'value': 'CUSTOM_NEW'}
    assert service.api.post('/v2/attributes', attribute).status_int == 201
    release(service, held, waits)
    assert state(service, new) == 'queued'
    with service.database.writer() as session:
        leased = sa.update(model.Allocation).where(model.Allocation.lease.is_not(None))
        session.execute(leased.values(lease_ends_at=datetime.datetime(2000, 1, 1)))
    service.manager.healer.expire()
    service.settle()
    assert state(service, new) == 'active'


def test_a_host_that_is_up_again(service):
    npus(service, 1)
    with service.database.writer() as session:
        session.execute(sa.update(model.Host).values(silent=True))
    waits = ask(service)
    npus(service, 1)
    # It was late, but not marked as down: the healer checks this, too.
    service.manager.healer._wake()
    service.settle()
    assert state(service, waits) == 'active'


def test_a_conductor_that_dies_loses_nothing(service):
    """Its messages are sent again."""
    npus(service, 1)
    held, waits = ask(service), ask(service)
    service.settle()
    sender = service.manager.outbox
    with unittest.mock.patch.object(sender, '_wake'):
        assert service.api.delete(f'{PATH}/{held}').status_int == 204
    [message] = support.take(sender, 'queue')
    assert support.take(sender, 'queue') == []
    with service.database.writer() as session:
        session.execute(sa.update(model.Message).values(due_at=message.created_at))
    service.settle()
    assert state(service, waits) == 'active'


def test_two_conductors_that_serve_at_once_serve_once(service):
    npus(service, 3)
    held = [ask(service) for _ in range(3)]
    waits = [ask(service) for _ in range(4)]
    with unittest.mock.patch.object(service.manager.outbox, '_wake'):
        for each in held:
            assert service.api.delete(f'{PATH}/{each}').status_int == 204
    threads = [threading.Thread(target=service.manager._serve_all) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert active(service, *waits) == waits[:3]
    handles = [arq.attach_handle_id for arq in service.rows(model.ARQ)]
    assert len(set(handles)) == len(handles) == 3
    service.settle()


def test_an_allocation_is_served_or_deleted_once(service):
    ask(service)
    service.settle()
    with service.database.writer() as session:
        allocation = session.scalars(sa.select(model.Allocation)).one()
        serving.leave(session, allocation, 'It was deleted.')
        with pytest.raises(orm_exception.StaleDataError):
            serving.leave(session, allocation, 'It was deleted.')


def test_too_many_of_a_project(service, monkeypatch):
    monkeypatch.setattr('cyborg_lite.conductor.serving.MOST', 2)
    for _ in range(2):
        ask(service)
    answer = service.api.post(PATH, body(queue=True))
    assert (answer.status_int, '2 allocations' in support.fault(answer)) == (409, True)


def test_a_repeated_key_waits_once(service):
    key = {'Idempotency-Key': 'a'}
    answers = [service.api.post(PATH, body(queue=True), **key) for _ in range(2)]
    assert answers[0].json == answers[1].json
    assert len(service.rows(model.Allocation)) == 1
    assert service.api.post(PATH, body(queue=True, priority=1), **key).status_int == 422


def test_hosts_and_alternatives_are_kept_to(service):
    npus(service, 1)
    npus(service, 1, 'host-2')
    held = {show(service, each)['accelerators'][0]['host']: each
            for each in (ask(service), ask(service))}  # fmt: skip
    waits = service.api.post(PATH, body(2, queue=True, hosts=['host-2'],
                                        alternatives=[body()['groups']])).json  # fmt: skip
    release(service, held['host-1'])
    assert state(service, waits['uuid']) == 'queued'
    release(service, held['host-2'])
    served = show(service, waits['uuid'])
    assert [each['host'] for each in served['accelerators']] == ['host-2']
    assert served['groups'] == body()['groups']


def sent(statements):
    return [each for each in statements if not each.startswith('BEGIN')]


@pytest.mark.parametrize(('by', 'waiting'), [('profile', 1), ('groups', 6)])
@pytest.mark.parametrize('limited', [False, True])
@pytest.mark.parametrize('behind', [False, True])
def test_a_step_takes_eight_statements_for_each_device(service, waiting, by, limited, behind):
    """A server counts once more under the lock of the project, and locks the host.

    :param behind: whether they are behind one that cannot be served.
    """
    npus(service, 1)
    held = ask(service)
    more = 0 if engine.has_one_writer(service.database.engine) else 2 * limited
    if behind:
        npus(service, 2, 'host-2')
        for _ in range(2):
            ask(service)
        assert state(service, ask(service, 2)) == 'queued'
    if limited:
        limit(service, CUSTOM_NPU=90)
    service.profile(CUSTOM_NPU=1)
    wanted = {'profile': 'profile-1'} if by == 'profile' else body()
    for _ in range(waiting):
        assert service.api.post(PATH, wanted | {'queue': True}).json['state'] == 'queued'
    service.settle()
    with unittest.mock.patch.object(service.manager.outbox, '_wake'):
        assert service.api.delete(f'{PATH}/{held}').status_int == 204
    with service.statements(but='outbox') as statements:
        service.manager._serve_all()
    left = [each for each in service.rows(model.Allocation) if each.state == 'queued']
    assert len(left) == waiting - 1 + behind
    assert len(sent(statements)) <= 8 + more, sent(statements)
    service.settle()
    with service.statements(but='outbox') as statements:
        service.manager._serve_all()
    assert len(sent(statements)) <= (3 if limited else 2), sent(statements)


def test_to_join_takes_twelve_statements_and_to_look_three(service):
    npus(service, 1)
    ask(service)
    sender = service.manager.outbox
    with unittest.mock.patch.object(sender, '_wake'), service.statements() as statements:
        ask(service, name='a')
    assert len(sent(statements)) <= 12, sent(statements)
    with service.statements() as statements:
        service.api.get(f'{PATH}?state=queued')
    assert len(sent(statements)) <= 3, sent(statements)
    service.settle()


@pytest.mark.parametrize('limited', [False, True])
@pytest.mark.parametrize('reserved', [False, True])
def test_to_explain_takes_a_few_statements_and_writes_nothing(service, limited, reserved):
    """Five for the first of its queue, and one more for another; more if there are limits, and to
    name reservations.
    """
    npus(service, 2)
    ask(service)
    if reserved:
        at = timeutils.utcnow() + datetime.timedelta(seconds=1000)
        kept = body(starts_at=at.isoformat(), lease=60)
        assert service.api.post(PATH, kept).status_int == 201
    if limited:
        limit(service, CUSTOM_NPU=90)
    first, *behind = [ask(service, 2) for _ in range(4)]
    service.settle()
    for uuids, most in ([first], 5), (behind, 6):
        more = (limited and 2) + (reserved and most - 4)
        for uuid in uuids:
            with service.statements(but='outbox') as statements:
                assert show(service, uuid)['state'] == 'queued'
            assert len(sent(statements)) <= most + more, sent(statements)
            assert {each.split()[0] for each in sent(statements)} == {'SELECT'}


def test_an_agent_asks_only_of_its_host(service):
    """Of those that wait there the first is explained, in two statements."""
    npus(service, 2)
    npus(service, 3, 'host-2')
    ask(service, hosts=['host-1'])
    waits = [ask(service, amount, hosts=['host-1']) for amount in (2, 3)]
    statements = service.statements(but='outbox')
    with service.database.reader() as session, statements as seen:
        found = waiting_.explain_first(session, {*waits})
    free = '1 of CUSTOM_NPU free on 1 host, at most 1 on one.'
    assert found == {waits[0]: NEEDS.format(2) + free}
    _, counts = sent(seen)
    assert 'hostname IN' in counts.partition('GROUP BY')[0].rpartition('WHERE')[2]
    release(service, *waits)
    with service.database.reader() as session:
        assert waiting_.explain_first(session, {*waits}) == {}


@contextlib.contextmanager
def later(action):
    """Call something a little later, in a thread."""
    timer = threading.Timer(0.3, action)
    timer.start()
    yield
    timer.join()


def timed(ask_):
    began = time.monotonic()
    answer = ask_()
    return answer, time.monotonic() - began


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_a_request_waits_until_it_is_served(service, method):
    npus(service, 1)
    held = ask(service)
    other = support.Api(support.local(service.embedded.application))
    if method == 'GET':
        path = f'{PATH}/{ask(service)}?wait=30'
        wait = lambda: service.api.get(path)  # noqa: E731
    else:
        wait = lambda: service.api.post(f'{PATH}?wait=30', body(queue=True))  # noqa: E731
    with later(lambda: other.delete(f'{PATH}/{held}')):
        answer, seconds = timed(wait)
    assert answer.json['state'] == 'active'
    assert seconds < 10


def test_a_waiting_request_is_answered_at_a_delete_and_at_its_timeout(service):
    waits = ask(service)
    other = support.Api(support.local(service.embedded.application))
    answer, seconds = timed(lambda: service.api.get(f'{PATH}/{waits}?wait=1'))
    assert (answer.json['state'], 1 <= seconds < 10) == ('queued', True)
    with later(lambda: other.delete(f'{PATH}/{waits}')):
        answer, seconds = timed(lambda: service.api.get(f'{PATH}/{waits}?wait=30'))
    assert (answer.json['state'], seconds < 10) == ('released', True)
    # The request does not need to wait.
    _, seconds = timed(lambda: service.api.get(f'{PATH}/{waits}?wait=60'))
    assert seconds < 10


def test_an_invalid_wait(service):
    for value in ('-1', '61', 'a', '', '1.5', '0x1', '999999999999', '1&wait=2'):
        for answer in (
            service.api.get(f'{PATH}/{support.INSTANCE}?wait={value}'),
            service.api.post(f'{PATH}?wait={value}', body(queue=True)),
        ):
            assert (answer.status_int, 'wait' in support.fault(answer)) == (400, True)
    assert service.rows(model.Allocation) == []


def test_waiting_requests_hold_no_connection_and_are_limited(database_url):
    service = support.Service(database_url, api__max_waiting=2)
    try:
        waits = ask(service)
        app_, connections, threads = service.embedded.application, set(), []

        def note(keep, raw):
            # Statements of conductors are not counted.
            if threading.current_thread() in threads:
                keep(id(raw))

        for name, keep in (('checkout', connections.add), ('checkin', connections.discard)):
            event.listen(service.database.engine, name, lambda raw, *_, keep=keep: note(keep, raw))
        looks = threading.Semaphore(0)
        with unittest.mock.patch('time.sleep', lambda _: looks.release() or ended.wait(30)):
            ended = threading.Event()
            threads += [
                threading.Thread(
                    target=lambda: support.Api(support.local(app_)).get(f'{PATH}/{waits}?wait=60')
                )
                for _ in range(2)
            ]
            for each in threads:
                each.start()
            for _ in threads:
                assert looks.acquire(timeout=30)
            assert not connections
            # A third one is answered at once.
            answer, seconds = timed(lambda: service.api.get(f'{PATH}/{waits}?wait=60'))
            assert (answer.json['state'], seconds < 10) == ('queued', True)
            service.api.delete(f'{PATH}/{waits}')
            ended.set()
            for each in threads:
                each.join(30)
                assert not each.is_alive()
    finally:
        service.stop()


def test_a_waiting_request_is_answered_when_the_server_stops(service):
    waits = ask(service)
    stopping = {'cyborg_lite.stopping': lambda: True}
    api = service.api._app
    answer, seconds = timed(lambda: api.get(f'{PATH}/{waits}?wait=60', extra_environ=stopping))
    assert (answer.json['state'], seconds < 10) == ('queued', True)


AWAY = [
    db_exception.DBConnectionError(), sa.exc.TimeoutError(),
    exception.DatabaseAway(reason='it is full'),
]  # fmt: skip


@pytest.mark.parametrize('error', AWAY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize('asked', ['POST', 'GET'])
def test_a_wait_survives_an_outage_of_the_database(service, asked, error):
    npus(service, 1)
    held, plain, looks = ask(service), waiting.wait, []
    waits = ask(service) if asked == 'GET' else None

    def wait(done, seconds):
        def look():
            looks.append(1)
            if len(looks) == 2:
                release(service, held)
            if len(looks) < 3:
                raise error
            return done()

        plain(look, seconds)

    with unittest.mock.patch.object(waiting, 'wait', wait):
        if asked == 'GET':
            answer = service.api.get(f'{PATH}/{waits}?wait=30')
        else:
            answer = service.api.post(f'{PATH}?wait=30', body(queue=True))
    assert (answer.status_int, answer.json['state']) == (200 if waits else 201, 'active')


def test_another_error_ends_a_wait(service):
    waits = ask(service)
    with unittest.mock.patch.object(service.database, 'reader', side_effect=ValueError):
        assert service.api.get(f'{PATH}/{waits}?wait=30').status_int == 500


@pytest.mark.parametrize('error', AWAY, ids=lambda error: type(error).__name__)
def test_an_allocation_that_cannot_be_read_is_named(service, error):
    """Otherwise its client could neither wait for it nor release it."""
    npus(service, 1)
    with unittest.mock.patch.object(allocations.Allocations, 'fetch', side_effect=error):
        answer = service.api.post(PATH, body())
    [made] = service.rows(model.Allocation)
    assert answer.status_int == 503
    assert f'Allocation {made.uuid} is created' in support.fault(answer)

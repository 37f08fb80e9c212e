# SPDX-License-Identifier: Apache-2.0
"""What agents may ask for processes of their hosts, on every database."""

import datetime
import itertools
import uuid as uuidlib

import oslo_messaging as messaging
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import leases as leases_
from cyborg_lite.conductor import releasing
from cyborg_lite.db import accelerators
from tests import support
from tests.unit.conductor import direct

HOST = support.HOST
PROCESS = {
    'boot_id': 'b-1', 'pid': 7, 'started': 9, 'uid': 1000, 'user': 'jane', 'command': 'python',
}  # fmt: skip


@pytest.fixture
def agent(conductor):
    """What an agent says of itself: its host has two FPGAs, and is reported."""
    conductor.report(support.card('3b'), support.card('5e'), agent='agent-1')
    return {'host': HOST, 'agent': 'agent-1'}


def ask(conductor, method, **words):
    """What a conductor answers an agent; its errors come as they are."""
    try:
        return getattr(conductor._manager.leases, method)(context.service(), **words)
    except messaging.ExpectedException as expected:
        raise expected.exc_info[1] from None


def lease(conductor, agent, process=(), uuid=None, **request):
    told = {'process': PROCESS | dict(process), 'request': request, 'uuid': uuid}
    return ask(conductor, 'lease', **told, **agent)


def leases(conductor, agent):
    return ask(conductor, 'leases', **agent)


def end(conductor, agent, row):
    ask(conductor, 'end_lease', uuid=row['uuid'], cause='It ended.', **agent)


def test_a_lease_is_an_allocation_of_the_users_project(conductor, agent):
    row = lease(conductor, agent)
    assert (row['state'], row['project_id'], row['position']) == ('active', 'jane', None)
    assert row['consumer_id'] == f'{HOST}/b-1/7/9/1000/jane/python'
    [allocation] = conductor.rows(model.Allocation)
    assert (allocation.consumer_type, allocation.uuid) == ('local_process', row['uuid'])
    assert [each['uuid'] for each in leases(conductor, agent)] == [row['uuid']]


def test_one_waits_until_another_ends(conductor, agent):
    first = lease(conductor, agent, count=2)
    second = lease(conductor, agent, count=1, queue=True)
    assert (second['state'], second['position']) == ('queued', 1)
    end(conductor, agent, first)
    conductor._manager._serve_all()
    [row] = leases(conductor, agent)
    assert (row['uuid'], row['state']) == (second['uuid'], 'active')
    assert len(row['accelerators']) == 1


@pytest.mark.parametrize('others', [0, 1])
def test_only_a_card_that_nobody_else_holds_is_kept_until_it_is_closed(conductor, others):
    """A holder of another part is told of no lease of others."""
    conductor.report(support.card('3b', handles=2), agent='agent-1', observes=True)
    agent = {'host': HOST, 'agent': 'agent-1'}
    row, *_ = [lease(conductor, agent) for _ in range(1 + others)]
    with conductor.database.writer() as session:
        [allocation] = session.query(model.Allocation).filter_by(uuid=row['uuid'])
        releasing.end(session, allocation, 'It was deleted.')
    noted = None if others else f'whoever had lease {row["uuid"]}, until its host has looked'
    assert [each.rogue for each in conductor.rows(model.Device)] == [noted]


def test_links_can_be_required(conductor, agent):
    with pytest.raises(exception.CannotAllocate, match='in a ring of links'):
        lease(conductor, agent, count=2, link='require')
    assert lease(conductor, agent, count=2, link='prefer')['state'] == 'active'
    for link in ('always', True, None, ['require']):
        with pytest.raises(exception.Invalid, match='link'):
            lease(conductor, agent, link=link)


def test_labels_are_kept_and_told(conductor, agent):
    labels = {'claimed_name': '简', 'note': 'x' * 255}
    row = lease(conductor, agent, **labels)
    [allocation] = conductor.rows(model.Allocation)
    for made in (row, *leases(conductor, agent)):
        assert {field: made[field] for field in labels} == labels
    assert (allocation.claimed_name, allocation.note) == tuple(labels.values())
    # An agent of the release before says none.
    plain = lease(conductor, agent, {'pid': 8})
    assert (plain['claimed_name'], plain['note']) == (None, None)
    # They may be the same as those of others: they are no names of a lease.
    end(conductor, agent, plain)
    assert lease(conductor, agent, {'pid': 9}, **labels)['state'] == 'active'


def contain(conductor, agent, containers):
    ask(conductor, 'contain', containers=containers, **agent)


def test_the_container_of_a_lease_is_kept_and_told(conductor, agent):
    one, other = lease(conductor, agent), lease(conductor, agent, {'pid': 8})
    assert (one['container'], other['container']) == (None, None)
    contain(conductor, agent, {one['uuid']: '0123456789ab', other['uuid']: None})
    told = {row['uuid']: row['container'] for row in leases(conductor, agent)}
    assert told == {one['uuid']: '0123456789ab', other['uuid']: None}
    shown = {
        each.allocation_uuid: each.container for each in conductor.rows(accelerators.Accelerator)
    }
    assert shown == told
    contain(conductor, agent, {one['uuid']: None})
    assert {row['container'] for row in leases(conductor, agent)} == {None}


def test_an_agent_tells_containers_of_its_leases_alone(conductor, agent):
    mine = lease(conductor, agent)
    conductor.report(support.card('3b'), host='other', agent='agent-2')
    found = {mine['uuid']: '0123456789ab'}
    contain(conductor, {'host': 'other', 'agent': 'agent-2'}, found)
    with pytest.raises(exception.Conflict, match='not reported by this agent'):
        contain(conductor, agent | {'agent': 'agent-2'}, found)
    end(conductor, agent, mine)
    contain(conductor, agent, found)
    [allocation] = conductor.rows(model.Allocation)
    assert allocation.container is None


ANY = str(uuidlib.UUID(int=1))


@pytest.mark.parametrize(
    'containers',
    [
        *({ANY: each} for each in ('', 'ab\x1b[2J', 'x', 'a' * 65, 'ab\n', 7, [])),
        {'1': '0123456789ab'},
        [],
        'abc',
        {str(uuidlib.UUID(int=number)): None for number in range(1001)},
    ],
)
def test_containers_that_are_none_are_refused(conductor, agent, containers):
    with pytest.raises(exception.Invalid, match='Invalid '):
        contain(conductor, agent, containers)


def test_what_is_held_without_a_lease_is_told_with_its_cards(conductor, agent):
    """One row for each holder, in the order in which they came."""
    conductor.report(*map(support.card, ('3b', '5e', '7a')), agent='agent-1')
    lease(conductor, agent)
    request = {
        'profile': None, 'alternatives': [[{'resources:FPGA': '2'}]], 'same_host': True,
        'same_numa': 'prefer', 'hosts': None, 'note': 'of the API',
    }  # fmt: skip
    made = conductor.create_allocation(direct.member(), request=request)
    with conductor.database.reader() as session:
        statement = sa.select(model.Allocation).where(model.Allocation.uuid == made)
        held = [each['address'] for each in session.scalars(statement).one().accelerators]
    [told] = ask(conductor, 'holders', **agent)
    assert (told['amount'], sorted(told['addresses'])) == (2, sorted(held))
    assert (told['note'], told['ends']) == ('of the API', None)


def test_an_end_is_idempotent(conductor, agent):
    row = lease(conductor, agent)
    end(conductor, agent, row)
    end(conductor, agent, row)
    assert leases(conductor, agent) == []
    [allocation] = conductor.rows(model.Allocation)
    assert (allocation.state, allocation.cause) == ('released', 'It ended.')


def test_a_lease_that_is_asked_for_again_is_the_same(conductor, agent):
    """An agent that got no answer makes no second one, and knows which to end."""
    uuid = str(uuidlib.uuid4())
    first, second = (lease(conductor, agent, uuid=uuid) for _ in range(2))
    assert first == second
    assert (first['uuid'], len(conductor.rows(model.Allocation))) == (uuid, 1)
    end(conductor, agent, first)
    with pytest.raises(exception.Conflict, match='has ended'):
        lease(conductor, agent, uuid=uuid)


def test_a_uuid_that_another_allocation_has_is_refused(conductor, agent):
    request = {
        'profile': None, 'alternatives': [[{'resources:FPGA': '1'}]], 'same_host': True,
        'same_numa': 'prefer', 'hosts': None,
    }  # fmt: skip
    made = conductor.create_allocation(direct.member(), request=request)
    leased = lease(conductor, agent)['uuid']
    for uuid, process in ((made, {}), (leased, {'pid': 8})):
        with pytest.raises(exception.Conflict, match='of another consumer'):
            lease(conductor, agent, process, uuid=uuid)
    for uuid in ('', 'a', leased.upper(), 7):
        with pytest.raises(exception.Invalid, match='Invalid uuid'):
            lease(conductor, agent, uuid=uuid)


def test_leases_are_of_one_host(conductor, agent):
    """Also where the name of one is a pattern that the name of another fits, or differs in case."""
    for name in (f'{HOST}1', 'a_1', 'ab1', HOST.upper()):
        conductor.report(support.card('3b'), host=name, agent=name)
    others = (f'{HOST}1', 'ab1', HOST.upper())
    theirs = [lease(conductor, {'host': name, 'agent': name}) for name in others]
    pattern = {'host': 'a_1', 'agent': 'a_1'}
    for each in (agent, pattern):
        assert leases(conductor, each) == []
        for row in theirs:
            end(conductor, each, row)
    assert {row.state for row in conductor.rows(model.Allocation)} == {'active'}
    mine = lease(conductor, agent)
    assert {each['host'] for each in mine['accelerators']} == {HOST}


def test_a_stranger_is_refused(conductor, agent):
    row = lease(conductor, agent)
    for other in ({'host': HOST, 'agent': 'agent-2'}, {'host': 'elsewhere', 'agent': 'agent-1'}):
        for each in (lease, leases, lambda *args: end(*args, row)):
            with pytest.raises(exception.Conflict, match='not reported by this agent'):
                each(conductor, other)
    assert len(leases(conductor, agent)) == 1


@pytest.mark.parametrize('known', [True, False])
def test_leases_stay_those_of_a_host_that_is_renamed(conductor, known):
    """Whether the machine has reported under its new name before, or does so later."""
    machine = 'm' * 32
    other = {'host': 'other', 'agent': 'c'}
    conductor.report(support.card('3b'), machine='n' * 32, **other)
    theirs = lease(conductor, other)
    old, new = {'host': 'old', 'agent': 'a'}, {'host': 'new', 'agent': 'b'}
    conductor.report(support.card('3b'), support.card('5e'), machine=machine, **old)
    made = lease(conductor, old)
    if known:
        conductor.report(support.card('3b'), support.card('5e'), machine=machine, **new)
    else:
        with conductor.database.writer() as session:
            late = sa.update(model.Host).where(model.Host.name == 'old')
            past = timeutils.utcnow() - datetime.timedelta(seconds=51)
            session.execute(late.values(seen_at=past, silent=True))
    conductor.rename_host(name='old', to='new')
    conductor.report(support.card('3b'), support.card('5e'), machine=machine, **new)
    [row] = leases(conductor, new)
    assert (row['uuid'], row['consumer_id']) == (made['uuid'], 'new/b-1/7/9/1000/jane/python')
    assert [each['host'] for each in row['accelerators']] == ['new']
    end(conductor, new, row)
    assert leases(conductor, new) == []
    [left] = conductor.rows(model.ARQ)
    assert left.allocation_uuid == theirs['uuid']
    assert leases(conductor, other)[0]['consumer_id'] == 'other/b-1/7/9/1000/jane/python'


@pytest.mark.parametrize(('length', 'id'), [(230, '/b-1/7/9/1000/jane/python'), (237, None)])
def test_the_end_of_an_id_is_cut_where_the_new_name_is_long(conductor, caplog, length, id):
    conductor.report(support.card('3b'), host='old', agent='a', machine='m' * 32)
    lease(conductor, {'host': 'old', 'agent': 'a'})
    new = 'n' * length
    conductor.report(support.card('3b'), host=new, agent='b', machine='m' * 32)
    conductor.rename_host(name='old', to=new)
    found = [each['consumer_id'] for each in leases(conductor, {'host': new, 'agent': 'b'})]
    assert found == ([(new + id)[:255]] if id else [])


def test_the_agent_of_a_name_before_is_a_stranger(conductor):
    """A machine that has another name reports under it, and is served for it alone."""
    machine = 'm' * 32
    for name in ('old', 'new'):
        conductor.report(support.card('3b'), host=name, agent=name, machine=machine)
    for each in (lease, leases):
        with pytest.raises(exception.Conflict, match='not reported by this agent'):
            each(conductor, {'host': 'old', 'agent': 'old'})
    assert leases(conductor, {'host': 'new', 'agent': 'new'}) == []


@pytest.mark.parametrize('known', [{'machine': 'm-1'}, {'secret': 's-1'}])
def test_an_agent_that_knows_the_boot_alone_is_a_stranger(conductor, known):
    """A user of the host sees the boot, and can give it to another agent."""
    mine, other = ({'host': HOST, 'agent': each} for each in ('agent-1', 'agent-2'))
    for sequence in range(2):
        conductor.report(support.card('3b'), agent='agent-1', sequence=sequence + 1, **known)
    row = lease(conductor, mine)
    conductor.report(agent='agent-2', sequence=2**40)
    for each in (lease, leases, lambda *args: end(*args, row)):
        with pytest.raises(exception.Conflict, match='not reported by this agent'):
            each(conductor, other)
    assert [each['state'] for each in leases(conductor, mine)] == ['active']
    assert not conductor.device().absences


@pytest.mark.parametrize(
    ('bad', 'said'),
    [
        ({'host': ['a'] * 10**6}, 'Invalid host'),
        ({'agent': 'a' * 10**6}, 'Invalid agent'),
        ({'uuid': 'a' * 10**6}, 'Invalid uuid'),
        ({'cause': 'a' * 10**6}, 'Invalid cause'),
        ({'cause': None}, 'Invalid cause'),
    ],
)
def test_news_of_a_lease_are_checked(conductor, agent, caplog, bad, said):
    row = lease(conductor, agent)
    words = agent | {'uuid': row['uuid'], 'cause': 'It ended.'} | bad
    with caplog.at_level('INFO'), pytest.raises(exception.Invalid, match=said) as raised:
        ask(conductor, 'end_lease', **words)
    assert len(str(raised.value)) < 1000
    assert max(len(line) for line in caplog.messages) < 6000
    assert len(leases(conductor, agent)) == 1


@pytest.mark.parametrize('method', ['lease', 'leases', 'holders'])
@pytest.mark.parametrize('bad', [{'host': 'a' * 256}, {'agent': 'a' * 37}, {'host': None}])
def test_who_asks_is_checked(conductor, agent, method, bad):
    more = {'process': PROCESS, 'request': {}} if method == 'lease' else {}
    with pytest.raises(exception.Invalid, match=f'Invalid {next(iter(bad))}'):
        ask(conductor, method, **(agent | more | bad))


@pytest.mark.parametrize('process', [[], None, 'text', 7])
def test_a_process_that_is_none(conductor, agent, process):
    with pytest.raises(exception.Invalid, match='Invalid process'):
        ask(conductor, 'lease', process=process, request={}, **agent)


@pytest.mark.parametrize(
    ('process', 'request_', 'said'),
    [
        ({'pid': '7'}, {}, 'Invalid pid'),
        ({'boot_id': 'a/b'}, {}, 'Invalid boot_id'),
        ({'user': 7}, {}, 'Invalid user'),
        ({'more': 7}, {}, 'Invalid process'),
        ({}, {'count': 0}, 'Invalid count'),
        ({}, {'count': True}, 'Invalid count'),
        ({}, {'seconds': 2**40}, 'Invalid seconds'),
        ({}, {'hosts': ['b']}, 'Invalid request'),
        ({}, {'traits': {'CUSTOM_A': 'wanted'}}, 'Invalid traits'),
        ({}, {'resource_class': 'a b'}, 'Invalid resource_class'),
        ({}, {'name': ''}, 'Invalid name'),
    ],
)
def test_data_from_an_agent_are_checked(conductor, agent, process, request_, said):
    with pytest.raises(exception.Invalid, match=said):
        lease(conductor, agent, process, **request_)
    assert not conductor.rows(model.Allocation)


def test_which_class_is_meant(conductor, agent):
    assert lease(conductor, agent)['state'] == 'active'
    npu = support.card('6a', type='AICHIP', resource_class='CUSTOM_NPU', traits=[])
    conductor.report(support.card('3b'), support.card('5e'), npu, agent='agent-1')
    with pytest.raises(exception.Invalid, match='expected one of CUSTOM_NPU, FPGA'):
        lease(conductor, agent)
    for name in ('npu', 'Custom_NPU', 'aichip'):
        row = lease(conductor, agent, resource_class=name)
        assert row['accelerators'][0]['type'] == 'AICHIP'
        end(conductor, agent, row)


def test_a_lease_costs_at_most_four_statements_more_than_an_allocation(conductor, agent):
    request = {
        'profile': None, 'alternatives': [[{'resources:FPGA': '1'}]], 'same_host': True,
        'same_numa': 'prefer', 'hosts': [HOST],
    }  # fmt: skip
    with conductor.statements() as plain:
        conductor.create_allocation(direct.member(), request=request)
    with conductor.statements() as leased:
        lease(conductor, agent)
    # Whose agent it is, which class is meant, and the row, in a transaction of its own.
    assert len(leased) <= len(plain) + 5


def used(conductor, *slots):
    """The agent reports that processes use these cards of two without a lease."""
    cards = [support.card(slot) for slot in ('3b', '5e')]
    for card in cards:
        card.rogue = '7 jane (python) since 2026-11-28T07:00Z' if card.address in slots else None
    conductor.report(*cards, agent='agent-1')
    return conductor.rows(accelerators.Accelerator)


ONE, TWO = support.card('3b').address, support.card('5e').address


def states(conductor):
    return {each.address: each.state for each in conductor.rows(accelerators.Accelerator)}


def test_what_a_process_uses_is_leased_to_it(conductor, agent):
    used(conductor, ONE)
    row = lease(conductor, agent, addresses=[ONE], name='job')
    assert [each['address'] for each in row['accelerators']] == [ONE]
    assert (row['state'], row['name'], row['project_id']) == ('active', 'job', 'jane')
    assert states(conductor) == {ONE: 'held', TWO: 'free'}
    end(conductor, agent, row)
    assert states(conductor) == {ONE: 'free', TWO: 'free'}
    # The last report counts again.
    used(conductor, ONE)
    assert states(conductor) == {ONE: 'rogue', TWO: 'free'}


def test_all_that_a_process_uses_or_nothing_is_leased_to_it(conductor, agent):
    used(conductor, ONE, TWO)
    other = '0000:ff:00.0'
    with pytest.raises(exception.Conflict, match=f'Card {other} .*no accelerator of it'):
        lease(conductor, agent, addresses=[ONE, other])
    assert states(conductor) == {ONE: 'rogue', TWO: 'rogue'}
    row = lease(conductor, agent, addresses=[TWO, ONE])
    assert [each['address'] for each in row['accelerators']] == [ONE, TWO]
    with pytest.raises(exception.Conflict, match=f'Card {ONE} .*it is held'):
        lease(conductor, agent, {'pid': 8}, addresses=[ONE])


def test_each_card_that_a_process_uses_is_of_the_group_of_its_class(conductor, agent):
    """Whatever the order in which they came, and in which the agent names them."""
    kinds = {ONE: 'FPGA', TWO: 'CUSTOM_NPU', '0000:7a:00.0': 'CUSTOM_NPU'}
    cards = [support.card(each[5:7], resource_class=kind) for each, kind in kinds.items()]
    conductor.report(*cards, agent='agent-1')
    for addresses in itertools.permutations(kinds):
        row = lease(conductor, agent, addresses=[*addresses])
        classes = {each['arq_uuid']: kinds[each['address']] for each in row['accelerators']}
        found = conductor.rows(model.ARQ)
        [profile] = [each for each in conductor.rows(model.DeviceProfile) if each.private]
        asked = [profile.groups[each.device_profile_group_id] for each in found]
        assert [[*each] for each in asked] == [[f'resources:{classes[x.uuid]}'] for x in found]
        assert profile.groups == [{'resources:CUSTOM_NPU': '2'}, {'resources:FPGA': '1'}]
        end(conductor, agent, row)


def test_the_name_of_another_lease_is_refused_to_a_process(conductor, agent):
    used(conductor, ONE)
    lease(conductor, agent, {'pid': 8}, name='job')
    with pytest.raises(exception.Duplicate):
        lease(conductor, agent, addresses=[ONE], name='job')
    assert states(conductor) == {ONE: 'rogue', TWO: 'held'}


def test_a_card_that_others_must_not_have_is_not_leased_to_its_user(conductor, agent):
    used(conductor, ONE)
    [device] = [each for each in conductor.rows(model.Device) if each.address == ONE]
    conductor.set_device_status(uuid=device.uuid, status='disabled')
    with pytest.raises(exception.Conflict, match=f'Card {ONE} .*it is disabled'):
        lease(conductor, agent, addresses=[ONE])


def test_a_card_of_another_host_at_the_same_address_is_another(conductor, agent):
    conductor.report(support.card('3b'), host='other', agent='agent-2')
    used(conductor, ONE)
    row = lease(conductor, agent, addresses=[ONE])
    assert [each['host'] for each in row['accelerators']] == [HOST]


def test_a_card_that_is_reserved_is_leased_to_its_user_until_then(conductor, agent):
    start = timeutils.utcnow().replace(microsecond=0) + datetime.timedelta(hours=1)
    lease(conductor, agent, {'pid': 0}, count=2, starts_at=start.isoformat(), seconds=600)
    used(conductor, ONE)
    with pytest.raises(exception.Conflict, match=f'Card {ONE} .*it is reserved'):
        lease(conductor, agent, addresses=[ONE])
    assert lease(conductor, agent, addresses=[ONE], seconds=600)['state'] == 'active'


@pytest.mark.parametrize('text', ['tomorrow', '2027-02-30T09:00:00'])
def test_the_form_of_a_start_is_told(conductor, agent, text):
    with pytest.raises(exception.Invalid, match='starts_at.*expected a time in UTC such as 2027-'):
        lease(conductor, agent, {'pid': 0}, count=2, starts_at=text, seconds=600)


def test_a_card_in_parts_is_not_leased_to_its_user(conductor, agent):
    conductor.report(support.card('3b', 2), agent='agent-1')
    with pytest.raises(exception.Conflict, match='2 parts, and which of them'):
        lease(conductor, agent, addresses=[ONE])


def test_what_a_process_uses_counts_for_its_quota(conductor, agent):
    used(conductor, ONE, TWO)
    conductor.update_quota(project='jane', limits={'total': 1})
    with pytest.raises(exception.OverQuota):
        lease(conductor, agent, addresses=[ONE, TWO])
    assert states(conductor) == {ONE: 'rogue', TWO: 'rogue'}
    assert lease(conductor, agent, addresses=[TWO])['state'] == 'active'


@pytest.mark.parametrize(
    'more',
    [
        {'count': 1},
        {'resource_class': 'FPGA'},
        {'traits': {}},
        {'profile': 'p'},
        {'link': 'prefer'},
    ],
)
def test_nothing_else_is_asked_for_with_what_a_process_uses(conductor, agent, more):
    with pytest.raises(exception.Invalid, match=f'Invalid {[*more][0]}: the process has'):
        lease(conductor, agent, addresses=[ONE], **more)


@pytest.mark.parametrize(
    'addresses',
    [[], [ONE, ONE], [1], ['x' * 256], [''], ['\ud800'], ['\0'], ONE, None, [ONE] * 2000],
)
def test_addresses_that_are_none_are_refused(conductor, agent, addresses):
    with pytest.raises(exception.Invalid, match='Invalid addresses'):
        lease(conductor, agent, addresses=addresses)


@pytest.mark.parametrize('text', ['\ud800', 'a\0', '\n', '', 'x' * 300])
def test_texts_that_no_database_takes_are_refused(conductor, agent, text):
    with pytest.raises(exception.Invalid, match='Invalid user'):
        lease(conductor, agent, {'user': text})
    for field in ('host', 'agent', 'uuid'):
        asked = agent | {'uuid': ANY, 'cause': '\ud800\0', field: text}
        with pytest.raises(exception.Invalid, match=f'Invalid {field}'):
            ask(conductor, 'end_lease', **asked)


def test_what_no_report_has_told_is_leased_only_while_nobody_waits(conductor, agent):
    """Whoever opens a free device must not get it before those in line."""
    used(conductor, ONE)
    waiting = lease(conductor, agent, {'pid': 8}, count=2, queue=True)
    assert waiting['state'] == 'queued'
    with pytest.raises(exception.Conflict, match='others wait in line: try again after its next'):
        lease(conductor, agent, addresses=[TWO])
    with pytest.raises(exception.Conflict, match='others wait in line'):
        lease(conductor, agent, addresses=[ONE, TWO])
    assert states(conductor) == {ONE: 'rogue', TWO: 'free'}
    assert lease(conductor, agent, addresses=[ONE])['state'] == 'active'
    end(conductor, agent, waiting)
    assert lease(conductor, agent, {'pid': 9}, addresses=[TWO])['state'] == 'active'


def test_the_use_of_a_card_of_another_host_is_kept(conductor, agent):
    card = support.card('3b')
    card.rogue = '9 bob (python)'
    conductor.report(card, host='other', agent='agent-2')
    used(conductor, ONE)
    lease(conductor, agent, addresses=[ONE])
    found = {each.host: each.state for each in conductor.rows(accelerators.Accelerator)}
    assert found['other'] == 'rogue'


def test_a_second_request_waits_for_the_first_and_is_answered_like_it(
    conductor, agent, monkeypatch
):
    """It looked for the lease before the first one was committed."""
    used(conductor, ONE)
    uuid = str(uuidlib.uuid4())
    row = lease(conductor, agent, uuid=uuid, addresses=[ONE])
    real, looks = leases_._is_made, []

    def is_made(*asked):
        looks.append(asked)
        return len(looks) > 1 and real(*asked)

    monkeypatch.setattr(leases_, '_is_made', is_made)
    assert lease(conductor, agent, uuid=uuid, addresses=[ONE])['uuid'] == row['uuid']
    assert len(looks) == 2

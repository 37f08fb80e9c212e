# SPDX-License-Identifier: Apache-2.0
import contextlib
import itertools
import re
import threading
import tracemalloc
import uuid

from oslo_db import exception as db_exception
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import owners
from tests import support
from tests.support import card
from tests.unit.conductor import direct

STATES = ('Initial', 'BindStarted', 'Bound', 'BindFailed', 'Unbound', 'UnbindFailed', 'Deleting')

#: The next state of each operation in each state; others change nothing.
MOVES = {
    **{(state, 'bind'): 'Bound' for state in ('Initial', 'Unbound')},
    **{(state, 'fail'): 'BindFailed' for state in ('Initial', 'Unbound', 'BindStarted')},
    **{(state, 'unbind'): 'Unbound' for state in STATES if state != 'Deleting'},
    **{(state, 'delete'): None for state in STATES},
}
WALK = list(itertools.product(STATES, ('bind', 'fail', 'unbind', 'delete')))


def force(conductor, arq, state):
    """Put a request into a state; a Bound one holds an accelerator."""
    if state == 'Bound':
        conductor.take(arq)
    with conductor.database.writer() as session:
        session.execute(sa.update(model.ARQ).where(model.ARQ.uuid == arq).values(state=state))


def operate(conductor, operation, arq):
    if operation == 'bind':
        conductor.take(arq)
    elif operation == 'fail':
        conductor._fail(wishes=[conductor.wish(arq)])
    elif operation == 'unbind':
        conductor.unbind(uuids=[arq])
    else:
        conductor.delete_arqs(uuids=[arq])


@pytest.fixture
def one(conductor):
    """A conductor with a card of two accelerators."""
    conductor.report(card(handles=2))
    return conductor


# States


@pytest.mark.parametrize(('state', 'operation'), WALK)
def test_every_state_and_operation(one, state, operation):
    [arq] = one.arqs()
    force(one, arq, state)
    before = one.dump()
    if operation == 'bind' and (state, operation) not in MOVES:
        with pytest.raises(exception.Conflict, match=f'ARQ {arq} is {state}'):
            operate(one, operation, arq)
    else:
        operate(one, operation, arq)
    after = {row.uuid: row for row in one.rows(model.ARQ)}.get(arq)
    if (state, operation) not in MOVES:
        assert one.dump() == before
    else:
        assert (after and after.state) == MOVES[state, operation]
        assert bool(after and after.attach_handle_id) == (MOVES[state, operation] == 'Bound')


def test_the_table_is_what_is_walked():
    """A new state in the table must be tested, too."""
    assert set(binding.SOURCES) <= set(STATES)
    assert set().union(*binding.SOURCES.values()) == set(STATES)
    assert set(model.ARQ.RESOLVED) <= set(STATES)
    ends = {'bind': 'Bound', 'fail': 'BindFailed', 'unbind': 'Unbound'}
    walked = {(state, operation) for state, operation in MOVES if operation in ends}
    for state, operation in walked:
        assert state in binding.SOURCES[ends[operation]]


@pytest.mark.parametrize('state', STATES)
def test_every_state_can_be_stored(conductor, state):
    """P5: upstream's database does not know UnbindFailed."""
    conductor.report(card())
    [arq] = conductor.arqs()
    force(conductor, arq, state)
    assert conductor.arq(arq).state == state
    assert state in binding.SOURCES or state == 'Initial'
    # SQLite does not check the length of the column.
    columns = sa.inspect(conductor.database.engine).get_columns('accelerator_requests')
    [stored] = [column['type'] for column in columns if column['name'] == 'state']
    assert len(state) <= stored.length


# Create


def test_create_makes_a_request_for_each_accelerator(conductor):
    groups = [{'resources:FPGA': '2', 'trait:CUSTOM_A': 'required'}, {'resources:PGPU': '1'}]
    conductor.create_device_profile(profile={'name': 'mixed', 'groups': groups})
    uuids = conductor.create_arqs(direct.member('p7'), profile='mixed')
    rows = {row.uuid: row for row in conductor.rows(model.ARQ)}
    assert [rows[u].device_profile_group_id for u in uuids] == [0, 0, 1]
    assert {(r.state, r.project_id, r.attach_handle_id) for r in rows.values()} == {
        ('Initial', 'p7', None)
    }


def test_create_that_arrives_twice_creates_once(conductor):
    conductor.create_device_profile(profile={'name': 'a', 'groups': [{'resources:FPGA': '3'}]})
    caller = context.RequestContext(project_id='p1', call=str(uuid.uuid4()), overwrite=False)
    first = conductor.create_arqs(caller, profile='a')
    before = conductor.dump()
    assert conductor.create_arqs(caller, profile='a') == first
    assert conductor.dump() == before
    assert len(conductor.create_arqs(profile='a')) == 3
    assert len(conductor.rows(model.ARQ)) == 6


def test_create_of_nothing(conductor):
    """A group without resources is valid, and makes no request."""
    conductor.create_device_profile(profile={'name': 'a', 'groups': [{'accel:x': 'y'}]})
    assert conductor.create_arqs(profile='a') == []


def test_create_of_an_unknown_profile(conductor):
    with pytest.raises(exception.NotFound, match='Device profile none not found'):
        conductor.create_arqs(profile='none')


@pytest.mark.parametrize(
    'groups',
    [
        [{'resources:FPGA': '1001'}],
        [{'resources:FPGA': '2147483647'}] * 100,
        [{'resources:FPGA': '500', 'resources:PGPU': '1'}, {'resources:FPGA': '500'}],
        # Cyborg allowed negative amounts, and such profiles are imported.
        [{'resources:FPGA': '2147483647'}, {'resources:FPGA': '-2147483647'}],
    ],
)
def test_create_of_too_many_is_refused_before_anything_is_made(conductor, groups):
    conductor.create_device_profile(profile={'name': 'many', 'groups': groups})
    before = conductor.dump()
    tracemalloc.start()
    with conductor.statements() as seen, pytest.raises(exception.Invalid) as raised:
        conductor.create_arqs(profile='many')
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    asked = sum(max(0, sum(map(int, group.values()))) for group in groups)
    for named in ('many', str(asked), '1000'):
        assert named in raised.value.message
    assert not [each for each in seen if each.startswith('INSERT INTO accelerator')]
    assert peak < 10_000_000
    assert conductor.dump() == before


def test_create_of_as_many_as_may_be(conductor):
    groups = [{'resources:FPGA': '500'}] * 2
    conductor.create_device_profile(profile={'name': 'many', 'groups': groups})
    assert len(conductor.create_arqs(profile='many')) == 1000


@pytest.mark.parametrize('count', [1, 100])
def test_create_costs_the_same_whatever_the_number(conductor, count):
    conductor.create_device_profile(
        profile={'name': 'a', 'groups': [{'resources:FPGA': str(count)}]}
    )
    with conductor.statements() as seen:
        conductor.create_arqs(profile='a')
    assert len(seen) <= 8, seen


# Bind


def test_bind_links_a_handle(one):
    [arq] = one.arqs()
    instance = str(uuid.uuid4())
    one.bind(wishes=[one.wish(arq, instance_uuid=instance, project_id='p9')])
    row, [first, _] = one.arq(arq), one.rows(model.AttachHandle)
    assert (row.state, row.attach_handle_id) == ('Bound', first.id)
    assert (row.hostname, row.device_rp_uuid) == ('host-1', direct.provider())
    assert (row.instance_uuid, row.project_id) == (instance, 'p9')


@pytest.mark.parametrize('count', [1, 2, 8])
def test_bind_costs_two_statements_each(conductor, count):
    conductor.report(card(handles=8))
    arqs = conductor.arqs(count)
    with conductor.statements() as seen:
        conductor.take(*arqs)
    assert len(seen) <= 6 + 2 * count, seen


@pytest.fixture
def telling(conductor, monkeypatch):
    """A conductor with a Placement and a Nova."""
    told = dict.fromkeys((outbox.HOST, outbox.PROVIDER, outbox.EVENT))
    monkeypatch.setattr(conductor._manager.outbox, '_send', told)
    return conductor


@pytest.mark.parametrize('count', [1, 2, 8])
@pytest.mark.parametrize('group', [None, '7'])
def test_bind_costs_no_more_with_neighbours_that_are_told(telling, count, group):
    """Also when it excludes others: the effects on the host are computed later."""
    cards = [card(bus, handles=8) for bus in ('3b', '3c')]
    for handle in itertools.chain(*(each.deployables[0].attach_handles for each in cards)):
        handle.iommu_group = group
    telling.report(*cards)
    for _ in range(2):
        arqs = telling.arqs(count)
        with telling.statements() as seen:
            telling.take(*arqs)
        # The second time, a message for the host exists already.
        assert len(seen) <= 6 + 2 * count, seen
        kinds = {message.kind for message in telling.rows(model.Message)}
        assert kinds == {outbox.PROVIDER, outbox.EVENT, *([outbox.HOST] if group else [])}
        telling.delete_arqs(uuids=arqs)


def test_bind_is_all_or_none(one):
    arqs = one.arqs(3)
    with pytest.raises(exception.NoFreeHandle, match=r'has 2 free .* 3 were asked'):
        one.take(*arqs)
    rows = one.rows(model.ARQ)
    assert {(row.state, row.attach_handle_id) for row in rows} == {('BindFailed', None)}
    one.hold(count=2)


def test_bind_over_two_providers_is_all_or_none(conductor):
    conductor.report(card('3b'), card('5e', resource_class='PGPU'))
    good, bad = conductor.arqs(2)
    instance = str(uuid.uuid4())
    wishes = [
        conductor.wish(good, '3b', instance_uuid=instance),
        conductor.wish(bad, '5e', instance_uuid=instance),
    ]
    with pytest.raises(exception.ProviderUnfit, match=f'gives PGPU, and ARQ {bad} wants FPGA'):
        conductor.bind(wishes=wishes)
    assert {row.attach_handle_id for row in conductor.rows(model.ARQ)} == {None}
    conductor.hold('3b')


def test_bind_to_an_unknown_provider(one):
    [arq] = one.arqs()
    with pytest.raises(exception.ProviderNotFound):
        one.take(arq, bus='7a')
    # It has the target of the bind, and is resolved.
    row = one.arq(arq)
    assert (row.state, row.device_rp_uuid) == ('BindFailed', direct.provider('7a'))
    assert row.instance_uuid


def test_bind_of_an_unknown_request(one):
    nobody = str(uuid.uuid4())
    with pytest.raises(exception.NotFound, match=f'ARQ {nobody} not found'):
        one.take(nobody)


def test_bind_again_for_an_instance_that_has_requests(one):
    [first], [second] = one.arqs(), one.arqs()
    instance = str(uuid.uuid4())
    one.bind(wishes=[one.wish(first, instance_uuid=instance)])
    with pytest.raises(exception.Invalid, match=f'Instance {instance} already has accelerator'):
        one.bind(wishes=[one.wish(second, instance_uuid=instance)])
    assert one.arq(second).state == 'Initial'


def test_bind_of_one_request_named_twice(one):
    [arq] = one.arqs()
    with pytest.raises(exception.Conflict):
        one.take(arq, arq)
    assert one.arq(arq).attach_handle_id is None


def test_bind_gives_no_handle_twice(one):
    one.hold(count=2)
    held = [row.attach_handle_id for row in one.rows(model.ARQ)]
    assert len(set(held)) == 2
    [more] = one.arqs()
    with pytest.raises(exception.NoFreeHandle):
        one.take(more)


def test_the_database_refuses_to_give_a_handle_twice(one):
    """I1 does not depend on our queries."""
    one.hold()
    [more] = one.arqs()
    [taken] = {row.attach_handle_id for row in one.rows(model.ARQ)} - {None}
    with pytest.raises(db_exception.DBDuplicateEntry), one.database.writer() as session:
        session.execute(
            sa.update(model.ARQ).where(model.ARQ.uuid == more).values(attach_handle_id=taken)
        )


def test_64_threads_race_for_15_handles(twins):
    twins[0].report(card(handles=15))
    arqs = twins[0].arqs(64)
    barrier, outcomes = threading.Barrier(64), []

    def race(conductor, arq):
        barrier.wait()
        try:
            conductor.take(arq)
        except exception.NoFreeHandle:
            outcomes.append('refused')
        else:
            outcomes.append('bound')

    threads = [
        threading.Thread(target=race, args=[twins[number % 2], arq])
        for number, arq in enumerate(arqs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count('bound'), outcomes.count('refused')) == (15, 49)
    rows = twins[0].rows(model.ARQ)
    held = [row.attach_handle_id for row in rows if row.state == 'Bound']
    assert len(set(held)) == 15
    assert {row.attach_handle_id for row in rows if row.state != 'Bound'} == {None}


# Unbind and delete


def test_double_unbind_leaves_one_holder(one):
    """P4: the second unbind upstream frees what another request holds by now."""
    [first] = one.hold()
    handle = one.arq(first).attach_handle_id
    one.unbind(uuids=[first])
    [second] = one.hold()
    assert one.arq(second).attach_handle_id == handle
    one.unbind(uuids=[first])
    assert (one.arq(first).state, one.arq(first).attach_handle_id) == ('Unbound', None)
    assert (one.arq(second).state, one.arq(second).attach_handle_id) == ('Bound', handle)
    [third] = one.hold()
    assert one.arq(third).attach_handle_id != handle


def test_unbind_frees_and_forgets(one):
    [arq] = one.hold()
    one.unbind(uuids=[arq])
    row = one.arq(arq)
    assert row.state == 'Unbound'
    assert (row.attach_handle_id, row.hostname, row.device_rp_uuid, row.instance_uuid) == (
        (None,) * 4
    )
    assert row.project_id == 'p1'
    one.take(arq)
    assert one.arq(arq).state == 'Bound'


def test_unbind_of_many_is_all_or_none(one):
    [arq] = one.hold()
    with pytest.raises(exception.NotFound):
        one.unbind(uuids=[arq, str(uuid.uuid4())])
    assert one.arq(arq).state == 'Bound'


def test_delete_frees(one):
    arqs = one.hold(count=2)
    assert one.delete_arqs(uuids=arqs) == []
    assert one.rows(model.ARQ) == []
    one.hold(count=2)


def test_delete_tells_what_is_unknown_and_deletes_the_rest(one):
    [arq] = one.hold()
    nobody = str(uuid.uuid4())
    assert one.delete_arqs(uuids=[nobody, arq]) == [nobody]
    assert one.rows(model.ARQ) == []


def test_delete_by_instance(one):
    [mine], [other] = one.hold(), one.hold()
    instance = one.arq(mine).instance_uuid
    for _ in range(2):
        one.delete_arqs_of(instance=instance)
        assert [row.uuid for row in one.rows(model.ARQ)] == [other]


# Stale calls


def seen(conductor, *arqs):
    """The revisions that the API sends to a conductor."""
    return {row.uuid: row.revision for row in conductor.rows(model.ARQ) if row.uuid in arqs}


def test_late_unbind_frees_nothing_of_the_next_instance(one):
    [arq] = one.hold()
    before = seen(one, arq)
    one.unbind(uuids=[arq], seen=before)
    one.take(arq)
    instance = one.arq(arq).instance_uuid
    with pytest.raises(exception.Conflict, match=f'ARQ {arq} changed meanwhile'):
        one.unbind(uuids=[arq], seen=before)
    assert (one.arq(arq).state, one.arq(arq).instance_uuid) == ('Bound', instance)


def test_late_unbind_of_what_is_free_changes_nothing(one):
    [arq] = one.hold()
    before = seen(one, arq)
    one.unbind(uuids=[arq], seen=before)
    rows = one.dump()
    one.unbind(uuids=[arq], seen=before)
    assert one.dump() == rows


def test_late_unbind_of_many_frees_none_of_the_others(one):
    arqs = one.hold(count=2)
    before = seen(one, *arqs)
    one.unbind(uuids=arqs[:1])
    one.take(arqs[0])
    with pytest.raises(exception.Conflict):
        one.unbind(uuids=arqs, seen=before)
    assert {one.arq(arq).state for arq in arqs} == {'Bound'}


@pytest.mark.parametrize('bus', ['3b', '7a'])
def test_late_bind_of_what_was_unbound_binds_nothing(one, bus):
    """A stale bind that would fail does not change the request either."""
    [arq] = one.arqs()
    before = seen(one, arq)
    one.unbind(uuids=[arq])
    rows = one.dump()
    with pytest.raises(exception.Conflict, match=f'ARQ {arq} changed meanwhile'):
        one.bind(wishes=[one.wish(arq, bus)], seen=before)
    assert one.dump() == rows


def test_late_failure_of_what_is_bound_by_now(one):
    [arq] = one.arqs()
    before = seen(one, arq)
    one.take(arq)
    one.unbind(uuids=[arq])
    rows = one.dump()
    one._fail(wishes=[one.wish(arq)], seen=before)
    assert one.dump() == rows


def test_late_delete_by_instance_keeps_newer_requests(one):
    [old], [new] = one.hold(), one.arqs()
    instance = one.arq(old).instance_uuid
    before = seen(one, old)
    one.delete_arqs_of(instance=instance, seen=before)
    one.take(new, instance_uuid=instance)
    one.delete_arqs_of(instance=instance, seen=before)
    assert one.arq(new).state == 'Bound'


# Another project's requests look like none


@pytest.mark.parametrize('operation', ['bind', 'unbind'])
def test_request_of_another_project(one, operation):
    [arq] = one.arqs(ctxt=direct.member('p1'))
    if operation == 'unbind':
        one.take(arq)
    before = one.dump()
    stranger = direct.member('p2')
    with pytest.raises(exception.NotFound) as foreign:
        _operate_as(one, stranger, operation, arq)
    assert one.dump() == before
    nobody = str(uuid.uuid4())
    with pytest.raises(exception.NotFound) as unknown:
        _operate_as(one, stranger, operation, nobody)
    assert str(foreign.value).replace(arq, nobody) == str(unknown.value)


def _operate_as(conductor, ctxt, operation, arq):
    if operation == 'bind':
        conductor.bind(ctxt, wishes=[conductor.wish(arq)])
    else:
        conductor.unbind(ctxt, uuids=[arq])


def test_delete_of_another_project(one):
    [arq] = one.hold()
    stranger = direct.member('p2')
    assert one.delete_arqs(stranger, uuids=[arq]) == [arq]
    one.delete_arqs_of(stranger, instance=one.arq(arq).instance_uuid)
    assert one.arq(arq).state == 'Bound'
    one.delete_arqs_of(direct.member('p1'), instance=one.arq(arq).instance_uuid)
    assert one.rows(model.ARQ) == []


def test_caller_without_a_project_has_no_requests(one):
    [arq] = one.hold()
    nobody = direct.member(None)
    assert one.delete_arqs(nobody, uuids=[arq]) == [arq]


def test_a_stale_delete_does_not_delete_a_bound_request(one):
    """A tenant may delete own requests, but not those that Nova bound after the tenant's read."""
    free, [bound] = one.arqs(), one.arqs()
    seen = {row.uuid: row.revision for row in one.rows(model.ARQ)}
    one.take(bound)
    with pytest.raises(exception.Conflict, match=f'ARQ {bound} changed meanwhile'):
        one.delete_arqs(uuids=[*free, bound], seen=seen)
    assert one.arq(bound).state == 'Bound'
    assert one.delete_arqs(uuids=free, seen=seen) == []


def test_bind_whose_commit_was_not_answered_is_done(one, monkeypatch):
    """The database committed without an answer: the conductor retries."""
    [arq] = one.arqs()
    seen = {arq: one.arq(arq).revision}
    writer, lost = one.database.writer, [db_exception.DBConnectionError('went away')]

    @contextlib.contextmanager
    def unanswered():
        with writer() as session:
            yield session
        for error in list(lost):
            lost.remove(error)
            raise error

    monkeypatch.setattr(one.database, 'writer', unanswered)
    one.bind(wishes=[one.wish(arq)], seen=seen)
    assert not lost
    assert one.arq(arq).revision == seen[arq] + 1


@pytest.mark.parametrize('name', ['hostname', 'device_rp_uuid', 'instance_uuid', 'project_id'])
def test_bind_to_another_place_is_not_taken_for_the_same(one, name):
    [arq] = one.arqs()
    seen, wish = {arq: one.arq(arq).revision}, one.wish(arq)
    one.bind(wishes=[wish], seen=seen)
    one.bind(wishes=[wish], seen=seen)
    with pytest.raises(exception.Conflict, match='changed meanwhile'):
        one.bind(wishes=[{**wish, name: support.INSTANCE}], seen=seen)


# The requirements of a request are checked at bind


@pytest.mark.parametrize(
    ('asked', 'said'),
    [
        ({'trait:CUSTOM_NVIDIA_2335': 'required'}, 'lacks the trait CUSTOM_NVIDIA_2335'),
        ({'trait:CUSTOM_FAKE_DEVICE': 'forbidden'}, 'has CUSTOM_FAKE_DEVICE, which'),
        ({'trait:CUSTOM_FAKE_DEVICE': 'required', 'trait:CUSTOM_X': 'forbidden'}, None),
    ],
)
def test_traits_of_the_profile(conductor, asked, said):
    conductor.report(card())
    groups = [{'resources:FPGA': '1'} | asked]
    conductor.create_device_profile(profile={'name': 'p', 'groups': groups})
    arqs = conductor.create_arqs(profile='p', token=str(uuid.uuid4()))
    if said is None:
        conductor.take(*arqs)
        return
    with pytest.raises(exception.ProviderUnfit, match=said) as error:
        conductor.take(*arqs)
    assert error.value.code == 409
    assert conductor.arq(arqs[0]).state == 'BindFailed'


def test_class_of_the_profile(one):
    [arq] = one.arqs(GPU=1)
    with pytest.raises(exception.ProviderUnfit, match=f'gives FPGA, and ARQ {arq} wants GPU'):
        one.take(arq)
    assert one.arq(arq).state == 'BindFailed'


@pytest.mark.parametrize(
    ('host', 'named', 'right'),
    [
        ('node-1', 'node-1.example.org', True),
        ('node-1.example.org', 'node-1', True),
        ('node-1', 'NODE-1', True),
        ('node-1.example.org', 'node-1.example.com', False),
        ('node-1', 'node-10', False),
        ('node-1', 'nohost', False),
    ],
)
def test_host_that_is_named_is_that_of_the_provider(conductor, host, named, right):
    conductor.report(card(), host=host)
    [arq] = conductor.arqs()
    there = {'hostname': named, 'device_rp_uuid': direct.provider(host=host)}
    if right:
        conductor.take(arq, **there)
        return
    with pytest.raises(exception.Invalid, match=f'is of host {host}, not of {named}'):
        conductor.take(arq, **there)
    assert conductor.arq(arq).state == 'Initial'


def test_one_instance_is_not_bound_twice_at_once(conductor):
    """The database refuses one of two binds that both saw no requests of the instance."""
    conductor.report(card(), host='host-1')
    conductor.report(card(), host='host-2')
    instance = str(uuid.uuid4())
    first, second = conductor.arqs(2)
    conductor.take(first, instance_uuid=instance)
    refused = pytest.raises(db_exception.DBDuplicateEntry)
    with refused, conductor.database.writer() as session:
        twin = {'instance_uuid': instance, 'ordinal': 0}
        session.execute(sa.update(model.ARQ).where(model.ARQ.uuid == second).values(**twin))


def move_rows(session):
    """Move all requests, unnoticed by an earlier reader."""
    move = sa.update(model.ARQ).values(revision=model.ARQ.revision + 1)
    session.execute(move.execution_options(synchronize_session=False))


OPERATIONS = {
    'unbind': lambda conductor, arq, _: conductor.unbind(uuids=[arq]),
    'delete': lambda conductor, arq, _: conductor.delete_arqs(uuids=[arq]),
    'delete_of': lambda conductor, _, instance: conductor.delete_arqs_of(instance=instance),
}


@pytest.mark.parametrize('operate', OPERATIONS.values(), ids=OPERATIONS)
def test_a_request_that_moves_without_its_lock_is_read_again(one, monkeypatch, operate):
    """Without its lock a call frees nothing that changed after its read."""
    [arq] = one.hold()
    instance, remember, read = one.arq(arq).instance_uuid, owners.remember, []

    def move(session, ctxt, arqs):
        remember(session, ctxt, arqs)
        if not read:
            move_rows(session)
        read.append([arq.uuid for arq in arqs])

    monkeypatch.setattr(owners, 'remember', move)
    operate(one, arq, instance)
    assert read == [[arq], [arq]]


OPERATIONS_AND_LOCKS = {
    'bind': (lambda one, _, __: one.take(*one.arqs()), 'hosts'),
    **{name: (operate, 'accelerator_requests') for name, operate in OPERATIONS.items()},
}


@pytest.mark.parametrize(
    ('operate', 'table'), OPERATIONS_AND_LOCKS.values(), ids=OPERATIONS_AND_LOCKS
)
def test_each_changed_row_is_locked(one, operate, table):
    """SQLite locks the whole database, so the compiled statements are checked."""
    [arq] = one.hold()
    locked = []

    def note(_connection, statement, *_):
        if isinstance(statement, sa.Select):
            text = str(statement.compile(dialect=postgresql.dialect()))
            if text.endswith('FOR UPDATE'):
                # Also of subqueries, which lock nothing.
                locked.extend(re.findall(r'FROM (\w+)', text))

    instance = one.arq(arq).instance_uuid
    event.listen(sa.Engine, 'before_execute', note)
    try:
        operate(one, arq, instance)
    finally:
        event.remove(sa.Engine, 'before_execute', note)
    assert table in locked


def test_a_request_that_moves_while_it_is_bound_is_not_bound(one, monkeypatch):
    [arq] = one.arqs()
    find = binding._free_handles

    def move(session, *place):
        move_rows(session)
        return find(session, *place)

    monkeypatch.setattr(binding, '_free_handles', move)
    with pytest.raises(exception.Conflict, match=f'ARQ {arq} changed meanwhile'):
        one.take(arq)
    assert one.arq(arq).state == 'Initial'


@pytest.mark.parametrize('name', ['hostname', 'project_id'])
def test_one_instance_is_in_one_place(conductor, name):
    for host in ('host-1', 'host-2'):
        conductor.report(card(), host=host)
    arqs = conductor.arqs(2)
    first, second = (conductor.wish(arq, instance_uuid=support.INSTANCE) for arq in arqs)
    if name == 'hostname':
        second |= {name: 'host-2', 'device_rp_uuid': direct.provider('3b', 'host-2')}
    else:
        second |= {name: 'p2'}
    with pytest.raises(
        exception.Invalid, match=f'Instance {support.INSTANCE}: expected one {name}'
    ):
        conductor.bind(wishes=[first, second])
    assert {arq.state for arq in conductor.rows(model.ARQ)} == {'Initial'}


def test_bind_that_comes_again_after_other_moves_is_refused(conductor):
    """It is bound as requested, but not by the call with this revision."""
    conductor.report(card())
    [arq] = conductor.arqs()
    seen, wish = {arq: conductor.arq(arq).revision}, conductor.wish(arq)
    conductor.bind(wishes=[wish], seen=seen)
    conductor.unbind(uuids=[arq])
    conductor.bind(wishes=[wish])
    with pytest.raises(exception.Conflict, match='changed meanwhile'):
        conductor.bind(wishes=[wish], seen=seen)

# SPDX-License-Identifier: Apache-2.0
"""Which report tells that nobody has a card open that a lease has left, on every database."""

import pytest
from sqlalchemy import event

from cyborg_lite import model
from cyborg_lite.conductor import leaving
from cyborg_lite.conductor import releasing
from tests import support
from tests.unit.conductor import test_leases

HOST = support.HOST
AGENT = {'host': HOST, 'agent': 'agent-1'}


def report(conductor, **more):
    """Report one card; returns what is known of its use."""
    about = {'agent': 'agent-1', 'observes': True, 'leases': [], 'looked_after': 0}
    conductor.report(support.card('3b'), **(about | more))
    [device] = conductor.rows(model.Device)
    return device.rogue


@pytest.fixture
def left(conductor):
    """The lease that has left the card; the last report before had the sequence 1."""
    assert report(conductor) is None
    row = test_leases.lease(conductor, AGENT)
    assert row['observed'] is True
    ending = {'uuid': row['uuid'], 'cause': 'It ended.', 'closed': False}
    test_leases.ask(conductor, 'end_lease', **ending, **AGENT)
    return row['uuid']


def used(lease):
    return f'whoever had lease {lease}, until its host has looked'


def test_a_look_that_began_after_a_later_report_tells(conductor, left):
    """The second report after the end is the first whose look certainly began after it."""
    assert report(conductor, looked_after=0) == used(left)
    assert report(conductor, looked_after=1) == used(left)
    assert report(conductor, looked_after=2) is None
    [host] = conductor.rows(model.Host)
    assert host.digest


def test_an_agent_that_was_asked_to_look_tells_at_once(conductor, left):
    """It says that its look began after the moment at which it was asked."""
    assert report(conductor, looked_after=1, sequence=50) == used(left)
    assert report(conductor, looked_after=60, sequence=70) is None


@pytest.mark.parametrize(
    ('told', 'tells'),
    [
        ({}, True),
        ({'leases': None}, False),
        ({'leases': ['other']}, True),
        ({'drivers': {'fake': {'state': 'degraded', 'reason': '', 'complete': True}}}, True),
        # No process outlives a boot.
        ({'boot_id': 'boot-2', 'looked_after': 0}, True),
        # Nobody looks any more, or an agent of the release before does.
        ({'observes': False, 'looked_after': 0, 'leases': None}, True),
    ],
)
def test_a_report_that_tells(conductor, left, told, tells):
    report(conductor)
    assert report(conductor, **({'looked_after': 2} | told)) == (None if tells else used(left))


def test_an_agent_that_knows_the_lease_has_left_its_processes_out(conductor, left):
    report(conductor)
    assert report(conductor, looked_after=2, leases=[left]) == used(left)
    assert report(conductor, looked_after=3) is None


def test_a_driver_that_never_answers_keeps_no_card_where_nobody_looks(conductor, left):
    report(conductor, looks={'fake': 1})
    assert report(conductor, looks={'fake': 1}, observes=False) is None


def test_each_end_is_noted_anew(conductor):
    """A look that was under way when a reservation ended left out the processes of its others."""
    report(conductor)
    row = test_leases.lease(conductor, AGENT)
    with conductor.database.writer() as session:
        # What a lease from it has left, and somebody has open.
        session.query(model.Device).update({'rogue': '4711 bob', 'left_after': 'boot-1 0'})
        leaving.note(session, row['uuid'], [(HOST, True)])
    [device] = conductor.rows(model.Device)
    assert (device.rogue, device.left_after) == (used(row['uuid']), 'boot-1 1')


def test_the_next_user_is_named_in_place_of_the_last(conductor, left):
    report(conductor)
    card = support.card('3b')
    card.rogue = '4711 bob (python)'
    conductor.report(card, agent='agent-1', observes=True, leases=[], looked_after=2)
    [device] = conductor.rows(model.Device)
    assert (device.rogue, device.left_after) == ('4711 bob (python)', None)


@pytest.mark.parametrize('closed', [True, None])
def test_nothing_is_noted(conductor, closed):
    """The agent has seen that it is closed, or is of the release before."""
    report(conductor)
    row = test_leases.lease(conductor, AGENT)
    said = {} if closed is None else {'closed': closed}
    test_leases.ask(conductor, 'end_lease', uuid=row['uuid'], cause='It ended.', **said, **AGENT)
    assert [each.rogue for each in conductor.rows(model.Device)] == [None]


def test_an_agent_that_looks_at_no_processes(conductor):
    """Nothing would take a note away."""
    report(conductor, observes=False)
    row = test_leases.lease(conductor, AGENT)
    assert row['observed'] is False
    ending = {'uuid': row['uuid'], 'cause': 'It ended.', 'closed': False}
    test_leases.ask(conductor, 'end_lease', **ending, **AGENT)
    assert [each.rogue for each in conductor.rows(model.Device)] == [None]


def test_what_an_audit_frees_of_a_released_allocation(conductor):
    report(conductor)
    row = test_leases.lease(conductor, AGENT)
    with conductor.database.writer() as session:
        session.query(model.Allocation).update({'state': 'released'})
        releasing.sweep(session, row['uuid'])
    [device] = conductor.rows(model.Device)
    assert (device.rogue, conductor.rows(model.ARQ)) == (used(row['uuid']), [])


def test_a_note_of_a_conductor_of_the_release_before(conductor, left):
    """It does not say after which report: it counts from the next one."""
    with conductor.database.writer() as session:
        session.query(model.Device).update({'left_after': None})
    assert report(conductor, looked_after=1, sequence=5) == used(left)
    assert report(conductor, looked_after=5, sequence=6) == used(left)
    assert report(conductor, looked_after=6, sequence=7) is None


def test_a_driver_has_to_look_too(conductor, left):
    """The pids of some cards are known from its scan.  The reason names it while it does not."""
    report(conductor, looks={'fake': 1})
    waits = f'{used(left)}: driver fake has not answered since'
    for after in 2, 3:
        assert report(conductor, looks={'fake': 1}, looked_after=after) == waits
    assert report(conductor, looks={'fake': 2}, looked_after=4, leases=[left]) == used(left)
    assert report(conductor, looks={'fake': 3}, looked_after=5) is None


def test_an_operator_who_enables_a_disabled_card_forgets_the_note(conductor, left):
    [device] = conductor.rows(model.Device)
    for status in 'enabled', 'maintaining':
        conductor.set_device_status(uuid=device.uuid, status=status)
        assert conductor.device().rogue == used(left)
    conductor.set_device_status(uuid=device.uuid, status='enabled')
    assert (conductor.device().rogue, conductor.device().left_after) == (None, None)
    # Who has it open counts nevertheless.
    card = support.card('3b')
    card.rogue = '4711 bob (python)'
    conductor.report(card, agent='agent-1', observes=True, leases=[], looked_after=1)
    assert conductor.device().rogue == card.rogue


def end(conductor, uuid):
    with conductor.database.writer() as session:
        [allocation] = session.query(model.Allocation).filter_by(uuid=uuid)
        releasing.end(session, allocation, 'It was deleted.')


#: By dialect how a plan is asked for, and what it says of an index of the cards.
PLANS = {
    'sqlite': (['EXPLAIN QUERY PLAN '], 'SEARCH devices USING INDEX ix_devices_hostname'),
    'mysql': (['EXPLAIN '], "'devices', 'ref', 'ix_devices_hostname', 'ix_devices_hostname'"),
    # A small table is read as a whole even if it has the index.
    'postgresql': (
        ['SET LOCAL enable_seqscan = off', 'SET LOCAL enable_bitmapscan = off', 'EXPLAIN '],
        'using ix_devices_hostname on devices ',
    ),
}


def test_a_note_reads_the_cards_of_its_hosts_alone(conductor):
    for number in range(8):
        conductor.report(support.card('3b'), support.card('5e'), host=f'host-{number}')
    seen = []

    def see(_connection, _cursor, statement, parameters, *_):
        seen.append((statement, parameters))

    (*settings, explain), wanted = PLANS[conductor.database.engine.dialect.name]
    with conductor.database.writer() as session:
        event.listen(conductor.database.engine, 'before_cursor_execute', see)
        leaving.note(session, 'a', [(HOST, True)])
        event.remove(conductor.database.engine, 'before_cursor_execute', see)
        connection, (statement, parameters) = session.connection(), seen[0]
        for each in settings:
            connection.exec_driver_sql(each)
        plan = [*connection.exec_driver_sql(explain + statement, parameters)]
    assert any(wanted in str(row) for row in plan), plan


OLD = {'host': HOST, 'machine': 'machine-1'}
NEW = {'host': 'host-2', 'machine': 'machine-1', 'agent': 'agent-2'}


def under(conductor, name, **more):
    """Report the card from one machine under a name of it; returns what is known of its use."""
    about = {'agent': 'agent-1', 'observes': True, 'leases': [], 'looked_after': 0}
    conductor.report(support.card('3b'), **(about | name | more))
    return conductor.device(host=name['host']).rogue


def test_a_lease_under_an_old_name_leaves_the_card_under_the_new_one(conductor):
    under(conductor, OLD)
    row = test_leases.lease(conductor, AGENT)
    under(conductor, NEW, sequence=20)
    end(conductor, row['uuid'])
    assert conductor.device(host='host-2').left_after == 'boot-1 20'
    assert under(conductor, NEW, sequence=30, looked_after=20) == used(row['uuid'])
    assert under(conductor, NEW, sequence=40, looked_after=30) is None


def test_a_note_under_an_old_name_is_kept_under_the_new_one(conductor):
    under(conductor, OLD, sequence=10)
    row = test_leases.lease(conductor, AGENT)
    end(conductor, row['uuid'])
    assert under(conductor, NEW, sequence=20) == used(row['uuid'])
    assert under(conductor, NEW, sequence=30, looked_after=10) == used(row['uuid'])
    assert under(conductor, NEW, sequence=40, looked_after=20) is None


def test_a_host_that_is_given_its_new_name_keeps_its_notes(conductor):
    """The row of the card under the old name stays."""
    under(conductor, OLD)
    row = test_leases.lease(conductor, AGENT)
    under(conductor, NEW, sequence=20)
    end(conductor, row['uuid'])
    conductor.rename_host(name=HOST, to='host-2')
    assert under(conductor, NEW, sequence=30, looked_after=20) == used(row['uuid'])
    assert under(conductor, NEW, sequence=40, looked_after=30) is None


def test_a_lease_from_a_reservation_under_an_old_name(conductor):
    """The reservation holds the card under that name; the look comes under the new one."""
    under(conductor, OLD)
    row = test_leases.lease(conductor, AGENT)
    under(conductor, NEW, sequence=20)
    with conductor.database.writer() as session:
        [lease] = session.query(model.Allocation)
        leaving.note(session, row['uuid'], [('host-2', True)], lease)
    assert conductor.device(host=HOST).left_after == 'boot-1 20'


def test_a_note_that_was_taken_away_under_the_new_name_is_not_there_again(conductor):
    """It has gone from the old name to the new one."""
    under(conductor, OLD, sequence=10)
    end(conductor, test_leases.lease(conductor, AGENT)['uuid'])
    under(conductor, NEW, sequence=20)
    assert under(conductor, NEW, sequence=30, looked_after=20) is None
    conductor.rename_host(name=HOST, to='host-2')
    assert conductor.device(host='host-2').rogue is None

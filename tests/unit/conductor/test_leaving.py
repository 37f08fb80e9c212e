# SPDX-License-Identifier: Apache-2.0
"""Which report tells that nobody has a card open that a lease has left, on every database."""

import pytest

from cyborg_lite import model
from cyborg_lite.conductor import leaving
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


def test_a_driver_has_to_look_too(conductor, left):
    """The pids of some cards are known from its scan."""
    report(conductor, looks={'fake': 1})
    assert report(conductor, looks={'fake': 1}, looked_after=2) == used(left)
    assert report(conductor, looks={'fake': 2}, looked_after=2) is None


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
        leaving.note(session, session.query(model.Allocation).one(), [HOST])
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

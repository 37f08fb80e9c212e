# SPDX-License-Identifier: Apache-2.0
"""Since when cards do no work, as the agent remembers it."""

import datetime
import types

from oslo_utils import fixture
import pytest

from cyborg_lite.agent import idling
from cyborg_lite.agent import nodes
from cyborg_lite.agent import processes
from tests import support

BEGAN = datetime.datetime(2026, 11, 10, 12, 0, 0, 900000)
AFTER = 1800
NODE = '/dev/davinci0'
ADDRESS = '0000:3b:00.0'
#: The finding of a host without device nodes.
NOTHING = nodes.Finding()

# Only oslo.utils can replace what utcnow() returns wherever it is used.
pytestmark = pytest.mark.filterwarnings('ignore:.*time.* is deprecated:DeprecationWarning')


@pytest.fixture
def clock(monkeypatch):
    """Moves the wall clock, and the monotonic clock with it."""
    passed = [1000.0]
    monkeypatch.setattr(idling.time, 'monotonic', lambda: passed[0])
    with fixture.TimeFixture(BEGAN) as made:

        def move(seconds):
            passed[0] += seconds
            made.advance_time_seconds(seconds)

        move.set = made.advance_time_seconds
        yield move


def look(subject, utilization=0, finding=NOTHING, after=AFTER, **more):
    """The card after a look at it."""
    device = support.card('3b', utilization=utilization, **more)
    subject.note([device], finding, after)
    return device


def test_a_card_is_idle_once_it_was_so_in_every_look_for_long(clock):
    subject = idling.Idling()
    assert look(subject).idle_since is None
    for _ in range(17):
        clock(100)
        assert look(subject).idle_since is None
    clock(99)
    assert look(subject).idle_since is None
    clock(1)
    found = [look(subject).idle_since]
    for _ in range(50):
        clock(20.3)
        found.append(look(subject).idle_since)
    assert set(found) == {BEGAN.replace(microsecond=0)}


@pytest.mark.parametrize('told', [1, 100, None])
def test_a_look_that_does_not_tell_of_no_work_ends_it(clock, told):
    """What is unknown is not idle."""
    subject = idling.Idling()
    look(subject)
    clock(AFTER)
    assert look(subject).idle_since is not None
    clock(20)
    assert look(subject, told).idle_since is None
    clock(20)
    assert look(subject).idle_since is None
    clock(AFTER - 1)
    assert look(subject).idle_since is None
    clock(1)
    assert look(subject).idle_since == BEGAN.replace(microsecond=0) + datetime.timedelta(
        seconds=AFTER + 40
    )


def test_a_card_that_no_driver_finds_begins_anew(clock):
    """As that of a driver that hangs, or fails."""
    subject = idling.Idling()
    look(subject)
    clock(AFTER)
    subject.note([], NOTHING, AFTER)
    assert look(subject).idle_since is None


def test_another_card_at_the_address_begins_anew(clock):
    subject = idling.Idling()
    look(subject, serial='one')
    clock(AFTER)
    assert look(subject, serial='other').idle_since is None


def test_a_restarted_agent_begins_anew(clock):
    look(idling.Idling())
    clock(AFTER)
    assert look(idling.Idling()).idle_since is None


@pytest.mark.parametrize('step', [-7200, 7200])
def test_a_clock_that_is_set_makes_no_card_idle_and_corrects_the_time(clock, step):
    subject = idling.Idling()
    look(subject)
    clock(100)
    clock.set(step)
    assert look(subject).idle_since is None
    clock(AFTER - 100)
    first = look(subject).idle_since
    assert first == BEGAN.replace(microsecond=0) + datetime.timedelta(seconds=step)
    clock.set(-step)
    assert look(subject).idle_since == BEGAN.replace(microsecond=0)


def test_a_clock_that_drifts_changes_no_report(clock):
    subject = idling.Idling()
    look(subject)
    clock(AFTER)
    first = look(subject).idle_since
    for step in (20, -50, 55):
        clock.set(step)
        assert look(subject).idle_since == first


def test_nothing_is_idle_where_it_is_switched_off(clock):
    subject = idling.Idling()
    for after in (0, 0, AFTER):
        assert look(subject, after=after).idle_since is None
        clock(AFTER)


def uses(*pids):
    """Processes with the node open."""
    return [
        types.SimpleNamespace(process=types.SimpleNamespace(pid=pid), nodes={NODE}) for pid in pids
    ]


def used(clock, monkeypatch, finding, pids, sees_all=True, **more):
    """What is known of the use of an idle card, after a look at a busy one."""
    monkeypatch.setattr(processes, 'uses', lambda nodes: uses(*pids))
    monkeypatch.setattr(idling.pids, 'sees_all', lambda: sees_all)
    subject = idling.Idling()
    assert look(subject, finding=finding, **more).used is None
    clock(AFTER)
    return look(subject, finding=finding, **more).used


OPEN = nodes.Finding(used={NODE: ADDRESS})


@pytest.mark.parametrize(('pids', 'expected'), [((), False), ((7,), True)])
def test_a_process_uses_an_idle_card_if_it_has_the_node_open(clock, monkeypatch, pids, expected):
    assert used(clock, monkeypatch, OPEN, pids) is expected


@pytest.mark.parametrize(
    ('listed', 'pids', 'expected'),
    [
        (frozenset({7}), (7, 8), True),
        (frozenset({7}), (8,), False),
        (frozenset(), (8,), False),
        (None, (8,), None),
        (None, (), None),
    ],
)
def test_where_others_open_the_node_only_a_list_tells(clock, monkeypatch, listed, pids, expected):
    """Without a list nothing is known: the card is not unused."""
    finding = OPEN._replace(listed={ADDRESS: listed or frozenset()})
    assert used(clock, monkeypatch, finding, pids, processes=listed) is expected


def test_use_that_cannot_be_seen_is_unknown(clock, monkeypatch):
    """Of other users, of a container around the agent, and where an open node proves nothing."""
    assert used(clock, monkeypatch, OPEN, (), sees_all=False) is None
    assert used(clock, monkeypatch, NOTHING, ()) is None


def test_a_failed_search_for_processes_hides_no_device(clock, monkeypatch):
    def fail(_):
        raise OSError('too many open files')

    finding, subject = OPEN, idling.Idling()
    monkeypatch.setattr(processes, 'uses', fail)
    monkeypatch.setattr(idling.pids, 'sees_all', lambda: True)
    look(subject, finding=finding)
    clock(AFTER)
    found = look(subject, finding=finding)
    assert (found.idle_since is None, found.used) == (False, None)

# SPDX-License-Identifier: Apache-2.0
"""What an agent does with its leases, without a conductor and without processes."""

import dataclasses
import datetime
import os
import threading
import types
import unittest.mock
import uuid

import oslo_messaging as messaging
from oslo_utils import fixture
import pytest

from cyborg_lite import driver
from cyborg_lite.agent import leases
from cyborg_lite.agent import nodes
from cyborg_lite.agent import processes

JANE = processes.Process('b-1', 7, 9, 1000, 'jane', 'python')


class Conductor:
    """Answers as a conductor does; ``meanwhile`` is called before the leases are compared."""

    def __init__(self):
        self.rows = []
        self.meanwhile = lambda: None

    def leases(self, **_):
        rows = [*self.rows]
        self.meanwhile()
        return rows

    def lease(self, uuid, request, **_):
        self.rows.append(row(request['accelerators'], uuid))
        return self.rows[-1]


def row(accelerators, uuid):
    return {'uuid': uuid, 'state': 'active', 'name': None, 'accelerators': accelerators}


@pytest.fixture
def conductor():
    return Conductor()


@pytest.fixture
def served(conductor):
    """The leases of this machine, by an agent whose thread does not run."""
    bus = types.SimpleNamespace(leases=lambda *_, **__: conductor)
    return leases.Leases(
        bus, driver.Host.local('host-1'), 'agent-1', threading.Event(), nodes.Finding
    )


def take(served, *accelerators):
    return served.take(JANE, {'accelerators': list(accelerators)})


def instance(number):
    """An instance of MIG of the first card."""
    ids = {
        'uuid': f'MIG-{number}', 'minor': 0, 'gpu_instance_minor': 10 * number,
        'compute_instance_minor': 10 * number + 1,
    }  # fmt: skip
    return {
        'uuid': str(uuid.uuid4()), 'host': 'host-1', 'address': '0000:3b:00.0', 'form': 'mig',
        'driver': 'nvidia_gpu', 'ids': ids,
    }  # fmt: skip


def test_a_node_that_another_lease_has_too_keeps_neither(served):
    """Two instances of a card share its node: a process of one lease would keep the other."""

    def using(holder, nodes, mark=None):
        return sorted(nodes)

    caps = '/dev/nvidia-caps/nvidia-cap'
    first = take(served, instance(1))
    with unittest.mock.patch.object(processes, 'using', using):
        assert served.opening(first) == [f'{caps}10', f'{caps}11', '/dev/nvidia0']
        second = take(served, instance(2), instance(3))
        assert served.opening(first) == [f'{caps}10', f'{caps}11']
        assert served.opening(second) == [f'{caps}{n}' for n in (20, 21, 30, 31)]


def test_a_reservation_and_what_is_leased_from_it_have_one_node(served):
    """A process that has it open keeps the lease, and the reservation from being released."""
    reservation, child = take(served, instance(1)), take(served, instance(1))
    child.row['reservation_uuid'] = reservation.uuid
    with unittest.mock.patch.object(processes, 'using', lambda holder, nodes, mark=None: nodes):
        assert '/dev/nvidia0' in served.opening(child)
        assert '/dev/nvidia0' in served.opening(reservation)
        take(served, instance(2))
        assert '/dev/nvidia0' not in served.opening(child)


def test_a_process_that_starts_during_a_search_keeps_the_lease(served, monkeypatch):
    """A process ended after it had started another, which the search had passed by then."""
    child = dataclasses.replace(JANE, pid=8)
    searches = [[], [child]]

    def watch(process):
        if process is JANE:
            raise processes.Gone('process 7 has ended')
        return os.eventfd(0)

    monkeypatch.setattr(processes, 'using', lambda *_: searches.pop(0))
    monkeypatch.setattr(processes, 'watch', watch)
    monkeypatch.setattr(processes, 'container', lambda pid: None)
    lease = take(served)
    assert served._look(lease)
    assert ([*lease.watched.values()], lease.over) == ([child], None)


def test_a_lease_whose_processes_have_ended_is_over(served, monkeypatch):
    """After two searches that found none."""
    searches = [[], []]

    def watch(process):
        raise processes.Gone(f'process {process.pid} has ended')

    monkeypatch.setattr(processes, 'using', lambda *_: searches.pop(0))
    monkeypatch.setattr(processes, 'watch', watch)
    lease = take(served)
    assert served._look(lease)
    assert (searches, lease.over) == ([], 'Its process ended.')


def test_a_process_that_has_a_device_of_a_lease_open_keeps_it(served, monkeypatch):
    """Also without the mark: a program may clear its environment."""
    child = dataclasses.replace(JANE, pid=8)

    def using(holder, nodes, mark):
        return [child] if holder is JANE and '/dev/nvidia0' in nodes else []

    def watch(process):
        if process is JANE:
            raise processes.Gone('process 7 has ended')
        return os.eventfd(0)

    monkeypatch.setattr(processes, 'using', using)
    monkeypatch.setattr(processes, 'watch', watch)
    monkeypatch.setattr(processes, 'container', lambda pid: None)
    lease = take(served, instance(1))
    assert served._look(lease)
    assert ([*lease.watched.values()], lease.over) == ([child], None)


def test_a_changed_timeout_holds_for_the_next_call(monkeypatch):
    """The tests that kill conductors make it short: see tests/integration/failpoints.py."""
    bus = unittest.mock.Mock()
    served = leases.Leases(
        bus, driver.Host.local('host-1'), 'agent-1', threading.Event(), nodes.Finding
    )
    monkeypatch.setattr(leases, 'TIMEOUT', 4)
    served.others()
    served.others(timeout=5)
    assert [call.kwargs['timeout'] for call in bus.leases.call_args_list] == [4, 5]


CARD = '0000:3b:00.0'


def rogues(served, monkeypatch, uid=1000, mark=None, listed=None):
    """The cards that are rogue while a process of a user has one open."""
    use = processes.Use(
        dataclasses.replace(JANE, pid=99, uid=uid), frozenset({'/dev/npu0'}), mark, None
    )
    monkeypatch.setattr(processes, 'uses', lambda nodes: [use])
    found = nodes.Finding(used={'/dev/npu0': CARD}, listed=listed or {})
    return [*served.rogues(found)]


def test_a_process_with_a_mark_is_no_rogue_before_the_earlier_leases_are_known(served, monkeypatch):
    mark = str(uuid.uuid4())
    assert rogues(served, monkeypatch, mark=mark) == []
    assert rogues(served, monkeypatch) == [CARD]
    assert served._compare()
    assert rogues(served, monkeypatch, mark=mark) == [CARD]


def test_a_process_of_a_lease_that_is_listed_on_a_card(served, monkeypatch):
    """It uses the card: that is all right if the card is leased, or may be."""
    mark = str(uuid.uuid4())
    listed = {CARD: frozenset({99})}
    assert rogues(served, monkeypatch, mark=mark, listed=listed) == []
    assert served._compare()
    mark = take(served).uuid
    assert rogues(served, monkeypatch, mark=mark) == []
    assert rogues(served, monkeypatch, mark=mark, listed=listed) == [CARD]
    take(served, instance(1))
    assert rogues(served, monkeypatch, mark=mark, listed=listed) == []


def test_root_is_no_rogue_in_a_lease_that_it_names(served, monkeypatch):
    """As a program that its user has started by sudo."""
    assert served._compare()
    mark = take(served).uuid
    assert rogues(served, monkeypatch, uid=0, mark=mark) == []
    assert rogues(served, monkeypatch, uid=0) == [CARD]
    assert rogues(served, monkeypatch, uid=1001, mark=mark) == [CARD]


def test_a_lease_that_is_made_during_a_comparison_stays_known(served, conductor):
    """The answer was given before it was made."""
    conductor.meanwhile = lambda: take(served)
    assert served._compare()
    conductor.meanwhile = lambda: None
    assert len(served.all()) == 1
    conductor.rows.clear()
    assert served._compare()
    assert served.all() == []


def timed(state, starts, ends):
    """The row of a lease with these times, as a conductor says them."""
    return row([], str(uuid.uuid4())) | {
        'state': state, 'consumer_id': 'host-1/b-1/0/0/1000/jane/', 'starts_at': starts,
        'lease_ends_at': ends,
    }  # fmt: skip


@pytest.mark.parametrize(
    ('state', 'starts', 'ends', 'pause'),
    [
        ('reserved', '2026-11-28T09:00:20', '2026-11-28T12:00:00', 20),
        ('active', '2026-11-28T08:59:50', '2026-11-28T09:00:30.500000', 30.5),
        ('active', None, None, 60),
        # The conductor is late: it is asked at once, and ever more rarely.
        ('reserved', '2026-11-28T09:00:00', '2026-11-28T12:00:00', 1),
        ('reserved', '2026-11-28T08:59:56', '2026-11-28T12:00:00', 4),
        ('active', None, '2026-11-28T08:00:00', 60),
        # No times.
        ('reserved', 'soon', 7, 60),
        ('reserved', '2026-11-28T09:00:20+00:00', None, 20),
    ],
)
def test_leases_are_compared_when_one_starts_or_ends(
    served, conductor, monkeypatch, state, starts, ends, pause
):
    """Otherwise a list would show the state before for a minute."""
    conductor.rows.append(timed(state, starts, ends))
    monkeypatch.setattr(leases.time, 'monotonic', lambda: 100.0)
    served._due = 100.0 + leases.RESYNC
    with fixture.TimeFixture(datetime.datetime(2026, 11, 28, 9)):
        assert served._compare()
        assert served._pause() == pause


def look(served):
    """Do a round of the thread, without a search for processes."""
    served._reported.set()
    with (
        unittest.mock.patch.object(served, '_look', lambda lease: True),
        unittest.mock.patch.object(served, '_wait_for_events', lambda timeout: None),
    ):
        served._work()


def test_conductors_are_told_of_containers_until_one_has_answered(served, conductor):
    told, answers = [], [messaging.MessagingTimeout('no answer'), None, None]

    def contain(containers, **me):
        told.append(containers)
        if error := answers.pop(0):
            raise error
        for each in conductor.rows:
            each['container'] = containers.get(each['uuid'])

    conductor.contain = contain
    one, _ = take(served), take(served)
    for each in conductor.rows:
        each |= {'container': None, 'consumer_id': 'host-1/b-1/7/9/1000/jane/python'}
    one.container = '0123456789ab'
    for _ in range(3):
        look(served)
    assert told == [{one.uuid: '0123456789ab'}] * 2
    one.container = None
    look(served)
    assert told[2:] == [{one.uuid: None}]


def test_conductors_that_show_no_containers_are_told_none(served, conductor):
    """Those of the release before do not know the call."""
    take(served).container = '0123456789ab'
    look(served)


def test_a_lease_that_ends_while_nodes_are_closed_waits_for_the_next_round(
    served, conductor, monkeypatch
):
    """Otherwise it would be free, and its last user could open its nodes."""
    ended = []
    conductor.end_lease = lambda uuid, **_: ended.append(uuid)
    one, two = take(served), take(served)
    served._reported.set()
    monkeypatch.setattr(served, '_look', lambda lease: True)
    monkeypatch.setattr(served, '_wait_for_events', lambda timeout: None)
    monkeypatch.setattr(served, 'guard', lambda: served.end(two, 'It was released.'))
    served.end(one, 'It was released.')
    served._work()
    assert ended == [one.uuid]
    served._work()
    assert ended == [one.uuid, two.uuid]

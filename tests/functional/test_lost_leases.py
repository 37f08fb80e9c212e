# SPDX-License-Identifier: Apache-2.0
"""Leases whose answers are lost between a conductor and an agent: nothing stays held."""

import contextlib
import threading

import oslo_messaging as messaging
import pytest

import cyborg_lite
from cyborg_lite import client
from cyborg_lite import exception
from cyborg_lite import rpc
from tests.functional import test_leases

machine, shared, alone = test_leases.machine, test_leases.shared, test_leases.alone
BOUND = test_leases.BOUND


class Losses:
    """What happens to the calls of a method, one after the other; later calls pass."""

    def __init__(self, method, faults):
        self._method, self.faults = method, faults
        self._send = rpc.Peer._send
        #: calls that have not been carried out
        self.late = []

    def send(self, peer, method, kwargs):
        if method != self._method or not self.faults:
            return self._send(peer, method, kwargs)
        return self.faults.pop(0)(lambda: self._send(peer, method, kwargs))

    def delay(self, carry_out):
        """It is not carried out yet, and not answered."""
        self.late.append(carry_out)
        raise messaging.MessagingTimeout


def lose(error):
    """A fault: the call is carried out, and the answer is lost."""

    def fault(carry_out):
        carry_out()
        raise error

    return fault


@pytest.fixture
def losses(monkeypatch):
    """Spoil the calls of a method."""

    def begin(method, *faults):
        made = Losses(method, [*faults])
        monkeypatch.setattr(rpc.Peer, '_send', lambda *args: made.send(*args))
        return made

    return begin


UNANSWERED = messaging.MessagingTimeout()
ERRORS = [
    UNANSWERED,
    messaging.RemoteError('OSError', 'the disk is full'),
    exception.DatabaseAway(reason='a conductor cannot reach it'),
    rpc.BusAway('the broker is away'),
]


def test_a_lease_whose_answer_is_lost_is_given_on_a_retry(machine, losses):
    losses('lease', lose(UNANSWERED))
    with cyborg_lite.allocate('npu', 2, socket=machine.socket):
        [lease] = machine.leases()
        assert (machine.held(), lease['state']) == (2, 'active')


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_a_lease_that_is_not_answered_is_freed(machine, losses, error):
    """Its process is this one, and lives on."""
    spoiled = losses('lease', *[lose(error)] * 2)
    with pytest.raises(client.Error) as told:
        cyborg_lite.allocate('npu', 2, socket=machine.socket)
    assert told.value.code == 503
    spoiled.faults.clear()
    machine.until(lambda: not machine.held())
    with cyborg_lite.allocate('npu', 8, socket=machine.socket):
        assert machine.held() == 8


def test_a_lease_that_waits_and_is_not_answered_leaves_the_queue(machine, losses):
    with cyborg_lite.allocate('npu', 8, socket=machine.socket) as held:
        losses('lease', *[lose(UNANSWERED)] * 2)
        with pytest.raises(client.Error, match='no conductor answers'):
            cyborg_lite.allocate('npu', 1, socket=machine.socket)
        path = '/v2/allocations?state=queued'
        machine.until(lambda: not machine.service.api.get(path).json['allocations'])
        assert [each['uuid'] for each in machine.leases()] == [held.uuid]


def test_a_lease_that_is_made_after_its_agent_gave_up_is_freed(machine, losses):
    """The agent has seen meanwhile that it was not there."""
    spoiled = losses('lease')
    spoiled.faults += [spoiled.delay] * 2
    with pytest.raises(client.Error):
        cyborg_lite.allocate('npu', 2, socket=machine.socket)
    compare(machine)()
    for carry_out in spoiled.late:
        # The second is answered as the first.
        carry_out()
    assert machine.held() == 2
    compare(machine)()
    machine.until(lambda: not machine.held())


def compare(machine):
    """Let the agent compare its leases with those of conductors; returns a wait for the end."""
    monitor = machine.service.embedded._services[1]._local._default
    ended, plain = threading.Event(), monitor._compare

    def seen():
        try:
            return plain()
        finally:
            ended.set()

    monitor._compare = seen
    monitor.look_again()

    def wait():
        assert ended.wait(BOUND)
        monitor._compare = plain

    return wait


def test_an_answer_that_is_lost_during_a_comparison(alone, losses):
    """The comparison in progress has read the leases before this one was made."""
    machine = alone()
    read, go_on = threading.Event(), threading.Event()

    def stop(carry_out):
        rows = carry_out()
        read.set()
        assert go_on.wait(BOUND)
        return rows

    losses('leases', stop)
    compared = compare(machine)
    assert read.wait(BOUND)
    spoiled = losses('lease', *[lose(UNANSWERED)] * 2)
    with pytest.raises(client.Error):
        cyborg_lite.allocate('npu', 2, socket=machine.socket)
    assert not spoiled.faults
    assert machine.held() == 2
    go_on.set()
    compared()
    machine.until(lambda: not machine.held())


def test_a_comparison_during_a_request_leaves_its_lease_to_the_client(machine, losses):
    """A waiting lease without a client would be released."""
    held = cyborg_lite.allocate('npu', 8, socket=machine.socket)

    def compared_meanwhile(carry_out):
        row = carry_out()
        for _ in range(2):
            compare(machine)()
        held.release()
        return row

    losses('lease', compared_meanwhile)
    with cyborg_lite.allocate('npu', 2, socket=machine.socket) as lease:
        assert [each['uuid'] for each in machine.leases()] == [lease.uuid]


def test_a_refused_lease_is_not_asked_for_again(machine, losses):
    asked = []

    def count(carry_out):
        asked.append(1)
        return carry_out()

    losses('lease', count, count)
    with contextlib.suppress(client.Error):
        cyborg_lite.allocate('gpu', socket=machine.socket)
    assert asked == [1]

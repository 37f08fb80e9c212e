# SPDX-License-Identifier: Apache-2.0
"""Leases over HTTP while their service is away, or ends them."""

import itertools
import time
import types
import warnings

import pytest

from cyborg_lite import client
from cyborg_lite import renewing

UUID = 'a1b2c3d4-0000-4000-8000-000000000000'
ACTIVE = {'uuid': UUID, 'name': None, 'state': 'active', 'accelerators': []}
QUEUED, RELEASED = ({'uuid': UUID, 'state': state} for state in ('queued', 'released'))
DELIVERY = {'deliveries': [{'delivery': {}}]}
AWAY, REFUSED = client.Error('away'), client.Error('it is released', 409)
EXPIRED, LIMITED = client.Error('the token has expired', 401), client.Error('too many', 429)


class Service:
    """A service that gives these answers, and then what it always gives."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.timeouts = []

    def ask(self, method, path, body=None, timeout=None, **headers):
        self.timeouts.append(timeout)
        self.asked.append((method, path.partition('/')[2], body, headers))
        if 'deliveries' in path:
            return DELIVERY
        if method == 'DELETE':
            return {}
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def methods(self):
        return [method for method, path, _, _ in self.asked if 'deliveries' not in path]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pause, and no renewal at once."""
    monkeypatch.setattr(renewing, 'PAUSE', 0)


def lease(service, end=None):
    found = renewing.lease(service, {'resource_class': 'npu', 'count': 1}, 'host-1', end)
    found.over.set()
    return found


def test_a_request_without_an_answer_is_sent_again():
    """By its key the service knows it again."""
    service = Service(AWAY, QUEUED, ACTIVE)
    assert lease(service).uuid == UUID
    [first, second] = service.asked[:2]
    assert first == second
    assert (first[0], len(first[3]['Idempotency_Key'])) == ('POST', 36)


def test_a_request_that_is_refused_is_an_error():
    service = Service(REFUSED)
    with pytest.raises(client.Error, match=str(REFUSED)):
        lease(service)
    assert service.methods() == ['POST']


@pytest.mark.parametrize('answers', [[AWAY, AWAY], [KeyboardInterrupt()], [AWAY, OSError()]])
def test_a_request_that_is_given_up_leaves_no_allocation(answers):
    """The service may have made it before the answer was lost: it is found by the key."""
    service = Service(*answers, QUEUED)
    with pytest.raises(type(answers[-1])):
        lease(service)
    *posts, (method, path, _, _) = service.asked
    assert posts == [posts[0]] * (len(answers) + 1)
    assert (method, path) == ('DELETE', UUID)
    # Nobody waits long for what is given up.
    assert service.timeouts == [None] * len(answers) + [renewing.SOON] * 2


@pytest.mark.parametrize('answers', [[AWAY, KeyboardInterrupt()], [AWAY, AWAY]])
def test_an_error_while_a_request_is_given_up_hides_no_other(answers):
    with pytest.raises(type(answers[-1])):
        lease(Service(*answers, OSError('it is gone')))


def test_a_request_that_is_given_up_during_an_outage_is_an_error():
    service = Service(AWAY, AWAY, AWAY)
    with pytest.raises(client.Error, match='away'):
        lease(service)
    assert service.methods() == ['POST'] * 3


def test_an_outage_ends_no_wait():
    service = Service(QUEUED, QUEUED, AWAY, QUEUED, LIMITED, ACTIVE)
    assert lease(service).uuid == UUID
    paths = [path for _, path, _, _ in service.asked[1:6]]
    assert paths == [f'{UUID}?wait={seconds}' for seconds in (0, 20, 20, 20, 20)]


def test_a_wait_in_the_queue_has_an_end():
    service = Service(QUEUED, QUEUED)
    with pytest.raises(client.TimedOut):
        lease(service, time.monotonic())
    assert service.methods() == ['POST', 'GET', 'DELETE']


@pytest.mark.parametrize('answer', [RELEASED, KeyboardInterrupt()])
def test_a_wait_that_ends_otherwise_leaves_the_queue(answer):
    service = Service(QUEUED, QUEUED, answer)
    with pytest.raises(KeyboardInterrupt if answer is not RELEASED else client.Error):
        lease(service)
    assert service.methods() == ['POST', 'GET', 'GET', 'DELETE']


def held(service):
    return renewing.Lease(UUID, None, 'host-1', [], {}, '', service=service)


def test_a_lease_that_has_ended_is_told(monkeypatch):
    """What fails otherwise ends no lease: the next renewal may have a new token."""
    monkeypatch.setattr(renewing, 'EVERY', 0)
    service = Service({}, AWAY, EXPIRED, LIMITED, {}, REFUSED)
    with pytest.warns(UserWarning, match='The lease of accelerators ends: it is released'):
        held(service).renew()
    assert service.asked == [('PATCH', UUID, {'lease': renewing.LEASE}, {})] * 6


@pytest.mark.parametrize('error', [AWAY, EXPIRED, LIMITED])
def test_a_lease_whose_time_is_over_is_told(monkeypatch, error):
    """With what failed last."""
    monkeypatch.setattr(renewing, 'EVERY', 0)
    # The clock is read before each renewal, and after those that fail: the lease ends at 150.
    now = itertools.count(0.0, renewing.LEASE / 4)
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(renewing, 'time', clock)
    service = Service({}, LIMITED, error)
    with pytest.warns(UserWarning, match=f'The lease of accelerators ends: {error}'):
        held(service).renew()
    assert not service.answers


def test_a_released_lease_is_not_renewed():
    service = Service()
    with held(service) as lease, warnings.catch_warnings():
        warnings.simplefilter('error')
    lease.renew()
    assert service.methods() == ['DELETE']


def test_what_no_variable_names_is_given_back(monkeypatch):
    """The program would see all cards of the machine."""
    unnamed = {'unnamed': ['b'], 'problems': ['Accelerator b has no uuid.']}
    monkeypatch.setitem(DELIVERY, 'deliveries', [{'delivery': unnamed}])
    service = Service(QUEUED, ACTIVE)
    with pytest.raises(client.Error, match='would see all cards of host-1'):
        lease(service)
    assert service.methods()[-1] == 'DELETE'

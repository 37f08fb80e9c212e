# SPDX-License-Identifier: Apache-2.0
"""The base class of drivers: a card that was critical comes back if it passes a trial."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import description

ADDRESS = '0000:3b:00.0'


class Acme(driver.Driver):
    """A driver of one card: a test sets its health and the result of its trial."""

    name = 'acme'

    def __init__(self, host: driver.Host) -> None:
        super().__init__(host, None)
        self.level, self.outcome, self.trials = 'ok', None, 0

    def discover(self):
        return [
            driver.Device(
                type='GPU', vendor='abcd', model='Acme', address=ADDRESS, health=self.level
            )
        ]

    def validate(self, device):
        self.trials += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def seen(self, level: str) -> tuple[str, str | None]:
        self.level = level
        [device] = self.look()[0]
        return device.health, device.health_reason


@pytest.fixture
def acme(tmp_path):
    return Acme(driver.Host('x', tmp_path))


@pytest.mark.parametrize('level', ['ok', 'warning'])
def test_a_critical_card_comes_back_if_it_passes_a_trial(acme, level):
    assert acme.seen('critical') == ('critical', None)
    assert (acme.seen(level), acme.trials) == ((level, None), 1)
    # Once is enough.
    assert (acme.seen(level), acme.trials) == ((level, None), 1)


def test_a_card_that_fails_its_trial_stays_critical(acme):
    acme.seen('critical')
    acme.outcome = 'acme_trial'
    assert [acme.seen('ok') for _ in range(2)] == [('critical', 'acme_trial')] * 2
    acme.outcome = None
    assert (acme.seen('ok'), acme.trials) == (('ok', None), 3)


def test_a_trial_that_raises_is_a_failed_one(acme):
    acme.seen('critical')
    acme.outcome = ValueError('no answer')
    assert acme.seen('ok') == ('critical', 'validation_failed')
    assert acme.look()[1] == [f"validate() of {ADDRESS} failed: ValueError('no answer')"]


def test_a_card_without_a_good_health_is_not_tried(acme):
    """A card that was not critical is not tried, either."""
    for level in ('ok', 'warning', 'unknown', 'ok', 'critical', 'unknown', 'critical'):
        acme.seen(level)
    assert acme.trials == 0
    acme.seen('ok')
    assert acme.trials == 1


def test_what_is_no_device_is_left_to_the_contract(acme):
    acme.discover = lambda: [7, None]
    assert acme.look() == ([7, None], [])
    acme.discover = lambda: 'x'
    assert acme.look() == ('x', [])


class Slow:
    """A trial of Acme that takes longer than scans wait, until a test ends it."""

    def __init__(self, acme: Acme, monkeypatch) -> None:
        self.acme, self.begun, self.ended = acme, [], threading.Event()
        monkeypatch.setattr(driver, 'TRIALS', 0.01)
        self.patch = monkeypatch
        acme.seen('critical')
        acme.validate = self.hang

    def hang(self, device) -> str | None:
        self.begun.append(device)
        assert self.ended.wait(60)
        return self.acme.outcome

    def end(self) -> None:
        """It ends; a later trial is waited for."""
        self.ended.set()
        self.acme._trials[ADDRESS].future.result(60)
        self.patch.setattr(driver, 'TRIALS', 60)


@pytest.fixture
def slow(acme, monkeypatch):
    made = Slow(acme, monkeypatch)
    yield made
    made.ended.set()


@pytest.mark.parametrize(
    ('outcome', 'seen'), [(None, ('ok', None)), ('acme_trial', ('critical', 'acme_trial'))]
)
def test_the_next_scan_takes_the_outcome_of_a_slow_trial(slow, acme, outcome, seen):
    """As of a card with two chips whose tool takes seconds for each."""
    acme.outcome = outcome
    assert [acme.seen('ok') for _ in range(3)] == [('critical', 'validation_timeout')] * 3
    slow.end()
    assert acme.seen('warning') == (seen if outcome else ('warning', None))
    assert len(slow.begun) == 1
    # It is taken once: a card that failed is tried anew.
    assert acme.seen('ok') == seen
    assert len(slow.begun) == (2 if outcome else 1)


@pytest.mark.parametrize('level', ['critical', 'unknown'])
def test_an_outcome_from_before_another_bad_scan_does_not_count(slow, acme, level):
    assert acme.seen('ok') == ('critical', 'validation_timeout')
    acme.seen(level)
    slow.end()
    acme.outcome = 'acme_trial'
    assert acme.seen('ok') == ('critical', 'acme_trial')
    assert len(slow.begun) == 2


def test_an_outcome_from_before_a_scan_that_failed_does_not_count(slow, acme):
    assert acme.seen('ok') == ('critical', 'validation_timeout')
    found, acme.discover = acme.discover, lambda: [][0]
    with pytest.raises(IndexError):
        acme.look()
    acme.discover = found
    slow.end()
    acme.outcome = 'acme_trial'
    assert acme.seen('ok') == ('critical', 'acme_trial')
    assert len(slow.begun) == 2


def test_a_trial_that_hangs_costs_one_scan_a_wait(slow, acme, monkeypatch):
    acme.seen('ok')
    waited = []
    monkeypatch.setattr(concurrent.futures, 'wait', lambda found, time: waited.append(found))
    assert acme.seen('ok') == ('critical', 'validation_timeout')
    acme.seen('critical')
    assert acme.seen('ok') == ('critical', 'validation_timeout')
    assert (waited[:2], len(slow.begun)) == ([[], []], 1)


def test_what_the_description_of_a_host_says_of_a_card_is_not_tried(acme):
    place = acme.host.root / description.HEALTH / ADDRESS
    place.parent.mkdir(parents=True)
    for told in ('critical acme_fan', 'ok'):
        place.write_text(told)
        [device] = acme.look()[0]
        assert device.health == told.split()[0]
    assert acme.trials == 0

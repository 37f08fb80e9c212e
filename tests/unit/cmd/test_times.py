# SPDX-License-Identifier: Apache-2.0
"""Times that people type and read."""

import argparse
import datetime
import time

import pytest

from cyborg_lite.cmd import times
from cyborg_lite.conductor import requesting


@pytest.fixture
def in_shanghai(monkeypatch):
    monkeypatch.setenv('TZ', 'Asia/Shanghai')
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('now', '2026-11-27 10:00:10'),
        ('09:00', '2026-11-28 01:00'),
        ('19:30', '2026-11-27 11:30'),
        ('18:00', '2026-11-28 10:00'),
        ('today 09:00', '2026-11-27 01:00'),
        ('Tomorrow  9:05', '2026-11-28 01:05'),
        ('2026-12-01T09:00', '2026-12-01 01:00'),
        ('2026-12-01 09:00', '2026-12-01 01:00'),
        ('2026-12-01T09:00+01:00', '2026-12-01 08:00'),
        ('2026-12-01T09:00Z', '2026-12-01 09:00'),
    ],
)
def test_times_that_people_type(in_shanghai, text, expected):
    """At six in the evening in Shanghai; the answer is in UTC."""
    found = times.moment(text, datetime.datetime(2026, 11, 27, 18))
    assert found == datetime.datetime.fromisoformat(expected)


@pytest.mark.parametrize('text', ['', '9', '25:00', '09:60', 'noon', '2026-13-01T09:00', '20260101',
                                  '9999-12-31T23:59-12:00', '09:00\n09:00'])  # fmt: skip
def test_no_time(in_shanghai, text):
    with pytest.raises(argparse.ArgumentTypeError, match='expected a time such as now, 09:00'):
        times.moment(text, datetime.datetime(2026, 11, 27, 18))


@pytest.mark.parametrize('text', ['', '0', '-1', '1w', '9' * 9, 'h', '1e9'])
def test_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match='expected a time such as 90, 30m or 2h'):
        times.seconds(text)


def test_no_time_is_longer_than_a_lease():
    """The command says so, not the service: it knows the option."""
    assert times.seconds('366d') == requesting.LONGEST == times.LONGEST
    with pytest.raises(argparse.ArgumentTypeError, match="expected at most 366d, not '1000000h'"):
        times.seconds('1000000h')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('It starts at 2026-11-28T01:00:00+00:00.', 'It starts at 2026-11-28 09:00 CST.'),
        ('2026-11-28T01:00:09+00:00 on', '2026-11-28 09:00:09 CST on'),
        ('2026-13-28T01:00:00+00:00', '2026-13-28T01:00:00+00:00'),
        ('9999-12-31T23:00:00+00:00', '9999-12-31T23:00:00+00:00'),
        ('none', 'none'),
    ],
)
def test_times_of_the_service_are_those_of_people(in_shanghai, text, expected):
    assert times.localized(text) == expected

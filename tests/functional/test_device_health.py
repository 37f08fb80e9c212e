# SPDX-License-Identifier: Apache-2.0
"""The health of devices: shown, and what follows from it."""

import datetime

from oslo_utils import timeutils
import pytest

from tests import support


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves on, by as many seconds as it says."""
    now = [datetime.datetime(2026, 11, 27)]

    def move(seconds=0):
        now[0] += datetime.timedelta(seconds=seconds)
        return now[0].isoformat() + '+00:00'

    monkeypatch.setattr(timeutils, 'utcnow', lambda *_: now[0])
    return move


def sick(reason='xid_79', level='critical', bus='3b', **more):
    """A card that its driver says is not well."""
    return support.card(bus, health=level, health_reason=reason, **more)


def well(bus='3b', **more):
    return support.card(bus, health='ok', **more)


def shown(service, *names, bus='3b'):
    """These fields of the accelerators of a card."""
    rows = service.api.get('/v2/accelerators').json['accelerators']
    [*rows] = [row for row in rows if row['address'] == f'0000:{bus}:00.0']
    assert rows
    values = {tuple(row[name] for name in names) for row in rows}
    [value] = values
    return value


HEALTH = ('health', 'health_reason', 'health_since')


def test_health_is_shown_with_its_reason_and_its_time(service, clock):
    service.report(support.card())
    # The host says nothing of it, as an agent of the release before.
    assert shown(service, *HEALTH) == ('unknown', None, clock())
    clock(20)
    began = clock()
    service.report(sick('pcie_width', 'warning'))
    assert shown(service, *HEALTH) == ('warning', 'pcie_width', began)
    clock(20)
    service.report(sick('pcie_width', 'warning', model='renamed'))
    assert shown(service, *HEALTH) == ('warning', 'pcie_width', began)
    clock(20)
    service.report(sick())
    assert shown(service, *HEALTH) == ('critical', 'xid_79', clock())


def test_accelerators_are_found_by_health(service):
    service.report(sick('pcie_width', 'warning'), well('4c'))
    for name, value, found in (
        ('health', 'warning', ['0000:3b:00.0']),
        ('health', 'ok', ['0000:4c:00.0']),
        ('health_reason', 'pcie_width', ['0000:3b:00.0']),
        ('health_reason', 'xid_79', []),
    ):
        answer = service.api.get(f'/v2/accelerators?{name}={value}')
        assert [row['address'] for row in answer.json['accelerators']] == found


def test_health_that_is_none_costs_no_card(service):
    facts = well().facts() | {'health': 'fine \u202e' * 99, 'health_reason': ['x']}
    service.report(devices=[facts])
    assert shown(service, *HEALTH[:2]) == ('unknown', None)


def test_upstreams_resources_are_as_they_were(service):
    """A client that checks what it gets must not meet a field that Cyborg has not."""
    service.report(sick())
    [device] = service.api.get('/v2/devices').json['devices']
    assert not {name for name in device if 'health' in name}

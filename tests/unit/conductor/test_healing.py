# SPDX-License-Identifier: Apache-2.0
"""Hosts that fall silent, and come back."""

import datetime
import threading

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.conductor import healing
from cyborg_lite.conductor import outbox
from tests.support import card
from tests.unit.conductor import direct

TOLD = (outbox.PROVIDER,)


@pytest.fixture
def conductor(database_url, monkeypatch):
    """A conductor with somebody to tell of providers."""
    made = direct.Conductor(database_url)
    monkeypatch.setattr(made._manager.outbox, '_send', dict.fromkeys(TOLD))
    yield made
    made.close()


def fall_silent(conductor, seconds=51):
    with conductor.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(seconds=seconds)
        session.execute(sa.update(model.Host).values(seen_at=past))
        session.execute(sa.delete(model.Message))


def heal(conductor):
    conductor._manager.healer.heal()


def reserved(conductor):
    """Of which providers Placement is to be told, and what is reserved there."""
    parts = {part.rp_uuid: part.announced['reserved'] for part in conductor.rows(model.Deployable)}
    return {message.key: parts[message.key] for message in conductor.rows(model.Message)}


def test_nothing_is_scheduled_to_a_host_that_is_down(conductor):
    """I11."""
    conductor.report(card('3b', handles=3), card('3c', handles=2))
    fall_silent(conductor)
    heal(conductor)
    assert reserved(conductor) == {direct.provider('3b'): 3, direct.provider('3c'): 2}


def test_it_is_noticed_once(conductor):
    conductor.report(card())
    fall_silent(conductor)
    heal(conductor)
    with conductor.database.writer() as session:
        session.execute(sa.delete(model.Message))
    with conductor.statements() as seen:
        heal(conductor)
    assert conductor.rows(model.Message) == []
    assert len(seen) <= 3, seen


def test_a_host_that_reports_is_left_alone(conductor):
    conductor.report(card())
    fall_silent(conductor, seconds=49)
    heal(conductor)
    assert conductor.rows(model.Message) == []


def test_a_host_is_as_patient_as_it_says(conductor):
    conductor.report(card('3b'), host='often', interval=10)
    conductor.report(card('3b'), host='seldom', interval=30)
    fall_silent(conductor, seconds=30)
    heal(conductor)
    assert reserved(conductor) == {direct.provider('3b', 'often'): 1}


def test_an_unchanged_report_brings_it_back(conductor):
    conductor.report(card(handles=3))
    fall_silent(conductor)
    heal(conductor)
    conductor.report(card(handles=3))
    assert reserved(conductor) == {direct.provider(): 0}
    with conductor.statements() as seen:
        conductor.report(card(handles=3))
    assert len(seen) <= 2, seen


def test_a_device_enabled_while_its_host_is_late_is_given_out_with_the_next_report(conductor):
    """That the host is late is no conductor's to tell before it has noted it: none would say later
    that the host is not.
    """
    conductor.report(card(handles=3))
    device = conductor.device().uuid
    conductor.set_device_status(uuid=device, status='maintaining')
    fall_silent(conductor)
    conductor.set_device_status(uuid=device, status='enabled')
    conductor.report(card(handles=3))
    assert reserved(conductor) == {direct.provider(): 0}


def test_what_is_bound_stays_bound(conductor):
    conductor.report(card(handles=3))
    [held] = conductor.hold()
    fall_silent(conductor)
    heal(conductor)
    assert conductor.arq(held).state == 'Bound'


def test_the_healer_goes_on_after_an_error(conductor, monkeypatch):
    """The database may be away for a while."""
    again, tries = threading.Event(), iter([RuntimeError('away')])

    def notice(session):
        for error in tries:
            raise error
        again.set()

    monkeypatch.setattr(healing, 'notice_silence', notice)
    healer = healing.Healer(conductor.conf, conductor._manager.outbox)
    healer._interval = 0.01
    healer.start()
    assert again.wait(10)
    healer.stop()

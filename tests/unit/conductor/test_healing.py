# SPDX-License-Identifier: Apache-2.0
"""Hosts that go down, and come back."""

import contextlib
import datetime
import queue
import threading
import types

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import healing
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from tests.support import card
from tests.unit.conductor import direct

TOLD = (outbox.HOST, outbox.PROVIDER)


@pytest.fixture
def conductor(database_url, monkeypatch):
    """A conductor with a Placement."""
    made = direct.Conductor(database_url)
    monkeypatch.setattr(made._manager.outbox, '_send', dict.fromkeys(TOLD))
    yield made
    made.close()


def fall_silent(conductor, seconds=51):
    with conductor.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(seconds=seconds)
        session.execute(sa.update(model.Host).values(seen_at=past))
        session.execute(sa.delete(model.Message))


def resync(conductor, last=0):
    """Returns the announced providers, and the host's id."""
    with conductor.database.writer() as session:
        session.execute(sa.delete(model.Message))
    with conductor._manager.outbox.session() as session:
        now = healing.resync(session, last)
    return [message.key for message in conductor.rows(model.Message)], now


def reserved(conductor):
    """The announced providers, and their reserved amounts."""
    parts = {part.rp_uuid: part.announced['reserved'] for part in conductor.rows(model.Deployable)}
    return {message.key: parts[message.key] for message in conductor.rows(model.Message)}


def test_nothing_is_scheduled_to_a_host_that_is_down(conductor):
    """I11."""
    conductor.report(card('3b', handles=3), card('3c', handles=2))
    fall_silent(conductor)
    conductor.heal()
    assert reserved(conductor) == {direct.provider('3b'): 3, direct.provider('3c'): 2}


def test_nothing_is_scheduled_to_a_host_of_a_clock_that_was_fast(conductor):
    """The time of its report is in the future: without this it would be up until then."""
    conductor.report(card('3b', handles=3))
    fall_silent(conductor, seconds=-3600)
    conductor.heal()
    assert reserved(conductor) == {direct.provider('3b'): 3}


def test_nothing_is_scheduled_to_a_device_that_cannot_be_used(conductor):
    conductor.report(card('3b', handles=3, unusable='it shows the console'))
    assert reserved(conductor) == {direct.provider('3b'): 3}
    conductor.report(card('3b', handles=3))
    assert reserved(conductor) == {direct.provider('3b'): 0}


def test_nothing_is_scheduled_to_the_old_name_of_a_machine(conductor):
    for name in ('old', 'new'):
        conductor.report(card('3b', handles=3), host=name, machine='one', agent=name)
    part, new = conductor.rows(model.Deployable)
    told = reserved(conductor)
    assert told == {part.rp_uuid: 3, new.rp_uuid: 0}


def test_a_host_is_marked_as_down_once(conductor):
    conductor.report(card())
    fall_silent(conductor)
    conductor.heal()
    with conductor.database.writer() as session:
        session.execute(sa.delete(model.Message))
    with conductor.statements() as seen:
        conductor.heal()
    assert conductor.rows(model.Message) == []
    assert len(seen) <= 3, seen


def test_a_host_that_reports_is_left_alone(conductor):
    conductor.report(card())
    fall_silent(conductor, seconds=49)
    conductor.heal()
    assert conductor.rows(model.Message) == []


def test_a_host_is_down_after_its_own_interval(conductor):
    conductor.report(card('3b'), host='often', interval=10)
    conductor.report(card('3b'), host='seldom', interval=30)
    fall_silent(conductor, seconds=30)
    conductor.heal()
    assert reserved(conductor) == {direct.provider('3b', 'often'): 1}


def test_an_unchanged_report_brings_it_back(conductor):
    conductor.report(card(handles=3))
    fall_silent(conductor)
    conductor.heal()
    conductor.report(card(handles=3))
    assert reserved(conductor) == {direct.provider(): 0}
    with conductor.statements() as seen:
        conductor.report(card(handles=3))
    assert len(seen) <= 2, seen


def test_a_device_enabled_while_its_host_is_late_is_given_out_with_the_next_report(conductor):
    """A late host is not reserved before it is marked: otherwise no message would end the
    reservation.
    """
    conductor.report(card(handles=3))
    device = conductor.device().uuid
    conductor.set_device_status(uuid=device, status='maintaining')
    fall_silent(conductor)
    conductor.set_device_status(uuid=device, status='enabled')
    conductor.report(card(handles=3))
    assert reserved(conductor) == {direct.provider(): 0}


def test_a_host_that_somebody_has_locked_is_noticed(conductor, server):
    conductor.report(card(handles=3))
    fall_silent(conductor)
    asked = threading.Event()
    healer = threading.Thread(target=conductor.heal)

    def see(_connection, _cursor, statement, *_):
        if 'FOR UPDATE' in statement and threading.current_thread() is healer:
            asked.set()

    with conductor.database.writer() as session:
        hosts.lock(session, sa.select(model.Host.name))
        sa.event.listen(conductor.database.engine, 'before_cursor_execute', see)
        healer.start()
        assert asked.wait(10)
        healer.join(1)  # a query that skips locked rows would end here
    healer.join()
    assert reserved(conductor) == {direct.provider(): 3}


def test_bound_requests_stay_bound(conductor):
    conductor.report(card(handles=3))
    [held] = conductor.hold()
    fall_silent(conductor)
    conductor.heal()
    assert conductor.arq(held).state == 'Bound'


def test_placement_is_resynced_of_one_host_after_another(conductor):
    hosts = ('host-1', 'host-2')
    for host in hosts:
        conductor.report(card(), host=host)
    ids = [host.id for host in conductor.rows(model.Host)]
    told, last = [], 0
    for _ in range(4):
        providers, last = resync(conductor, last)
        told.append((providers, last))
    every = [([direct.provider(host=host)], id_) for host, id_ in zip(hosts, ids, strict=True)]
    assert told == [*every, ([], 0), every[0]]


def test_a_wrong_announcement_is_corrected(conductor):
    """For example by an older release."""
    conductor.report(card(handles=3))
    with conductor.database.writer() as session:
        [part] = session.query(model.Deployable)
        part.announced = part.announced | {'reserved': 3}
    resync(conductor)
    assert reserved(conductor) == {direct.provider(): 0}


def test_nothing_is_reconciled_without_placement(conductor, monkeypatch):
    conductor.report(card())
    monkeypatch.setattr(conductor._manager.outbox, '_send', {})
    assert resync(conductor) == ([], 0)


def test_earlier_reports_are_sent_to_a_placement_that_is_configured_later(conductor, monkeypatch):
    outbox_ = conductor._manager.outbox
    told = outbox_._send
    monkeypatch.setattr(outbox_, '_send', {})
    conductor.report(card())
    conductor.report(card())
    assert conductor.rows(model.Message) == []
    monkeypatch.setattr(outbox_, '_send', told)
    conductor.report(card())
    assert reserved(conductor) == {direct.provider(): 0}


def test_the_healer_does_both(conductor):
    conductor.report(card(handles=3))
    fall_silent(conductor)
    conductor._manager.healer.heal()
    assert reserved(conductor) == {direct.provider(): 3}
    with conductor.database.writer() as session:
        session.execute(sa.delete(model.Message))
    for _ in range(2):  # after the last host it starts again
        conductor._manager.healer.heal()
    assert reserved(conductor) == {direct.provider(): 3}


def test_the_healer_goes_on_after_an_error(conductor, monkeypatch):
    """The database may be down for a while."""
    again, tries = threading.Event(), iter([RuntimeError('away')])

    def notice(session, watching):
        for error in tries:
            raise error
        again.set()

    monkeypatch.setattr(healing, 'notice_silence', notice)
    conductor.conf.set_override('healing_interval', 1, 'conductor')
    healer = healing.Healer(conductor.conf, conductor._manager.outbox)
    healer.start()
    assert again.wait(10)
    healer.stop()


# A conductor that was paused itself


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves: ``clock(10)`` is ten seconds later."""
    passed = [0.0]
    plain = timeutils.utcnow

    def move(seconds):
        passed[0] += seconds

    def now():
        return plain() + datetime.timedelta(seconds=passed[0])

    # oslo.utils 8.0 asks the function for this by its name.
    now.override_time = None
    monkeypatch.setattr(timeutils, 'utcnow', now)
    return move


@pytest.fixture
def healer(conductor):
    """A started healer, which a test runs by ``healer.heal()``."""
    made = healing.Healer(conductor.conf, conductor._manager.outbox)
    made._begin()
    conductor.report(card(handles=3))
    return made


def watch(healer, clock, seconds):
    """Run it every ten seconds, as by default."""
    for _ in range(seconds // 10):
        clock(10)
        healer.heal()


def noticed(conductor):
    [host] = conductor.rows(model.Host)
    return host.silent


def test_a_conductor_that_has_just_started_marks_no_host(conductor, healer, clock):
    """The host may have reported all the time, without a conductor."""
    fall_silent(conductor, seconds=3600)
    healer.heal()
    watch(healer, clock, 40)
    assert not noticed(conductor)
    watch(healer, clock, 20)
    assert noticed(conductor)


def test_a_healer_marks_no_host_once_it_is_started(conductor, monkeypatch):
    judged = queue.SimpleQueue()
    monkeypatch.setattr(healing, 'notice_silence', lambda session, watching: judged.put(watching))
    conductor.conf.set_override('healing_interval', 1, 'conductor')
    healer = healing.Healer(conductor.conf, conductor._manager.outbox)
    began = timeutils.utcnow()
    healer.start()
    assert judged.get(timeout=10) >= began
    healer.stop()


def test_after_a_clock_goes_back_hosts_are_checked_again(conductor, healer, clock):
    watch(healer, clock, 60)
    conductor.report(card(handles=3))
    clock(-3600)
    fall_silent(conductor, seconds=3660)
    healer.heal()
    watch(healer, clock, 40)
    assert not noticed(conductor)
    watch(healer, clock, 20)
    assert noticed(conductor)


def test_a_conductor_that_was_stopped_marks_no_host(conductor, healer, clock):
    watch(healer, clock, 60)
    conductor.report(card(handles=3))
    clock(300)
    healer.heal()
    watch(healer, clock, 40)
    assert not noticed(conductor)
    watch(healer, clock, 20)
    assert noticed(conductor)


def test_a_host_that_is_silent_while_the_conductor_watches_is_noticed_in_time(
    conductor, healer, clock
):
    watch(healer, clock, 60)
    conductor.report(card(handles=3))
    watch(healer, clock, 60)
    assert noticed(conductor)


def test_a_host_that_nobody_could_hear_is_used_and_kept(conductor, healer, clock):
    """After an outage each host is overdue, and its next report is on the way."""
    watch(healer, clock, 60)
    conductor.report(card(handles=3))
    clock(300)
    healer.heal()
    [arq] = conductor.hold()
    assert conductor.arq(arq).state == 'Bound'
    with pytest.raises(exception.Conflict, match='host-1 is up'):
        conductor.delete_host(name='host-1')


def test_after_the_database_was_away_no_host_is_marked(conductor, healer, clock, monkeypatch):
    watch(healer, clock, 60)
    conductor.report(card(handles=3))

    def fail():
        raise RuntimeError('away')

    monkeypatch.setattr(healer, '_resync', fail)
    with pytest.raises(RuntimeError):
        watch(healer, clock, 10)
    monkeypatch.delattr(healer, '_resync')
    fall_silent(conductor, seconds=3600)
    watch(healer, clock, 50)
    assert not noticed(conductor)
    watch(healer, clock, 20)
    assert noticed(conductor)


def test_while_a_check_waits_for_the_database_no_host_is_marked(conductor, healer, clock):
    """At the first answered statement, hosts have been silent for long."""
    watch(healer, clock, 60)
    conductor.report(card(handles=3))
    outbox_ = conductor._manager.outbox
    plain = outbox_.session

    @contextlib.contextmanager
    def slow():
        with plain() as session:
            clock(100)
            yield session

    healer._outbox = types.SimpleNamespace(session=slow)
    healer.heal()
    assert not noticed(conductor)

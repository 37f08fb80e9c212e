# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite reserve``, and ``run --reservation``: scenario 14 of a shared machine."""

import datetime
import json
import signal

import oslo_messaging as messaging
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.agent import drawing
from cyborg_lite.agent import leases
from tests.functional import test_leases

#: A program that prints the devices that it was given.
SHOW = ('sh', '-c', 'echo $ASCEND_RT_VISIBLE_DEVICES')


@pytest.fixture
def machine(database_url, tmp_path):
    made = test_leases.Machine(database_url, tmp_path)
    yield made
    for each in made.leases():
        if not each['reservation']:
            made.run('release', each['uuid'])
    made.clear()
    made.stop()


def reserve(machine, *arguments):
    status, out, err = machine.run('reserve', *arguments)
    assert status == 0, err
    return out.strip(), err


def start(machine, ago=1):
    """Let the time of all reservations have come so many seconds ago."""
    now = timeutils.utcnow() - datetime.timedelta(seconds=ago)
    with machine.service.database.writer() as session:
        for kind in (model.Promise, model.Allocation):
            session.execute(
                sa.update(kind).where(kind.starts_at.is_not(None)).values(starts_at=now)
            )
    machine.service.manager._serve_queue({'late': True})


def test_scenario_14_ahead_of_time(machine):
    """Overlaps are refused with what clashes, runs that could overrun are told, one id cancels."""
    four, err = reserve(machine, '-n', 4, '--at', 'tomorrow 09:00', '--for', '3h')
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)  # noqa: DTZ011
    zones = [datetime.datetime.combine(tomorrow, datetime.time(n)).astimezone() for n in (9, 12)]
    start_, end = (when.strftime('%Y-%m-%d %H:%M %Z') for when in zones)
    assert f'4 of host atlas-800t-a2 are reserved from {start_} to {end}\n' in err
    status, _, err = machine.run('reserve', '-n', 5, '--at', 'tomorrow 11:00', '--for', '1h')
    assert (status, f'overlaps with reservation {four}' in err) == (1, True)
    assert ': "cyborg-lite reserve --list" lists the times.' in err
    status, _, err = machine.run('run', '-n', 5, '--nonblock', '--', 'true')
    assert (status, f'kept for reservation {four}' in err) == (1, True)
    assert 'for a time that ends before, with "cyborg-lite alloc --for"' in err
    # Nothing is in the way of the other four.
    assert machine.run('run', '-n', 4, '--nonblock', '--', 'true')[0] == 0
    shown = machine.run('reserve', '--list')[1]
    assert shown.startswith(f'{start_}  {end}  4  ')
    assert shown.endswith(f'reserved  {four}\n')
    assert machine.run('release', four)[0] == 0
    assert machine.run('reserve', '--list')[1] == ''
    assert machine.run('run', '-n', 8, '--nonblock', '--', 'true')[0] == 0


def test_a_reservation_says_whose_it_is_and_what_for(machine):
    """The agent and the API show both."""
    window = '--at', 'tomorrow 09:00', '--for', '3h'
    uuid, _ = reserve(machine, '-n', 8, *window, '--as', 'jane', '--note', 'ablation 3')
    [lease] = machine.leases()
    labels = {'claimed_name': 'jane', 'note': 'ablation 3'}
    assert {field: lease[field] for field in labels} == labels
    listed = machine.run('reserve', '--list')[1]
    assert f'  {lease["user"]} (jane)  reserved  {uuid}  "ablation 3"\n' in listed
    shown = machine.service.api.get(f'/v2/allocations/{uuid}').json
    assert {field: shown[field] for field in labels} == labels


def test_more_than_the_machine_has_is_refused_for_that(machine):
    """Another time would not help, whatever overlaps."""
    window = '--at', 'tomorrow 09:00', '--for', '3h'
    reserve(machine, '-n', 1, *window)
    status, _, err = machine.run('reserve', '-n', 9, *window)
    assert (status, 'even if all were free there would be 8 on one host' in err) == (1, True), err
    assert 'overlaps' not in err


def test_a_run_uses_a_reservation(machine):
    mine, _ = reserve(machine, '-n', 4, '--at', 'tomorrow 09:00', '--for', '3h', '--name', 'night')
    status, _, err = machine.run('run', '--reservation', 'night', '--nonblock', '--', *SHOW)
    assert (status, 'It starts at' in err) == (1, True)
    start(machine)
    status, out, err = machine.run('run', '--reservation', 'night', '--', *SHOW)
    assert (status, len(out.split(','))) == (0, 4), err
    # They are there again, for two programs at once.
    machine.until(lambda: len(machine.leases()) == 1)
    made = [machine.command('run', '--reservation', mine, '-n', 2, '--', 'sleep', '600')]
    machine.until(lambda: machine.lease(made[0].pid))
    status, other, err = machine.run('run', '--reservation', 'night', '--', *SHOW)
    assert (status, len(other.split(','))) == (0, 2), err
    assert machine.held() == 4
    lease = machine.lease(made[0].pid)
    assert lease['reservation'] == mine
    rows = json.loads(machine.run('ps', '--url', 'http://127.0.0.1:1', '-f', 'json')[1] or '[]')
    assert rows == []
    assert machine.run('release', lease['uuid'])[0] == 0
    machine.until(lambda: len(machine.leases()) == 1)
    status, _, err = machine.run('run', '--reservation', 'other', '--', 'true')
    assert (status, 'Reservation other not found' in err) == (1, True)
    said = machine.run('run', '--reservation', 'night', '--class', 'npu', '--', 'true')[2]
    assert 'Invalid resource_class' in said


def test_a_run_waits_for_the_start(machine, monkeypatch):
    monkeypatch.setattr(drawing, 'LATER', 0.05)
    reserve(machine, '-n', 4, '--at', 'tomorrow 09:00', '--for', '3h', '--name', 'night')
    night = '--reservation', 'night'
    assert machine.run('run', *night, '--wait', '0.3s', '--', 'true')[0] == 124
    made = machine.command('run', *night, '--', *SHOW)
    said = made.stderr.readline()
    assert said.startswith('cyborg-lite: waiting at place 1: Reservation ')
    # As it was typed.
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)  # noqa: DTZ011
    assert f'It starts at {tomorrow} 09:00 ' in said
    interrupted = machine.command('run', *night, '--', 'sleep', '600')
    assert interrupted.stderr.readline() == said.replace('place 1', 'place 2')
    interrupted.send_signal(signal.SIGINT)
    interrupted.communicate(timeout=test_leases.BOUND)
    start(machine)
    out, err = made.communicate(timeout=test_leases.BOUND)
    assert (made.returncode, len(out.split(','))) == (0, 4), err
    # Nobody waits for it any more.
    machine.until(lambda: not any(each['reservation'] for each in machine.leases()))


@pytest.mark.parametrize(
    'error', [messaging.MessagingTimeout('no answer'), exception.DatabaseAway(reason='away')]
)
def test_an_outage_ends_no_wait_for_the_start(machine, monkeypatch, error):
    monkeypatch.setattr(drawing, 'LATER', 0.05)
    reserve(machine, '-n', 4, '--at', 'tomorrow 09:00', '--for', '3h', '--name', 'night')
    take, asked = leases.Leases.take, []

    def fail(*args):
        asked.append(args)
        if len(asked) == 2:
            raise error
        return take(*args)

    monkeypatch.setattr(leases.Leases, 'take', fail)
    made = machine.command('run', '--reservation', 'night', '--', *SHOW)
    assert 'It starts at' in made.stderr.readline()
    machine.until(lambda: len(asked) > 2)
    start(machine)
    out, err = made.communicate(timeout=test_leases.BOUND)
    assert (made.returncode, len(out.split(','))) == (0, 4), err


def test_a_run_ends_if_its_reservation_is_cancelled(machine, monkeypatch):
    monkeypatch.setattr(drawing, 'LATER', 0.05)
    mine, _ = reserve(machine, '-n', 4, '--at', 'tomorrow 09:00', '--for', '3h')
    made = machine.command('run', '--reservation', mine, '--', 'true')
    assert 'It starts at' in made.stderr.readline()
    assert machine.run('release', mine)[0] == 0
    assert f'Reservation {mine} not found' in made.communicate(timeout=test_leases.BOUND)[1]
    assert made.returncode == 1


def test_a_run_waits_for_what_others_use_of_its_reservation(machine, monkeypatch):
    """In a line, by which those who ask for many are not passed by those who ask for few."""
    # Ends of leases are seen at once, not by the clock.
    monkeypatch.setattr(drawing, 'BUSY', test_leases.BOUND + 10)
    mine, _ = reserve(machine, '-n', 4, '--at', 'tomorrow 09:00', '--for', '3h', '--name', 'night')
    start(machine, 100)
    night = '--reservation', 'night'
    first = [machine.hold(2, *night) for _ in range(2)]
    status, _, err = machine.run('run', *night, '--nonblock', '--', 'true')
    assert (status, 'and 0 are left: expected at least 1' in err) == (1, True), err
    assert machine.run('run', *night, '--wait', '0.3s', '--', 'true')[0] == 124
    many = machine.command('run', *night, '-n', 4, '--', *SHOW)
    said = many.stderr.readline()
    assert said.startswith('cyborg-lite: waiting at place 1: held by ')
    assert all(f'{each.pid} sleep (2)' in said for each in first), said
    few = machine.command('run', *night, '-n', 1, '--', 'sleep', '600')
    assert few.stderr.readline() == said.replace('place 1', 'place 2')
    interrupted = machine.command('run', *night, '--', 'true')
    assert interrupted.stderr.readline() == said.replace('place 1', 'place 3')
    interrupted.send_signal(signal.SIGINT)
    interrupted.communicate(timeout=test_leases.BOUND)
    first[0].kill()
    # Two are there for one who wants a single one, but another was there before it.
    said = many.stderr.readline()
    assert [f'{each.pid} sleep (2)' in said for each in first] == [False, True], said
    assert machine.lease(few.pid) is None
    first[1].kill()
    out, err = many.communicate(timeout=test_leases.BOUND)
    assert (many.returncode, len(out.split(','))) == (0, 4), err
    machine.until(lambda: machine.lease(few.pid))
    assert machine.lease(few.pid)['reservation'] == mine


def test_a_run_for_more_than_its_reservation_has_is_refused(machine, monkeypatch):
    """It would wait for ever: before the start, after it, and behind others."""
    monkeypatch.setattr(drawing, 'LATER', 0.05)
    mine, _ = reserve(machine, '-n', 4, '--at', 'tomorrow 09:00', '--for', '3h')
    many = 'run', '--reservation', mine, '-n', 5, '--', 'true'
    said = (
        f'cyborg-lite: Reservation {mine} has only 4 accelerators on host atlas-800t-a2: it cannot '
        'give 5. Ask for fewer with -n: "cyborg-lite reserve --list" lists them.\n'
    )
    assert machine.run(*many) == (1, '', said)
    first = machine.command('run', '--reservation', mine, '-n', 4, '--', 'sleep', '600')
    assert 'waiting at place 1: Reservation' in first.stderr.readline()
    assert machine.run(*many) == (1, '', said)
    start(machine)
    machine.until(lambda: machine.lease(first.pid))
    assert machine.run(*many) == (1, '', said)


def test_a_run_ends_if_what_it_waits_for_ends(machine, monkeypatch):
    monkeypatch.setattr(drawing, 'BUSY', 0.05)
    mine, _ = reserve(machine, '-n', 2, '--at', 'tomorrow 09:00', '--for', '3h')
    start(machine)
    machine.hold(2, '--reservation', mine)
    waits = machine.command('run', '--reservation', mine, '--', 'true')
    assert 'held by' in waits.stderr.readline()
    assert machine.run('release', mine)[0] == 0
    assert 'It has ended, or was cancelled' in waits.communicate(timeout=test_leases.BOUND)[1]
    assert waits.returncode == 1


def test_who_holds_what_a_late_reservation_needs_is_told(machine, monkeypatch):
    monkeypatch.setattr(drawing, 'BUSY', 0.05)
    holder = machine.hold(8)
    mine, _ = reserve(machine, '-n', 2, '--at', 'tomorrow 09:00', '--for', '3h')
    start(machine)
    waits = machine.command('run', '--reservation', mine, '--', *SHOW)
    said = waits.stderr.readline()
    assert said.startswith('cyborg-lite: waiting at place 1: held by '), said
    assert f'{holder.pid} sleep (8)' in said
    holder.kill()
    out, err = waits.communicate(timeout=test_leases.BOUND)
    assert (waits.returncode, len(out.split(','))) == (0, 2), err


def test_a_reservation_beyond_the_quota_is_told(machine, monkeypatch):
    """It does not wait for holders, and they are not named."""
    monkeypatch.setattr(drawing, 'BUSY', 0.05)
    machine.hold(1)
    mine, _ = reserve(machine, '-n', 2, '--at', 'tomorrow 09:00', '--for', '3h')
    project = machine.service.api.get(f'/v2/allocations/{mine}').json['project_id']
    machine.service.conductor.update_quota(project=project, limits={'CUSTOM_NPU': 2})
    start(machine)
    waits = machine.command('run', '--reservation', mine, '--', 'true')
    said = waits.stderr.readline()
    assert ('quota' in said.lower(), 'held by' in said) == (True, False), said


def test_what_runs_ends_with_its_reservation(machine):
    mine, _ = reserve(machine, '-n', 2, '--at', 'tomorrow 09:00', '--for', '3h')
    start(machine)
    made = machine.command('run', '--reservation', mine, '--', 'sleep', '600')
    machine.until(lambda: machine.lease(made.pid))
    assert machine.run('release', mine)[0] == 0
    machine.until(lambda: not machine.leases())
    assert not machine.held()


def test_a_reservation_for_now(machine):
    mine, _ = reserve(machine, '-n', 4, '--at', 'now', '--for', '3h')
    start(machine)
    assert machine.run('run', '--reservation', mine, '--', 'true')[0] == 0


def test_the_forms_of_times_are_told(machine):
    status, _, err = machine.run('reserve', '--at', 'soon', '--for', '3h')
    assert (status, 'expected a time such as now, 09:00, "tomorrow 09:00"' in err) == (2, True)
    status, _, err = machine.run('reserve', '--at', '09:00')
    assert (status, 'expected for how long' in err) == (2, True)
    status, _, err = machine.run('reserve', '--at', '2020-01-01T09:00', '--for', '3h')
    assert (status, 'expected a time to come' in err) == (1, True)

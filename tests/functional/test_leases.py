# SPDX-License-Identifier: Apache-2.0
"""Processes of a host lease accelerators from its agent: ``cyborg-lite run``, alloc and release."""

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest.mock

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

import cyborg_lite
from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import model
from cyborg_lite.agent import leases
from cyborg_lite.agent import local
from cyborg_lite.agent import processes
from cyborg_lite.conductor import requesting
from cyborg_lite.delivery import needs
from cyborg_lite.driver import host as hosts
from tests import support

COMMAND = pathlib.Path(sys.executable).with_name('cyborg-lite')
#: The timeout of each step, in seconds; none comes near it.
BOUND = 30
HOST = 'atlas-800t-a2'
#: What to type if there is no lease of that name.
NOTHING = (
    '"cyborg-lite ps" shows who holds what, and "cyborg-lite reserve --list" for when something is '
    'reserved.'
)
NOBODY = 65534


class Machine:
    """A service with one host of eight NPUs, and its socket."""

    def __init__(self, url, place, **options):
        self.url, self.place, self.options = url, place, options
        self.socket = str(place / 'agent.sock')
        self.started = []
        self.start()

    def start(self):
        found = [hosts.find(HOST, self.place / 'hosts')]
        options = {'agent__enabled_drivers': ['huawei_ascend'], 'agent__socket': self.socket}
        self.service = support.Service(self.url, found, **(options | self.options))
        for agent in self.service.embedded.agents:
            assert agent.manager.reported.wait(BOUND)

    def stop(self):
        self.service.stop()

    def command(self, *arguments, **more):
        """Start a command of ours."""
        environment = os.environ | {client.VARIABLE: self.socket}
        made = subprocess.Popen(
            [str(COMMAND), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | more.pop('env', {}),
            **more,
        )
        self.started.append(made)
        return made

    def run(self, *arguments, **more):
        """Run a command of ours: its status and output."""
        made = self.command(*arguments, **more)
        out, err = made.communicate(timeout=BOUND)
        return made.returncode, out, err

    def hold(self, count=1, *arguments):
        """A process that holds so many until it is killed."""
        made = self.command('run', '-n', count, *arguments, '--', 'sleep', '600')
        self.until(lambda: self.lease(made.pid))
        return made

    def ask(self, **words):
        return client.ask(self.socket, words)

    def leases(self):
        return self.ask(do='list')['leases']

    def lease(self, pid, state='active'):
        return next((x for x in self.leases() if (x['pid'], x['state']) == (pid, state)), None)

    def running(self):
        """The commands of the processes of all leases."""
        return [each['command'] for lease in self.leases() for each in lease['processes']]

    def held(self):
        answer = self.service.api.get('/v2/accelerators?state=held')
        return len(answer.json['accelerators'])

    def until(self, condition):
        end = time.monotonic() + BOUND
        while not (found := condition()):
            assert time.monotonic() < end, condition
            time.sleep(0.02)
        return found

    def clear(self):
        """Release everything, and end the processes of tests."""
        for each in self.started:
            if each.poll() is None:
                each.kill()
            each.communicate(timeout=BOUND)
        self.started.clear()
        # Of a test that failed, children may be left.
        for pid in [each['pid'] for lease in self.leases() for each in lease['processes']]:
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.until(lambda: not self.held() and not self.leases())


@pytest.fixture(scope='module')
def shared(databases, tmp_path_factory):
    with databases.empty() as url:
        made = Machine(url, tmp_path_factory.mktemp('machine'))
        yield made
        made.stop()


@pytest.fixture
def machine(shared):
    yield shared
    shared.clear()


@pytest.fixture
def alone(database_url, tmp_path):
    """A separate machine, made with options."""
    made = []

    def make(**options):
        made.append(Machine(database_url, tmp_path, **options))
        return made[0]

    yield make
    for each in made:
        each.clear()
        each.stop()


def test_a_command_has_what_it_asked_for_and_its_own_status(machine):
    script = 'echo $ASCEND_RT_VISIBLE_DEVICES $CYBORG_ALLOCATION; exit 7'
    status, out, err = machine.run('run', '-n', 2, '--', 'sh', '-c', script)
    visible, uuid = out.split()
    assert (status, len(visible.split(','))) == (7, 2)
    assert err.count('\n') == 1
    assert uuid in err
    shown = machine.service.api.get(f'/v2/allocations/{uuid}').json
    assert processes.boot() not in json.dumps(shown)
    assert shown['consumer']['type'] == 'local_process'
    machine.until(lambda: not machine.held())


def test_the_command_is_the_process_that_was_started(machine):
    made = machine.command('run', '--', 'sh', '-c', 'echo $$; read word')
    assert int(made.stdout.readline()) == made.pid
    made.kill()


def test_signals_are_those_of_a_shell(machine):
    """Python ignores some signals, which a command would inherit."""
    _, out, _ = machine.run('run', '--', 'grep', 'SigIgn', '/proc/self/status')
    plain = subprocess.check_output(['grep', 'SigIgn', '/proc/self/status'], text=True)
    # Signals 32 and 33 are the C library's own: Python 3.13 leaves them as it finds them.
    ours = ~(0b11 << 31)
    assert int(out.split()[1], 16) & ours == int(plain.split()[1], 16) & ours


def test_the_evaluated_text_fails_without_a_lease(machine):
    status, out, err = machine.run('alloc', '--class', 'gpu')
    assert (status, out) == (1, 'false\n')
    assert err.count('\n') == 1


def test_a_file_that_cannot_be_executed(machine):
    status, _, err = machine.run('run', '--', '/etc/passwd')
    assert (status, err) == (
        126, 'cyborg-lite: /etc/passwd: it is no program, or may not be run\n',
    )  # fmt: skip


def test_a_request_beyond_the_quota_says_why_it_waits(machine):
    project = accounts.name(os.getuid())
    conductor = machine.service.conductor
    machine.hold(1)
    conductor.update_quota(project=project, limits={'CUSTOM_NPU': 2})
    waiting = machine.command('run', '-n', 2, '--', 'true')
    said = waiting.stderr.readline()
    waiting.kill()
    conductor.delete_quota(project=project)
    assert 'Quota exceeded' in said


def test_a_wait_for_a_quota_says_at_its_end_what_to_type(machine):
    """Nobody else holds what it waits for."""
    project = accounts.name(os.getuid())
    machine.hold(1)
    machine.service.conductor.update_quota(project=project, limits={'CUSTOM_NPU': 2})
    status, _, err = machine.run('run', '-n', 2, '--wait', '0.3s', '--', 'true')
    machine.service.conductor.delete_quota(project=project)
    assert (status, 'held by' in err) == (124, False)
    said = (
        'not free in time: Quota exceeded for CUSTOM_NPU: the limit is 2, 1 used, and 2 asked for '
        f'in project {project}. '
    )
    assert f'{said}Ask for fewer with -n, or ask an administrator for more: "openstack acc' in err


def test_a_request_for_more_than_the_machine_has_is_refused(machine):
    """It would wait for ever."""
    machine.hold(1)
    status, _, said = machine.run('run', '-n', 9, '--', 'true')
    assert status == 1
    assert 'even if all were free there would be 8 on one host. Change -n, ' in said
    assert said.count('\n') == 1
    # It may wait for accelerators that others hold.
    waiting = machine.command('run', '-n', 8, '--', 'true')
    machine.until(lambda: machine.lease(waiting.pid, 'queued'))
    waiting.kill()


def test_words_are_filled_in(machine):
    status, out, _ = machine.run('run', '-n', 2, '--', 'echo', 'on {addresses}', '{env}')
    assert status == 0
    assert out.startswith('on ')
    assert 'ASCEND_RT_VISIBLE_DEVICES=' in out


def test_killed_process_frees_at_once_and_the_next_starts(machine):
    first = machine.hold(8)
    waiting = machine.command('run', '--', 'echo', 'mine')
    machine.until(lambda: machine.lease(waiting.pid, 'queued'))
    first.kill()
    out, err = waiting.communicate(timeout=BOUND)
    assert out == 'mine\n'
    said = err.splitlines()[0]
    assert said.startswith('cyborg-lite: waiting at place 1: held by ')
    assert f' {first.pid} sleep (8)' in said


def test_the_first_in_line_is_told_what_is_free_now(machine):
    machine.hold(5)
    two = machine.hold(2)
    first = machine.command('run', '-n', 8, '--', 'true')
    machine.until(lambda: machine.lease(first.pid, 'queued'))
    second = machine.command('run', '-n', 7, '--', 'true')
    reason = machine.until(lambda: machine.lease(second.pid, 'queued'))['reason']
    two.kill()
    free = ': 3 of CUSTOM_NPU free on 1 host, at most 3 on one.'
    machine.until(lambda: free in machine.lease(first.pid, 'queued')['reason'])
    # The second keeps the reason of when it joined: its holders are named anyway.
    assert machine.lease(second.pid, 'queued')['reason'] == reason
    for each in first, second:
        each.kill()


def test_without_waiting(machine):
    machine.hold(7)
    status, _, err = machine.run('run', '--nonblock', '-n', 2, '--', 'true')
    assert status == 1
    assert 'needs 2 of CUSTOM_NPU' in err
    assert ' sleep (7). Leave out --nonblock to wait in line, or give --wait 30m in its ' in err
    assert machine.held() == 7


def test_all_holders_are_named(machine):
    """Also those of the API, and of no process; but none whose time is over."""
    user = accounts.name(os.getuid())
    assert machine.run('alloc', '--for', '2h', '-n', 2, '--name', 'hour')[0] == 0
    machine.hold(5)
    asked = {'groups': [{'resources': {'CUSTOM_NPU': 1}}], 'note': 'of the API', 'lease': 3600}
    made = machine.service.api.post('/v2/allocations', asked).json
    utc = {'TZ': 'UTC'}
    status, _, err = machine.run('run', '--nonblock', '--', 'true', env=utc)
    moment = r'\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)? UTC'
    assert re.search(rf'held by {user} \(2 until {moment}\), {user} \d+ sleep \(5\), ', err), err
    assert re.search(rf', \S[^,]* \(1 until {moment}, "of the API"\)\. ', err), err
    with machine.service.database.writer() as session:
        session.execute(
            sa.update(model.Allocation)
            .values(lease_ends_at=timeutils.utcnow() - datetime.timedelta(seconds=1))
            .where(model.Allocation.uuid == made['uuid'])
        )
    status, _, err = machine.run('run', '--nonblock', '--', 'true')
    assert (status, 'of the API' in err, 'sleep (5)' in err) == (1, False, True), err
    assert machine.run('release', 'hour')[0] == 0
    machine.service.api.delete(f'/v2/allocations/{made["uuid"]}')


def test_waiting_has_an_end(machine):
    machine.hold(8)
    status, _, err = machine.run('run', '--wait', '0.3s', '--', 'true')
    late = (
        r'it was not free in time: held by .* sleep \(8\)\. Ask for fewer with -n, or wait longer;'
    )
    assert (status, bool(re.search(late, err))) == (124, True), err
    machine.until(lambda: len(machine.leases()) == 1)


def test_an_interrupt_cancels(machine):
    machine.hold(8)
    waiting = machine.command('run', '--', 'true')
    machine.until(lambda: machine.lease(waiting.pid, 'queued'))
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(BOUND) == 130
    machine.until(lambda: len(machine.leases()) == 1)


def test_a_killed_waiter_leaves_the_queue(machine):
    machine.hold(8)
    waiting = machine.command('run', '--', 'true')
    machine.until(lambda: machine.lease(waiting.pid, 'queued'))
    waiting.kill()
    machine.until(lambda: len(machine.leases()) == 1)


def test_a_child_process_keeps_the_lease(machine):
    made = machine.command('run', '--', 'sh', '-c', 'sleep 600 & echo $!')
    child = int(made.stdout.readline())
    assert made.wait(BOUND) == 0
    machine.until(
        lambda: [[p['pid'] for p in x['processes']] for x in machine.leases()] == [[child]]
    )
    assert machine.held() == 1
    os.kill(child, signal.SIGKILL)
    machine.until(lambda: not machine.held())


def test_the_command_is_the_one_that_runs_now(machine):
    """A process that was just forked, or starts another command, was found under another name."""
    made = machine.command(
        *('run', '--', 'sh', '-c', 'read go; exec sleep 600'), stdin=subprocess.PIPE
    )
    machine.until(lambda: machine.running() == ['sh'])
    made.stdin.write('go\n')
    made.stdin.flush()
    machine.until(lambda: machine.running() == ['sleep'])


def test_an_agent_that_starts_anew_finds_its_leases(alone):
    machine = alone()
    kept, ended = machine.hold(2), machine.hold(3)
    uuid = machine.lease(kept.pid)['uuid']
    machine.stop()
    ended.kill()
    ended.wait()
    machine.start()
    machine.until(lambda: [x['uuid'] for x in machine.leases()] == [uuid])
    machine.until(lambda: machine.held() == 2)
    kept.kill()
    machine.until(lambda: not machine.held())


def test_a_lease_that_ends_during_an_outage_is_freed_later(machine, monkeypatch):
    made = machine.hold(2)
    conductor, asked = machine.service.embedded._services[0], []
    calls = conductor.manager.leases._calls

    def away(*_, **__):
        asked.append(1)
        raise OSError('the disk is gone')

    monkeypatch.setattr(conductor.manager.leases, '_calls', calls._replace(end=away))
    made.kill()
    machine.until(lambda: asked)
    assert machine.held() == 2
    monkeypatch.undo()
    machine.until(lambda: not machine.held())


def test_released_over_the_api(machine):
    made = machine.hold(2)
    uuid = machine.lease(made.pid)['uuid']
    machine.service.api.delete(f'/v2/allocations/{uuid}')
    monitor = machine.service.embedded._services[1]._local._default
    monitor.look_again()
    machine.until(lambda: not machine.leases())


def test_alloc_is_held_by_the_shell(machine):
    script = (
        f'eval "$({COMMAND} alloc --pid $$ -n 2 --name mine)"; echo $ASCEND_RT_VISIBLE_DEVICES; '
        'read word'
    )
    shell = subprocess.Popen(
        ['bash', '-c', script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {client.VARIABLE: machine.socket},
    )
    machine.started.append(shell)
    assert len(shell.stdout.readline().strip().split(',')) == 2
    assert machine.lease(shell.pid)['name'] == 'mine'
    shell.kill()
    machine.until(lambda: not machine.held())


def test_alloc_in_a_script_is_held_by_its_parent(machine):
    status, out, _ = machine.run('alloc', '-f', 'json', '--name', 'json')
    assert status == 0
    assert json.loads(out)['name'] == 'json'
    assert machine.lease(os.getpid())
    assert machine.run('release')[0] == 0
    assert not machine.held()


def test_release_without_an_id_is_of_this_shell_alone(machine):
    """Users may share a login."""
    script = f'{COMMAND} alloc > /dev/null; echo; read word; {COMMAND} release; echo; read word'
    environment = os.environ | {client.VARIABLE: machine.socket}
    pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    shells = [subprocess.Popen(['bash', '-c', script], env=environment, **pipes) for _ in range(2)]
    machine.started += shells
    for shell in shells:
        shell.stdout.readline()
    shells[0].stdin.write(b'\n')
    shells[0].stdin.flush()
    shells[0].stdout.readline()
    assert [lease['pid'] for lease in machine.leases()] == [shells[1].pid]


def test_alloc_for_a_time(machine):
    assert machine.run('alloc', '--for', '1h', '--name', 'hour')[0] == 0
    lease = machine.lease(0)
    assert (lease['name'], lease['pid'], bool(lease['ends'])) == ('hour', 0, True)
    status, _, err = machine.run('release', 'hour')
    assert (status, err) == (0, f'cyborg-lite: {lease["uuid"]} is released\n')
    assert not machine.held()


def test_scenario_12_three_people_share_a_login(machine, monkeypatch):
    """A release without an id ends no lease of others; each person sees all holders and notes."""
    said = {}
    for name in ('jane', 'bob', None):
        more = ['--as', name, '--note', f'ablation of {name}'] if name else []
        status, out, err = machine.run('alloc', '-n', 2, *more)
        assert status == 0, err
        said[name] = out
    assert 'export CYBORG_LITE_AS=jane\n' in said['jane']
    assert 'CYBORG_LITE_AS' not in said[None]
    shown = {each['claimed_name']: each['note'] for each in machine.leases()}
    assert shown == {'jane': 'ablation of jane', 'bob': 'ablation of bob', None: None}
    api = machine.service.api.get('/v2/allocations?claimed_name=jane').json['allocations']
    assert [each['note'] for each in api] == ['ablation of jane']
    used = machine.service.api.get('/v2/accelerators?claimed_name=bob').json['accelerators']
    assert [each['note'] for each in used] == ['ablation of bob'] * 2
    status, _, err = machine.run('run', '--nonblock', '-n', 3, '--', 'true')
    user = accounts.name(os.getuid())
    assert (status, err.count('\n')) == (1, 1)
    assert f'held by {user} (jane) {os.getpid()} ' in err
    assert ' (2, "ablation of jane"), ' in err
    # All are of this process: the name tells them apart.
    left = {'jane', 'bob', None}
    for arguments, env, name in (
        (['--as', 'jane'], {}, 'jane'),
        ([], {}, None),
        ([], {'CYBORG_LITE_AS': 'bob'}, 'bob'),
    ):
        status, _, err = machine.run('release', *arguments, env=env)
        assert status == 0, err
        left.remove(name)
        machine.until(lambda: {each['claimed_name'] for each in machine.leases()} == left)


def test_the_container_of_a_holder_is_shown(machine, monkeypatch):
    """Also of one whose first process was in none, as with ``podman run -d``."""
    contained = set()
    monkeypatch.setattr(
        processes, 'container', lambda pid: '0123456789ab' if pid in contained else None
    )
    made = machine.command('run', '--', 'sh', '-c', 'sleep 600 > /dev/null 2>&1 & echo $!; wait')
    contained.add(int(made.stdout.readline()))

    def shown():
        [row] = machine.service.api.get('/v2/accelerators?state=held').json['accelerators']
        return row['container']

    assert shown() is None
    made.kill()
    machine.until(lambda: shown() == '0123456789ab')
    lease = machine.leases()[0]['uuid']
    allocation = machine.service.api.get(f'/v2/allocations/{lease}').json
    assert allocation['container'] == '0123456789ab'


def test_a_container_that_has_ended_is_shown_no_more(machine, monkeypatch):
    outside = set()
    monkeypatch.setattr(
        processes, 'container', lambda pid: None if pid in outside else '0123456789ab'
    )
    made = machine.command('run', '--', 'sh', '-c', 'sleep 600 > /dev/null 2>&1 & echo $!; wait')
    outside.add(int(made.stdout.readline()))

    def shown():
        [row] = machine.service.api.get('/v2/accelerators?state=held').json['accelerators']
        return row['container']

    machine.until(lambda: shown() == '0123456789ab')
    made.kill()
    machine.until(lambda: shown() is None)


def test_a_refusal_names_the_container_of_a_holder(machine, monkeypatch):
    monkeypatch.setattr(processes, 'container', lambda _pid: '0123456789ab')
    machine.hold(8)
    machine.until(machine.running)
    status, _, err = machine.run('run', '--nonblock', '--', 'true')
    assert (status, ' in container 0123456789ab (8)' in err) == (1, True), err


def test_release_says_whose_leases_a_shell_has(machine):
    machine.run('alloc', '--as', 'jane')
    assert machine.run('alloc')[0] == 0
    status, _, err = machine.run('release', '--as', 'bob')
    assert (status, err) == (
        1,
        "cyborg-lite: no lease of this shell as 'bob', but there are some as 'jane', as nobody in "
        f'particular. {NOTHING}\n',
    )
    # An id names any lease of the login.
    [lease] = [each for each in machine.leases() if each['claimed_name']]
    assert machine.run('release', lease['uuid'], '--as', 'bob')[0] == 0
    assert machine.run('release')[0] == 0


def test_release_without_an_id_is_of_what_alloc_has_set(machine):
    """Also where no process holds it; not what is of another name, or has ended."""
    made = {}
    for name, words in {'timed': ['--for', '2h'], 'jane': ['--as', 'jane'], 'shell': []}.items():
        out = machine.run('alloc', '--name', name, *words)[1]
        made[name] = re.search('export CYBORG_ALLOCATION=(.*)', out)[1]

    def release(name, *arguments):
        status, _, err = machine.run(
            'release', *arguments, env={client.ALLOCATION: made.get(name, name)}
        )
        assert status == 0, err
        return {each['name'] for each in machine.leases()}

    assert release('timed') == {'jane', 'shell'}
    assert release('jane') == {'jane'}
    assert release('jane', '--as', 'jane') == set()
    assert machine.run('alloc', '--name', 'again')[0] == 0
    assert release('jane') == set()


def test_a_command_and_its_children_know_the_claimed_name(machine, monkeypatch):
    script = 'echo $CYBORG_LITE_AS'
    assert machine.run('run', '--as', 'jane', '--', 'sh', '-c', script)[1] == 'jane\n'
    made = machine.command('run', '--', 'sleep', '600', env={'CYBORG_LITE_AS': 'jane'})
    assert machine.until(lambda: machine.lease(made.pid))['claimed_name'] == 'jane'
    made = machine.command('run', '--as', '', '--', 'sleep', '600', env={'CYBORG_LITE_AS': 'jane'})
    assert machine.until(lambda: machine.lease(made.pid))['claimed_name'] is None
    monkeypatch.setenv('CYBORG_LITE_AS', 'jane')
    with cyborg_lite.allocate(note='消融 3', socket=machine.socket) as lease:
        [shown] = [each for each in machine.leases() if each['uuid'] == lease.uuid]
    assert (shown['claimed_name'], shown['note']) == ('jane', '消融 3')


def test_an_agent_may_get_leases_without_a_claimed_name(machine, monkeypatch):
    """Conductors of the release before send none."""
    made = machine.hold(1)
    monitor = machine.service.embedded._services[1]._local._default
    [lease] = monitor.all()
    monkeypatch.delitem(lease.row, 'claimed_name')
    monkeypatch.delitem(lease.row, 'note')
    shown = machine.lease(made.pid)
    assert (shown['claimed_name'], shown['note']) == (None, None)


HOSTILE = ['a\x1b[2J', 'a\nb', 'a\u202eb', 'a\u200bb', ' a', 'a ', '\0', '\ud800', 'x' * 256, 7, '']


@pytest.mark.parametrize('field', ['claimed_name', 'note'])
@pytest.mark.parametrize('text', HOSTILE, ids=ascii)
def test_a_label_that_cannot_be_shown_is_refused_at_each_door(machine, field, text):
    """The error names the field."""
    with pytest.raises(client.Error, match=f'Invalid {field}: .*printable') as told:
        machine.ask(do='lease', request={field: text})
    assert told.value.code == 400
    body = {'groups': [{'resources': {'CUSTOM_NPU': 1}}], field: text}
    answer = machine.service.api.post('/v2/allocations', body)
    assert answer.status_int == 400
    assert f'{field}: ' in answer.json['errors'][0]['detail']
    if text and isinstance(text, str):
        with pytest.raises(client.Error, match=f'Invalid {field}: expected 1 to'):
            cyborg_lite.allocate(socket=machine.socket, **{field: text})
    assert not machine.held()


def test_a_label_of_a_megabyte_is_refused(machine):
    huge = 'x' * (1 << 20)
    with pytest.raises(client.Error, match='Invalid note: expected 1 to 255 printable'):
        cyborg_lite.allocate(note=huge, socket=machine.socket)
    body = {'groups': [{'resources': {'CUSTOM_NPU': 1}}], 'note': huge}
    answer = machine.service.api.post('/v2/allocations', body)
    assert answer.status_int in (400, 413)
    status, _, err = machine.run('run', '--note', huge[:100_000], '--', 'true')
    said = 'argument --note: expected 1 to 255 printable characters, with no blank at either end, '
    assert (status, said in err, len(err) < 2000) == (2, True, True), err
    status, _, err = machine.run('run', '--', 'true', env={client.CLAIMED: ' li'})
    assert (status, err.count('\n')) == (1, 1)
    assert f'cyborg-lite: Invalid {client.CLAIMED}: expected 1 to 64 printable' in err


def test_release_of_nothing(machine):
    status, _, err = machine.run('release', 'nothing')
    assert (status, err) == (1, f"cyborg-lite: no lease of 'nothing'. {NOTHING}\n")


def test_from_python(machine, monkeypatch):
    monkeypatch.setenv(client.VARIABLE, machine.socket)
    with cyborg_lite.allocate('npu', 2) as devices:
        assert len(devices.addresses) == machine.held() == 2
        assert set(devices.env['ASCEND_RT_VISIBLE_DEVICES'].split(',')) == set(devices.addresses)
    assert not machine.held()
    said = 'it was not free in time: needs 1 of CUSTOM_NPU'
    with machine.hold(8), pytest.raises(client.TimedOut, match=said):
        try:
            cyborg_lite.allocate(wait=0.2)
        finally:
            machine.started[-1].kill()


def test_from_python_without_a_wait(machine):
    # The lease of a test before may be ending; one that waited may be served before it ends.
    states = ('queued', 'active')
    machine.until(
        lambda: all(row.state not in states for row in machine.service.rows(model.Allocation))
    )
    with cyborg_lite.allocate('npu', 8, wait=0, socket=machine.socket):
        assert machine.held() == 8
        with pytest.raises(client.Error, match='needs 1 of CUSTOM_NPU') as told:
            cyborg_lite.allocate(wait=0, socket=machine.socket)
        assert told.value.code == 409
    with cyborg_lite.allocate('npu', wait=0.001, socket=machine.socket):
        assert machine.held() == 1


def test_allocation_inside_a_process_that_run_started(machine):
    """It is what allocate() would have returned, by the variables alone."""
    script = (
        'import cyborg_lite, json, os; a = cyborg_lite.allocation(); '
        'print(json.dumps([a.uuid, a.name, a.host, a.addresses, a.env, dict(os.environ)]))'
    )
    words = '-n', 2, '--name', 'mine', '--', sys.executable, '-c', script
    _, out, err = machine.run('run', *words)
    uuid, name, host, addresses, env, environ = json.loads(out)
    assert uuid in err
    assert (name, host) == ('mine', 'atlas-800t-a2')
    assert env['ASCEND_RT_VISIBLE_DEVICES'].split(',') == addresses
    assert env == {each: environ[each] for each in env}
    assert {*env} >= {'CYBORG_ALLOCATION', 'CYBORG_DEVICES', 'CYBORG_LEASE'}
    assert cyborg_lite.allocation() is None


def test_allocation_by_changed_variables(monkeypatch):
    monkeypatch.setenv('CYBORG_ALLOCATION', 'a')
    monkeypatch.setenv('CYBORG_DEVICES', '[{"id": "b"}]')
    for text, name in (('', None), ('{"uuid": "z", "name": "n"}', None),
                       ('{"uuid": "a", "name": "n", "variables": ["GONE"]}', 'n')):  # fmt: skip
        monkeypatch.setenv('CYBORG_LEASE', text)
        assert (cyborg_lite.allocation().name, cyborg_lite.allocation().addresses) == (name, ['b'])
    wrong = '{"variables": 1}', '{"variables": ["\\ud800"]}', '{"host": 1}', '[' * 100000
    for text in ('[1]', '{', '3', *wrong):
        monkeypatch.setenv('CYBORG_LEASE', text)
        with pytest.raises(client.Error, match='Invalid CYBORG_LEASE: expected an object'):
            cyborg_lite.allocation()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--class', 'gpu'], 'expected one of CUSTOM_NPU. Name it with --class; '),
        (
            ['--profile', 'nope'],
            'Device profile nope not found. "openstack accelerator device profile list" lists',
        ),
        (
            ['--reservation', 'nope'],
            'Reservation nope not found. "cyborg-lite reserve --list" lists them.',
        ),
        (
            ['-n', '3', '--same-numa'],
            'there would be 2 in one NUMA node. Change -n, --trait, --same-',
        ),
        (['--profile', 'nope', '-n', '2'], 'expected a profile, or a resource class'),
        (['--trait', 'CUSTOM_NONE', '--nonblock'], 'needs 1 of CUSTOM_NPU with CUSTOM_NONE'),
        (['-n', '9', '--linked', '--nonblock'], 'on one host and in a ring of links'),
        (['--host', 'elsewhere'], f"no host 'elsewhere': expected one of {HOST}; {client.OWN}"),
        (['--socket', '/nowhere/agent.sock'], 'no agent listens here'),
    ],
)
def test_refusals_are_one_line(machine, arguments, said):
    status, out, err = machine.run('run', *arguments, '--', 'true')
    assert (status, out, err.count('\n')) == (1, '', 1)
    assert said in err


def test_a_command_that_is_not_there_takes_nothing(machine):
    assert machine.run('run', '--', 'no-such-command')[0] == 127
    assert machine.run('run')[0] == 2


@pytest.mark.parametrize('name', ['npu', 'NPU', 'custom_npu', 'CUSTOM_NPU', 'aichip'])
def test_names_of_a_class(machine, name):
    assert machine.run('run', '--class', name, '--', 'true')[0] == 0


def test_quota_counts(alone):
    machine = alone(conductor__user_projects={'root': 'lab'})
    machine.service.conductor.update_quota(project='lab', limits={'CUSTOM_NPU': 2})
    machine.hold(2)
    status, _, err = machine.run('run', '--nonblock', '--', 'true')
    assert status == 1
    assert 'the limit is 2, 2 used, and 1 asked for in project lab' in err


def test_a_refusal_for_good_says_what_is_used(alone):
    """It is found from the limit alone, and said that nothing was used."""
    machine = alone(conductor__user_projects={'root': 'lab'})
    project = accounts.project(os.getuid(), accounts.name(os.getuid()), {'root': 'lab'})
    machine.service.conductor.update_quota(project=project, limits={'CUSTOM_NPU': 1})
    machine.hold(1)
    # Two are free, and eight are not.
    for count in (2, 8):
        status, _, err = machine.run('run', '-n', count, '--', 'true')
        said = f'limit is 1, 1 used, and {count} asked for in project {project}. Ask for fewer with'
        assert (status, said in err) == (1, True), err


AS_NOBODY = """
import json, os, sys
from cyborg_lite import accounts
from cyborg_lite import client
os.setgroups([]), os.setgid({id}), os.setuid({id})
try:
    for answer in client._conversation(sys.argv[1], json.loads(sys.argv[2])):
        print(json.dumps(answer))
except client.Error as error:
    print(json.dumps({{'error': str(error), 'code': error.code}}))
"""


def as_nobody(machine, **words):
    """The answer to another user."""
    script = AS_NOBODY.format(id=NOBODY)
    argv = [sys.executable, '-c', script, machine.socket, json.dumps(words)]
    return json.loads(subprocess.check_output(argv, timeout=BOUND))


@pytest.mark.skipif(os.getuid() != 0, reason='only root can become another user')
def test_other_users(machine):
    """The socket is only for its group; leases of other users cannot be changed."""
    mine = machine.hold(1, '--name', 'mine')
    with opened(machine, to_socket=0):
        said = f'{machine.socket}: it is there, and only user root may use it: ask them to set '
        assert said in as_nobody(machine, do='list')['error']
    with opened(machine):
        [shown] = as_nobody(machine, do='list')['leases']
        assert (shown['uuid'], shown['name'], shown['pid']) == (None, None, mine.pid)
        assert [each['arq_uuid'] for each in shown['accelerators']] == [None]
        assert as_nobody(machine, do='release', id='mine')['error'] == "no lease of 'mine'"
        answer = as_nobody(machine, do='lease', of=mine.pid)
        assert answer == {'error': f'process {mine.pid} belongs to another user', 'code': 403}
        got = as_nobody(machine, do='lease')
    assert (got['user'], got['state']) == (accounts.name(NOBODY), 'active')
    shown = machine.service.api.get(f'/v2/allocations/{got["uuid"]}').json
    assert shown['project_id'] == accounts.name(NOBODY)
    assert machine.lease(mine.pid)


@contextlib.contextmanager
def opened(machine, to_socket=0o066):
    """Make the socket accessible for every user."""
    socket = pathlib.Path(machine.socket)
    # Tests of other processes use them at the same time: they stay open.
    for place in socket.parent.parents:
        place.chmod(place.stat().st_mode | 0o011)
    own = {socket: to_socket, socket.parent: 0o011}
    before = {place: place.stat().st_mode for place in own}
    for place, more in own.items():
        place.chmod(before[place] | more)
    yield
    for place, mode in before.items():
        place.chmod(mode)


def test_an_accelerator_without_a_variable_is_a_problem(machine, monkeypatch):
    """A program would use other devices, or all."""
    monkeypatch.setattr(needs, 'of_driver', lambda name: None)
    status, _, err = machine.run('run', '--', 'true')
    assert status == 0
    assert 'huawei_ascend.toml beside its driver' in err.splitlines()[0]


@pytest.mark.parametrize(
    'text',
    [
        b'', b'\n', b'[]\n', b'nonsense\n', b'{"do": "fly"}\n', b'{"do": ["lease"]}\n',
        b'{"do": "lease", "request": []}\n', b'{"do": "lease", "of": true}\n',
        b'{"do": "lease", "of": -1}\n', b'{"do": "lease", "of": 999999999}\n',
        b'{"do": "lease", "of": "time"}\n', b'{"do": "lease", "more": 1}\n',
        b'{"do": "lease", "request": {"count": 0}}\n',
        b'{"do": "lease", "request": {"count": "1"}}\n',
        b'{"do": "lease", "request": {"count": 2.0}}\n',
        b'{"do": "lease", "request": {"profile": "\\ud800"}}\n',
        b'{"do": "lease", "request": {"name": "6a5cb1c0-0b9e-4b0e-8f0e-1d2f3a4b5c6d"}}\n',
        b'{"do": "lease", "request": {"count": 1e400}}\n',
        b'{"do": "lease", "request": {"name": "a b"}}\n',
        b'{"do": "lease", "request": {"more": 1}}\n',
        b'{"do": "lease", "request": {"traits": {"a": "required"}}}\n',
        b'{"do": "lease", "host": {}}\n', b'{"do": "release", "id": {}}\n',
        b'[' * 50000 + b'\n', b'x' * 70000,
    ],
)  # fmt: skip
def test_hostile_words(machine, text):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(machine.socket)
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        answer = json.loads(connection.makefile().readline())
    assert 400 <= answer['code'] < 500
    assert answer['error']
    assert not machine.held()


def test_a_request_that_drips_is_refused(machine, monkeypatch):
    """A client that always sends another byte in time does not keep its place."""
    monkeypatch.setattr(local, 'PATIENCE', 0.3)
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(BOUND)
        connection.connect(machine.socket)

        def drip():
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    connection.sendall(b' ')

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer = json.loads(connection.makefile().readline())
        finally:
            ended.set()
            dripping.join()
    assert 'within 0.3 s' in answer['error']


def test_a_slow_request_leaves_all_the_time_for_its_answer(machine, monkeypatch):
    plain = local._read

    def read(connection):
        words = plain(connection)
        assert connection.gettimeout() == local.PATIENCE
        return words

    monkeypatch.setattr(local, '_read', read)
    assert machine.leases() == []


def begun(machine, **words):
    """A connection that has sent a request, and reads no answer."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(machine.socket)
    connection.sendall(json.dumps(words).encode() + b'\n')
    return connection


@pytest.mark.parametrize('of', ['self', 'parent', 'time'])
def test_the_lease_of_a_client_that_is_gone_is_freed(machine, of):
    made = len(machine.service.rows(model.Allocation))
    begun(machine, do='lease', of=of, request={'seconds': 3000}).close()
    machine.until(lambda: len(machine.service.rows(model.Allocation)) == made + 1)
    machine.until(lambda: not machine.held() and not machine.leases())


def test_a_lease_that_its_client_does_not_confirm_is_freed(machine):
    """The answer was sent: the client may have ended before it read it."""
    with begun(machine, do='lease', of='time', request={'seconds': 3000}) as asking:
        assert 'accelerators' in json.loads(asking.makefile().readline())
        assert machine.held() == 1
    machine.until(lambda: not machine.held() and not machine.leases())


def test_a_waiter_of_a_stopped_service_leaves_the_queue(alone):
    machine = alone()
    held = machine.hold(8)
    with begun(machine, do='lease', of='time', request={'seconds': 3000, 'queue': True}):
        machine.until(lambda: machine.lease(0, 'queued'))
        monitor = machine.service.embedded._services[1]._local._default
        # As after a kill: the agent does not release the lease of the client.
        with unittest.mock.patch.object(monitor, 'end'):
            machine.stop()
        machine.start()
        machine.until(lambda: [x['pid'] for x in machine.leases()] == [held.pid])
    held.kill()
    machine.until(lambda: not machine.held())


def test_a_user_at_the_limit_of_waiters_can_still_list_and_release(machine, monkeypatch):
    monkeypatch.setitem(local.LIMITS, 'lease', (256, 2))
    machine.hold(8)
    limits = machine.service.embedded._services[1]._local
    limits._clients['lease', NOBODY] = 2
    with pytest.raises(local.Refused, match='too many'), limits._counted('lease', NOBODY):
        pass
    with limits._counted('other', NOBODY), limits._counted('lease', 0):
        assert len(machine.leases()) == 1
    limits._clients['lease', NOBODY] = 0


def test_the_socket_survives_a_lack_of_descriptors(machine, monkeypatch):
    """It continues when there are descriptors again."""
    monkeypatch.setattr(local, 'PAUSE', 0.01)
    served, tries = machine.service.embedded._services[1]._local, []

    def begin(connection):
        tries.append(1)
        connection.close()
        raise OSError(errno.EMFILE, 'no descriptors')

    with unittest.mock.patch.object(served, '_begin', begin):
        with pytest.raises(client.Error):
            machine.leases()
        assert tries
    assert machine.leases() == []


def test_an_unreadable_process_keeps_its_lease(machine, monkeypatch):
    monkeypatch.setattr(leases, 'RETRY', 0.01)
    failing = iter([OSError(errno.EMFILE, 'no descriptors')] * 3)
    plain = processes.watch

    def watch(process):
        for error in failing:
            raise error
        return plain(process)

    with unittest.mock.patch.object(processes, 'watch', watch):
        assert machine.run('alloc', '--pid', os.getpid())[0] == 0
        machine.until(lambda: next(failing, None) is None)
        [lease] = machine.until(lambda: [x for x in machine.leases() if x['processes']])
    assert lease['pid'] == os.getpid()
    assert machine.run('release', lease['uuid'])[0] == 0


def test_after_a_comparison_that_failed_there_is_another(machine, monkeypatch):
    monkeypatch.setattr(leases, 'RETRY', 0.01)
    monitor = machine.service.embedded._services[1]._local._default
    asked = []

    def compare():
        asked.append(1)
        return len(asked) > 3

    with unittest.mock.patch.object(monitor, '_compare', compare):
        monitor.look_again()
        machine.until(lambda: len(asked) > 3)


def test_only_the_agent_of_a_host_is_served(machine):
    bus = machine.service.embedded.bus
    [agent] = machine.service.embedded.agents
    peer = leases.context.service()
    about = {'host': agent.manager.host.name, 'agent': 'somebody else'}
    for call, more in (
        ('leases', {}),
        ('holders', {}),
        ('contain', {'containers': {}}),
        ('end_lease', {'uuid': 'x', 'cause': 'y'}),
        ('lease', {'process': process(), 'request': {}}),
    ):
        with pytest.raises(leases.exception.Conflict, match='not reported by this agent'):
            getattr(bus.leases(peer), call)(**about, **more)


def test_an_agent_ends_nothing_but_leases_of_its_host(machine):
    """An allocation from the API is not a lease."""
    made = machine.service.api.post(
        '/v2/allocations', {'groups': [{'resources': {'CUSTOM_NPU': 1}}]}
    ).json
    [agent] = machine.service.embedded.agents
    peer = machine.service.embedded.bus.leases(leases.context.service())
    about = {'host': agent.manager.host.name, 'agent': agent.manager.id}
    peer.end_lease(uuid=made['uuid'], cause='', **about)
    assert machine.held() == 1
    machine.service.api.delete(f'/v2/allocations/{made["uuid"]}')


def test_the_api_refuses_the_consumer_type_of_processes(machine):
    consumer = {'type': 'local_process', 'id': 'atlas-800t-a2/1/2/3/4/5/6'}
    answer = machine.service.api.post(
        '/v2/allocations',
        {'groups': [{'resources': {'CUSTOM_NPU': 1}}], 'consumer': consumer},
    )
    assert answer.status_int == 400
    assert 'consumer.type' in answer.text


def process(**more):
    return dataclasses.asdict(processes.find(os.getpid())) | more


def test_a_consumer_is_read_back():
    told = process(user='a/b', command='x/y\n')
    text = requesting.consumer('host-1', told)
    host = type('Host', (), {'name': 'host-1'})
    read = leases.processes.of(text, host.name)
    assert dataclasses.asdict(read) == told | {'user': 'a?b', 'command': 'x?y?'}
    with pytest.raises(leases.exception.Invalid, match='shorter name'):
        requesting.consumer('h' * 250, told)

# SPDX-License-Identifier: Apache-2.0
"""What people type at a shared machine: scenarios, and the options that choose accelerators."""

import collections
import json
import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa

from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import model
from cyborg_lite.agent import processes
from tests.functional import test_leases
from tests.unit.cmd import process

shared, machine, alone = test_leases.shared, test_leases.machine, test_leases.alone
BOUND = test_leases.BOUND
#: A program that prints the devices that it was given.
SHOW = ('printenv', 'CYBORG_DEVICES')


@pytest.fixture
def hangup():
    """SIGHUP ends a program, also where nohup has started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures('hangup')
def test_scenario_3_a_terminal_that_is_closed(machine):
    """Its devices are free with a job that dies, and held with one that ignores SIGHUP."""
    ignoring = 'trap "" HUP; exec "$0" run -n 2 -- sh -c "sleep 600 & echo; wait"'
    kept = subprocess.Popen(
        ['sh', '-c', ignoring, str(test_leases.COMMAND)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {client.VARIABLE: machine.socket},
        start_new_session=True,
    )
    machine.started.append(kept)
    assert kept.stdout.readline() == '\n'
    lost = machine.command('run', '--', 'sleep', '600', start_new_session=True)
    machine.until(lambda: machine.lease(lost.pid))
    for each in (kept, lost):
        os.killpg(each.pid, signal.SIGHUP)
    assert lost.wait(BOUND) == -signal.SIGHUP
    machine.until(lambda: machine.held() == 2)
    # It lasts as long as the last process of the job.
    assert kept.poll() is None
    kept.kill()
    kept.wait(BOUND)
    [[left]] = machine.until(
        lambda: [x['processes'] for x in machine.leases() if x['processes'][:1]] or None
    )
    assert (left['command'], machine.held()) == ('sleep', 2)
    os.kill(left['pid'], signal.SIGKILL)
    machine.until(lambda: not machine.held())


def test_scenario_6_one_is_free_and_two_are_asked_for(machine):
    """The command waits for both, and takes none before."""
    holder = machine.hold(7)
    user = accounts.name(os.getuid())
    waiting = machine.command('run', '-n', 2, '--', *SHOW)
    said = f'cyborg-lite: waiting at place 1: held by {user} {holder.pid} sleep (7)\n'
    assert waiting.stderr.readline() == said
    assert machine.held() == 7
    assert machine.run('run', '-n', 2, '--nonblock', '--', 'true')[0] == 1
    status, _, err = machine.run('run', '-n', 2, '--wait', '0.3s', '--', 'true')
    # Another one waits before it.
    assert (status, err.splitlines()[0]) == (124, said.strip().replace('place 1', 'place 2'))
    assert machine.held() == 7
    holder.kill()
    out, _ = waiting.communicate(timeout=BOUND)
    assert (waiting.returncode, len(json.loads(out))) == (0, 2)


def test_a_wait_says_that_a_card_is_faulty_and_who_holds_the_others(alone):
    machine = alone()
    holder = machine.hold(6)
    free = machine.service.api.get('/v2/accelerators?free=true').json['accelerators']
    sick = sa.update(model.Device).where(model.Device.uuid == free[0]['device_uuid'])
    with machine.service.database.writer() as session:
        session.execute(sick.values(withheld=True, fault='critical: xid_79'))
    waiting = machine.command('run', '-n', 2, '--', 'true')
    assert waiting.stderr.readline() == (
        'cyborg-lite: waiting at place 1: needs 2 of CUSTOM_NPU on one host: 1 of CUSTOM_NPU free '
        'on 1 host, at most 1 on one (1 faulty): held by '
        f'{accounts.name(os.getuid())} {holder.pid} sleep (6)\n'
    )
    waiting.kill()


def queued(machine, count, *arguments):
    """So many programs that wait for one device each, and then keep it until they are killed."""
    made = [machine.command('run', *arguments, '--', 'sleep', '600') for _ in range(count)]
    for each in made:
        machine.until(lambda each=each: machine.lease(each.pid, 'queued'))
    return made


def test_scenario_7_small_ones_do_not_keep_a_large_one_out(machine):
    """Each of them would have a free device at once, and the large one never four."""
    holders = [machine.hold() for _ in range(5)]
    large = machine.command('run', '-n', 4, '--', *SHOW)
    machine.until(lambda: machine.lease(large.pid, 'queued'))
    # Three are free.
    small = queued(machine, 3)
    assert machine.run('run', '--nonblock', '--', 'true')[0] == 1
    assert machine.held() == 5
    holders[0].kill()
    out, err = large.communicate(timeout=BOUND)
    assert (large.returncode, len(json.loads(out))) == (0, 4), err
    machine.until(lambda: all(machine.lease(each.pid) for each in small))
    assert machine.held() == 7


def test_scenario_7_small_ones_that_delay_nobody_pass(alone):
    """They take devices that the large one cannot use."""
    machine = alone()
    api = machine.service.api
    for row in api.get('/v2/deployables').json['deployables'][:4]:
        fast = {'deployable_id': row['uuid'], 'key': 'trait-fast', 'value': 'CUSTOM_FAST'}
        assert api.post('/v2/attributes', fast).status_int == 201
    fast = '--trait', 'CUSTOM_FAST'
    holder = machine.hold(1, *fast)
    large = machine.command('run', '-n', 4, *fast, '--', *SHOW)
    machine.until(lambda: machine.lease(large.pid, 'queued'))
    [behind] = queued(machine, 1, *fast)
    for _ in range(4):
        machine.hold()
    # The fifth would take one of the three that the large one needs.
    fifth = queued(machine, 1)
    assert machine.held() == 5
    holder.kill()
    out, err = large.communicate(timeout=BOUND)
    assert (large.returncode, len(json.loads(out))) == (0, 4), err
    machine.until(lambda: all(machine.lease(each.pid) for each in (behind, *fifth)))


def given(machine, *arguments):
    """The accelerators that a program is given, by the API."""
    status, out, err = machine.run('run', *arguments, '--', *SHOW)
    assert status == 0, err
    addresses = {each['address'] for each in json.loads(out)}
    rows = machine.service.api.get('/v2/accelerators').json['accelerators']
    return [row for row in rows if row['address'] in addresses]


def test_accelerators_of_one_numa_node(machine):
    """Two cards of each node: the others are held until one of each is free."""
    holders = [machine.hold(1) for _ in range(8)]
    by_node = collections.defaultdict(list)
    rows = machine.service.api.get('/v2/accelerators').json['accelerators']
    nodes = {row['address']: row['numa_node'] for row in rows}
    for holder in holders:
        [accelerator] = machine.lease(holder.pid)['accelerators']
        by_node[nodes[accelerator['address']]].append(holder)
    first, second = [*by_node.values()][:2]
    first[0].kill()
    second[0].kill()
    machine.until(lambda: machine.held() == 6)
    assert len({row['numa_node'] for row in given(machine, '-n', 2)}) == 2
    machine.until(lambda: machine.held() == 6)
    status, _, err = machine.run('run', '-n', 2, '--same-numa', '--nonblock', '--', 'true')
    assert (status, 'needs 2 of CUSTOM_NPU in one NUMA node' in err) == (1, True), err
    first[1].kill()
    machine.until(lambda: machine.held() == 5)
    assert len({row['numa_node'] for row in given(machine, '-n', 2, '--same-numa')}) == 1


def test_accelerators_of_a_device_profile(machine):
    machine.service.profile('pair', CUSTOM_NPU=2)
    assert len(given(machine, '--profile', 'pair')) == 2


def test_accelerators_with_traits(machine):
    """With ! before it, those that have it are left out."""
    [row] = given(machine, '--trait', '!CUSTOM_OTHER')
    trait = row['traits'][0]
    assert trait in given(machine, '--trait', trait, '--trait', '!CUSTOM_OTHER')[0]['traits']
    for words, said in (
        (['CUSTOM_OTHER'], 'with CUSTOM_OTHER'),
        ([f'!{trait}'], f'with no {trait}'),
        ([trait, '--trait', 'CUSTOM_OTHER'], f'with {", ".join(sorted([trait, "CUSTOM_OTHER"]))}'),
    ):
        status, _, err = machine.run('run', '--nonblock', '--trait', *words, '--', 'true')
        assert (status, f'needs 1 of CUSTOM_NPU {said}: ' in err) == (1, True), err


@pytest.mark.parametrize(
    'words', [['run', '--', 'true'], ['reserve', '--at', '09:00', '--for', '3h']], ids=' '.join
)
def test_a_name_that_a_lease_has_is_refused_with_what_to_type(machine, words):
    holder = machine.hold(1, '--name', 'job')
    status, _, err = machine.run(words[0], '--name', 'job', *words[1:])
    said = 'Active allocation with name job already exists. Choose another --name, or release that '
    assert (status, err) == (1, f'cyborg-lite: {said}first with "cyborg-lite release".\n')
    holder.kill()
    holder.wait(BOUND)
    machine.until(lambda: not machine.held())
    assert machine.run(words[0], '--name', 'job', *words[1:])[0] == 0
    if words[0] == 'reserve':
        assert machine.run('release', 'job')[0] == 0


def test_a_pid_of_another_namespace_is_refused(machine, monkeypatch):
    """Here it is another process, or none."""
    monkeypatch.setattr(processes, 'namespace', lambda pid: f'pid:[{pid == os.getpid()}]')
    status, out, err = machine.run('alloc', '--pid', os.getpid())
    said = 'a process of another pid namespace cannot be named by its pid'
    assert (status, out, err) == (1, 'false\n', f'cyborg-lite: {said}\n')
    assert not machine.held()
    # It names itself by no pid.
    assert machine.run('run', '--', 'true')[0] == 0


@pytest.mark.parametrize(
    'words',
    [
        ['run', '--', 'true'],
        ['alloc', '--name', 'a'],
        ['release'],
        ['reserve', '--list'],
        ['reserve', '--at', '09:00', '--for', '3h', '--name', 'b'],
    ],
    ids=' '.join,
)
def test_commands_that_lease_load_no_service(machine, words):
    """Loading it took most of a second before each command."""
    if words == ['release']:
        assert machine.run('alloc')[0] == 0
    found = subprocess.run(
        [sys.executable, '-X', 'importtime', '-c',
         'from cyborg_lite.cmd import entry; raise SystemExit(entry.main())', *words],
        stderr=subprocess.PIPE,
        text=True,
        timeout=BOUND,
        env=os.environ | {client.VARIABLE: machine.socket},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    loaded = {line.rpartition('|')[2].strip() for line in found.stderr.splitlines()}
    assert 'cyborg_lite.cmd.leasing' in loaded
    assert loaded & process.HEAVY == set()
    for name in (each['name'] for each in machine.leases() if each['name']):
        assert machine.run('release', name)[0] == 0

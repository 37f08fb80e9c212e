# SPDX-License-Identifier: Apache-2.0
"""One shared machine: what the kernel enforces, with real device nodes and real users."""

import contextlib
import datetime
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import unittest.mock
import uuid

from oslo_utils import timeutils
import pytest

from cyborg_lite import client
from cyborg_lite import model
from cyborg_lite.agent import access
from cyborg_lite.agent import launching
from cyborg_lite.agent import leases
from cyborg_lite.agent import processes
from cyborg_lite.agent import runtimes
from cyborg_lite.cmd import ps
from cyborg_lite.delivery import cdi
from cyborg_lite.delivery import needs
from cyborg_lite.driver import pids
from tests import devices
from tests.functional import boxes
from tests.functional import test_leases
from tests.unit.agent import test_terminals

pytestmark = devices.needs_root
JANE, BOB = devices.JANE, devices.BOB
DENIED = str(errno.EACCES)


@pytest.fixture
def place():
    with devices.directory() as place, boxes.patched(place):
        yield place


@pytest.fixture
def box(database_url, tmp_path, place):
    """A machine, made with options; all users may use its socket."""
    made = []

    def make(device_access='acl', **options):
        options['agent__device_access'] = device_access
        made.append(boxes.Box(database_url, tmp_path, place, **options))
        return made[0]

    yield make
    for each in made:
        each.clear()
        each.stop()


def hold(machine, uid, *arguments):
    """The lease of a process of a user that holds one device until it is killed."""
    made = machine.as_(uid, 'run', *arguments, '--', 'sleep', '600')
    assert '1 of host box' in made.stderr.readline()
    return made, machine.lease(made.pid)


def test_scenario_10_another_user_is_refused_by_the_kernel(box):
    """Enforcement on: open() fails with EACCES, ps works for all, and the end of the lease closes
    the node.
    """
    machine = box()
    machine.has_looked()
    before = [devices.mode(node) for node in machine.nodes]
    for node in machine.nodes:
        assert not any(devices.may_open(uid, node) for uid in (JANE, BOB))
    with test_leases.opened(machine):
        made, lease = hold(machine, JANE)
        node = machine.node_of(lease)
        others = [each for each in machine.nodes if each != node]
        assert machine.opening(JANE, node)[1] == 'opened'
        assert [machine.opening(JANE, each)[1] for each in others] == [DENIED] * 3
        assert [machine.opening(BOB, each)[1] for each in machine.nodes] == [DENIED] * 4
        assert machine.opening(BOB, machine.shared)[1] == 'opened'
        answer = test_leases.as_nobody(machine, do='list')
        assert [(each['user'], each['pid']) for each in answer['leases']] == [
            (f'uid-{JANE}', made.pid)
        ]
        assert answer['access'] == 'acl'
        for each in machine.started:
            each.kill()
        machine.until(lambda: not machine.held())
    assert [devices.mode(node) for node in machine.nodes] == before
    assert not devices.may_open(JANE, node)


def test_a_command_can_open_its_device_at_once(box):
    """The node is opened before the command begins."""
    machine = box()
    script = 'exec 3<>"$1$BOX_VISIBLE_DEVICES" && echo mine'
    prefix = machine.nodes[0].removesuffix('0')
    with test_leases.opened(machine):
        for _ in range(3):
            status, out, err = machine.says(JANE, 'run', '--', 'sh', '-c', script, 'sh', prefix)
            assert (status, out) == (0, 'mine\n'), err
    assert re.fullmatch(r'cyborg-lite: 1 of host box: \d \(.{36}; access is enforced\)\n', err)


def test_the_user_of_a_parent_has_the_device(box):
    """What counts is the user of the process that holds the lease."""
    machine = box()
    made, _ = machine.opening(JANE)
    assert machine.run('alloc', '--pid', made.pid)[0] == 0
    node = machine.node_of(machine.lease(made.pid))
    assert devices.may_open(JANE, node)
    assert not devices.may_open(BOB, node)
    assert machine.run('release', machine.lease(made.pid)['uuid'])[0] == 0
    assert not devices.may_open(JANE, node)


def test_access_outlives_a_restart_of_the_agent(box):
    machine = box()
    with test_leases.opened(machine):
        made, lease = hold(machine, JANE)
        node = machine.node_of(lease)
        machine.stop()
        assert {each for each in machine.nodes if devices.may_open(JANE, each)} == {node}
        machine.start()
        machine.has_looked()
        assert {each for each in machine.nodes if devices.may_open(JANE, each)} == {node}
        made.kill()
        machine.until(lambda: not machine.held())
    assert not devices.may_open(JANE, node)


def test_nothing_is_closed_before_the_earlier_leases_are_known(box, monkeypatch):
    """No conductor answers when the agent starts."""
    machine = box()
    with test_leases.opened(machine):
        made, lease = hold(machine, JANE)
    node = machine.node_of(lease)
    machine.stop()
    monkeypatch.setattr(boxes.test_leases.leases.Leases, '_compare', lambda self: False)
    machine.start()
    machine.served.guard()
    assert devices.may_open(JANE, node)
    monkeypatch.undo()
    machine.has_looked()
    made.kill()


def test_nodes_are_as_they_were_when_it_is_switched_off(box):
    machine = box()
    machine.has_looked()
    assert {devices.mode(node) for node in machine.nodes} == {(0o600, 0, 0)}
    machine.stop()
    machine.options['agent__device_access'] = 'advisory'
    machine.start()
    assert {devices.mode(node) for node in machine.nodes} == {(0o666, 0, 0)}
    with test_leases.opened(machine):
        _, _, err = machine.says(JANE, 'run', '--', 'true')
    assert 'access is advisory' in err
    assert machine.ask(do='list')['access'] == 'advisory'


def test_a_node_that_is_made_anew_is_closed_in_a_while(box, place, monkeypatch):
    monkeypatch.setattr(boxes.test_leases.leases, 'CHECK', 0.02)
    machine = box()
    machine.has_looked()
    devices.make(place / 'npu2', devices.NUMBERS[2])
    machine.until(lambda: not devices.may_open(BOB, machine.nodes[2]))


def test_a_device_is_closed_before_it_is_free(box, monkeypatch):
    """Otherwise its last user could open it once more, beside the next."""
    machine, seen = box(), []
    conductor = machine.service.manager
    calls = conductor.leases._calls

    def end(*args, **more):
        seen.append([devices.may_open(JANE, node) for node in machine.nodes])
        calls.end(*args, **more)

    monkeypatch.setattr(conductor.leases, '_calls', calls._replace(end=end))
    with test_leases.opened(machine):
        made, _ = hold(machine, JANE)
        made.kill()
        machine.until(lambda: not machine.held())
    assert seen == [[False] * 4]


def test_a_described_host_has_no_nodes_to_close(place, database_url, tmp_path):
    """A machine may have nodes of the same names."""
    node = devices.make(place / 'npu0', devices.NUMBERS[0])
    options = {'device_access': 'acl', 'access_file': str(tmp_path / 'agent.access')}
    machine = test_leases.Machine(
        database_url, tmp_path, **{f'agent__{name}': value for name, value in options.items()}
    )
    assert machine.ask(do='list')['access'] == access.ADVISORY
    assert devices.may_open(BOB, node)
    machine.stop()
    assert not os.path.exists(options['access_file'])


def test_containers_are_given_a_lease_by_its_cdi_name_while_it_is_active(box, tmp_path):
    """Its file is there once the command runs, and gone before its devices are free."""
    place = tmp_path / 'cdi'
    machine = box('advisory', agent__cdi_directory=str(place))
    with test_leases.opened(machine):
        made, lease = hold(machine, JANE)
        [name] = os.listdir(place)
        [device] = json.loads((place / name).read_text())['devices']
        [node] = [each['path'] for each in device['containerEdits']['deviceNodes']][:1]
        assert (device['name'], node) == (lease['uuid'], machine.node_of(lease))
        # A lease that the agent does not know any more.
        stale = cdi.NAME.format(uuid.UUID(int=1))
        (place / stale).touch()
        machine.stop()
        machine.start()
        machine.until(lambda: os.listdir(place) == [name])
        seen = []
        ends = machine.served._end
        machine.served._end = lambda lease: seen.append(os.listdir(place)) or ends(lease)
        made.kill()
        made.wait()
        machine.until(lambda: not machine.held())
    assert (seen[0], os.listdir(place)) == ([], [])


@contextlib.contextmanager
def using(machine, node):
    """The terminal of a process of Bob that has a node open."""
    machine.has_looked()
    opens = f"os.open({node!r}, os.O_RDWR); print('opened', flush=True)"
    bob = test_terminals.Terminal(BOB, BOB, then=opens)
    try:
        assert bob.process.stdout.readline() == b'opened\n'
        yield bob
    finally:
        bob.close()


def rogues(machine):
    """Have the agent report: by the number of a device, who uses it without a lease."""
    machine.agent.report()
    found = machine.accelerators()
    assert all((each['state'] == 'rogue') == bool(each['rogue']) for each in found)
    return {number: each['rogue'] for number, each in enumerate(found) if each['rogue']}


def test_scenario_8_a_device_in_use_without_a_lease_is_not_given_out(box):
    """Its state says rogue, and the user, the process and its begin are named."""
    machine = box('advisory')
    bob, said = machine.opening(BOB, machine.nodes[2])
    assert said == 'opened'
    begin = r'since \d{4}-\d\d-\d\dT\d\d:\d\dZ'
    found = rogues(machine)
    assert [*found] == [2]
    assert re.fullmatch(rf'{bob.pid} uid-{BOB} \(python.*\) {begin}', found[2])
    reason = machine.accelerators()[2]['reason']
    assert reason == f'its device is used without a lease by {found[2]}'
    with test_leases.opened(machine):
        status, _, err = machine.says(JANE, 'run', '--nonblock', '-n', '4', '--', 'true')
        assert (status, '3 of CUSTOM_NPU free' in err) == (1, True), err
        status, out, _ = machine.says(JANE, 'run', '-n', '3', '--', 'printenv', 'CYBORG_DEVICES')
        assert status == 0
        assert '"name":"2"' not in out
    machine.until(lambda: not machine.held())
    bob.kill()
    bob.wait()
    assert rogues(machine) == {}


def test_scenario_8_ps_has_the_memory_of_a_rogue(box, monkeypatch):
    """As of the last scan, and only where the driver tells it: no report is written for it."""
    machine = box('advisory')
    bob, _ = machine.opening(BOB, machine.nodes[2])
    told = []
    monkeypatch.setattr(
        hashlib, 'sha256', lambda text, real=hashlib.sha256: told.append(text) or real(text)
    )
    with machine.listing() as ps:
        for memory, shown in ({}, None), ({2: {bob.pid: 30780}}, 30780), ({2: {bob.pid: 9}}, 9):
            monkeypatch.setattr(boxes.Npus, 'memory', memory)
            assert [*rogues(machine)] == [2]
            [row] = [each for each in json.loads(ps('-f', 'json')) if each['state'] == 'rogue']
            assert (row['pid'], row['process']) == (bob.pid, f'uid-{BOB} {bob.pid}')
            assert row['memory_mb'] == shown
            [use] = row['rogues']
            assert (use['pid'], use['memory_mb'], use['address']) == (
                *(bob.pid, shown), row['address'],
            )  # fmt: skip
            [line] = [each for each in ps().splitlines() if ' rogue ' in each]
            assert (' MiB' in line or ' GiB' in line) == (shown is not None)
            assert re.search(rf'rogue +uid-{BOB} {bob.pid} +\d+ (s|min) +python', line)
    reports = [text for text in told if text.startswith(b'{"access"')]
    assert (len(reports), len(set(reports))) == (3, 1)


def test_scenario_11_the_container_of_a_rogue_is_named(box, tmp_path, monkeypatch):
    """With its image, and who launched it."""
    machine = box('advisory')
    place = tmp_path / 'docker' / ('0123456789ab' + 'f' * 52)
    place.mkdir(parents=True)
    about = {'Name': '/jane-train', 'Config': {'Image': 'nvcr.io/nvidia/pytorch:25.01'}}
    (place / 'config.v2.json').write_text(json.dumps(about))
    monkeypatch.setattr(runtimes, 'DOCKER', place.parent)
    monkeypatch.setattr(processes, 'container', lambda pid: '0123456789ab')
    monkeypatch.setattr(processes, 'is_claimed', lambda pid: False)
    launched = {}
    monkeypatch.setattr(launching, 'launcher', lambda pid, uid: launched.get((pid, uid)))
    made, _ = machine.opening(0, machine.nodes[2])
    inside = ' in container 0123456789ab (jane-train, pytorch:25.01)'
    assert rogues(machine)[2].endswith(f'Z{inside}')
    launched[made.pid, 0] = 'jane'
    assert rogues(machine)[2].endswith(f'Z started by jane{inside}')
    holder = machine.hold()
    launched[holder.pid, 0] = 'bob'
    lease = f'/v2/allocations/{machine.lease(holder.pid)["uuid"]}'
    # The agent has found the process, and told its container.
    machine.until(lambda: machine.service.api.get(lease).json['container'])
    with machine.listing() as ps:
        rows = json.loads(ps('-f', 'json'))
        lines = ps().splitlines()
    for state, pid, launcher in ('rogue', made.pid, 'jane'), ('held', holder.pid, 'bob'):
        [row] = [each for each in rows if each['state'] == state]
        names = [row[name] for name in ('container', 'container_name', 'image', 'launcher')]
        assert names == ['0123456789ab', 'jane-train', 'pytorch:25.01', launcher]
        [line] = [each for each in lines if f' {state} ' in each]
        assert line.split()[-3:] == ['jane-train', 'pytorch:25.01', launcher]
        assert f' root {pid} ' in line
    assert {len(row) for row in rows} == {len(rows[0])}
    [lease] = machine.leases()
    assert {each['image'] for each in lease['processes']} == {'pytorch:25.01'}
    status, _, err = machine.run('run', '--nonblock', '-n', '4', '--', 'true')
    assert (status, f'{inside} (1)' in err) == (1, True), err
    holder.kill()
    made.kill()
    made.wait()
    shutil.rmtree(place)
    machine.opening(0, machine.nodes[2])
    # Never without its id.
    assert rogues(machine)[2].endswith(' in container 0123456789ab')


def states(machine):
    """The states and the last lines of ps."""
    with machine.listing() as ps:
        lines = ps().splitlines()[1:]
        health = {(row['health'], row['health_reason']) for row in json.loads(ps('-f', 'json'))}
    [health] = health
    return [line.split()[4] for line in lines[:4]], lines[4:], health


def test_scenario_15_a_tool_that_hangs(box, tmp_path, monkeypatch):
    """It is said at each card, and everything else works."""
    tool = tmp_path / 'box-smi'
    tool.write_text('#!/bin/sh\nexec sleep 600\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setattr(boxes.Npus, 'tool', tool.name)
    machine = box('advisory')
    machine.hold()
    said = ['Health of 4 cards is unknown (no answer in 1 s).', 'Access is advisory.']
    assert states(machine) == (['unknown'] * 4, said, ('unknown', 'no_answer_in_1_s'))
    assert machine.run('run', '--nonblock', '-n', '3', '--', 'true')[0] == 0
    monkeypatch.setattr(boxes.Npus, 'tool', None)
    machine.agent.report()
    found, lines, health = states(machine)
    assert (sorted(found), lines, health) == (
        ['free', 'free', 'free', 'held'], said[1:], ('unknown', None),
    )  # fmt: skip


def test_scenario_15_a_driver_that_hangs(box, monkeypatch):
    """Its cards stay, also after the agent was restarted; it has not looked."""
    machine = box('advisory', agent__driver_timeout=1)
    machine.hold()
    said = ['Health of 4 cards is unknown (no answer in 1 s).', 'Access is advisory.']
    free = threading.Event()
    monkeypatch.setattr(boxes.Npus, 'free', free)
    try:
        for _ in range(2):
            state = machine.agent.report()['box']
            assert (state['state'], state['waited']) == ('degraded', 1)
            assert states(machine) == (['unknown'] * 4, said, ('unknown', 'no_answer_in_1_s'))
            machine.stop()
            machine.start()
        assert machine.run('run', '--nonblock', '-n', '3', '--', 'true')[0] == 0
    finally:
        free.set()
    machine.until(lambda: states(machine)[2] == ('unknown', None))


@pytest.mark.parametrize('tells', [True, False])
def test_scenario_8_the_user_is_told_once(box, tells):
    """On the terminal of the process."""
    machine = box('advisory', agent__tell_rogues=tells)
    with using(machine, machine.nodes[2]) as bob:
        for _ in range(3):
            assert [*rogues(machine)] == [2]
        said = bob.read() if tells else ''
        assert ('start it with "cyborg-lite run"' in said) == tells
        assert bob.read(0) == ''
        if tells:
            assert f'"cyborg-lite alloc --pid {bob.process.pid}"' in said


def test_the_holder_of_an_allocation_of_the_api_is_not_told(box):
    """Until it is freed: the agent does not know whose it is."""
    machine = box('advisory')
    api = machine.service.api
    made = api.post('/v2/allocations', {'groups': [{'resources': {'CUSTOM_NPU': 1}}]}).json
    with using(machine, machine.node_of(made)) as bob:
        for _ in range(3):
            assert rogues(machine) == {}
        assert bob.read(0) == ''
        api.delete(f'/v2/allocations/{made["uuid"]}')
        assert rogues(machine)
        assert 'without a lease' in bob.read()


def test_a_process_of_an_earlier_lease_is_not_told(box, monkeypatch):
    """It is adopted, and so does not name its lease; conductors do not tell the leases yet."""
    machine = box('advisory')
    opens = f"os.open({machine.nodes[2]!r}, os.O_RDWR); print('opened', flush=True)"
    bob = test_terminals.Terminal(BOB, BOB, then=opens)
    try:
        assert bob.process.stdout.readline() == b'opened\n'
        assert machine.run('alloc', '--pid', bob.process.pid)[0] == 0
        with monkeypatch.context() as patch:
            patch.setattr(leases.Leases, '_compare', lambda self: False)
            machine.stop()
            machine.start()
            for _ in range(3):
                machine.agent.report()
        machine.has_looked()
        for _ in range(3):
            assert rogues(machine) == {}
        assert bob.read(0) == ''
    finally:
        bob.close()


@pytest.mark.parametrize('count', [None, 2])
def test_a_running_job_is_adopted_with_the_devices_that_it_uses(box, count):
    """Neither others are leased, nor are its own given out."""
    machine = box('advisory')
    bob, _ = machine.opening(BOB, machine.nodes[1], machine.nodes[2])
    assert [*rogues(machine)] == [1, 2]
    words = ['alloc', '--pid', str(bob.pid), '--name', 'job', *(['-n', '2'] if count else [])]
    with test_leases.opened(machine):
        status, out, err = machine.says(BOB, *words)
        assert (status, 'BOX_VISIBLE_DEVICES=1,2' in out) == (0, True), (out, err)
        assert rogues(machine) == {}
        lease = machine.lease(bob.pid)
        said = f'process {bob.pid} leases what it uses already: 1, 2 ({lease["uuid"]})'
        assert err == f'cyborg-lite: {said}\n'
        assert [each['address'] for each in lease['accelerators']] == [
            '0000:31:00.0', '0000:32:00.0',
        ]  # fmt: skip
        status, out, _ = machine.says(JANE, 'run', '-n', '2', '--', 'printenv', 'CYBORG_DEVICES')
        assert (status, [f'"name":"{n}"' in out for n in range(4)]) == (
            0,
            [True, False, False, True],
        )
        status, _, err = machine.says(BOB, 'release', 'job')
        assert (status, f'in use: end process {bob.pid}' in err) == (1, True), err
        bob.kill()
        bob.wait()
        machine.until(lambda: not machine.held())
    assert rogues(machine) == {}


def test_what_a_child_uses_is_adopted_with_its_parent(box):
    machine = box('advisory')
    script = f'exec 3<>{machine.nodes[2]}; echo; read word'
    words = ['sh', '-c', f"sh -c '{script}'; true"]
    parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    machine.started.append(parent)
    parent.stdout.readline()
    assert [*rogues(machine)] == [2]
    assert machine.run('alloc', '--pid', parent.pid)[0] == 0
    assert [each['address'] for each in machine.lease(parent.pid)['accelerators']] == [
        '0000:32:00.0'
    ]
    # It has a lease of what it uses: which other one should it be?
    status, _, err = machine.run('alloc', '--pid', parent.pid)
    assert (status, 'has a lease of what it uses: "-n 1" leases one more' in err) == (1, True)
    assert machine.run('alloc', '--pid', parent.pid, '-n', '1')[0] == 0
    parent.communicate()


def test_a_job_that_opens_what_others_have_leased_is_adopted_with_the_rest(box):
    """Some software opens all devices."""
    machine = box('advisory')
    with test_leases.opened(machine):
        _, lease = hold(machine, JANE)
        theirs = machine.node_of(lease)
        bob, _ = machine.opening(BOB, theirs, machine.nodes[3])
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(bob.pid))
        assert status == 0, err
        [held] = machine.lease(bob.pid)['accelerators']
    assert held['address'] == '0000:33:00.0'


def test_a_job_that_opens_what_the_api_has_allocated_is_adopted_with_the_rest(box):
    machine = box('advisory')
    api = machine.service.api
    made = api.post('/v2/allocations', {'groups': [{'resources': {'CUSTOM_NPU': 1}}]}).json
    theirs = machine.node_of(made)
    bob, _ = machine.opening(BOB, theirs, machine.nodes[3])
    only, _ = machine.opening(BOB, theirs)
    with test_leases.opened(machine):
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(bob.pid))
        assert status == 0, err
        [held] = machine.lease(bob.pid)['accelerators']
        assert held['address'] == '0000:33:00.0'
        # It has nothing to adopt, and may have another one.
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(only.pid))
        said = 'which an instance or an allocation of the API holds: "-n 1" leases another one'
        assert (status, said in err) == (1, True), err
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(only.pid), '-n', '1')
        said = f'process {only.pid} leases new ones, as it uses none without a lease: '
        assert (status, said in err) == (0, True), err
    for each in (bob, only):
        each.kill()
        each.wait()
    machine.until(lambda: machine.held() == 1)
    api.delete(f'/v2/allocations/{made["uuid"]}')


def test_a_job_that_is_not_listed_yet_is_given_no_other_device(box, monkeypatch):
    """The driver has not looked since it began; it may also be a tool that only looks."""
    machine = box('advisory')
    monkeypatch.setitem(needs.of_driver('box'), 'use', 'listed')
    listed = [(), (), (), ()]
    monkeypatch.setattr(boxes.Npus, 'listed', listed)
    bob, _ = machine.opening(BOB, machine.nodes[2])
    assert rogues(machine) == {}
    with test_leases.opened(machine):
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(bob.pid))
        assert (status, 'try again after the next report' in err) == (1, True), err
        assert not machine.held()
        listed[2] = (bob.pid,)
        assert [*rogues(machine)] == [2]
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(bob.pid))
        assert status == 0, err
    [held] = machine.lease(bob.pid)['accelerators']
    assert held['address'] == '0000:32:00.0'


def test_a_client_that_leaves_gives_away_nothing_that_its_process_uses(box):
    machine = box('advisory')
    bob, _ = machine.opening(BOB, machine.nodes[2])
    assert [*rogues(machine)] == [2]
    with client.connect(machine.socket) as leaving:
        leaving.sendall(json.dumps({'do': 'lease', 'of': bob.pid}).encode() + b'\n')
    machine.until(lambda: machine.lease(bob.pid))
    assert [each['address'] for each in machine.lease(bob.pid)['accelerators']] == ['0000:32:00.0']
    with test_leases.opened(machine):
        assert machine.says(JANE, 'run', '--nonblock', '-n', '4', '--', 'true')[0] == 1
    assert machine.lease(bob.pid)['state'] == 'active'


@pytest.mark.parametrize('asked', [['-n', '2'], ['--class', 'npu'], ['--same-numa']])
def test_a_running_job_can_lease_nothing_but_what_it_uses(box, asked):
    """Others would not be those that it uses, which somebody else would be given."""
    machine = box('advisory')
    bob, _ = machine.opening(BOB, machine.nodes[2])
    assert [*rogues(machine)] == [2]
    with test_leases.opened(machine):
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(bob.pid), *asked)
        typed = f'"cyborg-lite alloc --pid {bob.pid}" without a number and kind'
        assert (status, typed in err) == (1, True), err
    assert [*rogues(machine)] == [2]
    assert not machine.held()


@pytest.mark.parametrize('count', [True, 1.0, '1', None])
def test_a_number_of_devices_that_is_none_is_refused(box, count):
    """The first two are equal to 1."""
    machine = box('advisory')
    bob, _ = machine.opening(BOB, machine.nodes[2])
    assert [*rogues(machine)] == [2]
    for of in ('self', bob.pid):
        with pytest.raises(client.Error, match=f'"count" to be a whole number, not {count!r}'):
            client.ask(machine.socket, {'do': 'lease', 'of': of, 'request': {'count': count}}, 10)
    assert not machine.held()


@pytest.mark.parametrize('of', ['self', 'parent', 'time'])
def test_a_client_does_not_say_which_devices_are_used(box, of):
    """They would be those that others use, or wait for."""
    machine = box('advisory')
    machine.opening(BOB, machine.nodes[2])
    assert [*rogues(machine)] == [2]
    for number in (1, 2):
        asked = {'addresses': [f'0000:3{number}:00.0'], 'seconds': 60}
        with test_leases.opened(machine):
            answer = test_leases.as_nobody(machine, do='lease', of=of, request=asked)
        assert '"addresses" cannot be asked for' in answer['error']
    assert not machine.held()


def test_a_device_that_two_users_use_is_leased_to_neither(box):
    machine = box('advisory')
    bob, _ = machine.opening(BOB, machine.nodes[2])
    jane, _ = machine.opening(JANE, machine.nodes[2])
    assert [*rogues(machine)] == [2]
    with test_leases.opened(machine):
        status, _, err = machine.says(BOB, 'alloc', '--pid', str(bob.pid))
        assert (status, f'and so does {jane.pid} uid-{JANE}' in err) == (1, True), err
        # Neither is root asked whose process it is.
        assert machine.run('alloc', '--pid', bob.pid)[0] == 1
        jane.kill()
        jane.wait()
        assert machine.run('alloc', '--pid', bob.pid)[0] == 0
    assert machine.lease(bob.pid)['user'] == f'uid-{BOB}'


def test_a_lease_is_not_released_while_its_device_is_open(box):
    """Its next holder would share the device with the process."""
    machine = box('advisory')
    script = 'exec 3<>"$0$BOX_VISIBLE_DEVICES"; echo; read word; exec 3>&-; echo; read word'
    with test_leases.opened(machine):
        words = ['run', '--name', 'mine', '--', 'sh', '-c', script]
        made = machine.as_(JANE, *words, machine.nodes[0].removesuffix('0'))
        made.stdout.readline()
        uuid = machine.lease(made.pid)['uuid']
        status, _, err = machine.says(JANE, 'release', 'mine')
        busy = f'cyborg-lite: lease {uuid} is in use: end process {made.pid} (sh) first\n'
        assert (status, err) == (1, busy)
        assert machine.held() == 1
        made.stdin.write('\n')
        made.stdin.flush()
        made.stdout.readline()
        status, _, err = machine.says(JANE, 'release', 'mine')
        assert (status, err) == (0, f'cyborg-lite: {uuid} is released\n')
        assert (machine.held(), made.poll()) == (0, None)


def test_processes_of_leases_are_no_rogues(box):
    """Not on other cards either: software of some vendors opens all."""
    machine = box('advisory')
    with test_leases.opened(machine):
        words = ['run', '--', 'sh', '-c', 'exec 3<>"$1" 4<>"$2"; echo; read word', 'sh']
        made = machine.as_(JANE, *words, *machine.nodes[:2])
        made.stdout.readline()
        assert rogues(machine) == {}
        # Another process of the same user, which is in no lease, on a card of the lease.
        node = machine.node_of(machine.lease(made.pid))
        machine.opening(JANE, node)
        assert rogues(machine) == {}
        # And on another card.
        free = next(each for each in machine.nodes if each != node)
        machine.opening(JANE, free)
        assert [*rogues(machine)] == [machine.nodes.index(free)]


def test_a_process_of_a_lease_that_is_listed_on_another_card_uses_it(box, monkeypatch):
    """Such as that of a lease that has ended: the list tells that it does not just open it."""
    machine = box('advisory')
    machine.until(lambda: machine.served.compared)
    monkeypatch.setitem(needs.of_driver('box'), 'use', 'listed')
    with test_leases.opened(machine):
        words = ['run', '--', 'sh', '-c', 'exec 3<>"$1" 4<>"$2"; echo; read word', 'sh']
        made = machine.as_(JANE, *words, *machine.nodes[:2])
        made.stdout.readline()
        own = machine.nodes.index(machine.node_of(machine.lease(made.pid)))
        monkeypatch.setattr(boxes.Npus, 'listed', [(made.pid,)] * 2 + [()] * 2)
        assert [*rogues(machine)] == [number for number in (0, 1) if number != own]


def test_what_the_api_has_allocated_is_not_rogue_until_it_is_freed(box):
    """The agent does not know such allocations: the conductor decides."""
    machine = box('advisory')
    api = machine.service.api
    made = api.post('/v2/allocations', {'groups': [{'resources': {'CUSTOM_NPU': 1}}]}).json
    node = machine.node_of(made)
    _, said = machine.opening(BOB, node)
    assert said == 'opened'
    assert rogues(machine) == {}
    api.delete(f'/v2/allocations/{made["uuid"]}')
    # The report says the same as the last.
    assert [*rogues(machine)] == [machine.nodes.index(node)]


def test_a_shared_node_is_no_use(box):
    machine = box('advisory')
    assert machine.opening(BOB, machine.shared)[1] == 'opened'
    assert rogues(machine) == {}


def test_a_tool_that_monitors_is_no_rogue(box, monkeypatch):
    """Where tools open the node, too, only the processes that the driver lists use the card."""
    machine = box('advisory')
    monkeypatch.setitem(needs.of_driver('box'), 'use', 'listed')
    computing, _ = machine.opening(BOB, machine.nodes[1])
    monitoring, _ = machine.opening(BOB, *machine.nodes)
    listed = [(), (computing.pid,), (), ()]
    monkeypatch.setattr(boxes.Npus, 'listed', listed)
    found = rogues(machine)
    assert [*found] == [1]
    assert found[1].startswith(f'{computing.pid} uid-{BOB} (python')
    # A pid that is used again, or that of another pid namespace, has no node of the card open.
    computing.kill()
    computing.wait()
    listed[2] = (computing.pid, os.getppid())
    assert rogues(machine) == {}
    listed[2] = (monitoring.pid,)
    assert [*rogues(machine)] == [2]


def idle_for(machine, minutes):
    """Have the agent look again after so long: a row of each accelerator, and its state in ps."""
    machine.agent.report()
    past = datetime.timedelta(minutes=minutes)
    for spell in machine.agent._idling._spells.values():
        spell.began -= past.total_seconds()
    with machine.service.database.writer() as session:
        for arq in session.query(model.ARQ):
            arq.held_since -= past
    machine.agent.report()
    machine.service.manager.healer.heal()
    return machine.accelerators(), [ps._states(each) for each in machine.accelerators()]


@pytest.mark.parametrize('action', ['nothing', 'tell', 'release'])
def test_scenario_13_an_idle_lease_is_shown_and_nothing_is_killed(box, monkeypatch, action):
    """The owner is told; what a process has open is not released either."""
    monkeypatch.setattr(boxes.Npus, 'utilization', 0)
    monkeypatch.setattr(pids, 'FIRST', os.readlink('/proc/self/ns/pid')[5:-1])
    chosen = {'conductor__idle_leases': action, 'conductor__idle_grace': 0}
    machine = box('advisory', **chosen)
    with test_leases.opened(machine):
        words = ['run', '--', 'sh', '-c', 'exec 3<>"$1"; echo; read word', 'sh', *machine.nodes[:1]]
        made = machine.as_(JANE, *words)
        made.stdout.readline()
        lease = machine.lease(made.pid)
        assert machine.node_of(lease) == machine.nodes[0]
        rows, states = idle_for(machine, 29)
        assert (states, rows[0]['idle_since']) == (['held', 'free', 'free', 'free'], None)
        rows, states = idle_for(machine, 2)
        assert states == ['idle 31 min', 'free', 'free', 'free']
        assert [each['idle_since'] is None for each in rows] == [False, True, True, True]
        allocation = machine.service.api.get(f'/v2/allocations/{lease["uuid"]}').json
        assert (allocation['state'], made.poll()) == ('active', None)
        told = action != 'nothing'
        assert ('It has done no work since' in (allocation['reason'] or '')) == told
        # The process goes on to live, and has let go of the device.
        monkeypatch.setattr(processes, 'uses', lambda nodes: [])
        idle_for(machine, 2)
        machine.service.manager.healer.heal()
        allocation = machine.service.api.get(f'/v2/allocations/{lease["uuid"]}').json
        assert (allocation['state'] == 'released') == (action == 'release')
        assert made.poll() is None


@pytest.mark.parametrize('action', ['nothing', 'tell', 'release'])
def test_scenario_13_the_owner_is_told_once(box, monkeypatch, action):
    """On the terminal of a process of the lease."""
    monkeypatch.setattr(boxes.Npus, 'utilization', 0)
    machine = box('advisory', conductor__idle_leases=action)
    bob = test_terminals.Terminal(BOB, BOB)
    try:
        with test_leases.opened(machine):
            words = ['alloc', '--pid', str(bob.process.pid), '--name', 'notebook']
            assert machine.says(BOB, *words)[0] == 0
        idle_for(machine, 31)
        for _ in range(3):
            assert machine.served._compare()
            machine.agent.report()
        said = bob.read() if action != 'nothing' else ''
        assert bob.read(0) == ''
        told = rf'cyborg-lite: lease notebook of process {bob.process.pid} \(python.*\): It has '
        then = ', and is released at .* unless it is used' if action == 'release' else '[^,]*'
        told += rf'done no work since \S+{then}\. End it'
        assert bool(re.search(told, said)) == (action != 'nothing'), said
        assert ('or "cyborg-lite release notebook".' in said) == (action != 'nothing')
    finally:
        bob.close()


@pytest.mark.parametrize('how', ['deleted', 'over'])
def test_what_a_process_still_has_open_is_given_to_nobody(box, how):
    """Its lease ended otherwise than with it: the card is free once the agent has seen it closed.

    The agent may not know yet that the lease has ended, or anything of leases.
    """
    machine = box('advisory')
    api = machine.service.api
    machine.until(lambda: machine.served.compared)
    with test_leases.opened(machine):
        shell, lease = hold(machine, JANE)
        number = machine.nodes.index(machine.node_of(lease))
        user, said = machine.opening(JANE, machine.nodes[number])
        assert (said, rogues(machine)) == ('opened', {})
        wanted = {'groups': [{'resources': {'CUSTOM_NPU': 3}}]}
        others = f'/v2/allocations/{api.post("/v2/allocations", wanted).json["uuid"]}'
        wanted = {'groups': [{'resources': {'CUSTOM_NPU': 1}}], 'queue': True}
        waits = f'/v2/allocations/{api.post("/v2/allocations", wanted).json["uuid"]}'
        # No round of the agent's own between here and there.
        with unittest.mock.patch.object(machine.served, '_compare', return_value=False) as compare:
            if how == 'deleted':
                assert api.delete(f'/v2/allocations/{lease["uuid"]}').status_int == 204
            else:
                with machine.service.database.writer() as session:
                    [held] = session.query(model.Allocation).filter_by(uuid=lease['uuid'])
                    held.lease_ends_at = timeutils.utcnow()
                machine.service.manager.healer.heal()
            machine.service.settle()
            use = machine.accelerators()[number]['rogue']
            assert use == f'whoever had lease {lease["uuid"]}, until its host has looked'
            other, _ = machine.opening(BOB, machine.nodes[number])
            assert rogues(machine) == {number: use}
            other.kill()
            other.wait()
            assert rogues(machine) == {number: use}
            anew = {'leases': list, 'compared': lambda: False}
            with unittest.mock.patch.multiple(machine.agent, **anew):
                assert rogues(machine) == {number: use}
        assert compare.call_count < 10
        assert machine.served._compare()
        [shown] = [rogues(machine)[number]]
        assert str(user.pid) in shown
        machine.service.settle()
        assert api.get(waits).json['state'] == 'queued'
        for each in (user, shell):
            each.kill()
            each.wait()
        assert rogues(machine) == {}
        machine.service.settle()
        assert api.get(waits).json['state'] == 'active'
        for each in (others, waits):
            assert api.delete(each).status_int == 204


def test_a_mark_of_another_user_does_not_hide_a_rogue(box):
    """The environment of a process is its own choice."""
    machine = box('advisory')
    machine.until(lambda: machine.served.compared)
    with test_leases.opened(machine):
        _, lease = hold(machine, JANE)
        mine = machine.node_of(lease)
        free = next(each for each in machine.nodes if each != mine)
        machine.env = {'CYBORG_ALLOCATION': lease['uuid']}
        for uid, found in ((JANE, []), (BOB, [machine.nodes.index(free)])):
            made, _ = machine.opening(uid, free)
            assert [*rogues(machine)] == found
            made.kill()
            made.wait()

# SPDX-License-Identifier: Apache-2.0
"""The guide for one shared machine, from ``pip install`` to what the kernel refuses.

What it says to type is typed on a machine with systemd, by the users that it names.  The machine
has four cards: device nodes, which a driver of a package of its own finds.  What no machine is
needed for is typed in tests/functional/test_shared_machine.py.
"""

import contextlib
import re
import shlex

import pytest

from tests import pages
from tests.functional import test_shared_machine as guide
from tests.machine import conftest

UNIT = 'cyborg-lite-up'
#: The driver of the machine's cards is no part of the service.
DRIVERS = '[agent]\nenabled_drivers = lab_npu\n'
#: What the users train with.
TRAIN = 'import os\nprint("devices", os.environ["ASCEND_RT_VISIBLE_DEVICES"])\n'
#: Opens a node, and prints whether that worked.
OPENS = 'python3 -c "import sys; open(sys.argv[1])" {node} && echo opened || echo refused'
#: Prints a line when a lease holds its device, and keeps it until the input ends.
HOLD = 'sh -c "echo begun; read line"'


@pytest.fixture(scope='module')
def blocks():
    return dict(zip(guide.BLOCKS, pages.blocks(guide.PAGE), strict=True))


@pytest.fixture(scope='module')
def first_look(machine, blocks):
    """What Ann sees before there is a unit: she has installed it, and looks for ten seconds."""
    machine.says(blocks['python3 -m venv'].text)
    machine.says('/opt/cyborg_lite/bin/pip install --quiet ./tests/machine/cards')
    looked = {}
    for words in blocks['cyborg-lite up --host atlas-800t-a2\n'].commands:
        with machine.begun(shlex.join(words), 'root') as up:
            shown = up.until('ask at')
            rest, status = up.interrupted()
            looked[shlex.join(words)] = shown + rest, status
    return looked


@pytest.fixture(scope='module')
def service(machine, blocks, first_look):
    """The service as the guide has Ann start it, and the people whom she lets in."""
    configure(machine, blocks)
    machine.says(blocks['systemctl enable'].text)
    machine.says(blocks['usermod'].text)
    machine.says('ln -s /usr/bin/python3 /usr/local/bin/python')
    for user in conftest.USERS:
        machine.says(f'echo {shlex.quote(TRAIN)} > train.py', user)
    return machine


def configure(machine, blocks, *more):
    """Write the files of the guide, with further blocks of it."""
    names = 'socket_group', 'user_projects', *more
    text = '\n'.join([*(blocks[name].text for name in names), DRIVERS])
    machine.says(f'printf %s {shlex.quote(text)} > shared.conf')
    policy = blocks['cyborg:accelerator:get_all'].text
    machine.says(f'printf %s {shlex.quote(policy)} > policy.yaml')


@pytest.fixture
def limited(service, blocks):
    """With the quotas of the guide, which this takes away again."""
    yield service.says(blocks['quota set'].text)
    export = shlex.join(blocks['quota set'].commands[0])
    for project in ('vision', 'lab'):
        service.says(f'{export}\nopenstack accelerator quota delete {project}')


@contextlib.contextmanager
def enforced(service, blocks):
    """With nodes that the kernel keeps from others, until the administrator has put them back."""
    installed = blocks['systemctl enable'].commands[2]
    for more in (['device_access = acl'], []):
        configure(service, blocks, *more)
        service.says(f'{shlex.join(installed)}\nsystemctl restart {UNIT}')
        if more:
            yield


def test_the_first_look_says_what_there_is_and_ends(first_look):
    [(own, _), (described, _)] = first_look.values()
    assert 'No accelerator was found.' in own and 'lab_npu is installed but not enabled' in own
    assert described.count('Ascend 910B3') == 8
    assert [status for _, status in first_look.values()] == [0, 0]


def test_systemd_has_started_it_when_the_command_ends(service):
    """It shows the table in the journal, and the sockets are there at once."""
    assert service.says(f'systemctl is-active {UNIT}').strip() == 'active'
    assert service.says(f'journalctl --no-pager --unit {UNIT}').count('Lab NPU') >= 4
    service.says(f'systemctl restart {UNIT}\ntest -S /run/cyborg-lite/agent.sock')


def test_people_work_side_by_side(service, blocks):
    done = service.says(blocks['run -n 2'].text, 'jane')
    assert re.search(r'^devices \d,\d$', done, flags=re.M), done
    with service.begun(f'cyborg-lite run -n 3 -- {HOLD}', 'bob') as bob:
        bob.until('begun')
        shown = service.says(blocks['cyborg-lite ps\n'].text, 'chen')
        assert len(re.findall(r' held .*\bbob\b.*\bsh$', shown, flags=re.M)) == 3, shown
        refused = service.run('cyborg-lite run -n 2 --nonblock -- true', 'chen')
        assert refused.returncode == 1 and 'bob' in refused.stdout, refused


def test_who_is_not_let_in_is_told(service):
    done = service.run('cyborg-lite run -- true', 'eve')
    assert done.returncode != 0
    assert 'accelerators' in done.stdout and 'group' in done.stdout, done.stdout


def test_limits_hold_for_a_project(service, blocks, limited):
    assert re.search(r'vision\b.*6', limited) and re.search(r'lab\b.*2', limited)
    done = service.run('cyborg-lite run -n 3 --nonblock -- true', 'lab')
    assert done.returncode == 1 and 'limit' in done.stdout, done.stdout
    assert service.run('cyborg-lite run -n 2 --nonblock -- true', 'lab').returncode == 0
    assert '"lab"' in service.says(blocks['/v2/quotas/lab'].text)


def test_a_lease_outlives_a_restart_by_systemd(service):
    with service.begun(f'cyborg-lite run -n 1 -- {HOLD}', 'jane') as jane:
        jane.until('begun')
        service.says(f'systemctl restart {UNIT}')
        shown = service.says('cyborg-lite ps', 'jane')
        assert len(re.findall(r' held .*\bjane\b.*\bsh$', shown, flags=re.M)) == 1, shown


def test_the_kernel_refuses_what_is_not_leased(service, blocks):
    with enforced(service, blocks):
        until_refused(service, 'jane', OPENS.format(node='/dev/lab0'))
        opens = OPENS.format(node='/dev/lab$ASCEND_RT_VISIBLE_DEVICES')
        script = f'{opens}; echo lab$ASCEND_RT_VISIBLE_DEVICES; read line'
        with service.begun(f"cyborg-lite run -n 1 -- sh -c '{script}'", 'jane') as jane:
            said = jane.until('lab')
            assert 'access is enforced' in said and 'opened' in said, said
            node = OPENS.format(node=f'/dev/{said.split()[-1]}')
            assert service.says(node, 'chen').split()[-1] == 'refused'
        until_refused(service, 'jane', node)


def test_nodes_are_as_found_once_it_is_advisory(service, blocks):
    with enforced(service, blocks):
        until_refused(service, 'jane', OPENS.format(node='/dev/lab0'))
    shown = service.says('stat --format %a /dev/lab*; getfacl -p /dev/lab*')
    assert shown.split()[:4] == ['666'] * 4 and 'user:' not in shown.replace('user::', '')


def test_it_is_there_after_a_reboot(service):
    """Of the leases none is left: their processes have ended."""
    with service.begun(f'cyborg-lite run -n 2 -- {HOLD}', 'bob') as bob:
        bob.until('begun')
        service.stop()
        service.start()
    assert service.says(f'systemctl is-active {UNIT}').strip() == 'active'
    conftest.until(lambda: service.says('cyborg-lite ps', 'jane').count(' free') == 4)


def until_refused(machine, user, node):
    conftest.until(lambda: machine.says(node, user).split()[-1] == 'refused')

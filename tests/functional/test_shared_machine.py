# SPDX-License-Identifier: Apache-2.0
"""The guide for one shared machine, block by block: what it says to type is typed.

It is followed on a host that is described, by one user: test_shared_box.py and test_peers.py have
several. What needs systemd or changes the machine is only read here: tests/machine has a machine.
"""

import configparser
import contextlib
import grp
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import conf as options
from cyborg_lite.cmd import main
from tests import pages
from tests.unit.cmd import process

PAGE = pages.ROOT / 'doc/source/user/shared_machine.rst'
UNIT = pages.ROOT / 'etc/systemd/cyborg-lite-up.service'
#: By what each block is known, in order.
BLOCKS = [
    'python3 -m venv',
    'cyborg-lite up --host atlas-800t-a2\n',
    'socket_group',
    'cyborg:accelerator:get_all',
    'systemctl enable',
    'cyborg-lite up --socket-only',
    'usermod',
    'user_projects',
    'quota set',
    '/v2/quotas/lab',
    'run -n 2',
    '{podman}',
    '--wait 30m',
    'waiting at place 1',
    'cyborg-lite ps\n',
    '/v2/allocations\n',
    'cyborg-lite release notebook',
    'CYBORG_LITE_AS=li',
    'cyborg-lite reserve',
    'device_access = acl',
    'idle_leases = tell',
    'wait=3600',
    'url=url',
]
TRAIN = """
import json, os
print('devices', *(each['name'] for each in json.loads(os.environ['CYBORG_DEVICES'])))
"""
#: A command that may not be installed: another one, which prints its arguments, takes its place.
ABSENT = 'podman'


@pytest.fixture(scope='module')
def blocks():
    return dict(zip(BLOCKS, pages.blocks(PAGE), strict=True))


class Lab:
    """A directory in place of the root of a file system, and a shell there."""

    def __init__(self, root):
        self.root = root
        self.run = root / 'run/cyborg-lite'
        self._environ = {
            'PATH': f'{root / "bin"}:{process.COMMAND.parent}:{os.environ["PATH"]}',
            client.VARIABLE: str(self.run / client.SOCKET),
            client.URL: f'{client.UNIX}{self.run / client.API_SOCKET}',
        }
        (root / 'bin').mkdir()
        (root / 'bin' / 'python').symlink_to(sys.executable)
        (root / 'bin' / ABSENT).write_text('#!/bin/sh\necho "$@"\n')
        (root / 'bin' / ABSENT).chmod(0o755)
        (root / 'train.py').write_text(TRAIN)

    def moved(self, text):
        """A text whose paths are those of this lab."""
        return re.sub('/(run/cyborg-lite|etc/(?:cyborg_lite|systemd))', rf'{self.root}/\1', text)

    def types(self, block):
        """What a shell prints for a block."""
        return process.shell(f'exec 2>&1\n{self.moved(block.text)}', **self._environ)

    @contextlib.contextmanager
    def begun(self, *words):
        """A command that has not ended."""
        environ = process.ENVIRONMENT | self._environ
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environ) as made:
            try:
                yield made
            finally:
                made.kill()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


@pytest.fixture
def service(lab, blocks):
    """The service, started as the guide says; its group is that of the user of the tests."""
    own = grp.getgrgid(os.getgid()).gr_name
    names = 'socket_group', 'user_projects', 'idle_leases = tell'
    configuration = lab.moved('\n'.join(blocks[name].text for name in names))
    (lab.root / 'shared.conf').write_text(configuration.replace('accelerators', own))
    (lab.root / 'policy.yaml').write_text(blocks['cyborg:accelerator:get_all'].text)
    (lab.root / 'etc/systemd').mkdir(parents=True)
    (lab.root / 'etc/systemd/system').mkdir()
    shutil.copy(UNIT, lab.root / 'etc/systemd')
    files = [words for words in blocks['systemctl enable'].commands if words[0] == 'install']
    for words in [*files, blocks['cyborg-lite up --socket-only'].commands[0]]:
        subprocess.run([lab.moved(word) for word in words], check=True)
    [_, up] = blocks['cyborg-lite up --socket-only'].commands
    given = [lab.moved(word) for word in up[2:]]
    with process.Up(lab.root, *given, '--host', 'atlas-800t-a2') as made:
        yield made


def test_the_blocks_are_those_that_are_known(blocks):
    assert [name for name, block in blocks.items() if name not in block.text] == []


def test_from_limits_to_a_reservation(blocks, lab, service):
    """In the order of the page."""
    assert len(service.rows()) == 8
    assert service.url == f'{client.UNIX}{lab.run / client.API_SOCKET}'
    shown = lab.types(blocks['quota set'])
    assert re.search(r'lab\b.*CUSTOM_NPU.*2', shown)
    assert re.search(r'vision\b.*CUSTOM_NPU.*6', shown)
    found = json.loads(lab.types(blocks['/v2/quotas/lab']))
    limits = {each['resource']: each['limit'] for each in found['quotas']}
    assert (found['project_id'], limits['CUSTOM_NPU']) == ('lab', 2)

    shown = lab.types(blocks['run -n 2'])
    assert re.search(r'2 of host atlas-800t-a2: .*access is advisory', shown)
    assert re.search(r'^devices (\d+) (?!\1)\d+$', shown, flags=re.M)
    assert re.search(r'^run .*--device.* docker.io/library/busybox ls /dev$',
                     lab.types(blocks['{podman}']), flags=re.M)  # fmt: skip

    wait_in_line(blocks, lab)
    assert lab.types(blocks['cyborg-lite ps\n']).count('Ascend 910B3') == 8
    assert json.loads(lab.types(blocks['/v2/allocations\n']))['allocations']

    assert 'is released' in lab.types(blocks['cyborg-lite release notebook'])
    assert lab.types(blocks['CYBORG_LITE_AS=li']).count('devices ') == 1
    shown = lab.types(blocks['cyborg-lite reserve'])
    assert re.search(r'09:00 \S+  \S+ 12:00 \S+  4  \S+  reserved  morning\n', shown)
    assert shown.endswith('is released\n')


def wait_in_line(blocks, lab):
    """Another command has six of eight cards until this one has said who has them."""
    [words] = blocks['--wait 30m'].commands
    user = accounts.name(os.getuid())
    with lab.begun('cyborg-lite', 'run', '-n', '6', '--', 'sleep', '600') as holder:
        assert '6 of host' in holder.stderr.readline()
        with lab.begun(*words) as waiting:
            said = blocks['waiting at place 1'].text
            said = said.replace('jane 4711 python', f'{user} {holder.pid} sleep')
            assert waiting.stderr.readline() == said
            holder.kill()
            assert '4 of host' in waiting.stderr.readline()
            assert waiting.wait(process.BOUND) == 0


def test_a_program_that_leases_for_itself(blocks, lab, service, monkeypatch):
    monkeypatch.setenv(client.VARIABLE, str(lab.run / client.SOCKET))
    names = {}
    exec(blocks['wait=3600'].text, names)
    assert len(names['train']()) == 2


def test_a_program_that_leases_over_http(blocks, lab, service, monkeypatch):
    monkeypatch.setenv(client.URL, f'{client.UNIX}{lab.run / client.API_SOCKET}')
    names = {}
    exec(blocks['url=url'].text, names)
    assert len(names['train_in_a_container']()) == 2


def test_the_unit_starts_what_the_guide_installs(blocks):
    """It is started in tests/machine; in tests/integration/test_systemd.py systemd verifies it."""
    [_, _, configured, unit, reload, enable] = blocks['systemctl enable'].commands
    assert (unit[-2], unit[-1]) == (f'etc/systemd/{UNIT.name}', '/etc/systemd/system/')
    assert (reload[1:], enable[1:]) == (['daemon-reload'], ['enable', '--now', UNIT.stem])
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str
    parsed.read_string(UNIT.read_text())
    command, *words = parsed['Service']['ExecStart'].split()
    # The environment is made here, and the commands are those of its bin.
    [environment, install, link] = blocks['python3 -m venv'].commands
    assert environment[-1] == str(pathlib.Path(command).parents[1])
    assert pathlib.Path(install[0]).parent == pathlib.Path(command).parent
    assert link[:2] == ['ln', '-s']
    assert [pathlib.Path(each).name for each in link[2:-1]] == ['cyborg-lite', 'openstack']
    found = main.parser().parse_args(words)
    assert found.socket_only
    [file] = found.config_file
    assert file == f'{configured[-1]}{configured[3]}'
    # The directories of the sockets and of the policy are those of the configuration.
    [socket] = re.findall('^socket = (.*agent.sock)$', blocks['socket_group'].text, flags=re.M)
    directory = pathlib.Path('/run', parsed['Service']['RuntimeDirectory'])
    assert pathlib.Path(socket).parent == directory
    assert f'policy_file = {configured[-1]}{configured[4]}\n' in blocks['socket_group'].text


@pytest.mark.skipif(os.geteuid() != 0, reason='only root may change users')
def test_people_are_let_in(blocks, tmp_path):
    """The files of users are others than those of the machine."""
    etc = tmp_path / 'etc'
    etc.mkdir()
    users = ('jane', 'bob', 'chen', 'lab')
    for name in ('group', 'gshadow', 'shadow'):
        (etc / name).touch()
    (etc / 'passwd').write_text(
        ''.join(f'{name}:x:{n}:{n}::/:/bin/sh\n' for n, name in enumerate(users, 3000))
    )
    for words in [blocks['systemctl enable'].commands[0], *blocks['usermod'].commands]:
        path = shutil.which(words[0], path=f'{os.environ["PATH"]}:/usr/sbin:/sbin')
        subprocess.run([path, '--prefix', str(tmp_path), *words[1:]], check=True)
    [group] = (etc / 'group').read_text().splitlines()
    assert group.split(':')[0] == 'accelerators'
    assert group.split(':')[3].split(',') == [*users]


def test_the_kernel_can_be_told_to_refuse_others(blocks, tmp_path):
    """The lines are valid: test_shared_box.py and tests/machine have device nodes."""
    (tmp_path / 'shared.conf').write_text(blocks['device_access = acl'].text)
    assert options.load(files=[str(tmp_path / 'shared.conf')]).agent.device_access == 'acl'


def test_the_first_look_is_understood(blocks):
    for _, *words in blocks['cyborg-lite up --host atlas-800t-a2\n'].commands:
        main.parser().parse_args(words)

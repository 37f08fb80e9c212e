# SPDX-License-Identifier: Apache-2.0
"""A real container of podman gets only the devices of an allocation."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import stat
import subprocess
import tarfile
import tempfile
import uuid

import pytest

from cyborg_lite import delivery
from cyborg_lite.agent import processes
from cyborg_lite.agent import runtimes
from cyborg_lite.delivery import cdi
from cyborg_lite.delivery import views
from tests import devices
from tests.functional import boxes

#: Numbers that no card of this machine has.
MINE, OTHERS = 7101, 7102
#: The host's programs instead of an image, and no changes of limits.
OPTIONS = (
    'run', '--rm', '--network=none', '--ulimit=nofile=1024:1024', '--ulimit=nproc=1024:1024',
    '--volume=/usr:/usr:ro',
)  # fmt: skip
STORAGE = ('--storage-driver=vfs', '--cgroup-manager=cgroupfs', '--runtime=runc')


@pytest.fixture
def nodes():
    """Two nodes that look like cards, and are /dev/null."""
    paths = [f'/dev/davinci{number}' for number in (MINE, OTHERS)]
    for path in paths:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    yield
    for path in paths:
        os.unlink(path)


class Podman:
    """Podman with a state of its own, and a root file system."""

    def __init__(self, place: pathlib.Path, state: str) -> None:
        self.root, self.storage, self.state = place / 'root', place / 'storage', pathlib.Path(state)
        for name in ('usr', 'proc', 'sys', 'dev', 'etc', 'run', 'tmp'):
            (self.root / name).mkdir(parents=True)
        for name in ('bin', 'lib', 'lib64'):
            (self.root / name).symlink_to(f'usr/{name}')

    def command(self, *words: str) -> list[str]:
        places = f'--root={self.storage}', f'--runroot={self.state}'
        return ['podman', *places, *STORAGE, *words]

    def __call__(self, option: str, line: str) -> list[str]:
        """The command that runs a shell line in a container with this option."""
        return self.command(*OPTIONS, option, '--rootfs', str(self.root), 'sh', '-c', line)


@pytest.fixture
def podman(tmp_path):
    if shutil.which('podman') is None or os.geteuid():
        pytest.skip('podman is not installed, or the user is not root: see bindep.txt')
    # podman refuses a long path for its state.
    with tempfile.TemporaryDirectory(prefix='podman') as state:
        yield Podman(tmp_path, state)


def test_a_container_is_named_by_what_podman_wrote(podman, tmp_path, monkeypatch):
    """Of a root file system, which has no name of an image, and of an image."""
    monkeypatch.setattr(runtimes, 'PODMAN', (podman.storage, podman.state))
    image = 'localhost/team/jane:1'
    archive = tmp_path / 'root.tar'
    with tarfile.open(archive, 'w') as file:
        file.add(podman.root, '.')
    assert run(podman.command('import', str(archive), image)).returncode == 0
    root = '--rootfs', str(podman.root)
    for source, names in (root, ['by-root']), ((image,), ['by-image', 'jane:1']):
        line = f'echo ready; read word; : {uuid.uuid4()}'
        options = *OPTIONS, '--interactive', f'--name={names[0]}', *source, 'sh', '-c', line
        with subprocess.Popen(
            podman.command(*options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as made:
            try:
                assert made.stdout.readline() == 'ready\n'
                assert [*filter(None, runtimes.names(container_of(line)))] == names
            finally:
                made.communicate('\n', timeout=60)


def container_of(line: str) -> str | None:
    """The id of the container in which a shell carries out a line."""
    for place in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            if place.read_text() == f'sh\0-c\0{line}\0':
                return processes.container(int(place.parent.name))
    return None


@pytest.fixture
def box(podman, database_url, tmp_path):
    """A machine with four devices, whose agent writes the CDI files that podman reads."""
    with devices.directory() as place, boxes.patched(place):
        options = {'agent__device_access': 'advisory', 'agent__cdi_directory': str(cdi.DIRECTORY)}
        machine = boxes.Box(database_url, tmp_path, place, **options)
        yield machine
        machine.clear()
        machine.stop()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def assert_unknown(podman, name: str) -> None:
    """No container starts with the CDI name of a device that has no file."""
    gone = run(podman(f'--device={name}', 'echo started'))
    assert (gone.returncode, gone.stdout) == (126, '')
    assert 'unresolvable CDI devices' in gone.stderr


def test_a_container_sees_its_nodes_and_no_other(nodes, podman):
    allocation = str(uuid.uuid4())
    card = {
        'uuid': str(uuid.uuid4()), 'host': 'here', 'type': 'AICHIP', 'model': 'Ascend 910B3',
        'address': '0000:c1:00.0', 'driver': 'huawei_ascend', 'form': 'whole',
        'ids': {'chips': [{'chip_id': 0, 'logic_id': MINE}]},
    }  # fmt: skip
    document = delivery.document(allocation, 'here', [card])
    try:
        name = cdi.write(cdi.DIRECTORY, document)
        line = (
            'ls /dev | grep davinci; echo $CYBORG_ALLOCATION; echo $ASCEND_RT_VISIBLE_DEVICES; '
            f'echo x > /dev/davinci{MINE} && echo written; '
            f'mknod /dev/davinci{OTHERS} c 1 9 || echo refused'
        )
        seen = run(podman(f'--device={name}', line))
    finally:
        cdi.remove(cdi.DIRECTORY, allocation)
    assert seen.stdout.splitlines() == [
        f'davinci{MINE}', allocation, '', 'written', 'refused',
    ], seen.stderr  # fmt: skip
    # After the release of the allocation no container starts with its name.
    assert_unknown(podman, name)


@pytest.mark.parametrize('by_name', [False, True], ids=['options', 'CDI name'])
def test_a_container_of_a_lease_sees_its_nodes_and_no_other(podman, box, by_name):
    """``cyborg-lite run -- podman run {podman} IMAGE``, and by the file that the agent writes."""
    place = os.path.dirname(box.nodes[0])
    line = (
        f'ls {place}; head -c 4 {place}/npu1 | wc -c; echo $CYBORG_ALLOCATION; '
        'mknod /tmp/npu2 c 1 8 || echo refused'
    )
    if by_name:
        holder = box.hold(2)
        lease = box.lease(holder.pid)['uuid']
        made = run(podman(f'--device={views.KIND}={lease}', line))
        status, out, err = made.returncode, made.stdout, made.stderr
        holder.kill()
    else:
        status, out, err = box.run('run', '-n', '2', '--', *podman('{podman}', line))
    *seen, allocation, refused = out.splitlines()
    assert (status, seen, refused) == (0, ['manager', 'npu0', 'npu1', '4'], 'refused'), err
    box.until(lambda: not box.held())
    assert_unknown(podman, f'{views.KIND}={allocation}')

# SPDX-License-Identifier: Apache-2.0
"""A real container of podman gets only the devices of an allocation."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import uuid

import pytest

from cyborg_lite import delivery
from cyborg_lite.delivery import cdi

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


@pytest.fixture
def podman(tmp_path):
    """Run a shell line in a container with this device."""
    if shutil.which('podman') is None or os.geteuid():
        pytest.skip('podman is not installed, or the user is not root: see bindep.txt')
    root = tmp_path / 'root'
    for name in ('usr', 'proc', 'sys', 'dev', 'etc', 'run', 'tmp'):
        (root / name).mkdir(parents=True)
    for name in ('bin', 'lib', 'lib64'):
        (root / name).symlink_to(f'usr/{name}')
    # podman refuses a long path for its state.
    state = tempfile.TemporaryDirectory(prefix='podman')
    places = (f'--root={tmp_path / "storage"}', f'--runroot={state.name}')

    def run(device: str, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ['podman', *places, *STORAGE, *OPTIONS, f'--device={device}', '--rootfs', str(root),
             'sh', '-c', line],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    with state:
        yield run


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
        seen = podman(name, line)
    finally:
        cdi.remove(cdi.DIRECTORY, allocation)
    assert seen.stdout.splitlines() == [
        f'davinci{MINE}', allocation, '', 'written', 'refused',
    ], seen.stderr  # fmt: skip
    # After the release of the allocation no container starts with its name.
    gone = podman(name, 'echo started')
    assert (gone.returncode, gone.stdout) == (126, '')
    assert 'unresolvable CDI devices' in gone.stderr

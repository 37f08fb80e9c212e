# SPDX-License-Identifier: Apache-2.0
"""Hosts, their tools, and the search for hosts."""

from __future__ import annotations

import io
import os
import pathlib
import stat
import tarfile
import time

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.driver import sysfs

MINIMAL = "functions: [{id: '19e5:d802', class: '120000', at: {0: ['0000:01:00.0']}}]\n"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a tool on PATH: a function of its script."""
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')

    def write(script: str, name: str = 'npu-smi') -> pathlib.Path:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def local():
    return driver.Host.local('here')


def test_output(tool, local):
    tool('echo "$@"; echo "$LC_ALL"; echo aside >&2; cat')
    assert local.run('npu-smi', 'info', '-m', '$(id)') == 'info -m $(id)\nC\n'
    assert local.outputs == {('npu-smi', 'info', '-m', '$(id)'): 'info -m $(id)\nC\n'}


def test_no_tool(local):
    assert local.run('no-such-tool', 'info') is None


def test_a_tool_that_cannot_be_run(tool, local):
    path = tool('')
    path.write_bytes(b'\x7fELF junk')
    with pytest.raises(driver.ToolError, match='npu-smi info: cannot be started'):
        local.run('npu-smi', 'info')


def test_a_tool_that_fails(tool, local):
    tool('echo no device >&2; exit 3')
    with pytest.raises(driver.ToolError, match="npu-smi info: exit status 3: 'no device'"):
        local.run('npu-smi', 'info')


def test_a_tool_that_hangs_is_killed_with_what_it_started(tool, local, tmp_path):
    tool(f'sleep 300 & echo $! > {tmp_path}/child; wait')
    before = time.monotonic()
    with pytest.raises(driver.ToolError, match=r'no answer within 0\.5 s'):
        local.run('npu-smi', timeout=0.5)
    assert time.monotonic() - before < 5
    assert not is_running(int((tmp_path / 'child').read_text()))


def is_running(pid: int) -> bool:
    for _ in range(50):
        try:
            state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
        except FileNotFoundError:
            return False
        if state == 'Z':
            return False
        time.sleep(0.1)
    return True


def test_a_tool_that_closes_its_output_and_hangs(tool, local):
    tool('exec >&- 2>&-; sleep 300')
    with pytest.raises(driver.ToolError, match='no answer'):
        local.run('npu-smi', timeout=0.5)


@pytest.mark.parametrize('stream', ['1', '2'])
def test_a_tool_that_never_stops_talking(tool, local, stream):
    tool(f'yes >&{stream}')
    with pytest.raises(driver.ToolError, match='more than 1048576 bytes'):
        local.run('npu-smi')


def test_a_tool_that_prints_garbage(tool, local):
    tool(r'printf "\377\000\376|"')
    assert local.run('npu-smi') == '\ufffd\x00\ufffd|'


def test_a_recorded_host_runs_nothing(tool, tmp_path):
    tool('echo real')
    host = driver.Host('copy', tmp_path / 'root')
    assert host.run('npu-smi', 'info') is None
    (tmp_path / 'root/tools/npu-smi').mkdir(parents=True)
    (tmp_path / 'root/tools/npu-smi/info_-m.txt').write_bytes(b'recorded\xff')
    (tmp_path / 'root/tools/npu-smi/default.txt').symlink_to('/etc/passwd')
    assert host.run('npu-smi', 'info', '-m') == 'recorded\ufffd'
    assert host.run('npu-smi') is None


def test_a_library_is_asked_on_its_machine_alone(tmp_path):
    """On other machines the answer of the recording is used."""
    (tmp_path / 'sys/bus/pci/devices').mkdir(parents=True)
    host = driver.Host('here', tmp_path, recorded=False)
    assert host.ask('acmelib', 'cards', lambda: None) is None
    assert host.ask('acmelib', 'cards', lambda: {'0': [1, 'B7', None]}) == {'0': [1, 'B7', None]}
    recording.record(host, tmp_path / 'r.tar.gz')
    copy = hosts.find(str(tmp_path / 'r.tar.gz'), tmp_path / 'work')
    assert copy.ask('acmelib', 'cards', lambda: 1 / 0) == {'0': [1, 'B7', None]}
    assert copy.ask('acmelib', 'others', lambda: 1 / 0) is None


@pytest.mark.parametrize('text', ['', '{', '\xff', '[' * 100_000])
def test_an_invalid_answer_of_a_library(tmp_path, text):
    place = tmp_path / 'tools/acmelib/cards.txt'
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert driver.Host('copy', tmp_path).ask('acmelib', 'cards', lambda: 1 / 0) is None


BOARD = '4C4C4544-0038-5A10-8050-B7C04F4D3233'
SYSTEM = 'd1b2f0a49c3e4f7f8a6b5c4d3e2f1a0b'


@pytest.fixture
def machine(tmp_path):
    """The machine identity of a host with these two files; None for an absent file."""

    def show(board: str | bytes | None, system: str | bytes | None) -> str | None:
        files = {'sys/class/dmi/id/product_uuid': board, 'etc/machine-id': system}
        for name, content in files.items():
            if content is not None:
                path = tmp_path / name
                path.parent.mkdir(parents=True)
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return hosts.find(str(tmp_path), tmp_path / 'work').machine

    (tmp_path / 'sys').mkdir()
    return show


def test_machine_is_its_mainboard(machine):
    assert machine(f'{BOARD}\n', f'{SYSTEM}\n') == BOARD.lower()


@pytest.mark.parametrize(
    'board',
    [
        None,
        '',
        'Not Settable',
        '00000000-0000-0000-0000-000000000000',
        'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF',
        'FEFEFEFE-FEFE-FEFE-FEFE-FEFEFEFEFEFE',
        '03000200-0400-0500-0006-000700080009',
        '00020003-0004-0005-0006-000700080009',
        BOARD.replace('-', ''),
        f'{BOARD}\n{BOARD}',
        b'\xff\x00' * 5000,
    ],
)
def test_machine_without_a_mainboard_uuid_uses_its_machine_id(machine, board):
    assert machine(board, f'{SYSTEM.upper()}\n') == SYSTEM


@pytest.mark.parametrize('system', [None, '', 'uninitialized', '0' * 32, SYSTEM[1:], b'\xff' * 32])
def test_machine_without_an_identity(machine, system):
    assert machine(None, system) is None


def test_machine_of_links_that_lead_out(tmp_path):
    (tmp_path / 'root/etc').mkdir(parents=True)
    (tmp_path / 'elsewhere').write_text(SYSTEM)
    (tmp_path / 'root/etc/machine-id').symlink_to(tmp_path / 'elsewhere')
    assert driver.Host('copy', tmp_path / 'root').machine is None


def test_described_host_is_no_machine(tmp_path):
    assert hosts.find('hgx-8gpu', tmp_path).machine is None


def test_machine_that_was_packed(tmp_path):
    with tarfile.open(tmp_path / 'node.tar.gz', 'w:gz') as tar:
        for name, content in {'node/etc/machine-id': SYSTEM, 'node/sys/x': ''}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    assert hosts.find(str(tmp_path / 'node.tar.gz'), tmp_path / 'work').machine == SYSTEM


def test_record_leaves_the_machine_out(tmp_path, machine):
    assert machine(BOARD, SYSTEM)
    recording.record(driver.Host('node', tmp_path), tmp_path / 'node.tar.gz')
    assert hosts.find(str(tmp_path / 'node.tar.gz'), tmp_path / 'work').machine is None


def test_shipped_hosts_are_found_by_name(tmp_path):
    assert {'atlas-300i-duo', 'atlas-800t-a2', 'hgx-8gpu', 'mixed-alveo-qat'} <= {*hosts.shipped()}
    for name in hosts.shipped():
        host = hosts.find(name, tmp_path)
        assert (host.name, host.recorded, host.root) == (name, True, tmp_path / name)
        assert host.tree.functions()


def test_a_description_is_laid_out_afresh(tmp_path):
    file = tmp_path / 'My host.yaml'
    file.write_text(MINIMAL)
    host = hosts.find(str(file), tmp_path / 'work')
    assert host.name == 'My-host'
    (host.root / 'left-over').touch()
    host = hosts.find(str(file), tmp_path / 'work')
    assert not (host.root / 'left-over').exists()
    assert [f.bdf for f in host.tree.functions()] == ['0000:01:00.0']
    assert os.listdir(tmp_path / 'work') == ['My-host']


def test_a_description_names_its_host(tmp_path):
    (tmp_path / 'x.yml').write_text(f'name: node-7\n{MINIMAL}')
    assert hosts.find(str(tmp_path / 'x.yml'), tmp_path / 'work').name == 'node-7'


def test_a_directory_is_read_in_place(tmp_path):
    root = tmp_path / 'a/b/c'
    description.write(description.parse(MINIMAL), root)
    for place in (tmp_path, tmp_path / 'a', root):
        host = hosts.find(str(place), tmp_path / 'work')
        assert host.root == root
        assert len(host.tree.functions()) == 1
    assert hosts.find(str(root), tmp_path / 'work').name == 'c'


@pytest.mark.parametrize(
    'spec', ['no-such-host', '/no/such.tar', 'atlas-800t-a2/', '', 'x' * 5000, '../hosts']
)
def test_an_unknown_host_is_refused(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(driver.HostError, match='expected') as error:
        hosts.find(spec or str(tmp_path / 'empty'), tmp_path / 'work')
    assert not spec or 'hgx-8gpu' in str(error.value)


def test_a_description_that_is_not_there(tmp_path):
    with pytest.raises(driver.HostError, match='no/such.yaml: .*No such file'):
        hosts.find('no/such.yaml', tmp_path)


def test_a_foreign_file_is_not_replaced(tmp_path):
    (tmp_path / 'hgx-8gpu').symlink_to(tmp_path)
    with pytest.raises(driver.HostError, match='in the way'):
        hosts.find('hgx-8gpu', tmp_path)
    assert (tmp_path / 'hgx-8gpu').is_symlink()


def test_a_failure_keeps_the_old_directory(tmp_path):
    host = hosts.find('hgx-8gpu', tmp_path)
    (tmp_path / 'hgx-8gpu.tar').write_bytes(b'no tar')
    with pytest.raises(driver.HostError, match='cannot be unpacked'):
        hosts.find(str(tmp_path / 'hgx-8gpu.tar'), tmp_path)
    assert len(host.tree.functions()) == 15
    assert sorted(os.listdir(tmp_path)) == ['hgx-8gpu', 'hgx-8gpu.tar']


def pack(file: pathlib.Path, *members: tuple[str, bytes, str | bytes]) -> str:
    """A tarball of members: name, type, and content or target of the link."""
    with tarfile.open(file, 'w:gz') as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(file)


CARD = [
    (f'deep/er/sys/bus/pci/devices/0000:01:00.0/{name}', tarfile.REGTYPE, content)
    for name, content in {'vendor': b'0x19e5', 'device': b'0xd802', 'class': b'0x120000'}.items()
]


def test_a_hostile_tarball(tmp_path):
    outside = tmp_path / 'outside'
    outside.write_text('untouched')
    file = pack(
        tmp_path / 'evil.tar.gz',
        *CARD,
        ('../../outside', tarfile.REGTYPE, b'overwritten'),
        (str(outside), tarfile.REGTYPE, b'overwritten'),
        ('deep/up', tarfile.SYMTYPE, '../../..'),
        ('deep/up/outside', tarfile.REGTYPE, b'overwritten'),
        ('deep/passwd', tarfile.SYMTYPE, '/etc/passwd'),
        ('deep/hard', tarfile.LNKTYPE, '/etc/passwd'),
        ('deep/lost', tarfile.LNKTYPE, 'deep/nowhere'),
        ('deep/zero', tarfile.CHRTYPE, b''),
        ('deep/pipe', tarfile.FIFOTYPE, b''),
        ('deep/a', tarfile.SYMTYPE, 'b'),
        ('deep/b', tarfile.SYMTYPE, 'a'),
        ('deep', tarfile.REGTYPE, b'in the place of a directory'),
        (f'{CARD[0][0]}/below', tarfile.REGTYPE, b'below a file'),
    )
    host = hosts.find(file, tmp_path / 'work')
    assert host.name == 'evil'
    assert [f.ids for f in host.tree.functions()] == [('19e5', 'd802')]
    assert outside.read_text() == 'untouched'
    for path in (tmp_path / 'work').rglob('*'):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        assert not path.is_symlink() or not os.readlink(path).startswith('/')


def test_a_tarball_of_too_much(tmp_path, monkeypatch):
    file = pack(tmp_path / 'big.tgz', *CARD)
    monkeypatch.setattr(recording, 'SIZE', 16)
    with pytest.raises(driver.HostError, match='more than 30000 files or 0 MiB'):
        hosts.find(file, tmp_path / 'work')
    monkeypatch.undo()
    monkeypatch.setattr(recording, 'MEMBERS', 2)
    with pytest.raises(driver.HostError, match='more than 2 files'):
        hosts.find(file, tmp_path / 'work')
    assert os.listdir(tmp_path / 'work') == []


@pytest.mark.parametrize('keep', [0, 20, 100, 300])
def test_a_tarball_cut_short(tmp_path, keep):
    file = pathlib.Path(pack(tmp_path / 'cut.tar.gz', *CARD))
    file.write_bytes(file.read_bytes()[:keep] if keep < 300 else b'\x1f\x8b\x08' + b'\xff' * 300)
    with pytest.raises(driver.HostError):
        hosts.find(str(file), tmp_path / 'work')


def test_a_tarball_without_sys(tmp_path):
    file = pack(tmp_path / 'x.tar.gz', ('a/file', tarfile.REGTYPE, b'x'))
    with pytest.raises(driver.HostError, match='expected a recorded sys/'):
        hosts.find(file, tmp_path / 'work')


def test_a_recording_holds_nothing_secret(tmp_path):
    root = tmp_path / 'host'
    description.write(description.parse(MINIMAL), root)
    function = root / 'sys/devices/pci0000:01/0000:01:00.0'
    (function / 'vpd').write_text('serial number')
    (function / 'config').write_text('serial number')
    (root / 'dev').mkdir()
    for name in ('davinci0', 'davinci_manager', 'sda', 'secret-volume'):
        (root / 'dev' / name).touch()
    host = driver.Host('host', root)
    host.outputs['npu-smi', 'info'] = '| table |'
    recording.record(host, tmp_path / 'r.tar.gz')
    with tarfile.open(tmp_path / 'r.tar.gz') as tar:
        names = {m.name for m in tar if not m.isdir()}
        assert {(m.uid, m.gid, m.uname, m.mtime) for m in tar} == {(0, 0, '', 0)}
    place = 'sys/devices/pci0000:01/0000:01:00.0'
    assert names == {
        'dev/davinci0',
        'dev/davinci_manager',
        'sys/bus/pci/devices/0000:01:00.0',
        'tools/npu-smi/info.txt',
        *(f'{place}/{n}' for n in ('class', 'device', 'numa_node', 'revision', 'vendor')),
    }


def test_a_recording_shows_whether_a_function_is_in_use(tmp_path):
    root = tmp_path / 'host'
    virtual = (
        '{id: 10de:2335, total: 2, enabled: 2, offset: 4, iommu_group: 90,'
        ' files: {1: {nvidia/current_vgpu_type: 1428}}}'
    )
    description.write(
        description.parse(
            "functions: [{id: '10de:2335', class: '030000', at: {0: ['0000:01:00.0']}, "
            f"driver: nvidia, iommu_group: 17, virtual: {virtual}, files: {{boot_vga: '1'}}}}]"
        ),
        root,
    )
    devices = root / sysfs.DEVICES / '0000:01:00.4/mdev_supported_types/nvidia-754/devices'
    devices.mkdir(parents=True)
    (devices / 'f715f63c-0d00-4007-9c5a-b07b0c6c05de').symlink_to('../../../f715f63c')
    host = driver.Host('host', root)
    # An attribute of one vendor is kept if a driver read it.
    host.tree.functions()[0].read('nvidia/current_vgpu_type')
    recording.record(host, tmp_path / 'r.tar.gz')
    copy = hosts.find(str(tmp_path / 'r.tar.gz'), tmp_path / 'work')
    card, first, second = copy.tree.functions()
    assert (card.driver, card.iommu_group, card.is_console) == ('nvidia', '17', True)
    assert [f.bdf for f in card.virtual_functions] == [first.bdf, second.bdf]
    places = ('sriov_offset', 'sriov_stride', 'sriov_vf_device')
    assert [card.read(name) for name in places] == ['4', '1', '2335']
    # Their number, without UUIDs.
    assert first.mediated_devices == ['nvidia-754/0']
    assert (first.iommu_group, second.iommu_group) == ('90', '91')
    assert second.read('nvidia/current_vgpu_type') == '1428'


def test_this_machine_can_be_recorded(tmp_path):
    host = driver.Host.local('here')
    recording.record(host, tmp_path / 'here.tar.gz')
    copy = hosts.find(str(tmp_path / 'here.tar.gz'), tmp_path / 'work')
    assert [(f.bdf, f.ids) for f in copy.tree.functions()] == [
        (f.bdf, f.ids) for f in host.tree.functions()
    ]
    assert (copy.root / sysfs.DEVICES).is_dir()


PRINTED = '\tSerial Number : 2102312NVF10L8000123\n\tPCIe Bus Info : 0000:01:00.0\n'


def recorded(tmp_path, **more):
    """The tools' texts and the other files in a recording of a card."""
    root = tmp_path / 'host'
    description.write(description.parse(MINIMAL), root)
    for name in ('etc/machine-id', 'sys/class/dmi/id/product_uuid'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('b0b1b2b3-0001-4000-8000-0123456789ab')
    host = driver.Host('host', root)
    host.outputs['npu-smi', 'info'] = PRINTED
    recording.record(host, tmp_path / 'r.tar.gz', **more)
    with tarfile.open(tmp_path / 'r.tar.gz') as tar:
        texts = {m.name: tar.extractfile(m).read().decode() for m in tar if m.isreg()}
    return texts


def test_serial_numbers_are_kept_if_asked_for(tmp_path):
    assert recorded(tmp_path, with_serials=True)['tools/npu-smi/info.txt'] == PRINTED


def test_serial_numbers_and_ids_of_the_machine_are_left_out(tmp_path):
    texts = recorded(tmp_path)
    assert '2102312NVF10L8000123' not in str(texts)
    assert '0000:01:00.0' in texts['tools/npu-smi/info.txt']
    assert '0123456789ab' not in str(texts)
    assert not [name for name in texts if 'machine-id' in name or 'dmi' in name]


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_recording_is_of_the_user_alone(tmp_path, open_umask):
    recorded(tmp_path)
    assert stat.S_IMODE((tmp_path / 'r.tar.gz').stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ['host', 'r.tar.gz']


@pytest.mark.parametrize('make', ['file', 'link', 'hard link'])
def test_a_recording_replaces_an_existing_file(tmp_path, open_umask, make):
    other, file = tmp_path / 'other', tmp_path / 'r.tar.gz'
    other.write_text('of somebody else')
    other.chmod(0o644)
    {'file': file.touch, 'link': lambda: file.symlink_to(other),
     'hard link': lambda: file.hardlink_to(other)}[make]()  # fmt: skip
    recorded(tmp_path)
    assert other.read_text() == 'of somebody else'
    assert stat.S_IMODE(other.stat().st_mode) == 0o644
    assert not file.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_failed_recording_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / 'r.tar.gz').write_text('old')
    monkeypatch.setattr(recording, '_add_file', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        recorded(tmp_path)
    assert (tmp_path / 'r.tar.gz').read_text() == 'old'
    assert sorted(os.listdir(tmp_path)) == ['host', 'r.tar.gz']


def test_a_recording_replaces_no_device(tmp_path):
    os.mkfifo(tmp_path / 'r.tar.gz')
    with pytest.raises(driver.HostError, match='in the way'):
        recorded(tmp_path)
    assert stat.S_ISFIFO((tmp_path / 'r.tar.gz').stat().st_mode)

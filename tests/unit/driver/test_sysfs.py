# SPDX-License-Identifier: Apache-2.0
"""Reading of invalid trees."""

from __future__ import annotations

import os
import re

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import sysfs


@pytest.fixture
def tree(tmp_path):
    (tmp_path / 'root' / sysfs.DEVICES).mkdir(parents=True)
    return sysfs.Tree(tmp_path / 'root')


def add(tree, bdf='0000:01:00.0', **files):
    """A function with the usual attributes, some of them changed; None leaves one out."""
    path = tree.root / sysfs.DEVICES / bdf
    path.mkdir()
    usual = {'vendor': '0x19e5\n', 'device': '0xD802\n', 'class': '0x120000\n', 'numa_node': '1\n'}
    for name, content in (usual | files).items():
        if content is not None:
            (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def only(tree) -> sysfs.Function:
    [function] = tree.functions()
    return function


def test_a_function(tree):
    add(tree)
    function = only(tree)
    assert function.ids == ('19e5', 'd802')
    assert function.pci_class == '120000'
    assert function.numa_node == 1
    assert function.address == {'domain': '0000', 'bus': '01', 'device': '00', 'function': '0'}
    assert not function.is_virtual
    assert list(function.virtual_functions) == []


def test_the_drivers_of_a_scan_share_its_functions(tree):
    path = add(tree)
    # Nobody has begun a scan: each call reads the files.
    assert only(tree).pci_class == '120000'
    (path / 'class').write_text('0x030000')
    assert only(tree).pci_class == '030000'
    tree.begin()
    first = only(tree)
    assert first.pci_class == '030000'
    (path / 'class').write_text('0x020000')
    add(tree, '0000:02:00.0')
    assert only(tree) is first
    tree.begin()
    assert [function.pci_class for function in tree.functions()] == ['020000', '120000']


def test_what_a_caller_does_with_the_functions_of_a_scan_is_its_own(tree):
    for bus in (1, 2):
        add(tree, f'0000:0{bus}:00.0')
    tree.begin()
    for _ in range(3):
        functions = tree.functions()
        assert len(functions) == 2
        functions.pop()


@pytest.mark.parametrize(
    'content',
    [None, b'', b'\x00\xff\xfe', b'0x19e', b'0x19e5 and more', b'0x19e5\x00', b'-1', '\u0663' * 4],
)
def test_an_invalid_id(tree, content):
    add(tree, vendor=content)
    assert only(tree).ids == ('', 'd802')


def test_the_bridges_above_a_function(tree):
    place = tree.root / 'sys/devices/pci0000:17/0000:17:00.0/0000:18:00.0/0000:19:10.0/0000:1d:00.0'
    place.mkdir(parents=True)
    (tree.root / sysfs.DEVICES / place.name).symlink_to(place)
    assert only(tree).bridges == ['0000:17:00.0', '0000:18:00.0', '0000:19:10.0']


def test_a_function_below_no_bridge(tree):
    add(tree)
    assert only(tree).bridges == []


@pytest.mark.parametrize('content', [None, '-1', '', 'x', '9' * 400, '\u0663', b'\xff'])
def test_no_numa_node(tree, content):
    add(tree, numa_node=content)
    assert only(tree).numa_node is None


@pytest.mark.parametrize(
    'name', ['0000:01:00', 'x', '0000:01:00.8', '0000:01:20.0', '000:01:00.0', '0000:01:00.0 ']
)
def test_names_that_are_no_addresses_are_no_functions(tree, name):
    add(tree, name)
    assert tree.functions() == []


def test_an_endless_file_is_no_attribute(tree):
    path = add(tree, vendor=None)
    (path / 'vendor').symlink_to('/dev/zero')
    assert only(tree).ids == ('', 'd802')


def test_an_endless_regular_file_is_read_to_a_bound(tree):
    path = add(tree)
    with open(path / 'vendor', 'wb') as file:
        file.truncate(1 << 40)
    assert len(tree.load(path / 'vendor', sysfs.LIMIT)) == sysfs.LIMIT
    assert only(tree).ids == ('', 'd802')


def test_a_pipe_does_not_wait_for_its_writer(tree):
    path = add(tree, vendor=None)
    os.mkfifo(path / 'vendor')
    assert only(tree).ids == ('', 'd802')


def test_a_directory_is_no_attribute(tree):
    (add(tree, vendor=None) / 'vendor').mkdir()
    assert only(tree).ids == ('', 'd802')


def test_links_in_a_circle(tree):
    path = add(tree, vendor=None)
    (path / 'vendor').symlink_to('device2')
    (path / 'device2').symlink_to('vendor')
    (path / 'virtfn0').symlink_to('virtfn0')
    (tree.root / sysfs.DEVICES / '0000:02:00.0').symlink_to('0000:02:00.0')
    assert only(tree).ids == ('', 'd802')
    assert list(only(tree).virtual_functions) == []


def test_links_out_of_the_tree_lead_nowhere(tree, tmp_path):
    secret = tmp_path / 'secret'
    secret.mkdir()
    (secret / 'vendor').write_text('0x10de')
    path = add(tree, vendor=None)
    (path / 'vendor').symlink_to(secret / 'vendor')
    (tree.root / sysfs.DEVICES / '0000:02:00.0').symlink_to('../../../../../secret')
    assert only(tree).ids == ('', 'd802')
    assert tree.names(secret) == []
    assert tree.load(tree.root / '../secret/vendor', 10) is None


def test_a_root_beside_is_not_below(tree, tmp_path):
    (tmp_path / 'root2').mkdir()
    (tmp_path / 'root2/file').write_text('x')
    assert tree.load(tmp_path / 'root2/file', 9) is None


def test_virtual_functions_in_order(tree):
    path = add(tree, sriov_numvfs='12')
    for number in range(12):
        virtual = add(tree, f'0000:01:{1 + number // 8:02x}.{number % 8}')
        (virtual / 'physfn').symlink_to('../0000:01:00.0')
        (path / f'virtfn{number}').symlink_to(f'../{virtual.name}')
    card = tree.functions()[0]
    assert card.numvfs == 12
    functions = [f.bdf for f in card.virtual_functions]
    assert functions == sorted(functions)
    assert len(functions) == 12
    assert [f.is_virtual for f in tree.functions()] == [False] + [True] * 12


def test_a_link_to_another_card_is_not_a_virtual_function(tree):
    path = add(tree)
    add(tree, '0000:02:00.0')
    (path / 'virtfn0').symlink_to('../0000:02:00.0')
    (path / 'virtfn1').symlink_to('.')
    assert list(tree.functions()[0].virtual_functions) == []


def test_links_that_dangle_still_tell(tree):
    """Recorded trees lack the targets."""
    path = add(tree)
    (path / 'driver').symlink_to('../../../../bus/pci/drivers/vfio-pci')
    (path / 'iommu_group').symlink_to('../../../../kernel/iommu_groups/17')
    assert (only(tree).driver, only(tree).iommu_group) == ('vfio-pci', '17')


@pytest.mark.parametrize('target', ['..', '.', 'a b', 'x' * 65, 'a\nb', '\u0661'])
def test_links_without_a_name(tree, target):
    path = add(tree)
    for name in ('driver', 'iommu_group'):
        (path / name).symlink_to(target)
    assert (only(tree).driver, only(tree).iommu_group) == (None, None)


def test_no_links(tree):
    path = add(tree)
    (path / 'driver').mkdir()
    (path / 'iommu_group').write_text('17')
    assert (only(tree).driver, only(tree).iommu_group) == (None, None)


def test_mediated_devices(tree):
    path = add(tree)
    assert only(tree).mediated_devices == []
    (path / 'mdev_supported_types/nvidia-36/devices').mkdir(parents=True)
    (path / 'mdev_supported_types/nvidia-37').mkdir()
    assert only(tree).mediated_devices == []
    # The device itself is elsewhere: its link may dangle.
    (path / 'mdev_supported_types/nvidia-36/devices/f715f63c').symlink_to('../../../f715f63c')
    assert only(tree).mediated_devices == ['nvidia-36/f715f63c']


SRIOV = {
    'sriov_totalvfs': '4',
    'sriov_numvfs': '4',
    'sriov_offset': '4',
    'sriov_stride': '1',
    'sriov_vf_device': 'd805',
}


def unlinked(tree) -> dict[str, list[str]]:
    found = sysfs.unlinked(tree.functions())
    return {bdf: [f.bdf for f in functions] for bdf, functions in found.items()}


@pytest.mark.parametrize(
    ('bdf', 'device', 'found'),
    [
        ('0000:01:00.4', '0xd805', True),
        ('0000:01:00.7', '0xd805', True),
        ('0000:01:01.0', '0xd805', False),
        ('0000:01:00.3', '0xd805', False),
        ('0000:01:00.4', '0xd802', False),
        ('0001:01:00.4', '0xd805', False),
        ('0000:02:00.4', '0xd805', False),
    ],
)
@pytest.mark.parametrize('numvfs', ['0', '4'])
def test_a_virtual_function_before_its_links_is_known_by_place_and_id(
    tree, bdf, device, found, numvfs
):
    """While the kernel creates them, they are not counted yet."""
    add(tree, **SRIOV | {'sriov_numvfs': numvfs})
    add(tree, bdf, device=device)
    assert unlinked(tree) == ({'0000:01:00.0': [bdf]} if found else {})


def test_a_virtual_function_with_one_link_of_two(tree):
    path = add(tree, sriov_totalvfs='4', sriov_numvfs='0')
    add(tree, '0000:01:10.0')
    (path / 'virtfn0').symlink_to('../0000:01:10.0')
    assert unlinked(tree) == {'0000:01:00.0': ['0000:01:10.0']}


def test_a_physical_function_is_never_a_virtual_one(tree):
    path = add(tree, **SRIOV)
    add(tree, '0000:01:00.4', device='0xd805', sriov_totalvfs='4')
    (path / 'virtfn0').symlink_to('../0000:01:00.4')
    assert unlinked(tree) == {}


def test_a_kernel_that_does_not_tell_the_places(tree):
    """Until all enabled ones are linked, any function on the bus may be one."""
    path = add(tree, sriov_totalvfs='4', sriov_numvfs='1')
    add(tree, '0000:01:00.5')
    add(tree, '0000:02:00.0')
    assert unlinked(tree) == {'0000:01:00.0': ['0000:01:00.5']}
    virtual = add(tree, '0000:01:00.4')
    (path / 'virtfn0').symlink_to('../0000:01:00.4')
    (virtual / 'physfn').symlink_to('../0000:01:00.0')
    assert unlinked(tree) == {}


def test_a_directory_without_end(tree, monkeypatch):
    monkeypatch.setattr(sysfs, 'ENTRIES', 3)
    for number in range(8):
        add(tree, f'0000:01:00.{number}')
    assert len(tree.functions()) == 3


def test_no_sysfs_at_all(tmp_path):
    assert sysfs.Tree(tmp_path / 'nowhere').functions() == []


@hypothesis.given(st.binary(max_size=64))
@hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_an_id_or_none(tmp_path_factory, content):
    path = tmp_path_factory.mktemp('any')
    (path / sysfs.DEVICES / '0000:01:00.0').mkdir(parents=True)
    for name in ('vendor', 'device', 'class', 'numa_node', 'sriov_numvfs'):
        (path / sysfs.DEVICES / '0000:01:00.0' / name).write_bytes(content)
    function = only(sysfs.Tree(path))
    assert all(re.fullmatch('([0-9a-f]{4})?', part) for part in function.ids)
    assert re.fullmatch('([0-9a-f]{6})?', function.pci_class)
    assert function.numvfs >= 0
    assert function.numa_node is None or function.numa_node >= 0


@hypothesis.given(st.text(max_size=40) | st.from_regex(sysfs.BDF, fullmatch=True))
@hypothesis.settings(deadline=None)
def test_any_text_is_an_address_or_none(text):
    normal = sysfs.normal(text)
    if normal is None:
        with pytest.raises(ValueError, match='not a PCI address'):
            sysfs.address(text)
    else:
        assert sysfs.normal(normal) == normal
        assert set(sysfs.address(normal)) == {'domain', 'bus', 'device', 'function'}


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('0000:DA:00.0', '0000:da:00.0'),
        ('00000000:01:00.0', '0000:01:00.0'),
        ('00010000:00:02.0', '10000:00:02.0'),
        (' 0000:01:00.0 ', '0000:01:00.0'),
        ('01:00.0', None),
        ('-', None),
    ],
)
def test_addresses_as_tools_write_them(text, expected):
    assert sysfs.normal(text) == expected


@hypothesis.given(st.lists(st.text(max_size=300), max_size=4))
@hypothesis.settings(deadline=None)
def test_any_words_are_a_trait_or_none(words):
    trait = driver.trait(*words)
    assert trait is None or re.fullmatch('CUSTOM_[A-Z0-9_]{1,248}', trait)


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        (['NPU', '910B4-1'], 'CUSTOM_NPU_910B4_1'),
        (['nvidia', '1g.10gb+me'], 'CUSTOM_NVIDIA_1G_10GB_ME'),
        (['NPU', ' '], None),
        (['\u96c7'], None),
        ([], None),
        (['x' * 300], None),
    ],
)
def test_traits(words, expected):
    assert driver.trait(*words) == expected


@pytest.fixture
def function(tree):
    """A function with attributes in directories."""
    path = add(tree)
    for name, text in {
        'nvme/nvme0/model': 'one\n',
        'nvme/nvme0/hwmon3/temp1_alarm': '1\n',
        'nvme/nvme1/model': 'two\n',
        'nvme/other/model': 'three\n',
    }.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return only(tree)


@pytest.mark.parametrize(
    ('patterns', 'path', 'text'),
    [
        (['nvme/nvme*/model'], 'nvme/nvme0/model', 'one'),
        (['nvme/nvme*'], 'nvme/nvme0', None),
        (['nvme/nvme*/hwmon*/temp1_alarm'], 'nvme/nvme0/hwmon3/temp1_alarm', '1'),
        (['nvme/o*/model'], 'nvme/other/model', 'three'),
        (['accel/*/model', 'nvme/*1/model'], 'nvme/nvme1/model', 'two'),
        (['accel/*', 'nvme/x*'], None, None),
        # A path without wildcards need not exist.
        (['nvme/nvme7/model'], 'nvme/nvme7/model', None),
        (['nv*/nvme0/model'], 'nvme/nvme0/model', 'one'),
        (['class'], 'class', '0x120000'),
        # A name of a directory is no pattern.
        (['nvme/[no]*/model'], None, None),
    ],
)
def test_paths_by_pattern(function, patterns, path, text):
    assert function.find(*patterns) == path
    assert function.told(*patterns) == text


def test_the_first_text_of_all_matches_is_told(tree, function):
    (function.path / 'nvme/nvme0/model').write_bytes(b'\xff')
    assert function.told('nvme/nvme*/model') == 'two'


def test_a_pattern_does_not_lead_out_of_the_tree(tree, function):
    (function.path / 'nvme/nvme0/model').unlink()
    (function.path / 'nvme/nvme0/model').symlink_to('/etc/hostname')
    (function.path / 'out').symlink_to('/etc')
    assert function.told('nvme/nvme0/model', 'out/host*', '../../../../../../../etc/*') is None


@pytest.mark.parametrize(
    ('name', 'kept'),
    [
        ('vfio-pci', True),
        ('pci-stub', True),
        ('mlx5_vfio_pci', True),
        ('nvgrace-gpu-vfio-pci', True),
        ('nvidia', False),
        ('vfio-pcie', False),
        ('uio_pci_generic', False),
        (None, False),
    ],
)
def test_drivers_that_keep_a_card_for_guests(tree, name, kept):
    path = add(tree)
    if name:
        (path / 'driver').symlink_to(f'../../../bus/pci/drivers/{name}')
    assert only(tree).passed_through == kept

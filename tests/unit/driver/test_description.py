# SPDX-License-Identifier: Apache-2.0
"""Host descriptions, and their trees."""

from __future__ import annotations

import tracemalloc

import hypothesis
from hypothesis import strategies as st
import pytest
import yaml

from cyborg_lite import driver
from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.drivers import intel_qat

ONE = {'id': '8086:37c8', 'class': '0b4000', 'at': {'0': ['0000:3d:00.0']}}


def lay_out(tmp_path, **data) -> driver.Host:
    description.write(description.parse(yaml.safe_dump(data)), tmp_path / 'host')
    return driver.Host('host', tmp_path / 'host')


def test_everything(tmp_path):
    host = lay_out(
        tmp_path,
        functions=[
            ONE
            | {
                'revision': '04',
                'subsystem': '8086:35cf',
                'driver': 'c6xx',
                'virtual': {'id': '8086:37c9', 'total': '16', 'enabled': '16', 'offset': '8'},
                'files': {'qat/state': 'up'},
            },
            {'id': '19e5:d802', 'class': '120000', 'at': {'-1': ['10000:01:00.0']}},
        ],
        dev=['davinci0', 'vfio/6'],
        tools={'npu-smi': {'info -m': 'table\n', 'default': 'help\n'}},
    )
    card, *virtual, wide = host.tree.functions()
    assert card.ids == ('8086', '37c8')
    assert (card.pci_class, card.numa_node, card.numvfs) == ('0b4000', 0, 16)
    assert card.read('subsystem_device') == '0x35cf'
    assert card.read('revision') == '0x04'
    assert card.read('sriov_totalvfs') == '16'
    assert card.read('qat/state') == 'up'
    assert (card.path / 'driver').readlink().name == 'c6xx'
    assert [f.bdf for f in card.virtual_functions] == [f.bdf for f in virtual]
    assert (virtual[0].bdf, virtual[-1].bdf) == ('0000:3d:01.0', '0000:3d:02.7')
    assert virtual[0].ids == ('8086', '37c9')
    assert (wide.bdf, wide.numa_node) == ('10000:01:00.0', None)
    assert (host.root / 'dev/vfio/6').is_file()
    assert host.run('npu-smi', 'info', '-m') == 'table\n\n'
    assert host.run('npu-smi') == 'help\n\n'


def test_groups_and_files_of_virtual_functions(tmp_path):
    virtual = {'id': '10de:2335', 'total': '16', 'enabled': '3', 'offset': '4', 'stride': '2'}
    more = {'iommu_group': '90', 'files': {'1': {'nvidia/current_vgpu_type': '1428'}}}
    gpu = {'id': '10de:2335', 'class': '030200', 'at': {'0': ['0000:3d:00.0']}}
    files = {'boot_vga': '1', 'mdev_supported_types/nvidia-36/devices/0': ''}
    host = lay_out(
        tmp_path,
        functions=[gpu | {'iommu_group': '17', 'files': files, 'virtual': virtual | more}],
    )
    card, *virtual = host.tree.functions()
    assert (card.iommu_group, card.is_console) == ('17', True)
    assert card.mediated_devices == ['nvidia-36/0']
    assert (card.read('sriov_offset'), card.read('sriov_stride')) == ('4', '2')
    # In the kernel's form, without 0x.
    assert card.read('sriov_vf_device') == '2335'
    assert [f.iommu_group for f in virtual] == ['90', '91', '92']
    types = [f.read('nvidia/current_vgpu_type') for f in virtual]
    assert types == [None, '1428', None]


def test_virtual_functions_run_on_to_the_next_bus(tmp_path):
    virtual = {'id': '8086:37c9', 'total': '3', 'enabled': '3', 'offset': '254', 'stride': '2'}
    host = lay_out(tmp_path, functions=[ONE | {'virtual': virtual}])
    functions = [f.bdf for f in host.tree.functions()[0].virtual_functions]
    assert functions == ['0000:3d:1f.6', '0000:3e:00.0', '0000:3e:00.2']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[]', r'^the description: expected a mapping$'),
        ('', 'the description: expected a mapping'),
        ('{', '^not YAML: '),
        ('a: &a [*a]', 'not YAML|a: expected one of'),
        ('? [1]\n: 2', 'not YAML'),
        ('[' * 5000, 'not YAML'),
        ('colour: red', r'^colour: expected one of name, functions, dev, tools, files$'),
        ('name: -x', r"^name: expected a host name, not '-x'$"),
        ('name: [x]', 'name: expected a host name'),
        ('functions: {}', r'^functions: expected a list$'),
        ('functions: [x]', r'^functions\[0\]: expected a mapping$'),
        ('functions: [{}]', r'^functions\[0\]\.(id|class|at): expected a value$'),
        ('functions: [{id: 1, class: 120000, at: {}}]', r'functions\[0\]\.id: expected vendor'),
        (
            'functions: [{id: 19e5:d802, class: 1200, at: {}}]',
            r"^functions\[0\]\.class: expected six hexadecimal digits, not '1200'$",
        ),
        (
            'functions: [{id: 19e5:d802, class: 120000, at: {0: [01:00.0]}}]',
            r'functions\[0\]\.at\.0\[0\]: expected a PCI address',
        ),
        ('functions: [{id: 19e5:d802, class: 120000, at: {x: []}}]', 'at.x: expected a NUMA node'),
        (
            'functions: [{id: 19e5:d802, class: 120000, at: {}, virtual: {id: 19e5:d805}}]',
            r'virtual\.total: expected a value',
        ),
        (
            'functions: [{id: 19e5:d802, class: 120000, at: {}, files: {../x: y}}]',
            r'files\.\.\./x: expected a path without \.\.',
        ),
        (
            'functions: [{id: 19e5:d802, class: 120000, at: {}, health: bad}]',
            r'health: expected ok, warning, critical or unknown, and perhaps a reason',
        ),
        ('dev: [../../etc/passwd]', r'dev\[0\]: expected a path without'),
        ('dev: [/etc/passwd]', r'dev\[0\]: expected a path without'),
        ('tools: {a/b: {}}', 'tools.a/b: expected a name'),
        ('tools: {x: {"\\xe9": z}}', r'tools\.x\.\xe9: expected arguments of up to 200 ASCII'),
        ('tools: {x: {y: [z]}}', 'tools.x.y: expected a text'),
        ('tools: {x: y}', 'tools.x: expected a mapping'),
        ('files: {etc/../x: y}', r'files\.etc/\.\./x: expected a path below sys, proc, etc, run'),
        ('files: {/proc/x: y}', 'files./proc/x: expected a path below'),
        ('files: {home/x: y}', 'files.home/x: expected a path below'),
        ('files: {opt/..: y}', r'files.opt/\.\.: expected a path below'),
        ('files: {opt/./x: y}', r'files.opt/\./x: expected a path below'),
        ('name: !!python/object/apply:os.getcwd []', 'name: expected a host name'),
    ],
)
def test_an_invalid_description_is_refused(text, message):
    with pytest.raises(driver.HostError, match=message):
        description.parse(text)


def test_the_file_is_named(tmp_path):
    (tmp_path / 'x.yaml').write_text('name: "!"')
    with pytest.raises(driver.HostError, match=r'/x\.yaml: name: expected a host name'):
        description.load(tmp_path / 'x.yaml')
    (tmp_path / 'x.yaml').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(driver.HostError, match=r'/x\.yaml: '):
        description.load(tmp_path / 'x.yaml')


def test_addresses_that_are_there_twice(tmp_path):
    with pytest.raises(driver.HostError, match='0000:3d:00.0: there are two functions'):
        lay_out(tmp_path, functions=[ONE, dict(ONE, at={'0': ['0000:3d:00.0']})])


@pytest.mark.parametrize(
    ('data', 'field'),
    [
        (ONE | {'driver': 'c6xx', 'files': {'driver': 'a'}}, r'functions\[0\]\.driver'),
        (ONE | {'iommu_group': '3', 'files': {'iommu_group/a': 'b'}}, r'\]\.iommu_group'),
        (ONE | {'files': {'a': 'x', 'a/b': 'y'}}, r'functions\[0\]\.files\.a/b'),
        (ONE | {'files': {'a/b': 'x', 'a': 'y'}}, r'functions\[0\]\.files\.a'),
        (
            ONE
            | {
                'files': {'virtfn0': 'x'},
                'virtual': {'id': '8086:37c9', 'total': '1', 'enabled': '1'},
            },
            r'functions\[0\]\.virtual',
        ),
        (ONE | {'files': {'a' * 300: 'x'}}, r'functions\[0\]\.files\.a+'),
        (ONE | {'files': {'/'.join('a' * 20): 'x'}}, r'functions\[0\]\.files\.a'),
        (ONE | {'files': {'x': '\ud800'}}, r'functions\[0\]\.files\.x'),
    ],
)
def test_files_that_cannot_be_made(tmp_path, data, field):
    with pytest.raises(driver.HostError, match=field):
        lay_out(tmp_path, functions=[data])


def test_other_files(tmp_path):
    """Also of software beside the kernel: names of cards, and versions."""
    software = {'usr/share/misc/pci.ids': '10de  x', 'opt/rocm/.info/version': '6.4.1'}
    host = lay_out(tmp_path / 'a', files=software)
    assert [host.tree.text(each) for each in software] == [*software.values()]
    host = lay_out(tmp_path, files={'sys/class/a/0:1/text': 'x y', 'sys/class/a/n': 'unit 7\nx'})
    assert host.tree.text('sys/class/a/0:1/text') == 'x y'
    assert host.tree.numbers('sys/class/a/n') == {'unit': 7}
    assert host.tree.entries('sys/class/a') == ['0:1', 'n']
    assert host.tree.number('sys/class/a/n') is None
    assert host.tree.text('sys/class/b') is host.tree.text('../../etc/passwd') is None
    with pytest.raises(driver.HostError, match='files.sys/bus/pci/devices'):
        lay_out(tmp_path / 'other', files={'sys/bus/pci/devices': 'x'})


def test_names_in_dev_and_of_tools_that_cannot_be_made(tmp_path):
    with pytest.raises(driver.HostError, match=r'dev\[1\]: '):
        lay_out(tmp_path, dev=['a', 'a/b'])
    with pytest.raises(driver.HostError, match='tools.x.é'):
        description.parse('tools: {x: {"' + 'é' * 190 + '": y}}')


VIRTUAL = {'id': '8086:37c9', 'total': '999', 'enabled': '999'}


@pytest.mark.parametrize(
    ('data', 'field'),
    [
        (
            ONE | {'at': {'0': [f'000{n}:00:00.0' for n in range(9)]}, 'virtual': VIRTUAL},
            r'^functions\[0\]\.virtual\.enabled: expected at most 20000 files',
        ),
        (
            ONE
            | {
                'at': {'0': [f'{n:04x}:00:00.0' for n in range(200)]},
                'files': {f'a{n}': '' for n in range(200)},
            },
            r'^functions\[0\]\.at: expected at most 20000 files',
        ),
        (
            ONE
            | {
                'at': {'0': [f'{n:04x}:00:00.0' for n in range(200)]},
                'files': {'a': 'b' * 100_000},
            },
            r'^functions\[0\]\.at: expected at most 16777216 characters',
        ),
    ],
)
def test_a_short_description_of_a_large_tree_is_refused(data, field):
    with pytest.raises(driver.HostError, match=field):
        description.parse(yaml.safe_dump({'functions': [data]}))


def test_a_description_is_not_read_beyond_its_limit(tmp_path):
    file = tmp_path / 'large.yaml'
    with file.open('wb') as made:
        made.truncate(64 << 20)
    tracemalloc.start()
    with pytest.raises(driver.HostError, match='expected at most 1048576 characters'):
        description.load(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_virtual_functions_past_the_last_bus(tmp_path):
    virtual = {'id': '8086:37c9', 'total': '9', 'enabled': '9'}
    last = ONE | {'at': {'0': ['0000:ff:1f.7']}, 'virtual': virtual}
    with pytest.raises(driver.HostError, match='past the last bus'):
        lay_out(tmp_path, functions=[last])


#: Each line expands to nine times the one before: the last to 9**20 values.
ALIASES = '\n'.join(
    ['a0: &a0 [x]', *(f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]' for n in range(1, 21))]
)


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        (ALIASES, 1),
        ('name: &n x', 1),
        ('name: x\ndev: [*n]', 2),
        ('&top {name: x}', 1),
        ('name: x\n\n? &key dev\n: []', 3),
        ('tools: &t\n  x: {y: *t}', 1),
    ],
)
def test_aliases_are_refused(text, line):
    with pytest.raises(driver.HostError, match=f'line {line}: expected no anchors'):
        description.parse(text)


@hypothesis.given(st.text(max_size=200))
@hypothesis.settings(deadline=None)
def test_any_text_is_a_description_or_a_clear_error(text):
    try:
        description.parse(text)
    except driver.HostError as error:
        assert 'expected' in str(error) or 'not YAML' in str(error)


def test_arguments_with_slashes_stay_below_the_tool(tmp_path):
    command = 'smart-log /dev/nvme0 ../../x'
    description.write(description.parse(f'tools: {{nvme: {{{command}: text}}}}'), tmp_path)
    [file] = (tmp_path / 'tools/nvme').iterdir()
    assert file.name == 'smart-log__dev_nvme0_.._.._x.txt'
    assert driver.Host('x', tmp_path).run('nvme', *command.split()) == 'text\n'


HEALTH = """
functions:
  - {id: 8086:37c8, class: 0b4000, at: {0: [0000:3d:00.0, 0000:3e:00.0]}, health: critical acme_fan}
  - {id: 8086:37c8, class: 0b4000, at: {0: [0000:3f:00.0]}}
"""


def test_the_health_of_a_described_card(tmp_path):
    description.write(description.parse(HEALTH), tmp_path)
    subject = intel_qat.IntelQat(driver.Host('x', tmp_path), None)

    def seen():
        return [(d.health, d.health_reason) for d in subject.look()[0]]

    critical, unknown = ('critical', 'acme_fan'), ('unknown', None)
    assert seen() == [critical, critical, unknown]
    (tmp_path / 'health/0000:3d:00.0').write_text('ok\n')
    (tmp_path / 'health/0000:3e:00.0').write_text('well enough\n')
    assert seen() == [('ok', None), unknown, unknown]
    # A machine has no such files.
    local = driver.Host('x', tmp_path, recorded=False)
    assert {d.health for d in intel_qat.IntelQat(local, None).look()[0]} == {'unknown'}


def test_the_health_of_a_described_card_is_recorded(tmp_path):
    description.write(description.parse(HEALTH), tmp_path / 'host')
    host = driver.Host('x', tmp_path / 'host')
    intel_qat.IntelQat(host, None).look()
    recording.record(host, tmp_path / 'x.tar.gz')
    copy = hosts.find(str(tmp_path / 'x.tar.gz'), tmp_path)
    levels = [device.health for device in intel_qat.IntelQat(copy, None).look()[0]]
    assert levels == ['critical', 'critical', 'unknown']

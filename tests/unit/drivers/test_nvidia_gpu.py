# SPDX-License-Identifier: Apache-2.0
"""NVIDIA cards, with a working, a failing and an absent NVML."""

from __future__ import annotations

import ctypes
import json
import re
import sys
import types
import xml.etree.ElementTree

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import nvml as library
from cyborg_lite.driver import pci_ids
from cyborg_lite.driver import recording
from cyborg_lite.driver import testing
from cyborg_lite.drivers import nvidia_gpu
from tests.unit.drivers import captures


def discover(host: driver.Host) -> list[driver.Device]:
    return testing.discover(nvidia_gpu.NvidiaGpu, host)


def told(cards: list[driver.Device]) -> list[dict]:
    """The facts of the cards, without their health, which is new in each scan."""
    return [card.facts() | {'health': None, 'health_reason': None} for card in cards]


@pytest.mark.parametrize(
    ('pci_class', 'found'),
    [('030000', 1), ('030200', 1), ('038000', 0), ('068000', 0), ('040300', 0)],
)
def test_classes(tmp_path, pci_class, found):
    host = captures.host(tmp_path, [captures.function('0000:01:00.0', '10de:ffff', pci_class)])
    devices = discover(host)
    assert len(devices) == found
    for card in devices:
        assert card.model == 'NVIDIA GPU ffff'
        assert card.deployables[0].resource_class == 'PGPU'
        assert card.deployables[0].traits == ['CUSTOM_NVIDIA_FFFF']


@pytest.mark.parametrize(
    ('ids', 'subsystem', 'model'),
    [
        ('10de:1db4', None, 'Tesla V100-PCIE-16GB'),
        ('10de:20b5', None, 'NVIDIA A100 80GB PCIe'),
        ('10de:25b6', '10de:14a9', 'NVIDIA A16'),
        ('10de:25b6', '10de:157e', 'NVIDIA A2'),
        ('10de:25b6', None, 'NVIDIA A2'),
        ('10de:27b8', None, 'NVIDIA L4'),
        ('10de:15f8', None, 'Tesla P100-PCIE-16GB'),
        ('10de:27b2', None, 'NVIDIA RTX 4000 Ada Generation'),
        ('10de:2941', None, 'NVIDIA GB200'),
        ('10de:3182', None, 'NVIDIA B300 SXM6 AC'),
        ('10de:31c2', None, 'NVIDIA GB300'),
        ('10de:2bb5', None, 'NVIDIA RTX PRO 6000 Blackwell Server Edition'),
        ('10de:2e12', None, 'NVIDIA GB10'),
        ('10de:2230', None, 'NVIDIA RTX A6000'),
        ('10de:ffff', None, 'NVIDIA GPU ffff'),
    ],
)
def test_names_without_nvml(tmp_path, ids, subsystem, model):
    host = captures.host(tmp_path, [captures.function('0000:01:00.0', ids, '030200')])
    if subsystem:
        place = host.root / 'sys/bus/pci/devices/0000:01:00.0'
        for name, value in zip(('vendor', 'device'), subsystem.split(':'), strict=True):
            (place / f'subsystem_{name}').write_text(f'0x{value}\n')
    names = host.root / 'usr/share/misc/pci.ids'
    names.parent.mkdir(parents=True)
    names.write_text('10de  NVIDIA Corporation\n\t2230  GA102GL [RTX A6000]\n')
    assert [card.model for card in discover(host)] == [model]


def test_switches_are_no_gpus(tmp_path):
    assert len(discover(hosts.find('hgx-8gpu', tmp_path))) == 8


@pytest.mark.parametrize(
    ('text', 'traits'),
    [
        ('ID    : vGPU Name\n1428 : NVIDIA H200X-141C\n', ['CUSTOM_NVIDIA_2335_H200X_141C']),
        ('36 : GRID T4-2B', ['CUSTOM_NVIDIA_2335_T4_2B']),
        ('', []),
        ('1 :\n: x\nx : y\n2 : \u96c7\n', []),
        (' : ' * 1000, []),
    ],
)
def test_vgpu_types(tmp_path, text, traits):
    virtual = {'id': '10de:2335', 'total': '1', 'enabled': '1', 'offset': '4'}
    function = captures.function('0000:01:00.0', '10de:2335', '030200', virtual=virtual)
    host = captures.host(tmp_path, [function])
    place = host.root / 'sys/bus/pci/devices/0000:01:00.4/nvidia'
    place.mkdir()
    (place / 'creatable_vgpu_types').write_text(text)
    [card] = discover(host)
    assert card.deployables[0].traits == ['CUSTOM_NVIDIA_2335', *traits]
    assert card.deployables[0].resource_class == 'VGPU'


class NVMLError(Exception):
    """As the library's."""


class NVMLError_NotFound(NVMLError):  # noqa: N801 - the library's name
    """As the library's."""


@pytest.fixture
def nvml(monkeypatch):
    """A library that knows two GPUs, in place of the real one."""
    module = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetPciInfo=lambda gpu: types.SimpleNamespace(busId=f'0000000{gpu}:0A:00.0'),
        nvmlDeviceGetName=lambda gpu: 'NVIDIA H200',
        nvmlDeviceGetUUID=lambda gpu: f'GPU-{gpu}',
        nvmlDeviceGetMemoryInfo=lambda gpu: types.SimpleNamespace(total=150754820096),
        nvmlDeviceGetIndex=lambda gpu: gpu,
        nvmlDeviceGetMigMode=lambda gpu: [0, 0],
        NVML_DEVICE_MIG_ENABLE=1,
    )
    monkeypatch.setitem(sys.modules, 'pynvml', module)
    return module


@pytest.fixture
def local(tmp_path):
    functions = [captures.function(f'000{n}:0a:00.0', '10de:ffff', '030200') for n in range(2)]
    copy = captures.host(tmp_path, functions)
    return driver.Host('local', copy.root, recorded=False)


def test_nvml_adds_what_it_knows(nvml, local):
    cards = discover(local)
    assert {c.model for c in cards} == {'NVIDIA H200'}
    assert [c.vendor_board for c in cards] == [
        {'uuid': 'GPU-0', 'index': 0, 'memory_mb': 143771},
        {'uuid': 'GPU-1', 'index': 1, 'memory_mb': 143771},
    ]
    assert [c.serial for c in cards] == ['GPU-0', 'GPU-1']


def test_a_card_is_itself_in_another_slot(nvml, local):
    nvml.nvmlDeviceGetUUID = lambda gpu: f'GPU-{1 - gpu}'
    assert [c.serial for c in discover(local)] == ['GPU-1', 'GPU-0']


def test_without_nvml_a_card_has_no_serial(local, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    assert [c.serial for c in discover(local)] == [None, None]


def test_without_nvml_the_kernel_driver_has_the_serial(local, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    uuids = [f'GPU-{n:08d}-aaaa-bbbb-cccc-0123456789ab' for n in range(2)]
    # The kernel driver writes question marks for the UUID of a card that it has not initialized.
    for number, text in enumerate((uuids[0], 'GPU-????????-????-????-????-????????????')):
        card = local.root / f'proc/driver/nvidia/gpus/000{number}:0a:00.0'
        card.mkdir(parents=True)
        (card / 'information').write_text(f'GPU UUID: \t {text}\n')
    assert [c.serial for c in discover(local)] == [uuids[0], None]


def test_a_recorded_host_has_not_the_gpus_of_this_one(nvml, local):
    cards = discover(driver.Host('copy', local.root))
    assert {c.model for c in cards} == {'NVIDIA GPU ffff'}


def fail(*args):
    raise NVMLError('GPU is lost')


@pytest.mark.parametrize('call', ['nvmlInit', 'nvmlDeviceGetCount', 'nvmlDeviceGetHandleByIndex'])
def test_nvml_that_fails_loses_no_card(nvml, local, call):
    setattr(nvml, call, fail)
    assert [c.model for c in discover(local)] == ['NVIDIA GPU ffff'] * 2


def test_a_gpu_that_is_lost_takes_no_other_along(nvml, local):
    nvml.nvmlDeviceGetName = lambda gpu: fail() if gpu == 0 else 'NVIDIA H200'
    assert [c.model for c in discover(local)] == ['NVIDIA GPU ffff', 'NVIDIA H200']


def test_no_package(monkeypatch, local):
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    assert [c.model for c in discover(local)] == ['NVIDIA GPU ffff'] * 2


class NVMLError_NotSupported(NVMLError):  # noqa: N801 - the library's name
    """As the library's."""


class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801
    """As the library's."""


class NVMLError_InvalidArgument(NVMLError):  # noqa: N801
    """As the library's."""


def connect(nvml, *cards):
    """Set the NVLinks of each GPU: the address at the other end of each, None if it is off."""

    def state(gpu, number):
        if number >= len(cards[gpu]):
            raise NVMLError_InvalidArgument(number)
        return int(cards[gpu][number] is not None)

    nvml.NVML_FEATURE_ENABLED = 1
    nvml.nvmlDeviceGetNvLinkState = state
    nvml.nvmlDeviceGetNvLinkRemotePciInfo = lambda gpu, number: types.SimpleNamespace(
        busId=cards[gpu][number]
    )


def links(cards):
    return [(card.topology or {}).get('links') for card in cards]


def test_direct_nvlinks(nvml, local):
    connect(nvml, ['00000001:0A:00.0'] * 2 + [None], ['00000000:0A:00.0'] * 2)
    assert links(discover(local)) == [{'0001:0a:00.0': 2}, {'0000:0a:00.0': 2}]


def test_nvlinks_by_way_of_switches(nvml, local):
    one, other, third = (f'00000000:0{n}:00.0' for n in (7, 8, 9))
    connect(nvml, [one, one, one, other], [one, one, other, other, third])
    assert links(discover(local)) == [{'0001:0a:00.0': 3}, {'0000:0a:00.0': 3}]


def test_cards_without_nvlinks(nvml, local):
    nvml.nvmlDeviceGetNvLinkState = refuse(NVMLError_NotSupported)
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    assert (links(cards), notes) == ([None, None], [])


def test_nvlinks_stay_while_nvml_fails(nvml, local):
    connect(nvml, ['00000001:0A:00.0'], ['00000000:0A:00.0'])
    subject = nvidia_gpu.NvidiaGpu(local, None)
    before = links(subject.look()[0])
    nvml.nvmlDeviceGetNvLinkState = refuse()
    cards, notes = subject.look()
    assert links(cards) == before == [{'0001:0a:00.0': 1}, {'0000:0a:00.0': 1}]
    assert any('does not tell the nvlinks' in note for note in notes)


@pytest.mark.parametrize(
    'told',
    [
        None,
        ['0001:0a:00.0'],
        {'0001:0a:00.0': 0},
        {'0001:0a:00.0': 37},
        {'0001:0a:00.0': True},
        {'0001:0a:00.0': '1'},
        {'': 1},
        {f'0001:{n:02x}:00.0': 1 for n in range(37)},
    ],
)
def test_invalid_nvlinks_of_a_recording(recorded, told):
    for nvlinks, found in ((told, None), ({CARDS[1]: 1}, {CARDS[1]: 1})):
        recorded.tools['nvml'] = json.dumps({CARDS[0]: {'nvlinks': nvlinks}})
        assert links(discover(recorded))[0] == found


def refuse(error=NVMLError):
    def call(*args):
        raise error('Not Supported')

    return call


def test_an_unsupported_value_does_not_affect_others(nvml, local):
    """A GB10 shares the memory of the host."""
    nvml.nvmlDeviceGetMemoryInfo = refuse(NVMLError_NotSupported)
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    assert {c.model for c in cards} == {'NVIDIA H200'}
    assert [c.vendor_board for c in cards] == [
        {'uuid': 'GPU-0', 'index': 0},
        {'uuid': 'GPU-1', 'index': 1},
    ]
    assert notes == []


class NVMLError_NoPermission(NVMLError):  # noqa: N801
    """As the library's."""


def run_on(nvml, *pids, mps=()):
    """Set the processes that compute on each GPU, without and with MPS."""

    def table(found):
        return lambda gpu: [types.SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in found]

    nvml.nvmlDeviceGetComputeRunningProcesses = table(pids)
    nvml.nvmlDeviceGetMPSComputeRunningProcesses = table(mps)


def listed(subject):
    return [card.processes for card in subject.look()[0]]


def test_processes_that_compute(nvml, local):
    """Also with MPS; what is no pid does not hide others."""
    subject = nvidia_gpu.NvidiaGpu(local, None)
    run_on(nvml, 4711, 7, 0, (1 << 32) - 1, mps=(8, 7))
    assert listed(subject) == [{7, 8, 4711}] * 2
    assert all('processes' not in card.facts() for card in subject.look()[0])


@pytest.mark.parametrize('error', [NVMLError_NotSupported, NVMLError_NoPermission, AttributeError])
def test_processes_that_are_not_listed(nvml, local, error):
    """They are no fault; the other table is read."""
    run_on(nvml, 7)
    nvml.nvmlDeviceGetMPSComputeRunningProcesses = refuse(error)
    subject = nvidia_gpu.NvidiaGpu(local, None)
    cards, notes = subject.look()
    assert ([card.processes for card in cards], notes) == ([{7}] * 2, [])


def test_memory_of_processes(nvml, local):
    """What NVML does not tell is left out; of several instances it is the sum."""
    table = [(7, 3 << 30), (7, 1 << 20), (8, None), (0, 5 << 20), (9, 0)]
    told = [types.SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in table]
    run_on(nvml)
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda gpu: told
    subject = nvidia_gpu.NvidiaGpu(local, None)
    cards = subject.look()[0]
    assert [card.memory for card in cards] == [{7: 3073, 9: 0}] * 2
    assert all('memory' not in card.facts() for card in cards)
    nvml.nvmlInit = refuse()
    assert [card.memory for card in subject.look()[0]] == [None] * 2


@pytest.mark.parametrize(
    'told',
    [7, [[7, 1]], {'x': 1}, {'': 1}, {'7': -1}, {'7': None}, {'0': 1}, {'7': 1 << 31}],
    ids=str,
)
def test_invalid_memory_of_a_recording(recorded, told):
    for value, found in (told, None), ({'7': 1}, {7: 1}):
        recorded.tools['nvml'] = json.dumps({CARDS[0]: {'pid_memory': value}})
        assert discover(recorded)[0].memory == found


def test_processes_do_not_outlive_a_scan(nvml, local):
    """The pid may be used again."""
    subject = nvidia_gpu.NvidiaGpu(local, None)
    run_on(nvml, 7)
    assert listed(subject) == [{7}] * 2
    nvml.nvmlDeviceGetComputeRunningProcesses = refuse()
    cards, notes = subject.look()
    assert [card.processes for card in cards] == [None] * 2
    assert notes == [f'NVML does not tell the pids of {c.address}: Not Supported' for c in cards]
    run_on(nvml, 7)
    listed(subject)
    nvml.nvmlInit = refuse()
    assert listed(subject) == [None] * 2


@pytest.mark.parametrize(
    'told', [None, {'7': 1}, 7, ['7'], [True], [0], [-1], [1 << 23], [7.0], list(range(1, 1026))]
)
def test_invalid_processes_of_a_recording(recorded, told):
    for pids, found in ((told, None), ([7], {7})):
        recorded.tools['nvml'] = json.dumps({CARDS[0]: {'pids': pids}})
        assert discover(recorded)[0].processes == found


def run_for(nvml, *percents):
    """Set the utilization of each GPU."""
    nvml.nvmlDeviceGetUtilizationRates = lambda gpu: types.SimpleNamespace(
        gpu=percents[gpu], memory=1
    )


def utilizations(subject):
    return [card.utilization for card in subject.look()[0]]


def test_utilization_of_a_scan(nvml, local):
    """What is not told now is not known: the last answer does not stay."""
    subject = nvidia_gpu.NvidiaGpu(local, None)
    run_for(nvml, 0, 37)
    assert utilizations(subject) == [0, 37]
    assert all('utilization' not in card.facts() for card in subject.look()[0])
    nvml.nvmlDeviceGetUtilizationRates = refuse()
    cards, notes = subject.look()
    assert [card.utilization for card in cards] == [None] * 2
    assert len(notes) == 2
    run_for(nvml, 0, 37)
    utilizations(subject)
    nvml.nvmlInit = refuse()
    assert utilizations(subject) == [None] * 2


@pytest.mark.parametrize('error', [NVMLError_NotSupported, AttributeError])
def test_a_gpu_that_measures_no_utilization_is_no_fault(nvml, local, error):
    nvml.nvmlDeviceGetUtilizationRates = refuse(error)
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    assert ([card.utilization for card in cards], notes) == ([None] * 2, [])


def test_utilization_is_not_that_of_instances(mig, local):
    """In MIG mode it is not measured, whatever the library answers."""
    run_for(mig, 0, 0)
    assert utilizations(nvidia_gpu.NvidiaGpu(local, None)) == [None, 0]


@pytest.mark.parametrize('told', ['0', -1, 101, 0.0, False, [0]])
def test_invalid_utilization_of_a_recording(recorded, told):
    for value, found in ((told, None), (0, 0), (None, None)):
        recorded.tools['nvml'] = json.dumps({CARDS[0]: {'utilization': value}})
        assert discover(recorded)[0].utilization == found


def test_processes_are_not_too_many(nvml, local):
    run_on(nvml, *range(1, 3000))
    assert [len(pids) for pids in listed(nvidia_gpu.NvidiaGpu(local, None))] == [1024] * 2


@pytest.mark.parametrize(
    ('call', 'value'),
    [('Name', 'name'), ('UUID', 'uuid'), ('Index', 'index'), ('MemoryInfo', 'memory_mb')],
)
def test_a_failed_value_does_not_affect_others(nvml, local, call, value):
    setattr(nvml, f'nvmlDeviceGet{call}', refuse())
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    told = [({'name': c.model} | c.vendor_board).keys() for c in cards]
    assert told == [{'name', 'uuid', 'index', 'memory_mb'} - ({value} - {'name'})] * 2
    assert {c.model for c in cards} == {'NVIDIA GPU ffff' if value == 'name' else 'NVIDIA H200'}
    assert notes == [f'NVML does not tell the {value} of {c.address}: Not Supported' for c in cards]


CALLS = [
    'nvmlInit',
    'nvmlDeviceGetCount',
    'nvmlDeviceGetHandleByIndex',
    'nvmlDeviceGetPciInfo',
    'nvmlDeviceGetName',
    'nvmlDeviceGetUUID',
    'nvmlDeviceGetIndex',
    'nvmlDeviceGetMemoryInfo',
    'nvmlDeviceGetMigMode',
]


@pytest.mark.parametrize('error', [NVMLError, OSError, NVMLError_DriverNotLoaded])
@pytest.mark.parametrize('call', CALLS)
def test_known_facts_stay_when_a_scan_fails(nvml, local, call, error):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    before = told(subject.look()[0])
    works = getattr(nvml, call)
    setattr(nvml, call, refuse(error))
    cards, notes = subject.look()
    assert told(cards) == before
    assert notes and all('NVML does not' in note for note in notes)
    setattr(nvml, call, works)
    cards, notes = subject.look()
    assert told(cards) == before
    assert notes == []


def test_an_error_at_shutdown_loses_nothing(nvml, local):
    nvml.nvmlShutdown = refuse()
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    assert {c.model for c in cards} == {'NVIDIA H200'}
    assert notes == []


def test_a_host_without_the_driver_is_no_fault(nvml, local):
    nvml.nvmlInit = refuse(NVMLError_DriverNotLoaded)
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    assert [c.model for c in cards] == ['NVIDIA GPU ffff'] * 2
    assert notes == []


def test_a_library_that_does_not_work_is_named(nvml, local):
    nvml.nvmlInit = refuse()
    assert nvidia_gpu.NvidiaGpu(local, None).look()[1] == ['NVML does not load: Not Supported']


@pytest.mark.parametrize('changed', ['device', 'subsystem_device'])
def test_another_card_at_the_address_inherits_nothing(nvml, local, changed):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    subject.look()
    (local.tree.functions()[0].path / changed).write_text('0x2901')
    nvml.nvmlDeviceGetCount = refuse()
    first, second = subject.look()[0]
    assert (first.vendor_board, second.model) == ({}, 'NVIDIA H200')


def test_another_card_of_the_same_kind_inherits_nothing(nvml, local):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    subject.look()
    nvml.nvmlDeviceGetUUID = lambda gpu: f'GPU-{gpu + 7}'
    nvml.nvmlDeviceGetMemoryInfo = refuse(NVMLError_NotSupported)
    uuids = [c.vendor_board.pop('uuid') for c in subject.look()[0]]
    assert uuids == ['GPU-7', 'GPU-8']
    assert [c.vendor_board for c in subject.look()[0]] == [
        {'uuid': 'GPU-7', 'index': 0},
        {'uuid': 'GPU-8', 'index': 1},
    ]


def test_a_card_that_was_away_is_learnt_anew(nvml, local):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    subject.look()
    vendor = local.tree.functions()[0].path / 'vendor'
    vendor.write_text('0xffff')
    assert len(subject.look()[0]) == 1
    vendor.write_text('0x10de')
    nvml.nvmlInit = refuse()
    first, second = subject.look()[0]
    assert (first.vendor_board, second.vendor_board['uuid']) == ({}, 'GPU-1')


def test_a_card_that_a_guest_has_keeps_its_facts_and_is_no_fault(nvml, local):
    """NVIDIA's driver has released it."""
    subject = nvidia_gpu.NvidiaGpu(local, None)
    before = told(subject.look()[0])
    for function in local.tree.functions():
        (function.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    nvml.nvmlInit = refuse()
    cards, notes = subject.look()
    assert told(cards) == before
    assert notes == []


def test_a_name_does_not_depend_on_nvml(nvml, local):
    """If our table has not the card, pci.ids comes before NVML."""
    nvml.nvmlDeviceGetName = lambda gpu: 'NVIDIA ffff in full'
    assert {card.model for card in discover(local)} == {'NVIDIA ffff in full'}
    names = local.root / 'usr/share/misc/pci.ids'
    names.parent.mkdir(parents=True)
    names.write_text('10de  NVIDIA Corporation\n\tffff  GX100 [FFFF]\n')
    pci_ids._read.cache_clear()
    assert {card.model for card in discover(local)} == {'NVIDIA FFFF'}


@pytest.mark.parametrize('name', ['x' * 300, 'NVIDIA\x00', '', b'\xff', ' '])
def test_an_unprintable_name_is_dropped(nvml, local, name):
    nvml.nvmlDeviceGetName = lambda gpu: name
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    expected = 'NVIDIA GPU ffff' if name != b'\xff' else '\ufffd'
    assert {c.model for c in cards} == {expected}
    assert [c.vendor_board['uuid'] for c in cards] == ['GPU-0', 'GPU-1']


def split(tmp_path, types: dict[int, str | None], count: int = 16) -> driver.Device:
    """A card with virtual functions of these vGPU types; None is no file, and 0 is the default."""
    virtual = {'id': '10de:2335', 'total': '16', 'enabled': str(count), 'offset': '4'}
    function = captures.function('0000:01:00.0', '10de:2335', '030200', virtual=virtual)
    host = captures.host(tmp_path, [function])
    for number, virtual_function in enumerate(host.tree.functions()[0].virtual_functions):
        kind = types.get(number, '0')
        if kind is not None:
            (virtual_function.path / 'nvidia').mkdir()
            (virtual_function.path / 'nvidia/current_vgpu_type').write_text(kind)
    [card] = discover(host)
    return card


@pytest.mark.parametrize(
    ('types', 'offered'),
    [
        ({3: '1428', 9: '1414'}, 2),
        ({}, 0),
        (dict.fromkeys(range(16)), 16),
        ({0: '1428', 1: None, 2: '-1', 3: 'none', 4: '', 5: '00'}, 1),
    ],
)
def test_virtual_functions_without_a_type_are_not_offered(tmp_path, types, offered):
    card = split(tmp_path, types)
    [deployable] = card.deployables
    assert 'current_vgpu_type' in (card.unusable or '') if not offered else card.unusable is None
    assert deployable.resource_class == 'VGPU'
    assert len(deployable.attach_handles) == offered


#: MIG instances by their number on the card: name, GPU instance and compute instance.
INSTANCES = {
    0: ('NVIDIA H200 MIG 3g.71gb', 2, 0),
    2: ('NVIDIA H200 MIG 1g.18gb', 9, 0),
    3: ('NVIDIA H200 MIG 1g.18gb', 10, 0),
}


@pytest.fixture
def mig(nvml):
    """The first of the two GPUs is in MIG mode, the other is not."""
    whole = vars(nvml) | {}

    def handle(gpu, number):
        if number not in INSTANCES:
            raise NVMLError_NotFound(number)
        return 'MIG', number

    def either(name, instance):
        setattr(nvml, name, lambda gpu: instance(gpu[1]) if gpu in parts else whole[name](gpu))

    parts = [('MIG', number) for number in INSTANCES]
    nvml.nvmlDeviceGetMigMode = lambda gpu: [int(gpu == 0)] * 2
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda gpu: 7
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = handle
    nvml.nvmlDeviceGetGpuInstanceId = lambda mig: INSTANCES[mig[1]][1]
    nvml.nvmlDeviceGetComputeInstanceId = lambda mig: INSTANCES[mig[1]][2]
    either('nvmlDeviceGetName', lambda number: INSTANCES[number][0])
    either('nvmlDeviceGetUUID', lambda number: f'MIG-{number}')
    return nvml


def parts_of(card: driver.Device) -> dict[str | None, list[str]]:
    """The UUIDs of a card's accelerators, by resource class."""
    return {
        each.resource_class: [handle.attach_info.get('uuid') for handle in each.attach_handles]
        for each in card.deployables
    }


def test_a_card_in_mig_mode_is_given_out_by_instance(mig, local):
    split, whole = discover(local)
    assert parts_of(split) == {
        'CUSTOM_MIG_1G_18GB': ['MIG-2', 'MIG-3'],
        'CUSTOM_MIG_3G_71GB': ['MIG-0'],
    }
    assert (split.unusable, whole.unusable) == (None, None)
    assert [each.name for each in split.deployables] == [
        '0000:0a:00.0_mig_1g.18gb',
        '0000:0a:00.0_mig_3g.71gb',
    ]
    handle = split.deployables[0].attach_handles[0]
    assert (handle.attach_type, handle.form) == ('MIG', 'mig')
    assert handle.attach_info == {
        'uuid': 'MIG-2',
        'gpu_instance_id': '9',
        'compute_instance_id': '0',
    }
    assert all(each.traits == ['CUSTOM_NVIDIA_FFFF'] for each in split.deployables)
    assert parts_of(whole) == {'PGPU': [None]}


@pytest.mark.parametrize(
    ('name', 'resource_class'),
    [
        ('NVIDIA A100-SXM4-40GB MIG 1g.5gb', 'CUSTOM_MIG_1G_5GB'),
        ('NVIDIA H100 80GB HBM3 MIG 1g.10gb+me', 'CUSTOM_MIG_1G_10GB_ME'),
        ('NVIDIA H200 MIG 1c.3g.71gb', 'CUSTOM_MIG_1C_3G_71GB'),
        ('NVIDIA B200 MIG 1g.23gb+me.all', 'CUSTOM_MIG_1G_23GB_ME_ALL'),
        ('NVIDIA H200', 'CUSTOM_MIG_UNKNOWN'),
        ('NVIDIA H200 MIG ' + '9' * 99, 'CUSTOM_MIG_UNKNOWN'),
    ],
)
def test_profiles(mig, local, monkeypatch, name, resource_class):
    monkeypatch.setattr(sys.modules[__name__], 'INSTANCES', {0: (name, 1, 0)})
    assert list(parts_of(discover(local)[0])) == [resource_class]


def test_a_card_without_an_instance_gives_nothing_out(mig, local):
    mig.nvmlDeviceGetMaxMigDeviceCount = lambda gpu: 0
    card = discover(local)[0]
    assert 'nvidia-smi mig -cgi' in card.unusable
    assert parts_of(card) == {'PGPU': []}


@pytest.mark.parametrize(
    'call',
    ['MigMode', 'MaxMigDeviceCount', 'MigDeviceHandleByIndex', 'GpuInstanceId', 'UUID', 'Name'],
)
def test_no_instance_goes_while_nvml_fails(mig, local, call):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    before = told(subject.look()[0])
    setattr(mig, f'nvmlDeviceGet{call}', refuse())
    cards, notes = subject.look()
    assert told(cards) == before
    assert any('does not tell the mig' in note for note in notes)


def test_a_card_out_of_mig_mode_is_whole_again(mig, local):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    subject.look()
    mig.nvmlDeviceGetMigMode = lambda gpu: [0, 1]
    assert parts_of(subject.look()[0][0]) == {'PGPU': [None]}


def test_a_card_whose_instances_only_the_kernel_lists_is_not_given_out(nvml, local, monkeypatch):
    """As a whole it would be allocated to one tenant while others use its instances."""
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    proc = local.root / 'proc/driver/nvidia'
    for number in range(2):
        card = proc / f'gpus/000{number}:0a:00.0'
        card.mkdir(parents=True)
        (card / 'information').write_text(f'Model: \t\t H200\nDevice Minor: \t {7 - number}\n')
    (proc / 'capabilities/gpu6/mig/gi2/ci0').mkdir(parents=True)
    whole, split = discover(local)
    assert whole.unusable is None
    assert 'nvidia-ml-py' in split.unusable


def test_real_cards_with_instances(nvml, tmp_path):
    """The data of a host with H100s, one of them in MIG mode."""
    told = json.loads(captures.text('detector-json/nvidia_h100_mig.json'))
    parts = {gpu['index']: gpu['appendix'].get('mig_devices', []) for gpu in told}
    functions = [captures.function(gpu['appendix']['bdf'], '10de:2330', '030200') for gpu in told]
    copy = captures.host(tmp_path, functions)

    def handle(gpu, number):
        if number >= len(parts[gpu]):
            raise NVMLError_NotFound(number)
        return parts[gpu][number]

    nvml.nvmlDeviceGetCount = lambda: len(told)
    nvml.nvmlDeviceGetPciInfo = lambda gpu: types.SimpleNamespace(
        busId=told[gpu]['appendix']['bdf']
    )
    nvml.nvmlDeviceGetMigMode = lambda gpu: [int(told[gpu]['appendix'].get('mig', False))] * 2
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda gpu: 7
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = handle
    nvml.nvmlDeviceGetGpuInstanceId = lambda mig: mig['appendix']['gpu_instance_id']
    nvml.nvmlDeviceGetComputeInstanceId = lambda mig: mig['appendix']['compute_instance_id']
    nvml.nvmlDeviceGetName = lambda gpu: (
        f'NVIDIA H100 80GB HBM3 MIG {gpu["name"]}' if isinstance(gpu, dict) else 'x'
    )
    nvml.nvmlDeviceGetUUID = lambda gpu: gpu['uuid'] if isinstance(gpu, dict) else f'GPU-{gpu}'
    cards = discover(driver.Host('local', copy.root, recorded=False))
    for gpu, card in zip(told, cards, strict=True):
        found = sorted(uuid for uuids in parts_of(card).values() for uuid in uuids if uuid)
        assert found == sorted(each['uuid'] for each in parts[gpu['index']])
    assert parts_of(cards[0]).keys() == {'CUSTOM_MIG_1G_10GB', 'CUSTOM_MIG_1G_20GB'}
    assert parts_of(cards[3]).keys() == {'CUSTOM_MIG_1C_3G_40GB'}


def _recorded_h200() -> dict[int, tuple]:
    """The instances of an H200: names and UUIDs of ``-L``, and ids of the table."""
    text = captures.text('nvidia/capture-h200-mig__590.48.01.txt')
    told = re.findall(r'^  MIG (\S+) +Device +([0-9]+): \(UUID: (\S+)\)$', text, re.MULTILINE)
    rows = re.findall(r'^\|  0 +([0-9]+) +([0-9]+) +([0-9]+)  \|', text, re.MULTILINE)
    ids = {device: (gpu, compute) for gpu, compute, device in rows}
    return {int(n): (f'NVIDIA H200 MIG {name}', *map(int, ids[n]), uuid) for name, n, uuid in told}


def _recorded_a100() -> dict[int, tuple]:
    """The instances of an A100: nvidia-smi -q -x has their ids, and neither name nor UUID.

    14 multiprocessors are one slice, and 19968 MiB two slices of memory: so each is 1g.20gb.
    """
    root = xml.etree.ElementTree.fromstring(captures.text('nvidia/nvidia-smi-qx-a100-sxm4-v12.xml'))
    found = {}
    for each in root.find('gpu').iter('mig_device'):
        assert each.findtext('.//multiprocessor_count') == '14'
        assert each.findtext('fb_memory_usage/total') == '19968 MiB'
        number = int(each.findtext('index'))
        ids = (int(each.findtext(f'{kind}_instance_id')) for kind in ('gpu', 'compute'))
        found[number] = ('NVIDIA A100-SXM4-80GB MIG 1g.20gb', *ids, f'MIG-{number}')
    return found


#: Four instances as the MIG user guide lets them be, of the sizes of a sample.
H100 = {
    number: (f'NVIDIA H100 80GB HBM3 MIG {size}', gpu, 0, f'MIG-{number}')
    for number, (size, gpu) in enumerate(
        [('3g.40gb', 2), ('1g.20gb', 6), ('1g.10gb', 11), ('1g.10gb', 12)]
    )
}


@pytest.mark.parametrize(
    ('recorded_as', 'parts'),
    [
        pytest.param(
            _recorded_a100,
            {'CUSTOM_MIG_1G_20GB': 4},
            marks=pytest.mark.evidence(
                'nvidia_gpu', 'real capture', 'nvidia-smi -q -x of four MIG instances',
                'NVIDIA A100-SXM4-80GB',
            ),
        ),
        pytest.param(
            _recorded_h200,
            {
                'CUSTOM_MIG_1C_3G_71GB': 1,
                'CUSTOM_MIG_1G_18GB': 2,
                'CUSTOM_MIG_2C_3G_71GB': 1,
                'CUSTOM_MIG_2G_35GB': 1,
            },
            marks=pytest.mark.evidence(
                'nvidia_gpu', 'real capture', 'nvidia-smi of five MIG instances', 'NVIDIA H200'
            ),
        ),
        (
            lambda: H100,
            {'CUSTOM_MIG_1G_10GB': 2, 'CUSTOM_MIG_1G_20GB': 1, 'CUSTOM_MIG_3G_40GB': 1},
        ),
    ],
)  # fmt: skip
def test_each_instance_of_a_card_is_one_part(mig, local, monkeypatch, recorded_as, parts):
    instances = recorded_as()
    monkeypatch.setattr(sys.modules[__name__], 'INSTANCES', instances)
    monkeypatch.setattr(mig, 'nvmlDeviceGetUUID', lambda gpu: (
        instances[gpu[1]][3] if isinstance(gpu, tuple) else f'GPU-{gpu}'
    ))  # fmt: skip
    for call, place in (('GpuInstanceId', 1), ('ComputeInstanceId', 2), ('Name', 0)):
        monkeypatch.setattr(mig, f'nvmlDeviceGet{call}', lambda gpu, place=place: (
            instances[gpu[1]][place] if isinstance(gpu, tuple) else 'NVIDIA'
        ))  # fmt: skip
    split, whole = discover(local)
    assert {kind: len(uuids) for kind, uuids in parts_of(split).items()} == parts
    handles = [each for part in split.deployables for each in part.attach_handles]
    assert {tuple(each.attach_info.values()) for each in handles} == {
        (uuid, str(gpu), str(compute)) for _, gpu, compute, uuid in instances.values()
    }
    assert len(handles) == len(instances)
    assert (split.unusable, parts_of(whole)) == (None, {'PGPU': [None]})


def test_a_card_that_a_guest_has_is_whole(mig, local):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    subject.look()
    for function in local.tree.functions():
        (function.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    assert parts_of(subject.look()[0][0]) == {'PGPU': [None]}


@pytest.mark.parametrize(
    ('number', 'version', 'traits'),
    [
        (12090, '12.9', ['CUSTOM_NVIDIA_GPU_RUNTIME_12', 'CUSTOM_NVIDIA_GPU_RUNTIME_12_9']),
        (13000, '13.0', ['CUSTOM_NVIDIA_GPU_RUNTIME_13', 'CUSTOM_NVIDIA_GPU_RUNTIME_13_0']),
        (-1, None, []),
        (10**9, None, []),
    ],
)
def test_the_runtime_is_the_latest_cuda_of_the_driver(nvml, local, number, version, traits):
    nvml.nvmlSystemGetCudaDriverVersion = lambda: number
    cards, notes = nvidia_gpu.NvidiaGpu(local, None).look()
    assert notes == []
    assert [card.vendor_board.get('runtime_version') for card in cards] == [version] * 2
    assert cards[0].deployables[0].traits == ['CUSTOM_NVIDIA_FFFF', *traits]


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801
    """As the library's."""


def health(cards: list[driver.Device]) -> list[tuple]:
    return [(card.health, card.health_reason) for card in cards]


class Sram(ctypes.Structure):
    """The library's structure, as far as it matters."""

    _fields_ = (('bThresholdExceeded', ctypes.c_uint),)


class NVMLError_NoPermission(NVMLError):  # noqa: N801
    """As the library's."""


def sick(nvml, ecc=0, remapped=(0, 0, 0, 0), retiring=0, sram=0):
    """Set the library's values of the health of the first GPU."""

    def worn(gpu, status):
        if sram is None:
            raise NVMLError_NoPermission
        status._obj.bThresholdExceeded = 0 if gpu else sram

    nvml.c_nvmlEccSramErrorStatus_v1_t = Sram
    nvml.nvmlDeviceGetSramEccErrorStatus = worn
    nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC = 1, 0
    nvml.nvmlDeviceGetTotalEccErrors = lambda gpu, kind, counter: 0 if gpu else ecc
    nvml.nvmlDeviceGetRemappedRows = lambda gpu: (0, 0, 0, 0) if gpu else remapped
    nvml.NVML_FEATURE_ENABLED = 1
    nvml.nvmlDeviceGetRetiredPagesPendingStatus = lambda gpu: 0 if gpu else retiring


@pytest.mark.parametrize(
    ('values', 'level', 'reason'),
    [
        ({}, 'ok', None),
        ({'ecc': 3}, 'critical', 'ecc_uncorrectable'),
        ({'remapped': (0, 1, 1, 0)}, 'warning', 'row_remap_pending'),
        ({'remapped': (0, 1, 1, 1)}, 'critical', 'row_remap_failure'),
        ({'remapped': (5, 0, 0, 0)}, 'ok', None),
        ({'remapped': 'rubbish'}, 'unknown', None),
        ({'retiring': 1}, 'warning', 'page_retirement'),
        ({'sram': 1}, 'critical', 'sram_threshold'),
        # Only root may read it.
        ({'sram': None}, 'ok', None),
    ],
)
def test_health_by_nvml(nvml, local, values, level, reason):
    sick(nvml, **values)
    assert health(discover(local)) == [(level, reason), ('ok', None)]


def recover(nvml, action: int, result: int = 0) -> None:
    """Set the recovery that NVML says the first GPU needs, or its error."""
    nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, nvml.NVML_SUCCESS = 230, 0
    nvml.nvmlDeviceGetFieldValues = lambda gpu, fields: [
        types.SimpleNamespace(
            nvmlReturn=0 if gpu else result,
            value=types.SimpleNamespace(uiVal=0 if gpu else action),
        )
        for _ in fields
    ]


@pytest.mark.parametrize(
    ('action', 'error', 'level', 'reason'),
    [
        (0, 0, 'ok', None),
        (1, 0, 'critical', 'gpu_reset_required'),
        (2, 0, 'critical', 'gpu_reboot'),
        (3, 0, 'critical', 'gpu_drain_p2p'),
        (4, 0, 'warning', 'gpu_drain'),
        (5, 0, 'critical', 'gpu_imex_domain'),
        (6, 0, 'critical', 'gpu_bus_reset'),
        (7, 0, 'critical', 'gpu_system_reboot'),
        # An action of a later release.
        (99, 0, 'critical', 'gpu_recovery_99'),
        # A driver that does not know the field.
        (2, 3, 'ok', None),
    ],
)
def test_health_by_the_recovery_that_a_gpu_needs(nvml, local, action, error, level, reason):
    recover(nvml, action, error)
    assert health(discover(local)) == [(level, reason), ('ok', None)]


def test_a_card_without_ecc_is_well_if_it_answers(nvml, local):
    nvml.nvmlDeviceGetTotalEccErrors = refuse(NVMLError_NotSupported)
    assert health(discover(local)) == [('ok', None)] * 2


class NVMLError_ResetRequired(NVMLError):  # noqa: N801
    """As the library's."""


@pytest.mark.parametrize(
    ('error', 'reason'),
    [(NVMLError_GpuIsLost, 'gpu_lost'), (NVMLError_ResetRequired, 'gpu_reset_required')],
)
@pytest.mark.parametrize('call', ['nvmlDeviceGetHandleByIndex', 'nvmlDeviceGetUUID'])
def test_a_gpu_that_cannot_be_used(nvml, local, call, error, reason):
    """NVML cannot return the address of a lost GPU by its number."""
    plain = getattr(nvml, call)
    by_bus = {b'0000:0a:00.0': 0, b'0001:0a:00.0': 1}

    def lost(number):
        if number == 1:
            raise error
        return plain(number)

    setattr(nvml, call, lost)
    nvml.nvmlDeviceGetHandleByPciBusId = lambda bus: lost(by_bus[bus])
    assert health(discover(local)) == [('ok', None), ('critical', reason)]


def test_health_that_nvml_no_longer_reports_is_unknown(nvml, local, monkeypatch):
    sick(nvml, ecc=1)
    subject = nvidia_gpu.NvidiaGpu(local, None)
    assert health(subject.discover()) == [('critical', 'ecc_uncorrectable'), ('ok', None)]
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    for _ in range(2):
        assert health(subject.discover()) == [('unknown', None)] * 2


def test_health_from_nvml_is_unknown_for_a_card_of_a_guest(nvml, local):
    subject = nvidia_gpu.NvidiaGpu(local, None)
    assert health(subject.discover()) == [('ok', None)] * 2
    first, _ = local.tree.functions()
    (first.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    nvml.nvmlDeviceGetCount = lambda: 1
    assert ('unknown', None) in health(subject.discover())


def test_a_card_that_nvml_does_not_report_has_unknown_health(nvml, local):
    """After a reboot NVML does not count a GPU that its driver could not start."""
    for card in local.tree.functions():
        for name in ('current_link_width', 'max_link_width'):
            (card.path / name).write_text('16')
    nvml.nvmlDeviceGetCount = lambda: 1
    assert health(discover(local)) == [('ok', None), ('unknown', None)]


@pytest.fixture
def tried(nvml, local):
    """A driver of which the first GPU was critical, and a function that looks at it again."""
    sick(nvml, ecc=1)
    nvml.nvmlDeviceGetHandleByPciBusId = {b'0000:0a:00.0': 0, b'0001:0a:00.0': 1}.__getitem__
    subject = nvidia_gpu.NvidiaGpu(local, None)
    assert health(subject.look()[0])[0] == ('critical', 'ecc_uncorrectable')
    sick(nvml)
    return lambda: health(subject.look()[0])[0]


def test_a_gpu_comes_back_if_nvml_knows_nothing_against_it(tried):
    assert tried() == ('ok', None)


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'remapped': (0, 1, 1, 0)}, 'row_remap_pending'),
        ({'retiring': 1}, 'page_retirement'),
    ],
)
def test_a_gpu_that_still_waits_for_a_reset_does_not_come_back(nvml, tried, values, reason):
    """By its health alone it would: that is only a warning."""
    sick(nvml, **values)
    assert tried() == ('critical', reason)
    sick(nvml)
    assert tried() == ('ok', None)


def test_a_gpu_that_should_be_drained_does_not_come_back(nvml, tried):
    recover(nvml, 4)
    assert tried() == ('critical', 'gpu_drain')
    recover(nvml, 0)
    assert tried() == ('ok', None)


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (NVMLError_GpuIsLost, 'gpu_lost'),
        (NVMLError_ResetRequired, 'gpu_reset_required'),
        (NVMLError, 'gpu_no_answer'),
        (KeyError, 'gpu_no_answer'),
    ],
)
def test_a_gpu_that_cannot_be_opened_by_its_address_does_not_come_back(nvml, tried, error, reason):
    nvml.nvmlDeviceGetHandleByPciBusId = refuse(error)
    assert tried() == ('critical', reason)


@pytest.mark.parametrize(
    ('call', 'fault', 'expected'),
    [
        ('nvmlInit', NVMLError, 'gpu_no_answer'),
        ('nvmlShutdown', NVMLError, None),
        ('nvmlDeviceGetRemappedRows', NVMLError, 'gpu_no_answer'),
        ('nvmlDeviceGetRemappedRows', NVMLError_NotSupported, None),
    ],
)
def test_a_trial_whose_questions_fail(nvml, tried, call, fault, expected):
    setattr(nvml, call, refuse(fault))
    assert library.trial('0000:0a:00.0') == expected


def test_a_gpu_that_has_left_its_bus_does_not_come_back(local, tried):
    first, _ = local.tree.functions()
    (first.path / 'config').write_bytes(b'\xff' * 64)
    assert tried() == ('critical', 'pci_no_answer')


def test_an_a2_has_fewer_lanes_than_its_chip_says(tmp_path):
    """As in a2-vgpu-sriov-mdev: 8 of 16 lanes, without a fault."""
    links = {'current_link_width': '8', 'max_link_width': '16'}
    function = captures.function('0000:08:00.0', '10de:25b6', '030200', files=links)
    assert health(discover(captures.host(tmp_path, [function]))) == [('ok', None)]


def test_the_link_of_a_guests_card_does_not_make_it_healthy(tmp_path):
    """An agent that starts meanwhile has no earlier data of it."""
    links = {'current_link_width': '16', 'max_link_width': '16'}
    function = captures.function('0000:08:00.0', '10de:2330', '030200', files=links)
    host = captures.host(tmp_path, [function])
    assert health(discover(host)) == [('ok', None)]
    [card] = host.tree.functions()
    (card.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    assert health(discover(host)) == [('unknown', None)]


@pytest.mark.parametrize('with_serials', [True, False])
def test_a_recording_has_the_answers_of_nvml(mig, local, tmp_path, monkeypatch, with_serials):
    """Names, memory and MIG instances, on a machine without the library."""
    of_mig = mig.nvmlDeviceGetUUID
    mig.nvmlDeviceGetUUID = lambda gpu: (
        of_mig(gpu) if isinstance(gpu, tuple) else f'GPU-4f1c1c1e-95b7-4cd7-9d5f-1d9d2f0a6b7{gpu}'
    )
    sick(mig, ecc=3)
    before = discover(local)
    recording.record(local, tmp_path / 'copy.tar.gz', with_serials)
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    copy = hosts.find(str(tmp_path / 'copy.tar.gz'), tmp_path / 'work')
    cards, notes = nvidia_gpu.NvidiaGpu(copy, None).look()
    assert notes == []
    assert [c.model for c in cards] == ['NVIDIA H200'] * 2
    assert [c.vendor_board['memory_mb'] for c in cards] == [143771] * 2
    assert health(cards) == [('critical', 'ecc_uncorrectable'), ('ok', None)]
    assert [len(each.attach_handles) for each in cards[0].deployables] == [2, 1]
    assert parts_of(cards[0]).keys() == parts_of(before[0]).keys()
    if with_serials:
        assert [c.facts() for c in cards] == [c.facts() for c in before]
    else:
        assert not {c.serial for c in cards} & {c.serial for c in before}


CARDS = ['0000:0a:00.0', '0001:0a:00.0']
NAMES = [*library.FORMS, 'profile', *library.INSTANCE_IDS]
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=12,
)


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    functions = [captures.function(card, '10de:ffff', '030200') for card in CARDS]
    return testing.Host(captures.host(tmp_path_factory.mktemp('nvml'), functions))


NONE = type(None)
#: The type of each fact of a card.
TYPES = {
    'name': str, 'uuid': str, 'index': int, 'memory_mb': int, 'mig': (list, NONE), 'nvlinks': dict,
    'pids': list, 'pid_memory': dict, 'utilization': (int, NONE), 'cuda': (str, NONE),
    'health': list,
}  # fmt: skip


@hypothesis.given(ANSWERS)
def test_any_answer_has_sound_facts_or_none(answer):
    for name, fact in library.sound(answer).items():
        assert isinstance(fact, TYPES[name])
        assert not isinstance(fact, str) or fact.isprintable()


@hypothesis.given(st.text() | ANSWERS.map(lambda answer: json.dumps({CARDS[0]: answer})))
def test_any_answer_of_a_recording_leaves_the_cards(recorded, text):
    recorded.tools['nvml'] = text
    assert [card.address for card in discover(recorded)] == CARDS


INSTANCE = {
    'uuid': 'MIG-1', 'profile': '1g.18gb', 'gpu_instance_id': '1', 'compute_instance_id': '0',
}  # fmt: skip


@pytest.mark.parametrize(
    'instances',
    [
        [INSTANCE, INSTANCE],
        [INSTANCE | {'uuid': 7}],
        [INSTANCE | {'profile': '1g.18gb\n'}],
        [INSTANCE | {'more': 'x'}],
        [INSTANCE | {'uuid': f'MIG-{n}'} for n in range(65)],
        {'0': INSTANCE},
    ],
)
def test_invalid_instances_are_not_given_out(recorded, instances):
    for told, count in ((instances, 0), ([INSTANCE], 1)):
        recorded.tools['nvml'] = json.dumps({CARDS[0]: {'mig': told}})
        handles = [h for d in discover(recorded)[0].deployables for h in d.attach_handles]
        assert [handle.attach_type for handle in handles].count('MIG') == count


#: The errors whose immediate action in NVIDIA's catalog is to ignore them or to restart the
#: program; and 109 and 155: see nvidia_gpu.XIDS.
NO_FAULTS = [
    *(8, 11, 13, 14, 25, 31, 32, 37, 38, 39, 40, 41, 43, 44, 45, 60, 63, 66, 67, 68, 69, 70, 71),
    *(72, 75, 76, 77, 80, *range(82, 87), 88, 89, 93, *range(96, 110), 121, *range(126, 136), 137),
    *(139, 141, 152, 153, 155, 160, 161),
]


@pytest.mark.parametrize(
    ('numbers', 'level', 'reason'),
    [
        ([], 'ok', None),
        ([13, 31, 43], 'ok', None),
        ([31, 48, 79], 'warning', 'xid_79'),
        ([74], 'warning', 'xid_74'),
        ([154, 158], 'warning', 'xid_158'),
        ([109, 154], 'warning', 'xid_154'),
        (NO_FAULTS, 'ok', None),
        (['79'], 'ok', None),
    ],
)
def test_errors_in_the_log_of_the_kernel(nvml, local, monkeypatch, numbers, level, reason):
    """Errors of programs do not count."""
    monkeypatch.setattr(nvidia_gpu.xid, 'recent', lambda log: {'0001:0a:00.0': numbers})
    first, second = discover(local)
    assert (first.health, first.health_reason) == ('ok', None)
    assert (second.health, second.health_reason) == (level, reason)


def test_the_log_of_a_host_without_cards_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nvidia_gpu.xid, 'recent', lambda log: pytest.fail('it was read'))
    copy = captures.host(tmp_path, [captures.function('0000:01:00.0', '8086:ffff', '030200')])
    assert discover(driver.Host('local', copy.root, recorded=False)) == []


def test_what_nvml_says_is_worse_than_the_log(nvml, local, monkeypatch):
    monkeypatch.setattr(nvidia_gpu.xid, 'recent', lambda log: {'0000:0a:00.0': [79]})
    nvml.nvmlDeviceGetRemappedRows = lambda gpu: (0, 1, 1, 1)
    assert discover(local)[0].health_reason == 'row_remap_failure'

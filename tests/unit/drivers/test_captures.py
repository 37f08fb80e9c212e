# SPDX-License-Identifier: Apache-2.0
"""Every capture of a real machine for our drivers, with the real code."""

from __future__ import annotations

import collections
import json
import pathlib
import re

import pytest

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import testing
from cyborg_lite.drivers import amd_gpu
from cyborg_lite.drivers import huawei_ascend
from cyborg_lite.drivers import inspur_fpga
from cyborg_lite.drivers import intel_fpga
from cyborg_lite.drivers import intel_gaudi
from cyborg_lite.drivers import intel_gpu
from cyborg_lite.drivers import intel_qat
from cyborg_lite.drivers import nic
from cyborg_lite.drivers import nvidia_gpu
from cyborg_lite.drivers import nvme_ssd
from cyborg_lite.drivers import pci
from cyborg_lite.drivers import xilinx_fpga
from tests.unit.drivers import captures

DRIVERS = (
    amd_gpu.AmdGpu,
    huawei_ascend.HuaweiAscend,
    inspur_fpga.InspurFpga,
    intel_fpga.IntelFpga,
    intel_gaudi.IntelGaudi,
    intel_gpu.IntelGpu,
    intel_qat.IntelQat,
    nvidia_gpu.NvidiaGpu,
    xilinx_fpga.XilinxFpga,
)
ASCEND = '19e5'
evidence = pytest.mark.evidence


def found(host: driver.Host) -> list[tuple[str, str, str, str]]:
    """Driver, ids, model and address of every device in the host, by all drivers."""
    return [
        (kind.name, f'{d.vendor}:{d.board["product_id"]}', d.model, d.address)
        for kind in DRIVERS
        for d in testing.discover(kind, host)
    ]


def alike(name: str, ids: str, model: str, addresses: str) -> list[tuple[str, str, str, str]]:
    return [(name, ids, model, f'0000:{address}') for address in addresses.split()]


@pytest.mark.parametrize(
    ('capture', 'expected'),
    [
        pytest.param(
            'lspci/kunpeng-8x-d802.lspci.txt',
            alike(
                'huawei_ascend',
                '19e5:d802',
                'Ascend 910B',
                '08:00.0 0c:00.0 42:00.0 46:00.0 96:00.0 ab:00.0 c1:00.0 d6:00.0',
            ),
            marks=evidence(
                'huawei_ascend', 'excerpt', 'lspci of a Kunpeng server with eight', 'Ascend 910B'
            ),
        ),
        pytest.param(
            'lspci/d100-vfio-iommu-groups.txt',
            alike('huawei_ascend', '19e5:d100', 'Ascend 310', '0c:00.0'),
            marks=evidence(
                'huawei_ascend',
                'excerpt',
                'lspci of a Phytium host, bound to vfio-pci',
                'Ascend 310',
            ),
        ),
        pytest.param(
            'ascend/910A-lspci-board-usages-23.0.5.txt',
            alike(
                'huawei_ascend',
                '19e5:d801',
                'Ascend 910',
                '3d:00.0 3e:00.0 60:00.0 61:00.0 b1:00.0 b2:00.0 da:00.0 db:00.0',
            ),
            marks=evidence(
                'huawei_ascend',
                'real capture',
                'lspci and npu-smi 23.0.5 of a server with eight',
                'Ascend 910',
            ),
        ),
        pytest.param(
            'lspci/aspeed-plus-8x4090.lspci-Dnn.txt',
            alike(
                'nvidia_gpu',
                '10de:2684',
                'NVIDIA GeForce RTX 4090',
                '16:00.0 36:00.0 46:00.0 56:00.0 98:00.0 b8:00.0 c8:00.0 d8:00.0',
            ),
            marks=evidence(
                'nvidia_gpu', 'excerpt', 'lspci of a server with eight', 'NVIDIA GeForce RTX 4090'
            ),
        ),
        pytest.param(
            'lspci/gaudi2-partial.lspci-nn.txt',
            alike('intel_gaudi', '1da3:1020', 'Intel Gaudi 2', '19:00.0 1a:00.0 43:00.0 44:00.0'),
            marks=evidence('intel_gaudi', 'excerpt', 'lspci of four', 'Intel Gaudi 2'),
        ),
        (
            'intel/ofs-n6001-lspci-vfs.txt',
            alike('intel_fpga', '8086:bcce', 'Intel FPGA with DFL', 'b1:00.0'),
        ),
    ],
)
def test_lspci(tmp_path, capture, expected):
    functions = captures.from_lspci(captures.text(capture))
    assert functions
    assert found(captures.host(tmp_path, functions)) == expected


@pytest.mark.parametrize(
    ('capture', 'functions', 'expected'),
    [
        pytest.param(
            'udev/DISK_SAMSUNG_KIOXIA.udevadm.txt.xz',
            559,
            alike(
                'nvidia_gpu',
                '10de:2901',
                'NVIDIA B200',
                '1b:00.0 43:00.0 52:00.0 61:00.0 9d:00.0 c3:00.0 d1:00.0 df:00.0',
            ),
            marks=evidence(
                'nvidia_gpu', 'real capture', 'udev of a server with eight', 'NVIDIA B200'
            ),
        ),
        # An FPGA on PCI Express, but no Alveo: it runs a design of its owner's.
        ('udev/ELEMENT_BIOSCIENCES_INSTRUMENT.udevadm.txt.xz', 20, []),
        pytest.param(
            'udev/MELLANOX_40GBPS.udevadm.txt.xz',
            36,
            [
                ('nvidia_gpu', '10de:15f9', 'Tesla P100-SXM2-16GB', '0002:01:00.0'),
                ('nvidia_gpu', '10de:15f9', 'Tesla P100-SXM2-16GB', '000a:01:00.0'),
            ],
            marks=evidence(
                'nvidia_gpu',
                'real capture',
                'udev of a POWER server with two',
                'Tesla P100-SXM2-16GB',
            ),
        ),
        ('udev/XILINX_KR260.udevadm.txt.xz', 0, []),
    ],
)
def test_udev(tmp_path, capture, functions, expected):
    seen = captures.from_udev(captures.text(capture))
    assert len(seen) == functions
    assert found(captures.host(tmp_path, seen)) == expected


@pytest.mark.parametrize(
    ('capture', 'functions', 'expected'),
    [
        ('sysfs/2pa-pcidomain32bits.tar.bz2', 9, []),
        # Co-processors of a vendor that no driver knows: not QAT, whatever the class says.
        ('sysfs/32intel64-2p8co2t+8ve.tar.bz2', 28, []),
        ('sysfs/40intel64-2g2n4c+pcilocality.tar.bz2', 37, []),
        # Class 1200, as Ascend and Alveo have it, of a test device.
        ('sysfs/qemu-class1200.tar.gz', 26, []),
        pytest.param(
            'intel/qat-c62x-16vf-sysfs.tar.xz',
            11,
            [('intel_qat', '8086:37c8', 'C62x', '0000:3b:00.0')],
            marks=evidence(
                'intel_qat',
                'real capture',
                'sysfs of a Xeon server, with 16 virtual functions enabled',
                'C62x',
            ),
        ),
    ],
)
def test_sysfs(tmp_path, capture, functions, expected):
    host = hosts.find(str(captures.path(capture)), tmp_path)
    assert len(host.tree.functions()) == functions
    assert found(host) == expected


@evidence('pci', 'real capture', 'sysfs of a server with eight NEC Vector Engines')
def test_cards_of_no_driver_are_found_by_a_device_spec(tmp_path):
    host = hosts.find(str(captures.path('sysfs/32intel64-2p8co2t+8ve.tar.bz2')), tmp_path)
    spec = {'vendor_id': '1bcf', 'product_id': '001c', 'resource_class': 've', 'model': 'VE'}
    conf = options.new(pci__device_spec=[json.dumps(spec)])
    cards = testing.discover(pci.PciDevices, host, conf)
    places = ('1b', '1c', '1d', '1e', '3d', '3f', '40', '41')
    assert [(c.address, c.numa_node, c.model, c.unusable) for c in cards] == [
        (f'0000:{bus}:00.0', 0, 'VE', None) for bus in places
    ]
    assert {part.resource_class for card in cards for part in card.deployables} == {'CUSTOM_VE'}


def test_cards_below_one_switch_share_bridges(tmp_path):
    host = hosts.find(str(captures.path('sysfs/32intel64-2p8co2t+8ve.tar.bz2')), tmp_path)
    cards = [f for f in host.tree.functions() if f.pci_class.startswith('0b40')]
    below = collections.Counter(tuple(card.bridges[:2]) for card in cards)
    assert below == {
        ('0000:17:00.0', '0000:18:00.0'): 4,
        ('0000:3a:00.0', '0000:3b:00.0'): 4,
    }


def test_wide_domains_are_read(tmp_path):
    host = hosts.find(str(captures.path('sysfs/2pa-pcidomain32bits.tar.bz2')), tmp_path)
    wide = [f for f in host.tree.functions() if f.bdf.startswith('10000:')]
    assert wide and all(f.ids == ('1af4', '1001') for f in wide[-1:])


def test_qat_whose_virtual_functions_were_not_saved_is_not_given_out(tmp_path):
    host = hosts.find(str(captures.path('intel/qat-c62x-16vf-sysfs.tar.xz')), tmp_path)
    [card] = testing.discover(intel_qat.IntelQat, host)
    assert card.numa_node == 0
    assert card.deployables[0].attach_handles == []


@evidence(
    'nvidia_gpu',
    'real capture',
    'umockdev of 16 virtual functions and three mediated devices',
    'NVIDIA A2',
)
def test_vgpu_host_from_umockdev(tmp_path):
    host = captures.umockdev(tmp_path, captures.text('nvidia/a2-vgpu-sriov-mdev.trim.umockdev'))
    assert found(host) == [('nvidia_gpu', '10de:25b6', 'NVIDIA A2', '0000:08:00.0')]
    [card] = testing.discover(nvidia_gpu.NvidiaGpu, host)
    [deployable] = card.deployables
    assert deployable.resource_class == 'VGPU'
    places = [
        (h.attach_info['device'], h.attach_info['function']) for h in deployable.attach_handles
    ]
    assert len(places) == 16
    # Each function has an IOMMU group of its own, and the card another one.
    groups = [handle.iommu_group for handle in deployable.attach_handles]
    assert (groups[0], len(set(groups)), '38' in groups) == ('90', 16, False)
    assert {handle.form for handle in deployable.attach_handles} == {'vf'}
    assert (places[0], places[4], places[-1]) == (('00', '4'), ('01', '0'), ('02', '3'))


@pytest.mark.parametrize(
    ('capture', 'ids', 'model', 'addresses'),
    [
        pytest.param(
            'a100-sxm4-v12',
            '10de:20b2',
            'NVIDIA A100-SXM4-80GB',
            '01:00.0',
            marks=evidence(
                'nvidia_gpu', 'real capture', 'nvidia-smi -q -x', 'NVIDIA A100-SXM4-80GB'
            ),
        ),
        pytest.param(
            'quadro-p400',
            '10de:1cb3',
            'Quadro P400',
            '43:00.0',
            marks=evidence('nvidia_gpu', 'real capture', 'nvidia-smi -q -x', 'Quadro P400'),
        ),
        pytest.param(
            'tesla-t4',
            '10de:1eb8',
            'Tesla T4',
            '00:1e.0',
            marks=evidence('nvidia_gpu', 'real capture', 'nvidia-smi -q -x', 'Tesla T4'),
        ),
    ],
)
def test_nvidia_xml(tmp_path, capture, ids, model, addresses):
    functions = captures.from_nvidia_xml(captures.text(f'nvidia/nvidia-smi-qx-{capture}.xml'))
    host = captures.host(tmp_path, functions)
    assert found(host) == alike('nvidia_gpu', ids, model, addresses)


@pytest.mark.parametrize(
    ('capture', 'ids', 'model', 'addresses'),
    [
        pytest.param(
            'h200-mig__590.48.01',
            '10de:2335',
            'NVIDIA H200',
            '83:00.0',
            marks=evidence('nvidia_gpu', 'real capture', 'nvidia-smi 590.48.01', 'NVIDIA H200'),
        ),
        pytest.param(
            'l40s__595.80',
            '10de:26b9',
            'NVIDIA L40S',
            '01:00.0',
            marks=evidence('nvidia_gpu', 'real capture', 'nvidia-smi 595.80', 'NVIDIA L40S'),
        ),
    ],
)
def test_nvidia_smi_text(tmp_path, capture, ids, model, addresses):
    text = captures.text(f'nvidia/capture-{capture}.txt')
    [bus] = set(re.findall(r'Bus Id +: (\S+)', text))
    [product] = set(re.findall(r'Device Id +: 0x(\w{4})10DE', text))
    functions = [captures.function(bus.lower()[4:], f'10de:{product.lower()}', '030200')]
    host = captures.host(tmp_path, functions)
    assert found(host) == alike('nvidia_gpu', ids, model, addresses)


@evidence('nvidia_gpu', 'excerpt', 'creatable_vgpu_types of a virtual function', 'NVIDIA H200')
def test_creatable_vgpu_types_are_traits(tmp_path):
    types = captures.text('nvidia/creatable_vgpu_types-H200X-vf.txt')
    host = captures.host(
        tmp_path,
        [
            captures.function(
                '0000:83:00.0',
                '10de:2335',
                '030200',
                virtual={'id': '10de:2335', 'total': '2', 'enabled': '2', 'offset': '4'},
            )
        ],
    )
    function = host.root / 'sys/bus/pci/devices/0000:83:00.5/nvidia'
    function.mkdir()
    (function / 'creatable_vgpu_types').write_text(types)
    [card] = testing.discover(nvidia_gpu.NvidiaGpu, host)
    assert card.deployables[0].traits == [
        'CUSTOM_NVIDIA_2335',
        'CUSTOM_NVIDIA_2335_H200X_141C',
        'CUSTOM_NVIDIA_2335_H200X_1_18C',
    ]


def from_detector(text: str) -> list[tuple[str, int | None]]:
    """Address and memory of what another project's detector found."""
    return [(gpu['appendix']['bdf'], gpu.get('memory')) for gpu in json.loads(text)]


@evidence(
    'nvidia_gpu',
    'vendor sample',
    'eight by another project, with MIG instances',
    'NVIDIA H100 80GB HBM3',
)
def test_another_detectors_gpus_are_ours(tmp_path):
    buses = [bus for bus, _ in from_detector(captures.text('detector-json/nvidia_h100_mig.json'))]
    functions = [captures.function(bus, '10de:2330', '030200') for bus in buses]
    devices = testing.discover(nvidia_gpu.NvidiaGpu, captures.host(tmp_path, functions))
    assert [d.address for d in devices] == sorted(buses)
    assert len(devices) == 8


@evidence(
    'huawei_ascend',
    'vendor sample',
    'two chips behind one address by another project',
    'Ascend 310P',
)
def test_another_detectors_npus_are_one_card(tmp_path):
    chips = json.loads(captures.text('detector-json/ascend_310p3.json'))
    buses = {chip['appendix']['bdf'] for chip in chips}
    functions = [captures.function(bus, '19e5:d500', node='2') for bus in buses]
    [card] = testing.discover(huawei_ascend.HuaweiAscend, captures.host(tmp_path, functions))
    assert (len(chips), card.address, card.numa_node) == (2, '0000:81:00.0', 2)
    assert len(card.deployables[0].attach_handles) == 1


def npus(tmp_path, capture: str, product: str, **more: str) -> list[driver.Device]:
    """The devices of a host with the functions and the npu-smi of a capture."""
    text = captures.text(f'ascend/{capture}.txt')
    tools = {'info': text} | {key: captures.text(f'ascend/{name}') for key, name in more.items()}
    host = captures.host(
        tmp_path,
        captures.from_npu_smi(text, f'{ASCEND}:{product}'),
        {'npu-smi': {key.replace('_', ' -'): value for key, value in tools.items()}},
    )
    return testing.discover(huawei_ascend.HuaweiAscend, host)


# Capture, device id, model, addresses in order of the NPUs, NPU ids, chips of each, memory.
TABLES = [
    pytest.param(
        '310-atlas800-3000-20.2.0.info',
        'd100',
        'Ascend 310',
        'da db dc dd',
        [215] * 4,
        1,
        8192,
        marks=evidence(
            'huawei_ascend', 'vendor sample', 'npu-smi 20.2.0 of an Atlas 800 3000', 'Ascend 310'
        ),
    ),
    pytest.param(
        '310P3-duo-4cards-25.5.1',
        'd500',
        'Ascend 310P3',
        '01 02 81 82',
        [1, 2, 4, 5],
        2,
        44278,
        marks=evidence(
            'huawei_ascend', 'excerpt', 'npu-smi 25.5.1 of four Atlas 300I Duo', 'Ascend 310P'
        ),
    ),
    pytest.param(
        '310P3-single-25.3.rc1',
        'd500',
        'Ascend 310P3',
        '84',
        [6],
        1,
        21525,
        marks=evidence('huawei_ascend', 'excerpt', 'npu-smi 25.3.rc1', 'Ascend 310P'),
    ),
    pytest.param(
        '910-8card-processes-23.0.rc3',
        'd801',
        'Ascend 910',
        '01 02 41 42 81 82 c1 c2',
        [3, 7, 2, 6, 1, 5, 0, 4],
        1,
        32768,
        marks=evidence(
            'huawei_ascend',
            'vendor sample',
            'npu-smi 23.0.rc3 of a server with eight',
            'Ascend 910',
        ),
    ),
    pytest.param(
        '910-health-Warning-23.0.5',
        'd801',
        'Ascend 910',
        '3d 61',
        [7, 0],
        1,
        32768,
        marks=evidence('huawei_ascend', 'vendor sample', 'npu-smi 23.0.5', 'Ascend 910'),
    ),
    (
        '910A-named-910B-24.1.0',
        'd801',
        'Ascend 910',
        '01 02 41 42 81 82 c1 c2',
        [3, 7, 2, 6, 1, 5, 0, 4],
        1,
        32768,
    ),
    pytest.param(
        'A3-910C-npu4-two-chips-25.5.1',
        'd803',
        'Ascend 910_93',
        '8d 8f',
        [4, 4],
        1,
        65536,
        marks=evidence(
            'huawei_ascend', 'excerpt', 'npu-smi 25.5.1 of an Atlas A3', 'Ascend 910_93'
        ),
    ),
]


@pytest.mark.parametrize(
    ('capture', 'product', 'model', 'buses', 'numbers', 'chips', 'memory'), TABLES
)
def test_npu_smi(tmp_path, capture, product, model, buses, numbers, chips, memory):
    devices = npus(tmp_path, capture, product)
    assert [d.address for d in devices] == [f'0000:{bus}:00.0' for bus in buses.split()]
    assert {d.model for d in devices} == {model}
    assert [d.vendor_board['npu_id'] for d in devices] == numbers
    assert {len(d.vendor_board['chips']) for d in devices} == {chips}
    assert {d.vendor_board['chips'][0]['memory_mb'] for d in devices} == {memory}
    assert [len(d.deployables[0].attach_handles) for d in devices] == [1] * len(devices)


@evidence('huawei_ascend', 'real capture', 'npu-smi 24.1.0 of a server with eight', 'Ascend 910')
def test_first_910_that_calls_itself_910b_is_no_910b(tmp_path):
    devices = npus(tmp_path, '910A-named-910B-24.1.0', 'd801')
    assert {d.vendor_board['chip_name'] for d in devices} == {'910B'}
    assert {t for d in devices for t in d.deployables[0].traits} == {
        'CUSTOM_NPU_910',
        'CUSTOM_HUAWEI_ASCEND_DRIVER_24',
        'CUSTOM_HUAWEI_ASCEND_DRIVER_24_1_0',
    }
    assert {d.vendor_board['driver_version'] for d in devices} == {'24.1.0'}


def test_a3_shows_two_chips_with_physical_ids(tmp_path):
    devices = npus(tmp_path, 'A3-910C-npu4-two-chips-25.5.1', 'd803')
    assert [d.vendor_board['chips'] for d in devices] == [
        [{'chip_id': 0, 'phy_id': 8, 'memory_mb': 65536}],
        [{'chip_id': 1, 'phy_id': 9, 'memory_mb': 65536}],
    ]
    assert devices[0].deployables[0].traits == [
        'CUSTOM_HUAWEI_ASCEND_DRIVER_25',
        'CUSTOM_HUAWEI_ASCEND_DRIVER_25_5_1',
        'CUSTOM_NPU_910C',
        'CUSTOM_NPU_910_93',
    ]


def test_310_with_its_mapping(tmp_path):
    devices = npus(
        tmp_path,
        '310-atlas800-3000-20.2.0.info',
        'd100',
        info_m='310-atlas800-3000-20.2.0.mapping.txt',
    )
    assert [d.vendor_board['chips'][0]['logic_id'] for d in devices] == [0, 3, 1, 2]
    assert {d.deployables[0].resource_class for d in devices} == {'CUSTOM_NPU'}
    traits = {t for d in devices for t in d.deployables[0].traits}
    assert traits == {
        'CUSTOM_NPU_310',
        'CUSTOM_HUAWEI_ASCEND_DRIVER_20',
        'CUSTOM_HUAWEI_ASCEND_DRIVER_20_2_0',
    }


@evidence('huawei_ascend', 'vendor sample', 'npu-smi 22.0.3.1 of an Atlas 800 9010', 'Ascend 910')
def test_910a_with_its_mapping(tmp_path):
    capture = '910A-atlas800-9010-22.0.3.1'
    devices = npus(tmp_path, f'{capture}.info', 'd801', info_m=f'{capture}.mapping.txt')
    assert len(devices) == 8
    assert {d.vendor_board['chip_name'] for d in devices} == {'910A'}
    assert sorted(d.vendor_board['chips'][0]['logic_id'] for d in devices) == list(range(8))


@evidence('huawei_ascend', 'vendor sample', 'npu-smi in its manual', 'Ascend 950')
def test_950_in_its_manual(tmp_path):
    text = captures.text('ascend/950-doc-info.md')
    host = captures.host(
        tmp_path, [captures.function('0000:91:00.0', '19e5:d806')], {'npu-smi': {'info': text}}
    )
    [card] = testing.discover(huawei_ascend.HuaweiAscend, host)
    assert card.model == 'Ascend 950'
    assert card.vendor_board['npu_id'] == 0
    assert card.vendor_board['chips'] == [{'memory_mb': 86016}]


def test_board_and_mapping_without_a_table(tmp_path):
    """The capture has the output of several commands, with an empty table."""
    text = captures.text('ascend/910A-lspci-board-usages-23.0.5.txt')
    sections = dict(part.partition('\n')[::2] for part in text.split('/usr/local/bin/npu-smi ')[1:])
    board = sections['info -i 0 -t board']
    host = captures.host(
        tmp_path,
        captures.from_lspci(text),
        {'npu-smi': {'info -m': sections['info -m'], 'info -t board -i 0': board}},
    )
    cards = {c.address: c for c in testing.discover(huawei_ascend.HuaweiAscend, host)}
    assert len(cards) == 8
    assert cards['0000:61:00.0'].vendor_board == {
        'npu_id': 0,
        'chip_name': '910A',
        'chips': [{'chip_id': 0, 'logic_id': 0}],
        'board_id': '0x02',
        'firmware_version': '7.1.0.7.220',
    }


@pytest.mark.parametrize(
    ('capture', 'ssds', 'nics'),
    [
        pytest.param(
            'udev/DISK_SAMSUNG_KIOXIA.udevadm.txt.xz',
            '01:00.0 02:00.0 2a:00.0 2b:00.0 2c:00.0 2d:00.0 ab:00.0 ac:00.0 ad:00.0 ae:00.0',
            '29:00.0 aa:00.0',
            marks=evidence('nvme_ssd', 'real capture', 'udev of a server with ten'),
        ),
        ('udev/ELEMENT_BIOSCIENCES_INSTRUMENT.udevadm.txt.xz', '02:00.0', ''),
        ('udev/MELLANOX_40GBPS.udevadm.txt.xz', '', ''),
        ('udev/XILINX_KR260.udevadm.txt.xz', '', ''),
    ],
)
def test_devices_of_hosts(tmp_path, capture, ssds, nics):
    """The host uses each of them, so that none has an accelerator."""
    host = captures.host(tmp_path, captures.from_udev(captures.text(capture)))
    for kind, addresses in ((nvme_ssd.NvmeSsd, ssds), (nic.Nic, nics)):
        devices = testing.discover(kind, host)
        assert [d.address for d in devices] == [f'0000:{each}' for each in addresses.split()]
        assert [h for d in devices for p in d.deployables for h in p.attach_handles] == []
        assert all(device.unusable for device in devices)


def _lspci(place: pathlib.Path, name: str) -> driver.Host:
    return captures.host(place, captures.from_lspci(captures.text(name)))


def _tree(place: pathlib.Path, name: str) -> driver.Host:
    return hosts.find(str(captures.path(name)), place)


def _a3(place: pathlib.Path, name: str) -> driver.Host:
    text = captures.text(name)
    functions = captures.from_npu_smi(text, f'{ASCEND}:d803')
    return captures.host(place, functions, {'npu-smi': {'info': text}})


#: How a host is made of each capture for the suite: all trees, and others with further cards.
TREES = {
    'amd/kfd-topo-mi210-xgmi-pcie.tar.xz': lambda *of: captures.kfd(*of)[0],
    'amd/kfd-topology-parsing-mi308.tar.xz': lambda *of: captures.kfd(*of)[0],
    'ascend/A3-910C-npu4-two-chips-25.5.1.txt': _a3,
    'intel/ofs-n6001-lspci-vfs.txt': _lspci,
    'intel/qat-c62x-16vf-sysfs.tar.xz': _tree,
    'lspci/gaudi2-partial.lspci-nn.txt': _lspci,
    'nvidia/a2-vgpu-sriov-mdev.trim.umockdev': lambda place, name: captures.umockdev(
        place, captures.text(name)
    ),
    'nvme/sysfs-tree-pcie.tar.xz': captures.nvme,
    'sysfs/2pa-pcidomain32bits.tar.bz2': _tree,
    'sysfs/32intel64-2p8co2t+8ve.tar.bz2': _tree,
    'sysfs/40intel64-2g2n4c+pcilocality.tar.bz2': _tree,
    'sysfs/qemu-class1200.tar.gz': _tree,
}


class TestContract(testing.Contract):
    """Of the drivers that know a card in one of these captures."""

    drivers = [
        amd_gpu.AmdGpu,
        huawei_ascend.HuaweiAscend,
        intel_fpga.IntelFpga,
        intel_gaudi.IntelGaudi,
        intel_qat.IntelQat,
        nvidia_gpu.NvidiaGpu,
        nvme_ssd.NvmeSsd,
    ]
    hosts = [*TREES]

    def lay_out(self, spec: str, place: pathlib.Path, here: pathlib.Path) -> driver.Host:
        captures.path('')
        return TREES[spec](place, spec)


#: The files that no test reads, and why.
UNREAD = {
    'SOURCES.md': 'it tells where the captures come from',
    'spdk/nvmf_get_subsystems.json': 'no driver asks which hosts an application serves',
}


def test_no_capture_is_forgotten():
    captures.path('')
    here = pathlib.Path(__file__).parent
    tests = ''.join(path.read_text() for path in here.glob('test_*.py'))
    names = captures.every()
    assert UNREAD.keys() <= {*names}
    ends = r'nvidia-smi-qx-|capture-|(\.info|\.mapping)?\.txt$|\.(xml|json|tar\.xz)$'
    for name in names:
        stem = re.sub(ends, '', name).rpartition('/')[2]
        assert name in UNREAD or stem in tests, name

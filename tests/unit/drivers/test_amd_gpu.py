# SPDX-License-Identifier: Apache-2.0
"""AMD cards, with and without data of the kernel's compute driver (KFD)."""

from __future__ import annotations

import json
import pathlib

import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.driver import testing
from cyborg_lite.drivers import amd_gpu
from cyborg_lite.drivers.tools import kfd
from tests.unit.drivers import captures

NODES = captures.NODES


def discover(host: driver.Host) -> list[driver.Device]:
    return testing.discover(amd_gpu.AmdGpu, host)


def properties(**more: int) -> str:
    facts = {'simd_count': 1216, 'vendor_id': 4098, 'device_id': 29857, 'domain': 0}
    return '\n'.join(f'{key} {value}' for key, value in (facts | more).items())


def host(tmp_path: pathlib.Path, *nodes: str, **files: str) -> driver.Host:
    """One MI300X, and these nodes after that of the processor."""
    card = captures.function('0000:26:00.0', '1002:74a1', '120000', files=files)
    copy = captures.host(tmp_path, [card])
    for number, text in enumerate(('cpu_cores_count 96\nsimd_count 0', *nodes)):
        place = copy.root / NODES / str(number)
        place.mkdir(parents=True)
        (place / 'properties').write_text(text)
    return copy


def test_a_card_says_what_it_is(tmp_path):
    node = properties(location_id=0x2600, drm_render_minor=136, gfx_target_version=90402,
                      unique_id=0x0CEE36DDC4255115)  # fmt: skip
    [card] = discover(host(tmp_path, node, mem_info_vram_total='206141652992',
                           current_compute_partition='SPX'))  # fmt: skip
    assert card.model == 'AMD Instinct MI300X'
    assert card.serial == 'GPU-0cee36ddc4255115'
    assert card.vendor_board == {
        'uuid': 'GPU-0cee36ddc4255115',
        'memory_mb': 196592,
        'partition_mode': 'SPX',
        'index': 0,
        'render_minor': 136,
    }
    [part] = card.deployables
    assert part.resource_class == 'PGPU'
    assert part.traits == ['CUSTOM_AMD_74A1', 'CUSTOM_AMD_GFX942']


def test_the_firmware_is_the_video_bios(tmp_path):
    [card] = discover(host(tmp_path, properties(location_id=0x2600), vbios_version='113-M3000-1'))
    assert card.vendor_board['firmware_version'] == '113-M3000-1'
    assert 'CUSTOM_AMD_GPU_FIRMWARE_113_M3000_1' in card.deployables[0].traits


def test_a_card_that_is_partitioned_is_one_card(tmp_path):
    nodes = [
        properties(location_id=0x2600 + n, drm_render_minor=128 + n, gfx_target_version=90402)
        for n in range(8)
    ]
    [card] = discover(host(tmp_path, *nodes, unique_id='cee36ddc4255115'))
    assert card.serial == 'GPU-0cee36ddc4255115'
    assert card.vendor_board['partitions'] == [
        {'index': n, 'render_minor': 128 + n} for n in range(8)
    ]
    assert card.ids['partitions'][3] == {'index': 3, 'render_minor': 131}
    assert len(card.deployables[0].attach_handles) == 1


@pytest.mark.parametrize(
    'text',
    ['', 'simd_count', 'simd_count -1\nvendor_id 4098', 'simd_count ' + '9' * 400, '\xff', 'a b c'],
)
def test_a_node_that_says_nothing_costs_no_card(tmp_path, text):
    [card] = discover(host(tmp_path, text, unique_id='not a number'))
    assert (card.serial, card.vendor_board) == (None, {})


def test_a_node_without_a_version_makes_no_trait_of_it(tmp_path):
    [card] = discover(host(tmp_path, properties(location_id=0x2600)))
    assert card.deployables[0].traits == ['CUSTOM_AMD_74A1']


def test_nodes_of_others_are_not_ours(tmp_path):
    other = properties(location_id=0x2600, vendor_id=0x10DE)
    elsewhere = properties(location_id=0x2600, domain=1, drm_render_minor=129)
    [card] = discover(host(tmp_path, other, elsewhere))
    assert card.vendor_board == {}


@pytest.mark.parametrize(
    ('ids', 'pci_class', 'models'),
    [
        ('1002:740f', '038000', ['AMD Instinct MI210']),
        ('1002:7408', '038000', ['AMD Instinct MI250X']),
        ('1002:74a2', '120000', ['AMD Instinct MI308X']),
        ('1002:74ff', '120000', ['AMD GPU 74ff']),
        ('1002:66a1', '038000', ['AMD Instinct MI50/MI60']),
        ('1002:66a1', '030000', []),
        ('1002:744c', '030000', []),
        ('1002:1681', '038000', []),
        ('1022:74a1', '120000', []),
    ],
)
def test_which_are_cards(tmp_path, ids, pci_class, models):
    copy = captures.host(tmp_path, [captures.function('0000:26:00.0', ids, pci_class)])
    assert [card.model for card in discover(copy)] == models


def test_virtual_functions(tmp_path):
    virtual = {'id': '1002:74b5', 'total': '8', 'enabled': '8', 'offset': '8'}
    card = captures.function('0000:26:00.0', '1002:74a1', '120000', virtual=virtual)
    [card] = discover(captures.host(tmp_path, [card]))
    [part] = card.deployables
    assert (part.resource_class, len(part.attach_handles)) == ('VGPU', 8)


@pytest.mark.parametrize(
    ('name', 'model', 'hives'),
    [
        pytest.param(
            'kfd-topo-mi210-xgmi-pcie',
            'AMD Instinct MI210',
            [4, 4],
            marks=pytest.mark.evidence(
                'amd_gpu', 'real capture', 'KFD of a server with eight', 'AMD Instinct MI210'
            ),
        ),
        pytest.param(
            'kfd-topology-parsing-mi308',
            'AMD Instinct MI308X',
            [8],
            marks=pytest.mark.evidence(
                'amd_gpu', 'real capture', 'KFD of a server with partitions', 'AMD Instinct MI308X'
            ),
        ),
    ],
)
def test_real_topologies(tmp_path, name, model, hives):
    copy, gpus = captures.kfd(tmp_path, f'amd/{name}.tar.xz')
    cards = discover(copy)
    assert len(cards) == 8
    assert {card.model for card in cards} == {model}
    minors = [
        part['render_minor']
        for card in cards
        for part in card.vendor_board.get('partitions', [card.vendor_board])
    ]
    assert sorted(minors) == sorted(each['drm_render_minor'] for each in gpus)
    assert len({card.serial for card in cards}) == len(cards)
    linked = {frozenset({card.address, *card.topology['links']}) for card in cards}
    assert sorted(map(len, linked)) == hives
    assert set.union(*map(set, linked)) == {card.address for card in cards}


#: What an MI100 of the capture has in common with the three others.
MI100 = {'model': 'AMD Instinct MI100', 'memory_mb': 32752, 'firmware_version': '113-D3431401-101'}


@pytest.mark.parametrize(
    ('capture', 'pci_class', 'expected'),
    [
        pytest.param(
            'rocm-smi-mi100_rocm602',
            '038000',
            [
                MI100 | {'address': '0000:83:00.0', 'uuid': 'GPU-79ccd55167a2124a'},
                MI100 | {'address': '0000:a3:00.0', 'uuid': 'GPU-04edfb117a17a07d'},
                MI100 | {'address': '0000:c3:00.0', 'uuid': 'GPU-d4a9ec48d03d261d'},
                MI100 | {'address': '0000:e3:00.0', 'uuid': 'GPU-1b9dd972253c3736'},
            ],
            marks=pytest.mark.evidence(
                'amd_gpu', 'real capture', 'rocm-smi 6.0.2 of a server with four',
                'AMD Instinct MI100',
            ),
        ),
        pytest.param(
            'rocm-smi-vega-20-WKS-GL-XE',
            '038000',
            [
                {
                    'model': 'AMD Instinct MI50/MI60',
                    'memory_mb': 32752,
                    'firmware_version': '113-D1631700-111',
                    'address': '0000:63:00.0',
                    'uuid': 'GPU-02f048617326b1ea',
                }
            ],
            marks=pytest.mark.evidence(
                'amd_gpu', 'real capture', 'rocm-smi of a workstation', 'AMD Instinct MI50/MI60'
            ),
        ),
        # Graphics cards.
        ('rocm-smi-rx6700xt_rocm612', '030000', []),
        ('rocm-smi-7800xt-rocm624', '030000', []),
    ],
)  # fmt: skip
def test_cards_of_another_tool(tmp_path, capture, pci_class, expected):
    """Releases differ in the key of the device id, and one prints no address."""
    functions = []
    for name, told in json.loads(captures.text(f'amd/{capture}.json')).items():
        if name.startswith('card'):
            files = {'mem_info_vram_total': told['VRAM Total Memory (B)']}
            files['unique_id'] = told['Unique ID'].removeprefix('0x')
            if 'VBIOS version' in told:
                files['vbios_version'] = told['VBIOS version']
            product = (told.get('GPU ID') or told['Device ID']).removeprefix('0x')
            bdf = told.get('PCI Bus', '0000:01:00.0').lower()
            functions.append(captures.function(bdf, f'1002:{product}', pci_class, files=files))
    cards = discover(captures.host(tmp_path, functions))
    found = [card.vendor_board | {'model': card.model, 'address': card.address} for card in cards]
    assert found == expected


@pytest.mark.evidence('amd_gpu', 'vendor sample', 'two by another project', 'AMD Instinct MI300X')
def test_another_detectors_gpus_are_ours(tmp_path):
    told = json.loads(captures.text('detector-json/amd_mi300x.json'))
    functions, nodes = [], []
    for each in told:
        more, unique = each['appendix'], each['uuid'].removeprefix('GPU-')
        files = {'unique_id': unique, 'mem_info_vram_total': str(each['memory'] << 20)}
        card = captures.function(more['bdf'], '1002:74a1', node=more['numa'], files=files)
        functions.append(card)
        location = int(more['bdf'][5:7], 16) << 8
        nodes.append(properties(location_id=location, drm_render_minor=more['renderd_id'],
                                gfx_target_version=90402, unique_id=int(unique, 16)))  # fmt: skip
    copy = captures.host(tmp_path, functions)
    for number, text in enumerate(nodes):
        place = copy.root / NODES / str(number)
        place.mkdir(parents=True)
        (place / 'properties').write_text(text)
    cards = discover(copy)
    assert [card.model for card in cards] == ['AMD Instinct MI300X'] * 2
    assert [(card.address, card.serial, card.numa_node) for card in cards] == [
        ('0000:26:00.0', 'GPU-0cee36ddc4255115', 0),
        ('0000:46:00.0', 'GPU-cfb3160d6c053160', 0),
    ]
    assert [card.vendor_board for card in cards] == [
        {
            'uuid': each['uuid'],
            'memory_mb': 196592,
            'index': each['index'],
            'render_minor': minor,
        }
        for each, minor in zip(told, (136, 144), strict=True)
    ]
    words = {each['compute_capability'].upper() for each in told}
    assert all({f'CUSTOM_AMD_{word}' for word in words} <= {*card.deployables[0].traits}
               for card in cards)  # fmt: skip


class Queues:
    """Two MI300X, the first in two partitions, whose processes KFD lists."""

    def __init__(self, place: pathlib.Path, *kernels: str) -> None:
        functions = [
            captures.function(bdf, '1002:74a1', '120000', driver=kernel)
            for bdf, kernel in zip(('0000:26:00.0', '0000:46:00.0'), kernels, strict=True)
        ]
        root = captures.host(place, functions).root
        self.host = driver.Host('here', root, recorded=False)
        for number, location in enumerate((0x2600, 0x2601, 0x4600)):
            node = root / NODES / str(number)
            node.mkdir(parents=True)
            (node / 'properties').write_text(properties(location_id=location))
            (node / 'gpu_id').write_text(f'{GPUS[number]}\n')

    def make(self, pid: str, *queues: str, context: str = '') -> None:
        home = self.host.root / kfd.PROCESSES / pid
        # KFD lists each process as one of all GPUs.
        home.mkdir(parents=True, exist_ok=True)
        for gpu in GPUS:
            (home / f'vram_{gpu}').write_text('0\n')
        for number, text in enumerate(queues):
            queue = home / context / 'queues' / str(number)
            queue.mkdir(parents=True)
            # The kernel writes no end of line.
            (queue / 'gpuid').write_text(text)


GPUS = ('18421', '41723', '51110')


@pytest.fixture
def queues(tmp_path, monkeypatch):
    monkeypatch.setattr(kfd.pids, 'are_global', lambda: True)
    return Queues(tmp_path, 'amdgpu', 'amdgpu')


def listed(host):
    return [card.processes for card in amd_gpu.AmdGpu(host, cfg.ConfigOpts()).discover()]


def test_a_process_uses_the_gpus_where_it_has_queues(queues):
    queues.make('7', '18421', '18421')
    queues.make('8', '41723', '51110')
    # It only has the nodes open.
    queues.make('9')
    queues.make('10', '51110', context='context_1')
    assert listed(queues.host) == [{7, 8}, {8, 10}]


@pytest.mark.parametrize('text', ['', 'gpu', '-18421', '18421 18421', '9' * 5000, '99999'])
def test_a_queue_of_no_gpu_is_none(queues, text):
    queues.make('7', text)
    queues.make('pid', '51110')
    queues.make('99999999', '51110')
    assert listed(queues.host) == [frozenset(), frozenset()]


def test_pids_of_another_namespace_are_not_believed(queues, monkeypatch):
    """KFD has those of the first one: here another process may have the same."""
    queues.make('7', '18421')
    monkeypatch.setattr(kfd.pids, 'are_global', lambda: False)
    assert listed(queues.host) == [frozenset(), frozenset()]


def test_programs_that_use_no_rocm_are_listed_too(queues):
    queues.make('7', '18421')
    home = queues.host.root / 'proc/8'
    for name in ('fd', 'fdinfo'):
        (home / name).mkdir(parents=True)
    (home / 'fd/3').symlink_to('/dev/dri/renderD128')
    keys = {'driver': 'amdgpu', 'client-id': '5', 'pdev': '0000:46:00.0'}
    keys |= {'engine-gfx': '9 ns', 'engine-compute': '50000000 ns'}
    (home / 'fdinfo/3').write_text(''.join(f'drm-{k}:\t{v}\n' for k, v in keys.items()))
    assert listed(queues.host) == [{7}, {8}]


def test_of_the_gpu_of_a_guest_nobody_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(kfd.pids, 'are_global', lambda: True)
    machine = Queues(tmp_path, 'amdgpu', 'vfio-pci')
    machine.make('7', '18421')
    assert listed(machine.host) == [{7}, None]


def test_a_recording_keeps_the_queues(queues, tmp_path):
    queues.make('7', '18421')
    subject = amd_gpu.AmdGpu(queues.host, cfg.ConfigOpts())
    subject.discover()
    for with_serials, first in ((True, {7}), (False, frozenset())):
        file = tmp_path / f'{with_serials}.tar.gz'
        recording.record(queues.host, file, with_serials)
        assert listed(hosts.find(str(file), tmp_path / file.stem)) == [first, frozenset()]


@pytest.mark.parametrize(('hive', 'links'), [(7, {'0000:46:00.0': 1}), (0, {})])
def test_cards_of_one_hive_are_linked(tmp_path, hive, links):
    nodes = [properties(location_id=place, hive_id=hive) for place in (0x2600, 0x4600)]
    [card] = discover(host(tmp_path, *nodes))
    assert (card.topology or {}).get('links', {}) == links


@pytest.mark.parametrize(
    ('text', 'told'),
    [('0', 0), ('37', 37), ('100', 100), ('101', None), ('-1', None), ('', None), ('n/a', None)],
)
def test_utilization(tmp_path, text, told):
    """A virtual function has an empty file."""
    [card] = discover(host(tmp_path, gpu_busy_percent=text))
    assert card.utilization == told
    assert 'utilization' not in card.facts()


def test_a_card_without_a_load_tells_no_utilization(tmp_path):
    assert [card.utilization for card in discover(host(tmp_path))] == [None]


def test_a_recording_keeps_what_the_driver_read(tmp_path):
    node = properties(location_id=0x2600, drm_render_minor=136, gfx_target_version=90402)
    files = {'unique_id': 'cee36ddc4255115', 'mem_info_vram_total': '1099511627776'}
    first = host(tmp_path, node, gpu_busy_percent='37', **files)
    before = [card.facts() for card in discover(first)]
    for name, with_serials in (('whole', True), ('masked', False)):
        recording.record(first, tmp_path / f'{name}.tar.gz', with_serials)
    copy = hosts.find(str(tmp_path / 'whole.tar.gz'), tmp_path / 'whole')
    assert [card.facts() for card in discover(copy)] == before
    [card] = discover(hosts.find(str(tmp_path / 'masked.tar.gz'), tmp_path / 'masked'))
    assert card.serial not in (None, 'GPU-0cee36ddc4255115')
    assert card.vendor_board['render_minor'] == 136
    assert card.utilization == 37


@pytest.mark.parametrize(
    ('blocks', 'health'),
    [
        (['ue: 0\nce: 0\n'], ('ok', None)),
        (['ue: 0\nce: 7\n', 'ue: 0\nce: 0\nde: 2\n'], ('ok', None)),
        (['ue: 0\nce: 0\n', 'ue: 1\nce: 0\n'], ('critical', 'amd_uncorrected')),
        (['Query currently inaccessible\n'], ('unknown', None)),
        (['Query currently inaccessible\n', 'ue: 1\nce: 0\n'], ('critical', 'amd_uncorrected')),
        (['ue: -1\n'], ('unknown', None)),
        ([], ('unknown', None)),
    ],
)
def test_errors_of_blocks(tmp_path, blocks, health):
    """Without RAS, nothing is known of the health of a card."""
    names = ('ras/umc_err_count', 'ras/gfx_err_count')
    files = {'ras/features': 'feature mask: 0x1'} | dict(zip(names, blocks, strict=False))
    [card] = discover(host(tmp_path, **files))
    assert (card.health, card.health_reason) == health


@hypothesis.given(st.text())
def test_any_text_is_a_health(text):
    assert amd_gpu.read_errors(text).level in ('ok', 'unknown', 'critical')

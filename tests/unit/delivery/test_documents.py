# SPDX-License-Identifier: Apache-2.0
"""The document of an allocation and a host."""

from __future__ import annotations

import copy
import json

import pytest

from cyborg_lite import delivery
from cyborg_lite import model
from cyborg_lite.delivery import views
from cyborg_lite.driver import host as hosts
from cyborg_lite.drivers import amd_gpu
from cyborg_lite.drivers import fake
from cyborg_lite.drivers import huawei_ascend
from cyborg_lite.drivers import intel_gaudi
from cyborg_lite.drivers import intel_gpu
from cyborg_lite.drivers import intel_qat
from cyborg_lite.drivers import nic
from cyborg_lite.drivers import nvidia_gpu
from cyborg_lite.drivers import nvme_ssd
from cyborg_lite.drivers import spdk
from tests.unit.delivery import cards
from tests.unit.drivers import captures
from tests.unit.drivers import test_amd_gpu


def document(*accelerators, host=cards.HOST):
    return delivery.document(cards.ALLOCATION, host, accelerators)


def devices(found):
    """Name and nodes of each device of a document."""
    return [(d['name'], d['nodes']) for each in found['accelerators'] for d in each['devices']]


def test_only_what_is_in_the_host():
    [here, there] = [*cards.ascend(0), *cards.ascend(1, host='host-2')]
    assert document(here, there)['accelerators'][0]['uuid'] == here['uuid']
    assert document(here, there, host='host-3')['accelerators'] == []


def test_devices_are_in_the_order_of_their_nodes():
    """Containers use this order, so an ordinal means the same device in both."""
    found = document(*cards.ascend(10, 4, 9))
    assert [d for d, _ in devices(found)] == ['4', '9', '10']
    ordinals = [d['ordinal'] for each in found['accelerators'] for d in each['devices']]
    assert ordinals == [0, 1, 2]


def test_the_cards_of_each_driver_are_numbered_apart():
    gpu = cards.accelerator(driver='nvidia_gpu', ids={'uuid': 'GPU-a', 'minor': 7})
    found = document(gpu, *cards.ascend(5, 4))
    assert [(d['name'], d['ordinal']) for e in found['accelerators'] for d in e['devices']] == [
        ('GPU-a', 0),
        ('4', 0),
        ('5', 1),
    ]


def test_stored_accelerators_are_not_modified():
    accelerators = cards.ascend(3, 1)
    before = copy.deepcopy(accelerators)
    found = document(*accelerators)
    json.dumps(found)
    assert accelerators == before


@pytest.mark.parametrize('allocation', ['', '../../etc', cards.ALLOCATION + '\n', 'A' * 36])
def test_an_allocation_is_a_uuid(allocation):
    with pytest.raises(ValueError, match='UUID'):
        delivery.document(allocation, cards.HOST, [])


# The devices of each driver on described and recorded hosts.


def test_ascend(tmp_path):
    found = document(
        *cards.noted(huawei_ascend.HuaweiAscend, hosts.find('atlas-800t-a2', tmp_path))
    )
    assert devices(found) == [(str(n), [f'/dev/davinci{n}']) for n in range(8)]
    assert not any(each['reason'] for each in found['accelerators'])


def test_ascend_with_two_chips_on_a_card(tmp_path):
    duo = cards.noted(huawei_ascend.HuaweiAscend, hosts.find('atlas-300i-duo', tmp_path))
    found = document(*duo[:2])
    assert devices(found) == [(str(n), [f'/dev/davinci{n}']) for n in range(4)]
    assert [len(each['devices']) for each in found['accelerators']] == [2, 2]


@pytest.mark.parametrize(
    ('bound', 'nodes', 'reason'),
    [
        ({'driver': 'vfio-pci'}, ['/dev/vfio/17'], None),
        ({'driver': 'pci-stub'}, [], 'its ids have no usable vfio_group'),
        ({}, [], 'its ids have no usable vfio_group'),
    ],
)
def test_an_ssd_that_the_host_has_released(tmp_path, bound, nodes, reason):
    ssd = captures.function('0000:3b:00.0', '144d:a80a', '010802', iommu_group='17', **bound)
    found = document(*cards.noted(nvme_ssd.NvmeSsd, captures.host(tmp_path, [ssd])))
    assert devices(found) == [(None, nodes)]
    assert found['accelerators'][0]['reason'] == reason
    assert ('/dev/vfio/vfio' in views.render(found, 'process')['shared']) is (reason is None)


@pytest.mark.parametrize(
    ('kind', 'ids', 'pci_class'),
    [
        (nic.Nic, '15b3:a2dc', '020000'),
        (intel_qat.IntelQat, '8086:4940', '0b4000'),
        (intel_gpu.IntelGpu, '8086:56c0', '038000'),
    ],
)
@pytest.mark.parametrize(
    ('device', 'nodes'),
    [
        ({}, ['/dev/vfio/{}']),
        # Linux before 6.6 lists it, and has no node.
        ({'power/control': 'auto'}, ['/dev/vfio/{}']),
        ({'dev': '511:{}'}, ['/dev/vfio/{}', '/dev/vfio/devices/vfio{}']),
    ],
)
def test_virtual_functions_that_are_bound_to_vfio(tmp_path, kind, ids, pci_class, device, nodes):
    """Each has nodes of its own; one that another driver has is for guests."""
    virtual = {'id': ids, 'total': '4', 'enabled': '3'}
    card = captures.function('0000:3b:00.0', ids, pci_class, virtual=virtual)
    host = captures.host(tmp_path, [card])
    found = [f for f in host.tree.functions() if f.is_virtual]
    for number, function in enumerate(found):
        name = 'vfio-pci' if number else 'acme'
        (function.path / 'driver').symlink_to(f'../../../bus/pci/drivers/{name}')
        (function.path / 'iommu_group').symlink_to(f'../../../kernel/iommu_groups/{number}')
        for file, text in device.items():
            place = function.path / f'vfio-dev/vfio{number}' / file
            place.parent.mkdir(parents=True)
            place.write_text(text.format(number))
    noted = cards.noted(kind, host)
    told = document(*noted)
    wanted = [[node.format(number) for node in nodes] for number in (1, 2)]
    assert [nodes for _, nodes in devices(told)] == wanted
    assert [each['reason'] is None for each in told['accelerators']].count(False) == 1
    view = views.render(told, 'process')
    assert view['nodes'] == [node for each in wanted for node in each]
    assert {'/dev/vfio/vfio', '/dev/iommu'} <= {*view['shared']}
    own = [delivery.nodes(each).own for each in noted]
    assert sorted(own) == sorted([[], *wanted])
    assert all('/dev/iommu' in delivery.nodes(each).shared for each in noted if each['ids'])


@pytest.mark.parametrize('told', [[], 7, {'0000:3b:00.0': 7}, {'0000:3b:00.0': ['../../etc']}])
def test_what_is_no_number_of_vfio_leads_to_no_node(told):
    info = {'domain': '0000', 'bus': '3b', 'device': '00', 'function': '0'}
    ids = model.device.ids_of_part({'vfio': told}, info)
    found = document(cards.accelerator(driver='nvme_ssd', ids=ids))
    assert devices(found) == [(None, [])]


def test_a_block_device_of_spdk(tmp_path):
    told = json.dumps([{'name': name} for name in ('Nvme0n1', 'lvs/a b')])
    host = captures.host(tmp_path, [], {'spdk': {'bdev_get_bdevs': told}})
    found = document(*cards.noted(spdk.Spdk, host))
    assert devices(found) == [('Nvme0n1', [])]
    assert [each['reason'] for each in found['accelerators']] == [
        None,
        'its ids have no usable bdev',
    ]


def test_ascend_names_are_logical_and_nodes_physical():
    ids = {'npu_id': 6, 'chips': [{'chip_id': 0, 'logic_id': 1, 'phy_id': 6}]}
    found = document(cards.accelerator(driver='huawei_ascend', ids=ids))
    assert devices(found) == [('1', ['/dev/davinci6'])]


UUID = 'GPU-c2a7b9d8-0a13-5e6f-9d40-7f2b8e61c3a5'


def nvidia(tmp_path, information):
    """A host with an H100 and this information of the kernel driver."""
    host = captures.host(tmp_path, [captures.function('0000:1b:00.0', '10de:2330', '030200')])
    place = host.root / 'proc/driver/nvidia/gpus/0000:1b:00.0'
    place.mkdir(parents=True)
    (place / 'information').write_text(information)
    return host


def test_nvidia_without_nvml(tmp_path):
    """The number of the node is the minor, whatever the index is."""
    host = nvidia(tmp_path, f'Model: \t H100\nGPU UUID: \t {UUID}\nDevice Minor: \t 5\n')
    found = document(*cards.noted(nvidia_gpu.NvidiaGpu, host))
    assert devices(found) == [(UUID, ['/dev/nvidia5'])]


@pytest.mark.parametrize(
    'uuid', ['GPU-????????-????-????-????-????????????', 'GPU-1,0', 'GPU-0 -e x', '']
)
def test_nvidia_without_a_uuid_is_left_out(tmp_path, uuid):
    host = nvidia(tmp_path, f'GPU UUID: \t {uuid}\nDevice Minor: \t 5\n')
    found = document(*cards.noted(nvidia_gpu.NvidiaGpu, host))
    assert devices(found) == []
    assert found['accelerators'][0]['reason'] == 'its ids have no usable uuid'


def test_amd(tmp_path):
    node = test_amd_gpu.properties(location_id=0x2600, drm_render_minor=136)
    found = document(*cards.noted(amd_gpu.AmdGpu, test_amd_gpu.host(tmp_path, node)))
    assert devices(found) == [('0', ['/dev/dri/renderD136'])]
    assert found['drivers']['amd_gpu']['shared'] == ['/dev/kfd']


def test_amd_with_partitions(tmp_path):
    nodes = [
        test_amd_gpu.properties(location_id=0x2600 + n, drm_render_minor=128 + n) for n in range(2)
    ]
    found = document(*cards.noted(amd_gpu.AmdGpu, test_amd_gpu.host(tmp_path, *nodes)))
    assert devices(found) == [('0', ['/dev/dri/renderD128']), ('1', ['/dev/dri/renderD129'])]


def test_intel(tmp_path):
    card = captures.function(
        '0000:3a:00.0', '8086:0bda', '038000', files={'drm/renderD130/dev': '226:130'}
    )
    host = captures.host(tmp_path, [card])
    assert devices(document(*cards.noted(intel_gpu.IntelGpu, host))) == [
        (None, ['/dev/dri/renderD130'])
    ]


@pytest.mark.parametrize('place', ['module_id', 'accel/accel3/module_id'])
def test_gaudi(tmp_path, place):
    files = {'accel/accel3/dev': '261:3', place: '5'}
    card = captures.function('0000:19:00.0', '1da3:1020', files=files)
    found = document(*cards.noted(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card])))
    assert devices(found) == [('5', ['/dev/accel/accel3', '/dev/accel/accel_controlD3'])]


def test_gaudi_of_an_older_kernel_is_left_out(tmp_path):
    """It does not tell the module; the index is another number."""
    files = {'accel/accel3/dev': '261:3'}
    card = captures.function('0000:19:00.0', '1da3:1020', files=files)
    found = document(*cards.noted(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card])))
    assert devices(found) == []
    assert 'module_id' in found['accelerators'][0]['reason']


def test_fake(tmp_path):
    found = document(*cards.noted(fake.FakeDriver, hosts.find('hgx-8gpu', tmp_path)))
    assert devices(found) == [(None, [])] * fake.HANDLES
    assert not any(each['reason'] for each in found['accelerators'])


MIG = {
    'uuid': 'MIG-1c5e0e1a-8f0e-5a52-a1b6-0b7a0f7c2e11',
    'minor': 2,
    'gpu_instance_minor': 30,
    'compute_instance_minor': 31,
}


def test_a_mig_instance_has_nodes_of_its_own():
    found = document(cards.accelerator(driver='nvidia_gpu', form='mig', ids=MIG))
    caps = ['/dev/nvidia-caps/nvidia-cap30', '/dev/nvidia-caps/nvidia-cap31']
    assert devices(found) == [(MIG['uuid'], ['/dev/nvidia2', *caps])]


def test_a_device_has_all_of_its_nodes_or_none():
    found = document(
        cards.accelerator(driver='nvidia_gpu', form='mig', ids=MIG | {'gpu_instance_minor': None})
    )
    assert devices(found) == [(MIG['uuid'], [])]
    assert found['accelerators'][0]['reason'] == 'its ids have no usable gpu_instance_minor'


# Unknown values are named, and not invented.


@pytest.mark.parametrize(
    ('facts', 'reason'),
    [
        ({'driver': None}, 'an older release'),
        ({'driver': 'pci'}, 'beside its driver'),
        ({'driver': '../drivers/fake'}, 'beside its driver'),
        ({'driver': 'huawei_ascend', 'form': 'vf'}, 'for guests'),
        ({'driver': 'huawei_ascend', 'form': None}, 'for guests'),
        ({'driver': 'huawei_ascend'}, 'no usable logic_id or phy_id'),
        ({'driver': 'huawei_ascend', 'ids': []}, 'no usable logic_id or phy_id'),
    ],
)
def test_an_accelerator_that_no_process_can_use(facts, reason):
    [found] = document(cards.accelerator(**facts))['accelerators']
    assert found['devices'] == []
    assert reason in found['reason']


def test_an_accelerator_of_an_older_release():
    """It has none of the facts that were added since."""
    old = cards.accelerator()
    del old['driver'], old['form'], old['ids']
    assert 'an older release' in document(old)['accelerators'][0]['reason']


#: Ids that a command line, a list or a path would misread.
HOSTILE = (
    '0,1', '0 1', '--privileged', '-1', '$(id)', '0;id', '../sda', '0\n', '', '０', True, 1.5,
    None, [], {'a': 1}, '0=1', "0'", '1' * 70,
)  # fmt: skip


@pytest.mark.parametrize('id', HOSTILE)
def test_an_id_that_could_be_misread_is_no_name(id):
    ids = {'chips': [{'logic_id': id, 'phy_id': 0}]}
    found = document(cards.accelerator(driver='huawei_ascend', ids=ids))
    # For an absent id the other one is used.
    assert [name for name, _ in devices(found)] == (['0'] if id is None else [])


@pytest.mark.parametrize('id', [*HOSTILE, 'GPU-a', '1/2', 'sda'])
def test_an_id_that_is_no_number_is_in_no_path(id):
    ids = {'uuid': 'GPU-a', 'minor': id}
    found = document(cards.accelerator(driver='nvidia_gpu', ids=ids))
    assert devices(found) == [('GPU-a', [])]


@pytest.mark.parametrize('uuid', [UUID, MIG['uuid'], 'MIG-GPU-c2a7b9d8/13/0', 'GPU-0cee36ddc425'])
def test_uuids_are_names(uuid):
    ids = {'uuid': uuid, 'minor': 0}
    assert devices(document(cards.accelerator(driver='nvidia_gpu', ids=ids)))[0][0] == uuid


def test_files_that_a_host_lacks_are_left_out():
    found = document(*cards.ascend(2))
    here = delivery.present(found, lambda path: path in ('/dev/davinci_manager', '/usr/local/dcmi'))
    assert here['drivers']['huawei_ascend']['shared'] == ['/dev/davinci_manager']
    assert here['drivers']['huawei_ascend']['mounts'] == ['/usr/local/dcmi']
    # The devices themselves stay: without them the workload must not start.
    assert devices(here) == [('2', ['/dev/davinci2'])]
    assert len(found['drivers']['huawei_ascend']['shared']) == 3

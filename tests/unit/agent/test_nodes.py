# SPDX-License-Identifier: Apache-2.0
import pytest

from cyborg_lite import driver
from cyborg_lite.agent import nodes
from tests import support


def gpu(bus, minor, **more):
    card = support.card(bus, vendor_board={'minor': minor}, **more)
    [part] = card.deployables
    part.driver_name, part.attach_handles[0].form = 'nvidia_gpu', 'whole'
    return card


def test_each_card_has_its_nodes():
    found = nodes.find(['nvidia_gpu'], [gpu('3b', 0), gpu('5e', 1)])
    assert found.drivers == {'nvidia_gpu'}
    assert found.nodes == {
        '0000:3b:00.0': {'/dev/nvidia0'}, '0000:5e:00.0': {'/dev/nvidia1'},
    }  # fmt: skip
    assert '/dev/nvidiactl' in found.shared


def test_instances_of_a_card_have_its_node_and_their_own():
    card = gpu('3b', 0)
    card.vendor_board = {'mig': [
        {'uuid': f'MIG-{n}', 'minor': 0, 'gpu_instance_minor': n, 'compute_instance_minor': n + 1}
        for n in (10, 20)
    ]}  # fmt: skip
    card.deployables[0].attach_handles = [
        driver.AttachHandle(attach_type='MIG', attach_info={'uuid': f'MIG-{n}'}, form='mig')
        for n in (10, 20)
    ]
    caps = '/dev/nvidia-caps/nvidia-cap'
    [found] = nodes.find([], [card]).nodes.values()
    assert found == {'/dev/nvidia0', *(f'{caps}{n}' for n in (10, 11, 20, 21))}


def test_where_others_open_the_node_a_driver_lists_the_processes():
    """Such as nvidia-smi; without a list, nobody uses the card."""
    found = nodes.find([], [gpu('3b', 0, processes=frozenset({7})), gpu('5e', 1)])
    assert found.used == {'/dev/nvidia0': '0000:3b:00.0', '/dev/nvidia1': '0000:5e:00.0'}
    assert found.listed == {'0000:3b:00.0': {7}, '0000:5e:00.0': frozenset()}


@pytest.mark.parametrize('name', ['amd_gpu', 'intel_gpu'])
def test_programs_open_the_nodes_of_gpus_that_they_do_not_use(name):
    card = support.card('3b', vendor_board={'render_minor': 128}, processes=frozenset({7}))
    [part] = card.deployables
    part.driver_name, part.attach_handles[0].form = name, 'whole'
    found = nodes.find([], [card])
    assert found.used == {'/dev/dri/renderD128': card.address}
    assert found.listed == {card.address: {7}}


def test_an_open_node_is_sufficient_where_only_users_open_it():
    card = support.card('3b', vendor_board={'chips': [{'phy_id': 0}]}, processes=frozenset({7}))
    [part] = card.deployables
    part.driver_name, part.attach_handles[0].form = 'huawei_ascend', 'whole'
    found = nodes.find([], [card])
    assert (found.used, found.listed) == ({'/dev/davinci0': '0000:3b:00.0'}, {})


def test_a_card_that_cannot_be_leased_has_none():
    """It may show the console."""
    assert nodes.find([], [gpu('3b', 0, unusable='it shows the console')]).nodes == {}


def test_cards_without_a_driver_of_nodes():
    assert nodes.find(['fake'], [support.card()]).nodes == {'0000:3b:00.0': frozenset()}

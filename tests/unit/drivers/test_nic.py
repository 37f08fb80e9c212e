# SPDX-License-Identifier: Apache-2.0
"""Network cards: several ports are one card, and the host's own interfaces stay with it."""

from __future__ import annotations

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import testing
from cyborg_lite.drivers import nic
from tests.unit.drivers import captures

IN_USE = 'the host uses it: bind it to vfio-pci to have it allocated'
DPU = '15b3:a2dc'
VIRTUAL = {'id': '15b3:101e', 'total': '16', 'enabled': '4', 'offset': '2'}


def discover(tmp_path, *functions: dict) -> list[driver.Device]:
    return testing.discover(nic.Nic, captures.host(tmp_path, list(functions)))


def port(number: int, ids: str = DPU, pci_class: str = '020000', **more) -> dict:
    return captures.function(f'0000:3b:00.{number}', ids, pci_class, **more)


def places(part: driver.Deployable) -> list[str]:
    return [f'{h.attach_info["device"]}.{h.attach_info["function"]}' for h in part.attach_handles]


def test_the_ports_of_a_dpu_are_one_card(tmp_path):
    """Its function for management is none of its ports."""
    [card] = discover(tmp_path, port(0), port(1), port(2, '15b3:c2d5', '080100'))
    assert (card.type, card.model, card.address) == ('NIC', 'NVIDIA BlueField-3', '0000:3b:00.0')
    assert card.unusable is None
    assert [part.name for part in card.deployables] == ['0000:3b:00.0', '0000:3b:00.1']
    assert [places(part) for part in card.deployables] == [['00.0'], ['00.1']]
    assert {part.resource_class for part in card.deployables} == {'CUSTOM_NIC'}
    assert {t for p in card.deployables for t in p.traits} == {'CUSTOM_NIC_NVIDIA_BLUEFIELD_3'}


def test_a_port_of_the_host_is_not_given_out_and_another_one_is(tmp_path):
    [card] = discover(tmp_path, port(0, driver='mlx5_core'), port(1, driver='vfio-pci'))
    assert card.unusable is None
    assert [places(part) for part in card.deployables] == [[], ['00.1']]


def test_a_card_of_the_host_is_not_given_out(tmp_path):
    [card] = discover(tmp_path, port(0, driver='mlx5_core'), port(1, driver='mlx5_core'))
    assert card.unusable == IN_USE
    assert [places(part) for part in card.deployables] == [[], []]


@pytest.mark.parametrize(
    ('files', 'version'),
    [
        ({'infiniband/mlx5_0/fw_ver': '32.39.1002\n'}, '32.39.1002'),
        ({'infiniband/mlx5_0/fw_ver': ''}, None),
        ({'infiniband/mlx5_0/fw_ver': 'x' * 200}, None),
        ({'net/ens3f0np0/flags': '0x1003'}, None),
    ],
)
def test_the_firmware_of_a_card_for_rdma(tmp_path, files, version):
    [card] = discover(tmp_path, port(0, files=files))
    assert card.vendor_board.get('firmware_version') == version
    traits = {each for each in card.deployables[0].traits if 'FIRMWARE' in each}
    assert traits == (
        {'CUSTOM_NIC_FIRMWARE_32', 'CUSTOM_NIC_FIRMWARE_32_39_1002'} if version else set()
    )


@pytest.mark.parametrize(
    ('flags', 'given'),
    [('0x1002', True), ('0x1003', False), ('', False), ('up', False), (None, True)],
)
def test_a_virtual_function_whose_interface_is_up_is_of_the_host(tmp_path, flags, given):
    files = {} if flags is None else {'net/ens3v0/flags': flags}
    virtual = VIRTUAL | {'files': {'0': files}}
    host = captures.host(tmp_path, [port(0, driver='mlx5_core', virtual=virtual)])
    for function in list(host.tree.functions())[1:]:
        (function.path / 'driver').symlink_to('../../../bus/pci/drivers/mlx5_core')
    [card] = testing.discover(nic.Nic, host)
    assert card.unusable is None
    assert places(card.deployables[0]) == ['00.2', '00.3', '00.4', '00.5'][not given :]


def test_any_card_with_virtual_functions_is_found(tmp_path):
    virtual = {'id': '8086:1889', 'total': '8', 'enabled': '2', 'offset': '8'}
    plain = captures.function('0000:5e:00.0', '8086:1592', '020000', driver='ice')
    split = captures.function('0000:5f:00.0', '8086:1592', '020000', driver='ice', virtual=virtual)
    other = captures.function('0000:60:00.0', '8086:1592', '088000', virtual=virtual)
    [card] = discover(tmp_path, plain, split, other)
    assert (card.address, card.model, card.unusable) == ('0000:5f:00.0', 'PCI 8086:1592', None)
    assert places(card.deployables[0]) == ['01.0', '01.1']


@pytest.mark.evidence(
    'nic', 'real capture', 'udev of a server with two, each of two ports', 'NVIDIA BlueField-3'
)
def test_a_real_server(tmp_path):
    text = captures.text('udev/DISK_SAMSUNG_KIOXIA.udevadm.txt.xz')
    cards = discover(tmp_path, *captures.from_udev(text))
    assert [(c.address, c.model, c.unusable) for c in cards] == [
        ('0000:29:00.0', 'NVIDIA BlueField-3', IN_USE),
        ('0000:aa:00.0', 'NVIDIA BlueField-3', IN_USE),
    ]
    assert [len(card.deployables) for card in cards] == [2, 2]

# SPDX-License-Identifier: Apache-2.0
"""The accelerators of PCI cards of all families, while their tree changes."""

from __future__ import annotations

import json

from oslo_config import cfg
import pytest

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.driver import testing
from cyborg_lite.driver.pci import BOUND
from cyborg_lite.driver.pci import PciDriver
from cyborg_lite.drivers import huawei_ascend
from cyborg_lite.drivers import intel_qat
from cyborg_lite.drivers import nvidia_gpu
from cyborg_lite.drivers import pci
from tests.unit.drivers import captures

CARD = '0000:3b:00.0'


def configured(*specs: dict) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    conf.register_opts([cfg.MultiStrOpt('device_spec', default=[])], 'pci')
    conf.set_override('device_spec', [json.dumps(spec) for spec in specs], 'pci')
    return conf


def by_spec(**spec: str):
    return lambda host: pci.PciDevices(host, configured(spec))


def of(kind: type[driver.Driver]):
    return lambda host: kind(host, configured())


#: The drivers, with ids of card and virtual function, and the class.
FAMILIES = {
    'ascend': (of(huawei_ascend.HuaweiAscend), '19e5:d802', '19e5:d802', '120000'),
    'nvidia': (of(nvidia_gpu.NvidiaGpu), '10de:2335', '10de:2335', '030200'),
    'qat': (of(intel_qat.IntelQat), '8086:37c8', '8086:37c9', '0b4000'),
    'vendor': (by_spec(vendor_id='1bcf'), '1bcf:001c', '1bcf:001d', '0b4000'),
    'class': (by_spec(class_id='0b40'), '1bcf:001c', '1bcf:001d', '0b4000'),
    'address': (by_spec(address='0000:3b:*.*'), '1bcf:001c', '1bcf:001c', '0b4000'),
    'virtual': (by_spec(vendor_id='1bcf', product_id='001d'), '1bcf:001c', '1bcf:001d', '0b4000'),
}


@pytest.fixture(params=FAMILIES)
def split(request, tmp_path):
    """A host with one card of four virtual functions, and the driver that finds it."""
    make, ids, virtual, pci_class = FAMILIES[request.param]
    enabled = {'id': virtual, 'total': '8', 'enabled': '4', 'offset': '4'}
    function = captures.function(CARD, ids, pci_class, virtual=enabled)
    host = captures.host(tmp_path, [function])
    return host, make(host)


def offered(subject: driver.Driver) -> dict[str, list[str]]:
    """The offered functions by their cards."""
    return {
        device.address: [
            '{domain}:{bus}:{device}.{function}'.format(**handle.attach_info)
            for part in device.deployables
            for handle in part.attach_handles
        ]
        for device in subject.discover()
    }


FUNCTIONS = [f'0000:3b:00.{n}' for n in (4, 5, 6, 7)]


def test_virtual_functions(split):
    assert offered(split[1]) == {CARD: FUNCTIONS}


@pytest.mark.parametrize('numvfs', ['0', '4'])
@pytest.mark.parametrize('links', ['none', 'virtfn'])
def test_a_function_that_is_not_linked_yet_is_no_card_and_not_given_out(split, links, numvfs):
    host, subject = split
    card, _, late, *_ = host.tree.functions()
    (card.path / 'sriov_numvfs').write_text(numvfs)
    (late.path / 'physfn').unlink()
    if links == 'none':
        (card.path / 'virtfn1').unlink()
    assert offered(subject) == {CARD: [f for f in FUNCTIONS if f != late.bdf]}


@pytest.mark.parametrize('numvfs', ['0', '4'])
def test_a_card_whose_functions_are_not_linked_yet_is_not_given_out(split, numvfs):
    """They appear one after another: meanwhile the card is neither whole nor two cards."""
    host, subject = split
    card, *virtual = host.tree.functions()
    (card.path / 'sriov_numvfs').write_text(numvfs)
    for number, function in enumerate(virtual):
        (card.path / f'virtfn{number}').unlink()
        (function.path / 'physfn').unlink()
    seen = offered(subject)
    assert CARD not in seen or seen == {CARD: []}
    assert not seen.keys() - {CARD}
    assert {each.unusable for each in subject.discover()} <= {
        'its virtual functions cannot be seen'
    }
    for number, function in enumerate(virtual):
        (card.path / f'virtfn{number}').symlink_to(f'../{function.bdf}')
        before = offered(subject)
        assert not before.keys() - {CARD}
        assert before.get(CARD, []) == FUNCTIONS[:number]
        (function.path / 'physfn').symlink_to(f'../{CARD}')
        assert offered(subject) == {CARD: FUNCTIONS[: number + 1]}


def test_a_second_card_on_the_bus_stays_one(tmp_path):
    """It has the id of virtual functions, but an address that none can have."""
    virtual = {'id': '10de:2335', 'total': '2', 'enabled': '0', 'offset': '4'}
    host = captures.host(
        tmp_path,
        [
            captures.function(CARD, '10de:2335', '030200', virtual=virtual),
            captures.function('0000:3b:01.0', '10de:2335', '030200'),
        ],
    )
    subject = nvidia_gpu.NvidiaGpu(host, configured())
    assert offered(subject) == {CARD: [CARD], '0000:3b:01.0': ['0000:3b:01.0']}


def handles(device: driver.Device) -> list[driver.AttachHandle]:
    return [handle for part in device.deployables for handle in part.attach_handles]


def test_forms_and_groups(split):
    host, subject = split
    for number, function in enumerate(host.tree.functions()):
        (function.path / 'iommu_group').symlink_to(f'../../../kernel/iommu_groups/{17 + number}')
    [card] = subject.discover()
    assert [(h.form, h.iommu_group) for h in handles(card)] == [
        ('vf', '18'),
        ('vf', '19'),
        ('vf', '20'),
        ('vf', '21'),
    ]


def test_a_whole_card_has_the_group_of_its_function(tmp_path):
    function = captures.function(CARD, '10de:1eb8', '030200', iommu_group='17')
    [card] = nvidia_gpu.NvidiaGpu(captures.host(tmp_path, [function]), configured()).discover()
    [handle] = handles(card)
    assert (handle.iommu_group, handle.form) == ('17', None)
    assert card.unusable is None


@pytest.mark.parametrize(
    ('boot_vga', 'unusable'), [('1', 'it shows the console of the host (boot_vga)'), ('0', None)]
)
@pytest.mark.parametrize('family', ['nvidia', 'vendor', 'class', 'address'])
def test_the_card_of_the_console_is_not_for_instances(tmp_path, family, boot_vga, unusable):
    make, ids, _, pci_class = FAMILIES[family]
    function = captures.function(CARD, ids, pci_class, files={'boot_vga': boot_vga})
    host = captures.host(tmp_path, [function])
    [card] = make(host).discover()
    assert card.unusable == unusable
    # It is reported with its accelerator.
    assert len(handles(card)) == 1


@pytest.mark.parametrize('offer', [False, True])
def test_an_option_offers_the_card_of_the_console(tmp_path, offer):
    function = captures.function(CARD, '10de:2684', '030000', files={'boot_vga': '1'})
    conf = options.load(files=[], agent__offer_console_card=offer)
    [card] = nvidia_gpu.NvidiaGpu(captures.host(tmp_path, [function]), conf).discover()
    assert (card.unusable is None) == offer


def test_virtual_functions_of_the_card_of_the_console_leave_it_to_the_host(split):
    host, subject = split
    (host.tree.functions()[0].path / 'boot_vga').write_text('1')
    [card] = subject.discover()
    assert card.unusable is None


def test_a_card_with_a_mediated_device_is_not_given_out_whole(tmp_path):
    function = captures.function(CARD, '10de:1eb8', '030200')
    host = captures.host(tmp_path, [function])
    subject = nvidia_gpu.NvidiaGpu(host, configured())
    devices = host.tree.functions()[0].path / 'mdev_supported_types/nvidia-222/devices'
    devices.mkdir(parents=True)
    assert offered(subject) == {CARD: [CARD]}
    (devices / 'f715f63c-0d00-4007-9c5a-b07b0c6c05de').symlink_to('../../../f715f63c')
    assert offered(subject) == {CARD: []}
    assert [card.unusable for card in subject.discover()] == ['its mediated devices are in use']
    (devices / 'f715f63c-0d00-4007-9c5a-b07b0c6c05de').unlink()
    assert offered(subject) == {CARD: [CARD]}


def test_a_virtual_function_with_a_mediated_device_is_not_given_out(split):
    """NVIDIA's A2 has mediated devices on virtual functions."""
    host, subject = split
    for function in host.tree.functions()[1:3]:
        (function.path / 'mdev_supported_types/nvidia-754/devices/1').mkdir(parents=True)
    assert offered(subject) == {CARD: FUNCTIONS[2:]}
    assert [card.unusable for card in subject.discover()] == [None]
    for function in host.tree.functions()[3:]:
        (function.path / 'mdev_supported_types/nvidia-754/devices/1').mkdir(parents=True)
    assert offered(subject) == {CARD: []}
    assert [card.unusable for card in subject.discover()] == ['its mediated devices are in use']


def judged(tmp_path, family: str, card: dict[str, str], port: dict[str, str] | None = None):
    """The health of a card with these attributes, below a port with those."""
    make, ids, _, pci_class = FAMILIES[family]
    host = captures.host(tmp_path, [captures.function(CARD, ids, pci_class, files=card)])
    if port is not None:
        # As in the kernel, the directory of a function is in that of the port above it.
        listed = host.root / 'sys/bus/pci/devices'
        above = host.root / 'sys/devices/pci0000:3a/0000:3a:00.0'
        above.mkdir(parents=True)
        (listed / CARD).resolve().rename(above / CARD)
        (listed / CARD).unlink()
        (listed / CARD).symlink_to(above / CARD)
        (listed / above.name).symlink_to(above)
        for name, text in port.items():
            (above / name).write_text(text)
    [device] = make(host).discover()
    return device.health, device.health_reason


def link(current: str, widest: str) -> dict[str, str]:
    return {'current_link_width': current, 'max_link_width': widest}


NARROW = ('warning', 'pcie_width')


@pytest.mark.parametrize('family', [name for name in FAMILIES if name != 'virtual'])
def test_a_link_that_is_narrower_than_it_can_be_is_told(tmp_path, family):
    assert judged(tmp_path, family, link('8', '16')) == NARROW


@pytest.mark.parametrize(
    ('current', 'widest', 'health'),
    [
        ('16', '16', ('ok', None)),
        ('1', '16', NARROW),
        # No link, or an unknown width: QAT within a chipset shows 0 of 255.
        ('0', '16', ('unknown', None)),
        ('0', '255', ('unknown', None)),
        ('63', '63', ('unknown', None)),
        ('8', '255', ('unknown', None)),
        ('-8', '16', ('unknown', None)),
        ('8x', '16', ('unknown', None)),
        ('9' * 400, '16', ('unknown', None)),
    ],
)
def test_a_width_counts_if_pcie_has_it(tmp_path, current, widest, health):
    assert judged(tmp_path, 'qat', link(current, widest)) == health


def test_an_idle_card_may_lower_the_speed_of_its_link(tmp_path):
    speeds = {'current_link_speed': '2.5 GT/s PCIe', 'max_link_speed': '16.0 GT/s PCIe'}
    assert judged(tmp_path, 'nvidia', link('16', '16') | speeds) == ('ok', None)


@pytest.mark.parametrize(
    ('port', 'health'),
    [
        (link('8', '8'), ('ok', None)),
        (link('8', '16'), NARROW),
        (link('4', '4'), ('ok', None)),
        # Without a width of the port, that of the card is used.
        ({}, NARROW),
        (link('8', '255'), NARROW),
    ],
)
def test_a_slot_that_can_do_no_more_is_no_fault(tmp_path, port, health):
    assert judged(tmp_path, 'qat', link('8', '16'), port) == health


def test_health_is_recorded_with_the_host(tmp_path):
    """A recording of the host has the same health."""
    assert {'current_link_width', 'max_link_width'} <= {*recording.ATTRIBUTES}


class ByClass(PciDriver):
    """Cards of any vendor that have a class."""

    name, type, resource_class = 'by_class', 'SSD', 'CUSTOM_SSD'

    def is_card(self, function):
        return function.pci_class == '010802'


@pytest.mark.parametrize('name', ['vendor', 'device'])
def test_a_function_whose_ids_cannot_be_read_is_no_card(tmp_path, name):
    functions = [captures.function(f'0000:0{n}:00.0', '144d:a80a', '010802') for n in (5, 6)]
    host = captures.host(tmp_path, functions)
    (host.tree.functions()[0].path / name).write_text('rubbish')
    assert [card.address for card in testing.discover(ByClass, host)] == ['0000:06:00.0']


class Ported(PciDriver):
    """Cards of several ports, whose attributes have facts and the serial number."""

    name, type, resource_class, one_per_slot = 'ported', 'NIC', 'CUSTOM_NIC', True
    vendors, classes, used_by_host = ('abcd',), ('02',), True
    board_files = {'firmware': ('old/fw', 'acme/acme*/fw'), 'model': ('acme/acme*/model',)}
    serial_files = ('acme/acme*/serial',)


def ported(tmp_path, *functions: dict) -> list[driver.Device]:
    return testing.discover(Ported, captures.host(tmp_path, list(functions)))


def test_functions_of_a_slot_are_one_card(tmp_path):
    found = ported(
        tmp_path,
        *(captures.function(f'0000:3b:00.{n}', 'abcd:0001', '020000') for n in (0, 1, 7)),
        captures.function('0000:3b:01.0', 'abcd:0001', '020000'),
        captures.function('0001:3b:00.1', 'abcd:0001', '020000'),
        captures.function('0001:3b:00.2', 'abcd:0001', '120000'),
        captures.function('0001:3b:00.3', 'abce:0001', '020000'),
    )
    ports = {card.address: [part.name for part in card.deployables] for card in found}
    assert ports == {
        '0000:3b:00.0': ['0000:3b:00.0', '0000:3b:00.1', '0000:3b:00.7'],
        '0000:3b:01.0': ['0000:3b:01.0'],
        '0001:3b:00.1': ['0001:3b:00.1'],
    }


@pytest.mark.parametrize(
    ('files', 'board'),
    [
        ({'acme/acme0/model': ' A  One '}, {'model': 'A One'}),
        ({'acme/acme0/fw': '1.2', 'old/fw': '1.1'}, {'firmware': '1.1'}),
        ({'acme/acme0/fw': '', 'acme/acme1/fw': '1.3'}, {'firmware': '1.3'}),
        ({'acme/acme0/fw': 'x' * 128}, {'firmware': 'x' * 128}),
        ({'acme/acme0/fw': 'x' * 129}, {}),
        ({}, {}),
    ],
)
def test_facts_from_attributes(tmp_path, files, board):
    [card] = ported(tmp_path, captures.function(CARD, 'abcd:0001', '020000', files=files))
    assert card.vendor_board == board


def test_a_serial_number_of_several_cards_identifies_none(tmp_path):
    cards = ported(
        tmp_path,
        *(
            captures.function(
                f'0000:3{n}:00.0', 'abcd:0001', '020000', files={'acme/acme0/serial': serial}
            )
            for n, serial in enumerate(('A', 'B', 'A'))
        ),
    )
    assert [card.serial for card in cards] == [None, 'B', None]


class Versioned(PciDriver):
    """Cards whose host and attributes tell versions."""

    name, type, resource_class = 'acme_npu', 'AICHIP', 'CUSTOM_NPU'
    models = {('abcd', '0001'): 'Acme One'}
    firmware_files = ('acme/acme*/fw',)

    def versions(self, card):
        return {**super().versions(card), 'runtime': card.read('runtime'), 'other': '1'}


@pytest.mark.parametrize(
    ('module', 'driver_', 'files', 'told', 'traits'),
    [
        ('580.159.04', 'acme-npu', {'acme/acme0/fw': '7', 'runtime': '13.1 beta'}, {
            'driver_version': '580.159.04', 'firmware_version': '7', 'runtime_version': '13.1 beta',
        }, ['DRIVER_580', 'DRIVER_580_159_04', 'FIRMWARE_7', 'RUNTIME_13', 'RUNTIME_13_1_BETA']),
        ('v2', 'acme-npu', {}, {'driver_version': 'v2'}, ['DRIVER_V2']),
        ('1234567.8', 'acme-npu', {}, {'driver_version': '1234567.8'}, ['DRIVER_1234567_8']),
        ('---', 'acme-npu', {}, {'driver_version': '---'}, []),
        ('x' * 129, 'acme-npu', {'acme/acme0/fw': 'a\x07b', 'runtime': ''}, {}, []),
        ('1.0', 'vfio-pci', {}, {}, []),
        ('1.0', 'another', {}, {}, []),
    ],
)  # fmt: skip
def test_versions_are_facts_and_traits(tmp_path, module, driver_, files, told, traits):
    function = captures.function(CARD, 'abcd:0001', driver=driver_, files=files)
    host = captures.host(tmp_path, [function])
    for name in ('acme_npu', 'vfio_pci'):
        (host.root / f'sys/module/{name}').mkdir(parents=True)
        (host.root / f'sys/module/{name}/version').write_text(module)
    [card] = testing.discover(Versioned, host)
    assert card.vendor_board == told
    found = [name for name in card.deployables[0].traits if name != 'CUSTOM_AICHIP_ACME_ONE']
    assert found == sorted(f'CUSTOM_ACME_NPU_{name}' for name in traits)
    recording.record(host, tmp_path / 'copy.tar.gz', with_serials=True)
    copy = hosts.find(str(tmp_path / 'copy.tar.gz'), tmp_path)
    [again] = testing.discover(Versioned, copy)
    assert again.facts() == card.facts()


def test_versions_are_read_once_for_each_card_of_a_scan(tmp_path):
    asked = []

    class Counted(Versioned):
        def versions(self, card):
            asked.append(card.bdf)
            return super().versions(card)

    function = captures.function(CARD, 'abcd:0001', files={'acme/acme0/fw': '7'})
    host = captures.host(tmp_path, [function])
    [file] = host.root.glob('sys/devices/**/acme0/fw')
    acme = Counted(host, None)
    for firmware in ('7', '8'):
        file.write_text(firmware)
        [card] = acme.discover()
        assert card.vendor_board['firmware_version'] == firmware
        assert f'CUSTOM_ACME_NPU_FIRMWARE_{firmware}' in card.deployables[0].traits
    assert asked == [CARD, CARD]


def test_a_board_has_room_for_the_nodes_of_all_its_functions(tmp_path):
    """As far as there is room: the card is reported whatever the number of its functions."""
    virtual = {'id': 'abcd:0001', 'total': '500', 'enabled': '500'}
    host = captures.host(tmp_path, [captures.function(CARD, 'abcd:0001', virtual=virtual)])
    for number, function in enumerate(f for f in host.tree.functions() if f.is_virtual):
        (function.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
        (function.path / 'iommu_group').symlink_to(f'../../../kernel/iommu_groups/{10**6 + number}')
        (function.path / f'vfio-dev/vfio{10**6 + number}').mkdir(parents=True)
        (function.path / f'vfio-dev/vfio{10**6 + number}/dev').write_text('511:0')
    [card] = testing.discover(Versioned, host)
    assert len(card.deployables[0].attach_handles) == 500
    assert len(card.vendor_board['vfio']) == BOUND

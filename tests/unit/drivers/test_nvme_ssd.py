# SPDX-License-Identifier: Apache-2.0
"""NVMe SSDs: the host's own ones, and those that it has released."""

from __future__ import annotations

import collections
import json
import pathlib

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import testing
from cyborg_lite.drivers import nvme_ssd
from tests.unit.drivers import captures

CARD, IDS = '0000:3b:00.0', '144d:a80a'
FILES = {
    'nvme/nvme3/model': 'SAMSUNG MZWLJ3T8HBLS-00007              ',
    'nvme/nvme3/serial': 'S4WANA0R600001      ',
    'nvme/nvme3/firmware_rev': 'EPK9CB5Q',
    'nvme/nvme3/state': 'live',
}
IN_USE = 'the host uses it: bind it to vfio-pci to have it allocated'
COMMAND = 'smart-log /dev/nvme3 -o json'


def discover(tmp_path: pathlib.Path, smart: str | None = None, **more) -> list[driver.Device]:
    function = captures.function(CARD, IDS, '010802', **more)
    tools = {} if smart is None else {'nvme': {COMMAND: smart}}
    return testing.discover(nvme_ssd.NvmeSsd, captures.host(tmp_path, [function], tools))


def health(card: driver.Device) -> tuple[str, str | None]:
    return card.health, card.health_reason


def test_an_ssd_of_the_host_is_shown_and_not_given_out(tmp_path):
    [card] = discover(tmp_path, driver='nvme', files=FILES)
    assert (card.type, card.vendor, card.model) == ('SSD', '144d', 'PCI 144d:a80a')
    assert card.vendor_board == {
        'product': 'SAMSUNG MZWLJ3T8HBLS-00007',
        'firmware_version': 'EPK9CB5Q',
    }
    assert (card.serial, card.unusable, health(card)) == ('S4WANA0R600001', IN_USE, ('ok', None))
    [part] = card.deployables
    assert part.attach_handles == []
    assert part.traits == [
        'CUSTOM_NVME_SSD_FIRMWARE_EPK9CB5Q',
        'CUSTOM_SSD_144D_A80A',
        'STORAGE_DISK_SSD',
    ]


@pytest.mark.parametrize('bound', [{'driver': 'vfio-pci'}, {'driver': 'nvme_vfio_pci'}, {}])
def test_an_ssd_that_the_host_has_released_is_given_out(tmp_path, bound):
    [card] = discover(tmp_path, **bound)
    assert (card.unusable, card.serial, health(card)) == (None, None, ('unknown', None))
    [part] = card.deployables
    assert (part.resource_class, len(part.attach_handles)) == ('CUSTOM_SSD', 1)


def test_the_link_of_a_guests_ssd_does_not_make_it_healthy(tmp_path):
    link = {'current_link_width': '4', 'max_link_width': '4'}
    [card] = discover(tmp_path, driver='vfio-pci', files=link)
    assert health(card) == ('unknown', None)


def test_released_virtual_functions_of_an_ssd_are_given_out(tmp_path):
    virtual = {'id': IDS, 'total': '4', 'enabled': '2'}
    host = captures.host(
        tmp_path,
        [captures.function(CARD, IDS, '010802', driver='nvme', files=FILES, virtual=virtual)],
    )
    first, second = list(host.tree.functions())[1:]
    for function in (first, second):
        (function.path / 'driver').symlink_to('../../../bus/pci/drivers/nvme')
    [card] = testing.discover(nvme_ssd.NvmeSsd, host)
    assert (card.unusable, card.deployables[0].attach_handles) == (IN_USE, [])
    (second.path / 'driver').unlink()
    [card] = testing.discover(nvme_ssd.NvmeSsd, host)
    assert (card.unusable, health(card)) == (None, ('ok', None))
    assert [h.attach_info['function'] for h in card.deployables[0].attach_handles] == ['2']


@pytest.mark.parametrize(
    ('files', 'expected'),
    [
        ({'nvme/nvme3/state': 'dead'}, ('critical', 'nvme_dead')),
        ({'nvme/nvme3/state': 'resetting'}, ('unknown', None)),
        ({'nvme/nvme3/hwmon4/temp1_alarm': '1'}, ('warning', 'nvme_temperature')),
        ({'nvme/nvme3/hwmon4/temp1_alarm': '0'}, ('ok', None)),
        ({'nvme/nvme3/hwmon4/temp1_alarm': 'x'}, ('unknown', None)),
        ({'current_link_width': '2', 'max_link_width': '4'}, ('warning', 'pcie_width')),
    ],
)
def test_health_by_the_kernel(tmp_path, files, expected):
    [card] = discover(tmp_path, driver='nvme', files=FILES | files)
    assert health(card) == expected


@pytest.mark.parametrize(
    ('told', 'expected'),
    [
        ({'critical_warning': 0}, ('ok', None)),
        ({'critical_warning': {'value': 8, 'ro': 1}}, ('critical', 'nvme_read_only')),
        ({'critical_warning': 1}, ('warning', 'nvme_spare')),
        ({'critical_warning': 2}, ('warning', 'nvme_temperature')),
        ({'critical_warning': 4}, ('critical', 'nvme_reliability')),
        ({'critical_warning': 16}, ('critical', 'nvme_backup')),
        ({'critical_warning': 32}, ('warning', 'nvme_memory_region')),
        ({'critical_warning': 5}, ('critical', 'nvme_reliability')),
        ({'critical_warning': 64}, ('ok', None)),
        ({'critical_warning': True}, ('unknown', None)),
        ({'critical_warning': -1}, ('unknown', None)),
        ({'critical_warning': 1.5}, ('unknown', None)),
        ([], ('unknown', None)),
        ({}, ('unknown', None)),
    ],
)
def test_health_by_smart_data(tmp_path, told, expected):
    [card] = discover(tmp_path, json.dumps(told), driver='nvme', files=FILES)
    assert health(card) == expected


def several(tmp_path: pathlib.Path, count: int, guests: int = 0) -> testing.Host:
    """A host with so many SSDs that are well by what the kernel and the tool tell.

    :param guests: how many of them are guests'.
    """
    functions = [
        captures.function(
            f'0000:{n:02x}:00.0',
            IDS,
            '010802',
            driver='vfio-pci' if n < guests else 'nvme',
            files={} if n < guests else {f'nvme/nvme{n}/state': 'live'},
        )
        for n in range(count)
    ]
    host = testing.Host(captures.host(tmp_path, functions))
    host.tools['nvme'] = '{"critical_warning": 0}'
    return host


def test_a_tool_that_hangs_is_asked_once_in_a_scan(tmp_path):
    host = several(tmp_path, 3)
    host.tools['nvme'] = testing.Fault.HANGS
    subject = nvme_ssd.NvmeSsd(host, None)
    for _ in range(2):
        host.runs.clear()
        cards, notes = subject.look()
        assert [health(card) for card in cards] == [('unknown', 'no_answer_in_5_s')] * 3
        asked = [run for run in host.runs if run.startswith('nvme ')]
        assert (len(asked), len(notes), subject.complete) == (1, 1, True)


def test_a_tool_that_hangs_says_nothing_of_the_ssd_of_a_guest(tmp_path):
    host = several(tmp_path, 2, guests=1)
    host.tools['nvme'] = testing.Fault.HANGS
    subject = nvme_ssd.NvmeSsd(host, None)
    late = [('unknown', None), ('unknown', 'no_answer_in_5_s')]
    assert [health(card) for card in subject.look()[0]] == late
    # Another failure is no lack of an answer.
    host.tools['nvme'] = testing.Fault.FAILS
    assert [health(card) for card in subject.look()[0]] == [('unknown', None)] * 2


def test_an_ssd_for_which_the_tool_hangs_costs_no_other_its_health(tmp_path):
    host = several(tmp_path, 3)
    host.tools['nvme smart-log /dev/nvme0 -o json'] = testing.Fault.HANGS
    subject = nvme_ssd.NvmeSsd(host, None)
    subject.look()
    for _ in range(2):
        cards, notes = subject.look()
        assert [card.health for card in cards] == ['unknown', 'ok', 'ok']
        assert len(notes) == 1


def test_many_ssds_that_answer_slowly_are_read_in_turn(tmp_path, monkeypatch):
    """Twenty-four of them take 96 s: longer than the interval, in which others are scanned too."""
    host = several(tmp_path, 24)
    clock = captures.slow(monkeypatch, host, 'nvme', seconds=4)
    subject = nvme_ssd.NvmeSsd(host, None)
    asked = []
    for scan in range(1, 25):
        begun = clock[0]
        host.runs.clear()
        cards, notes = subject.look()
        assert clock[0] - begun <= nvme_ssd.PATIENCE + nvme_ssd.TIMEOUT <= 10
        asked += [run for run in host.runs if run.startswith('nvme ')]
        assert [card.health for card in cards].count('ok') == min(2 * scan, 24)
        assert notes == ([] if scan >= 12 else ['nvme is slow: the next scan reads the rest'])
    assert {*collections.Counter(asked).values()} == {2}


def test_what_was_read_stays_known_and_is_not_of_another_ssd(tmp_path):
    host = several(tmp_path, 3)
    host.tools['nvme smart-log /dev/nvme1 -o json'] = '{"critical_warning": 8}'
    subject = nvme_ssd.NvmeSsd(host, None)
    well = [('ok', None), ('critical', 'nvme_read_only'), ('ok', None)]
    assert [health(card) for card in subject.look()[0]] == well
    host.tools = {'nvme': testing.Fault.HANGS}
    late = ('unknown', 'no_answer_in_5_s')
    assert [health(card) for card in subject.look()[0]] == [late, *well[1:]]
    (host.root / 'sys/bus/pci/devices/0000:01:00.0/nvme/nvme1/serial').write_text('another')
    assert [health(card)[0] for card in subject.look()[0]] == ['unknown', 'unknown', 'ok']


def test_an_ssd_that_is_replaced_during_a_scan_has_unknown_health(tmp_path, monkeypatch):
    host = several(tmp_path, 2)
    run, serial = host.run, host.root / 'sys/bus/pci/devices/0000:01:00.0/nvme/nvme1/serial'

    def replace(*args: str, **more: float) -> str | None:
        serial.write_text('another')
        return run(*args, **more)

    monkeypatch.setattr(host, 'run', replace)
    cards, notes = nvme_ssd.NvmeSsd(host, None).look()
    assert ([card.health for card in cards], notes) == (['ok', 'unknown'], [])


@hypothesis.given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.just('critical_warning'), inner),
    ).map(json.dumps)
)
def test_any_text_is_a_health(text):
    told = nvme_ssd.read_smart(text)
    assert told and {each.level for each in told} <= {'ok', 'warning', 'critical', 'unknown'}


def test_deep_text_is_unknown():
    assert nvme_ssd.read_smart('[' * 100_000) == [driver.Health()]


@pytest.mark.evidence(
    'nvme_ssd', 'real capture', 'sysfs of a POWER server: three controllers of two SSDs'
)
def test_a_real_tree(tmp_path):
    """Two controllers are of one SSD, so their serial number identifies neither."""
    host = captures.nvme(tmp_path, 'nvme/sysfs-tree-pcie.tar.xz')
    cards = testing.discover(nvme_ssd.NvmeSsd, host)
    addresses = ['0214:90:00.0', '052e:78:00.0', '058e:78:00.0']
    assert [card.address for card in cards] == addresses
    assert [card.numa_node for card in cards] == [1, 0, 2]
    assert [card.serial for card in cards] == ['S7DFNG0W700063', None, None]
    products = ['3.2TB NVMe Gen4 U.2 SSD V', *['3.2TB NVMe Gen4 U.2 SSD III'] * 2]
    assert [card.vendor_board['product'] for card in cards] == products
    assert {card.vendor_board['firmware_version'] for card in cards} == {'DNA8DNA8', 'REV.SN66'}
    assert {(*health(card), card.unusable) for card in cards} == {('ok', None, IN_USE)}

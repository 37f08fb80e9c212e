# SPDX-License-Identifier: Apache-2.0
"""Gaudi accelerators."""

from __future__ import annotations

import re

import pytest

from cyborg_lite.driver import testing
from cyborg_lite.drivers import intel_gaudi
from tests.unit.drivers import captures


@pytest.mark.parametrize(
    ('ids', 'pci_class', 'models'),
    [
        ('1da3:1060', '120000', ['Intel Gaudi 3']),
        ('1da3:1063', '120000', ['Intel Gaudi 3 PCIe']),
        ('1da3:1020', '020000', []),
    ],
)
def test_which_are_cards(tmp_path, ids, pci_class, models):
    host = captures.host(tmp_path, [captures.function('0000:19:00.0', ids, pci_class)])
    cards = testing.discover(intel_gaudi.IntelGaudi, host)
    assert [card.model for card in cards] == models
    assert all(card.deployables[0].resource_class == 'CUSTOM_HPU' for card in cards)


@pytest.mark.parametrize(
    ('node', 'board'),
    [('accel/accel3', {'index': 3}), ('habanalabs/hl7', {'index': 7}), ('accel/other', {})],
)
def test_a_gaudi_has_the_number_of_its_node(tmp_path, node, board):
    card = captures.function('0000:19:00.0', '1da3:1020', files={f'{node}/dev': '261:3'})
    [found] = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card]))
    assert found.vendor_board == board


@pytest.mark.parametrize('directory', ['accel/accel3', 'habanalabs/hl3'])
@pytest.mark.parametrize('name', ['cpucp_ver', 'armcp_ver'])
def test_the_firmware_of_the_control_processor(tmp_path, directory, name):
    files = {f'{directory}/{name}': 'hl-gaudi2-1.21.1-fw-59.2.1\n'}
    card = captures.function('0000:19:00.0', '1da3:1020', files=files)
    [found] = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card]))
    assert found.vendor_board['firmware_version'] == 'hl-gaudi2-1.21.1-fw-59.2.1'


@pytest.mark.parametrize('place', ['status', 'accel/accel3/status', 'habanalabs/hl3/status'])
@pytest.mark.parametrize(
    ('status', 'expected'),
    [
        ('Operational', ('ok', None)),
        ('Disabled', ('critical', 'gaudi_disabled')),
        ('Malfunction', ('critical', 'gaudi_disabled')),
        ('Needs reset', ('critical', 'gaudi_needs_reset')),
        ('Needs Reset', ('critical', 'gaudi_needs_reset')),
        ('In reset', ('unknown', None)),
        ('In device creation', ('unknown', None)),
    ],
)
def test_health_by_the_kernel(tmp_path, place, status, expected):
    card = captures.function('0000:19:00.0', '1da3:1020', files={place: status})
    [found] = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card]))
    assert (found.health, found.health_reason) == expected


@pytest.mark.evidence('intel_gaudi', 'real capture', 'hl-smi 1.17.1 of two', 'Intel Gaudi 2')
def test_cards_of_another_tool(tmp_path):
    text = captures.text('intel/gaudi2-hl-smi-1.17.1.txt')
    rows = re.findall(r'^\|\s+([0-9]+)\s+HL-225\s.*?\| (\S+)', text, re.MULTILINE)
    # The tool prints no id; an HL-225 is a Gaudi 2.
    functions = [
        captures.function(bdf, '1da3:1020', files={f'accel/accel{index}/dev': f'261:{index}'})
        for index, bdf in rows
    ]
    cards = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, functions))
    assert [(card.address, card.model, card.vendor_board) for card in cards] == [
        ('0000:4d:00.0', 'Intel Gaudi 2', {'index': 0}),
        ('0000:b4:00.0', 'Intel Gaudi 2', {'index': 1}),
    ]

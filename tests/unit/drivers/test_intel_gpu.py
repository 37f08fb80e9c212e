# SPDX-License-Identifier: Apache-2.0
"""Intel's GPUs: those of data centres, not those of processors."""

from __future__ import annotations

import re

import pytest

from cyborg_lite.driver import testing
from cyborg_lite.drivers import intel_gpu
from tests.unit.drivers import captures


@pytest.mark.parametrize(
    ('ids', 'pci_class', 'models'),
    [
        ('8086:0bd5', '038000', ['Intel Data Center GPU Max 1550']),
        ('8086:56c0', '030000', ['Intel Data Center GPU Flex 170']),
        ('8086:e211', '030000', ['Intel Arc Pro B60']),
        ('8086:4680', '030000', []),
    ],
)
def test_which_are_cards(tmp_path, ids, pci_class, models):
    host = captures.host(tmp_path, [captures.function('0000:19:00.0', ids, pci_class)])
    cards = testing.discover(intel_gpu.IntelGpu, host)
    assert [card.model for card in cards] == models
    assert all(card.deployables[0].resource_class == 'PGPU' for card in cards)


def test_a_graphics_card_of_another_tool_is_no_card(tmp_path):
    """The tool prints no id; source of that of a B580: pci.ids."""
    text = captures.text('intel/xpu-smi-discovery-b580.txt')
    [bus] = re.findall(r'Arc\(TM\) B580 .*?\| (\S+)', text)
    assert bus == '0000:03:00.0'
    for ids, models in (('8086:e20b', []), ('8086:e211', ['Intel Arc Pro B60'])):
        host = captures.host(tmp_path / ids, [captures.function(bus, ids, '030000')])
        assert [card.model for card in testing.discover(intel_gpu.IntelGpu, host)] == models


def test_virtual_functions_of_a_gpu(tmp_path):
    virtual = {'id': '8086:56c0', 'total': '31', 'enabled': '4'}
    card = captures.function('0000:4d:00.0', '8086:56c0', '038000', virtual=virtual)
    [found] = testing.discover(intel_gpu.IntelGpu, captures.host(tmp_path, [card]))
    [part] = found.deployables
    assert (part.resource_class, len(part.attach_handles)) == ('VGPU', 4)


#: What lspci prints of a Flex 170 with one virtual function, of 31 that the driver i915 tells of.
#: Source: intel/media-delivery, doc/virtualization.rst, "GPU SR-IOV Virtualization".
FLEX = """\
4d:00.0 Display controller [0380]: Intel Corporation Device [8086:56c0] (rev 08)
4d:00.1 Display controller [0380]: Intel Corporation Device [8086:56c0] (rev 08)
"""


@pytest.mark.evidence(
    'intel_gpu',
    'vendor sample',
    'lspci of a server with one, whole and with a virtual function',
    'Intel Data Center GPU Flex 170',
)
def test_a_gpu_with_a_virtual_function_in_a_manual(tmp_path):
    """The virtual function has the id of the card, and follows it."""
    card, printed = captures.from_lspci(FLEX)
    virtual = {'id': printed['id'], 'total': '31', 'enabled': '1'}
    made = {'whole': card, 'split': card | {'virtual': virtual}}
    found = {}
    for name, function in made.items():
        host = captures.host(tmp_path / name, [function])
        [gpu] = testing.discover(intel_gpu.IntelGpu, host)
        [part] = gpu.deployables
        handles = [each.attach_info['function'] for each in part.attach_handles]
        found[name] = (gpu.model, part.resource_class, handles)
    assert [f.bdf for f in host.tree.functions()] == ['0000:4d:00.0', *printed['at']['0']]
    flex = 'Intel Data Center GPU Flex 170'
    assert found == {'whole': (flex, 'PGPU', ['0']), 'split': (flex, 'VGPU', ['1'])}


LINK = {'current_link_width': '8', 'max_link_width': '8'}


@pytest.mark.parametrize(
    ('files', 'health'),
    [
        (LINK | {'survivability_mode': 'Survivability mode type: Runtime'},
         ('critical', 'gpu_firmware')),
        ({'survivability_mode': 'Survivability mode type: Boot\nCapability Info: 0x0 - 0x1'},
         ('critical', 'gpu_firmware')),
        (LINK, ('ok', None)),
        ({}, ('unknown', None)),
    ],
)  # fmt: skip
def test_health_by_the_firmware(tmp_path, files, health):
    card = captures.function('0000:03:00.0', '8086:e212', '030000', files=files)
    [found] = testing.discover(intel_gpu.IntelGpu, captures.host(tmp_path, [card]))
    assert (found.health, found.health_reason) == health

# SPDX-License-Identifier: Apache-2.0
"""Intel's FPGA cards, with the kernel's driver and with that of OPAE."""

from __future__ import annotations

import re

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import testing
from cyborg_lite.drivers import intel_fpga
from tests.unit.drivers import captures

CARD = '0000:b1:00.0'
REGION, FUNCTION = '69528db6eb31577a8c3668f9faa081f6', '44bfc10d-b42a-44e5-bd42-57dc93ea7f91'
FME, PORT = 'fpga_region/region0/dfl-fme.0', 'fpga_region/region0/dfl-port.3'
DFL = {
    f'{FME}/bitstream_id': '0x23000410010310',
    f'{FME}/bitstream_metadata': '0x200820112',
    f'{FME}/dfl-fme-region.2/fpga_region/region1/compat_id': REGION,
    f'{PORT}/afu_id': FUNCTION,
}
DEV = 'fpga/intel-fpga-dev.0'
OPAE = {
    f'{DEV}/intel-fpga-fme.0/bitstream_id': '0x23000410010310',
    f'{DEV}/intel-fpga-fme.0/bitstream_metadata': '0x200820112',
    f'{DEV}/intel-fpga-fme.0/pr/interface_id': REGION,
    f'{DEV}/intel-fpga-port.0/afu_id': FUNCTION,
}


def discover(tmp_path, *functions: dict) -> list[driver.Device]:
    return testing.discover(intel_fpga.IntelFpga, captures.host(tmp_path, list(functions)))


@pytest.mark.parametrize(('files', 'index'), [(DFL, {'index': 3}), (OPAE, {})])
def test_what_the_driver_of_the_card_tells(tmp_path, files, index):
    [card] = discover(tmp_path, captures.function(CARD, '8086:09c4', files=files))
    assert card.model == 'Intel PAC Arria 10 GX'
    assert card.vendor_board == index | {
        'bitstream_id': '0x23000410010310',
        'bitstream_metadata': '0x200820112',
        'region': REGION,
        'function': FUNCTION,
    }
    [part] = card.deployables
    assert (part.resource_class, len(part.attach_handles)) == ('FPGA', 1)
    assert part.traits == [
        'CUSTOM_FPGA_FUNCTION_ID_INTEL_44BFC10D_B42A_44E5_BD42_57DC93EA7F91',
        'CUSTOM_FPGA_INTEL',
        'CUSTOM_FPGA_INTEL_PAC_ARRIA_10_GX',
        f'CUSTOM_FPGA_REGION_INTEL_{REGION.upper()}',
    ]


@pytest.mark.parametrize(
    ('subsystem', 'model'),
    [
        ('8086:1771', 'Intel FPGA N6001'),
        ('8086:1770', 'Intel FPGA N6000'),
        ('8086:138d', 'Intel FPGA PAC D5005 (OFS)'),
        ('8086:0000', 'Intel FPGA with DFL'),
    ],
)
def test_cards_with_the_same_id_differ_by_their_subsystem(tmp_path, subsystem, model):
    [card] = discover(tmp_path, captures.function(CARD, '8086:bcce', subsystem=subsystem))
    assert card.model == model


@pytest.mark.parametrize(
    ('errors', 'health'),
    [
        ('0x0', ('ok', None)),
        ('0x4', ('critical', 'fpga_fatal')),
        ('many', ('unknown', None)),
        (None, ('unknown', None)),
    ],
)
@pytest.mark.parametrize('engine', [FME, f'{DEV}/intel-fpga-fme.0'])
def test_health(tmp_path, engine, errors, health):
    files = {} if errors is None else {f'{engine}/errors/catfatal_errors': errors}
    [card] = discover(tmp_path, captures.function(CARD, '8086:0b2b', files=files))
    assert (card.health, card.health_reason) == health


@pytest.mark.evidence('intel_fpga', 'vendor sample', 'lspci of an OFS card', 'Intel FPGA with DFL')
@pytest.mark.parametrize('enabled', ['0', '3'])
def test_a_card_of_the_open_fpga_stack(tmp_path, enabled):
    """Its first function manages it; a network function of the card is not an FPGA."""
    text = captures.text('intel/ofs-n6001-lspci-vfs.txt')
    functions = [f for f in captures.from_lspci(text) if f['id'] != '8086:bccf']
    virtual = {'id': '8086:bccf', 'total': '3', 'enabled': enabled, 'offset': '5'}
    [card] = discover(tmp_path, functions[0] | {'virtual': virtual}, *functions[1:])
    assert (card.address, card.unusable) == (CARD, None)
    given = {
        part.name: [h.attach_info['function'] for h in part.attach_handles]
        for part in card.deployables
    }
    assert given == {
        CARD: ['5', '6', '7'][: int(enabled)],
        '0000:b1:00.1': ['1'],
        '0000:b1:00.2': ['2'],
        '0000:b1:00.4': ['4'],
    }


def facts_of(block: str) -> dict[str, str]:
    """The facts in the output of OPAE's tool fpgainfo."""
    return dict(re.findall(r'^(.+?) +: (?:0x)?(\S+)$', block.lower(), re.MULTILINE))


def function_of(facts: dict[str, str], **more) -> dict:
    ids, subsystem = (
        f'{facts[f"{kind}vendor id"]}:{facts[f"{kind}device id"]}' for kind in ('', 'sub')
    )
    return captures.function(facts['pcie s:b:d.f'], ids, subsystem=subsystem, **more)


@pytest.mark.evidence(
    'intel_fpga', 'vendor sample', 'fpgainfo of a D5005', 'Intel FPGA PAC D5005 (OFS)'
)
def test_a_card_of_another_tool(tmp_path):
    """The kernel prints the same values: hexadecimal, and the identity without dashes."""
    told = facts_of(captures.text('intel/ofs-d5005-fpgainfo-bmc.txt'))
    region = f'{FME}/dfl-fme-region.2/fpga_region/region1/compat_id'
    files = {
        f'{FME}/bitstream_id': f'{int(told["bitstream id"]):#x}',
        region: told['pr interface id'].replace('-', ''),
    }
    [card] = discover(tmp_path, function_of(told, files=files))
    assert (card.address, card.model) == ('0000:3b:00.0', 'Intel FPGA PAC D5005 (OFS)')
    assert card.vendor_board == {
        'bitstream_id': '0x4010002183c88a9',
        'region': 'a195b6f7cf235a2b8ef91161e184ec4e',
    }
    assert card.deployables[0].traits == [
        'CUSTOM_FPGA_INTEL',
        'CUSTOM_FPGA_INTEL_FPGA_PAC_D5005_OFS_',
        'CUSTOM_FPGA_REGION_INTEL_A195B6F7CF235A2B8EF91161E184EC4E',
    ]


@pytest.mark.evidence('intel_fpga', 'vendor sample', 'fpgainfo of an OFS card', 'Intel FPGA N6001')
def test_functions_are_those_of_another_tool(tmp_path):
    """OPAE's tool prints an accelerator for each function but the one for management."""
    text = captures.text('intel/ofs-n6001-fpgainfo-port.txt')
    blocks = [facts_of(block) for block in text.split('//****** PORT ******//')[1:]]
    functions = [function_of(block) for block in blocks if block['device id'] == 'bcce']
    virtual = {'id': '8086:bccf', 'total': '3', 'enabled': '3', 'offset': '5'}
    [card] = discover(
        tmp_path,
        *(f | ({'virtual': virtual} if f['at']['0'] == [CARD] else {}) for f in functions),
    )
    assert card.model == 'Intel FPGA N6001'
    given = [h.attach_info['function'] for p in card.deployables for h in p.attach_handles]
    accelerators = [b['pcie s:b:d.f'][-1] for b in blocks if 'accelerator guid' in b]
    assert sorted(given) == sorted(accelerators) == ['1', '2', '4', '5', '6', '7']


def test_the_function_that_manages_a_card_is_not_given_out(tmp_path):
    functions = [captures.function(f'0000:b1:00.{n}', '8086:bcce') for n in (0, 1)]
    [card] = discover(tmp_path, *functions)
    given = [[h.attach_info['function'] for h in p.attach_handles] for p in card.deployables]
    assert given == [[], ['1']]

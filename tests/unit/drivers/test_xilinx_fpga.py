# SPDX-License-Identifier: Apache-2.0
"""Alveo cards: two functions, one of them for tenants."""

from __future__ import annotations

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.driver import testing
from cyborg_lite.drivers import xilinx_fpga
from tests.unit.drivers import captures


def discover(tmp_path, *ids: str) -> list[driver.Device]:
    functions = [captures.function(f'0000:3b:00.{n}', one) for n, one in enumerate(ids)]
    return testing.discover(xilinx_fpga.XilinxFpga, captures.host(tmp_path, functions))


@pytest.mark.parametrize(
    ('manager', 'user', 'model'),
    [
        ('5000', '5001', 'Alveo U200'),
        ('5004', '5005', 'Alveo U250'),
        ('500c', '500d', 'Alveo U280'),
        ('5020', '5021', 'Alveo U50'),
        ('503c', '503d', 'Alveo U30'),
        ('505c', '505d', 'Alveo U55C'),
        ('50b4', '50b5', 'Alveo V80'),
        ('6a8f', '6a90', 'Xilinx FPGA 6a8f'),
    ],
)
def test_tenants_get_the_users_function(tmp_path, manager, user, model):
    [card] = discover(tmp_path, f'10ee:{manager}', f'10ee:{user}')
    assert (card.type, card.model, card.address) == ('FPGA', model, '0000:3b:00.0')
    [deployable] = card.deployables
    assert deployable.resource_class == 'FPGA'
    assert [h.attach_info['function'] for h in deployable.attach_handles] == ['1']
    assert card.unusable is None
    assert f'CUSTOM_FPGA_PRODUCT_ID_{user.upper()}' in deployable.traits
    assert 'CUSTOM_FPGA_XILINX' in deployable.traits


#: The functions of Xilinx's that manage a card, without those of golden states, and those for
#: users. Source: Xilinx/XRT, xocl/devices.h of 0d89b698, XOCL_MGMT_PCI_IDS, XOCL_USER_XDMA_PCI_IDS.
MANAGE = (
    '4a47 4a87 4b47 4b87 684f a883 a983 503c 513c 688f 694f 6987 5034 698f 6a4f 6a8f 5030 6a9f '
    '6e4f 6b0f 6e8f 888f 898f 788f 798f 5000 5004 5008 500c 5020 5028 5044 5048 5094 6098 5078 '
    '5050 504e 5058 505c 5060 506c 5074'
)
USE = (
    '4a48 4a88 4b48 4b88 6850 6890 6950 6988 5035 a884 a984 503d 6990 6a50 6a90 6e50 6b10 6e90 '
    '8890 8990 7890 7990 5001 5005 5009 500d 5021 5051 504f 513d 5059 505d 5061 506d 5075 5031 '
    '5086 5029 5045 5049 5095 6099 5079 5099'
)
#: The golden states there of which the product is known: XBB_MFG of the same table.
GOLDEN = 'e098 e987 d000 d004 d008 d00c d020 d03c d04c'


def test_the_table_of_xrt(tmp_path):
    """Of its 43 functions that manage a card, those are found that have a function for users."""
    pairs = {each: f'{int(each, 16) + 1:04x}' for each in MANAGE.split()}
    assert len(pairs) == 43
    alone = [each for each, user in pairs.items() if user not in USE.split()]
    assert (alone, discover(tmp_path / 'alone', '10ee:6a9f')) == (['6a9f'], [])
    for manager in pairs.keys() - {*alone}:
        [card] = discover(tmp_path / manager, f'10ee:{manager}', f'10ee:{pairs[manager]}')
        assert (card.unusable, len(card.deployables[0].attach_handles)) == (None, 1), manager


@pytest.mark.parametrize('golden', GOLDEN.split())
def test_a_golden_state_of_the_table_of_xrt(tmp_path, golden):
    [card] = discover(tmp_path, f'10ee:{golden}')
    assert card.model.endswith(' (golden)')
    assert card.unusable == 'it has no function for users, as in its golden state'


def test_the_names_are_of_functions_in_the_table_of_xrt():
    """But the V80, which has a driver of its own: see AMD's AVED."""
    named = {product for _, product in xilinx_fpga.XilinxFpga.models}
    assert named - {*MANAGE.split(), *GOLDEN.split()} == {'50b4'}


@pytest.mark.parametrize(
    'ids', [('10ee:d00c',), ('10ee:5000',), ('10ee:5000', '10ee:5005'), ('10ee:5000', '8086:5001')]
)
def test_a_card_without_a_users_function_is_not_given_out(tmp_path, ids):
    [card] = discover(tmp_path, *ids)
    assert card.deployables[0].attach_handles == []
    assert card.unusable == 'it has no function for users, as in its golden state'


def test_a_users_function_alone_is_no_card(tmp_path):
    assert discover(tmp_path, '10ee:5001') == []


def test_two_functions_whose_ids_do_not_follow_are_no_card(tmp_path):
    assert discover(tmp_path, '10ee:7024', '10ee:7026') == []


def test_a_pair_of_another_class_is_no_card(tmp_path):
    pair = [
        captures.function(f'0000:3b:00.{n}', ids, '058000')
        for n, ids in enumerate(('10ee:7024', '10ee:7025'))
    ]
    assert testing.discover(xilinx_fpga.XilinxFpga, captures.host(tmp_path, pair)) == []


@pytest.mark.parametrize(
    ('status', 'health'),
    [
        ('0', ('ok', None)),
        ('524292', ('critical', 'fpga_firewall')),
        ('tripped', ('unknown', None)),
        (None, ('unknown', None)),
    ],
)
def test_health_by_the_firewall(tmp_path, status, health):
    files = {} if status is None else {'firewall.m.12582914/status': status}
    functions = [
        captures.function('0000:3b:00.0', '10ee:5000', files=files),
        captures.function('0000:3b:00.1', '10ee:5001'),
    ]
    host = captures.host(tmp_path, functions)
    [card] = testing.discover(xilinx_fpga.XilinxFpga, host)
    assert (card.health, card.health_reason) == health
    recording.record(host, tmp_path / 'copy.tar.gz')
    copy = hosts.find(str(tmp_path / 'copy.tar.gz'), tmp_path)
    [again] = testing.discover(xilinx_fpga.XilinxFpga, copy)
    assert (again.health, again.health_reason) == health

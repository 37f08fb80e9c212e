# SPDX-License-Identifier: Apache-2.0
import pytest

from cyborg_lite import model
from cyborg_lite.conductor import matching


def card(bus='01', serial=None, vendor='19e5', product='d802', subsystem=None, absences=0, **more):
    address = f'0000:{bus}:00.0'
    told = {'product_id': product, 'subsystem': subsystem}
    board = {key: value for key, value in told.items() if value} or None
    facts = {'type': 'AICHIP', 'vendor': vendor, 'model': 'NPU', 'address': address}
    facts |= {'board': board, 'serial': serial, 'absences': absences}
    return model.Device(**facts, **more)


def same(known, found):
    """For each found card, the position of the same card among the known ones."""
    pairs = matching.pair(known, found)
    assert [each for each, _ in pairs] == found
    return [None if device is None else known.index(device) for _, device in pairs]


@pytest.mark.parametrize(
    ('known', 'found', 'expected'),
    [
        ([card()], [card()], [0]),
        ([card('01')], [card('02')], [None]),
        # A card is itself, not its slot.
        ([card('01', 'A'), card('02', 'B')], [card('01', 'B'), card('02', 'A')], [1, 0]),
        ([card('01', 'A')], [card('02', 'A')], [0]),
        ([card('01', 'A')], [card('01', 'B')], [None]),
        # The driver learns the serial number later, or cannot ask for it now.
        ([card('01')], [card('01', 'A')], [0]),
        ([card('01', 'A')], [card('01')], [0]),
        ([card('01', 'A'), card('02')], [card('02', 'A'), card('01')], [0, None]),
        # Serial numbers that several cards have tell nothing.
        ([card('01', 'X'), card('02', 'X')], [card('02', 'X'), card('01', 'X')], [1, 0]),
        ([card('01', 'X'), card('02', 'X')], [card('01', 'X')], [0]),
        ([card('01', 'X')], [card('01', 'X'), card('02', 'X')], [0, None]),
        # Another card at the address.
        ([card(product='d802')], [card(vendor='10de', product='2330')], [None]),
        ([card(product='d802')], [card(product='d500')], [None]),
        ([card(product=None)], [card(product='d802')], [0]),
        ([card(subsystem='10de:157e')], [card(subsystem='10de:14a9')], [None]),
        ([card(subsystem='10de:157e')], [card(subsystem='10de:157e')], [0]),
        ([card()], [card(subsystem='10de:14a9')], [0]),
        ([card('01', 'A', subsystem='1:1')], [card('02', 'A', subsystem='2:2')], [0]),
        ([card(vendor='0x19E5')], [card(vendor='19e5')], [0]),
        # The old one that is gone, and its successor, which is there.
        ([card(absences=3), card(vendor='10de', product='1')], [card()], [0]),
        ([card(absences=3, id=1), card(id=2)], [card()], [1]),
        ([card(id=1), card(absences=3, id=2)], [card()], [0]),
        # Of two that are there the newer one.
        ([card(id=1), card(id=2)], [card()], [1]),
        # One row is one card.
        ([card()], [card(), card()], [0, None]),
    ],
)
def test_pairs(known, found, expected):
    assert same(known, found) == expected


def test_product_of_an_fpga_changes_with_its_image():
    known = card(product='d004', vendor='10ee', subsystem='10ee:0007')
    known.type = 'FPGA'
    found = card(product='5004', vendor='10ee', subsystem='10ee:000e')
    found.type = 'FPGA'
    assert same([known], [found]) == [0]

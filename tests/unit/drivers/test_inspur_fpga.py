# SPDX-License-Identifier: Apache-2.0
"""Inspur's FPGA cards, which are not its SSDs."""

from __future__ import annotations

import pytest

from cyborg_lite.driver import testing
from cyborg_lite.drivers import inspur_fpga
from tests.unit.drivers import captures


@pytest.mark.parametrize(
    ('ids', 'pci_class', 'models'),
    [
        ('1bd4:0911', '120000', ['Inspur F10A']),
        ('1bd4:a115', '120000', ['Inspur FPGA a115']),
        ('1bd4:0911', '058000', []),
        ('1bd4:1001', '010802', []),
        ('8086:0911', '120000', []),
    ],
)
def test_which_are_cards(tmp_path, ids, pci_class, models):
    host = captures.host(tmp_path, [captures.function('0000:19:00.0', ids, pci_class)])
    cards = testing.discover(inspur_fpga.InspurFpga, host)
    assert [card.model for card in cards] == models
    for card in cards:
        [part] = card.deployables
        assert (part.resource_class, len(part.attach_handles)) == ('FPGA', 1)
        product = f'CUSTOM_FPGA_PRODUCT_ID_{ids[5:].upper()}'
        assert part.traits == ['CUSTOM_FPGA_INSPUR', product]

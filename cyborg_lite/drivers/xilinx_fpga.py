# SPDX-License-Identifier: Apache-2.0
"""AMD (Xilinx) Alveo cards.

A card shows two functions: .0 manages it and decides what is programmed, .1 is for users.
One in its golden state, which recovers it, has other ids and only .0.

Source: Xilinx/XRT, src/runtime_src/core/pcie/driver/linux.
"""

from __future__ import annotations

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs


class XilinxFpga(pci.PciDriver):
    name, type, resource_class = 'xilinx_fpga', 'FPGA', 'FPGA'
    classes = ('12',)
    models = {
        ('10ee', '5000'): 'Alveo U200',
        ('10ee', '5004'): 'Alveo U250',
        ('10ee', '500c'): 'Alveo U280',
        ('10ee', '5020'): 'Alveo U50',
        ('10ee', 'd000'): 'Alveo U200 (golden)',
        ('10ee', 'd004'): 'Alveo U250 (golden)',
        ('10ee', 'd00c'): 'Alveo U280 (golden)',
        ('10ee', 'd020'): 'Alveo U50 (golden)',
    }

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        """The user's function alone: who has the other one reprograms the card for all."""
        user = f'{card.bdf[:-1]}1'
        found = {f.bdf: f for f in self.host.tree.functions()}.get(user)
        vendor, product = card.ids
        expected = (vendor, f'{int(product, 16) + 1:04x}')
        return [found] if found and found.ids == expected else []

    def traits(self, card: sysfs.Function) -> list[str | None]:
        # The names that Cyborg gives, after the user's function.
        products = [driver.trait('FPGA_PRODUCT_ID', f.ids[1]) for f in self.functions(card)]
        return [driver.trait('FPGA_XILINX'), driver.trait('FPGA', self.model(card)), *products]

# SPDX-License-Identifier: Apache-2.0
"""AMD (Xilinx) Alveo cards.

A card shows two functions: .0 manages and programs the card, .1 is for users.  In its golden
state, which is for recovery, a card has other ids and only .0.

Source: Xilinx/XRT, src/runtime_src/core/pcie/driver/linux.
"""

from __future__ import annotations

import re

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The state of the firewall of the function that manages a card.
FIREWALL = 'firewall.m.*/status'


class XilinxFpga(pci.PciDriver):
    name, type, resource_class = 'xilinx_fpga', 'FPGA', 'FPGA'
    classes = ('12',)
    kernel_tells = True
    models = {
        ('10ee', '5000'): 'Alveo U200',
        ('10ee', '5004'): 'Alveo U250',
        ('10ee', '5008'): 'Alveo U280-ES1',
        ('10ee', '500c'): 'Alveo U280',
        ('10ee', '5020'): 'Alveo U50',
        ('10ee', '5034'): 'SmartSSD',
        ('10ee', '503c'): 'Alveo U30',
        ('10ee', '5044'): 'VCK5000-ES1',
        ('10ee', '5048'): 'VCK5000',
        ('10ee', '504e'): 'Alveo U26Z',
        ('10ee', '5050'): 'Alveo U25',
        ('10ee', '5058'): 'Alveo U55N',
        ('10ee', '505c'): 'Alveo U55C',
        ('10ee', '5060'): 'Alveo U50LV',
        ('10ee', '506c'): 'Alveo U50C',
        ('10ee', '5074'): 'Alveo X3522PV',
        ('10ee', '5078'): 'Alveo V65',
        ('10ee', '5094'): 'Alveo V70',
        ('10ee', '50b4'): 'Alveo V80',
        ('10ee', '513c'): 'Alveo U30',
        ('10ee', '6098'): 'VCK190',
        ('10ee', '6987'): 'SmartSSD',
        ('10ee', 'd000'): 'Alveo U200 (golden)',
        ('10ee', 'd004'): 'Alveo U250 (golden)',
        ('10ee', 'd008'): 'Alveo U280-ES1 (golden)',
        ('10ee', 'd00c'): 'Alveo U280 (golden)',
        ('10ee', 'd020'): 'Alveo U50 (golden)',
        ('10ee', 'd03c'): 'Alveo U30 (golden)',
        ('10ee', 'd04c'): 'Alveo U25 (golden)',
        ('10ee', 'e098'): 'VCK190 (golden)',
        ('10ee', 'e987'): 'SmartSSD (golden)',
    }

    def is_card(self, function: sysfs.Function) -> bool:
        """A pair of functions is a card even if its ids are not in the table."""
        return super().is_card(function) or (
            function.ids[0] == '10ee'
            and function.pci_class.startswith(self.classes)
            and bool(self._user(function))
        )

    def model(self, card: sysfs.Function) -> str:
        return self.known_model(card) or f'Xilinx FPGA {card.ids[1]}'

    def unusable(self, card: sysfs.Function) -> str | None:
        if not self._user(card):
            return 'it has no function for users, as in its golden state'
        return super().unusable(card)

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link and of the firewall between the card's buses and its logic.

        Once it is tripped, the loaded logic does not answer until the card is reset.

        Source: Xilinx/XRT, xocl/subdev/firewall.c, ``status``: a decimal number, 0 if it is not.
        """
        status = card.told(FIREWALL)
        return driver.worst(super().health(card), _of_firewall(status))

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        """Only the user's function: the other one can reprogram the card."""
        user = self._user(card)
        return [user] if user else []

    def _user(self, card: sysfs.Function) -> sysfs.Function | None:
        """The function .1 of a .0, if its id is the next one: so it is in each pair of XRT but one.

        Source: Xilinx/XRT, xocl/devices.h, XOCL_MGMT_PCI_IDS and XOCL_USER_XDMA_PCI_IDS.
        """
        if not card.bdf.endswith('.0'):
            return None
        found = self.host.tree.function(f'{card.bdf[:-1]}1')
        vendor, product = card.ids
        expected = (vendor, f'{int(product or "0", 16) + 1:04x}')
        return found if found and found.ids == expected else None

    def traits(self, card: sysfs.Function) -> list[str | None]:
        # The names that Cyborg gives, after the user's function.
        products = [driver.trait('FPGA_PRODUCT_ID', f.ids[1]) for f in self.functions(card)]
        return [driver.trait('FPGA_XILINX'), driver.trait('FPGA', self.model(card)), *products]


def _of_firewall(status: str | None) -> driver.Health | None:
    """The health by the state of the firewall."""
    if status is None:
        return None
    if not re.fullmatch('[0-9]{1,20}', status):
        return driver.Health()
    return driver.Health('critical', 'fpga_firewall') if int(status) else driver.Health('ok')

# SPDX-License-Identifier: Apache-2.0
"""Inspur FPGA cards."""

from __future__ import annotations

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs


class InspurFpga(pci.PciDriver):
    """Other processing accelerators of Inspur's are no FPGAs.

    Source: pci.ids; for a115, the tests of OpenStack Cyborg's driver ``fpga/inspur``.
    """

    name, type, resource_class = 'inspur_fpga', 'FPGA', 'FPGA'
    classes = ('12',)
    models = {('1bd4', '0911'): 'Inspur F10A', ('1bd4', 'a115'): 'Inspur FPGA a115'}

    def traits(self, card: sysfs.Function) -> list[str | None]:
        # The names that Cyborg gives.
        return [driver.trait('FPGA_INSPUR'), driver.trait('FPGA_PRODUCT_ID', card.ids[1])]

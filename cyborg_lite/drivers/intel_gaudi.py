# SPDX-License-Identifier: Apache-2.0
"""Intel Gaudi accelerators, of what was Habana Labs."""

from __future__ import annotations

import re
import typing

from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs


class IntelGaudi(pci.PciDriver):
    """Source: pci.ids; Gaudi documentation, "Configuring VMs on Gaudi", for Gaudi 3."""

    name, type, resource_class = 'intel_gaudi', 'AICHIP', 'CUSTOM_HPU'
    classes = ('12',)
    models = {
        ('1da3', '0001'): 'Habana Goya',
        ('1da3', '0030'): 'Habana Greco',
        ('1da3', '1000'): 'Habana Gaudi',
        ('1da3', '1010'): 'Habana Gaudi (secured)',
        ('1da3', '1020'): 'Intel Gaudi 2',
        ('1da3', '1060'): 'Intel Gaudi 3',
        ('1da3', '1063'): 'Intel Gaudi 3 PCIe',
    }

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        """The number of the card's nodes in /dev: accel/accelN, and hlN before Linux 6.2."""
        names = card.entries('accel') + card.entries('habanalabs')
        numbers = (re.fullmatch('(?:accel|hl)([0-9]{1,4})', name) for name in names)
        return next(({'index': int(match[1])} for match in numbers if match), {})

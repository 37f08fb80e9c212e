# SPDX-License-Identifier: Apache-2.0
"""Intel Gaudi accelerators, formerly of Habana Labs."""

from __future__ import annotations

import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The directories of sysfs that list the nodes of a card.
NODES = ('accel', 'habanalabs')
#: The health by the status of a card, in lower case; it is unknown in any other status, such as
#: "in reset".  Earlier releases of Linux write Malfunction for a disabled card.
#: Source: Linux, drivers/accel/habanalabs/common/habanalabs_drv.c, create_hdev, and sysfs.c.
STATUS = {
    'operational': driver.Health('ok'),
    'disabled': driver.Health('critical', 'gaudi_disabled'),
    'malfunction': driver.Health('critical', 'gaudi_disabled'),
    'needs reset': driver.Health('critical', 'gaudi_needs_reset'),
}
NODE = re.compile('(?:accel/accel|habanalabs/hl)([0-9]{1,4})')


class IntelGaudi(pci.PciDriver):
    """Source: pci.ids; Gaudi documentation, "Configuring VMs on Gaudi", for Gaudi 3."""

    name, type, resource_class = 'intel_gaudi', 'AICHIP', 'CUSTOM_HPU'
    classes = ('12',)
    kernel_tells = True
    models = {
        ('1da3', '0001'): 'Habana Goya',
        ('1da3', '0030'): 'Habana Greco',
        ('1da3', '1000'): 'Habana Gaudi',
        ('1da3', '1010'): 'Habana Gaudi (secured)',
        ('1da3', '1020'): 'Intel Gaudi 2',
        ('1da3', '1060'): 'Intel Gaudi 3',
        ('1da3', '1063'): 'Intel Gaudi 3 PCIe',
    }

    #: Source: Linux, Documentation/ABI/testing/sysfs-driver-habanalabs: the second until 5.10
    firmware_files = tuple(
        f'{directory}/*/{name}' for directory in NODES for name in ('cpucp_ver', 'armcp_ver')
    )

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link and of the status that the kernel driver tells."""
        return driver.worst(super().health(card), self._status(card))

    def _status(self, card: sysfs.Function) -> driver.Health | None:
        status = card.told('status', *(f'{directory}/*/status' for directory in NODES))
        return STATUS.get(status.lower(), driver.Health()) if status else None

    def trial(self, card: sysfs.Function) -> str | None:
        """It answers on its bus, and its kernel driver says that it is operational."""
        told = self._status(card) or driver.Health()
        well = None if told.level == 'ok' else told.reason or 'gaudi_no_answer'
        return super().trial(card) or well

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        """The numbers of the card's nodes in /dev and of its module.

        The nodes are accel/accelN, and hlN before Linux 6.2.  Source for the module: Linux,
        Documentation/ABI/testing/sysfs-driver-habanalabs, ``module_id``.
        """
        names = [f'{directory}/{n}' for directory in NODES for n in card.entries(directory)]
        found = ((name, NODE.fullmatch(name)) for name in names)
        name, match = next(((name, match) for name, match in found if match), ('', None))
        places = ('module_id', f'{name}/module_id')
        modules = (number for each in places if (number := card.number(each)) is not None)
        facts = {'index': int(match[1]) if match else None, 'module_id': next(modules, None)}
        return {key: value for key, value in facts.items() if value is not None}

# SPDX-License-Identifier: Apache-2.0
"""Intel Gaudi accelerators, formerly of Habana Labs.

Sysfs alone finds the cards.  pyhlml and Intel's library HLML, if they load, add the
utilization, and errors of the memory.
"""

from __future__ import annotations

import re
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import nvml
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs
from cyborg_lite.drivers.tools import hlml

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

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts) -> None:
        super().__init__(host, conf)
        # What HLML tells in this scan, and the health of each card of which it has told at all.
        self._told: nvml.Answers = {}
        self._said: dict[str, driver.Health] = {}

    def discover(self) -> list[driver.Device]:
        cards = self.cards()
        # HLML does not see cards of guests.
        ours = {card.bdf for card in cards if not card.passed_through}
        told = self._ask(ours) if ours else None
        known = told if isinstance(told, dict) else {}
        self._told = {bdf: nvml.sound(known[bdf]) for bdf in ours & known.keys()}
        # Of a card of which HLML has told before, and does not now, it is unknown.
        self._said = {bdf: driver.Health() for bdf in self._said if bdf in ours}
        for bdf, facts in self._told.items():
            if 'health' in facts:
                self._said[bdf] = driver.Health(*facts['health'])
        return [self.device(card) for card in cards]

    def _ask(self, ours: set[str]) -> typing.Any:
        try:
            return self.host.ask(
                'hlml', 'cards', lambda: hlml.ask(ours, bool(self._said), self.note)
            )
        except driver.ToolError as error:
            self.note(f'HLML does not answer: {error}')
            return None

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link, of the status by the kernel driver, and of HLML."""
        said = self._said.get(card.bdf)
        return driver.worst(super().health(card), self._status(card), said)

    def utilization(self, card: sysfs.Function) -> int | None:
        told: int | None = self._told.get(card.bdf, {}).get('utilization')
        return told

    def _status(self, card: sysfs.Function) -> driver.Health | None:
        status = card.told('status', *(f'{directory}/*/status' for directory in NODES))
        return STATUS.get(status.lower(), driver.Health()) if status else None

    def trial(self, card: sysfs.Function) -> str | None:
        """It answers on its bus, and its kernel driver says that it is operational."""
        return super().trial(card) or driver.why_not_ok(self._status(card), 'gaudi_no_answer')

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

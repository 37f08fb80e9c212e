# SPDX-License-Identifier: Apache-2.0
"""NVMe SSDs: whole ones, or their virtual functions.

The kernel's driver has the name, the serial number and the state of an SSD that it uses.  Its
SMART data needs the tool ``nvme``, which is optional, and its temperature alarm does not.

Source: Linux, drivers/nvme/host/sysfs.c, core.c and hwmon.c; NVM Express Base Specification,
"SMART / Health Information"; nvme-cli, ``smart-log``.
"""

from __future__ import annotations

import json
import time
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The maximum time of a query of one SSD, in seconds.
TIMEOUT = 5.0
#: How long one scan starts new queries, in seconds: the others are left for the next scan.
PATIENCE = 5.0
#: The health by the state of the controller; it is unknown in any other state.
STATES = {'live': driver.Health('ok'), 'dead': driver.Health('critical', 'nvme_dead')}
#: The health by the temperature alarm.
ALARMS = {'0': driver.Health('ok'), '1': driver.Health('warning', 'nvme_temperature')}
#: The health by each bit of the critical warning.
WARNINGS = (
    driver.Health('warning', 'nvme_spare'),
    driver.Health('warning', 'nvme_temperature'),
    driver.Health('critical', 'nvme_reliability'),
    driver.Health('critical', 'nvme_read_only'),
    driver.Health('critical', 'nvme_backup'),
    driver.Health('warning', 'nvme_memory_region'),
)
#: The health of an SSD whose SMART data is not known.
UNREAD = [driver.Health()]
#: What identifies an SSD.
Key = tuple[str, str, str | None]


class NvmeSsd(pci.PciDriver):
    """An SSD that the host uses is reported and not allocated: it may be its disk."""

    name, type, resource_class = 'nvme_ssd', 'SSD', 'CUSTOM_SSD'
    classes, vendors, used_by_host = ('0108',), None, True
    kernel_tells = True
    board_files = {'product': ('nvme/nvme*/model',)}
    firmware_files = ('nvme/nvme*/firmware_rev',)
    serial_files = ('nvme/nvme*/serial',)

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts) -> None:
        super().__init__(host, conf)
        # The health of each SSD by its SMART data, in the order in which they were read.
        self._smart: dict[Key, list[driver.Health]] = {}

    def discover(self) -> list[driver.Device]:
        cards = self.cards()
        self._ask([key for card in cards if (key := self._key(card))])
        return [self.device(card) for card in cards]

    def traits(self, card: sysfs.Function) -> list[str | None]:
        return ['STORAGE_DISK_SSD', driver.trait('SSD', *card.ids)]

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link, the controller's state, its alarm and its SMART data."""
        key = self._key(card)
        # The SSD may be another one than when it was asked.
        smart = self._smart.get(key, UNREAD) if key else ()
        # A good PCIe link of the SSD of a guest is not sufficient.
        said = UNREAD if card.passed_through else self._said(card)
        return driver.worst(super().health(card), *said, *smart)

    def _said(self, card: sysfs.Function) -> list[driver.Health]:
        """The health by the kernel."""
        state, alarm = card.told('nvme/nvme*/state'), card.told('nvme/nvme*/hwmon*/temp1_alarm')
        said = [STATES.get(state, driver.Health())] if state else []
        return said + ([ALARMS.get(alarm, driver.Health())] if alarm else [])

    def trial(self, card: sysfs.Function) -> str | None:
        """It answers on its bus, its controller is live, and it has no alarm or critical warning.

        Without the tool the kernel alone is asked.
        """
        if reason := super().trial(card):
            return reason
        key = self._key(card)
        try:
            smart = self._smart_log(key[1]) if key else UNREAD
        except driver.ToolError:
            smart = UNREAD
        return driver.why_not_ok(driver.worst(*self._said(card), *smart), 'nvme_no_answer')

    def _smart_log(self, controller: str) -> list[driver.Health]:
        """The health by the SMART data of an SSD; none if the host has no tool.

        :raises ToolError: when the tool fails.
        """
        node = f'/dev/{controller}'
        text = self.host.run('nvme', 'smart-log', node, '-o', 'json', timeout=TIMEOUT)
        return [] if text is None else read_smart(text)

    def _key(self, card: sysfs.Function) -> Key | None:
        """The address, the node and the serial number of an SSD that the host uses."""
        controller = card.find('nvme/nvme*')
        if controller is None:
            return None
        return card.bdf, controller.rpartition('/')[2], self.told_serial(card)

    def _ask(self, keys: list[Key]) -> None:
        """Read the SMART data of these SSDs, within the time limit; the oldest comes first.

        It is unknown until it is read; without the tool there is none.
        """
        begun = time.monotonic()
        turns = [key for key in keys if key not in self._smart]
        turns += [key for key in self._smart if key in keys]
        self._smart = {key: self._smart.get(key, UNREAD) for key in turns}
        for key in turns:
            if time.monotonic() - begun > PATIENCE:
                if UNREAD in self._smart.values():
                    self.note('nvme is slow: the next scan reads the rest')
                break
            del self._smart[key]
            try:
                self._smart[key] = self._smart_log(key[1])
            except driver.ToolError as error:
                self._smart[key] = UNREAD
                self.note(error)
                # A tool that hangs for one SSD may hang for each.
                break


def read_smart(text: str) -> list[driver.Health]:
    """The health by each bit of ``critical_warning``; unknown if there is no such number."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    bits: typing.Any = told.get('critical_warning') if isinstance(told, dict) else None
    if isinstance(bits, dict):  # with --verbose
        bits = bits.get('value')
    if type(bits) is not int or not 0 <= bits < 256:
        return [driver.Health()]
    found = [health for number, health in enumerate(WARNINGS) if bits >> number & 1]
    return found or [driver.Health('ok')]

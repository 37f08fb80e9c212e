# SPDX-License-Identifier: Apache-2.0
"""NVMe SSDs: whole ones, or their virtual functions.

The kernel's driver has the name, the serial number and the state of an SSD that it uses.  Its
SMART data needs the tool ``nvme``, which is optional, and its temperature alarm does not.

Source: Linux, drivers/nvme/host/sysfs.c, core.c and hwmon.c; NVM Express Base Specification,
"SMART / Health Information"; nvme-cli, ``smart-log``.
"""

from __future__ import annotations

import collections.abc
import json
import typing

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The maximum time of a query of one SSD, in seconds.
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


class NvmeSsd(pci.PciDriver):
    """An SSD that the host uses is reported and not allocated: it may be its disk."""

    name, type, resource_class = 'nvme_ssd', 'SSD', 'CUSTOM_SSD'
    classes, vendors, used_by_host = ('0108',), None, True
    board_files = {'product': ('nvme/nvme*/model',)}
    firmware_files = ('nvme/nvme*/firmware_rev',)
    serial_files = ('nvme/nvme*/serial',)

    def discover(self) -> list[driver.Device]:
        self._asking = True
        return super().discover()

    def traits(self, card: sysfs.Function) -> list[str | None]:
        return ['STORAGE_DISK_SSD', driver.trait('SSD', *card.ids)]

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link, the controller's state, its alarm and its SMART data."""
        state, alarm = card.told('nvme/nvme*/state'), card.told('nvme/nvme*/hwmon*/temp1_alarm')
        said = [STATES.get(state, driver.Health())] if state else []
        said += [ALARMS.get(alarm, driver.Health())] if alarm else []
        return driver.worst(super().health(card), *said, *self._smart(card))

    def _smart(self, card: sysfs.Function) -> collections.abc.Iterator[driver.Health]:
        """The health by the SMART data; nothing without the tool."""
        controller = card.find('nvme/nvme*')
        if not controller or not self._asking:
            return
        node = f'/dev/{controller.rpartition("/")[2]}'
        try:
            text = self.host.run('nvme', 'smart-log', node, '-o', 'json', timeout=PATIENCE)
        except driver.ToolError as error:
            # One failure per scan: a tool that hangs for one SSD may hang for each.
            self._asking = False
            self.note(str(error))
            text = ''
        if text is not None:
            yield from read_smart(text)


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

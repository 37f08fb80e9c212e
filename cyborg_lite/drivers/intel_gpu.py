# SPDX-License-Identifier: Apache-2.0
"""Intel GPUs for data centres and workstations: whole ones, or their virtual functions."""

from __future__ import annotations

import re
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import drm
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs


class IntelGpu(pci.PciDriver):
    """Ignores integrated graphics: nearly every desktop has one.

    Source: pci.ids.
    """

    name, type, resource_class = 'intel_gpu', 'GPU', 'PGPU'
    virtual_class = 'VGPU'
    classes = ('0300', '0380')
    kernel_tells = True
    models = {
        ('8086', '0bd5'): 'Intel Data Center GPU Max 1550',
        ('8086', '0bd6'): 'Intel Data Center GPU Max 1550',
        ('8086', '0bd7'): 'Intel Data Center GPU Max 1350',
        ('8086', '0bd8'): 'Intel Data Center GPU Max 1350',
        ('8086', '0bd9'): 'Intel Data Center GPU Max 1100',
        ('8086', '0bda'): 'Intel Data Center GPU Max 1100',
        ('8086', '0bdb'): 'Intel Data Center GPU Max 1100',
        ('8086', '56c0'): 'Intel Data Center GPU Flex 170',
        ('8086', '56c1'): 'Intel Data Center GPU Flex 140',
        ('8086', 'e211'): 'Intel Arc Pro B60',
        ('8086', 'e212'): 'Intel Arc Pro B50',
    }

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts) -> None:
        super().__init__(host, conf)
        self._usage = drm.Usage(host)

    def discover(self) -> list[driver.Device]:
        cards = self.cards()
        if any(map(self._is_ours, cards)):
            try:
                self._usage.look()
            except driver.ToolError as error:
                self.note(f'The processes of GPUs cannot be seen: {error}')
        return [self.device(card) for card in cards]

    def _is_ours(self, card: sysfs.Function) -> bool:
        """Whether programs of the host use the card, and no guest does."""
        return card.driver in ('i915', 'xe') and not self.is_split(card)

    def processes(self, card: sysfs.Function) -> frozenset[int] | None:
        return self._usage.processes(card) if self._is_ours(card) else None

    def utilization(self, card: sysfs.Function) -> int | None:
        return self._usage.utilization(card) if self._is_ours(card) else None

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        """The number of the card's render node, dri/renderDN in /dev."""
        numbers = (re.fullmatch('renderD([0-9]{3,5})', name) for name in card.entries('drm'))
        return next(({'render_minor': int(match[1])} for match in numbers if match), {})

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link and of the firmware: a file is there only if it has failed.

        Only root may read it.  Source: Linux, drivers/gpu/drm/xe/xe_survivability_mode.c.
        """
        failed = card.read('survivability_mode') is not None
        told = driver.Health('critical', 'gpu_firmware') if failed else None
        return driver.worst(super().health(card), told)

# SPDX-License-Identifier: Apache-2.0
"""Network cards: SmartNICs and DPUs, and each card that has virtual functions.

Each port of a card is a function of its slot, and has virtual functions of its own.

Source: pci.ids; Linux, Documentation/ABI/testing/sysfs-class-net, include/uapi/linux/if.h, and for
the firmware Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import re

from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The bit of an interface's flags that says that it is up.
IFF_UP = 1


class Nic(pci.PciDriver):
    """A port that the host uses is reported and not allocated: it may be its network."""

    name, type, resource_class = 'nic', 'NIC', 'CUSTOM_NIC'
    classes, one_per_slot, used_by_host = ('0200', '0207'), True, True
    models = {
        ('15b3', 'a2d2'): 'NVIDIA BlueField',
        ('15b3', 'a2d6'): 'NVIDIA BlueField-2',
        ('15b3', 'a2d9'): 'NVIDIA BlueField-3 Lx',
        ('15b3', 'a2dc'): 'NVIDIA BlueField-3',
        ('15b3', 'a2df'): 'NVIDIA BlueField-4',
        ('1dd8', '1002'): 'AMD Pensando DSC',
    }
    #: only a card for RDMA has it in sysfs
    firmware_files = ('infiniband/*/fw_ver',)

    def is_card(self, function: sysfs.Function) -> bool:
        """Also a card of any kind that has virtual functions."""
        split = function.pci_class.startswith(self.classes) and self.is_split(function)
        return split or super().is_card(function)

    def in_use(self, function: sysfs.Function) -> bool:
        """A virtual function is there to be allocated, unless the host has its interface up."""
        return super().in_use(function) and (not function.is_virtual or _is_up(function))


def _is_up(function: sysfs.Function) -> bool:
    """Whether an interface of the function is up, or cannot be read."""
    for name in function.entries('net'):
        flags = function.read(f'net/{name}/flags') or ''
        if not re.fullmatch('0x[0-9a-f]{1,8}', flags) or int(flags, 16) & IFF_UP:
            return True
    return False

# SPDX-License-Identifier: Apache-2.0
"""Intel QuickAssist: compression and cryptography."""

from __future__ import annotations

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The number of errors that ended with a reset of the device.
FATAL = 'qat_ras/errors_fatal'


class IntelQat(pci.PciDriver):
    """Source: pci.ids; Linux, drivers/crypto/intel/qat/qat_common/adf_accel_devices.h, and
    Documentation/ABI/testing/sysfs-driver-qat and sysfs-driver-qat_ras.
    """

    name, type, resource_class = 'intel_qat', 'QAT', 'CUSTOM_QAT'
    classes = ('0b40',)
    kernel_tells = True
    models = {
        ('8086', '0434'): 'DH89xxCC',
        ('8086', '0435'): 'DH895xCC',
        ('8086', '18a0'): 'C4xxx',
        ('8086', '18ee'): '200xx',
        ('8086', '19e2'): 'C3xxx',
        ('8086', '37c8'): 'C62x',
        ('8086', '4940'): '4xxx',
        ('8086', '4942'): '401xx',
        ('8086', '4944'): '402xx',
        ('8086', '4946'): '420xx',
        ('8086', '4948'): '6xxx',
        ('8086', '6f54'): 'D15xx',
    }

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link and of the fatal errors that the kernel driver has counted.

        A nonfatal error ends a request, and is not a fault of the card.
        """
        told, count = None, card.number(FATAL)
        if count is not None:
            told = driver.Health('critical', 'qat_fatal') if count else driver.Health('ok')
        elif card.read(FATAL) is not None:
            told = driver.Health()
        return driver.worst(super().health(card), told)

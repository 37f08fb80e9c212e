# SPDX-License-Identifier: Apache-2.0
"""Intel FPGA cards: whole ones, or their virtual functions.

The kernel's driver (DFL) shows a management engine (FME) and a port for each accelerator function
(AFU).  The driver of OPAE, which was not part of the kernel, has the same facts at other places.

Source: Linux, drivers/fpga/dfl-pci.c and Documentation/ABI/testing/sysfs-platform-dfl-fme,
sysfs-platform-dfl-port and sysfs-class-fpga-region; OPAE/opae-sdk, plugins/xfpga/sysfs.c.
"""

from __future__ import annotations

import collections.abc
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The directories of the engine and of the ports, in each of the two drivers.
FME = ('fpga_region/region*/dfl-fme.*', 'fpga/intel-fpga-dev.*/intel-fpga-fme.*')
PORT = ('fpga_region/region*/dfl-port.*', 'fpga/intel-fpga-dev.*/intel-fpga-port.*')

#: The identity of the region into which functions are loaded.
REGION = (
    f'{FME[0]}/dfl-fme-region.*/fpga_region/region*/compat_id',
    f'{FME[1]}/pr/interface_id',
)


class IntelFpga(pci.PciDriver):
    """A card of the Open FPGA Stack has several functions: the first one manages it."""

    name, type, resource_class = 'intel_fpga', 'FPGA', 'FPGA'
    classes = ('12',)
    kernel_tells = True
    one_per_slot = True
    models = {
        ('8086', '09c4'): 'Intel PAC Arria 10 GX',
        ('8086', '0b2b'): 'Intel FPGA PAC D5005',
        ('8086', '0b30'): 'Intel FPGA PAC N3000',
        ('8086', 'bcbd'): 'Intel Xeon with FPGA 5.x',
        ('8086', 'bcc0'): 'Intel Xeon with FPGA 6.x',
        ('8086', 'bcce', '8086', '138d'): 'Intel FPGA PAC D5005 (OFS)',
        ('8086', 'bcce', '8086', '1770'): 'Intel FPGA N6000',
        ('8086', 'bcce', '8086', '1771'): 'Intel FPGA N6001',
        ('8086', 'bcce', '8086', '17d4'): 'Intel FPGA C6100',
        ('8086', 'bcce'): 'Intel FPGA with DFL',
        ('1c2c', '1000'): 'Silicom FPGA PAC N5010',
        ('1c2c', '1001'): 'Silicom FPGA PAC N5011',
    }
    board_files = {
        'bitstream_id': tuple(f'{fme}/bitstream_id' for fme in FME),
        'bitstream_metadata': tuple(f'{fme}/bitstream_metadata' for fme in FME),
        'region': REGION,
        'function': tuple(f'{port}/afu_id' for port in PORT),
    }

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        """Not the function that manages a card: it can reprogram what others use."""
        manages = len(self.ports(card)) > 1 and not self.is_split(card)
        return [] if manages else super().functions(card)

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        """What ``board_files`` tell, and the number of the port's node: dfl-port.N in /dev."""
        port = re.fullmatch(r'.*/dfl-port\.([0-9]{1,5})', card.find(PORT[0]) or '')
        return super().vendor_board(card) | ({'index': int(port[1])} if port else {})

    def traits(self, card: sysfs.Function) -> collections.abc.Iterator[str | None]:
        """The names that Cyborg gives, with the loaded function and the region that takes it."""
        yield driver.trait('FPGA_INTEL')
        yield driver.trait('FPGA', self.model(card))
        told = super().vendor_board(card)
        for word, key in (('REGION', 'region'), ('FUNCTION_ID', 'function')):
            if key in told:
                yield driver.trait('FPGA', word, 'INTEL', told[key])

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link and of the fatal errors that the engine has counted."""
        errors = card.told(*(f'{fme}/errors/catfatal_errors' for fme in FME))
        return driver.worst(super().health(card), _of_errors(errors))


def _of_errors(text: str | None) -> driver.Health | None:
    """The health by the register of fatal errors, a hexadecimal number."""
    if text is None:
        return None
    if not re.fullmatch('0x[0-9a-f]{1,16}', text):
        return driver.Health()
    return driver.Health('critical', 'fpga_fatal') if int(text, 16) else driver.Health('ok')

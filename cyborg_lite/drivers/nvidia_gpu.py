# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs: whole ones, and the virtual functions of those that are split for vGPU.

Sysfs alone finds them.  Where nvidia-ml-py and NVIDIA's driver load, they add the product's
name, the UUID and the memory.
"""

from __future__ import annotations

import collections.abc
import re
import typing

from oslo_log import log

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

LOG = log.getLogger(__name__)

#: A line of creatable_vgpu_types: number and name of a type; a heading is none.
#: Source: NVIDIA vGPU software user guide, "Creating an NVIDIA vGPU on a Linux with KVM host".
VGPU_TYPE = re.compile(r'\s*[0-9]+\s*:\s*(?:NVIDIA|GRID)?\s*(\S.{0,63}?)\s*')


class NvidiaGpu(pci.PciDriver):
    name, type, resource_class = 'nvidia_gpu', 'GPU', 'PGPU'
    #: VGA and 3D controllers; NVSwitch (0680) and the audio of a card (0403) are no GPUs
    classes = ('0300', '0302')
    #: Source: pci.ids
    models = {
        ('10de', '15f9'): 'Tesla P100-SXM2-16GB',
        ('10de', '1cb3'): 'Quadro P400',
        ('10de', '1eb8'): 'Tesla T4',
        ('10de', '20b0'): 'NVIDIA A100-SXM4-40GB',
        ('10de', '20b2'): 'NVIDIA A100-SXM4-80GB',
        ('10de', '2330'): 'NVIDIA H100 80GB HBM3',
        ('10de', '2335'): 'NVIDIA H200',
        ('10de', '25b6'): 'NVIDIA A2',
        ('10de', '2684'): 'NVIDIA GeForce RTX 4090',
        ('10de', '26b9'): 'NVIDIA L40S',
        ('10de', '2901'): 'NVIDIA B200',
    }

    def discover(self) -> list[driver.Device]:
        self._known = {} if self.host.recorded else _nvml()
        return super().discover()

    def is_card(self, function: sysfs.Function) -> bool:
        return function.ids[0] == '10de' and function.pci_class.startswith(self.classes)

    def model(self, card: sysfs.Function) -> str:
        named = self.models.get(card.ids) or f'NVIDIA GPU {card.ids[1]}'
        return str(self._known.get(card.bdf, {}).get('name') or named)

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        known = self._known.get(card.bdf, {})
        return {key: known[key] for key in ('uuid', 'memory_mb') if key in known}

    def deployables(self, card: sysfs.Function) -> list[driver.Deployable]:
        split = bool(card.numvfs or list(card.virtual_functions))
        resource_class = 'VGPU' if split else self.resource_class
        return [self.deployable(card, self.functions(card), resource_class)]

    def traits(self, card: sysfs.Function) -> collections.abc.Iterator[str | None]:
        """Cyborg's ``CUSTOM_NVIDIA_1EB8``, and with each vGPU type that can be made."""
        product = card.ids[1]
        yield driver.trait('NVIDIA', product)
        for function in card.virtual_functions:
            for line in (function.read('nvidia/creatable_vgpu_types') or '').splitlines():
                if match := VGPU_TYPE.fullmatch(line):
                    yield driver.trait('NVIDIA', product, match[1])


def _nvml() -> dict[str, dict[str, typing.Any]]:
    """What NVIDIA's library knows of the GPUs, by PCI address; nothing where it does not load."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no package, no library, no driver, or one of another release
        LOG.info('NVML does not load, so sysfs alone tells of GPUs: %s', error)
        return {}
    known: dict[str, dict[str, typing.Any]] = {}
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            try:
                known |= _nvml_gpu(pynvml, number)
            except pynvml.NVMLError as error:
                LOG.warning('NVML does not tell of GPU %d: %s', number, error)
    except pynvml.NVMLError as error:
        LOG.warning('NVML does not count the GPUs: %s', error)
    finally:
        pynvml.nvmlShutdown()
    return known


def _nvml_gpu(nvml: typing.Any, number: int) -> dict[str, dict[str, typing.Any]]:
    gpu = nvml.nvmlDeviceGetHandleByIndex(number)
    bus = nvml.nvmlDeviceGetPciInfo(gpu).busId
    address = sysfs.normal(bus.decode(errors='replace') if isinstance(bus, bytes) else bus)
    return {
        address or str(bus): {
            'name': nvml.nvmlDeviceGetName(gpu),
            'uuid': nvml.nvmlDeviceGetUUID(gpu),
            'memory_mb': nvml.nvmlDeviceGetMemoryInfo(gpu).total >> 20,
        }
    }

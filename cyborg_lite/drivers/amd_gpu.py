# SPDX-License-Identifier: Apache-2.0
"""AMD Instinct accelerators: whole ones, or their virtual functions.

The kernel's compute driver (KFD) has more data of a card than PCI: its architecture, and one node
for each partition that processes of the host can use.

Source: pci.ids; Linux, drivers/gpu/drm/amd/amdkfd/kfd_topology.c and amdgpu's sysfs attributes;
github.com/ROCm/TheRock, issue 5475, for the version of ROCm.
"""

from __future__ import annotations

import collections
import collections.abc
import pathlib
import re
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import drm
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs
from cyborg_lite.drivers.tools import kfd

#: A unique id in sysfs.
HEX = re.compile('[0-9a-f]{1,16}')
#: One directory for each node: a processor, or a partition of a GPU.
NODES = pathlib.PurePath('sys/class/kfd/kfd/topology/nodes')
#: The version of ROCm, in earlier releases, and in 7.14.
ROCM = ('opt/rocm/.info/version', 'opt/rocm/core/.info/version')

Node = dict[str, int]


class AmdGpu(pci.PciDriver):
    """Ignores graphics cards and integrated graphics: see ``[pci] device_spec``."""

    name, type, resource_class = 'amd_gpu', 'GPU', 'PGPU'
    virtual_class = 'VGPU'
    #: MI50 to MI200 are display controllers, later ones processing accelerators
    classes = ('0380', '12')
    kernel_tells = True
    models = {
        # A graphics card, the Radeon Pro VII, has the same id and another class.
        ('1002', '66a1'): 'AMD Instinct MI50/MI60',
        ('1002', '738c'): 'AMD Instinct MI100',
        ('1002', '738e'): 'AMD Instinct MI100',
        ('1002', '7408'): 'AMD Instinct MI250X',
        ('1002', '740c'): 'AMD Instinct MI250X/MI250',
        ('1002', '740f'): 'AMD Instinct MI210',
        ('1002', '74a0'): 'AMD Instinct MI300A',
        ('1002', '74a1'): 'AMD Instinct MI300X',
        ('1002', '74a2'): 'AMD Instinct MI308X',
        ('1002', '74b5'): 'AMD Instinct MI300X VF',
    }

    firmware_files = ('vbios_version',)

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts) -> None:
        super().__init__(host, conf)
        self._usage = drm.Usage(host)
        # The processes of each GPU by its gpu_id, as KFD lists them.
        self._queues: dict[int, frozenset[int]] | None = None

    def discover(self) -> list[driver.Device]:
        self._nodes = self._read_nodes()
        cards = self.cards()
        self._queues = None
        if any(card.driver == 'amdgpu' for card in cards):
            try:
                self._usage.look()
                self._queues = kfd.ask(self.host)
            except driver.ToolError as error:
                self.note(f'The processes of GPUs cannot be seen: {error}')
        return [self.device(card) for card in cards]

    def is_card(self, function: sysfs.Function) -> bool:
        """Whether the table lists it, or it is a processing accelerator of AMD's."""
        accelerator = function.ids[0] == '1002' and function.pci_class.startswith('12')
        return accelerator or super().is_card(function)

    def model(self, card: sysfs.Function) -> str:
        return self.known_model(card) or f'AMD GPU {card.ids[1]}'

    def serial(self, card: sysfs.Function) -> str | None:
        """The unique id, by which ROCR_VISIBLE_DEVICES names a card: ``GPU-`` and 16 digits."""
        text = card.read('unique_id') or ''
        nodes = self._of(card)
        number = int(text, 16) if HEX.fullmatch(text) else nodes[0]['unique_id'] if nodes else 0
        return f'GPU-{number:016x}' if number else None

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        memory = card.number('mem_info_vram_total')
        facts: dict[str, typing.Any] = {
            'uuid': self.serial(card),
            'memory_mb': memory >> 20 if memory else None,
            'partition_mode': card.read('current_compute_partition'),
        }
        nodes = [{'index': n['index'], 'render_minor': n['render']} for n in self._of(card)]
        facts |= nodes[0] if len(nodes) == 1 else {'partitions': nodes or None}
        return {key: value for key, value in facts.items() if value is not None}

    def versions(self, card: sysfs.Function) -> dict[str, str | None]:
        """The runtime is ROCm, if the host has it."""
        texts = filter(None, map(self.host.tree.text, ROCM))
        return {**super().versions(card), 'runtime': next(texts, None)}

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The worst of the PCIe link and of the errors of each block of the chip."""
        return driver.worst(super().health(card), *self._blocks(card))

    def _blocks(self, card: sysfs.Function) -> list[driver.Health]:
        names = [name for name in card.entries('ras') if name.endswith('_err_count')]
        return [read_errors(card.read(f'ras/{name}') or '') for name in names]

    def trial(self, card: sysfs.Function) -> str | None:
        """It answers on its bus, with its kernel driver, which counts no error of any block."""
        told = driver.worst(*self._blocks(card))
        return super().trial(card) or driver.why_not_ok(told, 'amd_no_answer')

    def utilization(self, card: sysfs.Function) -> int | None:
        """The load of all blocks of the chip, as the firmware computes it.

        Source: Linux, drivers/gpu/drm/amd/pm/amdgpu_pm.c, ``gpu_busy_percent``.
        """
        told = card.number('gpu_busy_percent')
        return told if told is not None and told <= 100 else None

    def processes(self, card: sysfs.Function) -> frozenset[int] | None:
        """Those of ROCm, which KFD lists, and those that compute otherwise or code video."""
        if card.driver != 'amdgpu':
            return None
        told = [self._usage.processes(card)]
        if self._queues is not None:
            told += [self._queues.get(each['gpu_id']) for each in self._of(card)]
        listed = [pids for pids in told if pids is not None]
        return frozenset().union(*listed) if listed else None

    def links(self, card: sysfs.Function) -> dict[str, int]:
        """A link to each card of its hive: xGMI connects them."""
        hives = {each['hive'] for each in self._of(card)} - {0}
        own = int(card.address['domain'], 16), card.routing_id & ~7
        return {
            f'{domain:04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.0': 1
            for (domain, place), nodes in self._nodes.items()
            if (domain, place) != own and hives & {each['hive'] for each in nodes}
        }

    def traits(self, card: sysfs.Function) -> collections.abc.Iterator[str | None]:
        yield driver.trait('AMD', card.ids[1])
        for version in [each['gfx'] for each in self._of(card)[:1] if each['gfx']]:
            yield driver.trait('AMD', architecture(version))

    def _of(self, card: sysfs.Function) -> list[Node]:
        """The nodes of a card, sorted: one, or one for each partition."""
        return self._nodes[int(card.address['domain'], 16), card.routing_id & ~7]

    def _read_nodes(self) -> dict[tuple[int, int], list[Node]]:
        """The nodes of GPUs, by domain and location; the last three bits number the partition."""
        tree = self.host.tree
        names = (name for name in tree.entries(NODES) if name.isascii() and name.isdigit())
        found: dict[tuple[int, int], list[Node]] = collections.defaultdict(list)
        index = 0
        for name in sorted(names, key=int):
            node = collections.Counter(tree.numbers(NODES / name / 'properties'))
            # Processors have no SIMDs. The rest is counted as in ROCm.
            if node['simd_count'] and node['vendor_id'] == 0x1002:
                facts = {'index': index, 'render': node['drm_render_minor']}
                facts |= {'gfx': node['gfx_target_version'], 'unique_id': node['unique_id']}
                facts['hive'] = node['hive_id']
                facts['gpu_id'] = tree.number(NODES / name / 'gpu_id') or 0
                found[node['domain'], node['location_id'] & 0xFFF8].append(facts)
                index += 1
        return found


def read_errors(text: str) -> driver.Health:
    """The health by the errors of a block, since the driver was loaded: ``ue`` and ``ce``.

    A corrected error (``ce``) is not a fault.

    Source: Linux, drivers/gpu/drm/amd/amdgpu/amdgpu_ras.c, ``amdgpu_ras_sysfs_read``.
    """
    match = re.search('^ue: ([0-9]{1,20})$', text, re.MULTILINE)
    if not match:
        return driver.Health()
    return driver.Health('critical', 'amd_uncorrected') if int(match[1]) else driver.Health('ok')


def architecture(version: int) -> str:
    """``gfx90a`` of 90010, the name in compilers: the last two numbers are hexadecimal."""
    return f'gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}'

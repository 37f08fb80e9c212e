# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs: whole ones, vGPUs of a chosen type, and MIG instances.

Sysfs alone finds the cards.  nvidia-ml-py and NVIDIA's driver, if they load, add the product's
name, the UUID, the memory and the MIG instances; a recording has their answers.  Each value is
read alone; a value that cannot be read keeps its last content, and the driver is degraded.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import pathlib
import re
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import nvml
from cyborg_lite.driver import pci
from cyborg_lite.driver import pci_ids
from cyborg_lite.driver import sysfs
from cyborg_lite.driver import xid
from cyborg_lite.drivers.tools import mdev

Facts = dict[str, typing.Any]

#: The name of a vGPU type, without the brand.
VGPU_NAME = re.compile(r'\s*(?:NVIDIA|GRID)?\s*(\S.{0,63}?)\s*')
#: A line of creatable_vgpu_types: number and name of a type; it does not match headings.
#: Source: NVIDIA vGPU software user guide, "Creating an NVIDIA vGPU on a Linux with KVM host".
VGPU_TYPE = re.compile(rf'\s*[0-9]+\s*:{VGPU_NAME.pattern}')
#: The directory in which the kernel driver lists the cards and the nodes that processes open.
#: Source: NVIDIA MIG user guide, "Device Nodes and Capabilities".
PROC = pathlib.PurePath('proc/driver/nvidia')
#: The log of the kernel.
LOG = pathlib.PurePath('dev/kmsg')
#: The fields of a card there; an unknown UUID is all question marks.
INFORMATION = {
    'uuid': re.compile(
        r'^GPU UUID:\s*(GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*$', re.MULTILINE
    ),
    'minor': re.compile(r'^Device Minor:\s*([0-9]{1,5})\s*$', re.MULTILINE),
}
#: The version of the video BIOS there; that of a card which is not initialized is question marks.
BIOS = re.compile(r'^Video BIOS:\s*([0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f]{2}){4})\s*$', re.MULTILINE)
#: The errors (XID) that a card causes, not a program, the gravest first: those whose immediate
#: action in NVIDIA's catalog is to restart the machine, to reset the GPU, or to check it, its
#: NVLinks or its power, and those that it ascribes to faulty memory or circuits.  109 is not among
#: them: a program that never ends a kernel causes it.  155 is logged also when a link is shut down.
#: Source: NVIDIA, "Analyzing Xid Errors with the Xid Catalog"; for 109, NVIDIA/k8s-device-plugin,
#: internal/rm/health.go, "application errors".
XIDS = (
    *(79, 95, 140, 48, 64, 143, 158, 119, 120, 62, 46, 110, 156),  # off the bus, or needs a reset
    *(136, 74, *range(144, 151), 54),  # NVLink, auxiliary power
    *(154, 94, 157, 92),  # needs a recovery; contained; not repairable; many single-bit errors
)
#: The minor of the node of a MIG instance: N of nvidia-caps/nvidia-capN.
CAPABILITY = re.compile(r'^DeviceFileMinor:\s*([0-9]{1,5})\s*$', re.MULTILINE)


@dataclasses.dataclass
class Gpu:
    """The last facts from NVML of the card at an address."""

    ids: tuple[str, ...]
    facts: Facts = dataclasses.field(default_factory=dict)
    #: None if NVML has never reported the card
    health: driver.Health | None = None


class NvidiaGpu(pci.PciDriver):
    name, type, resource_class = 'nvidia_gpu', 'GPU', 'PGPU'
    virtual_class: str = 'VGPU'
    #: VGA and 3D controllers; NVSwitch (0680) and the audio of a card (0403) are not GPUs
    classes = ('0300', '0302')
    vendors = ('10de',)
    #: Cards whose name in NVML does not follow from pci.ids. Source: pci.ids, and NVML's names.
    models = {
        ('10de', '15f7'): 'Tesla P100-PCIE-12GB',
        ('10de', '15f8'): 'Tesla P100-PCIE-16GB',
        ('10de', '15f9'): 'Tesla P100-SXM2-16GB',
        ('10de', '1cb3'): 'Quadro P400',
        ('10de', '1db1'): 'Tesla V100-SXM2-16GB',
        ('10de', '1db4'): 'Tesla V100-PCIE-16GB',
        ('10de', '1db5'): 'Tesla V100-SXM2-32GB',
        ('10de', '1db6'): 'Tesla V100-PCIE-32GB',
        ('10de', '1eb8'): 'Tesla T4',
        ('10de', '20b0'): 'NVIDIA A100-SXM4-40GB',
        ('10de', '20b2'): 'NVIDIA A100-SXM4-80GB',
        ('10de', '20b5'): 'NVIDIA A100 80GB PCIe',
        ('10de', '20b7'): 'NVIDIA A30',
        ('10de', '20f1'): 'NVIDIA A100-PCIE-40GB',
        ('10de', '2235'): 'NVIDIA A40',
        ('10de', '2236'): 'NVIDIA A10',
        ('10de', '2321'): 'NVIDIA H100 NVL',
        ('10de', '2330'): 'NVIDIA H100 80GB HBM3',
        ('10de', '2331'): 'NVIDIA H100 PCIe',
        ('10de', '2335'): 'NVIDIA H200',
        ('10de', '233b'): 'NVIDIA H200 NVL',
        ('10de', '2342'): 'NVIDIA GH200 480GB',
        ('10de', '25b6', '10de', '14a9'): 'NVIDIA A16',
        ('10de', '25b6'): 'NVIDIA A2',
        ('10de', '2684'): 'NVIDIA GeForce RTX 4090',
        ('10de', '26b5'): 'NVIDIA L40',
        ('10de', '26b9'): 'NVIDIA L40S',
        ('10de', '27b2'): 'NVIDIA RTX 4000 Ada Generation',
        ('10de', '27b8'): 'NVIDIA L4',
        ('10de', '2901'): 'NVIDIA B200',
        ('10de', '2941'): 'NVIDIA GB200',
        ('10de', '2bb1'): 'NVIDIA RTX PRO 6000 Blackwell Workstation Edition',
        ('10de', '2bb4'): 'NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition',
        ('10de', '2bb5'): 'NVIDIA RTX PRO 6000 Blackwell Server Edition',
        ('10de', '2e12'): 'NVIDIA GB10',
        ('10de', '3182'): 'NVIDIA B300 SXM6 AC',
        ('10de', '31c2'): 'NVIDIA GB300',
    }

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts) -> None:
        super().__init__(host, conf)
        self._known: dict[str, Gpu] = {}
        # The answer of xid.recent().
        self._xids: typing.Any = None
        # By the address of a card, the type of its mediated devices, and their attach handles.
        self._vgpus: dict[str, str] = {}
        self._mediated: dict[str, list[driver.AttachHandle]] = {}

    def discover(self) -> list[driver.Device]:
        cards = self.cards()
        self._choose({card.bdf: card for card in cards})
        # A new card at a known address does not inherit the facts of the old one.
        fresh = {card.bdf: Gpu(card.identity) for card in cards}
        same = {b: g for b, g in self._known.items() if b in fresh and g.ids == fresh[b].ids}
        self._known = fresh | same
        for gpu in same.values():
            # If NVML reported the card before and does not now, the health is unknown.
            gpu.health = driver.Health() if gpu.health else None
            # They hold only for a moment: a pid of the last scan may be used again.
            for key in ('pids', 'pid_memory', 'utilization'):
                gpu.facts.pop(key, None)
        if cards:
            self._read_log()
        # NVML does not see cards of guests.
        ours = {card.bdf for card in cards if not card.passed_through}
        if ours:
            self._ask(ours)
        return [self.device(card) for card in cards]

    def _choose(self, cards: dict[str, sysfs.Function]) -> None:
        """Read which cards are split into mediated devices, of which type, and into how many."""
        agent = getattr(self.conf, 'agent', None)
        self._vgpus = mdev.choices(getattr(agent, 'vgpu_types', ()), self.note)
        self._mediated = {
            bdf: mdev.handles(self._parents(cards[bdf]), kind)
            for bdf, kind in self._vgpus.items()
            if bdf in cards
        }
        for bdf in sorted(self._vgpus.keys() - cards.keys()):
            self.note(f'[agent] vgpu_types: there is no NVIDIA GPU at {bdf}')

    def _read_log(self) -> None:
        try:
            self._xids = self.host.ask('kernel', 'xids', lambda: xid.recent(self.host.root / LOG))
        except driver.ToolError as error:
            self.note(f'The log of the kernel cannot be read: {error}')

    #: The connector of an A2 has 8 lanes; its chip reports 16. Source: NVIDIA A2 product brief.
    lanes = {('10de', '25b6'): 8}

    def model(self, card: sysfs.Function) -> str:
        """NVML comes last: so the name depends on it only where nothing else knows the card."""
        if listed := self.listed_model(card):
            return listed
        if sold_as := pci_ids.product(self.host, card.ids):
            return f'NVIDIA {sold_as}'
        return str(self._known[card.bdf].facts.get('name') or f'NVIDIA GPU {card.ids[1]}')

    def vendor_board(self, card: sysfs.Function) -> Facts:
        known = self._known[card.bdf].facts
        told = {key: known[key] for key in ('uuid', 'index', 'memory_mb') if key in known}
        facts: Facts = self._told_by_kernel(card) | told
        if instances := self._instances(card):
            facts['mig'] = [self._nodes(each, facts.get('minor')) for each in instances]
        return facts

    def _told_by_kernel(self, card: sysfs.Function) -> Facts:
        """The UUID and the number of the node from the kernel driver, without NVML."""
        told = self._information(card)
        found = {key: pattern.search(told) for key, pattern in INFORMATION.items()}
        facts: Facts = {key: match[1] for key, match in found.items() if match}
        return facts | ({'minor': int(facts['minor'])} if 'minor' in facts else {})

    def _information(self, card: sysfs.Function) -> str:
        return self.host.tree.text(PROC / 'gpus' / card.bdf / 'information') or ''

    def versions(self, card: sysfs.Function) -> Facts:
        """The firmware is the video BIOS, which the kernel driver has read from the card; the
        runtime is the latest CUDA that the driver supports: programs bring their own.
        """
        match = BIOS.search(self._information(card))
        told = {
            'firmware': match[1] if match else None,
            'runtime': self._known[card.bdf].facts.get('cuda'),
        }
        return {**super().versions(card), **told}

    def _nodes(self, instance: Facts, minor: int | None) -> Facts:
        """The numbers of the nodes of a MIG instance, as far as they are known."""
        gpu_instance = PROC / f'capabilities/gpu{minor}/mig/gi{instance["gpu_instance_id"]}'
        places = {
            'gpu_instance_minor': gpu_instance / 'access',
            'compute_instance_minor': (
                gpu_instance / f'ci{instance["compute_instance_id"]}' / 'access'
            ),
        }
        found = {
            key: CAPABILITY.search(self.host.tree.text(place) or '')
            for key, place in places.items()
        }
        numbers = {key: int(match[1]) for key, match in found.items() if match}
        return {'uuid': instance['uuid'], 'minor': minor} | numbers

    def links(self, card: sysfs.Function) -> dict[str, int]:
        """The NVLinks to each GPU: direct ones, and those by way of NVSwitches."""
        found = {other: self._links(card.bdf, other) for other in sorted(self._known)}
        return {other: count for other, count in found.items() if count and other != card.bdf}

    def _links(self, one: str, other: str) -> int:
        ours, theirs = self._nvlinks(one), self._nvlinks(other)
        # What both have links to and is no GPU is a switch.
        switches = (ours.keys() & theirs.keys()) - self._known.keys()
        through = sum(min(ours[switch], theirs[switch]) for switch in switches)
        return ours.get(other, 0) + through

    def _nvlinks(self, bdf: str) -> dict[str, int]:
        return typing.cast('dict[str, int]', self._known[bdf].facts.get('nvlinks', {}))

    def serial(self, card: sysfs.Function) -> str | None:
        """The UUID: it stays with the board in any host and slot; source: nvmlDeviceGetUUID."""
        known = self._known[card.bdf].facts.get('uuid')
        return known or self._told_by_kernel(card).get('uuid')

    def health(self, card: sysfs.Function) -> driver.Health | None:
        told = self._known[card.bdf].health
        if told is None and card.passed_through:
            # NVML does not see the card, and a good PCIe link is not sufficient.
            told = driver.Health()
        return driver.worst(super().health(card), told, self._logged(card))

    def trial(self, card: sysfs.Function) -> str | None:
        """It answers on its bus, and NVML, asked anew, knows nothing that a reset has to mend."""
        reason = super().trial(card)
        return reason if reason or self.host.recorded else nvml.trial(card.bdf)

    def _logged(self, card: sysfs.Function) -> driver.Health | None:
        """The health of a card by the log of the kernel; None if that has no recent error.

        A warning only: the log does not tell when the card has recovered, and NVML does.
        """
        numbers = xid.of(self._xids, card.bdf)
        first = next((number for number in XIDS if number in numbers), None)
        return driver.Health('warning', f'xid_{first}') if first else None

    def processes(self, card: sysfs.Function) -> frozenset[int] | None:
        pids = self._known[card.bdf].facts.get('pids')
        return None if pids is None else frozenset(pids)

    def memory(self, card: sysfs.Function) -> dict[int, int] | None:
        told = self._known[card.bdf].facts.get('pid_memory')
        return None if told is None else {int(pid): size for pid, size in told.items()}

    def utilization(self, card: sysfs.Function) -> int | None:
        told = self._known[card.bdf].facts.get('utilization')
        # Source: NVML, nvmlDeviceGetUtilizationRates: it is not supported in MIG mode.
        return None if self._instances(card) is not None else told

    def unusable(self, card: sysfs.Function) -> str | None:
        if kind := self._vgpus.get(card.bdf):
            if self._mediated[card.bdf]:
                return None
            return f'it has no room for a vGPU of type {kind}: see [agent] vgpu_types'
        reason = super().unusable(card)
        if reason:
            return reason
        if not self.functions(card):
            return 'none of its virtual functions has a vGPU type: see nvidia/current_vgpu_type'
        return None if self.is_split(card) else self._no_instance(card)

    def _no_instance(self, card: sysfs.Function) -> str | None:
        """Why no MIG instance of the card is usable; None if one is, or if MIG is off."""
        instances = self._instances(card)
        if instances == []:
            return 'it is in MIG mode and has no MIG instance: nvidia-smi mig -cgi creates them'
        if instances is None and self._has_instances(card):
            return "it has MIG instances and NVML does not list them: is 'nvidia-ml-py' installed?"
        return None

    def _instances(self, card: sysfs.Function) -> list[Facts] | None:
        """The MIG instances that NVML listed; None if MIG is off or unknown."""
        if card.passed_through:  # NVIDIA's driver has released it: it is whole
            return None
        return typing.cast('list[Facts] | None', self._known[card.bdf].facts.get('mig'))

    def _has_instances(self, card: sysfs.Function) -> bool:
        """Whether the kernel driver lists MIG instances of a card that NVML did not report."""
        if 'mig' in self._known[card.bdf].facts:
            return False
        minor = self._told_by_kernel(card).get('minor')
        directory = PROC / 'capabilities' / f'gpu{minor}' / 'mig'
        return any(name.startswith('gi') for name in self.host.tree.entries(directory))

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        """Leave out virtual functions without a vGPU type, if they can have one.

        Source: NVIDIA vGPU software user guide, ``current_vgpu_type``: 0 is none.  The file does
        not exist if vGPUs are mediated devices.
        """
        functions = super().functions(card)
        types = {f.bdf: f.read('nvidia/current_vgpu_type') for f in functions if f is not card}
        if all(kind is None for kind in types.values()):
            return functions
        return [f for f in functions if re.fullmatch('0*[1-9][0-9]{0,8}', types[f.bdf] or '')]

    def _parents(self, card: sysfs.Function) -> list[sysfs.Function]:
        """The functions that can have mediated devices."""
        return list(card.virtual_functions) or [card]

    def deployables(self, card: sysfs.Function) -> list[driver.Deployable]:
        if card.bdf in self._mediated:
            part = self.deployable(card, [], self.virtual_class)
            part.attach_handles = self._mediated[card.bdf]
            return [part]
        instances = None if self.is_split(card) else self._instances(card)
        if instances is None:
            return super().deployables(card)
        profiles = sorted({each['profile'] for each in instances})
        return [
            self._profile(card, name, [each for each in instances if each['profile'] == name])
            for name in profiles
        ] or [self.deployable(card, [], self.resource_class)]

    def _profile(
        self, card: sysfs.Function, profile: str, instances: list[Facts]
    ) -> driver.Deployable:
        """The MIG instances of one profile, such as ``1g.10gb``: ``CUSTOM_MIG_1G_10GB``."""
        deployable = self.deployable(card, [], driver.trait('MIG', profile) or 'CUSTOM_MIG')
        deployable.name = f'{card.bdf}_mig_{profile}'
        deployable.attach_handles = [
            driver.AttachHandle(
                attach_type='MIG',
                attach_info={key: each[key] for key in ('uuid', *nvml.INSTANCE_IDS)},
                form='mig',
            )
            for each in instances
        ]
        return deployable

    def traits(self, card: sysfs.Function) -> collections.abc.Iterator[str | None]:
        """Cyborg's ``CUSTOM_NVIDIA_1EB8``, also with the chosen vGPU type, or else with each that
        can be created.
        """
        product = card.ids[1]
        yield driver.trait('NVIDIA', product)
        if kind := self._vgpus.get(card.bdf):
            match = VGPU_NAME.fullmatch(mdev.name(self._parents(card), kind) or '')
            yield driver.trait('NVIDIA', product, match[1]) if match else None
            return
        for function in card.virtual_functions:
            for line in (function.read('nvidia/creatable_vgpu_types') or '').splitlines():
                if match := VGPU_TYPE.fullmatch(line):
                    yield driver.trait('NVIDIA', product, match[1])

    def _ask(self, addresses: set[str]) -> None:
        """Read the facts of the GPUs at these addresses from NVML."""
        known = {bdf for bdf in addresses if self._known[bdf].facts}
        try:
            told = self.host.ask('nvml', 'gpus', self._ask_nvml)
        except driver.ToolError as error:
            self.note(f'NVML does not answer: {error}')
            return
        if not isinstance(told, dict):
            if known and self.host.recorded:
                self.note('NVML does not answer any more')
            return
        for bdf in addresses - told.keys():
            # NVML works but did not report this GPU: a good PCIe link is not sufficient.
            self._known[bdf].health = driver.Health()
        for bdf in sorted(addresses & told.keys()):
            self._learn(self._known[bdf], nvml.sound(told[bdf]))
        for bdf in sorted(known - told.keys()):
            self.note(f'NVML does not tell of {bdf}')

    def _ask_nvml(self) -> nvml.Answers | None:
        known = any(gpu.facts for gpu in self._known.values())
        return nvml.ask(self._known, known, self.note)

    def _learn(self, gpu: Gpu, told: Facts) -> None:
        """Store the facts of a card; absent facts keep their last value."""
        if 'health' in told:
            gpu.health = driver.Health(*told.pop('health'))
        if 'uuid' in told and gpu.facts.get('uuid') != told['uuid']:
            gpu.facts.clear()  # they are of another card, which was here before
        gpu.facts.update(told)

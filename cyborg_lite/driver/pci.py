# SPDX-License-Identifier: Apache-2.0
"""A base class for cards that are found by PCI ids and attached by PCI address."""

from __future__ import annotations

import collections
import collections.abc
import itertools
import pathlib
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import pci_ids
from cyborg_lite.driver import sysfs
from cyborg_lite.driver import versions

#: A vendor or device id of sysfs, without 0x.
ID = re.compile('[0-9a-f]{4}')
#: The directory of the kernel's modules. Source: Documentation/ABI/stable/sysfs-module of Linux.
MODULES = pathlib.PurePath('sys/module')
#: The maximum number of functions of a card whose VFIO nodes are reported: a board has room for so
#: many.
BOUND = 400
#: The reason of a card that does not answer on its bus.
NO_ANSWER = 'pci_no_answer'
#: Why a card of ``used_by_host`` is not allocated.
IN_USE = 'the host uses it: bind it to vfio-pci to have it allocated'


def _are_ids(ids: typing.Any) -> bool:
    if not isinstance(ids, tuple) or len(ids) not in (2, 4):
        return False
    return all(isinstance(id, str) and ID.fullmatch(id) for id in ids)


class PciDriver(driver.Driver):
    """Subclasses declare their ids, and override what differs."""

    type: str
    resource_class: str
    #: the resource class of virtual functions, if it differs
    virtual_class: str | None = None
    #: the model by vendor and device id of each physical function that is a card; if several
    #: models have the same ids, those of the subsystem follow
    models: collections.abc.Mapping[tuple[str, ...], str] = {}
    #: prefixes of the PCI class of a card; ids are not sufficient: vendors make network cards, too
    classes: tuple[str, ...] = ('',)
    #: the vendors whose functions of these classes are all cards, listed or not; None for any
    vendors: collections.abc.Collection[str] | None = ()
    #: whether the functions of one slot, such as the ports of a network card, are one card
    one_per_slot = False
    #: whether the host uses such cards itself, as it does its disks: then a function is allocated
    #: only if no driver of the host is bound to it
    used_by_host = False
    #: facts of ``vendor_board``, each with the attributes that may have it: patterns of
    #: :meth:`~cyborg_lite.driver.sysfs.Function.find`
    board_files: collections.abc.Mapping[str, tuple[str, ...]] = {}
    #: the attributes that may have the serial number, as such patterns
    serial_files: tuple[str, ...] = ()
    #: the attributes that may have the version of the firmware, as such patterns
    firmware_files: tuple[str, ...] = ()

    #: the number of PCIe lanes of a card by its ids, if its chip reports more
    lanes: collections.abc.Mapping[tuple[str, ...], int] = {}
    #: whether a kernel driver tells what makes a card critical: without that driver nothing can
    #: say that the card is well again
    kernel_tells = False

    #: virtual functions without a link yet, by the address of their physical function
    unlinked: typing.Mapping[str, list[sysfs.Function]] = {}
    #: the ports of each card, by its address, if cards have several
    _ports: typing.Mapping[str, list[sysfs.Function]] = {}
    #: how many cards have each serial number
    _serials: typing.Mapping[str | None, int] = collections.Counter()
    #: the versions of the kernel's modules, which the cards of a scan share
    _modules: dict[str, str | None]
    #: the versions of each card, by its address, as far as this scan has read them
    _versions: dict[str, dict[str, str]]

    def __init_subclass__(cls, **kwargs: typing.Any) -> None:
        """Refuse ids that no function of sysfs can have.

        :raises ValueError: the error names the class and the id.
        """
        super().__init_subclass__(**kwargs)
        given = vars(cls).get('models', {})
        for ids in given if isinstance(given, collections.abc.Mapping) else ():
            if not _are_ids(ids):
                raise ValueError(
                    f'{cls.__name__}.models: expected a vendor and a device id, and perhaps those '
                    'of the subsystem, of four hexadecimal digits each in lower case, such as '
                    f"('19e5', 'd802'), not {ids!r}"
                )

    def discover(self) -> list[driver.Device]:
        """A device for each card."""
        return [self.device(function) for function in self.cards()]

    def cards(self) -> list[sysfs.Function]:
        """The physical functions that are cards of this driver; of several ports the first."""
        self._modules, self._versions = {}, {}
        functions = self.host.tree.functions()
        # A function without ids cannot be identified, whatever its class.
        cards = [f for f in functions if all(f.ids) and not f.is_virtual and self.is_card(f)]
        # A virtual function has the vendor id of its physical function.
        vendors = {card.ids[0] for card in cards}
        self.unlinked = sysfs.unlinked([f for f in functions if f.ids[0] in vendors])
        virtual = {f.bdf for found in self.unlinked.values() for f in found}
        cards = [card for card in cards if card.bdf not in virtual]
        if self.one_per_slot:
            slots = itertools.groupby(cards, key=lambda card: card.bdf.partition('.')[0])
            ports = [list(functions) for _, functions in slots]
            self._ports = {functions[0].bdf: functions for functions in ports}
            cards = [functions[0] for functions in ports]
        self._serials = collections.Counter(map(self.told_serial, cards))
        return cards

    def ports(self, card: sysfs.Function) -> list[sysfs.Function]:
        """The physical functions of a card: itself, and others in its slot if they belong to it."""
        return self._ports.get(card.bdf, [card])

    def is_card(self, function: sysfs.Function) -> bool:
        """Whether a function has a class of ``classes``, and is in ``models`` or of ``vendors``."""
        if not function.pci_class.startswith(self.classes):
            return False
        of_vendor = self.vendors is None or function.ids[0] in self.vendors
        return of_vendor or bool(self.listed_model(function))

    def device(self, card: sysfs.Function) -> driver.Device:
        """The Device of a card."""
        vendor, product = card.ids
        health = self.health(card) or driver.Health()
        # Tools of the host see no cards of guests.
        if health == driver.Health() and not card.passed_through:
            health = self.untold
        return driver.Device(
            type=self.type,
            vendor=vendor,
            model=self.model(card),
            address=card.bdf,
            numa_node=card.numa_node,
            board={'product_id': product, 'class': card.pci_class}
            | ({'subsystem': card.subsystem} if card.subsystem else {}),
            vendor_board=self.vendor_board(card)
            | versions.facts(self._told_versions(card))
            | self._vfio(card),
            topology=self.topology(card),
            serial=self.serial(card),
            unusable=self.unusable(card),
            health=health.level,
            health_reason=health.reason,
            processes=self.processes(card),
            memory=self.memory(card),
            utilization=self.utilization(card),
            deployables=self.deployables(card),
        )

    def model(self, card: sysfs.Function) -> str:
        """The name of a card's model."""
        return self.known_model(card) or f'PCI {":".join(card.ids)}'

    def known_model(self, card: sysfs.Function) -> str | None:
        """The model from ``models``, or else from the host's pci.ids; None if neither has it."""
        return self.listed_model(card) or pci_ids.product(self.host, card.ids)

    def listed_model(self, function: sysfs.Function) -> str | None:
        """The model from ``models``; an entry with the ids of the subsystem comes first."""
        return self.models.get(function.identity) or self.models.get(function.ids)

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        """Facts that only boards of this vendor have: here those of ``board_files``."""
        told = {key: versions.line(card.told(*files)) for key, files in self.board_files.items()}
        return {key: text for key, text in told.items() if text}

    def versions(self, card: sysfs.Function) -> collections.abc.Mapping[str, str | None]:
        """The versions of the ``driver``, ``firmware`` and ``runtime`` of a card, as their makers
        write them; None, or no entry, for an unknown one.

        Each is a fact of the board, such as ``driver_version``, and two traits: see
        :mod:`~cyborg_lite.driver.versions`.

        Here the driver is the kernel's module, if that has a version, and the firmware is that of
        ``firmware_files``.
        """
        name = (card.driver or '').replace('-', '_')
        if name and not card.passed_through and name not in self._modules:
            self._modules[name] = self.host.tree.text(MODULES / name / 'version')
        return {
            'driver': self._modules.get(name),
            'firmware': card.told(*self.firmware_files),
        }

    def _told_versions(self, card: sysfs.Function) -> dict[str, str]:
        # Both the board and its deployables have them.
        if card.bdf not in self._versions:
            self._versions[card.bdf] = versions.sound(self.versions(card))
        return self._versions[card.bdf]

    def _vfio(self, card: sysfs.Function) -> dict[str, dict[str, list[int]]]:
        """The fact ``vfio``: by the address of each function that is bound to VFIO, the numbers
        of its nodes, as far as a board can have them.
        """
        functions = (f for port in self.ports(card) for f in self.functions(port))
        told = {f.bdf: numbers for f in functions if (numbers := f.vfio)}
        return {'vfio': dict(itertools.islice(told.items(), BOUND))} if told else {}

    def topology(self, card: sysfs.Function) -> dict[str, typing.Any] | None:
        """What tells how near the card is to others; None if nothing is known."""
        told = {'bridges': card.bridges, 'links': self.links(card)}
        return {name: value for name, value in told.items() if value} or None

    def links(self, card: sysfs.Function) -> dict[str, int]:
        """The number of direct links, which do not pass PCIe, to each card by its address."""
        return {}

    def serial(self, card: sysfs.Function) -> str | None:
        """The serial number or UUID of the card, which does not depend on its host and slot.

        Here it is that of ``serial_files``; a number that several cards have identifies none.
        """
        number = self.told_serial(card)
        return number if self._serials[number] == 1 else None

    def told_serial(self, card: sysfs.Function) -> str | None:
        """The serial number that the card tells, which others may have, too."""
        return versions.line(card.told(*self.serial_files))

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The health of the card; None if it is unknown.  Here it follows from the PCIe link
        alone.

        A driver that knows more returns ``driver.worst(super().health(card), ...)``.
        """
        width, widest = card.link_width, card.widest_link
        if width is None or widest is None:
            return None
        narrow = width < min(widest, self.lanes.get(card.ids, widest))
        return driver.Health('warning', 'pcie_width') if narrow else driver.Health('ok')

    def validate(self, device: driver.Device) -> str | None:
        """The outcome of :meth:`trial`; a device that is no PCI function has none."""
        found = (self.trial(f) for f in self.host.tree.functions() if f.bdf == device.address)
        return next(found, None)

    def trial(self, card: sysfs.Function) -> str | None:
        """Why a card that was critical may not come back yet; None if it may: see
        :meth:`~cyborg_lite.driver.Driver.validate`.

        Here it has to answer on its bus.  A driver that tries more returns
        ``super().trial(card) or ...``.
        """
        if self.kernel_tells and (card.passed_through or not card.driver):
            return 'pci_no_driver'
        return NO_ANSWER if any(port.is_gone for port in self.ports(card)) else None

    def processes(self, card: sysfs.Function) -> frozenset[int] | None:
        """The pids of the processes that compute on the card; None if nothing lists them."""
        return None

    def memory(self, card: sysfs.Function) -> dict[int, int] | None:
        """How much memory of the card each process has, in MiB, by its pid; None if it is unknown.

        A process whose memory is unknown is left out.
        """
        return None

    def utilization(self, card: sysfs.Function) -> int | None:
        """How busy the card is, in percent from 0 to 100; None if it does not tell.

        Of several parts it is that of the busiest, and None if one of them does not tell.
        """
        return None

    def unusable(self, card: sysfs.Function) -> str | None:
        """Why the card must not be allocated, as a text; None if it may be."""
        reasons = [self._unusable_port(port) for port in self.ports(card)]
        return reasons[0] if all(reasons) else None

    def _unusable_port(self, card: sysfs.Function) -> str | None:
        if self.is_split(card):
            return None if self.functions(card) else self._withheld(card)
        if card.mediated_devices:
            return 'its mediated devices are in use'
        if self.in_use(card):
            return IN_USE
        # The host would lose its console to the guest.
        agent = getattr(self.conf, 'agent', None)
        if card.is_console and not getattr(agent, 'offer_console_card', False):
            return 'it shows the console of the host (boot_vga)'
        return None

    def _withheld(self, card: sysfs.Function) -> str | None:
        """Why no virtual function of the card can be allocated."""
        functions = list(card.virtual_functions)
        if not functions:
            return 'its virtual functions cannot be seen'
        if any(function.mediated_devices for function in functions):
            return 'its mediated devices are in use'
        return IN_USE if all(map(self.in_use, functions)) else None

    def in_use(self, function: sysfs.Function) -> bool:
        """Whether the host uses a function itself, so that it must not be allocated."""
        return self.used_by_host and bool(function.driver) and not function.passed_through

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        """The functions to allocate: the card's virtual functions, or the card if it has none.

        If they are enabled but not visible, the list is empty: the card includes all of them.  A
        function that the host uses, or whose mediated devices are in use, is left out.
        """
        functions = list(card.virtual_functions) if self.is_split(card) else [card]
        return [f for f in functions if not f.mediated_devices and not self.in_use(f)]

    def is_split(self, card: sysfs.Function) -> bool:
        """Whether the card has virtual functions, visible or not."""
        return bool(card.numvfs or self.unlinked.get(card.bdf) or any(card.virtual_functions))

    def deployables(self, card: sysfs.Function) -> list[driver.Deployable]:
        """The deployables of a card, one for each port and each kind of resource."""
        return [
            self.deployable(port, self.functions(port), self.class_of(port))
            for port in self.ports(card)
        ]

    def class_of(self, card: sysfs.Function) -> str:
        """The resource class of a card or port, which may be another one for virtual functions."""
        return (self.is_split(card) and self.virtual_class) or self.resource_class

    def deployable(
        self, card: sysfs.Function, functions: list[sysfs.Function], resource_class: str
    ) -> driver.Deployable:
        """The deployable of functions of one resource class."""
        return driver.Deployable(
            name=card.bdf,
            driver_name=self.name,
            resource_class=resource_class,
            traits=[
                *filter(None, self.traits(card)),
                *versions.traits(self.name, self._told_versions(card)),
            ],
            attach_handles=[self.handle(card, function) for function in functions],
        )

    def handle(self, card: sysfs.Function, function: sysfs.Function) -> driver.AttachHandle:
        """The attach handle of one function of the card."""
        virtual = {'form': 'vf'} if function.is_virtual else {}
        return driver.AttachHandle(
            attach_type='PCI',
            attach_info=function.address,
            iommu_group=function.iommu_group,
            **virtual,
        )

    def traits(self, card: sysfs.Function) -> collections.abc.Iterable[str | None]:
        """The traits of a card; None stands for a trait that its strings cannot make."""
        return [driver.trait(self.type, self.model(card))]

# SPDX-License-Identifier: Apache-2.0
"""A base class for cards that are found by PCI ids and attached by PCI address."""

from __future__ import annotations

import collections.abc
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import pci_ids
from cyborg_lite.driver import sysfs

#: A vendor or device id of sysfs, without 0x.
ID = re.compile('[0-9a-f]{4}')


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

    #: the number of PCIe lanes of a card by its ids, if its chip reports more
    lanes: collections.abc.Mapping[tuple[str, ...], int] = {}

    #: virtual functions without a link yet, by the address of their physical function
    unlinked: typing.Mapping[str, list[sysfs.Function]] = {}

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
        """The physical functions that are cards of this driver."""
        functions = self.host.tree.functions()
        # A function without ids cannot be identified, whatever its class.
        cards = [f for f in functions if all(f.ids) and self.is_card(f) and not f.is_virtual]
        # A virtual function has the vendor id of its physical function.
        vendors = {card.ids[0] for card in cards}
        self.unlinked = sysfs.unlinked([f for f in functions if f.ids[0] in vendors])
        virtual = {f.bdf for found in self.unlinked.values() for f in found}
        return [card for card in cards if card.bdf not in virtual]

    def is_card(self, function: sysfs.Function) -> bool:
        """Whether a function has ids of ``models`` and a class of ``classes``."""
        return bool(self.listed_model(function)) and function.pci_class.startswith(self.classes)

    def device(self, card: sysfs.Function) -> driver.Device:
        """The Device of a card."""
        vendor, product = card.ids
        health = self.health(card) or driver.Health()
        return driver.Device(
            type=self.type,
            vendor=vendor,
            model=self.model(card),
            address=card.bdf,
            numa_node=card.numa_node,
            board={'product_id': product, 'class': card.pci_class},
            vendor_board=self.vendor_board(card),
            serial=self.serial(card),
            unusable=self.unusable(card),
            health=health.level,
            health_reason=health.reason,
            deployables=self.deployables(card),
        )

    def model(self, card: sysfs.Function) -> str:
        """The name of a card's model."""
        return self.known_model(card) or f'PCI {":".join(card.ids)}'

    def known_model(self, card: sysfs.Function) -> str | None:
        """The model from ``models``, or else from the host's pci.ids; None if neither has it."""
        return self.listed_model(card) or pci_ids.product(self.host.tree, card.ids)

    def listed_model(self, function: sysfs.Function) -> str | None:
        """The model from ``models``; an entry with the ids of the subsystem comes first."""
        return self.models.get(function.identity) or self.models.get(function.ids)

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        """Facts that only boards of this vendor have."""
        return {}

    def serial(self, card: sysfs.Function) -> str | None:
        """The serial number or UUID of the card, which does not depend on its host and slot."""
        return None

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

    def unusable(self, card: sysfs.Function) -> str | None:
        """Why the card must not be allocated, as a text; None if it may be."""
        if self.is_split(card):
            return None if self.functions(card) else self._withheld(card)
        if card.mediated_devices:
            return 'its mediated devices are in use'
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
        used = any(function.mediated_devices for function in functions)
        return 'its mediated devices are in use' if used else None

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        """The functions to allocate: the card's virtual functions, or the card if it has none.

        If they are enabled but not visible, the list is empty: the card includes all of them.  A
        function whose mediated devices are in use is left out.
        """
        functions = list(card.virtual_functions) if self.is_split(card) else [card]
        return [function for function in functions if not function.mediated_devices]

    def is_split(self, card: sysfs.Function) -> bool:
        """Whether the card has virtual functions, visible or not."""
        return bool(card.numvfs or self.unlinked.get(card.bdf) or any(card.virtual_functions))

    def deployables(self, card: sysfs.Function) -> list[driver.Deployable]:
        """The deployables of a card, one for each kind of resource."""
        virtual = self.virtual_class if self.is_split(card) else None
        return [self.deployable(card, self.functions(card), virtual or self.resource_class)]

    def deployable(
        self, card: sysfs.Function, functions: list[sysfs.Function], resource_class: str
    ) -> driver.Deployable:
        """The deployable of functions of one resource class."""
        return driver.Deployable(
            name=card.bdf,
            driver_name=self.name,
            resource_class=resource_class,
            traits=[name for name in self.traits(card) if name],
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

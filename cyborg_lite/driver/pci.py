# SPDX-License-Identifier: Apache-2.0
"""A driver for cards that are known by their PCI ids and given out by PCI address."""

from __future__ import annotations

import collections.abc
import typing

from cyborg_lite import driver
from cyborg_lite.driver import sysfs


class PciDriver(driver.Driver):
    """Subclasses say which ids are theirs; what differs they override."""

    type: str
    resource_class: str
    #: vendor and device id of each physical function that is a card, and its model in words
    models: typing.Mapping[tuple[str, str], str] = {}
    #: how the PCI class of a card begins; ids alone do not tell: vendors make network cards too
    classes: tuple[str, ...] = ('',)

    def discover(self) -> list[driver.Device]:
        return [self.device(function) for function in self.cards()]

    def cards(self) -> collections.abc.Iterator[sysfs.Function]:
        """The physical functions that are cards of ours."""
        for function in self.host.tree.functions():
            if self.is_card(function) and not function.is_virtual:
                yield function

    def is_card(self, function: sysfs.Function) -> bool:
        return function.ids in self.models and function.pci_class.startswith(self.classes)

    def device(self, card: sysfs.Function) -> driver.Device:
        vendor, product = card.ids
        return driver.Device(
            type=self.type,
            vendor=vendor,
            model=self.model(card),
            address=card.bdf,
            numa_node=card.numa_node,
            board={'product_id': product, 'class': card.pci_class},
            vendor_board=self.vendor_board(card),
            deployables=self.deployables(card),
        )

    def model(self, card: sysfs.Function) -> str:
        return self.models[card.ids]

    def vendor_board(self, card: sysfs.Function) -> dict[str, typing.Any]:
        """What only this vendor's boards tell of themselves."""
        return {}

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        """What is given out of a card: its virtual functions, or itself where it has none.

        Where they are enabled and cannot be seen, nothing is: who has the card has them all.
        """
        return list(card.virtual_functions) or ([] if card.numvfs else [card])

    def deployables(self, card: sysfs.Function) -> list[driver.Deployable]:
        return [self.deployable(card, self.functions(card), self.resource_class)]

    def deployable(
        self, card: sysfs.Function, functions: list[sysfs.Function], resource_class: str
    ) -> driver.Deployable:
        return driver.Deployable(
            name=card.bdf,
            driver_name=self.name,
            resource_class=resource_class,
            traits=[name for name in self.traits(card) if name],
            attach_handles=[
                driver.AttachHandle(attach_type='PCI', attach_info=f.address) for f in functions
            ],
        )

    def traits(self, card: sysfs.Function) -> collections.abc.Iterable[str | None]:
        """The traits of a card; None stands for one that its strings do not spell."""
        return [driver.trait(self.type, self.model(card))]

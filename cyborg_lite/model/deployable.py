# SPDX-License-Identifier: Apache-2.0
"""Deployables: resource providers with their attributes and attach handles."""

from __future__ import annotations

import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base
from cyborg_lite.model import pci

if typing.TYPE_CHECKING:
    from cyborg_lite.model.arq import ARQ
    from cyborg_lite.model.device import Device


#: The forms of a handle that the service derives itself.
WHOLE, PART = 'whole', 'part'


class Deployable(base.Base):
    """The part of a device that is one resource provider."""

    __tablename__ = 'deployables'
    keys = ('label',)
    parts = ('attributes', 'attach_handles')

    name: orm.Mapped[str] = base.fact(
        sa.String(255), unique=True, doc='The name of the resource provider.'
    )
    # The driver's name for it, without the address of the device: it stays if the card moves.
    label: orm.Mapped[str] = base.fact(
        sa.String(255), server_default=sa.text("''"), default='', hidden=True
    )
    driver_name: orm.Mapped[str] = base.fact(
        sa.String(100), doc='The driver that found the device.'
    )
    rp_uuid: orm.Mapped[str] = base.own(
        sa.String(36), unique=True, doc='The UUID of the resource provider.'
    )
    # The inventory that was, or will be, sent to Placement.
    announced: orm.Mapped[dict[str, typing.Any] | None] = base.own(
        sa.JSON(none_as_null=True), hidden=True
    )
    bitstream_id: orm.Mapped[str | None] = base.own(
        sa.String(36), doc='The image that the device is programmed with; null if none.'
    )
    device_id: orm.Mapped[int] = base.link(
        'devices.id', hidden=False, doc='The internal number of the device.'
    )

    device: orm.Mapped[Device] = orm.relationship(back_populates='deployables')
    attributes: orm.Mapped[list[Attribute]] = base.parts('Attribute', parent='deployable')
    attach_handles: orm.Mapped[list[AttachHandle]] = base.parts('AttachHandle', parent='deployable')
    if typing.TYPE_CHECKING:
        handle_count: int  # the query counts it, see the end of this module

    parent_id = base.shown(
        str, make=lambda: None, nullable=True, doc='Always null: a deployable has no parent.'
    )
    root_id = base.shown(
        str, make=lambda: None, nullable=True, doc='Always null: a deployable has no parent.'
    )
    num_accelerators = base.shown(
        int, 'handle_count', doc='How many accelerators the deployable has, free or not.'
    )
    attributes_list = base.shown(
        str,
        'attributes.key',
        'attributes.value',
        make=lambda keys, values: base.as_text(
            [{key: value} for key, value in zip(keys, values, strict=True)]
        ),
        doc='The attributes: a JSON list of objects of one key each, as text.',
    )

    # The class and the traits are stored only as attributes.

    @property
    def resource_class(self) -> str | None:
        return next((a.value for a in self.attributes if a.key == 'rc'), None)

    @resource_class.setter
    def resource_class(self, value: str) -> None:
        self.attributes.append(Attribute(key='rc', value=value))

    @property
    def traits(self) -> list[str]:
        return sorted({a.value for a in self.attributes if a.is_trait})

    @traits.setter
    def traits(self, values: typing.Iterable[str]) -> None:
        for number, value in enumerate(sorted(set(values))):
            self.attributes.append(Attribute(key=f'trait{number}', value=value))


class Attribute(base.Base):
    """A fact of a deployable: its resource class, a trait, or an operator's addition."""

    __tablename__ = 'attributes'
    __table_args__ = (
        sa.UniqueConstraint('deployable_id', 'key'),
        # For the search of accelerators of a class, in the order of their deployables.
        sa.Index(None, 'key', 'value', 'deployable_id'),
    )
    keys = ('key',)

    key: orm.Mapped[str] = base.fact(
        sa.String(255), doc='``rc`` for the resource class, ``trait0``... for traits, or any name.'
    )
    value: orm.Mapped[str] = base.fact(sa.String(255), doc='The value, as text.')
    deployable_id: orm.Mapped[int] = base.link(
        'deployables.id', hidden=False, doc='The internal number of the deployable.'
    )
    deployable: orm.Mapped[Deployable] = orm.relationship(back_populates='attributes')
    # True if an operator added it through the API: reports do not remove it.
    added: orm.Mapped[bool] = base.own(sa.Boolean, default=False, hidden=True)

    @property
    def is_trait(self) -> bool:
        return self.key.startswith('trait')

    @property
    def identity(self) -> str:
        """A driver's trait is identified by its value: its number has no meaning.

        An operator's trait of the same value is another row: each can be removed alone.
        """
        by_value = self.is_trait and not self.added
        return base.as_text(['trait', self.value] if by_value else [self.key])

    @property
    def reported(self) -> bool:
        return not self.added


class AttachHandle(base.Base):
    """The data with which a hypervisor or a container runtime attaches one accelerator."""

    __tablename__ = 'attach_handles'

    attach_type: orm.Mapped[str] = base.fact(sa.String(16))
    attach_info: orm.Mapped[dict[str, str]] = base.fact(sa.JSON)
    # The form in which it uses the card: whole, vf, mdev and so on. A card is held in one form at
    # a time: while any of its handles is held, those of other forms are not free.
    form: orm.Mapped[str] = base.fact(sa.String(32), server_default=PART)
    # The IOMMU group of the function: all functions of a group go to one instance.
    iommu_group: orm.Mapped[str | None] = base.fact(sa.String(32))
    deployable_id: orm.Mapped[int] = base.link('deployables.id')
    # True if a request still holds it but the last report lacks it.
    lost: orm.Mapped[bool] = base.own(sa.Boolean, default=False, hidden=True)

    deployable: orm.Mapped[Deployable] = orm.relationship(back_populates='attach_handles')
    # Deleting a held handle is an error: it must be freed first.
    arq: orm.Mapped[ARQ | None] = orm.relationship(
        back_populates='attach_handle', uselist=False, passive_deletes='all'
    )

    @property
    def location(self) -> str:
        """The location in canonical form: two handles with one location are one accelerator."""
        return base.as_text([pci.function(self.attach_info), pci.rest(self.attach_info)])

    @property
    def identity(self) -> str:
        """The identity among the accelerators of its card, independent of the card's address."""
        function, card = pci.function(self.attach_info), self._card
        if function is None or card is None or function[0] != card[0]:
            return self.location
        return base.as_text([function[1] - card[1], pci.rest(self.attach_info)])

    @property
    def default_form(self) -> str:
        """The form if the driver sets none: whole if the handle is the card's own function."""
        whole = self.attach_type == 'PCI' and pci.function(self.attach_info) == self._card
        return WHOLE if whole and not pci.rest(self.attach_info) else PART

    @property
    def _card(self) -> tuple[int, int] | None:
        return pci.function(pci.parse(self.deployable.device.address))


Deployable.handle_count = orm.column_property(  # type: ignore[assignment]
    sa.select(sa.func.count(AttachHandle.id))
    .where(AttachHandle.deployable_id == Deployable.id)
    .correlate_except(AttachHandle)
    .scalar_subquery()
)

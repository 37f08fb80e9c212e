# SPDX-License-Identifier: Apache-2.0
"""What is given out of a card: a resource provider, its attributes, its attach handles."""

from __future__ import annotations

import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base
from cyborg_lite.model import pci

if typing.TYPE_CHECKING:
    from cyborg_lite.model.arq import ARQ
    from cyborg_lite.model.device import Device


#: The forms of a handle that the service knows by itself.
WHOLE, PART = 'whole', 'part'


class Deployable(base.Base):
    """The part of a device that is given out as one kind of resource: a resource provider."""

    __tablename__ = 'deployables'
    keys = ('label',)
    parts = ('attributes', 'attach_handles')

    name: orm.Mapped[str] = base.fact(
        sa.String(255), unique=True, doc='The name of the resource provider.'
    )
    # What the driver calls it, without the address of the device: it stays if the card moves.
    label: orm.Mapped[str] = base.fact(
        sa.String(255), server_default=sa.text("''"), default='', hidden=True
    )
    driver_name: orm.Mapped[str] = base.fact(
        sa.String(100), doc='The driver that found the device.'
    )
    rp_uuid: orm.Mapped[str] = base.own(
        sa.String(36), unique=True, doc='The UUID of the resource provider.'
    )
    # What Placement was, or is to be, told of the provider.
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
        handle_count: int  # counted by the query, see the end of this module

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

    # The attributes are the one place where class and traits are kept.

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
    """Something to know of a deployable: its resource class, a trait, or what an operator adds."""

    __tablename__ = 'attributes'
    __table_args__ = (
        sa.UniqueConstraint('deployable_id', 'key'),
        # Accelerators of a class are found by it, in the order of their deployables.
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
    # True for what an operator added through the API: no report takes it away.
    added: orm.Mapped[bool] = base.own(sa.Boolean, default=False, hidden=True)

    @property
    def is_trait(self) -> bool:
        return self.key.startswith('trait')

    @property
    def identity(self) -> str:
        """A driver's trait is told by its value: its number is any that is unused.

        An operator's is another one, even of the same value: either may go, and the other stays.
        """
        by_value = self.is_trait and not self.added
        return base.as_text(['trait', self.value] if by_value else [self.key])

    @property
    def reported(self) -> bool:
        return not self.added


class AttachHandle(base.Base):
    """What a hypervisor or a container runtime needs to attach one accelerator."""

    __tablename__ = 'attach_handles'

    attach_type: orm.Mapped[str] = base.fact(sa.String(16))
    attach_info: orm.Mapped[dict[str, str]] = base.fact(sa.JSON)
    # In which form the card is given out by it: whole, vf, mdev and so on. A card is held in one
    # form at a time: while any of its handles is held, those of other forms are not free.
    form: orm.Mapped[str] = base.fact(sa.String(32), server_default=PART)
    # The IOMMU group of the function: all that is in one goes to one instance.
    iommu_group: orm.Mapped[str | None] = base.fact(sa.String(32))
    deployable_id: orm.Mapped[int] = base.link('deployables.id')
    # True for a handle that a request still holds, and that the last report lacks.
    lost: orm.Mapped[bool] = base.own(sa.Boolean, default=False, hidden=True)

    deployable: orm.Mapped[Deployable] = orm.relationship(back_populates='attach_handles')
    # Deleting a handle that a request holds is an error, not a way to take it away.
    arq: orm.Mapped[ARQ | None] = orm.relationship(
        back_populates='attach_handle', uselist=False, passive_deletes='all'
    )

    @property
    def location(self) -> str:
        """What it attaches, in one spelling: two handles of one location are one accelerator."""
        return base.as_text([pci.function(self.attach_info), pci.rest(self.attach_info)])

    @property
    def identity(self) -> str:
        """Which accelerator of its card it is: the same wherever the card is."""
        function, card = pci.function(self.attach_info), self._card
        if function is None or card is None or function[0] != card[0]:
            return self.location
        return base.as_text([function[1] - card[1], pci.rest(self.attach_info)])

    @property
    def default_form(self) -> str:
        """The form of a handle whose driver does not say: the whole card if it is its function."""
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

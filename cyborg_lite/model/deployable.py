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


class Deployable(base.Base):
    """The part of a device that is given out as one kind of resource: a resource provider."""

    __tablename__ = 'deployables'
    keys = ('name',)
    parts = ('attributes', 'attach_handles')

    name: orm.Mapped[str] = base.fact(
        sa.String(255), unique=True, doc='The name of the resource provider.'
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
    attach_handles: orm.Mapped[list[AttachHandle]] = base.parts('AttachHandle')
    if typing.TYPE_CHECKING:
        handle_count: int  # counted by the query, see the end of this module

    @base.shown
    def parent_id(self) -> str | None:
        """Always null: a deployable has no parent."""
        return None

    @base.shown
    def root_id(self) -> str | None:
        """Always null: a deployable has no parent."""
        return None

    @base.shown
    def num_accelerators(self) -> int:
        """How many accelerators the deployable has, free or not."""
        return self.handle_count

    @base.shown
    def attributes_list(self) -> str:
        """The attributes: a JSON list of objects of one key each, as text."""
        return base.as_text([{a.key: a.value} for a in self.attributes])

    # The attributes are the one place where class and traits are kept.

    @property
    def resource_class(self) -> str | None:
        return next((a.value for a in self.attributes if a.key == 'rc'), None)

    @resource_class.setter
    def resource_class(self, value: str) -> None:
        self.attributes.append(Attribute(key='rc', value=value))

    @property
    def traits(self) -> list[str]:
        return sorted({a.value for a in self.attributes if a.key.startswith('trait')})

    @traits.setter
    def traits(self, values: typing.Iterable[str]) -> None:
        for number, value in enumerate(sorted(set(values))):
            self.attributes.append(Attribute(key=f'trait{number}', value=value))


class Attribute(base.Base):
    """Something to know of a deployable: its resource class, a trait, or what an operator adds."""

    __tablename__ = 'attributes'
    __table_args__ = (sa.UniqueConstraint('deployable_id', 'key'),)
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
    def reported(self) -> bool:
        return not self.added


class AttachHandle(base.Base):
    """What a hypervisor or a container runtime needs to attach one accelerator."""

    __tablename__ = 'attach_handles'
    keys = ('attach_info',)

    attach_type: orm.Mapped[str] = base.fact(sa.String(16))
    attach_info: orm.Mapped[dict[str, str]] = base.fact(sa.JSON)
    deployable_id: orm.Mapped[int] = base.link('deployables.id')
    # True for a handle that a request still holds, and that the last report lacks.
    lost: orm.Mapped[bool] = base.own(sa.Boolean, default=False, hidden=True)

    # Deleting a handle that a request holds is an error, not a way to take it away.
    arq: orm.Mapped[ARQ | None] = orm.relationship(
        back_populates='attach_handle', uselist=False, passive_deletes='all'
    )

    @property
    def identity(self) -> str:
        """The accelerator in one spelling: what an older release stored may have another."""
        try:
            return base.as_text(pci.canonical_info(self.attach_info))
        except (TypeError, ValueError):
            return super().identity


Deployable.handle_count = orm.column_property(  # type: ignore[assignment]
    sa.select(sa.func.count(AttachHandle.id))
    .where(AttachHandle.deployable_id == Deployable.id)
    .correlate_except(AttachHandle)
    .scalar_subquery()
)

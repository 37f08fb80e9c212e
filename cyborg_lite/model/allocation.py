# SPDX-License-Identifier: Apache-2.0
"""Allocations: accelerators that one consumer holds together."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base
from cyborg_lite.model import device as devices
from cyborg_lite.model.arq import ARQ
from cyborg_lite.model.deployable import AttachHandle
from cyborg_lite.model.deployable import Deployable
from cyborg_lite.model.device import Device
from cyborg_lite.model.host import Host


class Allocation(base.Base):
    """A set of accelerator requests that are placed and bound together, all or none."""

    __tablename__ = 'allocations'
    __table_args__ = (
        sa.UniqueConstraint('project_id', 'active_name'),
        sa.UniqueConstraint('project_id', 'idempotency_key'),
        sa.Index(None, 'state', 'lease_ends_at'),
        sa.Index(None, 'project_id', 'name'),
    )

    STATES: typing.ClassVar = ('active', 'released')

    name: orm.Mapped[str | None] = base.own(
        sa.String(255),
        doc='The name; null if none was given. A project has at most one active allocation of a '
        'name.',
    )
    state: orm.Mapped[str] = base.own(
        sa.String(16),
        default='active',
        doc='``active``, or ``released`` when it holds nothing any more.',
    )
    project_id: orm.Mapped[str] = base.own(
        sa.String(255), doc='The project that owns the allocation.'
    )
    profile: orm.Mapped[str | None] = base.own(
        sa.String(255),
        doc='The name of the device profile that the accelerators were chosen by; null if it was '
        'by groups.',
    )
    groups: orm.Mapped[list[dict[str, typing.Any]]] = base.own(
        sa.JSON,
        doc='The groups that the accelerators were chosen by: objects of ``resources`` and '
        '``traits``.',
    )
    consumer_type: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    consumer_id: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    lease: orm.Mapped[int | None] = base.own(
        sa.Integer, doc='The length of the lease in seconds; null if it has no end.'
    )
    lease_ends_at: orm.Mapped[datetime.datetime | None] = base.own(
        base.Moment, doc='When the lease ends, ISO 8601, UTC; null if it has no end.'
    )
    released_at: orm.Mapped[datetime.datetime | None] = base.own(
        base.Moment, index=True, doc='When it was released, ISO 8601, UTC; null while it is active.'
    )
    accelerators: orm.Mapped[list[dict[str, typing.Any]]] = base.own(
        sa.JSON,
        doc='The accelerators, in the order of the groups, as they were when they were bound.',
    )
    # Why it was released; null while it is active.
    cause: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    # The name while it is active, null afterwards: unique, so that a name can be used again.
    active_name: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    # A client that repeats a request sends the same key, and gets the same allocation.
    idempotency_key: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    # A digest of the request: the same key with another request is an error of the client.
    digest: orm.Mapped[str] = base.own(sa.String(64), hidden=True)

    if typing.TYPE_CHECKING:
        trouble: str | None  # found by the query, see the end of this module

    reason = base.shown(
        str,
        'cause',
        'trouble',
        make=lambda cause, trouble: cause or trouble,
        nullable=True,
        doc='Why it was released, or why one of its accelerators cannot be used now; else null.',
    )
    consumer = base.shown(
        dict,
        'consumer_type',
        'consumer_id',
        make=lambda type_, id: {'type': type_, 'id': id} if type_ and id else None,
        nullable=True,
        doc='Who uses the accelerators: an object of ``type`` and ``id``; null if nobody was '
        'named.',
    )


_said = sa.case(
    (AttachHandle.lost, 'is lost: its host does not report it any more'),
    *(
        (each.holds(Device, Host), 'cannot be used: its device ' + each.words(Device, Host))
        for each in devices.OBSTACLES
    ),
)

Allocation.trouble = orm.column_property(  # type: ignore[assignment]
    sa.select(sa.func.min('Accelerator ' + AttachHandle.uuid + ' ' + _said + '.'))
    .select_from(ARQ)
    .join(AttachHandle, AttachHandle.id == ARQ.attach_handle_id)
    .join(Deployable, Deployable.id == AttachHandle.deployable_id)
    .join(Device, Device.id == Deployable.device_id)
    .join(Host, Host.name == Device.hostname)
    .where(ARQ.allocation_uuid == Allocation.uuid)
    .correlate_except(ARQ, AttachHandle, Deployable, Device, Host)
    .scalar_subquery()
)

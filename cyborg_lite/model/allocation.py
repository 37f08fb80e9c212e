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
from cyborg_lite.model.promise import Promise


def _idle(
    told: bool, since: datetime.datetime | None, until: datetime.datetime | None
) -> str | None:
    """What the holder of an idle allocation is told; None if nothing is told."""
    if not told or since is None:
        return None
    then = f', and is released at {base.iso(until)} unless it is used' if until else ''
    return f'It has done no work since {base.iso(since)}{then}.'


class Allocation(base.Base):
    """A set of accelerator requests that are placed and bound together, all or none."""

    __tablename__ = 'allocations'
    __table_args__ = (
        sa.UniqueConstraint('project_id', 'active_name'),
        sa.UniqueConstraint('project_id', 'idempotency_key'),
        sa.Index(None, 'state', 'lease_ends_at'),
        sa.Index(None, 'project_id', 'name'),
    )

    STATES: typing.ClassVar = ('queued', 'reserved', 'active', 'released')
    #: The type of a consumer that is a process of a host; only agents set it.
    PROCESS: typing.ClassVar = 'local_process'
    #: The columns of one that is not idle.
    BUSY: typing.ClassVar = {'idle_since': None, 'idle_told': False, 'idle_until': None}
    #: The texts in which users say who they are, and what for, as JSON schemas.
    LABELS: typing.ClassVar = {
        field: {
            'type': 'string',
            'minLength': 1,
            'maxLength': most,
            'description': f'1 to {most} printable characters, with no blank at either end',
        }
        for field, most in (('claimed_name', 64), ('note', 255))
    }

    name: orm.Mapped[str | None] = base.own(
        sa.String(255),
        doc='The name; null if none was given. A project has at most one allocation of a name that '
        'is queued or active.',
    )
    state: orm.Mapped[str] = base.own(
        sa.String(16),
        default='active',
        doc='``queued`` while it waits for accelerators, ``reserved`` until its reservation '
        'starts, ``active``, or ``released`` when it holds nothing any more.',
    )
    project_id: orm.Mapped[str] = base.own(
        sa.String(255), doc='The project that owns the allocation.'
    )
    user_name: orm.Mapped[str | None] = base.own(
        sa.String(255),
        doc='The user who created the allocation: the name, or the id if no name is known; '
        '``admin`` without authentication; null if it was created by an earlier release.',
    )
    claimed_name: orm.Mapped[str | None] = base.own(
        sa.String(64),
        doc='The name that the user gave, to tell people apart who share a login: it proves '
        'nothing, and gives no rights; null if none was given.',
    )
    note: orm.Mapped[str | None] = base.own(
        sa.String(255), doc='What it is for, in words of the user; null if nothing was said.'
    )
    container: orm.Mapped[str | None] = base.own(
        sa.String(64),
        doc='The id of the container in which its agent saw the process that holds it, as the '
        'control group names it; null if it is in none, or if no process holds it.',
    )
    profile: orm.Mapped[str | None] = base.own(
        sa.String(255),
        doc='The name of the device profile that the accelerators were chosen by; null if it was '
        'by groups.',
    )
    groups: orm.Mapped[list[dict[str, typing.Any]]] = base.own(
        sa.JSON,
        doc='The groups that the accelerators were chosen by: objects of ``resources`` and '
        '``traits``. While it is queued, those of the first alternative.',
    )
    consumer_type: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    consumer_id: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    lease: orm.Mapped[int | None] = base.own(
        sa.Integer, doc='The length of the lease in seconds; null if it has no end.'
    )
    lease_ends_at: orm.Mapped[datetime.datetime | None] = base.own(
        base.Moment,
        doc='When the lease ends, ISO 8601, UTC; null if it has no end, and while it is queued.',
    )
    starts_at: orm.Mapped[datetime.datetime | None] = base.own(
        base.Moment, doc='When its reservation starts, ISO 8601, UTC; null if it is none.'
    )
    claim_by: orm.Mapped[datetime.datetime | None] = base.own(
        base.Moment,
        doc='When an active reservation is released if no process has leased from it until then, '
        'ISO 8601, UTC; null if that does not happen.',
    )
    reservation_uuid: orm.Mapped[str | None] = base.own(
        sa.String(36),
        index=True,
        doc='The reservation whose accelerators it uses; null if they are its own. It ends with '
        'the reservation at the latest.',
    )
    released_at: orm.Mapped[datetime.datetime | None] = base.own(
        base.Moment, index=True, doc='When it was released, ISO 8601, UTC; null until then.'
    )
    accelerators: orm.Mapped[list[dict[str, typing.Any]]] = base.own(
        sa.JSON,
        doc='The accelerators, in the order of the groups, as they were when they were bound.',
    )
    priority: orm.Mapped[int] = base.own(
        sa.Integer,
        server_default='0',
        default=0,
        doc='Its priority in the queue, from -100 to 100: higher ones are served first.',
    )
    idle_since: orm.Mapped[datetime.datetime | None] = base.own(
        base.Moment,
        doc='Since when none of its accelerators does any work, ISO 8601, UTC; null if one does, '
        'if that is not long ago, or if it is unknown.',
    )
    # Whether its holder has been told that it is idle, and when it is released; null for never.
    idle_told: orm.Mapped[bool] = base.own(
        sa.Boolean, server_default=sa.false(), default=False, hidden=True
    )
    idle_until: orm.Mapped[datetime.datetime | None] = base.own(base.Moment, hidden=True)
    # Why it was released, or why it is queued; null while it is active.
    cause: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    # The name until the release, null afterwards: the unique key allows the reuse of a name.
    active_name: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    # The key of idempotent requests: a repeated request gets the same allocation.
    idempotency_key: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    # A digest of the request: the same key with another request is a client error.
    digest: orm.Mapped[str] = base.own(sa.String(64), hidden=True)
    # The resource class of its queue, and the number of accelerators in its first alternative.
    queue: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)
    amount: orm.Mapped[int | None] = base.own(sa.Integer, hidden=True)
    # The request, while it is queued; null once it is served or released.
    wish: orm.Mapped[dict[str, typing.Any] | None] = base.own(
        sa.JSON(none_as_null=True), hidden=True, deferred=True
    )
    # Whether the quota of its project was exhausted when the queue last reached it.
    over_quota: orm.Mapped[bool] = base.own(
        sa.Boolean, server_default=sa.false(), default=False, hidden=True
    )

    if typing.TYPE_CHECKING:
        # found by the query, see the end of this module
        trouble: str | None
        needed_at: datetime.datetime | None

    reason = base.shown(
        str,
        'cause',
        'trouble',
        'needed_at',
        'idle_told',
        'idle_since',
        'idle_until',
        make=lambda cause, trouble, needed_at, told, since, until: (
            _reason(cause, trouble, needed_at) or _idle(told, since, until)
        ),
        nullable=True,
        doc='The reason why it waits, was released, has an unusable accelerator, or may hold one '
        'that a reservation needs, or that it is idle; or null.',
    )
    # Computed only for rows that are shown: see cyborg_lite.db.queue.
    position = base.shown(
        int,
        'id',
        make=lambda _: None,
        nullable=True,
        doc='Its position in the queue of its resource class, from 1; null unless it is queued.',
    )
    hosts = base.shown(
        list,
        'wish',
        make=lambda wish: wish and wish['hosts'],
        nullable=True,
        doc='The only hosts that may serve it, while it is queued or reserved; null for all, and '
        'in other states.',
    )
    consumer = base.shown(
        dict,
        'consumer_type',
        'consumer_id',
        make=lambda type_, id: {'type': type_, 'id': id} if type_ and id else None,
        nullable=True,
        doc='The user of the accelerators: an object of ``type`` and ``id``; null if none was '
        'named.',
    )

    @property
    def idleness(self) -> str | None:
        """What its holder is told while it is idle; None if nothing is told."""
        return _idle(self.idle_told, self.idle_since, self.idle_until)

    @classmethod
    def wrong_label(cls, given: dict[str, typing.Any]) -> str | None:
        """The error for a label that cannot be shown as it is; None if all can.

        Text that is not printable may move the cursor, or turn what is around it.

        :param given: texts by field, which fit the schemas.
        """
        for field, schema in cls.LABELS.items():
            text = given.get(field, '')
            if not text.isprintable() or text != text.strip():
                return f'Invalid {field}: expected {schema["description"]}.'
        return None


def _reason(
    cause: str | None, trouble: str | None, needed_at: datetime.datetime | None
) -> str | None:
    if cause or trouble or needed_at is None:
        return cause or trouble
    return f'It has no end, and accelerators of it are reserved from {base.iso(needed_at)}.'


_said = sa.case(
    (AttachHandle.lost, 'is lost: its host does not report it any more'),
    *(
        (each.holds(Device, Host), 'cannot be used: its device ' + each.words(Device, Host))
        for each in devices.OBSTACLES
        # The health policy decides whether holders are notified of a fault.
        if each.state != 'faulty'
    ),
    (Device.alerted, 'has a device that is not well (' + Device.fault + ')'),
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

#: When a reservation needs something that an allocation without an end holds.
Allocation.needed_at = orm.column_property(  # type: ignore[assignment]
    sa.select(sa.func.min(Promise.starts_at))
    .select_from(ARQ)
    .join(AttachHandle, AttachHandle.id == ARQ.attach_handle_id)
    .join(Promise, Promise.accelerator_uuid == AttachHandle.uuid)
    .where(ARQ.allocation_uuid == Allocation.uuid, Allocation.lease_ends_at.is_(None))
    .correlate_except(ARQ, AttachHandle, Promise)
    .scalar_subquery()
)

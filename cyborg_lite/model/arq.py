# SPDX-License-Identifier: Apache-2.0
"""Accelerator requests."""

from __future__ import annotations

import datetime
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base

if typing.TYPE_CHECKING:
    from cyborg_lite.model.deployable import AttachHandle
    from cyborg_lite.model.profile import DeviceProfile


#: The fields of a move that name the target of a bind.
PLACE = ('hostname', 'device_rp_uuid', 'instance_uuid', 'accelerator_uuid')


class ARQ(base.Base):
    """An accelerator request: it asks for one accelerator, and links to it once it is bound."""

    __tablename__ = 'accelerator_requests'

    __table_args__ = (sa.Index(None, 'instance_uuid', 'ordinal', unique=True),)
    #: the states without further work in progress
    RESOLVED: typing.ClassVar = ('Bound', 'BindFailed', 'Deleting')
    #: How many of its last moves are stored.
    REMEMBERED: typing.ClassVar = 32

    state: orm.Mapped[str] = base.own(
        sa.String(16),
        default='Initial',
        doc='Initial, BindStarted, Bound, Unbound, BindFailed, UnbindFailed or Deleting.',
    )
    device_profile_id: orm.Mapped[int] = base.link('device_profiles.id')
    device_profile_group_id: orm.Mapped[int] = base.own(
        sa.Integer, default=0, doc='The number of the group in the device profile, from 0.'
    )
    hostname: orm.Mapped[str | None] = base.own(
        sa.String(255), doc='The host to bind on, as the client named it; null until then.'
    )
    device_rp_uuid: orm.Mapped[str | None] = base.own(
        sa.String(36), doc='The resource provider to bind from; null until then.'
    )
    instance_uuid: orm.Mapped[str | None] = base.own(
        sa.String(36), index=True, doc='The instance that holds the accelerator; null if none.'
    )
    # Its number among the requests of one bind call, unique for each instance: of two concurrent
    # bind calls for one instance the database refuses one. Null unless it is bound.
    ordinal: orm.Mapped[int | None] = base.own(sa.Integer, hidden=True)
    # Its allocation, which alone frees it; null if it is not part of one.
    allocation_uuid: orm.Mapped[str | None] = base.own(sa.String(36), index=True, hidden=True)
    project_id: orm.Mapped[str] = base.own(
        sa.String(255), index=True, doc='The project that owns the request.'
    )
    # Counts its moves. A call sends the revision that it saw, so a stale call changes nothing.
    revision: orm.Mapped[int] = base.own(sa.Integer, server_default='0', default=0, hidden=True)
    # Its last moves, the oldest first; null before the first. The statement that moves the request
    # writes them; they are read only on demand.
    moves: orm.Mapped[list[dict[str, typing.Any]] | None] = base.own(
        sa.JSON(none_as_null=True), hidden=True, deferred=True
    )
    # Unique: this link means "held", so the database prevents a double allocation.
    attach_handle_id: orm.Mapped[int | None] = base.link('attach_handles.id', unique=True)
    # The time of the bind, and the resource class then: usage and quotas are counted by them.
    held_since: orm.Mapped[datetime.datetime | None] = base.own(base.Moment, hidden=True)
    resource_class: orm.Mapped[str | None] = base.own(sa.String(255), hidden=True)

    # Whether any allocation is queued or reserved, if the query asked for it.
    awaited: orm.Mapped[bool | None] = orm.query_expression()

    device_profile: orm.Mapped[DeviceProfile] = orm.relationship(lazy='joined', innerjoin=True)
    attach_handle: orm.Mapped[AttachHandle | None] = orm.relationship(
        back_populates='arq', lazy='joined'
    )

    device_profile_name = base.shown(
        str,
        'device_profile.name',
        doc='The name of the device profile that the request was made from.',
    )
    attach_handle_type = base.shown(
        str,
        'attach_handle.attach_type',
        make=lambda type_: type_ or '',
        doc='How to attach the accelerator, PCI and so on; empty until bound.',
    )
    attach_handle_uuid = base.shown(
        str,
        'attach_handle.uuid',
        nullable=True,
        doc='The UUID of the attach handle; null until bound.',
    )
    attach_handle_info = base.shown(
        dict,
        'attach_handle.attach_info',
        make=lambda info: info or {},
        doc='What to attach, for PCI domain, bus, device and function; empty until bound.',
    )

    @classmethod
    def visible(
        cls, project: str | sa.BindParameter[str] | None, vouched: bool = False
    ) -> sa.ColumnElement[bool]:
        """The condition that a caller may see a request.

        :param project: the caller's project; None for a caller that sees all.
        :param vouched: whether a service token came with the call: services see requests of
            all instances.
        """
        if project is None:
            return sa.true()
        own = cls.project_id == project
        return sa.or_(own, cls.instance_uuid.is_not(None)) if vouched else own

    @classmethod
    def holds_since(cls) -> sa.ColumnElement[datetime.datetime]:
        """The time since when a request holds its accelerator.

        The previous release, which may still run, does not store it.
        """
        return sa.func.coalesce(cls.held_since, cls.updated_at, cls.created_at)

    def moved(
        self,
        state: str,
        reason: str | None,
        request: str | None,
        at: datetime.datetime | None = None,
        **place: str | None,
    ) -> list[dict[str, typing.Any]]:
        """The moves of this request, with one more.

        :param reason: why it could not be bound, if so.
        :param request: the id of the API request.
        :param at: the time of the move; now by default.
        :param place: the known fields of PLACE.
        """
        move = {'at': base.iso(at or timeutils.utcnow()), 'state': state, 'reason': reason}
        move |= {name: place.get(name) for name in PLACE} | {'request_id': request}
        return [*(self.moves or ()), move][-self.REMEMBERED :]

    @property
    def history(self) -> list[dict[str, typing.Any]]:
        """Its creation, and its last moves."""
        move = {'at': base.iso(self.created_at), 'state': 'Initial', 'reason': None}
        created = move | dict.fromkeys((*PLACE, 'request_id'))
        return [created, *(self.moves or ())]

# SPDX-License-Identifier: Apache-2.0
"""Usage: which project held which accelerators for how long."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Usage(base.Base):
    """A finished interval in which a request held an accelerator.

    A row is written once, in the transaction that frees the accelerator. Only the name of its
    host changes, when that is renamed: another machine may get the old name. It has no links to
    other rows, as they may be deleted earlier. An open interval is not stored: it follows from
    the request.
    """

    __tablename__ = 'usages'
    __table_args__ = (
        sa.Index(None, 'ended_at'),
        sa.Index(None, 'project_id', 'ended_at'),
        # For renames of hosts.
        sa.Index(None, 'host'),
    )

    #: the keys for groups and filters of usage
    KEYS: typing.ClassVar = ('project_id', 'resource_class', 'host')

    # The API never names an interval, and its end is the time of the insert.
    uuid = None  # type: ignore[assignment]
    created_at = None  # type: ignore[assignment]
    updated_at = None

    project_id: orm.Mapped[str] = base.own(
        sa.String(255), doc='The project of the request that held it.'
    )
    # Null if the deployable had none.
    resource_class: orm.Mapped[str | None] = base.own(
        sa.String(255), doc='The resource class, as it was when the request was bound.'
    )
    host: orm.Mapped[str] = base.own(
        sa.String(255), doc='The host that it was in; the new name if that was renamed.'
    )
    device_uuid: orm.Mapped[str] = base.own(sa.String(36), doc='The UUID of its device.')
    accelerator_uuid: orm.Mapped[str] = base.own(sa.String(36), doc='The UUID of the accelerator.')
    arq_uuid: orm.Mapped[str] = base.own(sa.String(36), doc='The request that held it.')
    allocation_uuid: orm.Mapped[str | None] = base.own(
        sa.String(36), doc='The allocation that held it; null if none did.'
    )
    instance_uuid: orm.Mapped[str | None] = base.own(
        sa.String(36), doc='The instance that held it; null if none did.'
    )
    began_at: orm.Mapped[datetime.datetime] = base.own(base.Moment, doc='When it was bound.')
    ended_at: orm.Mapped[datetime.datetime] = base.own(base.Moment, doc='When it was freed.')

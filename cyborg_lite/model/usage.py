# SPDX-License-Identifier: Apache-2.0
"""What was held, by whom, and for how long."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Usage(base.Base):
    """An interval in which a request held an accelerator, and that is over.

    A row is written once, in the transaction that frees the accelerator. It refers to no other row,
    since it outlives them all. An interval that is not over is not stored: it follows from the
    request that holds.
    """

    __tablename__ = 'usages'
    __table_args__ = (
        sa.Index(None, 'ended_at'),
        sa.Index(None, 'project_id', 'ended_at'),
        # For a host that is renamed.
        sa.Index(None, 'host'),
    )

    #: by what usage can be grouped and filtered
    KEYS: typing.ClassVar = ('project_id', 'resource_class', 'host')

    # No client names an interval, and its end is when it was written.
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

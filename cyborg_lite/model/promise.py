# SPDX-License-Identifier: Apache-2.0
"""Promises: which accelerators are kept for a reservation, from when until when."""

from __future__ import annotations

import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Promise(base.Base):
    """An accelerator that is kept for an allocation that is ``reserved``.

    Named accelerators are kept, and not a number of them: two reservations overlap if and only if
    they name one accelerator, which a lock of its host decides exactly, and a set in one NUMA node
    or of linked cards still is one when the reservation starts.

    A row has no links to other rows: an accelerator that is not reported any more is deleted, and
    the reservation is given another one.
    """

    __tablename__ = 'promises'
    __table_args__ = (sa.Index(None, 'device_uuid', 'starts_at'),)

    # The API never names a promise.
    uuid = None  # type: ignore[assignment]
    created_at = None  # type: ignore[assignment]
    updated_at = None

    allocation_uuid: orm.Mapped[str] = base.own(
        sa.String(36), index=True, doc='The allocation that is reserved.'
    )
    accelerator_uuid: orm.Mapped[str] = base.own(sa.String(36), index=True, doc='The accelerator.')
    device_uuid: orm.Mapped[str] = base.own(sa.String(36), doc='Its device.')
    # A card is held in one form at a time: see cyborg_lite.db.exclusion.
    form: orm.Mapped[str] = base.own(sa.String(32), doc='Its form.')
    starts_at: orm.Mapped[datetime.datetime] = base.own(base.Moment, doc='Since when it is kept.')
    ends_at: orm.Mapped[datetime.datetime] = base.own(base.Moment, doc='Until when it is kept.')

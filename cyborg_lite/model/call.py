# SPDX-License-Identifier: Apache-2.0
"""Calls that a conductor has completed."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Call(base.Base):
    """A completed call over the bus, by its uuid, stored in the transaction of its changes.

    This makes calls idempotent: a second delivery finds the row, and returns the first answer.
    """

    __tablename__ = 'calls'
    __table_args__ = (sa.Index(None, 'created_at'),)

    #: How long it is stored: longer than any retry, and than the life of any message.
    KEPT: typing.ClassVar = datetime.timedelta(hours=1)

    answer: orm.Mapped[typing.Any] = base.own(sa.JSON, nullable=True, hidden=True)

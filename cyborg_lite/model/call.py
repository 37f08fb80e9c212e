# SPDX-License-Identifier: Apache-2.0
"""What a conductor has done already."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Call(base.Base):
    """A call over the bus that was carried out, by its uuid: written with what it changed.

    Who carries it out once more finds it, and answers as the first time.
    """

    __tablename__ = 'calls'
    __table_args__ = (sa.Index(None, 'created_at'),)

    #: How long it is remembered: longer than any retry and any message take.
    KEPT: typing.ClassVar = datetime.timedelta(hours=1)

    answer: orm.Mapped[typing.Any] = base.own(sa.JSON, nullable=True, hidden=True)

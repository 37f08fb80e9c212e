# SPDX-License-Identifier: Apache-2.0
"""Instances that once held accelerators."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Instance(base.Base):
    """Whose an instance of Nova is: written when it gives accelerators back; by its uuid."""

    __tablename__ = 'instances'
    __table_args__ = (sa.Index(None, 'created_at'),)

    #: How long it is remembered: one that gets accelerators again later belongs to whoever asks.
    KEPT: typing.ClassVar = datetime.timedelta(days=365)

    project_id: orm.Mapped[str] = base.own(sa.String(255), hidden=True)

# SPDX-License-Identifier: Apache-2.0
"""Instances that held accelerators."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Instance(base.Base):
    """The project of an instance of Nova, by its uuid: stored when it releases accelerators."""

    __tablename__ = 'instances'
    __table_args__ = (sa.Index(None, 'created_at'),)

    #: How long it is stored: an instance that binds later belongs to the caller's project.
    KEPT: typing.ClassVar = datetime.timedelta(days=365)

    project_id: orm.Mapped[str] = base.own(sa.String(255), hidden=True)

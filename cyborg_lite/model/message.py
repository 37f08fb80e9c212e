# SPDX-License-Identifier: Apache-2.0
"""What another service has still to be told."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Message(base.Base):
    """Something that another service is still to be told."""

    __tablename__ = 'messages'
    __table_args__ = (sa.UniqueConstraint('kind', 'key'),)

    kind: orm.Mapped[str] = base.own(sa.String(16), hidden=True)
    key: orm.Mapped[str] = base.own(sa.String(36), hidden=True)
    payload: orm.Mapped[dict[str, typing.Any]] = base.own(sa.JSON, default=dict, hidden=True)
    attempts: orm.Mapped[int] = base.own(sa.Integer, default=0, hidden=True)
    due_at: orm.Mapped[datetime.datetime] = base.own(base.Moment, index=True, hidden=True)
    # Another one whenever the message is replaced: who has sent the old one must not delete it.
    stamp: orm.Mapped[str] = base.own(sa.String(36), hidden=True)
    # Another one whenever it is taken to be sent; null while nobody sends it.
    lease: orm.Mapped[str | None] = base.own(sa.String(36), hidden=True)

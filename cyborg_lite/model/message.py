# SPDX-License-Identifier: Apache-2.0
"""Messages to other services that are not delivered yet."""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Message(base.Base):
    """A message that another service has not received yet."""

    __tablename__ = 'messages'
    __table_args__ = (sa.UniqueConstraint('kind', 'key'),)

    kind: orm.Mapped[str] = base.own(sa.String(16), hidden=True)
    key: orm.Mapped[str] = base.own(sa.String(36), hidden=True)
    payload: orm.Mapped[dict[str, typing.Any]] = base.own(sa.JSON, default=dict, hidden=True)
    attempts: orm.Mapped[int] = base.own(sa.Integer, default=0, hidden=True)
    due_at: orm.Mapped[datetime.datetime] = base.own(base.Moment, index=True, hidden=True)
    # It changes when the message is replaced: the sender of the old one must not delete the new.
    stamp: orm.Mapped[str] = base.own(sa.String(36), hidden=True)
    # The lease of the conductor that sends it; null while it is not being sent.
    lease: orm.Mapped[str | None] = base.own(sa.String(36), hidden=True)

# SPDX-License-Identifier: Apache-2.0
"""The machines whose agents report."""

from __future__ import annotations

import datetime
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext import hybrid

from cyborg_lite.model import base

if typing.TYPE_CHECKING:
    from cyborg_lite.model.device import Device


#: By how much the clocks of two conductors may differ, in seconds.
SKEW = 10
#: After how many report intervals without a report a host is down.
LATE = 2.5


class Host(base.Base):
    """A machine whose agent reports, with what is known of its last report."""

    __tablename__ = 'hosts'

    name: orm.Mapped[str] = base.own(sa.String(255), unique=True, doc='The name of the host.')
    boot_id: orm.Mapped[str] = base.own(sa.String(36), hidden=True)
    # Boots that are over: a report that was sent before a reboot may arrive after it.
    past_boots: orm.Mapped[list[str]] = base.own(sa.JSON, default=list, hidden=True)
    # Which start of the agent reported last: reports have an order within one only.
    agent: orm.Mapped[str | None] = base.own(sa.String(36), hidden=True)
    # Starts of the agent that are over, in this boot.
    past_agents: orm.Mapped[list[str] | None] = base.own(sa.JSON(none_as_null=True), hidden=True)
    # Which machine this is, whatever its name; null where it shows nothing that tells.
    machine: orm.Mapped[str | None] = base.own(sa.String(64), index=True, hidden=True)
    # The name under which the same machine has reported since: this one is its name no more.
    renamed_to: orm.Mapped[str | None] = base.own(sa.String(255), index=True, hidden=True)
    # After which reports under that name this one reported again: two machines do so in turn.
    returns: orm.Mapped[list[str] | None] = base.own(sa.JSON(none_as_null=True), hidden=True)
    # True once two hosts of this machine identity reported side by side: it tells nothing.
    cloned: orm.Mapped[bool] = base.own(sa.Boolean, server_default=sa.false(), hidden=True)
    sequence: orm.Mapped[int] = base.own(sa.BigInteger, default=0, hidden=True)
    # Null while the next report has to be read even if it is like the last one.
    digest: orm.Mapped[str | None] = base.own(sa.String(64), hidden=True)
    seen_at: orm.Mapped[datetime.datetime] = base.own(
        base.Moment, default=timeutils.utcnow, doc='When the host last reported, ISO 8601, UTC.'
    )
    # How often the host means to report, in seconds.
    interval: orm.Mapped[int] = base.own(sa.Integer, default=20, hidden=True)
    # True once a conductor has noticed that the host is down.
    silent: orm.Mapped[bool] = base.own(sa.Boolean, server_default=sa.false(), hidden=True)
    drivers: orm.Mapped[dict[str, base.Facts]] = base.own(
        sa.JSON,
        default=dict,
        doc='The drivers by name, each with its state (``ok`` or ``degraded``), the reason, and '
        'the number of devices that it found.',
    )

    # By driver, the last look that a report told of: it may tell of one again.
    looks: orm.Mapped[dict[str, typing.Any] | None] = base.own(
        sa.JSON(none_as_null=True), hidden=True
    )

    found: orm.Mapped[list[Device]] = orm.relationship(back_populates='host', order_by='Device.id')

    @staticmethod
    def alive_since(interval: int) -> datetime.datetime:
        """A host with this report interval is down if it has not reported since then."""
        return timeutils.utcnow() - datetime.timedelta(seconds=LATE * interval)

    @staticmethod
    def alive_until() -> datetime.datetime:
        """A report that is dated later counts for nothing: the clock that dated it was wrong."""
        return timeutils.utcnow() + datetime.timedelta(seconds=SKEW)

    @hybrid.hybrid_property
    def silent_now(self) -> bool:
        """Whether reports are overdue, or the last one is dated in the future."""
        return not self.alive_since(self.interval) <= self.seen_at <= self.alive_until()

    @silent_now.inplace.expression
    @classmethod
    def _silent_now(cls) -> sa.ColumnElement[bool]:
        age = base.Age(cls.seen_at)
        return sa.or_(age > LATE * cls.interval, age < -SKEW)

    @classmethod
    def is_down(cls) -> sa.ColumnElement[bool]:
        """That a host is shown as ``down``."""
        return sa.or_(cls.renamed_to.is_not(None), cls.silent_now)

    state = base.shown(
        str,
        'renamed_to',
        'silent_now',
        make=lambda renamed_to, silent: 'down' if renamed_to or silent else 'up',
        doc='``up``, or ``down`` when two reports in a row have not come.',
    )
    devices = base.shown(list, 'found.uuid', doc='The UUIDs of the devices of the host.')

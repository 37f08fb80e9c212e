# SPDX-License-Identifier: Apache-2.0
"""Hosts: machines whose agents report."""

from __future__ import annotations

import datetime
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base

if typing.TYPE_CHECKING:
    from cyborg_lite.model.device import Device


#: The tolerated difference between the clocks of conductors, in seconds.
SKEW = 10
#: The number of report intervals without a report after which a host is down.
LATE = 2.5


class Host(base.Base):
    """A machine whose agent reports, with data of its last report."""

    __tablename__ = 'hosts'

    name: orm.Mapped[str] = base.own(sa.String(255), unique=True, doc='The name of the host.')
    boot_id: orm.Mapped[str] = base.own(sa.String(36), hidden=True)
    # Past boots: a stale report of an earlier boot may arrive after a reboot.
    past_boots: orm.Mapped[list[str]] = base.own(sa.JSON, default=list, hidden=True)
    # The start of the agent that reported last: only reports of one start have an order.
    agent: orm.Mapped[str | None] = base.own(sa.String(36), hidden=True)
    # Past starts of the agent, in this boot.
    past_agents: orm.Mapped[list[str] | None] = base.own(sa.JSON(none_as_null=True), hidden=True)
    # The identity of the machine, independent of its name; null if the machine has none.
    machine: orm.Mapped[str | None] = base.own(sa.String(64), index=True, hidden=True)
    # The digest of the agent's secret, from its first report on; null if the agent has none.
    secret: orm.Mapped[str | None] = base.own(sa.String(64), hidden=True)
    # The new name under which the same machine reports now.
    renamed_to: orm.Mapped[str | None] = base.own(sa.String(255), index=True, hidden=True)
    # The reports under the new name after which this name reported again: then two machines
    # report.
    returns: orm.Mapped[list[str] | None] = base.own(sa.JSON(none_as_null=True), hidden=True)
    # True once two hosts reported this machine identity at the same time: it is not unique.
    cloned: orm.Mapped[bool] = base.own(sa.Boolean, server_default=sa.false(), hidden=True)
    sequence: orm.Mapped[int] = base.own(sa.BigInteger, default=0, hidden=True)
    # Null if the next report must be processed even if it equals the last one.
    digest: orm.Mapped[str | None] = base.own(sa.String(64), hidden=True)
    seen_at: orm.Mapped[datetime.datetime] = base.own(
        base.Moment, default=base.now, doc='When the host last reported, ISO 8601, UTC.'
    )
    # The report interval of the host, in seconds.
    interval: orm.Mapped[int] = base.own(sa.Integer, default=20, hidden=True)
    # True once a conductor has noticed that the host is down. Nothing else compares clocks: after
    # an outage each host is overdue, and only a conductor knows since when it could take reports.
    silent: orm.Mapped[bool] = base.own(sa.Boolean, server_default=sa.false(), hidden=True)
    drivers: orm.Mapped[dict[str, base.Facts]] = base.own(
        sa.JSON,
        default=dict,
        doc='The drivers by name, each with its state (``ok`` or ``degraded``), the reason, and '
        'the number of devices that it found.',
    )
    access: orm.Mapped[str | None] = base.own(
        sa.String(16),
        doc='``acl`` if the kernel keeps users from devices that they have not leased, '
        '``advisory`` if nothing does; null if it is unknown.',
    )
    # For how many seconds a card has to do no work until the host reports it as idle; null if the
    # host does not.
    idle_after: orm.Mapped[int | None] = base.own(sa.Integer, hidden=True)

    # Whether its agent looks which processes have devices open.
    observes: orm.Mapped[bool] = base.own(
        sa.Boolean, server_default=sa.false(), default=False, hidden=True
    )
    # The last scan of each driver in a report: a later report may repeat it.
    looks: orm.Mapped[dict[str, typing.Any] | None] = base.own(
        sa.JSON(none_as_null=True), hidden=True
    )

    found: orm.Mapped[list[Device]] = orm.relationship(back_populates='host', order_by='Device.id')

    @staticmethod
    def alive_since(interval: int) -> datetime.datetime:
        """The time of the last report before which a host with this interval is down."""
        return timeutils.utcnow() - datetime.timedelta(seconds=LATE * interval)

    @staticmethod
    def alive_until() -> datetime.datetime:
        """The latest valid time of a report: a later one comes from a wrong clock."""
        return timeutils.utcnow() + datetime.timedelta(seconds=SKEW)

    @classmethod
    def is_down(cls) -> sa.ColumnElement[bool]:
        """The condition that a host is shown as ``down``."""
        return sa.or_(cls.renamed_to.is_not(None), cls.silent)

    state = base.shown(
        str,
        'renamed_to',
        'silent',
        make=lambda renamed_to, silent: 'down' if renamed_to or silent else 'up',
        doc='``up``, or ``down`` when two reports in a row have not come.',
    )
    devices = base.shown(list, 'found.uuid', doc='The UUIDs of the devices of the host.')

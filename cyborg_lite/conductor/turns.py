# SPDX-License-Identifier: Apache-2.0
"""One at a time changes what a host has, and what is held of it.

What is announced of a device follows from rows that several may change: a report, an order to
disable it, a conductor that finds its host silent.  Who waits for his turn sees all they have done.
"""

from __future__ import annotations

import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model

#: The hosts of deployables: which of them, is for a condition to say.
OF_DEPLOYABLES = sa.select(model.Device.hostname).join(model.Deployable)


def wait(session: orm.Session, hostnames: sa.Select[typing.Any]) -> list[str]:
    """Lock these hosts until the transaction ends, as a report locks its own; returns their names.

    What is read before may be out of date: wait first.
    """
    hosts = sa.select(model.Host.name).where(model.Host.name.in_(hostnames)).order_by(model.Host.id)
    return list(session.scalars(hosts.with_for_update()))

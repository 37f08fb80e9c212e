# SPDX-License-Identifier: Apache-2.0
"""Device profiles."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class DeviceProfile(base.Base):
    """A named list of groups of resources that a workload may ask for."""

    __tablename__ = 'device_profiles'

    name: orm.Mapped[str] = base.own(
        sa.String(255), unique=True, doc='The name, unique in the cloud.'
    )
    groups: orm.Mapped[list[dict[str, str]]] = base.own(
        sa.JSON, doc='The groups: objects of ``resources:``, ``trait:`` and ``accel:`` keys.'
    )
    # True for the groups of one allocation: no list shows it, and it is deleted with the
    # allocation.
    private: orm.Mapped[bool] = base.own(
        sa.Boolean, server_default=sa.false(), default=False, hidden=True
    )
    description: orm.Mapped[str | None] = base.own(sa.String(255), doc='The description.')

    # Whether any quota is set, if the query asked for it.
    limited: orm.Mapped[bool | None] = orm.query_expression()

    @staticmethod
    def resources(group: dict[str, str]) -> dict[str, int]:
        """The amount of each resource class in a group."""
        asked: dict[str, int] = {}
        for key, amount in group.items():
            prefix, _, name = key.partition(':')
            if prefix == 'resources':
                asked[name] = int(amount)
        return asked

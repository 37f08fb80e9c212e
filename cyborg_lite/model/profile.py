# SPDX-License-Identifier: Apache-2.0
"""What workloads may ask for."""

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
    # True for the groups that one allocation brought: no list shows it, and it goes with it.
    private: orm.Mapped[bool] = base.own(
        sa.Boolean, server_default=sa.false(), default=False, hidden=True
    )
    description: orm.Mapped[str | None] = base.own(sa.String(255), doc='The description.')

    # Whether any quota is set, where that was asked for with the row.
    limited: orm.Mapped[bool | None] = orm.query_expression()

    @staticmethod
    def resources(group: dict[str, str]) -> dict[str, int]:
        """How much of each resource class a group asks for."""
        asked: dict[str, int] = {}
        for key, amount in group.items():
            prefix, _, name = key.partition(':')
            if prefix == 'resources':
                asked[name] = int(amount)
        return asked

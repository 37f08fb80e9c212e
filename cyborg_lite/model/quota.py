# SPDX-License-Identifier: Apache-2.0
"""Quotas of accelerator requests."""

from __future__ import annotations

import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Quota(base.Base):
    """The limits of one project, or the default limits.

    The row is also the lock for the count of the project's requests: a project with only default
    limits has a row without limits.
    """

    __tablename__ = 'quotas'

    #: the name of the row of default limits
    DEFAULTS: typing.ClassVar = 'defaults'
    #: the key of the limit for all resource classes together
    TOTAL: typing.ClassVar = 'total'
    UNLIMITED: typing.ClassVar = -1

    project_id: orm.Mapped[str] = base.own(
        sa.String(255), unique=True, doc='The project; ``defaults`` for the default limits.'
    )
    limits: orm.Mapped[dict[str, int]] = base.own(
        sa.JSON,
        doc='The maximum number of accelerator requests of the project, by resource class and in '
        '``total``; -1 is unlimited. The default limits apply to absent keys.',
    )

    @property
    def revision(self) -> str:
        """When the limits were set.  A call sends what it saw, so a stale call changes nothing."""
        return (self.updated_at or self.created_at).isoformat()

# SPDX-License-Identifier: Apache-2.0
"""How much a project may ask for."""

from __future__ import annotations

import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base


class Quota(base.Base):
    """The limits of one project, or those of all projects that have none of their own.

    Its row is what is locked while accelerator requests of the project are counted: a project that
    has only the default limits gets a row without any.
    """

    __tablename__ = 'quotas'

    #: the project whose limits are those of all others
    DEFAULTS: typing.ClassVar = 'defaults'
    #: what limits accelerator requests of all resource classes together
    TOTAL: typing.ClassVar = 'total'
    UNLIMITED: typing.ClassVar = -1

    project_id: orm.Mapped[str] = base.own(
        sa.String(255), unique=True, doc='The project; ``defaults`` for the default limits.'
    )
    limits: orm.Mapped[dict[str, int]] = base.own(
        sa.JSON,
        doc='How many accelerator requests the project may have, by resource class and in '
        '``total``; -1 is unlimited. For what is not in it the default limits hold.',
    )

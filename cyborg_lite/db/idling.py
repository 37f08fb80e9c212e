# SPDX-License-Identifier: Apache-2.0
"""Since when what is held does no work.

A device may have been idle before it was given to its holder: both count from the later time.
"""

from __future__ import annotations

import datetime

from oslo_utils import timeutils
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.model import base


def since() -> sa.ColumnElement[datetime.datetime | None]:
    """Since when a request holds a device that does no work, by the rows of request, device and
    host; null if it does not, or if nothing is known of it.

    It is idle once that is as long ago as its host says: see :func:`is_long_ago`.
    """
    held, idle = model.ARQ.holds_since(), model.Device.idle_since
    known = sa.and_(
        model.ARQ.attach_handle_id.is_not(None), idle.is_not(None), ~model.Host.is_down()
    )
    return sa.case((sa.and_(known, idle > held), idle), (known, held))


def is_long_ago(since: datetime.datetime | None, after: int | None) -> bool:
    """Whether this is as many seconds ago as the host says that it takes to be idle."""
    if since is None or after is None:
        return False
    return since <= timeutils.utcnow() - datetime.timedelta(seconds=after)


def shown(since: datetime.datetime | None, after: int | None) -> str | None:
    """The time as the API shows it; None until it is long ago."""
    return base.iso(since) if since is not None and is_long_ago(since, after) else None

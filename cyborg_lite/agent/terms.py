# SPDX-License-Identifier: Apache-2.0
"""When leases and reservations start and end: conductors say it, in UTC."""

from __future__ import annotations

import collections.abc
import contextlib
import datetime
import math
import typing

from oslo_utils import timeutils


def away(rows: collections.abc.Iterable[dict[str, typing.Any]]) -> float:
    """The seconds until the next of these leases starts or ends.

    Conductors may be late: the longer ago it was, the rarer the comparisons.
    """
    found = [math.inf]
    for row in rows:
        for name in ('starts_at', 'lease_ends_at')[row['state'] != 'reserved' :]:
            # Conductors of the release before do not say both.
            with contextlib.suppress(LookupError, TypeError, ValueError):
                found.append(abs(until(row[name])))
    return min(found)


def until(moment: str) -> float:
    """The seconds until a time, ISO 8601; less than 0 if it has come.

    :raises ValueError: when it is not a time.
    """
    when = datetime.datetime.fromisoformat(moment).replace(tzinfo=None)
    return timeutils.delta_seconds(timeutils.utcnow(), when)

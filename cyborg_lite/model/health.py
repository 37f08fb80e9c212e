# SPDX-License-Identifier: Apache-2.0
"""The health of a device, with a code for the reason."""

from __future__ import annotations

import math
import re
import typing

OK, WARNING, CRITICAL, UNKNOWN = 'ok', 'warning', 'critical', 'unknown'
#: From the best to the worst.  UNKNOWN is worse than WARNING: a source without an answer may hide
#: a fault, so a critical card only recovers when its own source reports it as well.
LEVELS = (OK, WARNING, UNKNOWN, CRITICAL)
#: The form of a reason, which policies can name.
CODE = re.compile('[a-z0-9]+(_[a-z0-9]+)*')
#: The maximum length of a reason.
LONGEST = 64
#: The reason of a device with bad health and without a reason.
UNSPECIFIED = 'unspecified'


class Health(typing.NamedTuple):
    """The health of a device by one source."""

    level: str = UNKNOWN
    #: a code such as ``xid_79``; None for a healthy device
    reason: str | None = None


def unanswered(seconds: float) -> Health:
    """The health of a device of which nothing was told within so many seconds."""
    return Health(UNKNOWN, f'no_answer_in_{max(1, math.ceil(seconds))}_s')


def worst(*said: Health | None) -> Health | None:
    """The worst health of all sources; None if no source reports one."""
    given = [each for each in said if each is not None]
    return max(given, key=lambda each: LEVELS.index(each.level), default=None)


def why_not_ok(found: Health | None, unknown: str) -> str | None:
    """The reason why a device is not ok; None if it is.

    :param unknown: the reason where nothing tells one.
    """
    if found is not None and found.level == OK:
        return None
    return (found.reason if found else None) or unknown


def is_code(text: object) -> bool:
    """Whether a text can be a reason."""
    return isinstance(text, str) and len(text) <= LONGEST and bool(CODE.fullmatch(text))

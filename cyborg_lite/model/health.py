# SPDX-License-Identifier: Apache-2.0
"""How a device is: its health, and the reason as a code."""

from __future__ import annotations

import re
import typing

OK, WARNING, CRITICAL, UNKNOWN = 'ok', 'warning', 'critical', 'unknown'
#: From the best to the worst.  A source that does not know may hide more than a warning: a card
#: that is out stays out until its own source says that it is well.
LEVELS = (OK, WARNING, UNKNOWN, CRITICAL)
#: A reason: what was seen, in a form that policies can name.
CODE = re.compile('[a-z0-9]+(_[a-z0-9]+)*')
#: How long a reason may be.
LONGEST = 64
#: The reason of a device that is not well and does not say why.
UNSPECIFIED = 'unspecified'


class Health(typing.NamedTuple):
    """What one source says of a device."""

    level: str = UNKNOWN
    #: a code such as ``xid_79``; None for a device that is well
    reason: str | None = None


def worst(*said: Health | None) -> Health | None:
    """The worst of what sources say; None if none says anything."""
    given = [each for each in said if each is not None]
    return max(given, key=lambda each: LEVELS.index(each.level), default=None)


def is_code(text: object) -> bool:
    """Whether a text can be a reason."""
    return isinstance(text, str) and len(text) <= LONGEST and bool(CODE.fullmatch(text))

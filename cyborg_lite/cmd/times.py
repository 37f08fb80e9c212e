# SPDX-License-Identifier: Apache-2.0
"""Times that people type and read: of the local time zone, where the service has UTC."""

from __future__ import annotations

import argparse
import datetime
import re

_UNITS = {'s': 1, 'm': 60, 'min': 60, 'h': 3600, 'd': 86400}
#: The longest time, in seconds: that of a lease.
LONGEST = 366 * 86400
#: The forms of a time that a person types.
TIMES = 'now, 09:00, "tomorrow 09:00", 2026-11-28T09:00 or 2026-11-28T09:00+01:00'
#: How long after now a reservation starts that starts now, in seconds: the service refuses one that
#: has started when it is asked for.
SOON = 10
#: A time in a text of the service.
_UTC = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00')


def seconds(text: str) -> float:
    """A time such as ``90``, ``30s``, ``30m``, ``2h`` or ``1d``, in seconds.

    :raises argparse.ArgumentTypeError: when it is not a time, or longer than a lease may be.
    """
    found = re.fullmatch(r'([0-9]{1,8}(?:\.[0-9]{1,3})?)\s?(s|m|min|h|d)?', text)
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f'expected a time such as 90, 30m or 2h, not {text!r:.80}')
    long = float(found[1]) * _UNITS[found[2] or 's']
    if long > LONGEST:
        raise argparse.ArgumentTypeError(f'expected at most {LONGEST // 86400}d, not {text!r:.80}')
    return long


def moment(text: str, now: datetime.datetime | None = None) -> datetime.datetime:
    """A time that a person types, in UTC: of the local time zone, unless it names another.

    A time without a day is the next one of that time.

    :param now: the time now, in the local time zone and without it.
    :raises argparse.ArgumentTypeError: when it is not a time.
    """
    now = now or datetime.datetime.now()  # noqa: DTZ005
    wrong = argparse.ArgumentTypeError(f'expected a time such as {TIMES}, not {text!r:.80}')
    try:
        when = _when(text.strip(), now)
        if when is None:
            raise wrong
        return when.astimezone(datetime.timezone.utc).replace(tzinfo=None)  # noqa: UP017
    except (ValueError, OverflowError, OSError):
        raise wrong from None


def _when(text: str, now: datetime.datetime) -> datetime.datetime | None:
    """The time; None if it has another form.

    :raises ValueError: when there is no such time.
    """
    if text.lower() == 'now':
        return now + datetime.timedelta(seconds=SOON)
    if re.match('[0-9]{4}-', text):
        return datetime.datetime.fromisoformat(text)
    found = re.fullmatch(r'(?:(today|tomorrow)\s+)?([0-9]{1,2}):([0-9]{2})', text.lower())
    if found is None:
        return None
    when = datetime.datetime.combine(now.date(), datetime.time(int(found[2]), int(found[3])))
    late = found[1] == 'tomorrow' or (found[1] is None and when <= now)
    return when + datetime.timedelta(days=late)


def local(text: str) -> str:
    """A time in UTC as people read it, with the name of their time zone."""
    when = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)  # noqa: UP017
    when = when.astimezone()
    return when.strftime(f'%Y-%m-%d %H:%M{":%S" if when.second else ""} %Z')


def localized(text: str) -> str:
    """A text of the service with its times as people read them."""
    return _UTC.sub(lambda found: _localized(found[0]), text)


def _localized(text: str) -> str:
    try:
        return local(text)
    except (ValueError, OverflowError, OSError):
        # Others write what they like.
        return text

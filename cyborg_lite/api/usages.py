# SPDX-License-Identifier: Apache-2.0
"""/v2/usages: not of Cyborg, and so the same at every microversion"""

from __future__ import annotations

import datetime
import typing

from oslo_utils import timeutils
from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.db import usages
from cyborg_lite.model import base

_KEYS = model.Usage.KEYS
_TIME: types.Schema = {'type': 'string', 'format': 'date-time'}

SHOWN: types.Schema = {
    'type': 'object',
    'required': ['usages', 'start', 'end'],
    'additionalProperties': False,
    'properties': {
        'usages': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': ['device_seconds'],
                'additionalProperties': False,
                'properties': {
                    'project_id': {'type': 'string'},
                    'resource_class': {'type': ['string', 'null']},
                    'host': {'type': 'string'},
                    'device_seconds': {'type': 'integer', 'minimum': 0},
                },
            },
        },
        'start': _TIME,
        'end': _TIME,
        'usages_links': rest.LINKS,
    },
}


class Usages(rest.Controller):
    """The time for which projects have held accelerators."""

    kind, path, what = model.Usage, 'usages', 'Usage'

    @rest.expose(
        types.moment,
        types.moment,
        types.names,
        wtypes.text,
        types.number,
        filters=dict.fromkeys(_KEYS, wtypes.text),
        shows=SHOWN,
    )
    def get_all(self, wanted, start=None, end=None, group_by=None, limit=None, offset=None):
        caller = rest.call().context
        caller.can('cyborg:usage:get_all')
        period, by = _period(start, end), _keys(group_by)
        only = [(name, value) for name, value in wanted.items() if value is not None]
        # The list of accelerators already shows which project holds each, and since when.
        if not caller.allows('cyborg:accelerator:get_all'):
            only.append(('project_id', caller.project_id))
        size, first = rest.size(limit), offset or 0
        with rest.call().database.reader() as session:
            rows = usages.total(session, period, by, only, size + 1, first)
        answer: dict[str, typing.Any] = {
            'usages': rows[:size],
            'start': base.iso(period.start),
            'end': base.iso(period.end),
        }
        if len(rows) > size > 0:
            following = rest.following('offset', str(first + size))
            answer['usages_links'] = [{'rel': 'next', 'href': following}]
        return answer


def _keys(given: list[str] | None) -> list[str]:
    """The keys to group by: each once, in the order of KEYS; all of them by default."""
    if given is None:
        return list(_KEYS)
    if not given or set(given) - set(_KEYS):
        raise exception.Invalid(
            reason=f'Invalid group_by: expected one or more of {", ".join(_KEYS)}, with commas '
            'between them.'
        )
    return [name for name in _KEYS if name in given]


def _period(start: datetime.datetime | None, end: datetime.datetime | None) -> usages.Period:
    """The requested period: by default it ends now, and starts with the month of its end."""
    end = end or timeutils.utcnow()
    if start is None:
        # The end is exclusive: the end of a month is the start of the next.
        last = end - min(end - datetime.datetime.min, datetime.timedelta(microseconds=1))
        start = last.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    if start >= end:
        raise exception.Invalid(
            reason=f'Invalid start: expected a time before the end, {base.iso(end)}, got '
            f'{base.iso(start)}.'
        )
    return usages.Period(start, end)

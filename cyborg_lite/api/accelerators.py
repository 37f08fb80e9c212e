# SPDX-License-Identifier: Apache-2.0
"""/v2/accelerators: not of Cyborg, and so the same at every microversion"""

from __future__ import annotations

import datetime
import typing

import sqlalchemy as sa
from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.db import accelerators
from cyborg_lite.db.accelerators import Accelerator
from cyborg_lite.model import health


def _filters() -> dict[str, typing.Any]:
    """The fields that filter a list: each that is a single value, except times."""
    return {
        field.name: types.uuid if field.name.endswith('_uuid') else _KINDS[field.type]
        for field in Accelerator.fields()
        if field.type in _KINDS and field.name not in rest.KEYS
    }


_KINDS = {str: wtypes.text, int: types.number}
#: The filters that have a set of values.
WORDS = {'state': accelerators.STATES, 'health': health.LEVELS}

SUMMARY: types.Schema = {
    'type': 'object',
    'required': ['summary'],
    'additionalProperties': False,
    'properties': {
        'summary': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': ['resource_class', 'model', 'traits', 'total', 'free'],
                'additionalProperties': False,
                'properties': {
                    'resource_class': {'type': 'string'},
                    'model': {'type': 'string'},
                    'traits': {'type': 'array', 'items': {'type': 'string'}},
                    'total': {'type': 'integer'},
                    'free': {'type': 'integer'},
                },
            },
        }
    },
}


class Accelerators(rest.Controller):
    """One row for each attach handle, with its card, its state and its holder."""

    kind, path, what = Accelerator, 'accelerators', 'Accelerator'

    @rest.expose(
        *(types.flag, wtypes.text, types.ids, types.moment, types.moment),
        paged=True,
        filters=_filters(),
    )
    def get_all(
        self, page, wanted, free=None, trait=None, ids=None, held_after=None, held_before=None
    ):
        rest.call().context.can('cyborg:accelerator:get_all')
        for name, words in WORDS.items():
            if wanted[name] not in (None, *words):
                known = ', '.join(words)
                raise exception.Invalid(reason=f'Invalid {name}: expected one of {known}.')
        state = wanted.pop('state')
        conditions = [_equals(k, v) for k, v in wanted.items() if v is not None]
        conditions += [] if state is None else [accelerators.is_in(state)]
        conditions += [] if trait is None else [Accelerator.attributes.any(_is_trait(trait))]
        conditions += [accelerators.is_known_as(name, value) for name, value in ids or ()]
        conditions += _compared(free, held_after, held_before)
        return self.list(*conditions, page=page)

    @rest.expose(types.id)
    def get_one(self, uuid):
        rest.call().context.can('cyborg:accelerator:get_one')
        return self.fetch(uuid)

    @rest.expose(shows=SUMMARY)
    def summary(self):
        rest.call().context.can('cyborg:accelerator:summary')
        with rest.call().database.reader() as session:
            return {'summary': accelerators.summary(session)}


def _equals(name: str, value: typing.Any) -> sa.ColumnElement[bool]:
    column = getattr(Accelerator, name)
    # Types are in capitals; people do not type them so.
    return sa.func.lower(column) == sa.func.lower(value) if name == 'type' else column == value


def _compared(
    free: bool | None, after: datetime.datetime | None, before: datetime.datetime | None
) -> list[sa.ColumnElement[bool]]:
    """The conditions for the filters that have a value."""
    conditions: list[sa.ColumnElement[bool]] = []
    if free is not None:
        is_free = Accelerator.state == 'free'
        conditions.append(is_free if free else ~is_free)
    if after is not None:
        conditions.append(Accelerator.held_since >= after)
    if before is not None:
        conditions.append(Accelerator.held_since < before)
    return conditions


def _is_trait(name: str) -> sa.ColumnElement[bool]:
    return sa.and_(model.Attribute.key.startswith('trait'), model.Attribute.value == name)

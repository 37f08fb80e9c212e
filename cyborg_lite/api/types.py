# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire: how it is checked when it comes in, and shown when it goes out.

Arguments of a URL are wsme types, bodies are JSON schemas, and what is shown follows from the
model.  What goes out is not rendered by wsme: for a thousand rows that costs more than reading
them.
"""

from __future__ import annotations

import collections.abc
import datetime
import functools
import json
import operator
import typing
import uuid as uuidlib

import jsonschema
from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model

Schema = dict[str, typing.Any]


class Uuid(wtypes.UserType):
    """A UUID as text, in its usual form."""

    basetype = str
    name = 'uuid'

    @staticmethod
    def validate(value: str) -> str:
        try:
            return str(uuidlib.UUID(value))
        except (TypeError, ValueError, AttributeError):
            raise ValueError(f'expected a UUID, got {str(value)[:64]!r}') from None

    @staticmethod
    def frombasetype(value: str | None) -> str | None:
        return None if value is None else Uuid.validate(value)


class Names(wtypes.UserType):
    """Names with commas between them."""

    basetype = str
    name = 'names'

    @staticmethod
    def validate(value: typing.Any) -> typing.Any:
        return value

    @staticmethod
    def frombasetype(value: str | None) -> list[str] | None:
        return None if value is None else [name for name in value.split(',') if name]


class Filter(wtypes.Base):
    """One of upstream's dotted filters: ``filters.field=limit&filters.value=1``."""

    field = wtypes.wsattr(wtypes.text, mandatory=True)
    value = wtypes.wsattr(wtypes.text, mandatory=True)


uuid = Uuid()
names = Names()


@functools.cache
def fields(kind: type[model.Base], version: model.Version) -> tuple[model.Field, ...]:
    """The fields of a resource that this microversion shows."""
    return tuple(field for field in kind.fields() if field.version <= version)


@functools.cache
def shown(
    kind: type[model.Base], version: model.Version
) -> collections.abc.Callable[[typing.Any], dict[str, typing.Any]]:
    """What shows a row at this microversion: its fields as JSON has them.

    A list has many rows: what is the same for all is found once.
    """
    names = [field.name for field in fields(kind, version)]
    times = [f.name for f in fields(kind, version) if f.type is datetime.datetime]
    read = operator.attrgetter(*names)

    def show(row: model.Base) -> dict[str, typing.Any]:
        values = dict(zip(names, read(row), strict=True))
        for name in times:
            if values[name] is not None:
                values[name] = values[name].isoformat(timespec='seconds') + '+00:00'
        return values

    return show


def parse(body: bytes) -> typing.Any:
    """The JSON of a request's body.

    :raises cyborg_lite.exception.Invalid: when it is none, naming the place.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        refuse_unstorable(value)
    except json.JSONDecodeError as error:
        place = f'line {error.lineno} column {error.colno}'
        raise exception.Invalid(reason=f'Invalid JSON: {error.msg} at {place}.') from None
    except (ValueError, RecursionError) as error:
        raise exception.Invalid(reason=f'Invalid JSON: {str(error)[:200]}.') from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON')


def refuse_unstorable(value: typing.Any) -> None:
    """:raises ValueError: for text that no database keeps: NUL, and halves of characters."""
    if isinstance(value, str):
        if '\0' in value:
            raise ValueError('a NUL character is not allowed')
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_unstorable(key)
            refuse_unstorable(item)
    elif isinstance(value, list):
        for item in value:
            refuse_unstorable(item)


def check(value: typing.Any, schema: Schema, strict: bool) -> None:
    """Return if a value fits a JSON schema.

    :param strict: whether fields that the schema does not know are refused; old microversions
        ignore them.
    :raises cyborg_lite.exception.Invalid: otherwise, naming the field and what was expected.
    """
    errors = _validator(json.dumps(schema), strict).iter_errors(value)
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        place = error.json_path.removeprefix('$').removeprefix('.') or 'the body'
        expected = error.schema.get('description') if isinstance(error.schema, dict) else None
        hint = f' (expected {expected})' if expected else ''
        raise exception.Invalid(reason=f'Invalid {place}: {error.message[:300]}{hint}.')


@functools.cache
def _validator(schema: str, strict: bool) -> jsonschema.Draft202012Validator:
    text = schema if strict else schema.replace('"additionalProperties": false', '"x": 0')
    return jsonschema.Draft202012Validator(
        json.loads(text), format_checker=jsonschema.FormatChecker(['uuid'])
    )

# SPDX-License-Identifier: Apache-2.0
"""How input is checked, and how output is shown.

Arguments of a URL are wsme types, bodies are JSON schemas, and the output follows from the model.
wsme does not render the output: for a thousand rows that costs more than reading them.
"""

from __future__ import annotations

import collections.abc
import datetime
import functools
import itertools
import json
import re
import typing
import uuid as uuidlib

import jsonschema
import sqlalchemy as sa
from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.model import base
from cyborg_lite.model import device as devices

Schema = dict[str, typing.Any]

#: The maximum nesting of a body; ours need six levels. The checks are recursive.
DEPTH = 32
#: The maximum number of values in a body, names of fields included.
VALUES = 25_000
#: The maximum number of names or uuids in one argument: each is a variable of an SQL statement.
NAMES = 1000
#: How many errors of a body are computed before the best is chosen.
ERRORS = 10
FILTERS = 'filters.field=NAME and filters.value=VALUE in pairs'


class Uuid(wtypes.UserType):
    """A UUID as text, in its canonical form."""

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


class Argument(wtypes.UserType):
    """An argument of a URL: ``frombasetype`` converts its text, or raises a ValueError."""

    basetype = str

    @staticmethod
    def validate(value: typing.Any) -> typing.Any:
        return value


class Id(Argument):
    """The uuid of a resource, in any spelling; other text matches no resource."""

    name = 'id'

    @staticmethod
    def frombasetype(value: str | None) -> str | None:
        return None if value is None else canonical(value)


class Names(Argument):
    """Names separated by commas, NAMES at most."""

    name = 'names'

    @staticmethod
    def frombasetype(value: str | None) -> list[str] | None:
        found = None if value is None else [name for name in value.split(',') if name]
        if found and len(found) > NAMES:
            raise ValueError(f'{len(found)} names')
        return found


class Ids(Argument):
    """Ids of a vendor's software, each a name and a value, separated by commas."""

    name = 'ids'
    PATTERN = f'({"|".join(devices.NAMES)}):([^,]{{1,255}})'
    MOST = len(devices.NAMES)

    @staticmethod
    def frombasetype(value: str | None) -> list[tuple[str, str]] | None:
        if value is None:
            return None
        found = [re.fullmatch(Ids.PATTERN, each) for each in value.split(',')]
        if not all(found) or len(found) > Ids.MOST:
            raise ValueError(f'{value} has another form')
        return [(match[1], match[2]) for match in found if match]


class Number(Argument):
    """A number that a database can compare with an integer."""

    name = 'number'
    MOST = 2**31 - 1

    @staticmethod
    def frombasetype(value: str | None) -> int | None:
        if value is None:
            return None
        # Longer numbers do not fit an integer column, and take long to parse.
        number = int(value) if re.fullmatch('[0-9]{1,10}', value) else -1
        if not 0 <= number <= Number.MOST:
            raise ValueError(f'{value} is no such number')
        return number


class Flag(Argument):
    """``true`` or ``false``."""

    name = 'flag'

    @staticmethod
    def frombasetype(value: str | None) -> bool | None:
        if value not in (None, 'true', 'false'):
            raise ValueError(f'{value} is neither')
        return None if value is None else value == 'true'


class Seconds(Argument):
    """The maximum time that an answer may wait."""

    name = 'seconds'
    MOST = 60

    @staticmethod
    def frombasetype(value: str | None) -> int | None:
        if value is None:
            return None
        if not re.fullmatch('[0-9]{1,2}', value) or int(value) > Seconds.MOST:
            raise ValueError(f'{value} is no such number')
        return int(value)


class Moment(Argument):
    """A date or a time in ISO 8601; UTC unless it says otherwise."""

    name = 'moment'
    FORM = re.compile(r'\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.]\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?')

    @staticmethod
    def frombasetype(value: str | None) -> datetime.datetime | None:
        return None if value is None else Moment.parse(value)

    @staticmethod
    def parse(value: str) -> datetime.datetime:
        """The time of a text, in UTC and without a zone.

        :raises ValueError: when it is none.
        """
        text = value.upper()
        if not (text.isascii() and Moment.FORM.fullmatch(text)):
            raise ValueError(
                f'expected a time in ISO 8601 such as 2027-01-28T09:00:00Z, not {value:.64}'
            )
        found = datetime.datetime.fromisoformat(text)
        if found.tzinfo is None:
            return found
        try:
            return found.astimezone(datetime.UTC).replace(tzinfo=None)
        except OverflowError:
            raise ValueError(f'{value} is before or after all time') from None


class Filter(wtypes.Base):
    """One of upstream's dotted filters: ``filters.field=limit&filters.value=1``."""

    field = wtypes.wsattr(wtypes.text, mandatory=True)
    value = wtypes.wsattr(wtypes.text, mandatory=True)


uuid = Uuid()
id = Id()
names = Names()
ids = Ids()
number = Number()
flag = Flag()
seconds = Seconds()
moment = Moment()

_EXPECTED: dict[typing.Any, str] = {
    int: 'a number',
    number: f'a number from 0 to {Number.MOST}',
    flag: 'true or false',
    seconds: f'a number of seconds from 0 to {Seconds.MOST}',
    moment: 'a date or a time in ISO 8601, with "+" written as %2B',
    uuid: 'a UUID',
    ids: f'1 to {Ids.MOST} of NAME:VALUE, with commas between them, where NAME is one of '
    f'{", ".join(devices.NAMES)}',
    names: f'{NAMES} at most, with commas between them',
}


def expected(kind: typing.Any) -> str:
    """The text for an error that says what an argument must be."""
    return FILTERS if isinstance(kind, wtypes.ArrayType) else _EXPECTED.get(kind, 'text, once')


def is_uuid(text: str) -> bool:
    try:
        Uuid.validate(text)
    except ValueError:
        return False
    return True


def canonical(text: str) -> str:
    """A uuid in its canonical form, as in rows; any other text unchanged."""
    return Uuid.validate(text) if is_uuid(text) else text


@functools.cache
def fields(kind: type[model.Base], version: model.Version) -> tuple[model.Field, ...]:
    """The fields of a resource that this microversion shows."""
    return tuple(field for field in kind.fields() if field.version <= version)


@functools.cache
def sort_keys(kind: type[model.Base], version: model.Version) -> list[str]:
    """The fields that lists of a resource can be sorted by."""
    columns = {f.name: f.column for f in fields(kind, version) if f.column is not None}
    return sorted(['id', *(n for n, c in columns.items() if not isinstance(c.type, sa.JSON))])


class View(typing.NamedTuple):
    """How the rows of a resource are shown."""

    #: the columns that are read
    paths: tuple[str, ...]
    #: makes the JSON fields from the values of these columns
    show: collections.abc.Callable[[collections.abc.Sequence[typing.Any]], dict[str, typing.Any]]


@functools.cache
def view(kind: type[model.Base], version: model.Version) -> View:
    """How the rows of a resource are shown at a microversion.

    The result is cached: a list has many rows.
    """
    columns = {
        f.name: f.shown.reads[0] if f.shown else f.name
        for f in fields(kind, version)
        if f.column is not None
    }
    times = [f.name for f in fields(kind, version) if f.type is datetime.datetime]
    made = [(f.name, f.shown) for f in fields(kind, version) if f.shown is not None]
    further = [path for _, shown in made for path in shown.reads]
    paths = tuple(dict.fromkeys((*columns.values(), *further)))
    makers = [
        (name, shown.make, [paths.index(path) for path in shown.reads]) for name, shown in made
    ]

    def show(row: collections.abc.Sequence[typing.Any]) -> dict[str, typing.Any]:
        # The columns come first, both in the fields and in the row.
        values = dict(zip(columns, row, strict=False))
        for name in times:
            if values[name] is not None:
                values[name] = base.iso(values[name])
        for name, make, positions in makers:
            values[name] = make(*[row[position] for position in positions])
        return values

    return View(paths, show)


def parse(body: bytes) -> typing.Any:
    """The JSON of a request's body.

    :raises cyborg_lite.exception.Invalid: when it is not JSON; the error names the place.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        _refuse_excess(value)
        refuse_unstorable(value)
    except json.JSONDecodeError as error:
        place = f'line {error.lineno} column {error.colno}'
        raise exception.Invalid(reason=f'Invalid JSON: {error.msg} at {place}.') from None
    except (ValueError, RecursionError) as error:
        raise exception.Invalid(reason=f'Invalid JSON: {str(error)[:200]}.') from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON')


def _refuse_excess(value: typing.Any) -> None:
    """:raises ValueError: for too many values or levels, before each value is checked."""
    count, level = 0, [value]
    for _ in range(DEPTH):
        count += len(level)
        if count > VALUES:
            raise ValueError(f'expected {VALUES} values at most')
        level = [item for each in level for item in _items(each)]
        if not level:
            return
    raise ValueError(f'expected {DEPTH} levels of nesting at most')


def _items(value: typing.Any) -> collections.abc.Iterable[typing.Any]:
    if isinstance(value, dict):
        return itertools.chain(value, value.values())
    return value if isinstance(value, list) else ()


def refuse_unstorable(value: typing.Any, place: str = '') -> None:
    """:raises ValueError: for text that databases cannot store: NUL, and lone surrogates."""
    if isinstance(value, str):
        where = f'{place[:80]}: ' if place else ''
        if '\0' in value:
            raise ValueError(f'{where}a NUL character is not allowed')
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f'{where}half of a character is not allowed') from None
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_unstorable(key, place)
            refuse_unstorable(item, key)
    elif isinstance(value, list):
        for item in value:
            refuse_unstorable(item, place)


def check(value: typing.Any, schema: Schema) -> None:
    """Return if a value fits a JSON schema.

    :raises cyborg_lite.exception.Invalid: otherwise; the error names the field and the
        expectation.
    """
    errors = _validator(json.dumps(schema)).iter_errors(value)
    # Each error builds its text: a body with thousands of errors took a second.
    error = jsonschema.exceptions.best_match(itertools.islice(errors, ERRORS))
    if error is not None:
        place = error.json_path.removeprefix('$').removeprefix('.') or 'body'
        expected = error.schema.get('description') if isinstance(error.schema, dict) else None
        hint = f' (expected {expected})' if expected else ''
        raise exception.Invalid(reason=f'Invalid {place}: {_wrong(error)}{hint}.')


def _wrong(error: jsonschema.ValidationError) -> str:
    if error.validator in ('maxItems', 'maxProperties'):
        # jsonschema's message has the whole value but not the limit.
        return f'{len(error.instance)} entries, expected {error.validator_value} at most'
    if error.validator == 'pattern' and 'description' in error.schema:
        # The description says it in words.
        return f'{repr(error.instance)[:300]} is not valid'
    return error.message[:300]


def _pattern(
    validator: typing.Any, pattern: str, value: typing.Any, _schema: Schema
) -> collections.abc.Iterator[jsonschema.ValidationError]:
    """``$`` is the end of the text, as in ECMA-262: in Python it also matches before a newline."""
    if validator.is_type(value, 'string') and not re.search(pattern.replace('$', r'\Z'), value):
        yield jsonschema.ValidationError(f'{value!r} does not match {pattern!r}')


_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {'pattern': _pattern})


@functools.cache
def _validator(schema: str) -> typing.Any:
    return _Validator(json.loads(schema), format_checker=jsonschema.FormatChecker(['uuid']))

# SPDX-License-Identifier: Apache-2.0
"""What an agent asks for on behalf of a process, and the request of an allocation that it makes."""

from __future__ import annotations

import datetime
import functools
import re
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import journal

#: The type of consumers that only agents may set; the API refuses it.
PROCESS = model.Allocation.PROCESS
#: The most accelerators of one lease: those of one host.
MOST = 1000
#: The longest lease that has an end, in seconds: a year.
LONGEST = 366 * 24 * 3600

#: A text without control characters, and halves of characters, which no database takes.
NAME: dict[str, typing.Any] = {
    'type': 'string', 'pattern': r'^[^\x00-\x1f\x7f\ud800-\udfff]{1,255}\Z',
}  # fmt: skip
_UUID = re.compile('[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}', re.I)
#: A UUID as this release writes it.
CANONICAL = {
    'type': 'string', 'pattern': r'^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z',
}  # fmt: skip
_WORD = {'type': 'string', 'pattern': r'^[A-Za-z0-9_.:-]{1,255}\Z'}
#: A time in UTC, as a client of this release sends it.
_MOMENT = r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\Z'
_TIME = 'a time in UTC such as 2027-01-28T09:00:00'
_NUMBER = {'type': 'integer', 'minimum': 0, 'maximum': 2**63 - 1}

#: What a process asks for.
REQUEST: dict[str, typing.Any] = {
    'type': 'object',
    'additionalProperties': False,
    'properties': {
        'resource_class': _WORD,
        'profile': NAME,
        'count': {'type': 'integer', 'minimum': 1, 'maximum': MOST},
        'traits': {
            'type': 'object',
            'maxProperties': 32,
            'propertyNames': {'pattern': r'^[A-Z0-9_]{1,255}\Z'},
            'additionalProperties': {'enum': ['required', 'forbidden']},
        },
        'same_numa': {'enum': ['prefer', 'require']},
        'link': {'enum': ['prefer', 'require']},
        'name': {'type': 'string', 'pattern': r'^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}\Z'},
        **model.Allocation.LABELS,
        'queue': {'type': 'boolean'},
        'seconds': {'type': 'integer', 'minimum': 1, 'maximum': LONGEST},
        'starts_at': {'type': 'string', 'pattern': _MOMENT, 'description': _TIME},
        'reservation': NAME,
        'addresses': {
            'type': 'array',
            'items': NAME,
            'minItems': 1,
            'maxItems': MOST,
            'uniqueItems': True,
        },
    },
}

#: What an agent says of a process.
CONSUMER: dict[str, typing.Any] = {
    'type': 'object',
    'additionalProperties': False,
    'required': ['boot_id', 'pid', 'started', 'uid', 'user', 'command'],
    'properties': {
        'boot_id': {'type': 'string', 'pattern': r'^[0-9a-f-]{1,36}\Z'},
        'pid': _NUMBER,
        'started': _NUMBER,
        'uid': _NUMBER,
        'user': NAME | {'maxLength': 64},
        'command': {'type': 'string', 'maxLength': 64},
    },
}

Process = dict[str, typing.Any]
Row = dict[str, typing.Any]


def check(name: str, value: typing.Any, schema: dict[str, typing.Any]) -> None:
    """
    :raises cyborg_lite.exception.Invalid: when the value is not as the schema says.
    """
    first = next(iter(_validator()(schema).iter_errors(value)), None)
    if first is not None:
        place = '.'.join(str(each) for each in first.absolute_path) or name
        expected = first.schema.get('description')
        hint = f' (expected {expected})' if expected else ''
        raise exception.Invalid(reason=f'Invalid {place}: {first.message[:300]}{hint}.')


@functools.cache
def _validator() -> typing.Any:
    """JSON Schema, but that a number with a point is no integer: 2.0 is written so."""
    # It takes memory that a conductor whose agents have no socket does without.
    import jsonschema

    plain = jsonschema.Draft202012Validator
    checker = plain.TYPE_CHECKER.redefine('integer', lambda _, value: type(value) is int)
    return jsonschema.validators.extend(plain, type_checker=checker)


def consumer(host: str, process: Process) -> str:
    """How a process is named as a consumer: an agent reads it back.

    :raises cyborg_lite.exception.Invalid: when the name of the host is too long for that.
    """
    parts = (
        host, process['boot_id'], process['pid'], process['started'], process['uid'],
        _plain(process['user']), _plain(process['command']),
    )  # fmt: skip
    text = '/'.join(map(str, parts))
    if len(text) > 255:
        raise exception.Invalid(
            reason=f'Invalid host: expected a shorter name than {host[:64]}... for leases'
        )
    return text


def _plain(text: str) -> str:
    """A text that holds no separator, and nothing that cannot be printed."""
    return journal.plain(text).replace('/', '?')


def wanted(session: orm.Session, host: str, process: Process, request: Row) -> allocating.Request:
    """The request of a process as one for an allocation."""
    profile = request.get('profile')
    if profile and request.keys() & {'resource_class', 'count', 'traits'}:
        raise exception.Invalid(
            reason='Invalid request: expected a profile, or a resource class with count and '
            'traits, not both.'
        )
    groups = [] if profile else [[_group(session, host, request)]]
    return bare(host, process, request, groups)


def bare(
    host: str, process: Process, request: Row, groups: list[list[dict[str, str]]] | None = None
) -> allocating.Request:
    """The request without what selects accelerators, but for these groups."""
    if _UUID.fullmatch(request.get('name', '')):
        raise exception.Invalid(reason='Invalid name: expected a name that is not a UUID.')
    if wrong := model.Allocation.wrong_label(request):
        raise exception.Invalid(reason=wrong)
    found: allocating.Request = {
        'profile': request.get('profile'),
        'alternatives': groups or [],
        'same_host': True,
        'same_numa': request.get('same_numa', 'prefer'),
        'hosts': [host],
        'name': request.get('name'),
        'consumer': {'type': PROCESS, 'id': consumer(host, process)},
        'lease': request.get('seconds'),
        'queue': request.get('queue', False),
        'possible': True,
    }
    if 'link' in request:
        found['link'] = request['link']
    for field in model.Allocation.LABELS.keys() & request.keys():
        found[field] = request[field]  # type: ignore[literal-required]
    if 'starts_at' in request:
        found['starts_at'] = _start(request['starts_at'])
    return found


def _start(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).isoformat()
    except ValueError:
        raise exception.Invalid(
            reason=f'Invalid starts_at: expected {_TIME}, not {text}.'
        ) from None


def _group(session: orm.Session, host: str, request: Row) -> dict[str, str]:
    """The one group of a request by resource class, as device profiles have it."""
    name = _class(session, host, request.get('resource_class'))
    traits = {f'trait:{trait}': value for trait, value in request.get('traits', {}).items()}
    return {f'resources:{name}': str(request.get('count', 1))} | traits


def _class(session: orm.Session, host: str, wanted: str | None) -> str:
    """The resource class that is meant: by its name, without CUSTOM_, or by a type of device.

    Where nothing is said, the only class of the host is meant.
    """
    _rc = orm.aliased(model.Attribute)
    found = session.execute(
        sa.select(_rc.value, model.Device.type)
        .join(model.Deployable, model.Deployable.id == _rc.deployable_id)
        .join(model.Device)
        .where(_rc.key == 'rc', model.Device.hostname == host)
        .distinct()
    ).all()
    classes = {row.value for row in found}
    if not classes:
        raise exception.Conflict(reason=f'No accelerator of host {host} is given out')
    if wanted is None:
        meant = classes
    else:
        name = re.sub('[^A-Z0-9_]', '_', wanted.upper())
        meant = classes & {name, f'CUSTOM_{name}'}
        meant = meant or {row.value for row in found if row.type.upper() == name}
    if len(meant) != 1:
        known = ', '.join(sorted(meant or classes))
        said = 'Which resource class is meant' if wanted is None or meant else f'No {wanted!r}'
        raise exception.Invalid(
            reason=f'Invalid resource_class: {said} on host {host}: expected one of {known}.'
        )
    return str(meant.pop())

# SPDX-License-Identifier: Apache-2.0
"""Leases of processes: an agent asks for allocations on behalf of processes of its host.

A lease is an ordinary allocation whose consumer is a process. It ends when the agent says that the
process has ended. Nothing else is kept of it: an agent that starts anew asks which leases its host
has, and looks at their processes.
"""

from __future__ import annotations

import collections.abc
import datetime
import functools
import re
import typing
import uuid as uuidlib

from oslo_config import cfg
import oslo_messaging as messaging
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import accounts
from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import journal
from cyborg_lite.conductor import releasing
from cyborg_lite.conductor import reserving
from cyborg_lite.db import leases as db_leases
from cyborg_lite.db import query
from cyborg_lite.db import queue as db_queue

_kind = model.Allocation
#: The type of consumers that only agents may set; the API refuses it.
PROCESS = _kind.PROCESS
#: The states of what is not released.
ALIVE = tuple(state for state in model.Allocation.STATES if state != 'released')
#: The most accelerators of one lease: those of one host.
MOST = 1000
#: The longest lease that has an end, in seconds: a year.
LONGEST = 366 * 24 * 3600

# Without control characters, and halves of characters, which no database takes.
_NAME = {'type': 'string', 'pattern': r'^[^\x00-\x1f\x7f\ud800-\udfff]{1,255}\Z'}
_UUID = re.compile('[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}', re.I)
_CANONICAL = {
    'type': 'string', 'pattern': r'^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z',
}  # fmt: skip
_WORD = {'type': 'string', 'pattern': r'^[A-Za-z0-9_.:-]{1,255}\Z'}
#: A time in UTC, as a client of this release sends it.
_MOMENT = r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\Z'
_NUMBER = {'type': 'integer', 'minimum': 0, 'maximum': 2**63 - 1}

#: What a process asks for.
REQUEST: dict[str, typing.Any] = {
    'type': 'object',
    'additionalProperties': False,
    'properties': {
        'resource_class': _WORD,
        'profile': _NAME,
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
        'starts_at': {'type': 'string', 'pattern': _MOMENT},
        'reservation': _NAME,
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
        'user': {'type': 'string', 'maxLength': 64},
        'command': {'type': 'string', 'maxLength': 64},
    },
}

#: What an agent says of the containers of leases, by their uuids.
CONTAINERS: dict[str, typing.Any] = {
    'type': 'object',
    'maxProperties': MOST,
    'propertyNames': _CANONICAL,
    'additionalProperties': {'type': ['string', 'null'], 'pattern': r'^[0-9a-f]{1,64}\Z'},
}

#: What an agent says of itself, and of a lease that ends.
ASKED: dict[str, typing.Any] = {
    'type': 'object',
    'properties': {
        'host': {'type': 'string', 'maxLength': 255},
        'agent': {'type': 'string', 'maxLength': 36},
        'uuid': {'type': 'string', 'maxLength': 36},
        'cause': {'type': 'string', 'maxLength': 1024},
    },
}

Process = dict[str, typing.Any]
Containers = dict[str, str | None]
Row = dict[str, typing.Any]


class Calls(typing.NamedTuple):
    """The functions below, each as a call in a transaction of its own."""

    create: collections.abc.Callable[..., tuple[str, list[str]]]
    rows: collections.abc.Callable[..., list[Row]]
    end: collections.abc.Callable[..., None]
    holders: collections.abc.Callable[..., list[Row]]
    contain: collections.abc.Callable[..., None]
    tell: collections.abc.Callable[[list[str]], None]


class Leases:
    """What an agent may ask of a conductor beside taking its reports."""

    target = messaging.Target(version='1.4')

    def __init__(self, conf: cfg.ConfigOpts, calls: Calls) -> None:
        self._conf = conf
        self._calls = calls

    @messaging.expose
    @journal.logged(journal.lease)
    def lease(
        self,
        ctxt: context.RequestContext,
        host: str,
        agent: str,
        process: Process,
        request: Row,
        uuid: str | None = None,
    ) -> Row:
        """Allocate what a process asks for on its host, or let it wait; returns the lease.

        :param uuid: that of the lease, which the agent has made: a second request for it is
            answered as the first. Agents of the previous release give none.
        :raises cyborg_lite.exception.CyborgError: as for allocating.create.
        """
        _check_asked(host=host, agent=agent)
        made, providers = self._calls.create(
            ctxt,
            host=host,
            agent=agent,
            process=process,
            request=request,
            uuid=uuid,
            policy=self._conf.conductor.placing,
            projects=self._conf.conductor.user_projects,
        )
        self._calls.tell(providers)
        [row] = self._calls.rows(ctxt, host=host, agent=agent, uuid=made)
        return row

    @messaging.expose
    def leases(self, ctxt: context.RequestContext, host: str, agent: str) -> list[Row]:
        """The leases of a host that wait or hold something."""
        _check_asked(host=host, agent=agent)
        return self._calls.rows(ctxt, host=host, agent=agent)

    @messaging.expose
    def holders(self, ctxt: context.RequestContext, host: str, agent: str) -> list[Row]:
        """Who holds accelerators of a host without a lease, and how many."""
        _check_asked(host=host, agent=agent)
        return self._calls.holders(ctxt, host=host, agent=agent)

    @messaging.expose
    def contain(
        self, ctxt: context.RequestContext, host: str, agent: str, containers: Containers
    ) -> None:
        """Note in which container the process of each of these leases is; None for none."""
        _check_asked(host=host, agent=agent)
        self._calls.contain(ctxt, host=host, agent=agent, containers=containers)

    @messaging.expose
    @journal.logged('End lease {uuid} on host {host}: {cause}')
    def end_lease(
        self, ctxt: context.RequestContext, host: str, agent: str, uuid: str, cause: str
    ) -> None:
        """Free what a lease holds, or take it from the queue; a second time nothing is done."""
        _check_asked(host=host, agent=agent, uuid=uuid, cause=cause)
        self._calls.end(ctxt, host=host, agent=agent, uuid=uuid, cause=cause)


def create(
    session: orm.Session,
    ctxt: context.RequestContext,
    host: str,
    agent: str,
    process: Process,
    request: Row,
    policy: str,
    projects: dict[str, str],
    uuid: str | None = None,
) -> tuple[str, list[str]]:
    """Allocate for a process: see allocating.create.

    :param uuid: that of the allocation.
    :param projects: by user the project, where it is not that of the user's own name.
    """
    _check('process', process, CONSUMER)
    _check('request', request, REQUEST)
    _refuse_stranger(session, host, agent)
    if uuid is not None and _is_made(session, uuid, consumer(host, process)):
        return uuid, []
    project = accounts.project(process['uid'], process['user'], projects)
    caller = context.RequestContext(
        user_id=process['user'],
        project_id=project,
        roles=['member'],
        is_admin=False,
        request_id=ctxt.request_id,
        overwrite=False,
    )
    if 'reservation' in request:
        return _draw(session, caller, host, process, request, uuid), []
    wanted = _wanted(session, host, process, request)
    if 'starts_at' in request:
        return reserving.create(session, caller, wanted, policy, uuid)
    return allocating.create(session, caller, wanted, policy, uuid)


#: What may be asked of a reservation.
_OF_RESERVATION = {'reservation', 'count', 'name', 'queue', *model.Allocation.LABELS}


def _draw(
    session: orm.Session,
    caller: context.RequestContext,
    host: str,
    process: Process,
    request: Row,
    uuid: str | None,
) -> str:
    """Lease from a reservation; what the reservation has is settled."""
    if given := sorted(request.keys() - _OF_RESERVATION):
        raise exception.Invalid(
            reason=f'Invalid {given[0]}: a reservation has its accelerators already; expected at '
            'most a count and a name.'
        )
    wanted = _request(host, process, request)
    uuid = uuid or str(uuidlib.uuid4())
    reservation, count = request['reservation'], request.get('count')
    return reserving.draw(session, caller, reservation, count, wanted, host, uuid)


def _is_made(session: orm.Session, uuid: str, consumer: str) -> bool:
    """Whether a process has this lease already.

    :raises cyborg_lite.exception.Conflict: when another one has the uuid, or the lease has ended.
    """
    _check('uuid', uuid, _CANONICAL)
    held = sa.select(_kind.consumer_type, _kind.consumer_id, _kind.state).where(_kind.uuid == uuid)
    found = session.execute(held).one_or_none()
    if found is None:
        return False
    if (found.consumer_type, found.consumer_id) != (PROCESS, consumer):
        raise exception.Conflict(reason=f'Allocation {uuid} is of another consumer')
    if found.state == 'released':
        raise exception.Conflict(reason=f'Lease {uuid} has ended')
    return True


def rows(
    session: orm.Session,
    _ctxt: context.RequestContext,
    host: str,
    agent: str,
    uuid: str | None = None,
) -> list[Row]:
    """The leases of a host, or the one with this uuid."""
    _refuse_stranger(session, host, agent)
    columns = (
        *('uuid', 'state', 'name', 'project_id', 'consumer_id', 'reason', 'accelerators'),
        *('reservation_uuid', 'amount', 'container'),
        *model.Allocation.LABELS,
    )
    found = session.scalars(
        sa.select(_kind).where(
            _kind.uuid == uuid if uuid else _kind.state.in_(ALIVE), *db_leases.of(host)
        )
    ).all()
    waits = any(each.state == 'queued' for each in found)
    positions = db_queue.positions(session) if waits else {}
    return [
        {name: getattr(each, name) for name in columns}
        | {
            'position': positions.get(each.uuid),
            'created_at': each.created_at.isoformat(),
            'starts_at': each.starts_at and each.starts_at.isoformat(),
            'lease_ends_at': each.lease_ends_at and each.lease_ends_at.isoformat(),
        }
        for each in found
    ]


def holders(
    session: orm.Session, _ctxt: context.RequestContext, host: str, agent: str
) -> list[Row]:
    """Who holds accelerators of a host without a lease: see cyborg_lite.db.leases.others."""
    _refuse_stranger(session, host, agent)
    return db_leases.others(session, host)


def contain(
    session: orm.Session,
    _ctxt: context.RequestContext,
    host: str,
    agent: str,
    containers: Containers,
) -> None:
    """Note the containers of leases of a host; those that have ended keep what was noted."""
    _check('containers', containers, CONTAINERS)
    _refuse_stranger(session, host, agent)
    for uuid, container in sorted(containers.items()):
        mine = _kind.uuid == uuid, _kind.state == 'active', *db_leases.of(host)
        query.matched(session, sa.update(_kind).where(*mine).values(container=container))


def end(
    session: orm.Session,
    _ctxt: context.RequestContext,
    host: str,
    agent: str,
    uuid: str,
    cause: str,
) -> None:
    """Release a lease of a host, unless that is done."""
    _refuse_stranger(session, host, agent)
    lease = session.scalars(
        sa.select(_kind).where(_kind.uuid == uuid, *db_leases.of(host))
    ).one_or_none()
    if lease is not None:
        releasing.end(session, lease, journal.plain(cause)[:255])


@messaging.expected_exceptions(exception.CyborgError)
def _check_asked(**asked: typing.Any) -> None:
    _check('call', asked, ASKED)


def _check(name: str, value: typing.Any, schema: dict[str, typing.Any]) -> None:
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


def _refuse_stranger(session: orm.Session, host: str, agent: str) -> None:
    """Refuse an agent that does not report this host.

    Each start of an agent has a new id, which only the agent and conductors know: see
    cyborg_lite.conductor.trust for whose report may bring one.
    """
    reports = model.Host.name == host, model.Host.agent == agent, model.Host.renamed_to.is_(None)
    if session.scalar(sa.select(model.Host.id).where(*reports)) is None:
        raise exception.Conflict(reason=f'Host {host} is not reported by this agent')


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


def _wanted(session: orm.Session, host: str, process: Process, request: Row) -> allocating.Request:
    """The request of a process as one for an allocation."""
    profile = request.get('profile')
    if profile and request.keys() & {'resource_class', 'count', 'traits'}:
        raise exception.Invalid(
            reason='Invalid request: expected a profile, or a resource class with count and '
            'traits, not both.'
        )
    groups = [] if profile else [[_group(session, host, request)]]
    return _request(host, process, request, groups)


def _request(
    host: str, process: Process, request: Row, groups: list[list[dict[str, str]]] | None = None
) -> allocating.Request:
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
        raise exception.Invalid(reason=f'Invalid starts_at: {text} is no time.') from None


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
            reason=f'Invalid resource_class: {said} on host {host}: expected one of {known}. Name '
            'it with --class; another host of this agent is named with --host.'
        )
    return str(meant.pop())

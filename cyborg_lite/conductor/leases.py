# SPDX-License-Identifier: Apache-2.0
"""Leases of processes: an agent asks for allocations on behalf of processes of its host.

A lease is an ordinary allocation whose consumer is a process. It ends when the agent says that the
process has ended. Nothing else is kept of it: an agent that starts anew asks which leases its host
has, and looks at their processes.
"""

from __future__ import annotations

import collections.abc
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
from cyborg_lite.conductor import adopting
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import drawing
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import journal
from cyborg_lite.conductor import releasing
from cyborg_lite.conductor import requesting
from cyborg_lite.conductor import reserving
from cyborg_lite.conductor import waiting
from cyborg_lite.db import leases as db_leases
from cyborg_lite.db import query
from cyborg_lite.db import queue as db_queue

_kind = model.Allocation
#: The states of what is not released.
ALIVE = tuple(state for state in model.Allocation.STATES if state != 'released')
#: What an agent says of the containers of leases, by their uuids.
CONTAINERS: dict[str, typing.Any] = {
    'type': 'object',
    'maxProperties': requesting.MOST,
    'propertyNames': requesting.CANONICAL,
    'additionalProperties': {'type': ['string', 'null'], 'pattern': r'^[0-9a-f]{1,64}\Z'},
}

#: What an agent says of itself, and of a lease that ends.
ASKED: dict[str, typing.Any] = {
    'type': 'object',
    'properties': {
        'host': requesting.NAME,
        'agent': requesting.NAME | {'maxLength': 36},
        'uuid': requesting.NAME | {'maxLength': 36},
        'cause': {'type': 'string', 'maxLength': 1024},
        'closed': {'type': 'boolean'},
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

    target = messaging.Target(version='1.5')

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
        self,
        ctxt: context.RequestContext,
        host: str,
        agent: str,
        uuid: str,
        cause: str,
        closed: bool = True,
    ) -> None:
        """Free what a lease holds, or take it from the queue; a second time nothing is done.

        :param closed: whether the agent has seen that nobody has its cards open; agents of the
            release before do not say.
        """
        _check_asked(host=host, agent=agent, uuid=uuid, cause=cause, closed=closed)
        self._calls.end(ctxt, host=host, agent=agent, uuid=uuid, cause=cause, closed=closed)


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
    requesting.check('process', process, requesting.CONSUMER)
    requesting.check('request', request, requesting.REQUEST)
    _refuse_stranger(session, host, agent)
    if uuid is not None and _is_made(session, uuid, requesting.consumer(host, process)):
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
    if 'addresses' in request:
        return _adopt(session, caller, host, process, request, uuid)
    wanted = requesting.wanted(session, host, process, request)
    if 'starts_at' in request:
        return reserving.create(session, caller, wanted, policy, uuid)
    return allocating.create(session, caller, wanted, policy, uuid)


#: What may be asked of a reservation, and beside the addresses of the cards of a process.
_OF_RESERVATION = {'reservation', 'count', 'name', 'queue', *model.Allocation.LABELS}
_OF_CARDS = {'addresses', 'seconds', 'name', 'queue', *model.Allocation.LABELS}


def _refuse_more(request: Row, allowed: set[str], said: str) -> None:
    """Refuse what selects accelerators, where it is settled which they are."""
    if given := sorted(request.keys() - allowed):
        raise exception.Invalid(reason=f'Invalid {given[0]}: {said}')


def _draw(
    session: orm.Session,
    caller: context.RequestContext,
    host: str,
    process: Process,
    request: Row,
    uuid: str | None,
) -> str:
    """Lease from a reservation; what the reservation has is settled."""
    _refuse_more(
        request,
        _OF_RESERVATION,
        'a reservation has its accelerators already; expected at most a count and a name.',
    )
    wanted = requesting.bare(host, process, request)
    uuid = uuid or str(uuidlib.uuid4())
    reservation, count = request['reservation'], request.get('count')
    return drawing.draw(session, caller, reservation, count, wanted, host, uuid)


def _adopt(
    session: orm.Session,
    caller: context.RequestContext,
    host: str,
    process: Process,
    request: Row,
    uuid: str | None,
) -> tuple[str, list[str]]:
    """Lease the cards that a process uses."""
    _refuse_more(
        request,
        _OF_CARDS,
        'the process has its accelerators already; expected at most a name and an end.',
    )
    wanted = requesting.bare(host, process, request)
    hosts.lock(session, hosts.NAMED, name=host)
    # While this request waited for the lock, the first of two may have been carried out.
    if uuid is not None and _is_made(session, uuid, requesting.consumer(host, process)):
        return uuid, []
    uuid = uuid or str(uuidlib.uuid4())
    return adopting.adopt(session, caller, host, request['addresses'], wanted, uuid)


def _is_made(session: orm.Session, uuid: str, consumer: str) -> bool:
    """Whether a process has this lease already.

    :raises cyborg_lite.exception.Conflict: when another one has the uuid, or the lease has ended.
    """
    requesting.check('uuid', uuid, requesting.CANONICAL)
    held = sa.select(_kind.consumer_type, _kind.consumer_id, _kind.state).where(_kind.uuid == uuid)
    found = session.execute(held).one_or_none()
    if found is None:
        return False
    if (found.consumer_type, found.consumer_id) != (_kind.PROCESS, consumer):
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
    observed = _refuse_stranger(session, host, agent)
    columns = (
        *('uuid', 'state', 'name', 'project_id', 'consumer_id', 'accelerators'),
        *('idleness', 'reservation_uuid', 'amount', 'container'),
        *model.Allocation.LABELS,
    )
    found = session.scalars(
        sa.select(_kind).where(
            _kind.uuid == uuid if uuid else _kind.state.in_(ALIVE), *db_leases.of(host)
        )
    ).all()
    waits = {each.uuid for each in found if each.state == 'queued'}
    positions = db_queue.positions(session) if waits else {}
    explained = waiting.explain_first(session, waits) if waits else {}
    return [
        {name: getattr(each, name) for name in columns}
        | {
            'reason': explained.get(each.uuid, each.reason),
            'position': positions.get(each.uuid),
            'created_at': each.created_at.isoformat(),
            'starts_at': each.starts_at and each.starts_at.isoformat(),
            'lease_ends_at': each.lease_ends_at and each.lease_ends_at.isoformat(),
            # Conductors of the release before do not ask whether cards are closed.
            'observed': observed,
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
    requesting.check('containers', containers, CONTAINERS)
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
    closed: bool,
) -> None:
    """Release a lease of a host, unless that is done."""
    _refuse_stranger(session, host, agent)
    lease = session.scalars(
        sa.select(_kind).where(_kind.uuid == uuid, *db_leases.of(host))
    ).one_or_none()
    if lease is not None:
        releasing.end(session, lease, journal.plain(cause)[:255], closed=closed)


@messaging.expected_exceptions(exception.CyborgError)
def _check_asked(**asked: typing.Any) -> None:
    requesting.check('call', asked, ASKED)


def _refuse_stranger(session: orm.Session, host: str, agent: str) -> bool:
    """Refuse an agent that does not report this host; returns whether it looks at processes.

    Each start of an agent has a new id, which only the agent and conductors know: see
    cyborg_lite.conductor.trust for whose report may bring one.
    """
    reports = model.Host.name == host, model.Host.agent == agent, model.Host.renamed_to.is_(None)
    observes = session.scalar(sa.select(model.Host.observes).where(*reports))
    if observes is None:
        raise exception.Conflict(reason=f'Host {host} is not reported by this agent')
    return observes

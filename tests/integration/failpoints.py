# SPDX-License-Identifier: Apache-2.0
"""Failpoints: points at which a service can be killed, without changes of its code.

``python -m tests.integration.failpoints COMMAND ARGUMENT...`` runs a command of this environment
with a point before and after each commit of a writer, each call over the bus and its answer, and
each HTTP request.  A point's name reads ``conductor commit bind before``.

The directory that ``FAILPOINTS`` names holds what a test and the processes tell each other: each
file in ``armed`` names a point.  A process that reaches the point deletes the file and ends, as by
kill -9.  The file ``reached`` lists the points that were reached.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
from importlib import metadata
import inspect
import itertools
import os
import pathlib
import re
import sys
import threading
import typing
import urllib.parse

from oslo_messaging.rpc import dispatcher
import requests
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm

from cyborg_lite import rpc
from cyborg_lite import service  # noqa: F401 - so that what is forked is warm
from cyborg_lite.agent import leases as agent_leases
from cyborg_lite.conductor import healing
from cyborg_lite.conductor import leases
from cyborg_lite.conductor import manager
from cyborg_lite.conductor import outbox
from cyborg_lite.db import engine

#: The name of the service in the names of points, by the command.
SERVICES = {
    'cyborg-lite-agent': 'agent',
    'cyborg-lite-conductor': 'conductor',
    'gunicorn': 'api',
}
#: The exit status at a point; gunicorn uses 3 and 4 itself.
STATUS = 77


#: Methods that write nothing; and one that writes a column, which agents tell until it is written.
TRACELESS = {
    'probe', 'check_allocation', 'explain_waiting', 'show_limits', 'leases', 'holders', 'contain',
    'look',
}  # fmt: skip
#: Transactions of the healer that the cycle does not reach: it has no card that is idle for long.
#: Each is one conditional UPDATE, or the release of an allocation, as by the end of a lease.
ABSENT = {'_look_for_idle'}
#: The timeout of an agent's call for a lease, in seconds: what dies does not answer.
TIMEOUT = 4


def public(kind: type) -> list[str]:
    """The exposed methods of a manager that change something."""
    exposed = {name for name, function in vars(kind).items() if hasattr(function, 'exposed')}
    return [name for name in vars(kind) if name in exposed - TRACELESS]


def _plain(name: str) -> str:
    return name.lstrip('_')


def _is_transaction(function: typing.Any) -> bool:
    """Whether it wraps a function whose first argument is the session of its transaction."""
    if not inspect.isfunction(function):
        return False
    return next(iter(inspect.signature(function).parameters), '') == 'session'


#: The manager's functions that run in a transaction of their own, by name.
TRANSACTIONS = [
    name
    for name, function in vars(manager.Manager).items()
    if _is_transaction(function) and _plain(name) not in TRACELESS
]
#: The transactions of a conductor outside of calls: all functions that open a transaction
#: themselves.
UNASKED = {
    kind: [
        name
        for name, function in vars(kind).items()
        if inspect.isfunction(function)
        and re.search(
            r'_database\.writer\(\)|(outbox|self)\.session\(\)', inspect.getsource(function)
        )
        and name not in TRANSACTIONS
        and name not in ABSENT
        and name != outbox.Sender.session.__name__
    ]
    for kind in (outbox.Sender, healing.Healer, manager.Manager)
}
#: The HTTP requests by service; ``*`` stands for a name or a uuid.
REQUESTS = {
    'api': ['GET /v3', 'POST /v3/auth/tokens', 'GET /v3/auth/tokens', 'GET /v3/projects/*'],
    'conductor': [
        'GET /v3',
        'POST /v3/auth/tokens',
        'GET /placement/resource_classes/*',
        'PUT /placement/resource_classes/*',
        'GET /placement/traits/*',
        'PUT /placement/traits/*',
        'GET /placement/resource_providers',
        'POST /placement/resource_providers',
        'PUT /placement/resource_providers/*',
        'GET /placement/resource_providers/*/inventories',
        'GET /placement/resource_providers/*/traits',
        'GET /placement/resource_providers/*/usages',
        'PUT /placement/resource_providers/*/inventories',
        'PUT /placement/resource_providers/*/traits',
        'DELETE /placement/resource_providers/*',
        'POST /compute/v2.1/os-server-external-events',
        'GET /compute/v2.1/servers/*',
        'GET /compute/v2.1/servers',
    ],
}


#: The methods by which agents call conductors: by ``leases`` one adopts those of its earlier start,
#: and by ``holders`` it tells a client who else holds what.
OF_AGENTS = ['report', 'leases', 'holders', *public(leases.Leases)]
#: Calls without points: whether one is made may depend on the moment.
POINTLESS = TRACELESS - {*OF_AGENTS}


def _points() -> collections.abc.Iterator[str]:
    for method in dict.fromkeys([*public(manager.Manager), *OF_AGENTS]):
        caller = 'agent' if method in OF_AGENTS else 'api'
        yield from (f'{caller} call {method} {when}' for when in ('before', 'after'))
        yield from (f'conductor answer {method} {when}' for when in ('before', 'after'))
    for name in [*TRANSACTIONS, *itertools.chain(*UNASKED.values())]:
        yield from (f'conductor commit {_plain(name)} {when}' for when in ('before', 'after'))
    for name, requests_ in REQUESTS.items():
        for request in requests_:
            yield from (f'{name} request {request} {when}' for when in ('before', 'after'))


POINTS = list(_points())
#: Points that are equivalent to others: before a call nothing has happened, and an answer begins
#: and ends with its transaction; a quota and the end of a lease are one row each, and the healer
#: repeats the messages of the queue.
BESIDE = {
    point
    for point in POINTS
    if re.search('api call .* before|conductor answer', point)
    or re.search('_quota|renew_allocation|commit (wake|serve_queue)', point)
}


class Points:
    """The points of this process."""

    def __init__(self, place: pathlib.Path, name: str) -> None:
        self._place = place
        self._name = name
        self._transaction = threading.local()

    def reach(self, *words: str) -> None:
        point = ' '.join([self._name, *words])
        with (self._place / 'reached').open('a') as reached:
            reached.write(f'{point}\n')
        for armed in (self._place / 'armed').iterdir():
            with contextlib.suppress(FileNotFoundError):
                if armed.read_text() == point:
                    armed.unlink()
                    os._exit(STATUS)

    @contextlib.contextmanager
    def around(self, *words: str) -> collections.abc.Iterator[None]:
        """A point before and, without an error, one after."""
        self.reach(*words, 'before')
        yield
        self.reach(*words, 'after')

    def install(self) -> None:
        self._watch_commits()
        self._watch_calls()
        self._watch_requests()

    def _watch_commits(self) -> None:
        for kind, names in [(manager.Manager, TRANSACTIONS), *UNASKED.items()]:
            for name in names:
                setattr(kind, name, self._named(_plain(name), getattr(kind, name)))
        writer = engine.Database.writer

        @contextlib.contextmanager
        def watched(database: engine.Database) -> typing.Iterator[orm.Session]:
            with writer(database) as session:
                # A transaction without a name has no point in the list, which makes a test fail.
                session.info['point'] = self._name_of_transaction()
                _note_writes(session)
                yield session

        engine.Database.writer = watched
        for when in ('before', 'after'):
            event.listen(orm.Session, f'{when}_commit', functools.partial(self._commit, when))

    def _name_of_transaction(self) -> str:
        return getattr(self._transaction, 'name', 'of nobody')

    def _named(self, name: str, function: typing.Any) -> typing.Any:
        @functools.wraps(function)
        def named(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            # Functions may be nested: afterwards the outer name applies again.
            before = self._name_of_transaction()
            self._transaction.name = name
            try:
                return function(*args, **kwargs)
            finally:
                self._transaction.name = before

        return named

    def _commit(self, when: str, session: orm.Session) -> None:
        if when == 'before':
            session.flush()  # as the commit would do next
        if session.info.get('wrote'):
            self.reach('commit', session.info['point'], when)

    def _watch_calls(self) -> None:
        calling, dispatch = rpc.Peer.__getattr__, dispatcher.RPCDispatcher.dispatch

        def call(peer: rpc.Peer, method: str) -> typing.Any:
            if method in POINTLESS:
                return calling(peer, method)

            def watched(**kwargs: typing.Any) -> typing.Any:
                with self.around('call', method):
                    return calling(peer, method)(**kwargs)

            return watched

        def answer(self_: typing.Any, incoming: typing.Any) -> typing.Any:
            method = incoming.message['method']
            if method in POINTLESS:
                return dispatch(self_, incoming)
            self.reach('answer', method, 'before')
            try:
                return dispatch(self_, incoming)
            finally:
                self.reach('answer', method, 'after')

        rpc.Peer.__getattr__ = call
        dispatcher.RPCDispatcher.dispatch = answer

    def _watch_requests(self) -> None:
        send = requests.Session.send

        def watched(session: requests.Session, request: requests.PreparedRequest, **kwargs):
            with self.around('request', f'{request.method} {_path(request.url)}'):
                return send(session, request, **kwargs)

        requests.Session.send = watched


def _note_writes(session: orm.Session) -> None:
    """Note whether the transaction writes: one that only reads, as to poll the outbox, changes
    nothing.
    """

    @event.listens_for(session.connection(), 'before_execute')
    def note(_connection: sa.Connection, statement: typing.Any, *_: object) -> None:
        if getattr(statement, 'is_dml', False):
            session.info['wrote'] = True


def _path(url: str) -> str:
    path = urllib.parse.urlsplit(url).path.rstrip('/')
    return re.sub(r'/([A-Z][A-Z_0-9]+|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32})', '/*', path)


class Control:
    """The test's side of it."""

    def __init__(self, place: pathlib.Path) -> None:
        self.place = place
        self._armed = place / 'armed'
        self._armed.mkdir(parents=True)

    def arm(self, *points: str) -> None:
        for point in points:
            new = self.place / 'new'
            new.write_text(point)
            new.rename(self._armed / str(POINTS.index(point)))

    def disarm(self) -> None:
        for left in self._armed.iterdir():
            left.unlink(missing_ok=True)

    def fired(self) -> bool:
        """Whether a process has died at each point that was armed."""
        return not any(self._armed.iterdir())

    def reached(self) -> list[str]:
        """The points that were reached, in this order."""
        return (self.place / 'reached').read_text().splitlines()


def main() -> int:
    command = sys.argv[1]
    sys.argv[:] = sys.argv[1:]
    agent_leases.TIMEOUT = TIMEOUT
    Points(pathlib.Path(os.environ['FAILPOINTS']), SERVICES[command]).install()
    [entry] = metadata.entry_points(group='console_scripts', name=command)
    return entry.load()()


if __name__ == '__main__':
    sys.exit(main())

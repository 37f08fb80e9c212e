# SPDX-License-Identifier: Apache-2.0
"""Faults that are injected into a service: of messages, deadlocks, clock jumps.

``python -m tests.soak.hooks NAME COMMAND ARGUMENT...`` runs a command of this environment, or the
module of the soak that ``-m`` names, under a name of its own among its like.  ``SOAK_PLACE`` names
the directory of :mod:`control`, and ``SOAK_BUG`` a bug that is planted.
"""

from __future__ import annotations

import collections.abc
import datetime
from importlib import metadata
import os
import pathlib
import random
import sys
import threading
import time
import typing

import oslo_messaging as messaging
from oslo_messaging.rpc import dispatcher
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm
import webob
import webob.dec

from cyborg_lite import driver
from cyborg_lite import model
from cyborg_lite import service  # noqa: F401 - so that what is forked is warm
from cyborg_lite.api import app
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import manager
from cyborg_lite.conductor import matching
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import taking
from cyborg_lite.db import exclusion
from tests.soak import agents
from tests.soak import control as control_
from tests.soak import machines

#: The delay of a late or repeated message, in seconds.
LATE = (0.5, 8.0)
#: The headers that identify a caller, as from keystonemiddleware.
PROJECT, ROLES = 'X-Project-Id', 'X-Roles'


def watch_messages(control: control_.Control) -> None:
    """Lose, delay or duplicate calls, or lose their answers."""
    dispatch = dispatcher.RPCDispatcher.dispatch

    def spoiled(self: typing.Any, incoming: typing.Any) -> typing.Any:
        fault = control.take('message')
        if fault == 'late':
            time.sleep(random.uniform(*LATE))
        if fault in ('lost', 'unanswered'):
            incoming.reply = lambda *args, **kwargs: None
        if fault == 'lost':
            return None
        try:
            return dispatch(self, incoming)
        finally:
            if fault == 'doubled':
                _again(lambda: dispatch(self, incoming))

    dispatcher.RPCDispatcher.dispatch = spoiled


def _again(call: collections.abc.Callable[[], typing.Any]) -> None:
    """Deliver the same message again later, without a receiver of the answer."""
    timer = threading.Timer(random.uniform(*LATE), lambda: _quietly(call))
    timer.daemon = True
    timer.start()


def _quietly(call: collections.abc.Callable[[], typing.Any]) -> None:
    try:
        call()
    except Exception as error:
        print(f'A message that came twice: {error!r}', file=sys.stderr)


def watch_looks() -> None:
    """Prevent changes of slots while a driver scans its machine."""
    look = driver.Driver.look

    def still(self: driver.Driver) -> typing.Any:
        with machines.still(self.host.root):
            return look(self)

    driver.Driver.look = still


def watch_commits(control: control_.Control) -> None:
    """Raise the database's deadlock error at a commit."""

    def deadlock(session: orm.Session) -> None:
        if control.take('deadlock'):
            session.connection().execute(sa.text(DEADLOCK[session.get_bind().dialect.name]))

    event.listen(orm.Session, 'before_commit', deadlock)


DEADLOCK = {
    'postgresql': "DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$",
    'mysql': "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = "
    "'Deadlock found when trying to get lock; try restarting transaction'",
}


class Clock:
    """The clock of oslo.utils, in place of the system's."""

    def __init__(self, clock: control_.Clock) -> None:
        self._clock = clock

    def pop(self, _index: int) -> datetime.datetime:
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        return now + datetime.timedelta(seconds=self._clock.seconds())


def set_clock(clock: control_.Clock) -> None:
    now = time.time
    time.time = lambda: now() + clock.seconds()
    timeutils._override_time = Clock(clock)


class Told:
    """Trusts the identity headers of callers: there is no Keystone."""

    def __init__(self, application: app.Wsgi, _who: object) -> None:
        self._app = application

    @webob.dec.wsgify
    def __call__(self, request: webob.Request) -> typing.Any:
        given = {name: request.headers.get(name, '') for name in (PROJECT, ROLES)}
        request.headers.update({'X-Identity-Status': 'Confirmed', 'X-User-Id': 'one'} | given)
        return self._app


class Handle(typing.NamedTuple):
    """A handle in the form of binding._free_handles()."""

    id: int
    uuid: str
    excludes: bool


def _give_twice(
    _session: orm.Session, provider: typing.Any, wishes: list[binding.Wish]
) -> list[typing.Any]:
    """Return handles even if they are held."""
    handles = [handle for handle in provider.attach_handles if not handle.lost]
    return [Handle(handle.id, handle.uuid, False) for handle in handles[: len(wishes)]]


@messaging.expose
def _keep(*_args: object, **_kwargs: object) -> None:
    """Do nothing, so that the handle stays held."""


def _pair_by_address(known: list[model.Device], found: list[model.Device]) -> list[matching.Pair]:
    """Pair devices by address, and ignore serial numbers."""
    at = {device.identity: device for device in known}
    return [(card, at.get(card.identity)) for card in found]


def _whenever(rows: list[typing.Any], kinds: taking.Kinds) -> list[placing.Candidate]:
    """Candidates that no reservation seems to need."""
    return [taking.candidate(row, len(kinds)) for row in rows]


def plant(bug: str) -> None:
    """Break one promise."""
    if bug == 'given twice':
        binding._free_handles = _give_twice
    elif bug == 'kept':
        manager.Manager.unbind = _keep
    elif bug == 'two forms':
        parameters = exclusion.parameters
        # No part of this card is found.
        exclusion.parameters = lambda *given: parameters(*given) | {'device_id': -1}
    elif bug == 'given in a reserved time':
        taking._spared = _whenever
    elif bug == 'beyond limits':
        quotas._beyond = lambda *_given: None
    elif bug == 'another card':
        matching.pair = _pair_by_address


def main() -> int:
    _, name, *command = sys.argv
    control = control_.Control(pathlib.Path(os.environ['SOAK_PLACE']))
    set_clock(control.clock(name))
    app.Alone = Told
    if name.startswith('conductor'):
        watch_messages(control)
        watch_commits(control)
        plant(os.environ.get('SOAK_BUG', ''))
    sys.argv[:] = command
    if command[0] == 'agents':
        watch_looks()
        return agents.main()
    [entry] = metadata.entry_points(group='console_scripts', name=command[0])
    return entry.load()()


if __name__ == '__main__':
    sys.exit(main())

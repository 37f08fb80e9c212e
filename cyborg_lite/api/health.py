# SPDX-License-Identifier: Apache-2.0
"""/healthcheck: whether requests can be answered; /healthcheck/live: whether the process runs.

The plugins of oslo.middleware (``[healthcheck] backends``) run first.
"""

from __future__ import annotations

import collections.abc
from concurrent import futures
import threading
import time
import typing

from oslo_config import cfg
import oslo_messaging as messaging
from oslo_middleware import healthcheck
import sqlalchemy as sa
import webob
import webob.dec
import webob.exc

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import rpc
from cyborg_lite.api import rest
from cyborg_lite.db import engine

#: How long a result is reused, in seconds.
FRESH = 1.0
#: How long a probe may take, in seconds.
PATIENCE = 3


class Probe:
    """Runs one check at a time in a thread of its own; concurrent requests share the result."""

    def __init__(self, check: collections.abc.Callable[[], str | None]) -> None:
        """:param check: returns why requests cannot be answered, or None."""
        self._check = check
        self._lock = threading.Lock()
        self._found: futures.Future[str | None] | None = None
        self._ended = 0.0

    def reason(self) -> str | None:
        with self._lock:
            if self._found is None or (self._found.done() and self._is_stale()):
                self._found = futures.Future()
                threading.Thread(
                    target=self._run, args=(self._found,), name='probe', daemon=True
                ).start()
            found = self._found
        try:
            return found.result(PATIENCE)
        except futures.TimeoutError:
            return f'The database does not answer within {PATIENCE} seconds.'

    def _is_stale(self) -> bool:
        return time.monotonic() - self._ended >= FRESH

    def _run(self, found: futures.Future[str | None]) -> None:
        try:
            reason = self._check()
        except Exception as error:
            reason = rest.away(error) or 'The probe failed: see the log.'
            rest.LOG.warning('Not ready: %s (%r)', reason, error)
        self._ended = time.monotonic()
        found.set_result(reason)


class Readiness:
    """503, and why, while the bus, the conductors or the database cannot be used."""

    def __init__(self, conf: cfg.ConfigOpts, database: engine.Database, bus: rpc.Peers) -> None:
        # The middleware passes on the requests that it does not serve: 404.
        self._plugins = healthcheck.Healthcheck(webob.exc.HTTPNotFound(), conf)
        self._database = database
        self._bus = bus
        self._probe = Probe(self._check)

    @webob.dec.wsgify
    def __call__(self, request: webob.Request) -> webob.Response:
        answer = request.get_response(self._plugins)
        reason = self._probe.reason() if answer.status_int < 300 else None
        if reason is None:
            # Without plugins oslo.middleware returns an empty body.
            if not answer.body and request.method == 'GET':
                answer.text = 'OK'
            return answer
        if answer.content_type == 'application/json':
            json = {'detailed': False, 'reasons': [reason]}
            return webob.Response(status=503, json_body=json)
        return webob.Response(status=503, text=reason, content_type='text/plain', charset='UTF-8')

    def _check(self) -> str | None:
        with self._database.reader() as session:
            session.execute(sa.select(1))
        # Only conductors write.
        conductor = self._bus.conductor(context.service(), timeout=PATIENCE)
        try:
            conductor.probe()
        except exception.DatabaseAway as error:
            return error.message
        except messaging.RemoteError as error:
            # A conductor of the previous release is alive but does not know the method.
            if error.exc_type != 'NoSuchMethod':
                raise
        return None


@webob.dec.wsgify
def alive(request: webob.Request) -> webob.Response:
    return webob.Response(text='OK', content_type='text/plain', charset='UTF-8')


def paths(conf: cfg.ConfigOpts, database: engine.Database, bus: rpc.Peers) -> dict[str, typing.Any]:
    """The paths that are served without authentication."""
    return {'/healthcheck': Readiness(conf, database, bus), '/healthcheck/live': alive}

# SPDX-License-Identifier: Apache-2.0
"""The Placement service with faults: it sometimes refuses, or does not answer in time.

``python -m tests.soak.placement DIRECTORY``; the configuration is that of Placement.
"""

from __future__ import annotations

import pathlib
import sys
import threading
import time
import typing

from cheroot import wsgi
from placement.wsgi.api import application
import sqlalchemy as sa
from sqlalchemy import event
import webob
import webob.dec

from tests.soak import control as control_

#: Longer than the client's timeout, in seconds.
SILENCE = 4


class Moody:
    """A layer in front of the application that injects faults."""

    def __init__(self, control: control_.Control) -> None:
        self._control = control
        # SQLite allows one writer at a time.
        self._lock = threading.Lock()

    @webob.dec.wsgify
    def __call__(self, request: webob.Request) -> typing.Any:
        fault = self._control.take('placement')
        if fault == 'conflict':
            return _error(409, 'placement.concurrent_update')
        if fault == 'unavailable':
            return _error(503, 'placement.undefined_code')
        if fault == 'silent':
            time.sleep(SILENCE)
            return _error(503, 'placement.undefined_code')
        with self._lock:
            answer = request.get_response(application)
        if fault == 'late':
            time.sleep(SILENCE)
        return answer


def _error(status: int, code: str) -> webob.Response:
    error = {'status': status, 'code': code, 'title': 'A mood', 'detail': 'It will pass.'}
    return webob.Response(json_body={'errors': [error]}, status=status)


@event.listens_for(sa.Engine, 'connect')
def _hurry(connection: typing.Any, _record: object) -> None:
    # Durability is not needed here.
    connection.execute('PRAGMA synchronous = OFF')


def main() -> None:
    control = control_.Control(pathlib.Path(sys.argv[1]))
    app = wsgi.PathInfoDispatcher({'/placement': Moody(control)})
    server = wsgi.Server(('127.0.0.1', 0), app, numthreads=8)
    server.prepare()
    print(f'Listening at http://127.0.0.1:{server.bind_addr[1]}', flush=True)
    server.serve()


if __name__ == '__main__':
    main()

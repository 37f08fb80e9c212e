# SPDX-License-Identifier: Apache-2.0
"""Between HTTP and WSGI: the environment of a request, and the answer of an application."""

from __future__ import annotations

import collections.abc
import contextlib
import socket
import sys
import typing
from urllib import parse

import h11

from cyborg_lite import unix

Environ = dict[str, typing.Any]
Wsgi = collections.abc.Callable[..., typing.Any]

#: The name and the port of a server with a Unix socket, for links in answers.
LOCAL = ('localhost', 80)


class Refused(Exception):
    """The request is refused here: the application does not see it."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason


def ends(client: socket.socket, peer: typing.Any) -> Environ:
    """The two ends of a connection, for the environment of its requests.

    :param peer: the address of the client, as accept() returns it.
    """
    local = client.family == socket.AF_UNIX
    name, port = LOCAL if local else client.getsockname()[:2]
    ours = {'SERVER_NAME': name, 'SERVER_PORT': str(port)}
    if local:
        return ours | {'REMOTE_ADDR': '', unix.PEER: unix.peer(client).uid}
    return ours | {'REMOTE_ADDR': peer[0], 'REMOTE_PORT': str(peer[1])}


def check(request: h11.Request) -> None:
    """Refuse a request that is not for this server."""
    if request.method == b'CONNECT':
        raise Refused(400, 'CONNECT is for proxies: expected another method')
    names = {name for name, _ in request.headers}
    # A proxy may have used the other length (request smuggling): RFC 9112, 6.1.
    if {b'content-length', b'transfer-encoding'} <= names:
        raise Refused(400, 'Content-Length and Transfer-Encoding: expected one of them')


def of_request(request: h11.Request) -> Environ:
    """The WSGI environment of a request."""
    target = request.target.decode('latin-1')
    host = None
    if not target.startswith('/') and target != '*':
        # The absolute form, as for a proxy.
        with contextlib.suppress(ValueError):
            url = parse.urlsplit(target)
            host = url.netloc
        if not host:
            raise Refused(400, 'The target is not valid: expected a path')
        target = parse.urlunsplit(('', '', url.path or '/', url.query, ''))
    path, _, query = target.partition('?')
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        # A header with an underscore would look like one with a hyphen.
        if b'_' not in name:
            key = 'HTTP_' + name.decode('latin-1').upper().replace('-', '_')
            headers.setdefault(key, []).append(value.decode('latin-1'))
    environ: Environ = {key: ','.join(values) for key, values in headers.items()}
    for key in ('CONTENT_TYPE', 'CONTENT_LENGTH'):
        if f'HTTP_{key}' in environ:
            environ[key] = environ.pop(f'HTTP_{key}')
    if host is not None:
        environ['HTTP_HOST'] = host
    return environ | {
        'REQUEST_METHOD': request.method.decode('latin-1'),
        'SCRIPT_NAME': '',
        'PATH_INFO': parse.unquote_to_bytes(path).decode('latin-1'),
        'QUERY_STRING': query,
        'SERVER_PROTOCOL': f'HTTP/{request.http_version.decode("latin-1")}',
        'wsgi.version': (1, 0),
        'wsgi.errors': sys.stderr,
        'wsgi.multithread': True,
        'wsgi.multiprocess': False,
        'wsgi.run_once': False,
        'wsgi.input_terminated': True,
    }


def run(application: Wsgi, environ: Environ) -> tuple[int, list[tuple[str, str]], bytes]:
    """The answer of a WSGI application: status, headers and body."""
    said: list[typing.Any] = []
    body: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], _error: object = None) -> Wsgi:
        said[:] = [int(status.partition(' ')[0]), headers]
        return body.append

    answer = application(environ, start_response)
    try:
        body.extend(answer)
    finally:
        if hasattr(answer, 'close'):
            answer.close()
    status, headers = said
    return status, headers, b''.join(body)

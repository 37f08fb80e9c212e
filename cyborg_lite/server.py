# SPDX-License-Identifier: Apache-2.0
"""The web server of ``cyborg-lite up``: asyncio reads and writes, threads run the application.

A thread is used only once the whole request has arrived, so a slow client occupies a connection
but no thread. Sizes, times and the number of connections are bounded for all clients.
"""

from __future__ import annotations

import asyncio
import collections.abc
from concurrent import futures
import contextlib
import dataclasses
from email import utils
import errno
import http
import io
import re
import socket
import ssl
import sys
import typing
from urllib import parse

import h11
from oslo_log import log

LOG = log.getLogger(__name__)

Environ = dict[str, typing.Any]
Wsgi = collections.abc.Callable[..., typing.Any]

#: The size of one read. The buffer of a connection is twice as large.
CHUNK = 16384
#: How much of it is parsed before other clients have their turn. h11 parses all headers, or all
#: trailers, in one go, so this also bounds how many of them it sees beyond their limit.
PIECE = 512
#: The size of the kernel's send buffer for a client that does not read, in bytes. The default is
#: megabytes, and pipelined requests are handled until it is full.
UNREAD = 1 << 16
#: The empty line after the headers.
END_OF_HEAD = re.compile(rb'\n\r?\n')


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes are in bytes, times in seconds."""

    #: The request line and the headers together.
    header: int = 65536
    #: The maximum number of headers.
    headers: int = 100
    #: The maximum size of a body, about; the application refuses a larger one.
    body: int = 114688
    #: The sizes of chunks, their extensions and the trailers of a body together.
    framing: int = 16384
    #: Beyond this, a new connection replaces the one that has waited longest for its client.
    connections: int = 500
    #: The number of requests that the application handles at the same time.
    threads: int = 16
    #: From the start of a request to its end.
    request: float = 20
    #: Between two requests.
    idle: float = 30
    #: Until the client has read the response.
    response: float = 60
    #: For requests in progress when the server is stopped.
    grace: float = 3
    #: For data that a client still sends after a refusal: otherwise it may not see the response.
    linger: float = 2


class Refused(Exception):
    """The request is refused here: the application does not see it."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason


class Server:
    """A server that is bound to its address; :meth:`serve` answers until :meth:`stop`."""

    def __init__(self, application: Wsgi, listener: socket.socket) -> None:
        listener.setblocking(False)
        # Accepted connections inherit this option.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
        self.bind_addr: tuple[str, int] = listener.getsockname()[:2]
        self._application = application
        self._listener = listener
        self._limits = Limits()
        self._tls: ssl.SSLContext | None = None
        self._connections: set[asyncio.Task[None]] = set()
        #: The connections that wait for their client to send a request or to read a response, the
        #: longest wait first.
        self._waiting: dict[asyncio.Task[None], None] = {}
        #: The connections with a complete request whose response has not been sent.
        self._in_progress: set[asyncio.Task[None]] = set()
        #: Set when a connection has ended, or may be replaced.
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self.stopped = False

    def serve(self, limits: Limits = Limits(), tls: ssl.SSLContext | None = None) -> None:  # noqa: B008
        """Answer requests until the server is stopped."""
        self._limits = limits
        self._tls = tls
        self._threads = futures.ThreadPoolExecutor(limits.threads, thread_name_prefix='http')
        try:
            # At the end it cancels the remaining connections.
            asyncio.run(self._serve())
        finally:
            self._loop = None
            self._listener.close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Make :meth:`serve` return; can be called at any time, from any thread, many times."""
        self.stopped = True
        loop = self._loop
        if loop is None:
            self._listener.close()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._ended.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self.stopped:
            return
        accepting = asyncio.create_task(self._accept())
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait({accepting, ended}, return_when=asyncio.FIRST_COMPLETED)
        self.stopped = True
        if accepting.done():
            accepting.result()
        accepting.cancel()
        await asyncio.wait({accepting})
        self._listener.close()
        if self._in_progress:
            await asyncio.wait(self._in_progress, timeout=self._limits.grace)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # sock_accept does not yield while clients are waiting.
            await asyncio.sleep(0)
            try:
                client, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    # Probably all file descriptors are in use.
                    LOG.warning('No connection can be accepted: %s', error)
                    self._drop()
                    await asyncio.sleep(0.1)
                continue
            while len(self._connections) >= self._limits.connections and not self._drop():
                self._changed.clear()
                await self._changed.wait()
            task = loop.create_task(self._connection(client, peer))
            self._wait(task)
            self._connections.add(task)
            task.add_done_callback(self._forget)

    def _wait(self, task: asyncio.Task[None]) -> None:
        """Mark the connection as waiting for its client."""
        self._waiting.pop(task, None)
        self._waiting[task] = None
        self._changed.set()

    def _drop(self) -> bool:
        """Close the connection that has waited longest for its client; False if none waits."""
        task = next(iter(self._waiting), None)
        if task is None:
            return False
        del self._waiting[task]
        return task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._in_progress.discard(task)
        self._waiting.pop(task, None)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()):
            LOG.error('A connection failed.', exc_info=error)

    async def _connection(self, client: socket.socket, peer: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        server = client.getsockname()
        handshake = self._limits.request if self._tls else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, client, ssl=self._tls, ssl_handshake_timeout=handshake
            )
        except OSError as error:
            LOG.debug('No TLS with %s: %s', peer[0], error)
            return
        # A response counts as sent once the kernel has all of it. With 0 asyncio's TLS would pause
        # when nothing is left to send.
        transport.set_write_buffer_limits(1)
        environ = {
            'SERVER_NAME': server[0],
            'SERVER_PORT': str(server[1]),
            'REMOTE_ADDR': peer[0],
            'REMOTE_PORT': str(peer[1]),
            'wsgi.url_scheme': 'https' if self._tls else 'http',
            # A waiting request ends when the server stops.
            'cyborg_lite.stopping': lambda: self.stopped,
        }
        connection = Connection(
            reader, asyncio.StreamWriter(transport, protocol, reader, loop), self._limits
        )
        task = typing.cast('asyncio.Task[None]', asyncio.current_task())
        try:
            while (asked := await connection.request()) is not None:
                self._waiting.pop(task, None)
                self._in_progress.add(task)
                answer = await loop.run_in_executor(self._threads, self._call, environ | asked)
                self._wait(task)
                kept = await connection.answer(*answer, close=self.stopped)
                if not kept or self.stopped:
                    break
                self._in_progress.discard(task)
                self._wait(task)
                # The next request may have arrived already: other clients come first.
                await asyncio.sleep(0)
            await connection.close()
        except OSError:  # the client has disconnected, or is too slow
            pass
        finally:
            transport.abort()

    def _call(self, environ: Environ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Run the application."""
        try:
            return _run(self._application, environ)
        except Exception:
            LOG.exception('The application failed.')
            return 500, [], b''


class Connection:
    """An HTTP connection with one client."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header)
        self._used = False
        self._method = b''
        #: What has been read and not been parsed.
        self._read = b''
        #: How many bytes h11 has been given.
        self._given = 0
        #: How many bytes of the body are still to come; 0 where only its chunks tell.
        self._left = 0

    async def request(self) -> Environ | None:
        """The next request; None if there is none, and the connection must be closed."""
        if self._used and not self._read and not self._http.trailing_data[0]:
            async with asyncio.timeout(self._limits.idle):
                await self._give()
        self._used = True
        self._method = b''
        try:
            async with asyncio.timeout(self._limits.request):
                return await self._receive()
        except TimeoutError:
            await self._refuse(408, 'The request took too long to arrive')
        except Refused as error:
            await self._refuse(error.status, error.reason)
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            if status == 431 and b'\n' not in self._http.trailing_data[0]:
                status = 414
            await self._refuse(status, str(error))
        return None

    async def _receive(self) -> Environ | None:
        self._count_headers()
        request = await self._event()
        if not isinstance(request, h11.Request):
            return None
        self._method = request.method
        _check(request)
        size = len(request.target) + sum(len(n) + len(v) for n, v in request.headers)
        if size > self._limits.header:
            raise Refused(431, f'The headers are too large: expected {self._limits.header} bytes')
        environ = _environ(request)
        body = await self._body(int(environ.get('CONTENT_LENGTH') or 0))
        if environ.pop('HTTP_TRANSFER_ENCODING', None):
            environ['CONTENT_LENGTH'] = str(len(body))
        return environ | {'wsgi.input': io.BytesIO(body)}

    async def _body(self, length: int) -> bytes:
        """The body; of one that is too large, nothing or its start."""
        body = bytearray()
        if length <= self._limits.body:
            self._left = length
            began = self._parsed()
            while isinstance(event := await self._event(), h11.Data):
                body += event.data
                self._left = max(0, length - len(body))
                if len(body) > self._limits.body:
                    break
                if self._parsed() - began - len(body) > self._limits.framing:
                    most = self._limits.framing
                    raise Refused(400, f'The framing of the body is too large: expected {most}')
        return bytes(body)

    def _parsed(self) -> int:
        """How many bytes h11 has parsed."""
        return self._given - len(self._http.trailing_data[0])

    async def _event(self) -> h11.Event | None:
        """The next event of the request; None between two requests."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            if self._http.their_state is h11.SEND_BODY:
                self._count_trailers()
            await self._give()
            if self._http.their_state is h11.IDLE:
                self._count_headers()
        return event if isinstance(event, h11.Event) else None

    async def _give(self) -> None:
        """Give h11 the next piece, or the end of the connection."""
        if self._read:
            # A read of what has arrived already lets no other client have its turn.
            await asyncio.sleep(0)
        else:
            self._read = await self._reader.read(CHUNK)
        # The end of a body is told by its length: what follows it is not given at once.
        size = max(PIECE, min(CHUNK, self._left))
        piece, self._read = self._read[:size], self._read[size:]
        self._given += len(piece)
        self._http.receive_data(piece)

    def _count_trailers(self) -> None:
        """Refuse a body with too many trailers before h11 parses them.

        It keeps whole lines of a body only where trailers follow that have not ended.
        """
        if self._http.trailing_data[0].count(b'\n') > self._limits.headers:
            raise Refused(431, f'Too many trailers: expected {self._limits.headers}')

    def _count_headers(self) -> None:
        """Refuse a request with too many headers before h11 takes the time to parse them."""
        head = END_OF_HEAD.split(self._http.trailing_data[0], 1)[0]
        if head.count(b'\n') > self._limits.headers:
            raise Refused(431, f'Too many headers: expected {self._limits.headers}')

    async def _refuse(self, status: int, reason: str) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [('Content-Type', 'text/plain')]
            await self.answer(status, headers, f'{reason}.\n'.encode(), close=True)

    async def answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, close: bool
    ) -> bool:
        """Send a response; returns whether another request may follow."""
        # The unread part of a body cannot be skipped.
        close = close or self._http.their_state is not h11.DONE
        fields = [(n.encode('latin-1'), v.encode('latin-1')) for n, v in headers]
        if not any(name.lower() == b'content-length' for name, _ in fields) and status != 204:
            fields.append((b'Content-Length', str(len(body)).encode()))
        fields.append((b'Date', utils.formatdate(usegmt=True).encode()))
        if close:
            fields.append((b'Connection', b'close'))
        reason = http.HTTPStatus(status).phrase.encode()
        head = h11.Response(status_code=status, headers=fields, reason=reason)
        # h11 refuses a body where HTTP allows none.
        silent = self._method == b'HEAD' or status in (204, 304)
        parts = [] if silent or not body else [h11.Data(data=body)]
        await self._send(head, *parts, h11.EndOfMessage())
        if self._http.our_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def _send(self, *events: h11.Event) -> None:
        self._writer.write(b''.join(self._http.send(event) or b'' for event in events))
        async with asyncio.timeout(self._limits.response):
            await self._writer.drain()

    async def close(self) -> None:
        """Close the connection, and let the client read the sent data."""
        async with asyncio.timeout(self._limits.linger):
            if self._http.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
                # With unread input TCP would reset the connection and lose the response.
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(CHUNK):
                    pass
            self._writer.close()
            await self._writer.wait_closed()


def _check(request: h11.Request) -> None:
    """Refuse a request that is not for this server."""
    if request.method == b'CONNECT':
        raise Refused(400, 'CONNECT is for proxies: expected another method')
    names = {name for name, _ in request.headers}
    # A proxy may have used the other length (request smuggling): RFC 9112, 6.1.
    if {b'content-length', b'transfer-encoding'} <= names:
        raise Refused(400, 'Content-Length and Transfer-Encoding: expected one of them')


def _environ(request: h11.Request) -> Environ:
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


def _run(application: Wsgi, environ: Environ) -> tuple[int, list[tuple[str, str]], bytes]:
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

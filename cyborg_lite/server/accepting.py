# SPDX-License-Identifier: Apache-2.0
"""Clients are accepted, each with a task of its own, and requests run in threads."""

from __future__ import annotations

import asyncio
from concurrent import futures
import contextlib
import errno
import socket
import ssl
import typing

from oslo_log import log

from cyborg_lite import unix
from cyborg_lite.server import connection
from cyborg_lite.server import environ
from cyborg_lite.server.connection import Limits

LOG = log.getLogger(__name__)

#: The size of the kernel's send buffer for a client that does not read, in bytes. The default is
#: megabytes, and pipelined requests are handled until it is full.
UNREAD = 1 << 16
#: The longest wait for an event, in seconds: Python does not notice a signal that comes just before
#: a wait until its end.
TICK = 1.0


class Server:
    """A server that is bound to its addresses; :meth:`serve` answers until :meth:`stop`."""

    def __init__(self, application: environ.Wsgi, *listeners: socket.socket) -> None:
        """
        :param listeners: sockets of TCP, and Unix sockets, whose clients have no TLS: the kernel
            tells their users, see :mod:`cyborg_lite.unix`.
        """
        for each in listeners:
            each.setblocking(False)
        #: The address and the port of the first socket of TCP.
        self.bind_addr: tuple[str, int] = next(
            (each.getsockname()[:2] for each in listeners if each.family != socket.AF_UNIX),
            environ.LOCAL,
        )
        self._application = application
        self._listeners = listeners
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
            self._close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Make :meth:`serve` return; can be called at any time, from any thread, many times."""
        self.stopped = True
        loop = self._loop
        if loop is None:
            self._close()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._ended.set)

    def _close(self) -> None:
        for each in self._listeners:
            each.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self.stopped:
            return
        accepting = {asyncio.create_task(self._accept(each)) for each in self._listeners}
        ended = asyncio.create_task(self._ended.wait())
        done: set[asyncio.Task[typing.Any]] = set()
        while not done:
            done, _ = await asyncio.wait(
                {*accepting, ended}, timeout=TICK, return_when=asyncio.FIRST_COMPLETED
            )
        self.stopped = True
        for each in accepting:
            if each.done():
                each.result()
            each.cancel()
        await asyncio.wait(accepting)
        self._close()
        if self._in_progress:
            await asyncio.wait(self._in_progress, timeout=self._limits.grace)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # sock_accept does not yield while clients are waiting.
            await asyncio.sleep(0)
            try:
                client, peer = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    # Probably all file descriptors are in use.
                    LOG.warning('No connection can be accepted: %s', error)
                    self._drop()
                    await asyncio.sleep(0.1)
                continue
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
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

    async def _connection(self, client: socket.socket, peer: typing.Any) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(connection.CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        ends = environ.ends(client, peer)
        tls = None if unix.PEER in ends else self._tls
        handshake = self._limits.request if tls else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, client, ssl=tls, ssl_handshake_timeout=handshake
            )
        except OSError as error:
            LOG.debug('No TLS with %s: %s', ends['REMOTE_ADDR'], error)
            return
        # A response counts as sent once the kernel has all of it. With 0 asyncio's TLS would pause
        # when nothing is left to send.
        transport.set_write_buffer_limits(1)
        ends |= {
            'wsgi.url_scheme': 'https' if tls else 'http',
            # A waiting request ends when the server stops.
            'cyborg_lite.stopping': lambda: self.stopped,
        }
        conversation = connection.Connection(
            reader, asyncio.StreamWriter(transport, protocol, reader, loop), self._limits
        )
        task = typing.cast('asyncio.Task[None]', asyncio.current_task())
        try:
            while (asked := await conversation.request()) is not None:
                self._waiting.pop(task, None)
                self._in_progress.add(task)
                answer = await loop.run_in_executor(self._threads, self._call, ends | asked)
                self._wait(task)
                kept = await conversation.answer(*answer, close=self.stopped)
                if not kept or self.stopped:
                    break
                self._in_progress.discard(task)
                self._wait(task)
                # The next request may have arrived already: other clients come first.
                await asyncio.sleep(0)
            await conversation.close()
        except OSError:  # the client has disconnected, or is too slow
            pass
        finally:
            transport.abort()

    def _call(self, asked: environ.Environ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Run the application."""
        try:
            return environ.run(self._application, asked)
        except Exception:
            LOG.exception('The application failed.')
            return 500, [], b''

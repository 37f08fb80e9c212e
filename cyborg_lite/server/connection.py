# SPDX-License-Identifier: Apache-2.0
"""An HTTP connection: requests are parsed within limits, and answered."""

from __future__ import annotations

import asyncio
import dataclasses
from email import utils
import http
import io
import re

import h11

from cyborg_lite.server import environ
from cyborg_lite.server.environ import Environ
from cyborg_lite.server.environ import Refused

#: The size of one read. The buffer of a connection is twice as large.
CHUNK = 16384
#: How much of it is parsed before other clients have their turn. h11 parses all headers, or all
#: trailers, in one go, so this also bounds how many of them it sees beyond their limit.
PIECE = 512
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
        environ.check(request)
        size = len(request.target) + sum(len(n) + len(v) for n, v in request.headers)
        if size > self._limits.header:
            raise Refused(431, f'The headers are too large: expected {self._limits.header} bytes')
        given = environ.of_request(request)
        body = await self._body(int(given.get('CONTENT_LENGTH') or 0))
        if given.pop('HTTP_TRANSFER_ENCODING', None):
            given['CONTENT_LENGTH'] = str(len(body))
        return given | {'wsgi.input': io.BytesIO(body)}

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

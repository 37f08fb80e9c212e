# SPDX-License-Identifier: Apache-2.0
"""The web server, over sockets: what clients that are slow, large, many or odd can do to it."""

import asyncio
import collections
import contextlib
import http.client
import os
import socket
import ssl
import sys
import tempfile
import threading
import time

import h11
import pytest
import trustme

from cyborg_lite import server
from cyborg_lite import service
from cyborg_lite import unix
from cyborg_lite.server import accepting
from cyborg_lite.server import connection

GET = b'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
#: How long anything may take that is to happen, in seconds.
PATIENCE = 20


def echo(environ, start_response):
    """An application that answers with what it was sent."""
    length = int(environ.get('CONTENT_LENGTH') or 0)
    body = environ['wsgi.input'].read()
    said = f'{environ["REQUEST_METHOD"]} {environ["PATH_INFO"]} {length} '.encode() + body
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(said)))])
    return [said]


@contextlib.contextmanager
def serving(application=echo, address='127.0.0.1', tls=None, **limits):
    with tempfile.TemporaryDirectory() as place:
        path = f'{place}/api.sock'
        made = service.listen(application, address, 0, unix.listen(path, None, service.BACKLOG))
        made.path = path
        thread = threading.Thread(target=made.serve, args=(server.Limits(**limits), tls))
        thread.start()
        try:
            yield made
        finally:
            made.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def by_port(made, buffer=None):
    family = socket.AF_INET6 if ':' in made.bind_addr[0] else socket.AF_INET
    return _connected(family, made.bind_addr, buffer)


def by_path(made, buffer=None):
    return _connected(socket.AF_UNIX, made.path, buffer)


def _connected(family, address, buffer):
    found = socket.socket(family)
    if buffer is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    found.settimeout(PATIENCE)
    found.connect(address)
    return found


#: How a client connects.
connect = by_port


@pytest.fixture(params=[by_port, by_path])
def door(request, monkeypatch):
    """A test is for clients of TCP, and for those of a Unix socket."""
    monkeypatch.setattr(sys.modules[__name__], 'connect', request.param)


both_doors = pytest.mark.usefixtures('door')


@contextlib.contextmanager
def client(made):
    with connect(made) as found:
        yield found


def read(found):
    """All that is sent until the server closes the connection."""
    text = b''
    with contextlib.suppress(ConnectionResetError):
        while data := found.recv(65536):
            text += data
    return text


def ask(made, data):
    with client(made) as found:
        with contextlib.suppress(ConnectionError):
            found.sendall(data)
        return read(found)


def status(text):
    return int(text.split(b' ', 2)[1])


def test_a_connection_is_kept():
    with serving() as made:
        connection = http.client.HTTPConnection(*made.bind_addr, timeout=PATIENCE)
        for method, body in (('GET', None), ('HEAD', None), ('POST', b'b'), ('DELETE', None)):
            connection.request(method, '/a%20b?q', body)
            own = connection.sock
            answer = connection.getresponse()
            said = answer.read()
            assert (answer.status, answer.getheader('Connection')) == (200, None)
            wanted = f'{method} /a b {len(body or b"")} '.encode() + (body or b'')
            assert said == (b'' if method == 'HEAD' else wanted)
            assert answer.getheader('Content-Length') == str(len(wanted))
            assert connection.sock is own
        connection.close()


def test_a_connection_is_kept_after_a_204():
    def application(environ, start_response):
        start_response('204 No Content', [])
        return []

    with serving(application) as made:
        connection = http.client.HTTPConnection(*made.bind_addr, timeout=PATIENCE)
        for _ in range(2):
            connection.request('DELETE', '/')
            own = connection.sock
            assert connection.getresponse().read() == b''
            assert connection.sock is own is not None
        connection.close()


@both_doors
def test_chunks():
    with serving() as made:
        text = ask(
            made,
            b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n'
            b'3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n',
        )
        assert text.endswith(b'POST / 5 abcde')


@both_doors
def test_requests_one_after_another_in_one_packet():
    with serving() as made:
        text = ask(made, GET * 3 + b'GET / HTTP/1.0\r\n\r\n')
        assert text.count(b'200 OK') == 4


def test_ipv6():
    with serving(address='::1') as made, client(made) as found:
        found.sendall(b'GET / HTTP/1.0\r\n\r\n')
        assert status(read(found)) == 200


@pytest.mark.parametrize(
    ('head', 'wanted'),
    [
        (b'GET /' + b'a' * 70_000 + b' HTTP/1.1\r\nHost: a\r\n\r\n', (414, 431)),
        (b'GET / HTTP/1.1\r\nHost: a\r\nA: ' + b'a' * 66_000 + b'\r\n\r\n', (431,)),
        (b'GET / HTTP/1.1\r\nHost: a\r\n' + b'A: a\r\n' * 20_000 + b'\r\n', (431,)),
        (b'GET / HTTP/1.1\r\nHost: a\r\nA: ' + b'a' * 5_000_000, (431,)),
        (b'a' * 5_000_000, (414,)),
        (b'GET / HTTP/1.1\r\nHost: a\r\n' + b'a:\r\n' * 100 + b'\r\n', (431,)),
        (b'GET / HTTP/1.1\nHost: a\n' + b'a:\n' * 100 + b'\n', (431,)),
    ],
    ids=[
        *('target', 'header', 'headers', 'endless header', 'endless line'),
        *('many headers', 'many headers without CR'),
    ],
)
@both_doors
def test_headers_are_bounded(head, wanted):
    with serving() as made:
        assert status(ask(made, head)) in wanted
        assert status(ask(made, GET.replace(b'\r\n\r\n', b'\r\nConnection: close\r\n\r\n'))) == 200


def test_as_many_headers_as_are_taken():
    head = b'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 400\r\n'
    with serving() as made:
        text = ask(made, head + b'a:\r\n' * 97 + b'\r\n' + b'\n' * 400)
        assert status(text) == 200


@both_doors
def test_too_many_headers_are_not_parsed(monkeypatch):
    """They took 75 ms, in which nobody else was served."""
    parsed, next_event = [], h11.Connection.next_event

    def event(self):
        parsed.append(self.trailing_data[0].count(b'\n'))
        return next_event(self)

    monkeypatch.setattr(h11.Connection, 'next_event', event)
    many = b'GET / HTTP/1.1\r\nHost: a\r\n' + b'a:\r\n' * 16_000 + b'\r\n'
    with serving() as made:
        assert status(ask(made, many)) == 431
        assert max(parsed) <= 101
        # The same after another request in one packet.
        assert ask(made, GET + many).count(b' 431 ') == 1


CHUNKED = b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n'
#: The end of a body in chunks, with as many trailers as were parsed in 0.3 s.
TRAILERS = b'0\r\n' + b'a:\n' * 21_000 + b'\n'


@pytest.mark.parametrize(
    'before',
    [
        b'', GET, CHUNKED + b'0\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na',
    ],
    ids=['first', 'after a GET', 'after chunks', 'after a body'],
)  # fmt: skip
@pytest.mark.parametrize('data', [b'', b'1\r\na\r\n', b'5\r\n\n\n\n\n\n\r\n'])
def test_too_many_trailers_are_not_parsed(monkeypatch, before, data):
    parsed, next_event = [], h11.Connection.next_event

    def event(self):
        parsed.append(self.trailing_data[0].count(b'\n'))
        return next_event(self)

    monkeypatch.setattr(h11.Connection, 'next_event', event)
    with serving() as made:
        assert b' 431 ' in ask(made, before + CHUNKED + data + TRAILERS)
    assert max(parsed) <= 100 + connection.PIECE // 2


def test_a_few_trailers_are_accepted():
    body = b'3\r\nabc\r\n0\r\n' + b'a: b\r\n' * 90 + b'\r\n'
    with serving() as made:
        text = ask(made, (CHUNKED + body) * 2 + b'GET / HTTP/1.0\r\n\r\n')
    assert text.count(b' 200 OK') == 3
    assert text.count(b'POST / 3 abc') == 2


@pytest.mark.parametrize(
    'chunk', [b'1\r\na\r\n', b'1;' + b'a' * 1000 + b'\r\na\r\n', b'0000001\r\na\r\n']
)
@both_doors
def test_the_framing_of_a_body_is_bounded(chunk):
    """Each chunk of one byte takes 20 microseconds."""
    with serving() as made:
        text = ask(made, CHUNKED + chunk * 100_000 + b'0\r\n\r\n')
    assert status(text) == 400
    assert b'framing' in text


def test_many_small_chunks_are_accepted():
    with serving() as made:
        body = b'64\r\n' + b'a' * 100 + b'\r\n'
        text = ask(made, CHUNKED + body * 1000 + b'0\r\n\r\nGET / HTTP/1.0\r\n\r\n')
    assert b'POST / 100000 aaa' in text
    assert text.count(b' 200 OK') == 2


def test_others_have_their_turn_while_chunks_are_read(monkeypatch):
    turns, events, next_event = [0], [], h11.Connection.next_event

    def event(self):
        events.append(turns[0])
        return next_event(self)

    with serving() as made:
        assert status(ask(made, b'GET / HTTP/1.0\r\n\r\n')) == 200
        loop = made._loop

        def turn():
            turns[0] += 1
            loop.call_soon(turn)

        loop.call_soon_threadsafe(turn)
        monkeypatch.setattr(h11.Connection, 'next_event', event)
        ask(made, CHUNKED + b'1\r\na\r\n' * 20_000)
    assert len(events) > 1000
    assert max(collections.Counter(events).values()) < connection.PIECE


@pytest.mark.parametrize(
    'head',
    [b'Content-Length: 999999999\r\n\r\n', b'Transfer-Encoding: chunked\r\n\r\nfffffff\r\n'],
    ids=['told', 'chunked'],
)
@both_doors
def test_bodies_are_bounded(head):
    """The application sees that it is too large; what the client still sends is not kept."""
    seen = []

    def application(environ, start_response):
        seen.append((int(environ['CONTENT_LENGTH']), len(environ['wsgi.input'].read())))
        start_response('413 Content Too Large', [])
        return []

    with serving(application, body=1000) as made:
        text = ask(made, b'POST / HTTP/1.1\r\nHost: a\r\n' + head + b'a' * 1_000_000)
        assert status(text) == 413
        # What follows on it would be the rest of the body.
        assert b'\r\nConnection: close\r\n' in text
    [(told, kept)] = seen
    assert told > 1000
    assert kept <= 1000 + connection.CHUNK


@pytest.mark.parametrize(
    'data',
    [
        b'\x16\x03\x01\x02\x00\r\n\r\n',
        b'GET / HTTP/1.1\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
        b'CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n',
        b'CONNECT /healthcheck HTTP/1.1\r\nHost: a\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n'
        b'1\r\na\r\n0\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 999999\r\n'
        b'\r\n0\r\n\r\n',
        b'GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n',
    ],
)
def test_invalid_http_is_refused(data):
    with serving() as made:
        assert status(ask(made, data)) == 400


def test_a_header_with_an_underscore_is_not_taken_for_another():
    def application(environ, start_response):
        start_response('200 OK', [])
        return [environ.get('HTTP_X_A', 'none').encode()]

    with serving(application) as made:
        text = ask(made, b'GET / HTTP/1.0\r\nX_A: b\r\n\r\n')
        assert text.endswith(b'\r\n\r\nnone')


def test_an_application_that_fails_is_a_500():
    def application(environ, start_response):
        raise ValueError('secret')

    with serving(application) as made:
        text = ask(made, b'GET / HTTP/1.0\r\n\r\n')
        assert status(text) == 500
        assert b'secret' not in text


def test_the_application_gets_the_address_of_the_client():
    def application(environ, start_response):
        start_response('200 OK', [])
        names = ('REMOTE_ADDR', 'SERVER_NAME', 'SERVER_PORT', 'HTTP_HOST', 'wsgi.url_scheme')
        return [' '.join(environ[name] for name in names).encode()]

    with serving(application) as made:
        text = ask(made, b'GET http://b/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
        assert text.endswith(f'127.0.0.1 127.0.0.1 {made.bind_addr[1]} b http'.encode())


def test_the_kernel_names_the_client_of_a_unix_socket():
    """Nobody else: not the client itself, and nobody at a port."""

    def application(environ, start_response):
        start_response('200 OK', [])
        names = ('REMOTE_ADDR', 'SERVER_NAME', 'SERVER_PORT', unix.PEER, 'wsgi.url_scheme')
        return [' '.join(str(environ.get(name)) for name in names).encode()]

    head = b'GET / HTTP/1.0\r\ncyborg_lite.peer: 0\r\nCyborg-Lite.Peer: 0\r\n\r\n'
    with serving(application) as made:
        with by_path(made) as found:
            found.sendall(head)
            assert read(found).endswith(f'\r\n\r\n localhost 80 {os.getuid()} http'.encode())
        with by_port(made) as found:
            found.sendall(head)
            port = made.bind_addr[1]
            assert read(found).endswith(f'127.0.0.1 127.0.0.1 {port} None http'.encode())


def test_a_unix_socket_has_no_tls(tls):
    """Nobody can listen in, and the peer is known without it."""
    with serving(tls=tls) as made, by_path(made) as found:
        found.sendall(b'GET / HTTP/1.0\r\n\r\n')
        assert status(read(found)) == 200


def drip(found, head, ended):
    """Send a byte at a time, for ever."""
    with contextlib.suppress(OSError):
        found.sendall(head)
        while not ended.wait(0.05):
            found.sendall(b'a')


@pytest.mark.parametrize(
    'head',
    [
        b'',
        b'GET / HTTP/1.1\r\nHost: a\r\nA: ',
        b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n',
        b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1',
    ],
    ids=['line', 'header', 'body', 'chunk'],
)
@both_doors
def test_a_request_that_drips_is_ended(head):
    ended = threading.Event()
    with serving(request=0.5, linger=0.2) as made, client(made) as found:
        dripping = threading.Thread(target=drip, args=(found, head, ended))
        dripping.start()
        text = read(found)
        ended.set()
        dripping.join()
        assert status(text) in (400, 408)


@both_doors
def test_a_silent_connection_is_ended():
    with serving(request=0.3, idle=0.3) as made:
        with client(made) as found:
            assert status(read(found)) == 408
        with client(made) as found:
            found.sendall(GET)
            assert read(found).count(b'HTTP/1.1 ') == 1


@both_doors
def test_a_client_that_does_not_read_is_ended():
    def application(environ, start_response):
        start_response('200 OK', [])
        return [b'a' * 50_000_000]

    with serving(application, response=0.3) as made, client(made) as found:
        found.sendall(GET)
        end = time.monotonic() + PATIENCE
        while made._connections or not made._loop:
            assert time.monotonic() < end
            time.sleep(0.01)


@both_doors
def test_slow_clients_take_no_thread():
    """With one thread, and more slow clients than connections."""
    with serving(threads=1, connections=20) as made, contextlib.ExitStack() as stack:
        for _ in range(60):
            found = stack.enter_context(client(made))
            found.sendall(b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n')
        for _ in range(3):
            assert status(ask(made, b'GET / HTTP/1.0\r\n\r\n')) == 200
        assert len(made._connections) <= 20


def sized(environ, start_response):
    """An application that answers with as many bytes as the path says."""
    start_response('200 OK', [])
    return [b'a' * int(environ['PATH_INFO'][1:])]


@both_doors
def test_clients_that_do_not_read_block_no_others():
    large = b'GET /16000000 HTTP/1.1\r\nHost: a\r\n\r\n'
    with serving(sized, connections=3) as made, contextlib.ExitStack() as stack:
        for _ in range(3):
            found = stack.enter_context(client(made))
            found.sendall(large)
            # The response has begun.
            assert found.recv(1)
        assert status(ask(made, b'GET /2 HTTP/1.0\r\n\r\n')) == 200


@both_doors
def test_pipelined_requests_block_no_others():
    """A connection whose next request is there already is replaced all the same."""
    handled = []

    def application(environ, start_response):
        handled.append(environ['PATH_INFO'])
        start_response('204 No Content', [])
        return []

    with serving(application, threads=1, connections=3) as made, contextlib.ExitStack() as stack:
        for _ in range(3):
            found = stack.enter_context(client(made))
            found.sendall(GET * 500)
            assert found.recv(1)
        assert status(ask(made, b'GET /other HTTP/1.0\r\n\r\n')) == 204
        assert handled.index('/other') < 1000


@both_doors
def test_few_requests_are_handled_for_a_client_that_does_not_read():
    handled = []

    def application(environ, start_response):
        handled.append(True)
        return sized(environ, start_response)

    request = b'GET /100000 HTTP/1.1\r\nHost: a\r\n\r\n'
    with serving(application, response=0.5) as made:
        with connect(made, 4096) as found:
            found.sendall(request * 300)
            end = time.monotonic() + PATIENCE
            while made._connections or not handled:
                assert time.monotonic() < end
                time.sleep(0.01)
        assert len(handled) < 10


@both_doors
def test_a_stop_lets_a_response_be_read():
    """And no longer: the connection takes no further request."""
    with serving(sized, grace=9 * PATIENCE) as made, client(made) as found:
        found.sendall(b'GET /16000000 HTTP/1.1\r\nHost: a\r\n\r\n')
        assert found.recv(1)
        made.stop()
        assert len(read(found)) > 16_000_000


def test_a_stop_waits_for_no_slow_client():
    made = service.listen(echo, '127.0.0.1', 0)
    thread = threading.Thread(target=made.serve)
    thread.start()
    with contextlib.ExitStack() as stack:
        for head in (
            b'',
            b'GET / HTTP',
            b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n',
        ):
            for _ in range(40):
                stack.enter_context(client(made)).sendall(head)
        assert status(ask(made, b'GET / HTTP/1.0\r\n\r\n')) == 200
        began = time.monotonic()
        made.stop()
        thread.join(PATIENCE)
        assert time.monotonic() - began < 5
    made.stop()


@both_doors
def test_a_stop_lets_a_request_in_progress_end():
    reached, go = threading.Event(), threading.Event()

    def application(environ, start_response):
        reached.set()
        go.wait(PATIENCE)
        return echo(environ, start_response)

    with serving(application, grace=PATIENCE) as made, client(made) as found:
        found.sendall(GET)
        assert reached.wait(PATIENCE)
        loop = made._loop
        made.stop()
        # A server that did not wait for the request would not live to see this.
        loop.call_soon_threadsafe(loop.call_later, 0.1, go.set)
        assert status(read(found)) == 200


@both_doors
def test_a_stop_waits_for_no_request_longer_than_its_grace():
    reached, go = threading.Event(), threading.Event()

    def application(environ, start_response):
        reached.set()
        go.wait(9 * PATIENCE)
        return echo(environ, start_response)

    try:
        with serving(application, grace=0.3) as made, client(made) as found:
            found.sendall(GET)
            assert reached.wait(PATIENCE)
            made.stop()
            # The connection is cut off, and its request has not ended.
            assert read(found) == b''
            assert not go.is_set()
    finally:
        go.set()


def test_no_wait_is_so_long_that_a_stop_goes_unnoticed(monkeypatch):
    """Python runs the handler of a signal that comes just before the loop waits after the wait."""
    wait, bounds = asyncio.wait, []

    def waits(*args, timeout=None, **more):
        bounds.append(timeout)
        return wait(*args, timeout=timeout, **more)

    monkeypatch.setattr(asyncio, 'wait', waits)
    with serving() as made, connect(made) as client:
        client.sendall(GET)
        assert client.recv(4096)
    assert bounds[0] == accepting.TICK


def test_a_stop_before_the_start():
    made = service.listen(echo, '127.0.0.1', 0)
    made.stop()
    made.serve()


@pytest.fixture(scope='module')
def authority():
    return trustme.CA()


@pytest.fixture
def tls(authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert('127.0.0.1').configure_cert(context)
    return context


def test_tls(tls, authority):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with serving(tls=tls) as made:
        connection = http.client.HTTPSConnection(
            *made.bind_addr, timeout=PATIENCE, context=trusting
        )
        for _ in range(2):
            connection.request('POST', '/', b'a' * 100_000)
            assert connection.getresponse().read().endswith(b'a' * 100_000)
        connection.close()


def test_a_tls_handshake_that_does_not_come_holds_up_nobody(tls, authority):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with serving(tls=tls, threads=1, connections=20) as made, contextlib.ExitStack() as stack:
        for head in (b'', b'\x16\x03\x01', b'GET / HTTP/1.1\r\n\r\n'):
            for _ in range(20):
                stack.enter_context(client(made)).sendall(head)
        with trusting.wrap_socket(
            stack.enter_context(client(made)), server_hostname='127.0.0.1'
        ) as found:
            found.sendall(b'GET / HTTP/1.0\r\n\r\n')
            assert status(read(found)) == 200


def test_a_tls_handshake_has_a_deadline(tls):
    with serving(tls=tls, request=0.3) as made, client(made) as found:
        assert read(found) == b''

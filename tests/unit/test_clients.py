# SPDX-License-Identifier: Apache-2.0
"""Placement and Nova are reached where the operator has said, and nowhere else."""

import http.server
import json
import threading

import pytest

from cyborg_lite import clients
from cyborg_lite import conf as options
from cyborg_lite.clients import nova
from cyborg_lite.clients import placement

PROVIDER = placement.Provider(
    uuid='0d0a1b9c-6f0a-4b7e-8a37-000000000001',
    name='host-1_card',
    parent='host-1',
    resource_class='CUSTOM_NPU',
    total=1,
    reserved=0,
    traits=('CUSTOM_A',),
)
INSTANCE = '9c8b7a69-5847-4635-8241-3f2e1d0c9b18'


class Server:
    """A web server that notes what it is asked, and answers everything alike."""

    def __init__(self, status=200, **headers):
        self.asked, self.tokens = [], []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers['Content-Length'] or 0))
                server.asked.append(self.path)
                server.tokens.append(self.headers['X-Auth-Token'])
                self.send_response(status)
                body = json.dumps({'generation': 1, 'resource_provider_generation': 1}).encode()
                for name, value in headers.items():
                    self.send_header(name, value + self.path)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def serve():
    made = []

    def make(*args, **kwargs):
        made.append(Server(*args, **kwargs))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def connect(tmp_path):
    def connect_(group, url):
        file = tmp_path / 'a.conf'
        file.write_text(
            f'[{group}]\nauth_type = admin_token\ntoken = TOKEN\nendpoint = {url}\n'
            f'endpoint_override = {url}\n'
        )
        conf = options.load(files=[str(file)])
        return clients.connect(conf, group, getattr(clients, group).MICROVERSION)

    return connect_


@pytest.mark.parametrize('status', [301, 302, 303, 305, 307, 308])
def test_redirects_are_not_followed(serve, connect, status):
    """Our token would go along."""
    other = serve()
    asked = serve(status, Location=other.url)
    with pytest.raises(placement.Refused, match=f'HTTP {status}'):
        placement.Placement(connect('placement', asked.url)).settle(PROVIDER.uuid, lambda: PROVIDER)
    with pytest.raises(placement.Refused, match=f'HTTP {status}'):
        placement.Placement(connect('placement', asked.url)).settle(PROVIDER.uuid, lambda: None)
    with pytest.raises(nova.Refused, match=f'HTTP {status}'):
        nova.Nova(connect('nova', asked.url)).notify(INSTANCE, {})
    assert asked.tokens == ['TOKEN'] * 3
    assert other.asked == []


@pytest.mark.parametrize(
    'name',
    [
        '.',
        '..',
        '',
        'A' * 256,
        'CUSTOM_A/../../allocations/1',
        'CUSTOM_A?force=1',
        'CUSTOM_A#',
        'CUSTOM_A/%2e%2e/x',
        'CUSTOM_A\r\nX-Auth-Token: a',
        'CUSTOM_\u00e9',
        'CUSTOM_@elsewhere.example/',
    ],
)
@pytest.mark.parametrize('kind', ['traits', 'resource_classes'])
def test_user_input_is_not_used_as_a_path(serve, connect, kind, name):
    """An attribute that is added through the API may be a trait or a class of its deployable."""
    server = serve(204)
    client = placement.Placement(connect('placement', server.url))
    assert not client._has(kind, name)
    assert server.asked == []
    assert client._has(kind, 'CUSTOM_A_1')
    assert server.asked == [f'/{kind}/CUSTOM_A_1']

# SPDX-License-Identifier: Apache-2.0
"""Without tokens: which requests are served, and which of web pages and proxies are refused."""

import socket
import sys
import types

import bcrypt
import pytest

from cyborg_lite.api import app
from tests import support

PROFILES = '/v2/device_profiles'
BODY = [{'name': 'a', 'groups': [{'resources:FPGA': '1'}]}]
BROWSER = {'User-Agent': 'Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/145.0'}
OTHER = 'http://evil.example'


class Asked:
    """``asked.get(path, **headers)`` with this WSGI environ."""

    def __init__(self, service, credentials=(), **environ):
        self.service = service
        application = service.embedded.application

        def environed(given, start_response):
            given = {k: v for k, v in given.items() if k != 'REMOTE_ADDR'}
            return application({'REMOTE_ADDR': '127.0.0.1'} | given | environ, start_response)

        self.api = support.Api(support.local(environed), **dict(credentials))

    def statuses(self, **headers):
        """The statuses of a reading and of a writing request."""
        read = self.api.get('/v2/devices', **headers)
        write = self.api.post(PROFILES, BODY, **headers)
        return [answer.status_int for answer in (read, write)]


@pytest.fixture
def make(database_url):
    made = []

    def start(**settings):
        made.append(support.Service(database_url, **settings))
        return made[-1]

    yield start
    for each in made:
        each.stop()


@pytest.fixture(params=['noauth', 'http_basic'])
def asked(request, make, tmp_path):
    return basic(make, tmp_path) if request.param == 'http_basic' else Asked(make())


def basic(make, tmp_path, **settings):
    users = tmp_path / 'htpasswd'
    users.write_text(f'ann:{bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}\n')
    settings |= {'api__auth_strategy': 'http_basic', 'api__http_basic_auth_user_file': str(users)}
    return Asked(make(**settings), {'Authorization': 'Basic YW5uOnNlY3JldA=='})


SERVED, REFUSED = [200, 201], [403, 403]

# The peer


@pytest.mark.parametrize(
    'address', ['127.0.0.1', '127.8.9.1', '::1', '::ffff:127.0.0.1', '::ffff:7f00:1']
)
def test_loopback_is_served_without_authentication(service, address):
    assert Asked(service, REMOTE_ADDR=address).statuses() == SERVED


@pytest.mark.parametrize(
    'address',
    ['192.0.2.1', '10.0.0.1', '::', '0.0.0.0', '2001:db8::1', '::ffff:192.0.2.1', 'localhost', 'a'],
)
def test_remote_clients_are_refused_without_authentication(service, address):
    asked = Asked(service, REMOTE_ADDR=address)
    assert asked.statuses() == REFUSED
    said = support.fault(asked.api.get('/v2/devices'))
    assert said == 'Without authentication only loopback is served.'
    # Not even the paths that need no token elsewhere.
    for path in ('/', '/v2', '/healthcheck', '/v2/openapi.json'):
        assert asked.api.get(path).status_int == 403


@pytest.mark.parametrize('parsing', [True, False])
@pytest.mark.parametrize(
    ('header', 'value'),
    [
        ('X-Forwarded-For', '127.0.0.1'),
        ('X-Forwarded-Host', 'localhost'),
        ('X-Forwarded-Proto', 'https'),
        ('X-Forwarded-Prefix', '/'),
        ('Forwarded', 'for=127.0.0.1'),
        ('X-Real-IP', '127.0.0.1'),
    ],
)
@pytest.mark.parametrize('address', ['127.0.0.1', '192.0.2.1'])
def test_forwarded_clients_are_refused_without_auth(make, parsing, header, value, address):
    service = make()
    service.conf.set_override('enable_proxy_headers_parsing', parsing, group='oslo_middleware')
    asked = Asked(service, REMOTE_ADDR=address)
    assert asked.statuses(**{header: value}) == REFUSED
    assert header.lower() in support.fault(asked.api.get('/', **{header: value})).lower()


@pytest.mark.parametrize(
    'header',
    [
        *('Via', 'X-Forwarded', 'X-Original-Forwarded-For', 'Forwarded-For', 'CDN-Loop'),
        *('True-Client-IP', 'X-Client-IP', 'Client-IP', 'X-Cluster-Client-IP', 'Fly-Client-IP'),
        *('CF-Connecting-IP', 'CF-Connecting-IPv6', 'Fastly-Client-IP', 'X-ProxyUser-Ip'),
        *('X-Envoy-External-Address', 'X-Azure-ClientIP', 'X-AppEngine-User-IP', 'X-Remote-Addr'),
    ],
)
def test_proxies_are_refused_without_authentication(service, header):
    asked = Asked(service)
    refused = asked.api.get('/v2/devices', **{header: '127.0.0.1'})
    assert refused.status_int == 403
    assert header.lower() in support.fault(refused).lower()


@pytest.mark.parametrize('address', [None, ''])
def test_an_unknown_peer_is_not_served(service, address):
    assert Asked(service, REMOTE_ADDR=address).statuses() == REFUSED


@pytest.mark.parametrize(
    ('family', 'wanted'), [(socket.AF_UNIX, SERVED), (socket.AF_INET, REFUSED)]
)
def test_a_unix_socket_is_served(service, family, wanted, monkeypatch):
    with socket.socket(family) as found:
        asked = Asked(service, REMOTE_ADDR='', **{'gunicorn.socket': found})
        assert asked.statuses() == wanted
    with socket.socket(family) as found:
        uwsgi = types.SimpleNamespace(connection_fd=found.fileno)
        monkeypatch.setitem(sys.modules, 'uwsgi', uwsgi)
        made = Asked(service, REMOTE_ADDR='')
        assert made.api.get('/v2/devices').status_int == wanted[0]


def test_with_authentication_any_peer_is_asked(make, tmp_path):
    asked = basic(make, tmp_path)
    asked.service.conf.set_override('enable_proxy_headers_parsing', True, group='oslo_middleware')
    assert asked.statuses(**{'X-Forwarded-For': '192.0.2.1'}) == SERVED
    assert asked.api.get('/v2/devices', Authorization='Basic YTpi').status_int == 401


# The name


@pytest.mark.parametrize(
    'host', ['localhost', 'LOCALHOST:6666', 'localhost.', '127.0.0.1:6666', '127.1.2.3', '[::1]:80']
)
def test_names_of_loopback(asked, host):
    assert asked.statuses(Host=host) == SERVED


@pytest.mark.parametrize(
    'host',
    [
        'evil.example', 'evil.example:6666', 'localhost.evil.example', 'a.localhost',
        '127.0.0.1.nip', '127.1', '2130706433', 'localhost@evil.example',
        'evil.example:80:localhost', '', '.', ':6666',
        'localhost, evil.example', '[::1', '[evil.example]', 'a' * 5000,
    ],
)  # fmt: skip
def test_unknown_host_names_are_refused(asked, host):
    assert asked.statuses(Host=host) == REFUSED
    assert 'allowed_hosts' in support.fault(asked.api.get('/v2', Host=host))


def test_other_addresses(make, tmp_path):
    """A name cannot be an address; without authentication the service does not listen on these."""
    for host in ('192.0.2.1:6666', '[2001:db8::1]', '0.0.0.0'):
        assert Asked(make()).statuses(Host=host) == REFUSED
    assert basic(make, tmp_path).statuses(Host='192.0.2.1:6666')[0] == 200


def test_a_forwarded_host_name_is_ignored(make, tmp_path):
    """Behind a configured proxy its headers have the name."""
    asked = basic(make, tmp_path)
    asked.service.conf.set_override('enable_proxy_headers_parsing', True, group='oslo_middleware')
    headers = {'X-Forwarded-Host': 'localhost', 'Forwarded': 'host=localhost'}
    assert asked.statuses(Host='evil.example', **headers) == REFUSED


def behind_a_proxy(make, tmp_path, **settings):
    """The same, where the headers of a proxy are believed."""
    asked = basic(make, tmp_path, **settings)
    service = asked.service
    service.conf.set_override('enable_proxy_headers_parsing', True, group='oslo_middleware')
    service.embedded.application = app.application(
        service.conf, service.database, service.embedded.bus
    )
    return Asked(service, {'Authorization': 'Basic YW5uOnNlY3JldA=='})


@pytest.mark.parametrize(
    'headers',
    [
        {'X-Forwarded-Host': 'evil.example'},
        {'X-Forwarded-Host': 'evil.example, localhost'},
        {'X-Forwarded-Host': 'localhost, evil.example'},
        {'Forwarded': 'host=evil.example'},
        {'Forwarded': 'for=192.0.2.1;host="evil.example", host=localhost'},
        {'Forwarded': 'host=evil.example', 'X-Forwarded-Host': 'localhost'},
        {'X-Forwarded-Proto': 'https://evil.example/?'},
        {'X-Forwarded-Proto': 'ftp'},
        {'Forwarded': 'proto=javascript'},
    ],
    ids=str,
)
def test_links_lead_to_no_host_that_only_a_header_names(make, tmp_path, headers):
    asked = behind_a_proxy(make, tmp_path)
    assert asked.statuses(**headers) == REFUSED
    answer = asked.api.get('/v2', **headers)
    assert answer.status_int == 403
    said = support.fault(answer)
    assert '[api] allowed_hosts' in said or 'http or https' in said


@pytest.mark.parametrize(
    ('headers', 'root'),
    [
        ({}, 'http://localhost/v2'),
        ({'X-Forwarded-Host': 'cloud.example.org:8443'}, 'http://cloud.example.org:8443/v2'),
        ({'Forwarded': 'host=cloud.example.org;proto=https'}, 'https://cloud.example.org/v2'),
        ({'X-Forwarded-Proto': 'https', 'X-Forwarded-For': '192.0.2.1'}, 'https://localhost/v2'),
    ],
    ids=str,
)
def test_links_follow_a_proxy_that_says_an_allowed_name(make, tmp_path, headers, root):
    asked = behind_a_proxy(make, tmp_path, api__allowed_hosts=['cloud.example.org'])
    answer = asked.api.get('/v2', Host='localhost', **headers)
    assert answer.status_int == 200
    assert root in answer.text


def test_names_that_an_operator_gives(make, tmp_path):
    names = {
        'api__allowed_hosts': ['Node-1.example.org', 'node-2:6666', '[2001:db8::1]'],
        'api__public_endpoint': 'https://cloud.example.org:8443/accelerator',
    }
    known = ['node-1.example.org', 'node-2', 'cloud.example.org', '[2001:db8::1]:80']
    for asked in (Asked(make(**names)), basic(make, tmp_path, **names)):
        for host in known:
            assert asked.api.get('/v2/devices', Host=host).status_int == 200, host
        assert asked.statuses(Host='node-3') == REFUSED


def test_the_name_of_the_machine_is_known_with_authentication(make, tmp_path):
    host = socket.gethostname()
    assert basic(make, tmp_path).statuses(Host=host)[0] == 200
    assert Asked(make()).statuses(Host=host) == REFUSED


def test_a_request_without_a_name(service):
    """HTTP/1.0 has none, and no browser sends it."""
    application = service.embedded.application

    def nameless(environ, start_response):
        environ = {k: v for k, v in environ.items() if k != 'HTTP_HOST'}
        return application(environ, start_response)

    assert support.Api(support.local(nameless)).get('/v2/devices').status_int == 200


# The page


@pytest.mark.parametrize(
    'headers',
    [
        {'Origin': OTHER},
        {'Origin': 'null'},
        {'Origin': ''},
        {'Origin': 'http://localhost:3000'},
        {'Origin': 'http://localhost.evil.example'},
        {'Sec-Fetch-Site': 'cross-site'},
        {'Sec-Fetch-Site': 'same-site'},
        {'Sec-Fetch-Site': 'cross-site', 'Origin': 'http://localhost'},
    ],
    ids=str,
)
def test_requests_of_foreign_pages_are_refused(asked, headers):
    assert asked.statuses(Host='localhost', **headers) == REFUSED
    preflight = {'Access-Control-Request-Method': 'POST'} | headers
    answer = asked.api.request('OPTIONS', '/v2/devices', Host='localhost', **preflight)
    assert answer.status_int == 403
    assert 'Access-Control-Allow-Origin' not in answer.headers


@pytest.mark.parametrize(
    'headers',
    [
        {'Origin': 'http://localhost:6666'},
        {'Origin': 'https://localhost:6666', 'Sec-Fetch-Site': 'same-origin'},
        {'Sec-Fetch-Site': 'none'},
    ],
    ids=str,
)
def test_our_own_pages(asked, headers):
    assert asked.statuses(Host='localhost:6666', **BROWSER, **headers) == SERVED


@pytest.mark.parametrize('allowed', [[OTHER], ['*']])
def test_pages_that_an_operator_allows(make, allowed, monkeypatch):
    service = make()
    service.conf.set_override('allowed_origin', allowed, group='cors')
    service.embedded.application = app.application(
        service.conf, service.database, service.embedded.bus
    )
    service.report(support.card())
    asked = Asked(service)
    headers = {'Origin': OTHER, 'Sec-Fetch-Site': 'cross-site', **BROWSER}
    assert asked.statuses(**headers) == SERVED
    assert asked.api.get('/v2', **headers).headers['Access-Control-Allow-Origin'] in allowed
    [device] = asked.api.get('/v2/devices').json['devices']
    disable = f'/v2/devices/{device["uuid"]}/disable'
    assert asked.api.post(disable, **headers).status_int == 204
    # A body needs its type nevertheless.
    plain = headers | {'Content-Type': 'text/plain'}
    assert asked.api.post(PROFILES, BODY, **plain).status_int == 415
    if allowed != ['*']:
        assert asked.statuses(Origin='http://else.example') == REFUSED


# The form


@pytest.mark.parametrize(
    'type_',
    ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=a', ''],
)
def test_a_body_says_that_it_is_json(asked, type_):
    for send, path in ((asked.api.post, PROFILES), (asked.api.patch, '/v2/accelerator_requests')):
        answer = send(path, BODY, **{'Content-Type': type_})
        assert answer.status_int == 415
        assert 'application/json' in support.fault(answer)
    # In chunks, a body has no length.
    chunked = {'Content-Type': type_, 'Content-Length': '', 'Transfer-Encoding': 'chunked'}
    assert asked.api.post(PROFILES, b'', **chunked).status_int == 415
    assert asked.api.get(PROFILES).json['device_profiles'] == []
    json = {'Content-Type': 'application/json; charset=utf-8'}
    assert asked.api.post(PROFILES, BODY, **json).status_int == 201


@pytest.fixture
def disable(asked):
    asked.service.report(support.card())
    [device] = asked.api.get('/v2/devices').json['devices']

    def call(**headers):
        return asked.api.post(f'/v2/devices/{device["uuid"]}/disable', **headers).status_int

    return call


def test_a_form_disables_nothing(disable):
    form = 'application/x-www-form-urlencoded'
    assert disable(**BROWSER) == 403
    assert disable(**BROWSER, **{'Content-Type': form}) == 415
    assert disable(**{'Content-Type': form}) == 415
    assert disable(**BROWSER, Origin='null') == 403


@pytest.mark.parametrize(
    'headers',
    [
        {'OpenStack-API-Version': 'accelerator 2.0'},
        {'X-Requested-With': 'XMLHttpRequest'},
        {'Content-Type': 'application/json'},
    ],
    ids=str,
)
def test_headers_that_no_form_can_send_are_accepted(disable, headers):
    assert disable(**BROWSER, **headers) == 204


@pytest.mark.parametrize(
    'agent',
    ['openstacksdk/4.18.0 keystoneauth1/5.15.0 python-requests/2.32 CPython/3.11', 'curl/8.5.0'],
)
def test_clients_disable(disable, agent):
    assert disable(**{'User-Agent': agent, 'Accept': '*/*'}) == 204


def test_with_tokens_none_of_this_is_checked(make):
    """Web pages do not know Keystone's tokens."""
    service = make(api__auth_strategy='keystone')
    answer = support.Api(support.local(service.embedded.application)).get(
        '/v2', Host='evil.example', Origin=OTHER
    )
    assert answer.status_int == 200

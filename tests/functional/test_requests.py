# SPDX-License-Identifier: Apache-2.0
"""Cases that gabbi cannot make: raw bytes, large sizes, settings, transient states."""

import base64
import io
import itertools
import json
import re
import unittest.mock
import uuid

import bcrypt
import jsonschema
import oslo_messaging
import pytest
import sqlalchemy as sa
import webtest

from cyborg_lite import model
from cyborg_lite.api import app
from cyborg_lite.api import openapi
from cyborg_lite.api import types
from tests import support

PROFILES = '/v2/device_profiles'
ARQS = '/v2/accelerator_requests'
GROUPS = [{'resources:FPGA': '1'}]


@pytest.fixture
def make(database_url):
    """Make services with settings."""
    made = []

    def start(**settings):
        made.append(support.Service(database_url, **settings))
        return made[-1]

    yield start
    for each in made:
        each.stop()


@pytest.mark.parametrize(
    'body',
    [
        b'\xff',
        b'[{"name": "\xff"}]',
        b'[{"name": "\xc3"}]',
        b'[{"name": "\xed\xa0\x80"}]',
        b'\xef\xbb\xbf[]',
        '[]'.encode('utf-32'),
        b'\x00',
        b'[' * 50_000,
        b'{"a":' * 20_000,
        b'[' * 20_000 + b']' * 20_000,
        b'[{"name": "a", "groups": [{"resources:FPGA": ' + b'9' * 10_000 + b'}]}]',
        b'[{"name": ' + b'9' * 10_000 + b'}]',
    ],
    ids=lambda body: f'{body[:16]!r}-{len(body)}',
)
def test_a_body_of_any_bytes_is_a_400(service, body):
    for send in (service.api.post, service.api.patch):
        for path in (PROFILES, ARQS, '/v2/attributes'):
            assert send(path, body).status_int in (400, 405)
    answer = service.api.post(PROFILES, body)
    assert answer.status_int == 400
    assert support.fault(answer)


@pytest.mark.parametrize('path', ['%ff', '%c3', '%ed%a0%80', 'a%00b', '%00'])
def test_a_path_of_any_bytes_is_a_4xx(service, path):
    for resource, verb in itertools.product(
        ('devices', 'deployables', 'attributes', 'device_profiles', 'accelerator_requests', ''),
        ('GET', 'DELETE', 'POST', 'PATCH'),
    ):
        answer = service.api.at('2.3').request(verb, f'/v2/{resource}/{path}')
        assert 400 <= answer.status_int < 500, (resource, verb)


@pytest.mark.parametrize(
    'header',
    ['accelerator \xff', 'accelerator 2.\xb2', '\xa0', ',', ',,', 'accelerator', 'a' * 5000],
)
def test_an_invalid_version_is_a_406_or_ignored(service, header):
    answer = service.api.get('/v2/devices', **{'OpenStack-API-Version': header})
    assert answer.status_int in (200, 406)


def test_a_body_over_the_limit_is_a_413(make):
    service = make(api__max_request_body_size=1024)
    body = json.dumps([{'name': 'a', 'groups': GROUPS}]).encode()
    assert service.api.post(PROFILES, body.ljust(1024)).status_int == 201
    answer = service.api.post(PROFILES, body.ljust(1025))
    assert answer.status_int == 413
    assert support.fault(answer) == 'The body is too large: expected 1024 bytes at most.'


def test_a_page_has_no_more_than_the_operator_allows(make):
    service = make(api__max_limit=2)
    service.report(*(support.card(f'{n:02x}') for n in range(3)))
    for path in ('/v2/devices', '/v2/devices?limit=3'):
        answer = service.api.get(path).json
        assert len(answer['devices']) == 2
        [link] = answer['devices_links']
        assert [len(service.api.get(link['href']).json['devices']), link['rel']] == [1, 'next']


def test_links_follow_the_public_endpoint(make):
    service = make(api__public_endpoint='https://cloud.example.org/accelerator/')
    service.report(support.card('3b'), support.card('3c'))
    root = 'https://cloud.example.org/accelerator'
    assert service.api.get('/v2').json['links'][0]['href'] == f'{root}/v2'
    answer = service.api.get('/v2/devices?limit=1').json
    [device] = answer['devices']
    assert device['links'][0]['href'] == f'{root}/v2/devices/{device["uuid"]}'
    assert answer['devices_links'][0]['href'].startswith(f'{root}/v2/devices?')
    [part, _] = service.api.get('/v2/deployables').json['deployables']
    assert part['links'][1]['href'] == f'{root}/deployables/{part["uuid"]}'


@pytest.mark.parametrize('state', ['Initial', 'BindStarted', 'Unbound', 'UnbindFailed'])
def test_an_instance_that_is_not_resolved_is_locked(service, state):
    service.report(support.card(handles=2))
    service.profile(FPGA=2)
    arqs = service.arqs()
    [part] = service.api.get('/v2/deployables').json['deployables']
    answer = service.api.bind(*arqs, provider=part['rp_uuid'], instance=support.INSTANCE)
    assert answer.status_int == 202
    with service.database.writer() as session:
        session.execute(sa.update(model.ARQ).where(model.ARQ.uuid == arqs[1]).values(state=state))
    answer = service.api.get(f'{ARQS}?instance={support.INSTANCE}&bind_state=resolved')
    assert (answer.status_int, answer.body) == (423, b'')
    # Without an instance it is a filter; without bind_state the answer is not 423.
    [shown] = service.api.get(f'{ARQS}?bind_state=resolved').json['arqs']
    assert shown['uuid'] == arqs[0]
    assert len(service.api.get(f'{ARQS}?instance={support.INSTANCE}').json['arqs']) == 2


@pytest.mark.parametrize('state', model.ARQ.RESOLVED)
def test_an_instance_that_is_resolved_is_shown(service, state):
    service.profile()
    [arq] = service.arqs()
    with service.database.writer() as session:
        session.execute(sa.update(model.ARQ).values(state=state, instance_uuid=support.INSTANCE))
    answer = service.api.get(f'{ARQS}?instance={support.INSTANCE}&bind_state=resolved')
    assert [shown['uuid'] for shown in answer.json['arqs']] == [arq]


@pytest.mark.parametrize(
    'error',
    [
        oslo_messaging.MessagingTimeout('traceback'),
        oslo_messaging.MessageUndeliverable('basic.return', 'cyborg_lite', 'conductor', {}),
    ],
)
def test_a_conductor_that_does_not_answer_is_a_503(service, error):
    with unittest.mock.patch.object(type(service.embedded.bus), 'conductor', side_effect=error):
        answer = service.api.post(PROFILES, [{'name': 'a', 'groups': GROUPS}])
    assert answer.status_int == 503
    assert 'Try again' in support.fault(answer)


def test_an_unexpected_error_shows_no_details(service):
    with unittest.mock.patch.object(
        type(service.embedded.bus), 'conductor', side_effect=RuntimeError('secret')
    ):
        answer = service.api.post(PROFILES, [{'name': 'a', 'groups': GROUPS}])
    assert answer.status_int == 500
    assert b'secret' not in answer.body
    assert b'Traceback' not in answer.body


def test_new_requests_come_in_the_order_of_the_groups(service):
    """openstacksdk and Nova take them as they come."""
    groups = [{'resources:FPGA': '2'}, {'resources:PGPU': '1'}, {'resources:CUSTOM_A': '1'}]
    service.api.post(PROFILES, [{'name': 'a', 'groups': groups}])
    made = service.api.post(ARQS, {'device_profile_name': 'a'}).json['arqs']
    assert [arq['device_profile_group_id'] for arq in made] == [0, 0, 1, 2]


def test_identity_headers_are_ignored_without_authentication(service):
    service.profile()
    headers = {'X-Project-Id': 'f' * 32, 'X-Roles': 'reader', 'X-User-Id': 'eve'}
    answer = service.api.post(ARQS, {'device_profile_name': 'profile-1'}, **headers)
    assert answer.json['arqs'][0]['project_id'] == '00000000000000000000000000000001'


def test_service_token_headers_are_ignored_without_authentication():
    """Also for headers that this release does not know."""
    seen = {}

    def application(environ, start_response):
        seen.update(environ)
        start_response('204 No Content', [])
        return []

    forged = {'X-Service-Roles': 'service', 'x-forwarded-user': 'eve', 'X-Roles': 'reader'}
    support.Api(webtest.TestApp(app.Alone(application, lambda _: app.ALONE)), **forged).get('/')
    said = {f'HTTP_{name.upper().replace("-", "_")}' for name in (*app.ALONE, 'X-Identity-Status')}
    assert {name for name in seen if name.startswith('HTTP_X_')} == said
    assert seen['HTTP_X_ROLES'] == app.ALONE['X-Roles']


def test_a_host_is_shown_by_its_full_name(service):
    """The text after the last dot is not a file type."""
    for name in ('node-1.example.com', 'node-1.example.exe', 'node-1.html'):
        service.report(support.card(), host=name)
        assert service.api.get(f'/v2/hosts/{name}').json['name'] == name


UPPER = ('devices', 'deployables', 'attributes', 'device_profiles', 'accelerator_requests')


@pytest.mark.parametrize('resource', UPPER)
def test_a_uuid_is_one_in_each_of_its_spellings(service, resource):
    service.report(support.card())
    service.profile()
    service.arqs()
    api = service.api.at('2.3')
    [rows] = [v for k, v in api.get(f'/v2/{resource}').json.items() if not k.endswith('_links')]
    given = rows[0]['uuid']
    for text in (given.upper(), given.replace('-', ''), f'urn:uuid:{given}'):
        shown = api.get(f'/v2/{resource}/{text}')
        assert shown.status_int == 200, text
        assert given in shown.text
        assert api.get(f'/v2/{resource}?marker={text}').status_int == 200
    if resource == 'devices':
        for action in ('disable', 'enable'):
            assert api.post(f'/v2/devices/{given.upper()}/{action}').status_int == 204


@pytest.mark.parametrize(
    ('query', 'text'),
    [
        ('devices?filters=x', 'Invalid filters'),
        ('devices?filters=', 'Invalid filters'),
        ('devices?filters=x&filters=y', 'Invalid filters'),
        ('deployables?filters={"limit":1}', 'Invalid filters'),
        ('deployables?filters.field=limit', 'Invalid filters'),
        ('attributes?deployable_id=x', "Invalid deployable_id: expected a number, got 'x'."),
        ('attributes?deployable_id=1&deployable_id=2', 'expected a number'),
        ('accelerator_requests?instance=x', "Invalid instance: expected a UUID, got 'x'."),
        ('attributes/x', "Invalid uuid: expected a UUID, got 'x'."),
    ],
)
def test_an_argument_is_refused_in_our_own_words(service, query, text):
    answer = service.api.get(f'/v2/{query}')
    assert answer.status_int == 400
    said = support.fault(answer)
    assert text in said
    for word in ('unable to convert', 'ArrayType', '__init__', 'int()'):
        assert word not in said


NAMES = ','.join(f'n{n}' for n in range(33_000))
UUIDS = ','.join([support.INSTANCE] * 33_000)


@pytest.mark.parametrize(
    ('method', 'query'),
    [
        ('GET', f'{PROFILES}?name={NAMES}'),
        ('GET', f'{PROFILES}?name={NAMES[:6000]}'),
        ('DELETE', f'{PROFILES}?value={NAMES}'),
        ('DELETE', f'{ARQS}?arqs={UUIDS}'),
    ],
    ids=lambda text: text[:40],
)
def test_a_list_in_a_url_is_bounded(service, method, query):
    """SQLite allows 32,766 variables in one statement, and each has a cost."""
    answer = service.api.request(method, query)
    assert answer.status_int == 400
    assert '1000 at most' in support.fault(answer)


@pytest.mark.parametrize('path', ['devices', 'deployables'])
def test_an_index_of_many_digits_is_a_400(service, path):
    """Python refuses to convert them, and WSME does not catch this."""
    answer = service.api.get(f'/v2/{path}?filters[{"9" * 4301}]=x')
    assert answer.status_int == 400
    assert 'Invalid filters' in support.fault(answer)


@pytest.mark.parametrize('depth', [33, 900, 933, 980, 5000])
@pytest.mark.parametrize(('left', 'right'), [('[', ']'), ('{"a":', '}')])
def test_a_body_that_is_nested_deeply_is_a_400(service, depth, left, right):
    deep = left * depth + '1' + right * depth
    for path, body in (
        (PROFILES, deep),
        (PROFILES, f'[{{"name": "a", "groups": [{{"resources:FPGA": {deep}}}]}}]'),
        (ARQS, deep),
        ('/v2/attributes', f'{{"deployable_id": {deep}, "key": "a", "value": "b"}}'),
        ('/v2/attributes', f'{{"attribute": {deep}}}'),
    ):
        assert service.api.post(path, body.encode()).status_int == 400, path
    assert service.api.patch(ARQS, deep.encode()).status_int == 400


def test_a_body_of_very_many_values_is_a_400(make):
    service = make(api__max_request_body_size=2**20)
    answer = service.api.post(PROFILES, b'[' + b'0,' * 30_000 + b'0]')
    assert answer.status_int == 400
    assert '25000 values at most' in support.fault(answer)
    patch = [{'path': '/hostname', 'op': 'remove'}]
    answer = service.api.patch(ARQS, {str(uuid.uuid4()): patch for _ in range(1001)})
    assert answer.status_int == 400
    assert 'Invalid body: 1001 entries, expected 1000 at most' in support.fault(answer)


def test_the_number_of_reported_errors_is_limited(service, monkeypatch):
    made = []
    init = jsonschema.ValidationError.__init__
    monkeypatch.setattr(
        jsonschema.ValidationError,
        '__init__',
        lambda self, *args, **kwargs: (made.append(1), init(self, *args, **kwargs))[1],
    )
    body = json.dumps({f'{n}': [{}] for n in range(4000)}).encode()
    assert service.api.patch(ARQS, body).status_int == 400
    assert len(made) < 100


def sent(service, body, **environ):
    """The status of a POST from a web server."""
    statuses = []
    named = {
        'REQUEST_METHOD': 'POST', 'PATH_INFO': PROFILES, 'SCRIPT_NAME': '', 'QUERY_STRING': '',
        'SERVER_NAME': 'localhost', 'SERVER_PORT': '80', 'SERVER_PROTOCOL': 'HTTP/1.1',
        'HTTP_HOST': 'localhost', 'wsgi.url_scheme': 'http', 'wsgi.input': body,
        'wsgi.errors': io.StringIO(), 'REMOTE_ADDR': '127.0.0.1',
        'CONTENT_TYPE': 'application/json',
    }  # fmt: skip
    answer = service.embedded.application(
        named | environ, lambda status, headers, *_: statuses.append(status)
    )
    b''.join(answer)
    return int(statuses[-1].split()[0])


class Broken(io.BytesIO):
    """A body with invalid chunks."""

    def read(self, *_):
        raise ValueError('Bad chunked transfer size')


class Endless(io.BytesIO):
    """An endless body, which records the largest read."""

    most = 0

    def read(self, size=-1):
        asked = size if size is not None and size >= 0 else 2**40
        self.most = max(self.most, asked)
        return b' ' * min(asked, 2**20)


def test_a_body_in_chunks_is_read_up_to_the_limit(service):
    """A WSGI server may pass chunks on as they arrive."""
    body = Endless()
    chunked = {'HTTP_TRANSFER_ENCODING': 'chunked', 'wsgi.input_terminated': True}
    assert sent(service, body, **chunked) == 413
    assert body.most == service.conf.api.max_request_body_size + 1


@pytest.mark.parametrize('body', [b'', b'[', b'[{"name": "a"}]'])
def test_a_body_that_stops_short_is_a_400(service, body):
    assert sent(service, io.BytesIO(body), CONTENT_LENGTH='1000') == 400


def test_a_body_of_bad_chunks_is_a_400(service):
    chunked = {'HTTP_TRANSFER_ENCODING': 'chunked', 'wsgi.input_terminated': True}
    assert sent(service, Broken(), **chunked) == 400


@pytest.mark.parametrize(
    'route', [route for route in openapi.ROUTES if route.operation.body], ids=str
)
def test_the_body_of_an_unauthorized_caller_is_not_parsed(service, monkeypatch, route):
    front = app.Front(service.conf, service.database, service.embedded.bus)
    identity = {'HTTP_X_USER_ID': 'u', 'HTTP_X_PROJECT_ID': 'f' * 32, 'HTTP_X_ROLES': 'reader'}
    api = support.Api(webtest.TestApp(lambda environ, start: front(environ | identity, start)))
    parsed = []
    monkeypatch.setattr(types, 'parse', parsed.append)
    for body in (b'[' * 50_000, b'{', b'', b'{}'):
        path = re.sub(r'\{\w+\}', support.INSTANCE, route.path)
        assert api.request(route.method, path, body).status_int == 403
    assert not parsed


def test_a_name_that_is_unknown_takes_as_long_as_a_wrong_password(make, tmp_path, monkeypatch):
    users = tmp_path / 'users'
    hashed = bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()
    users.write_text(f'\nknown:{hashed}\n')
    service = make(api__auth_strategy='http_basic', api__http_basic_auth_user_file=str(users))
    compared = []
    check = bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt, 'checkpw', lambda *args: (compared.append(args[1]), check(*args))[1]
    )
    for name, password, status in (
        ('known', 'right', 200), ('known', 'wrong', 401), ('unknown', 'wrong', 401),
        # The password of another user is not accepted.
        ('unknown', 'right', 401), ('', 'right', 401), ('kno', 'right', 401),
    ):  # fmt: skip
        token = base64.b64encode(f'{name}:{password}'.encode()).decode()
        compared.clear()
        answer = service.api.get('/v2/devices', Authorization=f'Basic {token}')
        assert answer.status_int == status, name
        assert len(compared) == 1, name


@pytest.mark.parametrize('name', ['host-2\n', '\nhost-2', 'host 2', '', '-', 'h' * 129])
def test_an_invalid_new_name_of_a_host_is_refused(service, name):
    service.report(support.card())
    with service.database.writer() as session:
        session.execute(sa.update(model.Host).values(silent=True))
    answer = service.api.patch('/v2/hosts/host-1', {'name': name})
    assert answer.status_int == 400, answer.text
    assert 'Invalid name' in support.fault(answer)
    assert [host.name for host in service.rows(model.Host)] == ['host-1']


@pytest.mark.parametrize('name', ['hostname', 'device_rp_uuid', 'instance_uuid'])
def test_a_repeated_field_of_a_request_is_refused(service, name):
    service.report(support.card())
    service.profile()
    [arq] = service.arqs()
    [part] = service.rows(model.Deployable)
    patch = support.wish(part.rp_uuid, support.HOST, support.INSTANCE)
    patch += [operation for operation in patch if operation['path'] == f'/{name}']
    answer = service.api.patch(ARQS, {arq: patch})
    assert answer.status_int == 400, answer.text
    assert f'/{name} is there twice' in support.fault(answer)
    assert [row.state for row in service.rows(model.ARQ)] == ['Initial']


def test_a_request_that_is_named_twice_is_refused(service):
    service.report(support.card(handles=2))
    service.profile()
    [arq] = service.arqs()
    [part] = service.rows(model.Deployable)
    patch = support.wish(part.rp_uuid, support.HOST, support.INSTANCE)
    answer = service.api.patch(ARQS, {arq: patch, arq.upper(): patch})
    assert answer.status_int == 400, answer.text
    assert f'{arq} is there twice' in support.fault(answer)
    assert [row.state for row in service.rows(model.ARQ)] == ['Initial']

# SPDX-License-Identifier: Apache-2.0
"""What gabbi cannot send or set up: raw bytes, great sizes, settings, states between two others."""

import itertools
import json
import unittest.mock

import oslo_messaging
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from tests import support

PROFILES = '/v2/device_profiles'
ARQS = '/v2/accelerator_requests'
GROUPS = [{'resources:FPGA': '1'}]


@pytest.fixture
def make(database_url):
    """Make services with settings of their own."""
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
def test_a_version_of_any_bytes_is_a_406_or_none(service, header):
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
    # Without an instance it is a filter; without bind_state nobody waits.
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


def test_an_error_that_nobody_expected_tells_nothing(service):
    with unittest.mock.patch.object(
        type(service.embedded.bus), 'conductor', side_effect=RuntimeError('secret')
    ):
        answer = service.api.post(PROFILES, [{'name': 'a', 'groups': GROUPS}])
    assert answer.status_int == 500
    assert b'secret' not in answer.body
    assert b'Traceback' not in answer.body


def test_without_authentication_nobody_says_who_they_are(service):
    service.profile()
    headers = {'X-Project-Id': 'f' * 32, 'X-Roles': 'reader', 'X-User-Id': 'eve'}
    answer = service.api.post(ARQS, {'device_profile_name': 'profile-1'}, **headers)
    assert answer.json['arqs'][0]['project_id'] == '00000000000000000000000000000001'


def test_a_host_is_shown_by_its_full_name(service):
    """What follows the last dot is no file type."""
    for name in ('node-1.example.com', 'node-1.example.exe', 'node-1.html'):
        service.report(support.card(), host=name)
        assert service.api.get(f'/v2/hosts/{name}').json['name'] == name

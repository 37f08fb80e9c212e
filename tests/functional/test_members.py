# SPDX-License-Identifier: Apache-2.0
"""The projects and roles of ``http_basic`` users, from a file."""

import base64
import json
import logging
import os
import types

import bcrypt
from oslo_config import cfg
import pytest

from cyborg_lite.api import members
from cyborg_lite.api import userfiles
from tests import support

ARQS = '/v2/accelerator_requests'
GROUPS = [{'resources:FPGA': '1'}]
FILE = """
# who       of which project, as what
ann:vision:member
bob:speech:member

eve:vision:reader
max:vision:manager
root:ops:admin
"""
USERS = ('ann', 'bob', 'eve', 'max', 'root', 'zoe')
HASH = bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()


@pytest.fixture
def place(tmp_path):
    users = tmp_path / 'htpasswd'
    users.write_text(''.join(f'{name}:{HASH}\n' for name in USERS))
    projects = tmp_path / 'projects'
    projects.write_text(FILE)
    return types.SimpleNamespace(users=users, projects=projects)


@pytest.fixture
def start(place, database_url):
    made = []

    def start(**settings):
        settings = {
            'api__auth_strategy': 'http_basic',
            'api__http_basic_auth_user_file': str(place.users),
            'api__http_basic_auth_project_file': str(place.projects),
        } | settings
        made.append(support.Service(database_url, **settings))
        return made[-1]

    yield start
    for each in made:
        each.stop()


@pytest.fixture
def asked(start):
    """``asked(name)``: the API for this user."""
    return by_name(start())


def by_name(service):
    def asked(name, password='secret'):
        token = base64.b64encode(f'{name}:{password}'.encode()).decode()
        application = support.local(service.embedded.application)
        return support.Api(application, Authorization=f'Basic {token}')

    service.report(support.card(handles=4))
    made = asked('root').post('/v2/device_profiles', [{'name': 'one', 'groups': GROUPS}])
    assert made.status_int in (201, 403)
    return asked


def request(api):
    [arq] = api.post(ARQS, {'device_profile_name': 'one'}).json['arqs']
    return arq


def provider(asked):
    [part] = asked('root').get('/v2/deployables').json['deployables']
    return part['rp_uuid']


def test_users_of_two_projects_see_their_own_requests_only(asked):
    ours, theirs = request(asked('ann')), request(asked('bob'))
    assert (ours['project_id'], theirs['project_id']) == ('vision', 'speech')
    for name, seen in (('ann', [ours]), ('eve', [ours]), ('bob', [theirs])):
        found = asked(name).get(ARQS).json['arqs']
        assert [arq['uuid'] for arq in found] == [arq['uuid'] for arq in seen]
    assert len(asked('root').get(ARQS).json['arqs']) == 2


def test_an_allocation_has_the_name_of_its_user(asked):
    body = {'groups': [{'resources': {'FPGA': 1}}]}
    made = asked('ann').post('/v2/allocations', body).json
    assert (made['project_id'], made['user_name']) == ('vision', 'ann')
    queued = asked('bob').post(
        '/v2/allocations', {'groups': [{'resources': {'FPGA': 4}}], 'queue': True}
    )
    assert (queued.json['state'], queued.json['user_name']) == ('queued', 'bob')
    for path, key in (('allocations', 'uuid'), ('accelerators', 'allocation_uuid')):
        found = asked('root').get(f'/v2/{path}?user_name=ann').json[path]
        assert [each[key] for each in found] == [made['uuid']]
        assert [each['user_name'] for each in found] == ['ann']
    # Those of other projects see neither the allocation nor the name.
    assert asked('bob').get('/v2/allocations?user_name=ann').json['allocations'] == []
    assert asked('bob').get('/v2/accelerators').status_int == 403


@pytest.mark.parametrize('state', ['Initial', 'Bound'])
def test_a_request_of_another_project_looks_like_none(asked, state):
    arq = request(asked('bob'))['uuid']
    where = provider(asked)
    if state == 'Bound':
        assert asked('bob').bind(arq, provider=where).status_int == 202
    ann = asked('ann')
    answers = [
        ann.get(f'{ARQS}/{arq}'),
        ann.delete(f'{ARQS}/{arq}'),
        ann.delete(f'{ARQS}?arqs={arq}'),
        ann.bind(arq, provider=where),
        ann.unbind(arq),
    ]
    assert [answer.status_int for answer in answers] == [404] * len(answers)
    assert asked('bob').get(f'{ARQS}/{arq}').json['state'] == state


@pytest.mark.parametrize(
    ('name', 'statuses'),
    [
        # to list devices, to create a request, to create a profile
        ('eve', [403, 403, 403]),
        ('ann', [403, 201, 403]),
        ('max', [200, 201, 403]),
        ('root', [200, 201, 201]),
    ],
)
def test_roles_imply_those_below(asked, name, statuses):
    api = asked(name)
    answers = [
        api.get('/v2/devices'),
        api.post(ARQS, {'device_profile_name': 'one'}),
        api.post('/v2/device_profiles', [{'name': 'two', 'groups': GROUPS}]),
    ]
    assert [answer.status_int for answer in answers] == statuses
    assert api.get('/v2/device_profiles').status_int == 200


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_a_user_without_a_project_may_do_nothing(asked, method):
    answer = asked('zoe').request(method, ARQS, {} if method == 'POST' else None)
    assert answer.status_int == 403
    assert (
        json.loads(answer.json['error_message'])['description']
        == 'User zoe has no project on this service.'
    )
    # The password is checked first.
    assert asked('zoe', 'wrong').get(ARQS).status_int == 401
    assert asked('zoe').get('/v2').status_int == 200


def test_identity_headers_of_a_user_are_ignored(asked):
    said = {'X-Project-Id': 'speech', 'X-Roles': 'admin', 'X-Is-Admin-Project': 'True'}
    theirs = request(asked('bob'))['uuid']
    assert asked('ann').get(f'{ARQS}/{theirs}', **said).status_int == 404
    assert asked('ann').get('/v2/devices', **said).status_int == 403


def test_a_change_of_the_file_counts_from_the_next_request(asked, place):
    arq = request(asked('ann'))['uuid']
    place.projects.write_text(FILE.replace('ann:vision', 'ann:speech') + 'zoe:vision:member\n')
    assert asked('ann').get(f'{ARQS}/{arq}').status_int == 404
    assert asked('zoe').get(f'{ARQS}/{arq}').status_int == 200


@pytest.mark.parametrize('broken', ['ann:vision\n', b'\xff\n', None])
def test_a_file_that_breaks_changes_nothing(asked, place, broken, caplog):
    if broken is None:
        place.projects.unlink()
    else:
        place.projects.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    for _ in range(3):
        assert request(asked('ann'))['project_id'] == 'vision'
        assert asked('zoe').get(ARQS).status_int == 403
    said = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [str(place.projects) in record.getMessage() for record in said] == [True]


def test_without_the_file_each_user_is_administrator(start):
    asked = by_name(start(api__http_basic_auth_project_file=None))
    assert asked('zoe').get('/v2/devices').status_int == 200
    assert request(asked('ann'))['project_id'] == request(asked('bob'))['project_id']


LONG = 'a' * 65


@pytest.mark.parametrize(
    'line',
    [
        'ann', 'ann:vision', 'ann:vision:', 'ann::member', ':vision:member', 'ann vision member',
        'ann:vision:member:more', 'ann:vision:owner', 'ann:vision:Member', 'ann:vision:member,',
        'ann:vision:member;reader', 'ann:vi sion:member', 'ann:../etc:member', f'ann:{LONG}:member',
        'ann:v\x00:member', 'ann:vïsion:member', 'ann:defaults:member', 'ann:own:member',
        'ann:-v:member', f'{"a" * 256}:vision:member',
    ],
)  # fmt: skip
def test_a_bad_line_is_refused(place, line):
    place.projects.write_text(f'# first\nbob:speech:member\n{line}\n', encoding='utf-8')
    with pytest.raises(cfg.ConfigFileValueError) as refused:
        members.Members(str(place.projects))
    said = str(refused.value)
    assert said.startswith(f'[api] http_basic_auth_project_file: {place.projects}, line 3: ')
    assert 'expected USER:PROJECT:ROLE' in said
    assert '\n' not in said


def test_the_service_does_not_start_with_a_bad_file(start, place):
    place.projects.write_text('ann\n')
    with pytest.raises(cfg.ConfigFileValueError, match='line 1: expected USER:PROJECT:ROLE'):
        start()


def test_a_user_has_one_project(place):
    place.projects.write_text('ann:vision:member\n\nann:speech:member\n')
    with pytest.raises(cfg.ConfigFileValueError, match='line 3: user ann is in line 1 already'):
        members.Members(str(place.projects))


@pytest.mark.parametrize('kind', ['absent', 'directory', 'pipe', 'binary', 'large'])
def test_a_file_that_is_not_plain_is_refused(place, kind):
    place.projects.unlink()
    if kind == 'directory':
        place.projects.mkdir()
    elif kind == 'pipe':
        os.mkfifo(place.projects)
    elif kind == 'binary':
        place.projects.write_bytes(b'\xff\xfe')
    elif kind == 'large':
        place.projects.write_bytes(b'#' * (userfiles.MOST + 1))
    with pytest.raises(cfg.ConfigFileValueError) as refused:
        members.Members(str(place.projects))
    said = str(refused.value)
    assert said.startswith(f'[api] http_basic_auth_project_file: {place.projects}: ')
    assert 'USER:PROJECT:ROLE' in said


def test_a_user_has_several_roles_in_one_line(start, place):
    place.projects.write_text('ann : vision : reader, manager\nroot:ops:admin\n')
    asked = by_name(start())
    assert asked('ann').get('/v2/devices').status_int == 200
    assert request(asked('ann'))['project_id'] == 'vision'


def test_an_administrator_names_a_project_that_is_no_uuid(start, place):
    place.projects.write_text('ann:vision-2:member\nroot:ops:admin\n')
    asked = by_name(start())
    arq = request(asked('root'))['uuid']
    patch = support.wish(provider(asked), support.HOST, support.INSTANCE)
    owner = [{'op': 'add', 'path': '/project_id', 'value': 'vision-2'}]
    answer = asked('root').at('2.1').patch(ARQS, {arq: patch + owner})
    assert answer.status_int == 202
    assert asked('ann').get(f'{ARQS}/{arq}').json['project_id'] == 'vision-2'

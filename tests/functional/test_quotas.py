# SPDX-License-Identifier: Apache-2.0
"""Quotas: limits by resource class and in total, also with concurrent requests."""

import collections
import concurrent.futures
import threading
import types

from keystoneauth1 import token_endpoint
import oslo_messaging as messaging
import pytest
import requests
import requests_mock
import sqlalchemy as sa

from cyborg_lite import accounts
from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite.api import projects
from cyborg_lite.api import quotas
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import taking
from tests import support
from tests.functional import test_members

ARQS = '/v2/accelerator_requests'
ALONE = '00000000000000000000000000000001'
QUOTAS = '/v2/quotas'
place, start, asked = test_members.place, test_members.start, test_members.asked


def set_(api, project=ALONE, **limits):
    answer = api.patch(f'{QUOTAS}/{project}', {'limits': limits})
    assert answer.status_int == 200, answer.text
    return shown(answer)


def shown(answer):
    """The limit and the usage by resource."""
    return {each['resource']: (each['limit'], each['used']) for each in answer.json['quotas']}


def post(api, profile='profile-1'):
    return api.post(ARQS, {'device_profile_name': profile})


@pytest.fixture
def many(service):
    """``many(*projects)``: create a request for each at once; returns the errors and uuids.

    ``call`` makes something else than a request.
    """

    def run(*projects, call=lambda conductor: conductor.create_arqs(profile='profile-1')):
        ready = threading.Barrier(len(projects), timeout=60)

        def create(project):
            caller = context.RequestContext(project_id=project, overwrite=False)
            conductor = service.embedded.bus.conductor(caller)
            ready.wait()
            try:
                return call(conductor)
            except exception.CyborgError as error:
                return str(error)

        with concurrent.futures.ThreadPoolExecutor(len(projects)) as pool:
            return list(pool.map(create, projects))

    return run


def counts(service):
    return collections.Counter(arq.project_id for arq in service.rows(model.ARQ))


# Projects that do not exist


def test_a_misspelt_project_is_refused(start):
    root = test_members.by_name(start())('root')
    answer = root.patch(f'{QUOTAS}/visoin', {'limits': {'total': 1}})
    assert answer.status_int == 400
    assert 'there is no project visoin' in support.fault(answer)
    assert 'expected one of ops, speech, vision' in support.fault(answer)
    for name in ('vision', 'defaults'):
        set_(root, name, total=1)


def test_a_limit_is_set_while_the_file_of_projects_is_broken(start, place, caplog):
    root = test_members.by_name(start())('root')
    place.projects.write_text('ann\n')
    set_(root, 'vision', total=1)
    assert 'Project vision is not checked' in caplog.text


@pytest.mark.parametrize(
    ('status', 'answered'),
    [(200, 200), (404, 400), (403, 200), (500, 200), (302, 200), (None, 200)],
)
def test_keystone_is_asked_for_the_project(monkeypatch, status, answered):
    """A project is refused only if Keystone says that it does not exist."""
    identity = 'http://identity.example/v3'
    headers = {'X-Auth-Token': 'theirs'}
    asked = {'exc': requests.exceptions.ConnectionError} if status is None else {
        'status_code': status, 'request_headers': headers,
        'headers': {'Location': 'http://other.example/'}}  # fmt: skip
    tokens = types.SimpleNamespace(
        insecure=False, cafile=None, certfile=None, keyfile=None, region_name=None
    )
    api = types.SimpleNamespace(auth_strategy='keystone', http_basic_auth_project_file=None)
    call = types.SimpleNamespace(
        conf=types.SimpleNamespace(keystone_authtoken=tokens, api=api),
        token=token_endpoint.Token(identity, 'theirs'),
    )
    monkeypatch.setattr(projects.rest, 'call', lambda: call)
    with requests_mock.Mocker() as keystone:
        project = keystone.get(f'{identity}/projects/p1', **asked)
        if answered == 200:
            projects.check('p1')
        else:
            with pytest.raises(exception.Invalid, match='no project p1 in Keystone'):
                projects.check('p1')
        assert project.called
        # A token is not sent on to another host, and nobody waits for ever.
        assert project.last_request.timeout == projects.TIMEOUT
        for steps in ('.', '..'):
            with pytest.raises(exception.Invalid, match='there is no project'):
                projects.check(steps)
        assert len(keystone.request_history) == 1


# Refusals


def test_nothing_is_limited_until_a_limit_is_set(service):
    service.profile(FPGA=3)
    assert post(service.api).status_int == 201
    assert shown(service.api.get(f'{QUOTAS}/own')) == {'total': (-1, 3), 'FPGA': (-1, 3)}
    assert service.rows(model.Quota) == []


@pytest.mark.parametrize('resource', ['FPGA', 'total'])
def test_a_refusal_names_class_limit_used_asked_and_project(service, resource):
    service.profile(FPGA=2)
    set_(service.api, **{resource: 5})
    assert [post(service.api).status_int for _ in range(3)] == [201, 201, 403]
    refused = post(service.api)
    assert support.fault(refused) == (
        f'Quota exceeded for {resource}: the limit is 5, 4 used, and 2 asked for in project '
        f'{service.rows(model.ARQ)[0].project_id}.'
    )
    assert len(service.rows(model.ARQ)) == 4


def test_up_to_the_limit_nothing_is_refused(service):
    service.profile(FPGA=2)
    set_(service.api, FPGA=4, total=4)
    assert [post(service.api).status_int for _ in range(3)] == [201, 201, 403]


def test_other_classes_and_other_projects_are_not_counted(service, many):
    service.profile(FPGA=1)
    service.profile('gpu', PGPU=1)
    set_(service.api, FPGA=1)
    assert [post(service.api).status_int for _ in range(2)] == [201, 403]
    assert [post(service.api, 'gpu').status_int for _ in range(3)] == [201] * 3
    assert all(isinstance(each, list) for each in many('p', 'p', 'q'))


def test_zero_is_a_limit_and_minus_one_is_none(service):
    service.profile()
    set_(service.api, 'defaults', FPGA=0)
    assert post(service.api).status_int == 403
    set_(service.api, FPGA=-1)
    assert post(service.api).status_int == 201


def test_the_own_limit_goes_before_the_default_one(service, many):
    service.profile()
    set_(service.api, 'defaults', FPGA=1, total=9)
    set_(service.api, 'p', FPGA=2)
    assert sum(isinstance(each, list) for each in many('p', 'p', 'p', 'q', 'q')) == 3
    assert counts(service) == {'p': 2, 'q': 1}
    assert shown(service.api.get(f'{QUOTAS}/p')) == {'total': (9, 2), 'FPGA': (2, 2)}


def test_deleted_requests_do_not_count_and_unbound_requests_do(service):
    service.report(support.card(handles=4))
    service.profile()
    set_(service.api, FPGA=1)
    [arq] = service.arqs()
    [part] = service.rows(model.Deployable)
    assert service.api.bind(arq, provider=part.rp_uuid).status_int == 202
    assert post(service.api).status_int == 403
    assert service.api.unbind(arq).status_int == 202
    assert post(service.api).status_int == 403
    assert service.api.delete(f'{ARQS}/{arq}').status_int == 204
    assert post(service.api).status_int == 201


def test_a_group_of_several_classes_counts_for_each(service):
    groups = [{'resources:FPGA': '1', 'resources:CUSTOM_NPU': '2'}, {'resources:FPGA': '1'}]
    service.api.post('/v2/device_profiles', [{'name': 'profile-1', 'groups': groups}])
    set_(service.api, FPGA=4, CUSTOM_NPU=3)
    assert len(service.arqs()) == 4
    assert shown(service.api.get(f'{QUOTAS}/own')) == {
        'total': (-1, 4), 'FPGA': (4, 2), 'CUSTOM_NPU': (3, 2),
    }  # fmt: skip
    assert 'Quota exceeded for CUSTOM_NPU' in support.fault(post(service.api))


def test_a_limit_below_what_is_used_takes_nothing_away(service):
    service.profile()
    for _ in range(2):
        service.arqs()
    assert set_(service.api, FPGA=1)['FPGA'] == (1, 2)
    assert post(service.api).status_int == 403
    assert len(service.rows(model.ARQ)) == 2


def test_a_request_that_gets_another_project_counts_there(service):
    service.report(support.card(handles=4))
    service.profile()
    set_(service.api, 'p', FPGA=1)
    [part] = service.rows(model.Deployable)
    api, answers = service.api.at('2.1'), []
    for number in range(2):
        [arq] = service.arqs()
        patch = support.wish(part.rp_uuid, support.HOST, f'{support.INSTANCE[:-1]}{number}')
        patch.append({'op': 'add', 'path': '/project_id', 'value': 'p'})
        answers.append(api.patch(ARQS, {arq: patch}))
    assert [answer.status_int for answer in answers] == [202, 403]
    assert 'Quota exceeded for FPGA' in support.fault(answers[1])
    assert counts(service) == {'p': 1, ALONE: 1}
    # It is not bound, and can be bound elsewhere.
    assert {arq.state for arq in service.rows(model.ARQ)} == {'Bound', 'Initial'}


@pytest.mark.parametrize(
    'body', [{'profile': 'profile-1'}, {'groups': [{'resources': {'FPGA': 1}}]}]
)
def test_allocations_are_counted_as_requests_are(service, monkeypatch, body):
    monkeypatch.setattr(placing, 'policy', lambda name: placing.binpack)
    service.report(support.card(handles=4))
    service.profile()
    set_(service.api, FPGA=1)
    made, refused = (service.api.post('/v2/allocations', body) for _ in range(2))
    assert (made.status_int, refused.status_int) == (201, 403)
    assert 'Quota exceeded for FPGA: the limit is 1, 1 used' in support.fault(refused)
    assert post(service.api).status_int == 403
    assert service.api.delete(f'/v2/allocations/{made.json["uuid"]}').status_int == 204
    assert post(service.api).status_int == 201


# Concurrency


@pytest.mark.parametrize('which', ['own', 'default', 'total'])
def test_64_concurrent_requests_respect_the_limit(service, many, which):
    service.profile()
    project = 'defaults' if which == 'default' else 'p'
    set_(service.api, project, **{'total' if which == 'total' else 'FPGA': 20})
    answers = many(*['p'] * 64)
    refused = [each for each in answers if isinstance(each, str)]
    assert len(refused) == 44
    assert {each.partition(':')[0] for each in refused} == {
        f'Quota exceeded for {"total" if which == "total" else "FPGA"}'
    }
    assert counts(service) == {'p': 20}


@pytest.mark.parametrize('queue', [False, True])
def test_64_concurrent_allocations_respect_the_limit(service, many, queue):
    service.report(support.card(handles=64))
    service.profile()
    set_(service.api, 'p', FPGA=20)
    request = {'profile': 'profile-1', 'alternatives': [], 'same_host': True, 'queue': queue}
    request |= {'same_numa': 'prefer', 'hosts': None}
    answers = many(*['p'] * 64, call=lambda conductor: conductor.create_allocation(request=request))
    assert counts(service) == {'p': 20}
    states = collections.Counter(row.state for row in service.rows(model.Allocation))
    if queue:
        assert states == {'active': 20, 'queued': 44}
    else:
        assert states == {'active': 20}
        refused = [each for each in answers if each.startswith('Quota exceeded for FPGA')]
        assert len(refused) == 44


def test_concurrent_requests_for_many_get_all_or_none(service, many):
    service.profile(FPGA=3)
    set_(service.api, 'defaults', FPGA=10)
    answers = many(*['p', 'q'] * 16)
    assert sum(isinstance(each, list) for each in answers) == 6
    assert counts(service) == {'p': 9, 'q': 9}


# Limits


def test_limits_are_set_one_by_one(service):
    set_(service.api, 'p', FPGA=1, total=2)
    set_(service.api, 'p', CUSTOM_NPU=3, total=None)
    [row] = service.api.get(QUOTAS).json['quotas']
    assert (row['project_id'], row['limits']) == ('p', {'FPGA': 1, 'CUSTOM_NPU': 3})
    assert service.api.delete(f'{QUOTAS}/p').status_int == 204
    assert service.api.delete(f'{QUOTAS}/p').status_int == 404
    assert service.api.get(QUOTAS).json['quotas'] == []


@pytest.mark.parametrize('retried', [True, False])
def test_a_late_delete_leaves_later_limits(service, monkeypatch, retried):
    """Even if they equal those that were to be deleted."""
    path, late = f'{QUOTAS}/p', []
    set_(service.api, 'p', total=1)

    def lose(peer, method, words):
        late.append((peer, method, words))
        raise messaging.MessagingTimeout

    with monkeypatch.context() as patch:
        patch.setattr(rpc.Peer, '_send', lose)
        assert service.api.delete(path).status_int == 503
    if retried:
        assert service.api.delete(path).status_int == 204
    set_(service.api, 'p', total=1)
    [(peer, method, words)] = late
    with pytest.raises(exception.Conflict, match='project p were changed meanwhile'):
        peer._send(method, words)
    assert [row.limits for row in service.rows(model.Quota)] == [{'total': 1}]
    assert service.api.delete(path).status_int == 204
    assert service.rows(model.Quota) == []


def test_an_api_of_the_previous_release_deletes_limits(service):
    set_(service.api, 'p', total=1)
    service.conductor.delete_quota(project='p')
    assert service.rows(model.Quota) == []


BAD = [
    ({}, 'limits'),
    ([], 'limits'),
    (None, 'limits'),
    ({'FPGA': '1'}, 'limits.FPGA'),
    ({'FPGA': -2}, 'limits.FPGA'),
    ({'FPGA': 1.5}, 'limits.FPGA'),
    ({'FPGA': True}, 'limits.FPGA'),
    ({'FPGA': 2**31}, 'limits.FPGA'),
    ({'fpga': 1}, 'fpga'),
    ({'': 1}, 'limits'),
    ({'NPU': 1}, 'NPU'),
    ({'CUSTOM_NPU\n': 1}, 'CUSTOM_NPU'),
    ({'FPGA\n': 1}, 'FPGA'),
    ({'TOTAL': 1}, 'TOTAL'),
    ({'CUSTOM_' + 'A' * 249: 1}, 'CUSTOM_'),
    ({f'CUSTOM_{n}': 1 for n in range(101)}, '101 entries, expected 100 at most'),
]


def test_bad_limits_are_refused(service):
    for limits, said in BAD:
        answer = service.api.patch(f'{QUOTAS}/p', {'limits': limits})
        assert answer.status_int == 400, limits
        assert said in support.fault(answer)
    for body in ({}, [], {'limits': {'total': 1}, 'project_id': 'q'}, b'{', b''):
        assert service.api.patch(f'{QUOTAS}/p', body).status_int == 400, body
    assert service.rows(model.Quota) == []


def test_an_invalid_project_is_refused(service):
    for project in ('a' * 65, 'a b', '%C3%A4', 'a%0A', '%2e%2e%5c', "a'--"):
        path = f'{QUOTAS}/{project}'
        answers = [
            service.api.get(path),
            service.api.patch(path, {'limits': {'total': 1}}),
            service.api.delete(path),
        ]
        assert [answer.status_int for answer in answers] == [400] * 3, project
        assert 'Invalid project_id' in support.fault(answers[0])
    # The project must be named.
    assert service.api.patch(f'{QUOTAS}/own', {'limits': {'total': 1}}).status_int == 400


def test_the_number_of_limits_is_limited(service):
    for page in range(10):
        set_(service.api, 'p', **{f'CUSTOM_{page}_{n}': 1 for n in range(100)})
    answer = service.api.patch(f'{QUOTAS}/p', {'limits': {'total': 1}})
    assert answer.status_int == 400
    assert 'expected 1000 at most' in support.fault(answer)


# Permissions


def test_reserved_names_are_not_projects_of_a_file():
    assert {quotas.OWN, model.Quota.DEFAULTS} == set(accounts.RESERVED)


def test_members_see_the_quota_of_their_project_and_set_none(asked):
    limits = {'limits': {'FPGA': 1}}
    assert asked('root').patch(f'{QUOTAS}/vision', limits).status_int == 200
    for name in ('ann', 'eve', 'max'):
        api = asked(name)
        assert shown(api.get(f'{QUOTAS}/own')) == {'total': (-1, 0), 'FPGA': (1, 0)}
        assert api.get(f'{QUOTAS}/vision').json['project_id'] == 'vision'
        refused = [
            api.get(QUOTAS),
            # The answer does not reveal whether the project exists.
            api.get(f'{QUOTAS}/speech'),
            api.get(f'{QUOTAS}/nothing'),
            api.get(f'{QUOTAS}/defaults'),
            api.patch(f'{QUOTAS}/vision', limits),
            api.delete(f'{QUOTAS}/vision'),
        ]
        assert [answer.status_int for answer in refused] == [403] * len(refused)
    assert [post(asked('ann'), 'one').status_int for _ in range(2)] == [201, 403]
    assert post(asked('bob'), 'one').status_int == 201


# Limits that are set meanwhile


@pytest.mark.parametrize('project', [ALONE, 'defaults'])
def test_a_first_quota_counts_for_what_waits_for_its_host(service, monkeypatch, project):
    """When an allocation chose its accelerator there was no limit, and no row to lock."""
    service.report(support.card())
    plain = taking.lock

    def lock(session, chosen):
        session.execute(sa.insert(model.Quota), [{'project_id': project, 'limits': {'FPGA': 0}}])
        return plain(session, chosen)

    monkeypatch.setattr(taking, 'lock', lock)
    answer = service.api.post('/v2/allocations', {'groups': [{'resources': {'FPGA': 1}}]})
    assert (answer.status_int, counts(service)) == (403, {})


# Costs


@pytest.mark.parametrize('count', [1, 100])
def test_a_quota_costs_two_statements_more(service, count):
    service.profile(FPGA=count)

    def cost():
        with service.statements() as statements:
            assert post(service.api).status_int == 201
        return len(statements)

    free = cost()
    set_(service.api, 'other', total=1)
    assert cost() == free + 2
    set_(service.api, FPGA=1000)
    assert cost() == free + 2
    with service.statements() as statements:
        assert shown(service.api.get(f'{QUOTAS}/own'))['FPGA'] == (1000, 3 * count)
    assert len(statements) <= 3, statements

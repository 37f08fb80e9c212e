# SPDX-License-Identifier: Apache-2.0
"""Authorization, with the tokens of a real Keystone."""

import json

import pytest
import requests

from tests import support

NOTHING = '11111111-2222-4333-8444-555555555555'
PERSONAS = ('admin', 'manager', 'member', 'reader', 'service')
READERS = {'admin', 'manager', 'member', 'reader'}
MANAGERS = {'admin', 'manager'}
ADMINS = {'admin'}
MEMBERS = {'admin', 'manager', 'member', 'service'}

#: The resources whose errors have a form of their own, and a rule for one below a resource of
#: Cyborg's.
OURS = {'accelerator', 'allocation', 'host', 'instance', 'quota', 'usage', 'device_profile:check'}

PROFILE = [{'name': 'no one', 'groups': [{'resources:FPGA': '1'}]}]
PROGRAM = [{'path': '/program', 'op': 'replace', 'value': [{'image_uuid': NOTHING}]}]
ATTRIBUTE = {'deployable_id': NOTHING, 'key': 'colour', 'value': 'red'}
WISH = {NOTHING: support.wish(NOTHING, 'nowhere', NOTHING)}

#: Every rule: the allowed personas, the request, and the status for them.
RULES = {
    'device_profile:get_all': (READERS, 'GET', '/device_profiles', None, 200),
    'device_profile:get_one': (READERS, 'GET', f'/device_profiles/{NOTHING}', None, 404),
    'device_profile:create': (ADMINS, 'POST', '/device_profiles', PROFILE, 400),
    'device_profile:delete': (ADMINS, 'DELETE', f'/device_profiles/{NOTHING}', None, 404),
    'arq:get_all': (READERS, 'GET', '/accelerator_requests', None, 200),
    'arq:get_one': (READERS, 'GET', f'/accelerator_requests/{NOTHING}', None, 404),
    'arq:create': (
        MEMBERS, 'POST', '/accelerator_requests', {'device_profile_name': 'nothing'}, 404,
    ),
    'arq:delete': (MEMBERS, 'DELETE', f'/accelerator_requests?arqs={NOTHING}', None, 404),
    'arq:update': (MEMBERS, 'PATCH', '/accelerator_requests', WISH, 404),
    'device:get_all': (MANAGERS, 'GET', '/devices', None, 200),
    'device:get_one': (MANAGERS, 'GET', f'/devices/{NOTHING}', None, 404),
    'device:enable': (ADMINS, 'POST', f'/devices/{NOTHING}/enable', None, 404),
    'device:disable': (ADMINS, 'POST', f'/devices/{NOTHING}/disable', None, 404),
    'device:delete': (ADMINS, 'DELETE', f'/devices/{NOTHING}', None, 404),
    'deployable:get_all': (MANAGERS, 'GET', '/deployables', None, 200),
    'deployable:get_one': (MANAGERS, 'GET', f'/deployables/{NOTHING}', None, 404),
    'deployable:program': (ADMINS, 'PATCH', f'/deployables/{NOTHING}/program', PROGRAM, 404),
    'accelerator:get_all': (MANAGERS, 'GET', '/accelerators', None, 200),
    'accelerator:get_one': (MANAGERS, 'GET', f'/accelerators/{NOTHING}', None, 404),
    'accelerator:summary': (READERS, 'GET', '/accelerators/summary', None, 200),
    'host:get_all': (MANAGERS, 'GET', '/hosts', None, 200),
    'host:get_one': (MANAGERS, 'GET', '/hosts/nowhere', None, 404),
    'host:update': (ADMINS, 'PATCH', '/hosts/nowhere', {'name': 'a'}, 404),
    'host:delete': (ADMINS, 'DELETE', '/hosts/nowhere', None, 404),
    'instance:free': (ADMINS, 'DELETE', f'/instances/{NOTHING}', None, 404),
    'device_profile:check': (READERS, 'POST', f'/device_profiles/{NOTHING}/check', None, 404),
    'allocation:get_all': (READERS, 'GET', '/allocations', None, 200),
    'allocation:get_one': (READERS, 'GET', f'/allocations/{NOTHING}', None, 404),
    'allocation:create': (MEMBERS, 'POST', '/allocations', {'profile': 'nothing'}, 404),
    'allocation:priority': (
        ADMINS, 'POST', '/allocations', {'profile': 'nothing', 'queue': True, 'priority': 1}, 404,
    ),
    'allocation:update': (MEMBERS, 'PATCH', f'/allocations/{NOTHING}', {'lease': 60}, 404),
    'allocation:delete': (MEMBERS, 'DELETE', f'/allocations/{NOTHING}', None, 404),
    'usage:get_all': (READERS, 'GET', '/usages', None, 200),
    'quota:get_all': (ADMINS, 'GET', '/quotas', None, 200),
    'quota:get_one': (READERS, 'GET', '/quotas/own', None, 200),
    'quota:update': (ADMINS, 'PATCH', '/quotas/own', {'limits': {'total': 1}}, 400),
    'quota:delete': (ADMINS, 'DELETE', '/quotas/nobody', None, 404),
    'attribute:get_all': (MANAGERS, 'GET', '/attributes', None, 200),
    'attribute:get_one': (MANAGERS, 'GET', f'/attributes/{NOTHING}', None, 404),
    'attribute:create': (ADMINS, 'POST', '/attributes', ATTRIBUTE, 404),
    'attribute:delete': (ADMINS, 'DELETE', f'/attributes/{NOTHING}', None, 404),
}  # fmt: skip


#: Rules that are checked before another one.
FIRST = {'allocation:priority': 'allocation:create'}


def refusing(rule, persona):
    """The rule that refuses a request of another rule for a persona."""
    first = FIRST.get(rule, rule)
    return rule if persona in RULES[first][0] else first


def is_ours(rule):
    return rule in OURS or rule.partition(':')[0] in OURS


def denied(answer, rule, needed='the role '):
    said = f'Access was denied to the following resource: cyborg:{rule}. It needs {needed}'
    assert answer.status_code == 403
    if is_ours(rule):
        [error] = answer.json()['errors']
        assert (error['status'], error['title']) == (403, 'Forbidden')
        assert error['detail'].startswith(said)
        return
    fault = json.loads(answer.json()['error_message'])
    assert fault.pop('faultstring').startswith(said)
    assert fault == {'faultcode': 'Client', 'debuginfo': None}


def test_every_rule_is_here():
    from cyborg_lite import policy

    rules = {rule.name for rule in policy.list_rules()}
    assert {f'cyborg:{rule}' for rule in RULES} == {r for r in rules if r.startswith('cyborg:')}


@pytest.mark.parametrize('persona', PERSONAS)
@pytest.mark.parametrize('rule', RULES)
def test_persona(api, rule, persona):
    allowed, method, path, body, status = RULES[rule]
    answer = api(persona, service='service').request(path, method, json=body)
    if persona in allowed:
        assert answer.status_code == status, answer.text
    else:
        denied(answer, refusing(rule, persona))


@pytest.mark.parametrize('service', [None, 'service'])
@pytest.mark.parametrize('rule', RULES)
def test_a_system_scoped_administrator_is_nobody(api, rule, service):
    _, method, path, body, _ = RULES[rule]
    answer = api('system-admin', service=service).request(path, method, json=body)
    denied(answer, refusing(rule, 'system-admin'), 'a token of a project.')


@pytest.mark.parametrize('headers', [{}, {'X-Auth-Token': 'gAAAAAnonsense'}])
@pytest.mark.parametrize('rule', RULES)
def test_no_token_or_a_wrong_one(service, cloud, rule, headers):
    _, method, path, body, _ = RULES[rule]
    # Identity headers of a caller are ignored.
    said = {'X-Roles': 'admin', 'X-Identity-Status': 'Confirmed', 'X-Project-Id': 'x'}
    answer = requests.request(
        method, f'{service.url}/v2{path}', json=body, headers=headers | said, timeout=30
    )
    assert answer.status_code == 401
    if is_ours(rule):
        [error] = answer.json()['errors']
        assert (error['status'], error['title']) == (401, 'Unauthorized')
        assert error['detail']
    else:
        error = answer.json()['error']
        assert (error['code'], error['title']) == (401, 'Unauthorized')
        assert error['message']
    assert answer.headers['WWW-Authenticate'] == f'Keystone uri="{cloud.url}"'
    assert answer.headers['x-openstack-request-id'].startswith('req-')


@pytest.mark.parametrize('path', ['', '/', '/v2', '/v2/', '/v2/openapi.json', '/healthcheck'])
def test_public_paths_need_no_token(service, path):
    assert requests.get(service.url + path, timeout=30).status_code == 200


@pytest.mark.parametrize('persona', ['manager', 'member', 'reader', 'service'])
def test_requests_of_other_projects_are_not_found(api, arq, persona):
    """For every method, a request of another project looks like an absent one."""
    other = api(persona, 'b', service='service')
    answers = [other.get(f'/accelerator_requests/{arq}')]
    if persona != 'reader':
        wish = support.wish(NOTHING, 'nowhere', NOTHING)
        unbind = [{'op': 'remove', 'path': '/hostname'}]
        answers += [
            other.delete(f'/accelerator_requests/{arq}'),
            other.delete(f'/accelerator_requests?arqs={arq}'),
            other.patch('/accelerator_requests', json={arq: wish}),
            other.patch('/accelerator_requests', json={arq: unbind}),
        ]
    expected = {404} if persona != 'service' else {403, 404}
    assert {answer.status_code for answer in answers} == expected
    assert api('member').get(f'/accelerator_requests/{arq}').json()['state'] == 'Initial'


def test_lists_do_not_show_requests_of_other_projects(api, arq, bound, instance):
    other = api('member', 'b')
    for filters in ('', f'?instance={instance}', '?bind_state=resolved', '?limit=1'):
        assert other.get(f'/accelerator_requests{filters}').json()['arqs'] == []
    both = f'?bind_state=resolved&instance={instance}'
    assert other.get(f'/accelerator_requests{both}').json()['arqs'] == []
    known = other.get(f'/accelerator_requests?marker={arq}')
    unknown = other.get(f'/accelerator_requests?marker={NOTHING}')
    assert known.status_code == unknown.status_code
    assert known.text == unknown.text.replace(NOTHING, arq)


def test_a_request_is_of_the_project_that_asks(api, arq, cloud):
    project = api('reader').get(f'/accelerator_requests/{arq}').json()['project_id']
    assert project == cloud.projects['a']


def test_an_administrator_of_any_project_sees_all(api, arq):
    admin = api('admin', 'b')
    assert admin.get(f'/accelerator_requests/{arq}').status_code == 200
    assert arq in [each['uuid'] for each in admin.get('/accelerator_requests').json()['arqs']]


def test_device_profiles_are_of_all_projects(api, profile):
    shown = api('reader', 'b').get(f'/device_profiles?name={profile}').json()
    assert [each['name'] for each in shown['device_profiles']] == [profile]


def test_a_limit_is_for_a_project_that_exists(api, cloud):
    admin, limits = api('admin'), {'limits': {'total': -1}}
    for name in ('nobody', 'a'):
        # The name of a project is not its id.
        answer = admin.patch(f'/quotas/{name}', json=limits)
        assert answer.status_code == 400
        assert f'there is no project {name} in Keystone' in answer.text
    for project in (cloud.projects['b'], 'defaults'):
        assert admin.patch(f'/quotas/{project}', json=limits).status_code == 200
        assert admin.delete(f'/quotas/{project}').status_code == 204

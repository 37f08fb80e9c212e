# SPDX-License-Identifier: Apache-2.0
"""Only Nova may change requests of an instance: a service token is required."""

import json

import pytest

from tests import support
from tests.integration import cloud as cloud_
from tests.integration import conftest

REMOVE = [{'path': '/hostname', 'op': 'remove'}]
NEEDED = 'This operation requires a service token. Use the Compute API to manage instance '
NEEDED += 'accelerators.'


def refused(answer, text):
    assert answer.status_code == 403
    assert json.loads(answer.json()['error_message'])['faultstring'] == text


def state(api, arq):
    return api('admin').get(f'/accelerator_requests/{arq}').json()['state']


@pytest.mark.parametrize('persona', ['admin', 'manager', 'member', 'service'])
def test_binding_needs_a_service_token(api, arq, provider, instance, persona):
    wish = support.wish(provider, conftest.HOST, instance)
    refused(api(persona).patch('/accelerator_requests', json={arq: wish}), NEEDED)
    assert state(api, arq) == 'Initial'


@pytest.mark.parametrize('persona', ['admin', 'manager', 'member', 'service'])
def test_unbinding_needs_a_service_token(api, bound, persona):
    refused(api(persona).patch('/accelerator_requests', json={bound: REMOVE}), NEEDED)
    assert state(api, bound) == 'Bound'


@pytest.mark.parametrize('persona', ['admin', 'manager', 'member', 'service'])
def test_deleting_requests_of_an_instance_needs_a_service_token(api, bound, instance, persona):
    asking = api(persona)
    refused(asking.delete(f'/accelerator_requests?instance={instance}'), NEEDED)
    if persona != 'service':  # which sees none of project a's if it has no admin's token
        held = f'ARQ {bound} is bound to instance {instance}. Use the Compute API to manage '
        held += 'instance accelerators.'
        refused(asking.delete(f'/accelerator_requests?arqs={bound}'), held)
        refused(asking.delete(f'/accelerator_requests/{bound}'), held)
    assert state(api, bound) == 'Bound'


def test_a_service_token_without_the_role_is_ignored(api, bound):
    answer = api('admin', service='admin').patch('/accelerator_requests', json={bound: REMOVE})
    assert answer.status_code in (401, 403)
    assert state(api, bound) == 'Bound'


def test_bind_and_unbind_with_a_service_token(api, nova, cloud, bound, instance):
    shown = api('reader').get(f'/accelerator_requests?instance={instance}').json()['arqs']
    assert [each['uuid'] for each in shown] == [bound]
    assert shown[0]['state'] == 'Bound'
    assert shown[0]['project_id'] == cloud.projects['a']
    assert nova.patch('/accelerator_requests', json={bound: REMOVE}).status_code == 202
    assert state(api, bound) == 'Unbound'


@pytest.mark.parametrize('way', ['?arqs={arq}', '/{arq}', '?instance={instance}'])
def test_delete_with_a_service_token(api, nova, bound, instance, way):
    path = way.format(arq=bound, instance=instance)
    assert nova.delete(f'/accelerator_requests{path}').status_code == 204
    assert api('admin').get(f'/accelerator_requests/{bound}').status_code == 404


def test_deleting_of_an_instance_may_be_done_again(nova, instance):
    assert nova.delete(f'/accelerator_requests?instance={instance}').status_code == 204


def test_a_service_token_does_not_reach_requests_without_an_instance(api, arq):
    """A service token has no other effect."""
    other = api('member', 'b', service='service')
    assert other.get(f'/accelerator_requests/{arq}').status_code == 404
    assert other.delete(f'/accelerator_requests/{arq}').status_code == 404
    assert state(api, arq) == 'Initial'


def test_nova_frees_requests_of_an_instance_with_any_user_token(api, bound, instance):
    other = api('member', 'b', service='service')
    assert other.delete(f'/accelerator_requests?instance={instance}').status_code == 204
    assert api('admin').get(f'/accelerator_requests/{bound}').status_code == 404


def test_without_a_service_token_another_projects_requests_look_like_none(api, bound, instance):
    other = api('member', 'b')
    found = other.get(f'/accelerator_requests?instance={instance}')
    assert found.json()['arqs'] == []
    assert other.get(f'/accelerator_requests/{bound}').status_code == 404
    assert other.delete(f'/accelerator_requests/{bound}').status_code == 404
    assert state(api, bound) == 'Bound'


def test_an_administrator_of_another_project_deletes_an_instance(api, bound, instance):
    """Nova sends the token of the user who deletes the instance."""
    admin = api('admin', 'b', service='service')
    assert admin.delete(f'/accelerator_requests?instance={instance}').status_code == 204
    assert api('admin').get(f'/accelerator_requests/{bound}').status_code == 404


@pytest.mark.parametrize('way', ['?arqs={}', '/{}'])
def test_the_owner_deletes_a_request_without_an_instance(api, arq, way):
    path = way.format(arq)
    assert api('member').delete(f'/accelerator_requests{path}').status_code == 204


def test_nova_is_told(bound, instance, peers):
    [event] = peers.events(instance, 1)
    assert event == {
        'name': 'accelerator-request-bound',
        'server_uuid': instance,
        'tag': bound,
        'status': 'completed',
    }


def test_no_secret_is_logged(service, cloud, nova, bound):
    """The service logs at DEBUG, and this test used all of its parts."""
    log = service.log()
    assert cloud.projects['a'] in log
    secrets = [cloud.token(persona, project) for persona in ('admin', 'member', 'service')
               for project in 'ab']  # fmt: skip
    for secret in [*secrets, cloud_.PASSWORD]:
        assert secret not in log
        assert secret[8:40] not in log

# SPDX-License-Identifier: Apache-2.0
"""Nova's calls of the service, through Nova's own class."""

import json
import pathlib

import pytest

from tests.integration import conftest
from tests.integration import process

SCRIPT = pathlib.Path(__file__).with_name('nova_calls.py')


@pytest.fixture(scope='session')
def conf(place, cloud, service):
    """Nova's configuration; the second does not send service tokens."""
    files = []
    for vouch in ('true', 'false'):
        file = place / f'nova-{vouch}.conf'
        sections = cloud.section('service_user', send_service_user_token=vouch)
        sections += f'[cyborg]\nendpoint_override = {service.url}/v2\n'
        file.write_text(sections)
        files.append(file)
    return files


@pytest.fixture
def nova(cloud, conf):
    """``nova([method, argument ...], ...)``: the results or errors of Nova's client."""

    def call(*calls, persona='member', vouch=True):
        file, token = conf[0 if vouch else 1], cloud.token(persona)
        done = process.run('python', SCRIPT, file, token, json.dumps(calls))
        return json.loads(done.stdout.splitlines()[-1])

    return call


def test_the_life_of_an_instance(nova, profile, provider, instance, peers, cloud):
    groups, arqs, matched = nova(
        ['get_device_profile_groups', profile],
        ['create_arqs', profile],
        ['create_arqs_and_match_resource_providers', profile, {'device_profile_0': [provider]}],
    )
    assert groups == [{'resources:FPGA': '1', 'trait:CUSTOM_FAKE_DEVICE': 'required'}]
    [arq], [other] = arqs, matched
    assert (arq['state'], arq['device_profile_group_id']) == ('Initial', 0)
    assert other['device_rp_uuid'] == provider
    uuids = [arq['uuid'], other['uuid']]
    binding = {'hostname': conftest.HOST, 'device_rp_uuid': provider, 'instance_uuid': instance}
    _, shown, resolved, one, missing, again = nova(
        ['bind_arqs', dict.fromkeys(uuids, binding)],
        ['get_arqs_for_instance', instance],
        ['get_arqs_for_instance', instance, True],
        ['get_arq_by_uuid', uuids[0]],
        ['get_arq_by_uuid', instance],
        ['bind_arqs', {uuids[0]: binding}],
    )
    assert sorted(each['uuid'] for each in shown) == sorted(uuids)
    assert resolved == shown
    assert (one['state'], one['attach_handle_type']) == ('Bound', 'TEST_PCI')
    assert one['project_id'] == cloud.projects['a']
    assert set(one['attach_handle_info']) == {'domain', 'bus', 'device', 'function'}
    assert all(isinstance(part, str) for part in one['attach_handle_info'].values())
    assert missing.startswith('AcceleratorRequestOpFailed')
    assert again.startswith('AcceleratorRequestBindingFailed')
    # Nova waits for these.
    events = peers.events(instance, 2)
    assert {event['tag'] for event in events} == set(uuids)
    assert {(event['name'], event['status']) for event in events} == {
        ('accelerator-request-bound', 'completed')
    }
    assert nova(
        ['delete_arqs_for_instance', instance],
        ['delete_arqs_for_instance', instance],
    ) == [None, None]
    [gone] = nova(['get_arqs_for_instance', instance])
    assert 'no accelerator requests' in gone


def test_an_instance_comes_back(nova, profile, provider, instance):
    """Shelved and unshelved: the same instance binds again."""
    binding = {'hostname': conftest.HOST, 'device_rp_uuid': provider, 'instance_uuid': instance}
    for _ in range(2):
        [[arq]] = nova(['create_arqs', profile])
        bound, shown, deleted = nova(
            ['bind_arqs', {arq['uuid']: binding}],
            ['get_arqs_for_instance', instance],
            ['delete_arqs_for_instance', instance],
        )
        assert (bound, deleted) == (None, None)
        assert [each['uuid'] for each in shown] == [arq['uuid']]


def test_a_request_that_failed_to_bind_is_deleted(nova, admin, profile, instance):
    [[arq], [other]] = nova(['create_arqs', profile], ['create_arqs', profile])
    nowhere = {'hostname': 'nowhere', 'device_rp_uuid': instance, 'instance_uuid': instance}
    uuids = [arq['uuid'], instance, other['uuid']]
    failed, deleted = nova(['bind_arqs', {arq['uuid']: nowhere}], ['delete_arqs_by_uuid', uuids])
    assert failed.startswith('AcceleratorRequestBindingFailed')
    assert deleted is None
    # One of them was unknown: the existing ones are deleted nevertheless.
    for uuid in (arq['uuid'], other['uuid']):
        assert admin.get(f'/accelerator_requests/{uuid}').status_code == 404


def test_a_profile_that_is_not_there(nova):
    [said, none] = nova(['get_device_profile_groups', 'nothing'], ['create_arqs', 'nothing'])
    assert said.startswith('DeviceProfileError')
    assert 'got nothing' in said
    assert none.startswith('AcceleratorRequestOpFailed')


def test_without_service_tokens_nova_cannot_bind(nova, profile, provider, instance):
    binding = {'hostname': conftest.HOST, 'device_rp_uuid': provider, 'instance_uuid': instance}
    [[arq]] = nova(['create_arqs', profile], vouch=False)
    [said] = nova(['bind_arqs', {arq['uuid']: binding}], vouch=False, persona='admin')
    assert said.startswith('AcceleratorRequestBindingFailed')
    assert '403' in said

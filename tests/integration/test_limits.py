# SPDX-License-Identifier: Apache-2.0
"""Limits of the real Keystone, by oslo.limit."""

import pytest

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import startup
from cyborg_lite.clients import keystone
from tests.integration import cloud as cloud_
from tests.integration import conftest
from tests.integration import process

SERVICE = 'accelerator-limits'


def section(cloud, **more):
    """[oslo_limit] for the administrator of the system; a value of None takes an option away."""
    given = cloud.credentials('system-admin', None) | {'auth_type': 'password'}
    given |= {'auth_url': cloud.url, 'endpoint_service_type': SERVICE} | more
    lines = [f'{name} = {value}' for name, value in given.items() if value is not None]
    return '\n'.join(['[quota]', 'driver = keystone', 'cache_time = 1', '[oslo_limit]', *lines, ''])


class Limited:
    """The service with the limits of Keystone, and what sets them."""

    def __init__(self, cloud, url):
        self.cloud, self.url = cloud, url
        [service] = cloud.identity.services(type=SERVICE)
        self._service = service.id

    def register(self, name, limit):
        self.cloud.identity.create_registered_limit(
            service_id=self._service,
            region_id=cloud_.REGION,
            resource_name=name,
            default_limit=limit,
        )

    def limit(self, project, name, limit):
        self.cloud.identity.create_limit(
            service_id=self._service,
            region_id=cloud_.REGION,
            project_id=self.cloud.projects[project],
            resource_name=name,
            resource_limit=limit,
        )

    def ask(self, method, path, persona='member', project='a', **how):
        api = self.cloud.api(persona, project)
        return api.request(f'{self.url}/v2{path}', method, **how)

    def create(self, project='a'):
        body = {'device_profile_name': 'limited'}
        return self.ask('POST', '/accelerator_requests', project=project, json=body)


@pytest.fixture(scope='module')
def limited(tmp_path_factory, cloud):
    conf = '[api]\nauth_strategy = keystone\n' + section(cloud)
    conf += cloud.section('keystone_authtoken', www_authenticate_uri=cloud.url)
    # The catalogue of the other tests must stay as it is: this one is of another type.
    cloud.register(SERVICE, 'http://127.0.0.1:1')
    with conftest.up(tmp_path_factory.mktemp('limited'), conf) as running:
        made = Limited(cloud, running.url)
        profile = [{'name': 'limited', 'groups': [{'resources:FPGA': '1'}]}]
        assert made.ask('POST', '/device_profiles', 'admin', json=profile).status_code == 201
        yield made


def test_limits_of_keystone_hold(limited):
    assert limited.create().status_code == 201  # none is registered
    limited.register('total', 3)
    limited.register('FPGA', -1)
    limited.limit('b', 'total', 1)
    process.until(lambda: limited.ask('GET', '/quotas/own').json()['quotas'][0]['limit'] == 3)
    assert [limited.create().status_code for _ in range(3)] == [201, 201, 403]
    assert [limited.create('b').status_code for _ in range(2)] == [201, 403]
    said = limited.create('b').text
    whose = f'asked for in project {limited.cloud.projects["b"]}.'
    assert f'Quota exceeded for total: the limit is 1, 1 used, and 1 {whose}' in said


def test_limits_of_keystone_are_shown_and_not_set(limited):
    shown = limited.ask('GET', '/quotas/own').json()
    assert (shown['source'], shown['quotas'][0]['resource']) == ('keystone', 'total')
    path = f'/quotas/{limited.cloud.projects["a"]}'
    body = {'limits': {'total': 1}}
    refused = limited.ask('PATCH', path, 'admin', json=body)
    assert refused.status_code == 409
    assert 'openstack limit' in refused.text


def conf_of(tmp_path, text):
    (tmp_path / 'conf').write_text(text)
    return options.load(files=[str(tmp_path / 'conf')])


def test_a_user_who_sees_no_limits_is_refused_at_the_start(tmp_path, cloud):
    """To the user of a project Keystone would answer that there are none."""
    project = {'system_scope': None, 'project_name': 'a', 'project_domain_id': 'default'}
    with pytest.raises(exception.Refused, match='system_scope is not all'):
        startup.check(conf_of(tmp_path, section(cloud, **project)), startup.quota)
    with pytest.raises(exception.Refused, match='auth_type is not set'):
        startup.check(conf_of(tmp_path, '[quota]\ndriver = keystone\n'), startup.quota)
    with pytest.raises(exception.Refused, match='auth_url'):
        startup.check(conf_of(tmp_path, section(cloud, auth_url=None)), startup.quota)
    startup.check(conf_of(tmp_path, section(cloud)), startup.quota)


def test_credentials_of_keystone_in_a_section_of_another_name(tmp_path, cloud):
    def elsewhere(**more):
        here = '[oslo_limit]\nauth_section = other\n[other]'
        return conf_of(tmp_path, section(cloud, **more).replace('[oslo_limit]', here))

    startup.check(elsewhere(), startup.quota)
    with pytest.raises(exception.Refused, match='system_scope is not all'):
        startup.check(
            elsewhere(system_scope=None, project_name='a', project_domain_id='default'),
            startup.quota,
        )


@pytest.mark.parametrize(
    'more',
    [
        {'auth_url': 'http://127.0.0.1:1/v3'},
        {'password': 'wrong'},
        {'endpoint_service_type': 'nothing'},
    ],
)
def test_what_keystone_does_not_say_is_an_error_of_ours(tmp_path, cloud, more):
    conf = conf_of(tmp_path, section(cloud, **more))
    with pytest.raises(exception.LimitsAway):
        keystone.Limits(conf).defaults()

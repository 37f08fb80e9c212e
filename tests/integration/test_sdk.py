# SPDX-License-Identifier: Apache-2.0
"""openstacksdk's accelerator proxy, each method of it, with Keystone."""

import inspect

from keystoneauth1 import service_token
from keystoneauth1 import session
from openstack import connection
from openstack import exceptions
from openstack.accelerator.v2 import _proxy
import pytest

from tests import support
from tests.integration import conftest
from tests.integration import peers as peers_

NOTHING = '11111111-2222-4333-8444-555555555555'


@pytest.fixture
def sdk(cloud, service):
    """The proxy of an administrator."""
    return connection.Connection(session=cloud.session('admin-a', 'a')).accelerator


@pytest.fixture
def vouched(cloud, service):
    """The proxy of an administrator for whom a service vouches."""
    auth = service_token.ServiceTokenAuthWrapper(
        user_auth=cloud.session('admin-a', 'a').auth,
        service_auth=cloud.session('service-b', 'b').auth,
    )
    return connection.Connection(session=session.Session(auth=auth)).accelerator


def test_each_method_is_tested():
    """A release of openstacksdk that can do more has to be looked at."""
    own = {name for name, value in vars(_proxy.Proxy).items() if inspect.isfunction(value)}
    text = inspect.getsource(inspect.getmodule(test_each_method_is_tested))
    waits = {'wait_for_status', 'wait_for_delete'}
    # update_deployable() calls itself without end.
    assert {name for name in own - waits if f'.{name}' not in text} == {'update_deployable'}


def test_discovery(sdk, service):
    found = sdk.get_endpoint_data()
    assert (found.min_microversion, found.max_microversion) == ((2, 0), (2, 3))
    assert found.url == f'{service.url}/v2'


def test_devices(sdk):
    [fake, *_] = sdk.devices()
    assert [each.uuid for each in sdk.devices(vendor='0xABCD')] == [fake.uuid]
    sdk.disable_device(fake.uuid)
    assert sdk.get(f'/devices/{fake.uuid}', microversion='2.3').json()['status'] == 'maintaining'
    sdk.enable_device(fake.uuid)
    assert sdk.get_device(fake.uuid).hostname == conftest.HOST
    with pytest.raises(exceptions.NotFoundException):
        sdk.get_device(NOTHING)


def test_deployables(sdk):
    [part, *_] = sdk.deployables()
    assert sdk.get_deployable(part.id).num_accelerators == 16
    program = [{'path': '/program', 'op': 'replace', 'value': [{'image_uuid': peers_.IMAGE}]}]
    with pytest.raises(exceptions.ConflictException, match='cannot program'):
        sdk.patch_deployable(part.id, program)


def test_device_profiles(sdk):
    groups = [{'resources:FPGA': '1'}, {'resources:CUSTOM_QAT': '2'}]
    made = sdk.create_device_profile(name='sdk', groups=groups, description='Both')
    assert (made.name, made.groups, made.description) == ('sdk', groups, 'Both')
    assert sdk.get_device_profile(made.uuid).groups == groups
    assert 'sdk' in [each.name for each in sdk.device_profiles()]
    with pytest.raises(exceptions.ConflictException, match='already exists'):
        sdk.create_device_profile(name='sdk', groups=groups)
    sdk.delete_device_profile(made.uuid, ignore_missing=False)
    with pytest.raises(exceptions.NotFoundException):
        sdk.delete_device_profile(made.uuid, ignore_missing=False)


def test_attributes(sdk):
    [part, *_] = sdk.deployables()
    made = sdk.create_attribute(deployable_id=part.id, key='sdk', value='red')
    assert sdk.get_attribute(made.uuid).value == 'red'
    assert [each.value for each in sdk.attributes(key='sdk')] == ['red']
    sdk.delete_attribute(made.uuid, ignore_missing=False)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'patch', [_proxy.Proxy.patch_accelerator_request, _proxy.Proxy.update_accelerator_request]
)
def test_requests(sdk, vouched, profile, provider, instance, patch):
    arq = sdk.create_accelerator_request(device_profile_name=profile)
    wish = support.wish(provider, conftest.HOST, instance)
    with pytest.raises(exceptions.ForbiddenException, match='requires a service token'):
        patch(sdk, arq.uuid, wish)
    patch(vouched, arq.uuid, wish)
    found = sdk.get_accelerator_request(arq.uuid)
    assert sdk.wait_for_status(found, 'Bound', ['BindFailed'], attribute='state').state == 'Bound'
    listed = sdk.accelerator_requests(instance_uuid=instance)
    assert [each.uuid for each in listed] == [arq.uuid]
    with pytest.raises(exceptions.ForbiddenException, match='Use the Compute API'):
        sdk.delete_accelerator_request(arq.uuid)
    vouched.delete_accelerator_request(arq.uuid, ignore_missing=False)
    sdk.wait_for_delete(found, interval=0.01, wait=5)

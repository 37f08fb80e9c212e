# SPDX-License-Identifier: Apache-2.0
"""openstacksdk's accelerator proxy, each method of it, over a socket."""

import contextlib
import inspect
import threading
import warnings

from openstack import connection
from openstack import exceptions
from openstack.accelerator.v2 import _proxy
import pytest

from cyborg_lite import model
from cyborg_lite import service as services
from tests import support

GROUPS = [{'resources:FPGA': '1', 'trait:CUSTOM_FAKE_DEVICE': 'required'}]
IMAGE = '9a17439a-85d0-4c53-a3d3-0f68a2eac896'
NOTHING = '11111111-2222-4333-8444-555555555555'


@contextlib.contextmanager
def served(application):
    """The URL of the application on a socket of its own."""
    server = services.listen(application, '127.0.0.1', 0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.bind_addr[1]}'
    finally:
        server.stop()
        thread.join()


def connect(url, **more):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return connection.Connection(auth_type='none', auth={'endpoint': url}, **more)


@pytest.fixture
def url(service):
    service.report(support.card('3b', 4), support.card('c1', 1, vendor='19e5'))
    with served(service.embedded.application) as found:
        yield found


@pytest.fixture
def sdk(url):
    with connect(url) as made:
        yield made.accelerator


@pytest.fixture
def arq(sdk):
    sdk.create_device_profile(name='fpga', groups=GROUPS)
    return sdk.create_accelerator_request(device_profile_name='fpga')


@pytest.fixture
def wish(sdk, service):
    return support.wish(service.rows(model.Deployable)[0].rp_uuid, 'host-1', support.INSTANCE)


def test_each_method_is_tested():
    """A release of openstacksdk with new methods needs new tests."""
    own = {name for name, value in vars(_proxy.Proxy).items() if inspect.isfunction(value)}
    assert own - {'wait_for_status', 'wait_for_delete'} == {
        'deployables', 'get_deployable', 'patch_deployable', 'update_deployable',
        'devices', 'get_device', 'enable_device', 'disable_device',
        'device_profiles', 'create_device_profile', 'delete_device_profile', 'get_device_profile',
        'accelerator_requests', 'create_accelerator_request', 'delete_accelerator_request',
        'get_accelerator_request', 'patch_accelerator_request', 'update_accelerator_request',
        'attributes', 'create_attribute', 'delete_attribute', 'get_attribute',
    }  # fmt: skip


@pytest.mark.parametrize('path', ['', '/', '/v2', '/v2/'])
def test_the_service_is_found_from_either_url(url, path):
    with connect(url + path) as made:
        assert len(list(made.accelerator.devices())) == 2
        found = made.accelerator.get_endpoint_data()
    assert (found.min_microversion, found.max_microversion) == ((2, 0), (2, 3))
    assert found.url.rstrip('/') == f'{url}/v2'


def test_an_endpoint_override_is_enough(url):
    with connect('http://127.0.0.1:1', accelerator_endpoint_override=f'{url}/v2') as made:
        assert len(list(made.accelerator.devices())) == 2


def test_devices(sdk, service):
    [fpga, npu] = sdk.devices()
    assert (fpga.type, npu.vendor, fpga.hostname) == ('FPGA', '19e5', support.HOST)
    assert fpga.std_board_info == '{}'
    # The proxy sends known queries to the server, and filters by the rest itself.
    assert [device.uuid for device in sdk.devices(vendor='19e5')] == [npu.uuid]
    assert list(sdk.devices(hostname='nowhere')) == []
    assert sdk.get_device(fpga.uuid).model == fpga.model
    assert sdk.get_device(npu).uuid == npu.uuid
    with pytest.raises(exceptions.NotFoundException):
        sdk.get_device(NOTHING)


def test_devices_show_their_status_at_the_default_microversion_of_a_user(url):
    with connect(url, accelerator_default_microversion='2.3') as made:
        assert {device.status for device in made.accelerator.devices()} == {'enabled'}


def test_disable_and_enable_a_device(sdk, service):
    [fpga, _] = sdk.devices()
    sdk.disable_device(fpga.uuid)
    assert service.rows(model.Device)[0].status == 'maintaining'
    sdk.enable_device(fpga.uuid)
    assert service.rows(model.Device)[0].status == 'enabled'


def test_deployables(sdk):
    [part, other] = sdk.deployables()
    assert (part.num_accelerators, other.num_accelerators) == (4, 1)
    assert (part.parent_id, part.root_id) == (None, None)
    assert part.device_id == 1
    assert sdk.get_deployable(part.id).name == part.name
    with pytest.raises(exceptions.NotFoundException):
        sdk.get_deployable(NOTHING)


# update_deployable() of openstacksdk calls itself without end.
def test_programming_a_deployable_is_refused_with_a_reason(sdk):
    [part, _] = sdk.deployables()
    patch = [{'path': '/program', 'op': 'replace', 'value': [{'image_uuid': IMAGE}]}]
    with pytest.raises(exceptions.ConflictException, match='cannot program'):
        sdk.patch_deployable(part.id, patch)


def test_device_profiles(sdk):
    made = sdk.create_device_profile(name='fpga', groups=GROUPS, description='One')
    assert (made.name, made.groups, made.description) == ('fpga', GROUPS, 'One')
    assert made.created_at
    assert sdk.get_device_profile(made.uuid).groups == GROUPS
    assert sdk.get_device_profile(made).name == 'fpga'
    other = sdk.create_device_profile(name='other', groups=GROUPS)
    assert [profile.name for profile in sdk.device_profiles()] == ['fpga', 'other']
    assert [profile.uuid for profile in sdk.device_profiles(name='other')] == [other.uuid]
    sdk.delete_device_profile(other)
    sdk.delete_device_profile('fpga', ignore_missing=False)
    assert list(sdk.device_profiles()) == []
    sdk.delete_device_profile(NOTHING)
    with pytest.raises(exceptions.NotFoundException):
        sdk.delete_device_profile(NOTHING, ignore_missing=False)
    with pytest.raises(exceptions.NotFoundException):
        sdk.get_device_profile(NOTHING)


def test_a_device_profile_is_fetched_by_name_at_2_2(url):
    with connect(url, accelerator_default_microversion='2.2') as made:
        made.accelerator.create_device_profile(name='fpga', groups=GROUPS)
        assert made.accelerator.get_device_profile('fpga').groups == GROUPS


def test_the_reason_of_a_refusal_reaches_the_user(sdk):
    sdk.create_device_profile(name='fpga', groups=GROUPS)
    with pytest.raises(exceptions.ConflictException, match='already exists'):
        sdk.create_device_profile(name='fpga', groups=GROUPS)
    with pytest.raises(exceptions.BadRequestException, match=r'resources:, trait: or accel:'):
        sdk.create_device_profile(name='bad', groups=[{'colour:red': '1'}])


def test_accelerator_requests(sdk, arq):
    assert (arq.state, arq.device_profile_name, arq.device_profile_group_id) == (
        'Initial',
        'fpga',
        0,
    )
    assert (arq.attach_handle_type, arq.attach_handle_info) == ('', {})
    assert sdk.get_accelerator_request(arq.uuid).state == 'Initial'
    assert [each.uuid for each in sdk.accelerator_requests()] == [arq.uuid]
    sdk.delete_accelerator_request(arq.uuid, ignore_missing=False)
    assert list(sdk.accelerator_requests()) == []
    sdk.delete_accelerator_request(arq.uuid)
    with pytest.raises(exceptions.NotFoundException):
        sdk.delete_accelerator_request(arq.uuid, ignore_missing=False)
    with pytest.raises(exceptions.NotFoundException):
        sdk.get_accelerator_request(arq.uuid)
    with pytest.raises(exceptions.NotFoundException):
        sdk.create_accelerator_request(device_profile_name='nothing')


@pytest.mark.parametrize('method', ['patch_accelerator_request', 'update_accelerator_request'])
def test_bind_and_unbind_a_request(sdk, arq, wish, method):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        patch = getattr(sdk, method)
        patch(arq.uuid, wish)
        bound = sdk.get_accelerator_request(arq.uuid)
        patch(arq.uuid, [{'path': '/hostname', 'op': 'remove'}])
    assert (bound.state, bound.hostname, bound.instance_uuid) == (
        'Bound', 'host-1', support.INSTANCE,
    )  # fmt: skip
    assert bound.attach_handle_type == 'TEST_PCI'
    assert bound.attach_handle_info['bus'] == '3b'
    assert sdk.get_accelerator_request(arq.uuid).state == 'Unbound'


def test_requests_of_an_instance(sdk, arq, wish):
    other = sdk.create_accelerator_request(device_profile_name='fpga')
    sdk.patch_accelerator_request(arq.uuid, wish)
    assert len(list(sdk.accelerator_requests())) == 2
    [found] = sdk.accelerator_requests(instance_uuid=support.INSTANCE)
    assert found.uuid == arq.uuid != other.uuid


def test_attributes(sdk):
    known = len(list(sdk.attributes()))
    made = sdk.create_attribute(deployable_id=1, key='colour', value='red')
    assert (made.deployable_id, made.key, made.value) == (1, 'colour', 'red')
    [part, _] = sdk.deployables()
    assert sdk.create_attribute(deployable_id=part.id, key='size', value='big').deployable_id == 1
    assert sdk.get_attribute(made.uuid).value == 'red'
    assert len(list(sdk.attributes())) == known + 2
    assert [each.value for each in sdk.attributes(key='colour')] == ['red']
    sdk.delete_attribute(made.uuid, ignore_missing=False)
    sdk.delete_attribute(made.uuid)
    with pytest.raises(exceptions.NotFoundException):
        sdk.get_attribute(made.uuid)


def test_wait_for_a_status_and_for_a_deletion(sdk, arq, wish):
    sdk.patch_accelerator_request(arq.uuid, wish)
    found = sdk.get_accelerator_request(arq.uuid)
    assert sdk.wait_for_status(found, 'Bound', ['BindFailed'], attribute='state').state == 'Bound'
    sdk.delete_accelerator_request(arq.uuid)
    sdk.wait_for_delete(found, interval=0.01, wait=5)


@pytest.mark.parametrize('most', [1, 2, 3])
def test_lists_are_followed_page_by_page(database_url, most):
    small = support.Service(database_url, api__max_limit=most)
    small.report(*(support.card(f'{n:02x}') for n in range(3)))
    small.profile(FPGA=3)
    small.arqs()
    small.profile('profile-2')
    try:
        with served(small.embedded.application) as url, connect(url) as made:
            sdk = made.accelerator
            lists = sdk.devices, sdk.deployables, sdk.accelerator_requests
            for each in lists:
                assert len({row.id for row in each()}) == 3
                # The caller's limit is the page size.
                assert len({row.id for row in each(limit=1)}) == 3
            assert len({row.id for row in sdk.attributes()}) == 6
            assert [row.name for row in sdk.device_profiles()] == ['profile-1', 'profile-2']
    finally:
        small.stop()

# SPDX-License-Identifier: Apache-2.0
"""Every ``openstack accelerator`` command, of python-openstackclient and of python-cyborgclient."""

from importlib import metadata
import json
from unittest.mock import ANY
import uuid

import pytest

from tests.integration import cloud as cloud_
from tests.integration import conftest
from tests.integration import peers as peers_
from tests.integration import process
from tests.unit.cmd import process as up_process

NOTHING = '11111111-2222-4333-8444-555555555555'
#: Placement's provider has the uuid that follows from its name.
PROVIDER = str(uuid.uuid3(uuid.NAMESPACE_DNS, f'{conftest.HOST}_FakeDevice'))
#: client, and method of authentication
WAYS = [('new', 'keystone'), ('old', 'keystone')]
COMMANDS = {
    'arq': {'bind', 'create', 'delete', 'list', 'show', 'unbind'},
    'deployable': {'list', 'program', 'show'},
    'device': {'disable', 'enable', 'list', 'show'},
    'device attribute': {'create', 'delete', 'list', 'show'},
    'device profile': {'create', 'delete', 'list', 'show'},
    # ours
    'host': {'delete', 'list', 'rename', 'show'},
    '': {'bind', 'disable', 'enable', 'history', 'list', 'show', 'summary', 'unbind'},
    'device ': {'delete', 'health'},
    'instance': {'free'},
    'quota': {'delete', 'list', 'set', 'show'},
    'allocation': {'create', 'delete', 'list', 'renew', 'show'},
    'usage': {'list'},
}


class Commands:
    """``commands('device', 'list')`` is what ``openstack accelerator device list`` shows."""

    def __init__(self, client, way, run, options, environ):
        self.old, self.keystone = client == 'old', way == 'keystone'
        self._run = run
        self._words = [*options, 'accelerator']
        self._environ = environ

    def __call__(self, *words):
        return json.loads(self.do(*words, '-f', 'json'))

    def do(self, *words):
        return self._run(*self._words, *words, **self._environ).stdout

    def fail(self, *words):
        """The error text of a failure."""
        done = self._run(*self._words, *words, check=False, **self._environ)
        assert done.returncode, done.stdout
        return done.stderr

    def at(self, version):
        """The same at a microversion."""
        made = Commands.__new__(Commands)
        environ = self._environ | {'OS_ACCELERATOR_API_VERSION': version}
        made.__dict__ = self.__dict__ | {'_environ': environ}
        return made


@pytest.fixture(params=WAYS, ids='-'.join)
def commands(request):
    return make(request, *request.param)


def make(request, client, way):
    fixture = request.getfixturevalue
    run = fixture('old_openstack' if client == 'old' else 'openstack')
    if way == 'keystone':
        fixture('service')
        return Commands(client, way, run, [], fixture('cloud').environ('admin'))
    peers = fixture('peers')
    url = fixture('noauth' if way == 'none' else way).url
    options = ['--os-auth-type', way, '--os-endpoint', url]
    if way == 'http_basic':
        # keystoneauth discovers the version with none, but not with http_basic.
        options[-1] += '/v2'
        options += ['--os-username', 'admin', '--os-password', cloud_.PASSWORD]
    # Without a catalogue.
    environ = {
        'OS_COMPUTE_ENDPOINT_OVERRIDE': f'{peers.url}/compute/v2.1',
        'OS_IMAGE_ENDPOINT_OVERRIDE': f'{peers.url}/image/v2',
    }
    return Commands(client, way, run, options, environ)


@pytest.fixture
def profile(commands):
    """The name of a device profile, which is deleted afterwards."""
    groups = '[{"resources:FPGA": 1, "trait:CUSTOM_FAKE_DEVICE": "required"}]'
    made = commands('device', 'profile', 'create', 'fpga', groups)
    assert made['groups'] == [{'resources:FPGA': '1', 'trait:CUSTOM_FAKE_DEVICE': 'required'}]
    yield 'fpga'
    commands.do('device', 'profile', 'delete', made['uuid'])


def test_each_command_is_tested():
    points = metadata.entry_points(group='openstack.accelerator.v2')
    shipped = {point.name for point in points if point.name.startswith('accelerator_')}
    names = {f'{noun} {verb}' for noun, verbs in COMMANDS.items() for verb in verbs}
    assert shipped == {'_'.join(['accelerator', *name.split()]) for name in names}


@pytest.mark.parametrize('client', ['new', 'old'])
@pytest.mark.parametrize('words', [['device', 'list', '--long'], ['device', 'show', NOTHING]])
def test_a_process_of_its_own_does_the_same(request, noauth, client, words):
    """Other commands here are forks, which need not import anything: see forks.py."""
    fixture = request.getfixturevalue
    fork = fixture('old_openstack' if client == 'old' else 'openstack')
    command = fixture('old_client') if client == 'old' else 'openstack'
    words = ['--os-auth-type', 'none', '--os-endpoint', noauth.url, 'accelerator', *words]
    alone = process.run(command, *words, check=False)
    for _ in range(2):
        forked = fork(*words, check=False)
        assert (forked.returncode, forked.stdout) == (alone.returncode, alone.stdout)
        assert forked.stderr == alone.stderr


def test_devices(commands):
    devices = commands('device', 'list')
    assert [device['type'] for device in devices] == ['FPGA', 'QAT', 'FPGA']
    fake = devices[0]['uuid']
    assert json.loads(devices[0]['std_board_info'])['product_id'] == '0xabcd'
    at = commands.at('2.3')
    for verb, status in (('disable', 'maintaining'), ('enable', 'enabled')):
        assert at.do('device', verb, fake) == ''
        device = at('device', 'show', fake)
        assert (device['uuid'], device['hostname']) == (fake, conftest.HOST)
        assert device['status'] == status
    long = at('device', 'list', '--long')
    assert [device['vendor'] for device in long] == ['0xABCD', '8086', '10ee']
    assert {device['status'] for device in long} == {'enabled'}
    assert NOTHING in commands.fail('device', 'show', NOTHING)


def test_deployables(commands):
    [part, *_] = commands('deployable', 'list')
    assert part['name'] == f'{conftest.HOST}_FakeDevice'
    long = commands('deployable', 'list', '--long')
    assert [each['num_accelerators'] for each in long] == [16, 16, 1]
    assert commands('deployable', 'show', part['uuid'])['name'] == part['name']
    said = commands.fail('deployable', 'program', part['uuid'], peers_.IMAGE)
    # update_deployable() of openstacksdk, which the old client calls, calls itself without end.
    assert ('recursion' if commands.old else 'The driver fake cannot program') in said


def test_attributes(commands):
    [part, *_] = commands('deployable', 'list')
    made = commands('device', 'attribute', 'create', part['uuid'], 'colour', 'red')
    assert (made['deployable_id'], made['key'], made['value']) == (1, 'colour', 'red')
    assert commands('device', 'attribute', 'show', made['uuid'])['value'] == 'red'
    listed = commands('device', 'attribute', 'list', '--long')
    assert [each['value'] for each in listed if each['uuid'] == made['uuid']] == ['red']
    commands.do('device', 'attribute', 'delete', made['uuid'])
    listed = commands('device', 'attribute', 'list')
    assert made['uuid'] not in [each['uuid'] for each in listed]


def test_device_profiles(commands, profile):
    if not commands.old:
        group = 'resources:FPGA=2,trait:CUSTOM_FAKE_DEVICE=required'
        words = ('two', '--group', group, '--group', 'resources:FPGA=1', '--description', 'Two')
        made = commands('device', 'profile', 'create', *words)
        groups = [{'resources:FPGA': '2', 'trait:CUSTOM_FAKE_DEVICE': 'required'}]
        assert made['groups'] == [*groups, {'resources:FPGA': '1'}]
        commands.do('device', 'profile', 'delete', 'two')
    twin = ('device', 'profile', 'create', profile, '[{"resources:FPGA": 1}]')
    assert 'already exists' in commands.fail(*twin)
    [listed] = commands('device', 'profile', 'list', '--long')
    assert (listed['name'], listed['updated_at']) == (profile, None)
    assert commands('device', 'profile', 'show', listed['uuid'])['name'] == profile
    assert commands.at('2.2')('device', 'profile', 'show', profile)['uuid'] == listed['uuid']
    assert '2.2' in commands.at('2.0').fail('device', 'profile', 'show', profile)


def test_requests(commands, profile):
    arq = commands('arq', 'create', profile)['uuid']
    assert commands('arq', 'show', arq)['state'] == 'Initial'
    bind = ('arq', 'bind', arq, conftest.HOST, peers_.SERVER, PROVIDER)
    bind += ('of-no-use',) if commands.old else ()
    if commands.keystone:
        # Only Nova binds instances, in every Cyborg since its service-token rule.
        assert 'requires a service token' in commands.fail(*bind)
        assert 'requires a service token' in commands.fail('arq', 'unbind', arq)
    else:
        bound = commands(*bind)
        assert (bound['state'], bound['instance_uuid']) == ('Bound', peers_.SERVER)
        assert bound['attach_handle_type'] == 'TEST_PCI'
        assert bound['attach_handle_info']['bus'] == '0c'
        assert commands('arq', 'unbind', arq)['state'] == 'Unbound'
    [listed] = commands('arq', 'list', '--long')
    assert (listed['uuid'], listed['device_profile_name']) == (arq, profile)
    commands.do('arq', 'delete', arq)
    assert commands('arq', 'list') == []
    assert arq in commands.fail('arq', 'delete', arq)


@pytest.mark.parametrize('way', ['keystone', 'none', 'http_basic'])
def test_our_own(request, way):
    commands = make(request, 'new', way)
    [host] = commands('host', 'list')
    assert host['name'] == conftest.HOST
    assert commands('host', 'show', conftest.HOST)['drivers']['fake'] == 'ok'
    found = commands('list', '--type', 'QAT', '--long')
    assert {(each['state'], each['vendor'], each['device_address']) for each in found} == {
        ('free', 'Intel', '0000:b1:00.0')
    }
    device = found[0]['device_uuid']
    assert commands('show', found[0]['uuid']) == found[0] | {
        'attach_type': 'PCI', 'attach_info': ANY, 'vendor_id': '8086', 'instance_uuid': None,
        'access': 'advisory', 'rogue': None, 'idle_since': None,
        'allocation_uuid': None, 'created_at': ANY, 'updated_at': ANY,
    }  # fmt: skip
    counts = commands('summary')
    assert sum(each['total'] for each in counts if each['resource_class'] == 'FPGA') == 17
    for verb, state in ('disable', 'disabled'), ('enable', 'free'):
        assert commands.do(verb, device) == ''
        states = {each['state'] for each in commands('list', '--device', device)}
        assert states == {state}
    assert len(commands('list', '--free')) == sum(each['free'] for each in counts)
    assert f'Device {NOTHING} not found' in commands.fail('disable', NOTHING)
    assert f'Accelerator {NOTHING} not found' in commands.fail('show', NOTHING)
    assert 'Invalid state: expected one of free' in commands.fail('list', '--state', 'odd')
    assert commands('device', 'health', device) == []
    assert 'its host' in commands.fail('device', 'delete', device)
    assert f'Host {conftest.HOST} is up' in commands.fail('host', 'rename', conftest.HOST, 'b')
    assert f'Host {conftest.HOST} is up' in commands.fail('host', 'delete', conftest.HOST)
    assert 'Host b not found' in commands.fail('host', 'delete', 'b')
    assert NOTHING in commands.fail('instance', 'free', NOTHING)


def test_usage(request):
    commands = make(request, 'new', 'none')
    made = commands('allocation', 'create', '--resource', 'FPGA=1')
    try:
        [row] = commands('usage', 'list', '--group-by', 'host', '--host', conftest.HOST)
    finally:
        commands.do('allocation', 'delete', made['uuid'])
    assert row['host'] == conftest.HOST
    assert row['device_seconds'] >= 0
    assert commands('usage', 'list', '--start', '2020-01-01', '--end', '2020-02-01') == []
    assert 'Invalid start' in commands.fail('usage', 'list', '--start', 'yesterday')


def test_allocations(request):
    commands = make(request, 'new', 'none')
    create = 'allocation', 'create', '--resource', 'FPGA=2'
    made = commands(*create, '--trait', 'CUSTOM_FAKE_DEVICE', '--name', 'a', '--lease', '60',
                    '--consumer-type', 'process', '--consumer-id', '1',
                    '--idempotency-key', 'b')  # fmt: skip
    assert (made['state'], made['consumer']) == ('active', {'type': 'process', 'id': '1'})
    assert [each['host'] for each in made['accelerators']] == [conftest.HOST] * 2
    assert commands('allocation', 'show', 'a') == made
    held = commands('list', '--held-after', '2020-01-01')
    assert {each['allocation_uuid'] for each in held} == {made['uuid']}
    assert commands('list', '--ids', 'uuid:none', '--held-before', '2020-01-01') == []
    assert 'Invalid ids: expected' in commands.fail('list', '--ids', 'none')
    [listed] = commands('allocation', 'list', '--state', 'active')
    assert (listed['uuid'], len(listed['accelerators'])) == (made['uuid'], 2)
    renewed = commands('allocation', 'renew', 'a', '--lease', '7200')
    assert renewed['lease_ends_at'] > made['lease_ends_at']
    assert 'already exists' in commands.fail(*create, '--name', 'a')
    for dry in (), ('--dry-run',):
        assert 'needs 999 of FPGA' in commands.fail(*create[:3], 'FPGA=999', *dry)
    assert commands(*create, '--dry-run')['fits'] is True
    assert 'expected <class>=<amount>' in commands.fail(*create[:3], 'FPGA')
    queue = 'allocation', 'create', '--resource', 'CUSTOM_NONE=1', '--queue', '--name', 'c'
    waits = commands(*queue, '--priority', '3')
    assert (waits['state'], waits['priority'], waits['position']) == ('queued', 3, 1)
    [listed] = commands('allocation', 'list', '--state', 'queued')
    assert (listed['uuid'], listed['position']) == (waits['uuid'], 1)
    assert 'none not found' in commands.fail('allocation', 'delete', 'none', 'a', 'c')
    for name in 'ac':
        assert commands('allocation', 'show', name)['state'] == 'released'
    made = commands(*create, '--queue', '--wait')
    assert made['state'] == 'active'
    # The tests that follow ask the same service.
    commands.do('allocation', 'delete', made['uuid'])


@pytest.mark.parametrize('way', ['none', 'http_basic'])
def test_all_requests_of_a_profile(request, way):
    commands = make(request, 'new', way)
    commands.do('device', 'profile', 'create', 'three', '[{"resources:FPGA": 3}]')
    found = commands('list', '--free', '--resource-class', 'FPGA', '--trait', 'CUSTOM_FAKE_DEVICE')
    uuids = [each['uuid'] for each in found[:3]]
    bound = commands('bind', 'three', *uuids, '--instance', NOTHING)
    assert [(each['state'], each['instance_uuid']) for each in bound] == [('Bound', NOTHING)] * 3
    assert {each['attach_handle_uuid'] for each in bound} == set(uuids)
    held = commands('list', '--instance', NOTHING)
    assert {each['state'] for each in held} == {'held'}
    # Requests that cannot be bound are deleted.
    arqs = [each['uuid'] for each in bound]
    assert 'already has accelerator requests' in commands.fail(
        'bind', 'three', *uuids, '--instance', NOTHING
    )
    assert 'makes 3 requests: expected as many' in commands.fail('bind', 'three', uuids[0])
    assert sorted(each['uuid'] for each in commands('arq', 'list')) == sorted(arqs)
    assert [move['state'] for move in commands('history', arqs[0])] == ['Initial', 'Bound']
    assert 'not found' in commands.fail('unbind', arqs[0], NOTHING)
    assert {each['state'] for each in commands('arq', 'list')} == {'Bound'}
    commands.do('unbind', *arqs)
    assert {each['state'] for each in commands('arq', 'list')} == {'Unbound'}
    commands.do('arq', 'delete', *arqs)
    commands.do('device', 'profile', 'delete', 'three')
    assert 'three not found' in commands.fail('bind', 'three', *uuids)


def test_at_the_socket_of_the_api(openstack, tmp_path):
    """Only its path is configured: the kernel names the user."""
    with up_process.Up(tmp_path, '--host', 'atlas-800t-a2', '--socket-only') as up:
        options = ['--os-auth-type', 'cyborg_lite', '--os-endpoint', up.url]
        commands = Commands('new', 'socket', openstack, options, {})
        assert len(commands('list', '--free')) == 8
        # This one is of python-openstackclient.
        assert len(commands('device', 'list')) == 8
        assert 'nothing not found' in commands.fail('show', 'nothing')
        assert up.interrupt() == 0
        assert 'Unable to establish connection' in commands.fail('list')


@pytest.mark.parametrize('client', ['new', 'old'])
def test_http_basic(request, client):
    commands = make(request, client, 'http_basic')
    made = commands('device', 'profile', 'create', f'fpga-{client}', '[{"resources:FPGA": 1}]')
    arq = commands('arq', 'create', made['name'])['uuid']
    assert commands('arq', 'show', arq)['state'] == 'Initial'
    commands.do('arq', 'delete', arq)
    commands.do('device', 'profile', 'delete', made['uuid'])
    assert len(commands('device', 'list')) == 3


def test_http_basic_with_a_wrong_password(http_basic):
    options = ['--os-auth-type', 'http_basic', '--os-endpoint', f'{http_basic.url}/v2']
    options += ['--os-username', 'admin', '--os-password', 'wrong']
    done = process.run('openstack', *options, 'accelerator', 'device', 'list', check=False)
    assert done.returncode
    assert '401' in done.stderr

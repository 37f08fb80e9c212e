# SPDX-License-Identifier: Apache-2.0
"""Leases over HTTP, for programs in Python: ``cyborg_lite.allocate(url=...)``."""

import json
import subprocess
import sys

import bcrypt
import pytest

import cyborg_lite
from cyborg_lite import client
from cyborg_lite import delivery
from cyborg_lite import renewing
from tests.unit.cmd import process

HOST = 'atlas-800t-a2'
#: A wait that has an end: a test fails if a request waits that must be refused.
WAIT = {'wait': process.BOUND}
#: A program that holds a lease until it is killed, and says which.
HOLDER = """
import sys, time, cyborg_lite
from cyborg_lite import renewing
renewing.LEASE, renewing.EVERY = 2, 0.5
lease = cyborg_lite.allocate('npu', 8, host=sys.argv[1], url=sys.argv[2])
print(lease.uuid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope='module')
def up(tmp_path_factory):
    place = tmp_path_factory.mktemp('up')
    users = place / 'htpasswd'
    users.write_text(f'ann:{bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}\n')
    conf = place / 'conf'
    conf.write_text(f'[api]\nauth_strategy = http_basic\nhttp_basic_auth_user_file = {users}\n')
    with process.Up(place, '--host', HOST, '--config-file', conf) as up:
        assert up.url, up.errors()
        up.socket = f'{client.UNIX}{place / "state" / client.API_SOCKET}'
        yield up


@pytest.fixture
def allocate(up, monkeypatch):
    """Allocate as ann, over the network."""
    monkeypatch.setenv('CYBORG_LITE_PASSWORD', 'secret')

    def allocate(*wanted, **more):
        given = {'host': HOST, 'url': up.url, 'user': 'ann'} | more
        return cyborg_lite.allocate(*wanted, **given)

    return allocate


def ps(up):
    words = [process.COMMAND, 'ps', '--url', up.socket, '-f', 'json']
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def held(up):
    return [row for row in ps(up) if row['state'] == 'held']


def test_a_lease_over_http(up, allocate):
    with allocate('npu', 2, name='mine', note='ablation 3', claimed_name='jane') as devices:
        assert isinstance(devices, client.Lease)
        assert (devices.host, devices.name, len(devices.addresses)) == (HOST, 'mine', 2)
        assert devices.env['ASCEND_RT_VISIBLE_DEVICES'].split(',') == devices.addresses
        assert (devices.env['CYBORG_ALLOCATION'], devices.problems) == (devices.uuid, [])
        assert devices.views.keys() == {*delivery.VIEWS}
        [one, other] = held(up)
        assert {one['uuid'], other['uuid']} == {each['uuid'] for each in devices.accelerators}
        assert (one['user_name'], one['claimed_name'], one['note']) == ('ann', 'jane', 'ablation 3')
    assert not held(up)


def test_a_lease_at_the_socket_of_the_api(up, allocate):
    with allocate('CUSTOM_NPU', url=up.socket, user=None) as devices:
        assert len(devices.addresses) == len(held(up)) == 1
    assert not held(up)


def test_what_is_not_free_is_refused_as_by_an_agent(up, allocate):
    with allocate('npu', 8):
        with pytest.raises(client.Error, match='needs 1 of CUSTOM_NPU') as told:
            allocate('npu', wait=0)
        assert (type(told.value), told.value.code) == (client.Error, 409)
        with pytest.raises(client.TimedOut, match='not free in time: needs 1 of CUSTOM_NPU'):
            allocate('npu', wait=0.01)
    # What waited has left the queue.
    with allocate('npu', 8, wait=0):
        pass


@pytest.mark.parametrize(
    ('wanted', 'code', 'said'),
    [
        ({'resource_class': 'npu', 'host': 'elsewhere', 'wait': 0}, 409, 'be none on one host'),
        ({'resource_class': 'npu', 'host': 'elsewhere'} | WAIT, 409, 'host elsewhere is unknown'),
        ({'resource_class': 'npu', 'count': 9} | WAIT, 409, 'there would be 8 on one host'),
        ({'profile': 'nope'}, 404, 'Device profile nope not found'),
        ({'profile': 'nope', 'resource_class': 'npu'}, 400, 'expected a profile, or a resource'),
        ({}, 400, 'expected a profile, or a resource class'),
        ({'resource_class': 'npu', 'user': 'eve'}, 401, 'The name or the password is wrong'),
        ({'resource_class': 'npu', 'user': None}, 401, 'Give the name of a user with user'),
        ({'resource_class': 'npu', 'url': 'head'}, 400, 'url head: expected http://, https://'),
        ({'resource_class': 'npu', 'note': 'a\nb'}, 400, 'Invalid note: expected'),
    ],
)
def test_a_refused_request_is_an_error(allocate, wanted, code, said):
    with pytest.raises(client.Error, match=said) as told:
        allocate(**wanted)
    assert told.value.code == code


def test_a_killed_holder_loses_its_lease(up, allocate):
    """It is renewed until then, and what waits gets it."""
    words = [sys.executable, '-c', HOLDER, HOST, up.socket]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        try:
            uuid = holder.stdout.readline().strip()
            first = look(up, uuid)['lease_ends_at']
            up.until(lambda: look(up, uuid)['lease_ends_at'] > first)
            assert (look(up, uuid)['state'], len(held(up))) == ('active', 8)
        finally:
            holder.kill()
    with allocate('npu', 8, wait=process.BOUND):
        assert look(up, uuid)['state'] == 'released'


def look(up, uuid):
    words = ['curl', '-s', '--unix-socket', up.socket.removeprefix(client.UNIX)]
    words += [f'http://localhost/v2/allocations/{uuid}']
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def test_the_views_are_those_of_deliveries():
    """The client imports nothing of the service."""
    assert renewing.VIEWS == delivery.VIEWS

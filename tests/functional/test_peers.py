# SPDX-License-Identifier: Apache-2.0
"""The Unix socket of the API: the kernel tells who asks, and nothing else does."""

import contextlib
import grp
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

from keystoneauth1 import exceptions
from keystoneauth1 import session
from openstack import connection
import pytest
import webob

from cyborg_lite import accounts
from cyborg_lite import service as services
from cyborg_lite import unix
from cyborg_lite.api import peers
from cyborg_lite.osc import local
from tests import devices
from tests import pages
from tests import support
from tests.functional import test_leases
from tests.functional import test_users

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')

JANE, BOB, ROOT = devices.JANE, devices.BOB, 0
ALLOCATIONS, QUOTAS = '/v2/allocations', '/v2/quotas'
ONE = {'groups': [{'resources': {'FPGA': 1}}]}
#: A group whose members may use the socket.
GROUP = next(each for each in grp.getgrall() if each.gr_gid != os.getgid())

#: Becomes a user of the group, and sends the requests of its input.
CLIENT = """
import http.client, json, os, socket, sys
_, path, uid, gid = sys.argv
os.setgroups([]), os.setgid(int(gid)), os.setuid(int(uid))
for line in sys.stdin:
    method, target, body, headers = json.loads(line)
    connection = http.client.HTTPConnection('localhost')
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(path)
    except OSError as error:
        print(json.dumps([error.errno, None]), flush=True)
        continue
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    print(json.dumps([answer.status, answer.read().decode()]), flush=True)
"""


class Answer:
    def __init__(self, status, text):
        self.status = status
        self.text = text

    @property
    def json(self):
        return json.loads(self.text)


class User:
    """A process of a user: ``user('GET', '/v2/devices')`` is the answer to its request."""

    def __init__(self, path, uid, gid=GROUP.gr_gid):
        argv = [sys.executable, '-S', '-c', CLIENT, path, str(uid), str(gid)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, method, target, body=None, **headers):
        content = None if body is None else json.dumps(body)
        sent = {name.replace('_', '-'): value for name, value in headers.items()}
        sent |= {} if body is None else {'Content-Type': 'application/json'}
        print(json.dumps([method, target, content, sent]), file=self._process.stdin, flush=True)
        return Answer(*json.loads(self._process.stdout.readline()))

    def end(self):
        self._process.stdin.close()
        self._process.wait(test_leases.BOUND)
        self._process.stdout.close()


@contextlib.contextmanager
def served(embedded):
    """Serve the API of a service at its socket."""
    with services.listen_locally(embedded.conf) as local:
        server = services.server.Server(embedded.application, *local)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield embedded.conf.api.socket
        finally:
            server.stop()
            thread.join()


@pytest.fixture
def start(database_url):
    """A service with options, and four accelerators; returns a function that makes users."""
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, place)
        place.chmod(0o711)

        def make(**options):
            options = {'api__socket': f'{place}/api.sock', 'api__socket_group': GROUP.gr_name,
                       **options}  # fmt: skip
            made = support.Service(database_url, **options)
            stack.callback(made.stop)
            made.report(support.card('3b', handles=4))
            path = stack.enter_context(served(made.embedded))

            def user(uid, **more):
                found = User(path, uid, **more)
                stack.callback(found.end)
                return found

            user.service = made
            return user

        yield make


def http_basic(tmp_path):
    (tmp_path / 'htpasswd').write_text(f'root:{test_users.HASH}\n')
    file = str(tmp_path / 'htpasswd')
    return {'api__auth_strategy': 'http_basic', 'api__http_basic_auth_user_file': file}


STRATEGIES = {
    'noauth': lambda _: {},
    'http_basic': http_basic,
    'keystone': lambda _: {'api__auth_strategy': 'keystone'},
}


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_two_users_see_only_their_own_allocations(start, tmp_path, strategy):
    user = start(**STRATEGIES[strategy](tmp_path))
    jane, bob, root = user(JANE), user(BOB), user(ROOT)
    made = [each('POST', ALLOCATIONS, ONE) for each in (jane, bob)]
    assert [each.status for each in made] == [201, 201]
    mine, other = (each.json['uuid'] for each in made)
    assert made[0].json['project_id'] == accounts.name(JANE) == f'uid-{JANE}'
    for each, own, foreign in ((jane, mine, other), (bob, other, mine)):
        found = each('GET', ALLOCATIONS).json['allocations']
        assert [row['uuid'] for row in found] == [own]
        assert each('GET', f'{ALLOCATIONS}/{foreign}').status == 404
        assert each('DELETE', f'{ALLOCATIONS}/{foreign}').status == 404
        assert each('GET', f'{ALLOCATIONS}/{own}').json['state'] == 'active'
        assert each('GET', '/v2/hosts').status == 403
    assert {row['uuid'] for row in root('GET', ALLOCATIONS).json['allocations']} == {mine, other}
    assert root('DELETE', f'{ALLOCATIONS}/{other}').status == 204
    assert jane('DELETE', f'{ALLOCATIONS}/{mine}').status == 204


FORGED = {
    'X_User_Id': 'root',
    'X_Project_Id': 'root',
    'X_Roles': 'admin,manager,member,reader',
    'X_Is_Admin_Project': 'True',
    'X_Service_Roles': 'service',
    'X_Auth_Token': 'secret',
    'OpenStack_System_Scope': 'all',
    'Authorization': 'Basic cm9vdDpzZWNyZXQ=',
}


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_headers_of_a_client_change_nothing(start, tmp_path, strategy):
    """Not even the right password of an administrator, which is for a port."""
    jane = start(**STRATEGIES[strategy](tmp_path))(JANE)
    own = jane('POST', ALLOCATIONS, ONE, **FORGED)
    assert (own.status, own.json['project_id']) == (201, f'uid-{JANE}')
    limits = {'limits': {'FPGA': 9}}
    assert jane('PATCH', f'{QUOTAS}/uid-{JANE}', limits, **FORGED).status == 403
    assert jane('GET', '/v2/hosts', **FORGED).status == 403


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_a_quota_holds(start, tmp_path, strategy):
    """Root sets it, and the project of another user is not touched."""
    user = start(**STRATEGIES[strategy](tmp_path))
    jane, bob, root = user(JANE), user(BOB), user(ROOT)
    assert root('PATCH', f'{QUOTAS}/uid-{JANE}', {'limits': {'FPGA': 1}}).status == 200
    assert jane('POST', ALLOCATIONS, ONE).status == 201
    refused = jane('POST', ALLOCATIONS, ONE)
    assert refused.status == 403
    assert 'the limit is 1, 1 used, and 1 asked for' in refused.text
    assert [bob('POST', ALLOCATIONS, ONE).status for _ in range(2)] == [201, 201]


def test_a_project_is_the_same_as_at_the_socket_of_an_agent(database_url, tmp_path):
    path = str(tmp_path / 'api.sock')
    options = {'conductor__user_projects': {'root': 'lab'}, 'api__socket': path}
    machine = test_leases.Machine(database_url, tmp_path, **options)
    try:
        machine.service.conductor.update_quota(project='lab', limits={'CUSTOM_NPU': 2})
        machine.hold(1)
        wanted = {'groups': [{'resources': {'CUSTOM_NPU': 1}}]}
        with served(machine.service.embedded):
            root = User(path, ROOT)
            own = root('POST', ALLOCATIONS, wanted)
            assert (own.status, own.json['project_id']) == (201, 'lab')
            assert root('POST', ALLOCATIONS, wanted).status == 403
            root('DELETE', f'{ALLOCATIONS}/{own.json["uuid"]}')
            root.end()
        machine.clear()
    finally:
        machine.stop()


def test_who_may_use_the_socket(start):
    """Its group: others cannot connect."""
    user = start()
    assert user(JANE)('GET', '/').status == 200
    assert user(JANE, gid=JANE)('GET', '/').status == 13


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_a_proxy_is_not_taken_for_its_clients(start, tmp_path, strategy):
    """All of them would be the user of the proxy."""
    root = start(**STRATEGIES[strategy](tmp_path))(ROOT)
    refused = root('GET', '/v2/devices', X_Forwarded_For='192.0.2.1')
    assert refused.status == 403
    assert 'X-Forwarded-For is set' in refused.text
    assert root('GET', '/v2/devices').status == 200


def test_a_policy_lets_everybody_see_who_holds_what(start, tmp_path):
    """The line is that of the guide for one shared machine."""
    page = (pages.ROOT / 'doc/source/user/shared_machine.rst').read_text()
    [line] = re.findall('"cyborg:accelerator:get_all": .*', page)
    (tmp_path / 'policy.yaml').write_text(f'{line}\n')
    user = start(oslo_policy__policy_file=str(tmp_path / 'policy.yaml'))
    jane = user(JANE)
    user(BOB)('POST', ALLOCATIONS, ONE)
    found = jane('GET', '/v2/accelerators').json['accelerators']
    assert sorted(str(each['user_name']) for each in found) == ['None'] * 3 + [f'uid-{BOB}']
    assert user(BOB)('GET', '/v2/devices').status == 403


def test_links_lead_to_the_host_of_the_request(start):
    root = start()(ROOT)
    [link] = root('GET', '/v2').json['links']
    assert link['href'] == 'http://localhost/v2'


def test_clients_of_keystoneauth_ask_at_the_socket(start, monkeypatch):
    """openstacksdk does, and a proxy that the environment names is not asked."""
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    path = start().service.embedded.conf.api.socket
    auth = local.Loader().load_from_options(endpoint=f'unix://{path}')
    with contextlib.closing(session.Session(auth)) as asked:
        sdk = connection.Connection(session=asked).accelerator
        [device] = sdk.devices()
        made = sdk.create_device_profile(name='a', groups=[{'resources:FPGA': '1'}])
        assert [each.uuid for each in sdk.device_profiles()] == [made.uuid]
        found = sdk.get('/accelerators', params={'limit': 3}).json()
    assert {row['device_uuid'] for row in found['accelerators']} == {device.uuid}


@pytest.mark.parametrize('endpoint', ['http://a', 'unix:a', 'unix://a', '/a', None])
def test_an_endpoint_that_is_no_socket(endpoint):
    with pytest.raises(exceptions.OptionError, match='expected unix:// and an absolute path'):
        local.Local(endpoint)


def test_a_socket_where_nobody_listens(tmp_path):
    auth = local.Local(f'unix://{tmp_path}/api.sock')
    with (
        contextlib.closing(session.Session(auth)) as asked,
        pytest.raises(exceptions.ConnectFailure) as refused,
    ):
        asked.get('/accelerators', endpoint_filter={'service_type': 'accelerator'})
    said = (
        f'Unable to establish connection to unix://{tmp_path}/api.sock: No such file or directory'
    )
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ('uid', 'service', 'roles'),
    [
        (0, 1000, 'admin,manager,member,reader'),
        (1000, 1000, 'admin,manager,member,reader'),
        (1001, 1000, 'member,reader'),
        (1000, 0, 'member,reader'),
    ],
)
def test_root_and_the_user_of_the_service_are_administrators(monkeypatch, uid, service, roles):
    conf = support.options.load(files=[])
    monkeypatch.setattr(os, 'geteuid', lambda: service)
    request = webob.Request.blank('/', environ={unix.PEER: uid})
    assert peers.Peers(conf).headers(request)['X-Roles'] == roles

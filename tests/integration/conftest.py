# SPDX-License-Identifier: Apache-2.0
"""The real services, each started once: Keystone, three kinds of cyborg_lite, and clients."""

import contextlib
import dataclasses
import itertools
import pathlib
import uuid

import bcrypt
import pytest

from tests import support
from tests.integration import cloud as cloud_
from tests.integration import peers as peers_
from tests.integration import process

#: The slowest files. They come first: otherwise one process may run one of them alone at the end.
LONG = (
    *('test_crashes', 'test_nova_boot', 'test_messages', 'test_processes', 'test_outages'),
    *('test_takeover', 'test_tempest'),
)
#: One FPGA with sixteen accelerators, as in Cyborg's fake driver, and a host with two cards.
DRIVERS = '[agent]\nenabled_drivers = fake, intel_qat, xilinx_fpga\n'
HOST = 'mixed-alveo-qat'


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@dataclasses.dataclass
class Service:
    """A running ``cyborg-lite up``."""

    url: str
    #: its files: the log with debug messages, and the output
    logs: list[pathlib.Path]

    def log(self) -> str:
        return ''.join(file.read_text() for file in self.logs)


@contextlib.contextmanager
def up(place: pathlib.Path, conf: str):
    place.mkdir(exist_ok=True)
    # Debug messages of libraries, too.
    logs = '[DEFAULT]\ndebug = true\ndefault_log_levels = keystonemiddleware=DEBUG\n'
    (place / 'conf').write_text(f'{logs}{DRIVERS}{conf}')
    server = process.serving(
        *('cyborg-lite', 'up', '--host', HOST, '--port', '0', '--state-dir', place / 'state'),
        *('--config-file', place / 'conf'),
        ready=r'The API answers at (http://127.0.0.1:\d+)/',
        log=place / 'output',
        PYTHONUNBUFFERED='1',
    )
    with server as running:
        logs = [place / 'output', place / 'state' / 'cyborg-lite.log']
        yield Service(running.ready[1], logs)


@pytest.fixture(scope='session')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('integration')


@pytest.fixture(scope='session')
def peers():
    with peers_.peers() as made:
        yield made


@pytest.fixture(scope='session')
def cloud(place, peers):
    """Keystone, with Nova and Glance in its catalogue."""
    with cloud_.cloud(place / 'keystone') as made:
        made.register('compute', f'{peers.url}/compute/v2.1')
        made.register('image', f'{peers.url}/image/v2')
        yield made


@pytest.fixture(scope='session')
def service(place, cloud):
    """cyborg_lite with Keystone, and in its catalogue."""
    strict = {'service_token_roles': 'service', 'service_token_roles_required': 'true'}
    conf = '[api]\nauth_strategy = keystone\n'
    conf += cloud.section('keystone_authtoken', www_authenticate_uri=cloud.url, **strict)
    conf += cloud.section('nova')
    with up(place / 'service', conf) as made:
        cloud.register('accelerator', f'{made.url}/v2')
        yield made


@pytest.fixture(scope='session')
def noauth(place):
    """cyborg_lite alone."""
    with up(place / 'noauth', '[api]\nauth_strategy = noauth\n') as made:
        yield made


@pytest.fixture(scope='session')
def http_basic(place):
    """cyborg_lite alone, with one user."""
    users = place / 'htpasswd'
    salted = bcrypt.hashpw(cloud_.PASSWORD.encode(), bcrypt.gensalt(4))
    users.write_text(f'admin:{salted.decode()}\n')
    conf = f'[api]\nauth_strategy = http_basic\nhttp_basic_auth_user_file = {users}\n'
    with up(place / 'http_basic', conf) as made:
        yield made


@pytest.fixture
def api(cloud, service):
    """``api(persona, project, service=persona)``: the service for a persona."""
    return cloud.api


@pytest.fixture
def admin(api):
    return api('admin')


@pytest.fixture
def nova(api):
    """The service for Nova, with the token of a member of project a."""
    return api('member', service='service')


_number = itertools.count()


@pytest.fixture
def profile(api, admin):
    """The name of a device profile that asks for one FPGA of the fake driver."""
    name = f'fpga-{next(_number)}'
    groups = [{'resources:FPGA': '1', 'trait:CUSTOM_FAKE_DEVICE': 'required'}]
    made = admin.post('/device_profiles', json=[{'name': name, 'groups': groups}])
    assert made.status_code == 201, made.text
    yield name
    arqs = admin.get('/accelerator_requests').json()['arqs']
    uuids = ','.join(arq['uuid'] for arq in arqs if arq['device_profile_name'] == name)
    if uuids:
        gone = api('admin', service='service').delete(f'/accelerator_requests?arqs={uuids}')
        assert gone.status_code == 204, gone.text
    assert admin.delete(f'/device_profiles/{name}').status_code == 204


@pytest.fixture
def arq(api, profile):
    """The uuid of a request of project a."""
    made = api('member').post('/accelerator_requests', json={'device_profile_name': profile})
    assert made.status_code == 201, made.text
    return made.json()['arqs'][0]['uuid']


@pytest.fixture
def provider(admin):
    """The uuid of the fake driver's resource provider."""
    parts = admin.get('/deployables').json()['deployables']
    return next(part['rp_uuid'] for part in parts if part['driver_name'] == 'fake')


@pytest.fixture
def instance():
    return str(uuid.uuid4())


@pytest.fixture
def bound(nova, arq, provider, instance):
    """A request of project a that the instance holds."""
    bind = {arq: support.wish(provider, HOST, instance)}
    answer = nova.patch('/accelerator_requests', json=bind)
    assert answer.status_code == 202, answer.text
    return arq


@pytest.fixture(scope='session')
def old_client():
    """The command of the last client without commands for accelerators."""
    wanted = 'python-openstackclient<10.4', 'python-cyborgclient'
    return process.environment('old-client', *wanted) / 'openstack'


@pytest.fixture(scope='session')
def old_openstack(old_client, place):
    """``old_openstack(*words, **environ)`` runs that command."""
    with process.forking(old_client, place / 'old_openstack') as run:
        yield run


@pytest.fixture(scope='session')
def openstack(place):
    """The same with the client of this environment."""
    with process.forking(process.BIN / 'openstack', place / 'openstack') as run:
        yield run

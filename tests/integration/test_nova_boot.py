# SPDX-License-Identifier: Apache-2.0
"""Nova boots servers with accelerators, and deletes them: all but Glance and Neutron is real."""

from concurrent import futures
import contextlib
import pathlib
import re
import signal

from keystoneauth1 import adapter
from keystoneauth1 import exceptions
import pytest
import requests
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.clients import nova
from tests import support
from tests.integration import cloud as cloud_
from tests.integration import compute
from tests.integration import install
from tests.integration import peers as peers_
from tests.integration import process
from tests.integration import servers

#: Settings of the tests beside the install guide.
LOUD = '[DEFAULT]\ndebug = true\n'
# A host gets no server after two of these without a report, however busy the machine is.
AGENT = '[agent]\nreport_interval = 5\nenabled_drivers = fake\n'
#: The name of their provider, and how many accelerators the fake driver has.
ACCELERATORS = f'{compute.HOST}_FakeDevice'
ALL = 16
#: A second host, that fails.
SPARE = 'node-2'
#: of Nova: the first in which a server may have no network
MICROVERSION = '2.37'


class Site:
    """A cloud of one host, for its administrator."""

    def __init__(self, cloud: cloud_.Cloud, nova: pathlib.Path, ours: install.OpenStack) -> None:
        """A site.

        :param nova: the configuration of Nova's first host.
        :param ours: the service.
        """
        self.cloud = cloud
        self.nova = nova
        self.ours = ours
        self.accelerator = self.ask('accelerator')
        self.compute = self.ask('compute')
        self.placement = self.ask('placement', 'service', 'b')
        self._engine = sa.create_engine(ours.controller.connection)

    def ask(self, service: str, persona: str = 'admin', project: str = 'a') -> adapter.Adapter:
        return adapter.Adapter(
            self.cloud.session(f'{persona}-{project}', project),
            service_type=service,
            default_microversion=MICROVERSION if service == 'compute' else None,
        )

    def is_ready(self) -> bool:
        """Whether Nova has found its host, and Placement has the accelerators."""
        found = self.compute.get('/os-hypervisors').json()['hypervisors']
        return bool(found) and self.reserved() == 0

    def set_service(self, host: str, **how: str | bool) -> None:
        """Change the nova-compute of a host."""
        path, services = '/os-services', {'microversion': '2.53'}
        found = self.compute.get(f'{path}?binary=nova-compute&host={host}', **services)
        [service] = found.json()['services']
        self.compute.put(f'{path}/{service["id"]}', json=how, **services)

    def providers(self) -> dict[str, str]:
        """The uuids of the providers by their names."""
        found = self.placement.get('/resource_providers').json()['resource_providers']
        return {provider['name']: provider['uuid'] for provider in found}

    def reserved(self, name: str = ACCELERATORS) -> int | None:
        """The number of reserved accelerators in Placement; None without an inventory."""
        provider = self.providers().get(name)
        if provider is None:
            return None
        path = f'/resource_providers/{provider}/inventories'
        found = self.placement.get(path).json()['inventories']
        return found['FPGA']['reserved'] if found else None

    def arqs(self) -> list[dict]:
        return self.accelerator.get('/accelerator_requests').json()['arqs']

    def held(self) -> dict[str, str]:
        """The provider of each held handle, by the uuid of the handle."""
        query = (
            sa.select(model.AttachHandle.uuid, model.Deployable.rp_uuid)
            .join(model.ARQ, model.ARQ.attach_handle_id == model.AttachHandle.id)
            .join(model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id)
        )
        return dict(self._all(query))

    def answers(self, instance: str) -> list[str]:
        """Nova's answers to events of an instance, once no message is left."""
        process.until(lambda: not self._all(sa.select(model.Message.id)))
        return re.findall(
            rf'Nova answered (\d+) to events of {instance}', self.ours.controller.log('conductor')
        )

    def _all(self, query: sa.Select) -> list:
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    def flavor(self, accelerators: int) -> str:
        """The id of a flavor with so many accelerators."""
        name = f'fpga-{accelerators}'
        group = {'resources:FPGA': str(accelerators), 'trait:CUSTOM_FAKE_DEVICE': 'required'}
        self.accelerator.post('/device_profiles', json=[{'name': name, 'groups': [group]}])
        flavor = {'id': name, 'name': name, 'ram': 64, 'vcpus': 1, 'disk': 1}
        self.compute.post('/flavors', json={'flavor': flavor})
        specs = {'extra_specs': {'accel:device_profile': name}}
        self.compute.post(f'/flavors/{name}/os-extra_specs', json=specs)
        return name


class Server:
    """A server of project a, from its creation request."""

    def __init__(self, site: Site, flavor: str) -> None:
        self._site = site
        self._compute = site.ask('compute', 'member')
        wanted = {'name': 'one', 'flavorRef': flavor, 'imageRef': peers_.IMAGE, 'networks': 'none'}
        made = self._compute.post('/servers', json={'server': wanted})
        self.uuid = made.json()['server']['id']

    def show(self) -> dict:
        return self._site.compute.get(f'/servers/{self.uuid}').json()['server']

    def until(self, status: str) -> None:
        """Wait until it is in this state, or in error, without a task."""

        def rests() -> bool:
            shown = self.show()
            return shown['status'] in (status, 'ERROR') and not shown['OS-EXT-STS:task_state']

        process.until(rests)
        shown = self.show()
        assert shown['status'] == status, shown.get('fault')

    def act(self, action: str, status: str, **how: str) -> None:
        self._compute.post(f'/servers/{self.uuid}/action', json={action: how or None})
        self.until(status)

    def arqs(self) -> list[dict]:
        api = self._site.ask('accelerator', 'member')
        return api.get(f'/accelerator_requests?instance={self.uuid}').json()['arqs']

    def allocated(self) -> dict[str, dict[str, int]]:
        """Its allocations in Placement, by provider."""
        found = self._site.placement.get(f'/allocations/{self.uuid}').json()['allocations']
        return {provider: given['resources'] for provider, given in found.items()}

    def delete(self, persona: str = 'member', project: str = 'a') -> None:
        self._site.ask('compute', persona, project).delete(f'/servers/{self.uuid}')
        process.until(self.is_gone)
        process.until(lambda: not self.allocated())

    def is_gone(self) -> bool:
        try:
            self.show()
        except exceptions.NotFound:
            return True
        return False


@pytest.fixture(scope='module')
def site(tmp_path_factory, openstack):
    """A cloud to which cyborg_lite was added as the install guide says."""
    place = tmp_path_factory.mktemp('site')
    with contextlib.ExitStack() as stack:
        edges, database, bus, cloud = process.enter(
            stack,
            peers_.peers(),
            servers.mariadb(place / 'mariadb'),
            servers.rabbitmq(place / 'rabbitmq'),
            cloud_.cloud(place / 'keystone'),
        )
        cloud.register('image', f'{edges.url}/image/v2')
        cloud.hire('nova')
        ours = install.OpenStack(place / 'ours', cloud, database, bus, compute.HOST)
        ours.prepare(openstack)
        stack.enter_context(compute.placement(place / 'placement', cloud, database))
        nova_ = compute.nova(
            place / 'nova', cloud, database, bus, edges.url, ours.guide.text('Nova', 'ini')
        )
        theirs = stack.enter_context(nova_)
        stack.enter_context(ours.run(controller=LOUD, node=LOUD + AGENT))
        made = Site(cloud, theirs, ours)
        with ours.step('until Placement has the accelerators'):
            process.until(made.is_ready)
        yield made


@pytest.fixture(scope='module')
def flavor(site):
    """A flavor with one accelerator."""
    return site.flavor(1)


@pytest.fixture(autouse=True)
def no_trace(site):
    """After its deletion, nothing of a server is left."""
    yield
    assert site.arqs() == []
    assert site.held() == {}


@pytest.fixture
def boot(site):
    """``boot(flavor)``: a server that is deleted in the end."""
    made = []

    def make(flavor):
        made.append(Server(site, flavor))
        return made[-1]

    yield make
    for server in made:
        if not server.is_gone():
            server.delete()


@pytest.fixture
def spare(site, tmp_path):
    """A second host: yields its nova-compute and its agent. It is down afterwards."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(compute.another(tmp_path / 'nova', site.nova, SPARE))]
        process.until(lambda: SPARE in site.providers())
        agent = site.ours.agent(SPARE, f'{LOUD}host = {SPARE}\n{AGENT}')
        running.append(stack.enter_context(agent))
        process.until(lambda: site.reserved(f'{SPARE}_FakeDevice') == 0)
        yield running
        site.set_service(SPARE, forced_down=True)


@pytest.fixture
def taken(site):
    """Requests outside of Nova, which hold all accelerators."""
    name = site.flavor(ALL)
    vouched = site.cloud.api('member', service='service')
    made = vouched.post('/accelerator_requests', json={'device_profile_name': name})
    arqs = [arq['uuid'] for arq in made.json()['arqs']]
    wish = support.wish(site.providers()[ACCELERATORS], compute.HOST, support.INSTANCE)
    vouched.patch('/accelerator_requests', json=dict.fromkeys(arqs, wish))
    assert len(site.held()) == ALL
    yield arqs
    vouched.delete(f'/accelerator_requests?instance={support.INSTANCE}')


def test_whether_the_controller_works_is_seen_without_a_token(site):
    """By the commands of the page: curl need not be there."""
    asked = site.ours.guide.commands('The controller', 'curl')
    assert [words[:-1] for words in asked] == [['-s'], ['-s']]
    healthy, versions = [requests.get(words[-1], timeout=60) for words in asked]
    assert healthy.text == 'OK'
    assert versions.json()['versions'][0]['max_version'] == '2.3'


def test_the_first_server(site, openstack, record_property):
    """The commands of an administrator and a user on the page, up to a server with a card.

    Each step's seconds are properties of the test: ``--junit-xml`` has them, and ``-s`` shows them.
    """
    # There is no Neutron.
    names = {'IMAGE': peers_.IMAGE, '--network': '--nic', 'NETWORK': 'none'}
    shown = {}
    for words in site.ours.guide.commands('The first server', 'openstack'):
        words = [names.get(word, word.replace('CUSTOM_NPU', 'FPGA')) for word in words]
        persona = 'member' if words[:2] == ['server', 'create'] else 'admin'
        environ = site.cloud.environ(persona) | {'OS_COMPUTE_API_VERSION': MICROVERSION}
        command = ' '.join(words[:3])
        with site.ours.step(f'openstack {command}'):
            shown[command] = openstack(*words, **environ).stdout
    assert compute.HOST in shown['accelerator host list']
    assert shown['accelerator list --free'].count('FPGA') == ALL
    assert re.search(r'\| status +\| ACTIVE ', shown['server create --flavor'])
    assert shown['accelerator list --state'].count('held') == 1
    assert shown['accelerator arq list'].count('Bound') == 1
    for step, seconds in site.ours.seconds.items():
        record_property(step, seconds)
        print(f'{seconds:6.1f} s  {step}')
    openstack('server', 'delete', '--wait', 'first', **site.cloud.environ('member'))


def test_uwsgi_serves_the_api(site):
    """The workers share neither connections to the database nor to the bus."""
    own = {'endpoint_override': f'{site.ours.uwsgi_url}/v2', 'raise_exc': False}
    with site.ours.uwsgi() as logs, futures.ThreadPoolExecutor(16) as pool:
        long = {'X-Auth-Token': 'a' * 40_000}
        url = f'{site.ours.uwsgi_url}/healthcheck'
        assert requests.get(url, headers=long, timeout=60).text == 'OK'
        asked = pool.map(lambda _: site.accelerator.get('/accelerators', **own), range(64))
        assert {len(answer.json()['accelerators']) for answer in asked} == {ALL}
        # The conductor answers these.
        gone = pool.map(
            lambda _: site.accelerator.delete('/device_profiles/nope', **own), range(32)
        )
        assert {answer.status_code for answer in gone} == {404}
        assert [file.name for file in logs.iterdir()] == ['cyborg-lite-api.log']


def test_a_server_has_its_accelerator_until_it_is_deleted(site, boot, flavor):
    server = boot(flavor)
    server.until('ACTIVE')
    arqs = server.arqs()
    [arq] = arqs
    assert arq['state'] == 'Bound'
    assert arq['hostname'] == compute.HOST
    assert arq['project_id'] == site.cloud.projects['a']
    provider = arq['device_rp_uuid']
    assert server.allocated() == {
        provider: {'FPGA': 1},
        site.providers()[compute.HOST]: {'VCPU': 1, 'MEMORY_MB': 64, 'DISK_GB': 1},
    }
    assert site.held() == {arq['attach_handle_uuid']: provider}
    # 207: the server was on no host yet, and Nova reads the request later.
    [answer] = site.answers(server.uuid)
    assert answer in ('200', '207')
    server.act('os-stop', 'SHUTOFF')
    server.act('os-start', 'ACTIVE')
    server.act('reboot', 'ACTIVE', type='HARD')
    server.act('rebuild', 'ACTIVE', imageRef=peers_.IMAGE)
    assert server.arqs() == arqs


def test_servers_that_start_at_once(site, boot, flavor):
    one, other = boot(flavor), boot(flavor)
    for server in (one, other):
        server.until('ACTIVE')
    handles = [arq['attach_handle_uuid'] for arq in one.arqs() + other.arqs()]
    assert len(set(handles)) == 2
    one.delete()
    assert list(site.held()) == handles[1:]
    # Nova sends the token of the user who deletes.
    other.delete('admin', 'b')


def test_a_server_that_wants_more_than_there_is(site, boot):
    server = boot(site.flavor(ALL + 1))
    server.until('ERROR')
    assert 'No valid host' in server.show()['fault']['message']
    assert site.arqs() == []


def test_a_server_fails_if_its_accelerators_are_held_outside_nova(site, boot, flavor, taken):
    """Placement does not know: the bind fails, and Nova cleans up."""
    # Nova does not know this instance, and answers so.
    assert site.answers(support.INSTANCE) == ['207']
    server = boot(flavor)
    server.until('ERROR')
    assert {arq['uuid'] for arq in site.arqs()} == set(taken)


def test_a_disabled_device_gets_no_server(site, boot, flavor):
    [device] = site.accelerator.get(f'/devices?hostname={compute.HOST}').json()['devices']
    path = f'/devices/{device["uuid"]}'
    site.accelerator.post(f'{path}/disable')
    process.until(lambda: site.reserved() == ALL)
    server = boot(flavor)
    server.until('ERROR')
    assert 'No valid host' in server.show()['fault']['message']
    assert site.arqs() == []
    site.accelerator.post(f'{path}/enable')
    process.until(lambda: site.reserved() == 0)
    boot(flavor).until('ACTIVE')


def test_a_shelved_server_lets_its_accelerator_go(site, boot, flavor):
    server = boot(flavor)
    server.until('ACTIVE')
    server.act('shelve', 'SHELVED_OFFLOADED')
    assert server.arqs() == []
    assert server.allocated() == {}
    server.act('unshelve', 'ACTIVE')
    [arq] = server.arqs()
    assert arq['state'] == 'Bound'
    assert site.held() == {arq['attach_handle_uuid']: arq['device_rp_uuid']}


def test_an_evacuated_server_leaves_nothing(site, boot, flavor, spare):
    """Nova evacuates with the token of the administrator of another project."""
    site.set_service(compute.HOST, status='disabled')
    server = boot(flavor)
    server.until('ACTIVE')
    [before] = server.arqs()
    assert before['hostname'] == SPARE
    site.set_service(compute.HOST, status='enabled')
    for running in spare:
        running.end()
    site.set_service(SPARE, forced_down=True)
    admin = site.ask('compute', 'admin', 'b')
    admin.post(f'/servers/{server.uuid}/action', json={'evacuate': {}})
    server.until('ACTIVE')
    assert server.show()['OS-EXT-SRV-ATTR:host'] == compute.HOST
    [arq] = server.arqs()
    assert arq['uuid'] != before['uuid']
    assert arq['hostname'] == compute.HOST
    assert arq['project_id'] == site.cloud.projects['a']
    assert site.held() == {arq['attach_handle_uuid']: arq['device_rp_uuid']}
    server.act('reboot', 'ACTIVE', type='HARD')
    server.delete()
    assert site.arqs() == []
    assert site.held() == {}


def test_only_an_administrator_learns_that_a_server_is_gone(site, boot, flavor):
    """For other users Nova answers 404 for servers of other projects: no proof."""
    admin = nova.Nova(site.ask('compute', 'admin', 'b'))
    server = boot(flavor)
    server.until('ACTIVE')
    assert admin.knows(server.uuid)
    path = f'/instances/{server.uuid}'
    refused = site.accelerator.delete(path, raise_exc=False)
    assert refused.status_code == 409
    [arq] = server.arqs()
    assert arq['state'] == 'Bound'
    for persona in ('service', 'member'):
        with pytest.raises(exception.Conflict, match='admin role'):
            nova.Nova(site.ask('compute', persona, 'b')).knows(server.uuid)
    server.delete()
    assert not admin.knows(server.uuid)
    with pytest.raises(exception.Conflict, match='admin role'):
        nova.Nova(site.ask('compute', 'service', 'b')).knows(server.uuid)


def leave_a_request(site, flavor, server):
    """Bind a request to a deleted server: the state after a lost delete call."""
    vouched = site.cloud.api('member', service='service')
    made = vouched.post('/accelerator_requests', json={'device_profile_name': flavor})
    [arq] = made.json()['arqs']
    wish = support.wish(site.providers()[ACCELERATORS], compute.HOST, server.uuid)
    vouched.patch('/accelerator_requests', json={arq['uuid']: wish})
    return arq


def test_an_audit_frees_what_deleted_servers_hold(site, boot, flavor, openstack):
    """The state after a lost delete call, beside a server that lives."""
    [grant] = install.Guide('admin/index.rst').commands('Who may do what', 'openstack')
    openstack(*grant, **site.cloud.environ('admin'))
    living, server = boot(flavor), boot(flavor)
    for each in (living, server):
        each.until('ACTIVE')
    server.delete()
    leave_a_request(site, flavor, server)
    assert len(site.held()) == 2
    # It fails if anything is left to do.
    site.ours.controller.run('cyborg-lite-status', ['audit', '--fix', '--apart', '1'])
    [left] = living.arqs()
    assert list(site.held()) == [left['attach_handle_uuid']]
    site.ours.controller.run('cyborg-lite-status', ['audit'])


def test_an_administrator_frees_requests_of_a_deleted_server(site, boot, flavor, openstack):
    """Without a service token: the service asks Nova first, and refuses for live servers."""
    guide = install.Guide('admin/index.rst')
    [grant] = guide.commands('Who may do what', 'openstack')
    openstack(*grant, **site.cloud.environ('admin'))
    # It gets a token with the role.
    site.ours.conductor.restart(signal.SIGTERM)
    server = boot(flavor)
    server.until('ACTIVE')
    path = f'/instances/{server.uuid}'
    refused = site.accelerator.delete(path, raise_exc=False)
    assert refused.status_code == 409
    assert f'Instance {server.uuid} exists' in refused.text
    assert len(site.held()) == 1
    server.delete()
    arq = leave_a_request(site, flavor, server)
    assert len(site.held()) == 1
    path_of_arq = f'/accelerator_requests/{arq["uuid"]}'
    assert site.accelerator.delete(path_of_arq, raise_exc=False).status_code == 403
    assert site.accelerator.delete(path, raise_exc=False).status_code == 204
    assert site.held() == {}
    assert site.accelerator.delete(path, raise_exc=False).status_code == 404

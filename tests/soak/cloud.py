# SPDX-License-Identifier: Apache-2.0
"""A whole cloud as processes: APIs, conductors, agents, Placement, database, broker."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import os
import pathlib
import uuid

from keystoneauth1 import adapter
from keystoneauth1 import session
from keystoneauth1 import token_endpoint
import requests
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.clients import placement as client
from tests.integration import deployment as deployment_
from tests.integration import invariants
from tests.integration import process
from tests.integration import servers
from tests.soak import control as control_
from tests.soak import hooks
from tests.soak import machines as machines_

CONF = """
[DEFAULT]
debug = false
[api]
auth_strategy = noauth
response_timeout = 6
[oslo_messaging_rabbit]
rabbit_interval_max = 5
[agent]
report_interval = 5
[conductor]
reservation_grace = 4
[placement]
auth_type = admin_token
token = admin
endpoint = {placement}
endpoint_override = {placement}
timeout = 3
"""
PLACEMENT = """
[placement_database]
connection = sqlite:///{place}/placement.sqlite
sync_on_startup = true
[api]
auth_strategy = noauth2
"""
#: The database of the run.
DATABASE = os.environ.get('SOAK_DATABASE') or 'postgresql'
#: The numbers of processes.
APIS, CONDUCTORS, AGENTS = 2, 2, 4
#: The number of names of each machine, of which one is used at a time.
NAMES = 3
#: The timeout for the first reports of all hosts, in seconds.
PATIENCE = 240


@dataclasses.dataclass(frozen=True)
class Provider:
    """A provider that clients can bind from."""

    uuid: str
    resource_class: str
    host: str
    device: str
    address: str
    #: its card: the machine, and the serial number or the address
    card: str


class Cloud(deployment_.Deployment):
    """A running cloud."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        place: pathlib.Path,
        hosts: int,
        bug: str = '',
        kinds: collections.abc.Collection[str] = (),
    ) -> None:
        """Start the services of a cloud.

        :param hosts: the number of hosts of each process of agents.
        :param kinds: the kinds of shipped hosts; all by default.
        """
        self._stack, self._place, self._bug = stack, place, bug
        self.control = control_.Control(place / 'control')
        self.broker, self.engine, placement = process.enter(
            stack,
            servers.rabbitmq(place / 'rabbitmq'),
            servers.DATABASES[DATABASE](place / 'database'),
            self._placement_server(),
        )
        self.placement = _connect(f'{placement.ready[1]}/placement')
        conf = CONF.format(placement=self.placement.endpoint_override)
        super().__init__(stack, place, self.broker, self.engine, conf)
        self.machines: list[machines_.Machine] = []
        self._allocated: dict[str, str] = {}
        self.urls: list[str] = []
        for number in range(AGENTS):
            (place / f'agents-{number}').mkdir()
            self.machines += machines_.lay_out(place / f'agents-{number}', hosts, kinds)
        for machine in self.machines:
            for name in names(machine):
                answer = self.placement.post('/resource_providers', json={'name': name})
                assert answer.status_code == 200, answer.text
        services = self._services()
        started = process.enter(stack, *services.values())
        self.services = dict(zip(services, started, strict=True))
        # They are killed: normal stops are tested elsewhere.
        stack.callback(self._kill)

    def _placement_server(self) -> contextlib.AbstractContextManager[process.Server]:
        place = self._place / 'placement'
        place.mkdir()
        (place / 'placement.conf').write_text(PLACEMENT.format(place=place))
        return process.serving(
            *('python', '-m', 'tests.soak.placement', self._place / 'control'),
            ready=r'Listening at (http://127.0.0.1:\d+)',
            log=place / 'log',
            OS_PLACEMENT_CONFIG_DIR=str(place),
            PYTHONPATH=str(deployment_.ROOT),
        )

    def _services(self) -> dict[str, contextlib.AbstractContextManager[process.Server]]:
        made = {}
        conf = ['--config-file', str(self.file)]
        for number in range(CONDUCTORS):
            own = self._place / f'conductor-{number}.conf'
            own.write_text(f'[DEFAULT]\nhost = conductor-{number}\n')
            more = ['--config-file', str(own)]
            name = f'conductor-{number}'
            made[name] = self._serving(name, 'cyborg-lite-conductor', *conf, *more)
        for number in range(APIS):
            address = f'127.0.0.1:{servers.free_port()}'
            self.urls.append(f'http://{address}/v2')
            application = 'cyborg_lite.wsgi.api:application'
            options = ['--bind', address, '--threads', '16', '--timeout', '60']
            name = f'api-{number}'
            made[name] = self._serving(name, 'gunicorn', application, *options)
        for number in range(AGENTS):
            name = f'agents-{number}'
            made[name] = self._serving(name, 'agents', str(self._place / name), *conf)
        return made

    def _serving(
        self, name: str, *command: str
    ) -> contextlib.AbstractContextManager[process.Server]:
        return process.serving(
            *('python', '-m', 'tests.soak.hooks', name, *command),
            ready='Selected multiprocessing start method|Booting worker',
            log=self._place / f'{name}.log',
            SOAK_PLACE=str(self._place / 'control'),
            SOAK_BUG=self._bug,
            CYBORG_LITE_CONFIG_FILE=str(self.file),
            PYTHONPATH=str(deployment_.ROOT),
        )

    def _kill(self) -> None:
        for service in self.services.values():
            deployment_.kill(service)

    def providers(self) -> list[Provider]:
        """The present providers."""
        card = sa.func.coalesce(model.Device.serial, model.Device.address)
        query = (
            sa.select(
                model.Deployable.rp_uuid,
                model.Attribute.value,
                model.Host.name,
                model.Device.uuid,
                model.Device.address,
                sa.func.coalesce(model.Host.machine, model.Host.name) + ' ' + card,
            )
            .join(model.Deployable.device)
            .join(model.Device.host)
            .join(model.Deployable.attributes)
            .where(model.Attribute.key == 'rc')
            .order_by(model.Deployable.name)
        )
        with self.database.reader() as session_:
            return [Provider(*row) for row in session_.execute(query)]

    def settle(self, patience: int = PATIENCE) -> None:
        """Wait until every host has reported, and no message is left."""
        process.until(lambda: self._count(model.Host) == len(self.machines), patience)
        process.until(lambda: not self._count(model.Message), patience)
        for url in self.urls:
            process.until(functools.partial(_answers, url))

    def _count(self, kind: type[model.Base]) -> int:
        with self.database.reader() as session_:
            return session_.query(kind).count()

    def resting(self) -> collections.abc.Iterator[str]:
        """The work that is still open, as far as cheap checks show it."""
        with self.database.reader() as session_:
            held = set(session_.scalars(sa.select(model.ARQ.attach_handle_id)))
            machines = {machine.name: machine for machine in self.machines}
            found = {host.name: host for host in session_.scalars(sa.select(model.Host))}
            for name in machines.keys() ^ found.keys():
                yield f'I14: host {name} is one of the names only, or of the rows'
            for name in machines.keys() & found.keys():
                yield from _restless(found[name], machines[name], held)
        for message in self.rows(model.Message):
            yield f'I6: {message.kind} {message.key} waits'

    def allocate(self, providers: collections.abc.Iterable[Provider]) -> None:
        """Allocate one of each in Placement for another consumer, like Nova."""
        for provider in providers:
            consumer = str(uuid.uuid4())
            resources = {'resources': {provider.resource_class: 1}}
            body = {
                'allocations': {provider.uuid: resources},
                'consumer_generation': None,
                'consumer_type': 'INSTANCE',
                'project_id': 'p',
                'user_id': 'u',
            }
            answer = self.placement.put(f'/allocations/{consumer}', json=body)
            assert answer.status_code == 204, answer.text
            self._allocated[consumer] = provider.uuid

    def wrong(self) -> collections.abc.Iterator[str]:
        """The violations in the idle cloud."""
        for consumer, provider in self._allocated.items():
            answer = self.placement.get(f'/allocations/{consumer}')
            if provider not in answer.json()['allocations']:
                yield f'I5: the allocation of {consumer} is gone'
        yield from invariants.in_database(self)
        yield from invariants.in_placement(self, self.placement)


def names(machine: machines_.Machine) -> list[str]:
    """The names of a machine, the first one first."""
    return [machine.id, *(f'{machine.id}-{number}' for number in range(2, NAMES + 1))]


def _restless(
    host: model.Host, machine: machines_.Machine, held: collections.abc.Container[int | None]
) -> collections.abc.Iterator[str]:
    """The differences between the rows of a host and its machine.

    A missing card is kept as long as a request holds it.
    """
    if host.state != 'up' or host.silent:
        yield f'I11: host {host.name} is not up'
    there, gone = {}, []
    for device in host.found:
        handles = [handle for part in device.deployables for handle in part.attach_handles]
        if device.absences:
            gone += handles
            continue
        gone += [handle for handle in handles if handle.lost]
        there[device.identity] = device.serial, {_function(h) for h in handles if not h.lost}
    if any(handle.id not in held for handle in gone) or (host.digest is None and not gone):
        yield f'I9: of host {host.name} something is missing'
    for address in there.keys() | machine.there().keys():
        yield from _other(there.get(address), machine.there().get(address), host, address)


def _other(
    known: tuple[str | None, set[str]] | None,
    card: machines_.Card | None,
    host: model.Host,
    address: str,
) -> collections.abc.Iterator[str]:
    if known is None or card is None or known[0] != card.serial:
        yield f'I14: at {address} of host {host.name} is {card}, and {known} is known'
    elif card.functions and known[1] != card.functions:
        yield f'I14: of {address} of host {host.name} are {card.functions}, and known {known[1]}'


def _function(handle: model.AttachHandle) -> str:
    return '{domain}:{bus}:{device}.{function}'.format(**handle.attach_info)


def _answers(url: str) -> bool:
    try:
        return requests.get(f'{url}/hosts', headers=ADMIN, timeout=10).status_code == 200
    except requests.RequestException:
        return False


#: The headers of an administrator.
ADMIN = {hooks.PROJECT: 'admin', hooks.ROLES: 'admin,manager,member,reader'}


def _connect(endpoint: str) -> adapter.Adapter:
    auth = token_endpoint.Token(endpoint, 'admin')
    return adapter.Adapter(
        session.Session(auth=auth),
        endpoint_override=endpoint,
        raise_exc=False,
        default_microversion=client.MICROVERSION,
        service_type='placement',
    )

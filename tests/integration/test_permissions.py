# SPDX-License-Identifier: Apache-2.0
"""The broker's permissions of doc/source/admin/security.rst, and refused accesses."""

import contextlib
import re
import uuid

import amqp.exceptions
import kombu
import oslo_messaging as messaging
import pytest

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import driver
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite import service
from cyborg_lite import startup
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests import pages
from tests.integration import deployment
from tests.integration import process
from tests.integration import servers

HOST = 'node-1.example.org'
ROLES = {'api': 'API', 'conductor': 'CONDUCTOR', f'agent-{HOST}': 'AGENT'}
CALLER = context.service()


def of_page(page):
    """The blocks of a page that call rabbitmqctl."""
    blocks = pages.blocks(pages.ROOT / 'doc/source' / page)
    return [b.text for b in blocks if b.language == 'shell' and 'rabbitmqctl' in b.text]


def commands():
    """The commands of the page, once for the cloud and once for a host."""
    cloud, host = of_page('admin/security.rst')
    in_pattern = HOST.replace('.', r'\.')
    host = host.replace('cyborg-lite-agent-HOST', f'cyborg-lite-agent-{HOST}')
    return f'set -e\n{cloud}\n{host.replace("HOST", in_pattern)}'


@pytest.fixture(scope='module')
def broker(tmp_path_factory):
    with servers.rabbitmq(tmp_path_factory.mktemp('broker') / 'bus') as url:
        yield url


@pytest.fixture(scope='module')
def urls(broker):
    """The broker's URL for each role, with the permissions of the page."""
    servers.administer(broker, commands())
    place = broker.partition('@')[2]
    return {
        role.partition('-')[0]: f'rabbit://cyborg-lite-{role}:{word}_PASSWORD@{place}cyborg_lite'
        for role, word in ROLES.items()
    }


@pytest.fixture(scope='module')
def conf(tmp_path_factory):
    place = tmp_path_factory.mktemp('permissions')
    settings = {'host': HOST, 'bus': 'fake://', 'database': service.database_url(place)}
    agent = '[agent]\nenabled_drivers = fake\nreport_interval = 1\n'
    (place / 'conf').write_text(deployment.CONF.format(**settings) + agent)
    return options.load(files=[str(place / 'conf')])


@pytest.fixture(scope='module')
def buses(urls, conf):
    """A bus for each role."""
    with contextlib.ExitStack() as stack:
        made = {role: rpc.Bus(conf, url) for role, url in urls.items()}
        for bus in made.values():
            stack.callback(bus.close)
        yield made


@pytest.fixture(scope='module', autouse=True)
def database(buses, conf, tmp_path_factory):
    """The database of a conductor that an agent reports to."""
    with contextlib.closing(engine.Database(conf)) as made:
        migration.upgrade(made.engine)
        conductor = service.Conductor(conf, made, buses['conductor'])
        agent = service.Agent(conf, buses['agent'], driver.Host(HOST, tmp_path_factory.mktemp('r')))
        conductor.start()
        agent.start()
        yield made
        agent.stop()
        conductor.stop()


def rows(database, kind):
    with database.reader() as session:
        return session.query(kind).count()


@pytest.mark.parametrize('page', ['openstack', 'alone'])
def test_the_commands_of_an_install_guide_work(broker, tmp_path, page):
    """In a separate virtual host: the URL of the guide's configuration is accepted."""
    text = (pages.ROOT / f'doc/source/install/{page}.rst').read_text()
    shell = ''.join(of_page(f'install/{page}.rst'))
    servers.administer(broker, re.sub(r'(-p|_vhost) cyborg_lite\b', rf'\1 {page}', shell))
    [user, *_] = re.findall(r'rabbit://(\S+?)@', text)
    file = tmp_path / 'conf'
    place = broker.partition('@')[2]
    file.write_text(f'[DEFAULT]\ntransport_url = rabbit://{user}@{place}{page}\n')
    startup.check(options.load(files=[str(file)]), startup.bus)


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        ('', '', None),
        (
            'API_PASSWORD',
            'wrong',
            'refuses user cyborg-lite-api for virtual host cyborg_lite.*403',
        ),
        ('cyborg_lite', 'nowhere', 'for virtual host nowhere .*530.*add_vhost nowhere'),
    ],
)
def test_a_start_is_refused_in_one_line(urls, tmp_path, old, new, said):
    file = tmp_path / 'conf'
    file.write_text(f'[DEFAULT]\ntransport_url = {urls["api"].replace(old, new)}\n')
    conf = options.load(files=[str(file)])
    if said is None:
        startup.check(conf, startup.bus)
        return
    with pytest.raises(exception.Refused, match=said) as raised:
        startup.check(conf, startup.bus)
    assert '\n' not in str(raised.value)


def test_the_services_work(buses, database):
    process.until(lambda: rows(database, model.Device))
    api = buses['api'].conductor(CALLER, timeout=20)
    group = {'resources:FPGA': '1'}
    api.create_device_profile(profile={'name': 'one', 'groups': [group]})
    assert rows(database, model.DeviceProfile) == 1


def test_an_agent_can_only_report(buses):
    """The broker refuses the call: no conductor sees it."""
    with pytest.raises(messaging.MessageDeliveryFailure, match='ACCESS_REFUSED'):
        buses['agent'].conductor(CALLER, timeout=20).bind(wishes=[])
    with pytest.raises(messaging.RemoteError, match='NoSuchMethod'):
        buses['agent'].receiver(CALLER, timeout=20).bind(wishes=[])


def test_the_api_reports_no_host(buses):
    with pytest.raises(messaging.MessageDeliveryFailure, match='ACCESS_REFUSED'):
        buses['api'].receiver(CALLER, timeout=20).report()


def publish(channel, exchange, key):
    channel.basic_publish(amqp.Message('{}'), exchange=exchange, routing_key=key)
    # The broker answers in order: a refusal comes before this.
    channel.basic_qos(0, 1, False)


def own_queue(channel, **arguments):
    name = f'reply_{uuid.uuid4().hex}'
    channel.queue_declare(name, auto_delete=True, arguments=arguments)
    return name


ATTEMPTS = {
    'call': lambda c: publish(c, 'cyborg_lite', 'cyborg_lite.conductor'),
    'call by the queue': lambda c: publish(c, '', 'cyborg_lite.conductor'),
    'answer in place of a conductor': lambda c: publish(c, '', 'reply_of_the_api'),
    'call all': lambda c: publish(c, 'cyborg_lite.conductor_fanout', ''),
    'call an agent': lambda c: publish(c, 'cyborg_lite.agents', 'cyborg_lite.agent.node-2'),
    'take calls': lambda c: c.basic_consume('cyborg_lite.conductor'),
    'take reports': lambda c: c.basic_consume('cyborg_lite.reports'),
    'take calls of an agent': lambda c: c.queue_declare('cyborg_lite.agent.node-2'),
    'copy calls': lambda c: c.queue_bind(own_queue(c), 'cyborg_lite', '#'),
    'copy reports': lambda c: c.queue_bind(
        'cyborg_lite.agent', 'cyborg_lite.agents', 'cyborg_lite.reports'
    ),
    'pass on what expires': lambda c: own_queue(
        c,
        **{
            'x-dead-letter-exchange': 'cyborg_lite',
            'x-dead-letter-routing-key': 'cyborg_lite.conductor',
        },
    ),
    'delete the exchange': lambda c: c.exchange_delete('cyborg_lite'),
    'delete the queue': lambda c: c.queue_delete('cyborg_lite.conductor'),
    'empty the queue': lambda c: c.queue_purge('cyborg_lite.conductor'),
}


@pytest.mark.parametrize('attempt', ATTEMPTS)
def test_an_agent_without_our_code_is_refused(urls, attempt):
    url = urls['agent'].replace('rabbit://', 'amqp://')
    refused = pytest.raises(amqp.exceptions.AccessRefused)
    with kombu.Connection(url) as connection, refused:
        ATTEMPTS[attempt](connection.default_channel)

# SPDX-License-Identifier: Apache-2.0
"""A real Placement and Nova for the tests.

Servers use Nova's fake driver: it starts no machine, but it accepts accelerators.
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import sys

import sqlalchemy as sa

from tests.integration import cloud as cloud_
from tests.integration import process

#: The compute node. An agent that reports under this name has its providers below it.
HOST = 'node-1'
PLACEMENT = """
[placement_database]
connection = {placement}
sync_on_startup = true
"""
#: The minimum of processes, and immediate discovery of hosts.
NOVA = """
[DEFAULT]
host = {host}
compute_driver = fake.FakeDriver
periodic_fuzzy_delay = 0
state_path = {place}
transport_url = {bus}
[oslo_concurrency]
lock_path = {place}
[oslo_messaging_rabbit]
rabbit_quorum_queue = true
rabbit_transient_quorum_queue = true
[conductor]
workers = 1
[scheduler]
workers = 1
discover_hosts_in_cells_interval = 1
[vnc]
enabled = false
[glance]
endpoint_override = {edges}/image
"""
#: Another compute node: what differs from the first.
ANOTHER = """
[DEFAULT]
host = {host}
state_path = {place}
[oslo_concurrency]
lock_path = {place}
"""
#: for all but nova-compute, which must not know it
DATABASES = """
[api_database]
connection = {nova_api}
[database]
connection = {nova}
"""


def databases(first: str, *names: str) -> dict[str, str]:
    """Create databases beside this one; returns their URLs by name."""
    # PostgreSQL creates none in a transaction.
    engine = sa.create_engine(first, isolation_level='AUTOCOMMIT')
    with engine.connect() as connection:
        for name in names:
            connection.exec_driver_sql(f'CREATE DATABASE {name}')
    engine.dispose()
    url = engine.url
    return {n: url.set(database=n).render_as_string(hide_password=False) for n in names}


@contextlib.contextmanager
def placement(
    place: pathlib.Path, cloud: cloud_.Cloud, database: str
) -> collections.abc.Iterator[None]:
    """A Placement, in the catalogue.

    :param database: beside which its own is created.
    """
    place.mkdir()
    conf = PLACEMENT.format(**databases(database, 'placement'))
    (place / 'placement.conf').write_text(conf + cloud.section('keystone_authtoken'))
    server = process.application(
        'placement.wsgi.api', threads=8, log=place / 'log', OS_PLACEMENT_CONFIG_DIR=str(place)
    )
    with server as running:
        cloud.register('placement', running.ready[1])
        yield


@contextlib.contextmanager
def nova(
    place: pathlib.Path, cloud: cloud_.Cloud, database: str, bus: str, edges: str, cyborg: str
) -> collections.abc.Iterator[pathlib.Path]:
    """A Nova with one cell and one host, in the catalogue; gives the configuration of the host.

    :param database: beside which its own are created.
    :param edges: the URL below which are as much of Glance and of Neutron as it asks for.
    :param cyborg: what its configuration says of accelerators.
    """
    place.mkdir()
    conf, more = place / 'nova.conf', place / 'databases.conf'
    own = databases(database, 'nova_api', 'nova_cell0', 'nova')
    sections = [
        NOVA.format(host=HOST, place=place, bus=bus, edges=edges),
        cloud.section('neutron', endpoint_override=f'{edges}/network'),
        cloud.section('placement'),
        cloud.section('keystone_authtoken'),
        cyborg,
    ]
    conf.write_text(''.join(sections))
    more.write_text(DATABASES.format(**own))
    files = ['--config-file', conf, '--config-file', more]
    # The others run in threads by default.
    threads = {'OS_NOVA_DISABLE_EVENTLET_PATCHING': '1'}
    for words in (
        ['api_db', 'sync'],
        ['cell_v2', 'map_cell0', '--database_connection', own['nova_cell0']],
        ['db', 'sync'],
        ['cell_v2', 'create_cell', '--name', 'one'],
    ):
        process.run('nova-manage', *files, *words, **threads)
    conductor, scheduler, compute = (
        process.serving(
            *(f'nova-{name}', *(files[:2] if name == 'compute' else files)),
            ready=f'Starting {name} node',
            log=place / name,
        )
        for name in ('conductor', 'scheduler', 'compute')
    )
    paste = pathlib.Path(sys.prefix, 'etc', 'nova', 'api-paste.ini')
    api = process.application(
        'nova.wsgi.osapi_compute',
        threads=8,
        log=place / 'api',
        OS_NOVA_CONFIG_FILES=f'{paste};{conf};{more}',
    )
    with contextlib.ExitStack() as stack:
        running = process.enter(stack, api, conductor)
        cloud.register('compute', f'{running[0].ready[1]}/v2.1')
        # It asks the conductor, and would wait for ten seconds before it asks again.
        running += process.enter(stack, compute, scheduler)
        yield conf
        # They stop slowly: stop them at the same time.
        for server in running:
            server.process.terminate()


def another(
    place: pathlib.Path, conf: pathlib.Path, host: str
) -> contextlib.AbstractContextManager[process.Server]:
    """A nova-compute on another host.

    :param conf: the configuration of the first host.
    """
    place.mkdir()
    own = place / 'nova.conf'
    own.write_text(ANOTHER.format(host=host, place=place))
    return process.serving(
        *('nova-compute', '--config-file', conf, '--config-file', own),
        ready='Starting compute node',
        log=place / 'compute',
    )

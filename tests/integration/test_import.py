# SPDX-License-Identifier: Apache-2.0
"""Import a database that OpenStack Cyborg itself created and filled."""

import json
import pathlib

import pytest
import requests

from tests.integration import conftest
from tests.integration import process
from tests.integration import servers


@pytest.fixture(scope='module')
def cyborg():
    """The directory of the commands of OpenStack Cyborg."""
    return process.environment('cyborg', 'openstack-cyborg==17.0.0', 'pymysql')


def fill(cyborg, place, url, command):
    """Make and fill a database of upstream; returns its content."""
    conf = place / 'cyborg.conf'
    conf.write_text(f'[DEFAULT]\nhost = {conftest.HOST}\n[database]\nconnection = {url}\n')
    process.run(cyborg / 'cyborg-dbsync', '--config-file', conf, command)
    script = pathlib.Path(__file__).with_name('fill_cyborg.py')
    told = process.run(cyborg / 'python', script, '--config-file', conf).stdout
    return json.loads(told.splitlines()[-1])


def import_(place, url, source):
    conf = place / 'cyborg-lite.conf'
    conf.write_text(f'[database]\nconnection = {url}\n')
    process.run('cyborg-lite-dbsync', '--config-file', conf, 'upgrade')
    done = process.run('cyborg-lite-dbsync', '--config-file', conf, 'import', '--from', source)
    table, notes = done.stdout.split('\n+')[:-1], done.stdout.rpartition('+\n')[2]
    assert notes == ''
    return [line.strip('|').split() for line in ''.join(table).splitlines() if '|' in line]


def test_imported_rows_are_those_that_the_agent_reports(cyborg, tmp_path):
    """Upstream's schema on SQLite; then our service runs on the imported rows."""
    source = f'sqlite:///{tmp_path}/cyborg.sqlite'
    before = fill(cyborg, tmp_path, source, 'create_schema')
    place = tmp_path / 'up'
    (place / 'state').mkdir(parents=True)
    import_(tmp_path, f'sqlite:///{place}/state/cyborg_lite.described.sqlite', source)
    drivers = '[agent]\nenabled_drivers = fake\n[api]\nauth_strategy = noauth\n'
    with conftest.up(place, drivers) as service:

        def get(path):
            return requests.get(f'{service.url}/v2/{path}', timeout=60).json()

        assert [device['uuid'] for device in get('devices')['devices']] == before['devices']
        parts = get('deployables')['deployables']
        assert [part['rp_uuid'] for part in parts] == before['providers']
        assert parts[0]['num_accelerators'] == 16
        arqs = {
            arq['uuid']: [arq['state'], arq['instance_uuid'], arq['attach_handle_uuid']]
            for arq in get('accelerator_requests')['arqs']
        }
        assert arqs == before['arqs']
        assert sorted(state for state, *_ in arqs.values()) == ['Bound', 'Bound', 'Initial']


def test_upstreams_migrations(cyborg, tmp_path):
    """Upstream's migrations run on MariaDB; the import target is PostgreSQL."""
    with (
        servers.mariadb(tmp_path / 'mariadb') as source,
        servers.postgresql(tmp_path / 'postgresql') as target,
    ):
        fill(cyborg, tmp_path, source, 'upgrade')
        assert ['extended_accelerator_requests', '|', '3', '|', '3'] in import_(
            tmp_path, target, source
        )

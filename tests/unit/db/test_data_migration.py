# SPDX-License-Identifier: Apache-2.0
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.db import data_migration


def example(name='intervals', migrate=lambda host: setattr(host, 'interval', 20), **more):
    """Hosts of a release that wrote no interval."""
    pending = sa.select(model.Host).where(model.Host.interval == more.get('old', 0))
    return data_migration.DataMigration(name, pending, migrate)


@pytest.fixture
def hosts(database):
    """A hundred and twenty old hosts, and a new one."""
    with database.writer() as session:
        for number in range(120):
            session.add(model.Host(name=f'old-{number}', boot_id='', interval=0))
        session.add(model.Host(name='new', boot_id='', interval=7))


@pytest.fixture
def migrations(monkeypatch):
    return lambda *made: monkeypatch.setattr(data_migration, 'MIGRATIONS', made)


def intervals(database):
    with database.reader() as session:
        return sorted(session.scalars(sa.select(model.Host.interval)))


def remaining(database):
    with database.reader() as session:
        return data_migration.remaining(session)


def test_none_remain(database, hosts):
    assert data_migration.run(database) == {}
    assert remaining(database) == {}


def test_all(database, hosts, migrations):
    migrations(example())
    assert remaining(database) == {'intervals': 120}
    progress = data_migration.run(database)['intervals']
    assert (progress.found, progress.done, progress.error) == (120, 120, '')
    assert intervals(database) == [7] + [20] * 120
    assert remaining(database) == {}
    progress = data_migration.run(database)['intervals']
    assert (progress.found, progress.done) == (0, 0)


def test_some(database, hosts, migrations):
    migrations(example())
    for before, done in ((120, 70), (50, 50)):
        progress = data_migration.run(database, 70)['intervals']
        assert (progress.found, progress.done) == (before, done)


def test_most_is_of_all_together(database, hosts, migrations):
    migrations(example(), example('sevens', old=7))
    progress = data_migration.run(database, 120)
    assert (progress['intervals'].done, progress['sevens'].done) == (120, 0)
    progress = data_migration.run(database, 120)
    assert (progress['sevens'].found, progress['sevens'].done) == (1, 1)


def test_one_that_fails_does_not_stop_the_others(database, hosts, migrations):
    def fail(host):
        if host.name == 'old-60':
            raise ValueError(host.name)
        host.interval = 20

    migrations(example(migrate=fail), example('sevens', old=7))
    progress = data_migration.run(database)
    # The batch with the bad row is undone, and so is none before it.
    assert (progress['intervals'].done, progress['intervals'].error) == (50, 'ValueError: old-60')
    assert progress['sevens'].done == 1
    assert remaining(database) == {'intervals': 70}


def test_one_that_changes_nothing_ends(database, hosts, migrations):
    migrations(example(migrate=lambda host: None))
    assert data_migration.run(database)['intervals'].done == 120
    assert remaining(database) == {'intervals': 120}

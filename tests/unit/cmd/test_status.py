# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.cmd import status
from cyborg_lite.db import data_migration
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests.unit.cmd import test_dbsync


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run_(connection=f'sqlite:///{tmp_path}/a.sqlite'):
        (tmp_path / 'a.conf').write_text(
            f'[database]\nconnection = {connection}\nmax_retries = 0\n'
        )
        arguments = ['--config-file', str(tmp_path / 'a.conf'), 'upgrade', 'check']
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite-status', *arguments])
        return status.main(), capsys.readouterr().out

    return run_


@pytest.fixture
def database(tmp_path):
    url = f'sqlite:///{tmp_path}/a.sqlite'
    made = engine.Database(options.load(files=[], database__connection=url))
    migration.upgrade(made.engine)
    yield made
    made.close()


def test_database_of_this_release(run, database):
    code, said = run()
    assert code == 0
    assert said.count('Result: Success') == 3


def test_rows_of_an_older_release(run, database, monkeypatch):
    pending = sa.select(model.Host).where(model.Host.interval == 0)
    made = data_migration.DataMigration('intervals', pending, lambda host: None)
    monkeypatch.setattr(data_migration, 'MIGRATIONS', (made,))
    with database.writer() as session:
        session.add(model.Host(name='a', boot_id='', interval=0))
    code, said = run()
    assert code == 1
    said = ' '.join(said.replace('|', ' ').split())
    assert 'Rows of an older release remain (intervals: 1): run' in said
    assert 'online_data_migrations' in said


def test_database_that_is_older(run, tmp_path):
    (tmp_path / 'a.sqlite').touch()
    code, said = run()
    assert code == 1
    assert 'Result: Warning' in said
    assert 'dbsync upgrade' in ' '.join(said.replace('|', ' ').split())


@pytest.mark.parametrize('url', [*test_dbsync.BAD_URLS, 'sqlite:////'])
def test_a_url_that_cannot_be_used(run, url):
    code, said = run(url)
    assert (code, said.count('Result: Failure')) == (2, 1)


def test_a_file_that_does_not_exist_is_not_created(run, tmp_path):
    code, said = run(f'sqlite:///{tmp_path}/b.sqlite')
    assert (code, said.count('Result: Failure')) == (2, 1)
    assert 'connection: there is no file /' in ' '.join(said.replace('|', ' ').split())
    assert not (tmp_path / 'b.sqlite').exists()


def test_database_that_cannot_be_read(run):
    code, said = run('sqlite:////nowhere/at/all.sqlite')
    assert code == 2
    assert 'Result: Failure' in said

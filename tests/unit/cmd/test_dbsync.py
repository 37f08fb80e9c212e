# SPDX-License-Identifier: Apache-2.0
import pathlib
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.cmd import dbsync
from cyborg_lite.db import data_migration
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests.unit.db import cyborg as cyborg_


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run_(*arguments, connection=f'sqlite:///{tmp_path}/a.sqlite'):
        (tmp_path / 'a.conf').write_text(
            f'[database]\nconnection = {connection}\nmax_retries = 0\n'
        )
        file = ['--config-file', str(tmp_path / 'a.conf')]
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite-dbsync', *file, *arguments])
        status = dbsync.main()
        said = capsys.readouterr()
        return status, said.out.strip(), said.err

    return run_


def test_upgrade_and_version(run, tmp_path):
    missing = f'cyborg-lite-dbsync: [database] connection: there is no file {tmp_path}/a.sqlite\n'
    assert run('version') == (1, '', missing)
    assert not (tmp_path / 'a.sqlite').exists()
    (tmp_path / 'a.sqlite').touch()
    assert run('version')[:2] == (0, 'empty')
    assert run('upgrade')[:2] == (0, migration.head())
    assert run('upgrade')[:2] == (0, migration.head())
    assert run('version')[:2] == (0, migration.head())


def test_a_directory_of_files(run, tmp_path):
    (tmp_path / 'more').mkdir()
    url = f'sqlite:///{tmp_path}/b.sqlite'
    (tmp_path / 'more' / 'b.conf').write_text(f'[database]\nconnection = {url}\n')
    assert run('--config-dir', str(tmp_path / 'more'), 'upgrade')[0] == 0
    assert (tmp_path / 'b.sqlite').exists()
    assert not (tmp_path / 'a.sqlite').exists()


def test_debug_shows_each_step_and_the_traceback(tmp_path):
    """In a process of its own: it sets up the log."""
    file = tmp_path / 'a.conf'
    command = pathlib.Path(sys.executable).with_name('cyborg-lite-dbsync')

    def said(place, *words):
        file.write_text(f'[database]\nconnection = sqlite:///{place}\nmax_retries = 0\n')
        run_ = [command, '--config-file', file, *words, 'upgrade']
        done = subprocess.run(run_, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert 'Running upgrade' in said(tmp_path / 'a.sqlite', '--debug')
    assert 'Traceback' in said('/nowhere/at/all.sqlite', '--debug')
    assert 'Traceback' not in said('/nowhere/at/all.sqlite')


def test_database_that_cannot_be_reached(run):
    status, said, error = run('upgrade', connection='sqlite:////nowhere/at/all.sqlite')
    assert (status, said) == (1, '')
    assert error.startswith('cyborg-lite-dbsync: ')
    assert 'Traceback' not in error


@pytest.fixture
def old_hosts(run, tmp_path, monkeypatch):
    """Three rows of an older release, and the migration of them."""
    run('upgrade')
    url = f'sqlite:///{tmp_path}/a.sqlite'
    database = engine.Database(options.load(files=[], database__connection=url))
    with database.writer() as session:
        session.add_all(model.Host(name=name, boot_id='', interval=0) for name in 'abc')
    database.close()
    pending = sa.select(model.Host).where(model.Host.interval == 0)

    def migrate(host):
        if host.name == 'bad':
            raise ValueError('no interval')
        host.interval = 20

    made = data_migration.DataMigration('intervals', pending, migrate)
    monkeypatch.setattr(data_migration, 'MIGRATIONS', (made,))


def cells(said):
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in said.splitlines()][3:-1]


#: URLs that cannot be used, and a word of what is said of each.
BAD_URLS = {
    'mysql+pymysql://root@127.0.0.1:notaport/x': 'expected a URL such as',
    'sqlite:////nowhere/a?timeout=long': 'its driver says ValueError: could not convert',
    'foo://x': 'expected a URL such as',
    'postgresql+nodriver://a/x': 'expected a URL such as',
    '': 'connection is not set',
}


@pytest.mark.parametrize(('url', 'said'), BAD_URLS.items())
def test_a_url_that_cannot_be_used(run, url, said):
    status, out, errors = run('upgrade', connection=url)
    assert (status, out) == (1, '')
    assert said in errors
    assert errors.count('\n') == 1


@pytest.mark.parametrize(
    ('table', 'said'),
    [
        ('(version_num TEXT)', 'has a row without a revision'),
        ('(version INT)', 'no such column: version_num'),
        ("(version_num TEXT DEFAULT 'ffffffffffff')", 'this release does not know'),
    ],
)
def test_a_revision_that_cannot_be_read(tmp_path, table, said):
    """As a process: in this one the tests have set up the log."""
    with sqlite3.connect(tmp_path / 'a.sqlite') as made:
        made.execute(f'CREATE TABLE alembic_version {table}')
        made.execute('INSERT INTO alembic_version DEFAULT VALUES')
    (tmp_path / 'a.conf').write_text(f'[database]\nconnection = sqlite:///{tmp_path}/a.sqlite\n')
    for command in ('dbsync --config-file {} upgrade', 'status --config-file {} upgrade check'):
        words = command.format(tmp_path / 'a.conf').split()
        program = pathlib.Path(sys.executable).with_name(f'cyborg-lite-{words[0]}')
        found = subprocess.run([program, *words[1:]], capture_output=True, text=True)
        assert 'Traceback' not in found.stderr
        assert found.stderr.count('\n') <= 1
        assert said in found.stderr or 'status' in command


def test_a_file_of_options_that_is_a_directory(run, tmp_path, monkeypatch, capsys):
    words = ['cyborg-lite-dbsync', '--config-file', str(tmp_path), 'version']
    monkeypatch.setattr(sys, 'argv', words)
    assert dbsync.main() == 1
    assert capsys.readouterr().err.endswith(f'{tmp_path}: Is a directory\n')
    (tmp_path / 'a').write_bytes(b'\xff')
    monkeypatch.setattr(sys, 'argv', ['cyborg-lite-dbsync', f'@{tmp_path}/a'])
    with pytest.raises(SystemExit):
        dbsync.main()
    assert 'a file of arguments is not UTF-8' in capsys.readouterr().err


def test_online_data_migrations(run, old_hosts):
    status, said, _ = run('online_data_migrations', '--max-count', '2')
    assert (status, cells(said)) == (1, [['intervals', '3', '2']])
    status, said, _ = run('online_data_migrations', '--max-count', '2')
    assert (status, cells(said)) == (0, [['intervals', '1', '1']])
    status, said, _ = run('online_data_migrations')
    assert (status, cells(said)) == (0, [['intervals', '0', '0']])


def test_online_data_migrations_that_fail(run, old_hosts, tmp_path):
    with sqlite3.connect(tmp_path / 'a.sqlite') as connection:
        connection.execute("UPDATE hosts SET name = 'bad' WHERE name = 'b'")
    status, said, error = run('online_data_migrations')
    assert (status, cells(said)) == (2, [['intervals', '3', '0']])
    assert 'intervals: ValueError: no interval' in error


def test_import(run, tmp_path):
    cyborg = cyborg_.Cyborg(f'sqlite:///{tmp_path}/cyborg.sqlite')
    card, profile = cyborg.gpu(), cyborg.profile()
    bound, second = cyborg.bound(profile, card), cyborg.bound(profile, card)
    cyborg.close()
    status, _, error = run('import', '--from', cyborg.url)
    assert (status, 'cyborg-lite-dbsync upgrade first' in error) == (1, True)
    run('upgrade')
    status, said, error = run('import', '--from', cyborg.url)
    assert (status, error) == (0, '')
    *table, note = said.splitlines()
    assert ['extended_accelerator_requests', '2', '2'] in cells('\n'.join(table))
    assert note.startswith(f'ARQ {second.uuid} was Bound and is BindFailed: ARQ {bound.uuid}')
    status, said, error = run('import', '--from', cyborg.url)
    assert (status, said) == (1, '')
    assert 'create an empty one' in error


def test_import_by_a_file_of_arguments(run, tmp_path):
    """The list of processes does not show the password."""
    run('upgrade')
    cyborg_.Cyborg(f'sqlite:///{tmp_path}/cyborg.sqlite').close()
    (tmp_path / 'arguments').write_text(f'--from\nsqlite:///{tmp_path}/cyborg.sqlite\n')
    assert run('import', f'@{tmp_path}/arguments')[0] == 0


@pytest.mark.parametrize(
    'url',
    [
        'no url: SECRET',
        'nothing://cyborg:SECRET@127.0.0.1/cyborg',
        'mysql+nothing://cyborg:SECRET@127.0.0.1/cyborg',
        'mysql+pymysql://cyborg:SECRET@127.0.0.1:1/cyborg',
        'postgresql://cyborg:SECRET@127.0.0.1:1/cyborg',
        'sqlite:////nowhere/at/all.sqlite',
        'sqlite://',
    ],
)
def test_import_of_what_cannot_be_read(run, url):
    run('upgrade')
    status, said, error = run('import', '--from', url)
    assert (status, said) == (1, '')
    assert error.startswith('cyborg-lite-dbsync: ')
    assert 'Traceback' not in error
    assert 'SECRET' not in error


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['downgrade'],
        ['revision'],
        ['import'],
        ['online_data_migrations', '--max-count', '0'],
        ['online_data_migrations', '--max-count', 'x'],
    ],
)
def test_misuse(run, arguments):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2

# SPDX-License-Identifier: Apache-2.0
import contextlib
import sqlite3
import ssl
import threading
import types

from oslo_db import exception as db_exception
from oslo_db.sqlalchemy import enginefacade
from oslo_db.sqlalchemy import exc_filters
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import engine


@pytest.fixture
def host(database):
    with database.writer() as session:
        session.add(model.Host(name='host-1', boot_id='boot-1'))


def sequence(session):
    return session.scalar(sa.select(model.Host.sequence))


def test_writers_wait_for_each_other(database, conf, host):
    """Each reads and writes: without waiting, one would read before the other has written."""
    databases = [database, engine.Database(conf)]
    barrier, raised = threading.Barrier(16), []

    def increment(number):
        barrier.wait()
        try:
            with databases[number % 2].writer() as session:
                # SQLite locks all when it begins, whatever it is asked for.
                seen = session.scalar(sa.select(model.Host.sequence).with_for_update())
                session.execute(sa.update(model.Host).values(sequence=seen + 1))
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=increment, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised
    with database.reader() as session:
        assert sequence(session) == 16
    databases[1].close()


def test_readers_do_not_wait_for_a_writer(database, host):
    with database.writer() as writing:
        writing.execute(sa.update(model.Host).values(sequence=7))
        with database.reader() as reading:
            assert sequence(reading) == 0
    with database.reader() as reading:
        assert sequence(reading) == 7


def test_writer_undoes_what_fails(database, host):
    with pytest.raises(ValueError), database.writer() as session:
        session.execute(sa.update(model.Host).values(sequence=7))
        raise ValueError
    with database.reader() as session:
        assert sequence(session) == 0


def test_transactions_share_a_connection(database):
    connected = []
    event.listen(database.engine, 'connect', lambda *_: connected.append(1))
    for transaction in (database.reader, database.writer) * 3:
        with transaction() as session:
            session.execute(sa.select(1))
    assert len(connected) <= 1


def test_links_are_checked(database):
    """SQLite checks foreign keys only if it is told to."""
    with pytest.raises(db_exception.DBReferenceError), database.writer() as session:
        session.execute(
            sa.insert(model.Deployable).values(
                name='a', driver_name='fake', rp_uuid='b', device_id=99
            )
        )


def test_sqlite_lets_readers_and_a_writer_work_side_by_side(database):
    if database.engine.dialect.name != 'sqlite':
        pytest.skip('this is about SQLite alone')
    with database.reader() as session:
        assert session.scalar(sa.text('PRAGMA journal_mode')) == 'wal'


def test_several_processes_open_a_new_sqlite_at_once(monkeypatch, tmp_path):
    """One of them writes already: SQLite does not wait for it by itself."""
    url = f'sqlite:///{tmp_path}/new.sqlite'
    waits = []
    with contextlib.closing(sqlite3.connect(tmp_path / 'new.sqlite')) as other:
        other.execute('BEGIN IMMEDIATE')

        def wait(seconds):
            waits.append(seconds)
            other.rollback()

        monkeypatch.setattr(engine.time, 'sleep', wait)
        opened = engine.Database(options.load(files=[], database__connection=url))
        with opened.reader() as session:
            assert session.scalar(sa.text('PRAGMA journal_mode')) == 'wal'
        opened.close()
    assert len(waits) == 1


def test_a_sqlite_that_stays_locked_is_away(monkeypatch, tmp_path):
    url = f'sqlite:///{tmp_path}/new.sqlite'
    monkeypatch.setattr(engine, 'PATIENCE', 0)
    with contextlib.closing(sqlite3.connect(tmp_path / 'new.sqlite')) as other:
        other.execute('BEGIN IMMEDIATE')
        with pytest.raises(exception.DatabaseAway, match='locked'):
            engine.Database(options.load(files=[], database__connection=url))


def test_sqlite_keeps_committed_changes(database):
    """Though the power fails: FULL is 2."""
    if database.engine.dialect.name != 'sqlite':
        pytest.skip('this is about SQLite alone')
    for transaction in (database.reader, database.writer):
        with transaction() as session:
            assert session.scalar(sa.text('PRAGMA synchronous')) == 2


def translated(dialect, kind, said):
    """What an error of this kind, with which a database says this, is turned into."""
    error = kind(None, None, Exception(said))
    failed = types.SimpleNamespace(
        dialect=types.SimpleNamespace(name=dialect),
        sqlalchemy_exception=error,
        original_exception=error.orig,
        connection=None,
        is_disconnect=False,
    )
    return exc_filters.handler(failed)


@pytest.mark.parametrize(
    ('dialect', 'kind', 'said'),
    [
        ('sqlite', sa.exc.OperationalError, 'database or disk is full'),
        ('sqlite', sa.exc.OperationalError, 'attempt to write a readonly database'),
        ('sqlite', sa.exc.OperationalError, 'database is locked'),
        (
            'postgresql',
            sa.exc.OperationalError,
            'canceling statement due to conflict with recovery',
        ),
        ('mysql', sa.exc.OperationalError, "(1040, 'Too many connections')"),
        ('mysql', sa.exc.OperationalError, "(1053, 'Server shutdown in progress')"),
        ('mysql', sa.exc.OperationalError, "(1203, 'a already has max_user_connections')"),
        ('mysql', sa.exc.OperationalError, "(1226, 'a has exceeded the max_user_connections')"),
        ('postgresql', sa.exc.InternalError, 'cannot execute UPDATE in a read-only transaction'),
        ('postgresql', sa.exc.OperationalError, 'could not extend: No space left on device'),
        ('mysql', sa.exc.InternalError, "(1290, 'The server runs with the --read-only option')"),
        ('mysql', sa.exc.OperationalError, "(1114, 'The table hosts is full')"),
        ('mysql', sa.exc.DatabaseError, "(1026, 'Error writing file hosts (28)')"),
    ],
)
def test_database_that_cannot_be_used_is_known_as_such(dialect, kind, said):
    with pytest.raises(exception.DatabaseAway):
        translated(dialect, kind, said)


@pytest.mark.parametrize(
    'said',
    [
        'connection to server at "127.0.0.1", port 5432 failed: Connection refused\n\tIs it up?',
        # It goes while a new connection is prepared.
        'consuming input failed: server closed the connection unexpectedly\n\tThis probably means',
        'terminating connection due to administrator command',
        'the connection is lost',
        'connection to server at "::1", port 5432 failed: FATAL:  the database is starting up',
        'could not connect to server: Connection refused',
        'connection failed: connection to server at "::1", port 5432 failed: Connection refused',
        'connection timeout expired',
    ],
)
def test_postgresql_that_cannot_be_reached_is_known_as_such(said):
    """By what libpq says, which changed with PostgreSQL 14: else nobody would try again."""
    error = translated('postgresql', sa.exc.OperationalError, said)
    assert isinstance(error, db_exception.DBConnectionError)


@pytest.mark.parametrize(
    ('lines', 'size'),
    [
        ('', 64),
        ('executor_thread_pool_size = 100', 100),
        ('executor_thread_pool_size = 100\n[database]\nmax_pool_size = 3', 3),
    ],
)
def test_each_thread_has_a_connection_of_the_pool(tmp_path, monkeypatch, lines, size):
    """What is opened beside the pool is closed after each transaction."""
    file = tmp_path / 'conf'
    file.write_text(f'[DEFAULT]\n{lines}\n')
    conf = options.load(files=[str(file)], database__connection=f'sqlite:///{tmp_path}/database')
    configure, asked = enginefacade._TransactionContextManager.configure, []

    def see(self, **settings):
        asked.append(settings['max_pool_size'])
        configure(self, **settings)

    monkeypatch.setattr(enginefacade._TransactionContextManager, 'configure', see)
    engine.Database(conf).close()
    assert asked == [size]


def test_as_many_threads_as_before_open_no_connection_more(database, server):
    opened = []
    sa.event.listen(database.engine, 'connect', lambda *_: opened.append(1))
    together = threading.Barrier(20)

    def read():
        for _ in range(5):
            with database.reader() as session:
                session.execute(sa.select(1))
                together.wait(20)

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) <= 20


def test_a_transaction_sees_what_is_committed_whatever_the_server_says(database_url):
    """Its operator may have made another isolation the default."""
    url = sa.make_url(database_url)
    asked = {
        'postgresql': ({'options': '-c default_transaction_isolation=serializable'}, 'SHOW '),
        'mysql': ({'init_command': 'SET SESSION tx_isolation = "SERIALIZABLE"'}, 'SELECT @@'),
    }
    if url.get_backend_name() not in asked:
        pytest.skip('SQLite has no other')
    query, ask = asked[url.get_backend_name()]
    name = 'transaction_isolation' if ask == 'SHOW ' else 'tx_isolation'
    text = url.update_query_dict(query).render_as_string(hide_password=False)
    database = engine.Database(options.load(files=[], database__connection=text))
    with database.reader() as session:
        level = session.scalar(sa.text(f'{ask}{name}'))
    assert level.lower().replace('-', ' ') == 'read committed'
    database.close()


def test_connections_share_what_they_need_for_tls(conf, monkeypatch):
    """PyMySQL read all certificate authorities of the machine for each."""
    made, create = [], ssl.create_default_context
    monkeypatch.setattr(ssl, 'create_default_context', lambda **kw: made.append(1) or create(**kw))
    database = engine.Database(conf)
    opened = [database.engine.connect() for _ in range(5)]
    for each in opened:
        each.close()
    # oslo.db tries the first before we know of it.
    assert len(made) <= 2
    database.close()

# SPDX-License-Identifier: Apache-2.0
"""oslo.db's engine facade: a reader and a writer, one transaction each."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sqlite3
import time
import typing
import uuid

from oslo_config import cfg
from oslo_db import exception as db_exception
from oslo_db.sqlalchemy import enginefacade
from oslo_db.sqlalchemy import exc_filters
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import shims

#: The errors of a database that cannot be used now, with the reason in words.
AWAY: dict[type[Exception], str] = {
    db_exception.DBConnectionError: 'The database cannot be reached',
    db_exception.CantStartEngineError: 'The database cannot be opened',
    db_exception.DBNonExistentDatabase: 'The database cannot be opened',
    db_exception.DBNonExistentTable: 'The database has not the tables it should have',
    sa.exc.TimeoutError: 'The database has no connection to spare',
    # The server went while SQLAlchemy asked its first connection what server it is.
    sa.exc.ResourceClosedError: 'The database cannot be reached',
}
#: How long a transaction may do nothing, in seconds: one whose process is stopped, or whose machine
#: is gone, must not keep what it has locked.
IDLE = 30
#: How long SQLite waits for another process that writes, in seconds.
PATIENCE = 30


# oslo.db knows how libpq said it before PostgreSQL 14; the others are what psycopg 3 says,
# the last one of a server that goes while a new connection is prepared.
@exc_filters.filters(
    'postgresql',
    sa.exc.OperationalError,
    r'.*(connection to server .* failed: |connection timeout expired'
    r'|server closed the connection unexpectedly|the connection is (lost|closed)'
    r'|terminating connection due to )',
)
def _raise_cannot_connect(error: sa.exc.OperationalError, *_: object) -> typing.NoReturn:
    """A database that cannot be reached is one: what can wait for it does, others say so."""
    raise db_exception.DBConnectionError(error)


# What each engine says when it can be reached and cannot be used: a disk that is full or gone, a
# server that is read-only, a lock that was not to be had, too many connections, a server that goes
# down, a standby that had to end what was read.
@exc_filters.filters(
    'sqlite',
    sa.exc.OperationalError,
    r'.*(disk I/O error|database or disk is full|unable to open database file'
    r'|attempt to write a readonly database|database is locked)',
)
@exc_filters.filters(
    'postgresql',
    sa.exc.DatabaseError,
    r'(?s).*(No space left on device|in a read-only transaction|conflict with recovery)',
)
@exc_filters.filters(
    'mysql',
    sa.exc.DatabaseError,
    r'(?s).*\((?:3|1020|1021|1026|1040|1053|1114|1203|1226|1290|1836), .*'
    r'(No space left on device|is full|Disk full|read.only|Error writing file'
    r'|Too many connections|shutdown in progress|max_user_connections)',
)
def _raise_cannot_use(_error: object, match: re.Match[str], *_: object) -> typing.NoReturn:
    raise exception.DatabaseAway(reason=f'it says "{match[1]}"')


@enginefacade.transaction_context_provider
class _Scope:
    """What the facade hangs one transaction on."""


class Database:
    """The database of ``[database] connection``."""

    def __init__(self, conf: cfg.ConfigOpts, wait: bool = True) -> None:
        """Open it.

        :param wait: whether to wait for a server that is away, as long as [database] max_retries
            says; otherwise what needs it fails until it is there.
        :raises oslo_db.exception.DBConnectionError: when the wait was in vain.
        """
        self._facade = enginefacade.transaction_context()
        # Threads take turns by themselves: by default each one sleeps when it gives back a
        # connection.
        settings = {'sqlite_fk': True, 'thread_checkin': False, **dict(conf.database)}
        if not wait:
            settings['max_retries'] = 0
        found = conf.get_location('max_pool_size', 'database')
        if found is None or found.location is cfg.Locations.opt_default:
            # What is opened beside the pool is closed after each transaction.
            settings['max_pool_size'] = shims.threads(conf)
        self._facade.configure(**settings)
        self.engine: sa.Engine = self._facade.writer.get_engine()
        if self.engine.dialect.name == 'sqlite':
            shims.pool_sqlite(self.engine, shims.threads(conf))
        if prepare := _PREPARE.get(self.engine.dialect.name):
            prepare(self.engine)
            # oslo.db has tried a connection before it knew of this.
            self.engine.dispose()
        self._open = self._keep_open()

    def _keep_open(self) -> sa.Connection | None:
        """Keep one connection to SQLite open.

        Closing the last connection deletes the write-ahead log, and the next one creates it: on a
        full disk this would fail, and nothing could be read.
        """
        if self.engine.dialect.name != 'sqlite':
            return None
        connection = self.engine.connect()
        connection.exec_driver_sql('SELECT count(*) FROM sqlite_master')
        connection.rollback()
        return connection

    @contextlib.contextmanager
    def reader(self) -> typing.Iterator[orm.Session]:
        with self._facade.reader.using(_Scope()) as session:
            yield session

    @contextlib.contextmanager
    def writer(self) -> typing.Iterator[orm.Session]:
        """A session that is committed at the end, and rolled back if the block raises."""
        with self._facade.writer.using(_Scope()) as session:
            session.connection(execution_options={'writes': True})
            yield session

    def probe(self) -> None:
        """Write something and commit it, so that it leaves nothing behind.

        A transaction that is rolled back does not need to write, and neither does an UPDATE that
        changes nothing.

        :raises cyborg_lite.exception.DatabaseAway: when that cannot be done.
        """
        file = self.engine.url.database if self.engine.dialect.name == 'sqlite' else None
        if file and not os.path.exists(file):
            # SQLite goes on to write into what no process will ever open again.
            raise exception.DatabaseAway(reason='its file is gone')
        # By numbers that no row has: a server would count on, and come to an end of them.
        row = {'id': -1 - secrets.randbelow(2**31), 'uuid': str(uuid.uuid4()), 'groups': []}
        row['name'] = f'probe {row["uuid"]}'
        with self.writer() as session:
            session.execute(sa.insert(model.DeviceProfile).values(row))
            session.execute(
                sa.delete(model.DeviceProfile).where(model.DeviceProfile.id == row['id'])
            )

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self.engine.dispose()


def has_one_writer(bind: sa.Engine | sa.Connection) -> bool:
    """Whether a transaction that writes waits until no other one does: then it has locked all."""
    return bind.dialect.name == 'sqlite'


class Savepoint:
    """A point in a transaction over SQLite to which it can return.

    It is set on the connection itself: SQLAlchemy takes ten times as long for its own.
    """

    def __init__(self, session: orm.Session) -> None:
        connection: typing.Any = session.connection().connection.dbapi_connection
        self._connection = connection
        self._connection.execute('SAVEPOINT piece')

    def release(self) -> None:
        """Go on from here.

        :raises cyborg_lite.exception.DatabaseAway: when SQLite has undone the whole transaction.
        """
        try:
            self._connection.execute('RELEASE piece')
        except sqlite3.OperationalError as error:
            raise exception.DatabaseAway(reason=f'it says "{error}"') from error

    def undo(self) -> bool:
        """Undo what came after it; False if SQLite has undone the whole transaction before."""
        if not self._connection.in_transaction:
            return False
        self._connection.execute('ROLLBACK TO piece')
        self._connection.execute('RELEASE piece')
        return True


def _prepare_mysql(engine: sa.Engine) -> None:
    """Let a transaction see what others have committed, and lock no row that is not there.

    With MariaDB's default, two transactions that add different hosts or profiles run
    into a deadlock.
    """

    if engine.dialect.driver == 'pymysql':
        _share_tls(engine)

    @event.listens_for(engine, 'connect')
    def connect(connection: typing.Any, _record: typing.Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute('SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED')
            if 'MariaDB' in connection.get_server_info():
                # MySQL has nothing like it.
                cursor.execute(f'SET SESSION idle_transaction_timeout = {IDLE}')


def _share_tls(engine: sa.Engine) -> None:
    dbapi: typing.Any = engine.dialect.dbapi
    kind = type('Connection', (shims.SharedTls, dbapi.connections.Connection), {})

    @event.listens_for(engine, 'do_connect')
    def connect(
        _dialect: object, _record: object, arguments: typing.Any, named: typing.Any
    ) -> object:
        return kind(*arguments, **named)


def _prepare_postgresql(engine: sa.Engine) -> None:
    """Let a transaction see what others have committed, and let none sleep.

    The level is the server's default, which its operator may have changed: with another one a lock
    would be waited for and stale rows read under it.
    """

    @event.listens_for(engine, 'connect')
    def connect(connection: typing.Any, _record: typing.Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED'
            )
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE}s'")
        connection.commit()


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Let readers and one writer work side by side, and let writers wait for each other."""
    file = engine.url.database or ''

    @event.listens_for(engine, 'connect')
    def connect(connection: typing.Any, record: typing.Any) -> None:
        connection.execute(f'PRAGMA busy_timeout = {PATIENCE * 1000}')
        _log_ahead(connection)
        # What was answered is there after a power loss, too.
        connection.execute('PRAGMA synchronous = FULL')
        record.info['file'] = _identity(file)

    @event.listens_for(engine, 'checkout')
    def checkout(_connection: object, record: typing.Any, _proxy: object) -> None:
        # A connection goes on to read and to write a file that was replaced, or moved away.
        if record.info.get('file') != _identity(file):
            raise sa.exc.DisconnectionError

    # oslo.db begins transactions with a plain BEGIN.
    @event.listens_for(engine, 'before_cursor_execute', retval=True)
    def execute(
        connection: sa.Connection, _cursor: object, statement: str, values: object, *_: object
    ) -> tuple[str, object]:
        if statement == 'BEGIN' and connection.get_execution_options().get('writes'):
            # Take the write lock first: a transaction that reads, and then finds that another
            # one writes, could not wait for it but would fail.
            statement = 'BEGIN IMMEDIATE'
        return statement, values


def _log_ahead(connection: typing.Any) -> None:
    """Have SQLite write to a log first, as one of several processes that open a new file at once.

    For this lock SQLite does not wait as long as it waits for others: it says at once that the
    file is locked, where a wait could be for ever.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute('PRAGMA journal_mode = WAL')
            return
        except sqlite3.OperationalError as error:
            # The lower byte is the code; the others are the kind.
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _identity(file: str) -> tuple[int, int] | None:
    """Which file a path leads to now."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_PREPARE = {
    'sqlite': _prepare_sqlite,
    'mysql': _prepare_mysql,
    'postgresql': _prepare_postgresql,
}

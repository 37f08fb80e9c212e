# SPDX-License-Identifier: Apache-2.0
"""oslo.db's engine facade: a reader and a writer, one transaction each."""

from __future__ import annotations

import contextlib
import typing

from oslo_config import cfg
from oslo_db import exception as db_exception
from oslo_db.sqlalchemy import enginefacade
from oslo_db.sqlalchemy import exc_filters
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm

#: How long a transaction may do nothing, in seconds: one whose process is stopped, or whose machine
#: is gone, must not keep what it has locked.
IDLE = 30


# oslo.db knows how libpq said it before PostgreSQL 14.
@exc_filters.filters('postgresql', sa.exc.OperationalError, r'.*connection to server .* failed: ')
def _raise_cannot_connect(error: sa.exc.OperationalError, *_: object) -> typing.NoReturn:
    """A database that cannot be reached is one: what can wait for it does, others say so."""
    raise db_exception.DBConnectionError(error)


@enginefacade.transaction_context_provider
class _Scope:
    """What the facade hangs one transaction on."""


class Database:
    """The database of ``[database] connection``."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._facade = enginefacade.transaction_context()
        self._facade.configure(sqlite_fk=True, **dict(conf.database))
        self.engine: sa.Engine = self._facade.writer.get_engine()
        if prepare := _PREPARE.get(self.engine.dialect.name):
            prepare(self.engine)
            # oslo.db has tried a connection before it knew of this.
            self.engine.dispose()

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

    def close(self) -> None:
        self.engine.dispose()


def _prepare_mysql(engine: sa.Engine) -> None:
    """Let a transaction see what others have committed, and lock no row that is not there.

    PostgreSQL's default; by MariaDB's, two who add different hosts or profiles run into a
    deadlock.
    """

    @event.listens_for(engine, 'connect')
    def connect(connection: typing.Any, _record: typing.Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute('SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED')
            if 'MariaDB' in connection.get_server_info():
                # MySQL has nothing like it.
                cursor.execute(f'SET SESSION idle_transaction_timeout = {IDLE}')


def _prepare_postgresql(engine: sa.Engine) -> None:
    """Let no transaction sleep."""

    @event.listens_for(engine, 'connect')
    def connect(connection: typing.Any, _record: typing.Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE}s'")
        connection.commit()


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Let readers and one writer work side by side, and let writers wait for each other."""

    @event.listens_for(engine, 'connect')
    def connect(connection: typing.Any, _record: typing.Any) -> None:
        connection.execute('PRAGMA busy_timeout = 30000')
        connection.execute('PRAGMA journal_mode = WAL')
        connection.execute('PRAGMA synchronous = NORMAL')

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


_PREPARE = {
    'sqlite': _prepare_sqlite,
    'mysql': _prepare_mysql,
    'postgresql': _prepare_postgresql,
}

# SPDX-License-Identifier: Apache-2.0
"""Empty databases for tests: files of SQLite, or databases of a server started for them."""

from __future__ import annotations

import collections.abc
import contextlib
import itertools
import os
import pathlib
import shutil
import tempfile
import typing

import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import service
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests.integration import servers


def _has_room(directory: str) -> bool:
    """Whether a directory has room; in a container it may have only a few megabytes."""
    return os.access(directory, os.W_OK) and shutil.disk_usage(directory).free > 2**30


ENGINES = ('sqlite', *servers.DATABASES)

#: A directory in memory, where a commit needs no disk.
MEMORY = '/dev/shm' if _has_room('/dev/shm') else None

Url = collections.abc.Iterator[str]


class Databases(typing.Protocol):
    """A factory of databases; it returns URLs."""

    def empty(self) -> contextlib.AbstractContextManager[str]:
        """A database without rows."""

    def new(self) -> contextlib.AbstractContextManager[str]:
        """A database without tables."""


class Files:
    """Databases of SQLite, each used once.  Migrations take long: one is migrated and copied."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(dir=MEMORY)
        self._migrated = pathlib.Path(self._place.name) / 'migrated'

    @contextlib.contextmanager
    def new(self) -> Url:
        with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
            yield service.database_url(pathlib.Path(directory))

    @contextlib.contextmanager
    def empty(self) -> Url:
        with self.new() as url:
            file = sa.make_url(url).database
            if self._migrated.exists():
                shutil.copy2(self._migrated, file)
            else:
                database = engine.Database(options.load(files=[], database__connection=url))
                migration.upgrade(database.engine)
                database.close()
                shutil.copy2(file, self._migrated)
            yield url


class Served:
    """Databases of a server: creating tables takes long, so they are emptied and reused."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._idle: list[str] = []
        self._numbers = itertools.count(1)
        if self._url.get_backend_name() == 'postgresql':
            # Autovacuum could note that a table is empty, just before a test fills it: with that
            # plan a query of a second took minutes.
            _do(self._url, 'ALTER SYSTEM SET autovacuum = off', 'SELECT pg_reload_conf()')

    @contextlib.contextmanager
    def new(self) -> Url:
        name = f'test_{next(self._numbers)}'
        _do(self._url, f'CREATE DATABASE {name}')
        yield self._url.set(database=name).render_as_string(hide_password=False)
        _do(self._url, f'DROP DATABASE {name}')

    @contextlib.contextmanager
    def empty(self) -> Url:
        if not self._idle:
            name = f'test_{next(self._numbers)}'
            _do(self._url, f'CREATE DATABASE {name}')
            self._idle.append(self._url.set(database=name).render_as_string(hide_password=False))
        url = self._idle.pop()
        yield url
        _clear(sa.make_url(url))
        self._idle.append(url)


#: The tables of PostgreSQL, and whether each has more than a few pages.
_ALL = """
SELECT tablename, pg_relation_size(quote_ident(tablename)::regclass) > 65536
FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""
#: Make PostgreSQL skip foreign keys, and restart sequences.
_UNCHECKED = 'SET session_replication_role = replica'
_FROM_ONE = 'SELECT setval(quote_ident(sequencename)::regclass, 1, false) FROM pg_sequences'
#: The tables of MariaDB that ever had a row.
_USED = """
SELECT table_name FROM information_schema.tables
WHERE table_schema = database() AND auto_increment > 1
"""


def _clear(url: sa.URL) -> None:
    """Delete all rows, and restart the numbers."""
    with _engine(url, isolation_level='AUTOCOMMIT').connect() as connection:
        if url.get_backend_name() == 'postgresql':
            tables = connection.execute(sa.text(_ALL)).all()
            # TRUNCATE takes ten times as long as deleting few rows: it makes new files.
            large = ', '.join(table for table, is_large in tables if is_large)
            truncate = [f'TRUNCATE {large} CASCADE'] if large else []
            delete = [f'DELETE FROM {table}' for table, is_large in tables if not is_large]
            statements = ['; '.join([_UNCHECKED, *truncate, *delete, _FROM_ONE])]
        else:
            used = connection.scalars(sa.text(_USED)).all()
            truncate = [f'TRUNCATE TABLE {table}' for table in used]
            statements = ['SET lock_wait_timeout = 60, foreign_key_checks = 0', *truncate]
        for statement in statements:
            connection.exec_driver_sql(statement)


def _do(url: sa.URL, *statements: str) -> None:
    with _engine(url, isolation_level='AUTOCOMMIT').connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def _engine(url: sa.URL, **more: typing.Any) -> sa.Engine:
    # PyMySQL reads all certificates of the system for each connection that may use TLS.
    plain = {'ssl_disabled': True} if url.get_backend_name() == 'mysql' else {}
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args=plain, **more)


@contextlib.contextmanager
def of(name: str) -> collections.abc.Iterator[Databases]:
    """Databases of an engine, and its server as long as they are needed."""
    if name == 'sqlite':
        yield Files()
        return
    # MariaDB waits for its disk whenever it makes or empties a table.
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as directory,
        servers.DATABASES[name](pathlib.Path(directory, name)) as url,
    ):
        yield Served(url)

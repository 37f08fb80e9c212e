# SPDX-License-Identifier: Apache-2.0
"""Bring a database to the schema of this release."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import pathlib
import typing

from alembic import command
from alembic import config
from alembic import script
from alembic.runtime import migration
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite.db import ddl  # noqa: F401 - alembic learns of it by the import

#: How long a migration waits for another process that migrates on MySQL and MariaDB, in seconds.
WAIT = 600
#: The key of PostgreSQL's lock, within one database: any number, the same in all releases.
LOCK = 0x6379626C


def _config(connection: sa.Connection | None = None) -> config.Config:
    made = config.Config()
    made.set_main_option('script_location', str(pathlib.Path(__file__).parent / 'alembic'))
    made.attributes['connection'] = connection
    return made


@functools.cache
def _revisions() -> list[str]:
    """The revisions that this release knows, the newest first: each is a module to be loaded."""
    known = script.ScriptDirectory.from_config(_config()).walk_revisions()
    return [each.revision for each in known]


def head() -> str:
    """The revision that this release needs."""
    return _revisions()[0]


def is_older(revision: str) -> bool:
    """Whether this release has migrations that a database of this revision lacks."""
    return revision in _revisions()[1:]


def upgrade(engine: sa.Engine, revision: str = 'head') -> None:
    """Apply what is missing; nothing happens where nothing is.

    :raises cyborg_lite.exception.Conflict: when another process is at it for too long.
    """
    with engine.connect() as connection, _foreign_keys_off(connection), _alone(connection):
        # To find that nothing is missing alembic would load each of the migrations anew.
        if revision != 'head' or version_of(connection) != head():
            command.upgrade(_config(connection), revision)


@contextlib.contextmanager
def _foreign_keys_off(connection: sa.Connection) -> collections.abc.Iterator[None]:
    """Let SQLite replace a table that others refer to, which is how it alters one.

    It takes the order outside of a transaction only, so past SQLAlchemy, which would begin one.
    Source: https://www.sqlite.org/lang_altertable.html, section 7.
    """
    if connection.dialect.name != 'sqlite':
        yield
        return
    plain: typing.Any = connection.connection.driver_connection
    plain.execute('PRAGMA foreign_keys = OFF')
    try:
        yield
    finally:
        plain.execute('PRAGMA foreign_keys = ON')


@contextlib.contextmanager
def _alone(connection: sa.Connection) -> collections.abc.Iterator[None]:
    """A transaction under the lock for migrations: it waits until other processes have migrated."""
    if connection.dialect.name in ('mysql', 'mariadb'):
        # Whatever changes the schema ends a transaction, and with it the locks of that.
        with _named_lock(connection), connection.begin():
            yield
        return
    # SQLite has one writer; see engine.py.
    with connection.execution_options(writes=True).begin():
        if connection.dialect.name == 'postgresql':
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        yield


@contextlib.contextmanager
def _named_lock(connection: sa.Connection) -> collections.abc.Iterator[None]:
    """A lock that is ours until it is released or the connection ends."""
    # Of one name in the whole server, so it says which database it is of.
    name = sa.func.concat('cyborg_lite ', sa.func.md5(sa.func.database()))
    taken = connection.scalar(sa.select(sa.func.get_lock(name, WAIT)))
    connection.commit()
    if not taken:
        raise exception.Conflict(
            reason=f'Another process migrates this database for {WAIT} seconds now: look at it, '
            'and run cyborg-lite-dbsync upgrade again when it has ended.'
        )
    try:
        yield
    finally:
        connection.execute(sa.select(sa.func.release_lock(name)))
        connection.commit()


def version(engine: sa.Engine) -> str | None:
    """The revision of the database; None if it is empty."""
    with engine.connect() as connection:
        return version_of(connection)


def version_of(connection: sa.Connection) -> str | None:
    """The revision of whatever database this is; None if alembic has made none."""
    return migration.MigrationContext.configure(connection).get_current_revision()


def revision(engine: sa.Engine, message: str) -> None:
    """Write a migration from the schema of this database to that of the models."""
    with engine.begin() as connection:
        command.revision(_config(connection), message, autogenerate=True)

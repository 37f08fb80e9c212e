# SPDX-License-Identifier: Apache-2.0
"""Bring a database to the schema of this release."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import pathlib
import re
import typing

import sqlalchemy as sa

from cyborg_lite import exception

if typing.TYPE_CHECKING:
    from alembic import config

# Alembic is loaded only where something is to be migrated: it is a tenth of the start.

PLACE = pathlib.Path(__file__).parent / 'alembic'
#: How long a migration waits for another process that migrates on MySQL and MariaDB, in seconds.
WAIT = 600
#: The key of PostgreSQL's lock, within one database: any number, the same in all releases.
LOCK = 0x6379626C
#: Tables of all releases, of which no other program has both: OpenStack Cyborg has one.
OURS = frozenset({'attach_handles', 'messages'})
#: The revision of a migration, and the one that it follows, as its module states them.
_STATED = re.compile(r"^(revision|down_revision) = '(\w+)'$", re.MULTILINE)


class Impossible(exception.Refused):
    """A database cannot be migrated: says why."""


def _config(connection: sa.Connection) -> config.Config:
    from alembic import config

    from cyborg_lite.db import ddl  # noqa: F401 - alembic learns of it by the import

    made = config.Config()
    made.set_main_option('script_location', str(PLACE))
    made.attributes['connection'] = connection
    return made


@functools.cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The newest revision that this release knows, and the others: modules are not loaded."""
    texts = [file.read_text() for file in (PLACE / 'versions').glob('*.py')]
    stated = [found for text in texts if (found := dict(_STATED.findall(text)))]
    others = frozenset(each['down_revision'] for each in stated if 'down_revision' in each)
    [head] = {each['revision'] for each in stated} - others
    return head, others


def head() -> str:
    """The revision that this release needs."""
    return _revisions()[0]


def is_older(revision: str) -> bool:
    """Whether this release has migrations that a database of this revision lacks."""
    return revision in _revisions()[1]


def _is_known(revision: str) -> bool:
    return revision == head() or is_older(revision)


def upgrade(engine: sa.Engine, revision: str = 'head') -> None:
    """Apply what is missing; nothing happens where nothing is.

    :raises cyborg_lite.exception.Conflict: when another process is at it for too long.
    :raises Impossible: when there is no way from the revision of the database to this one.
    """
    with engine.connect() as connection, _foreign_keys_off(connection), _alone(connection):
        # To find that nothing is missing alembic would load each of the migrations anew.
        if revision != 'head' or version_of(connection) != head():
            _upgrade(connection, revision)


def _upgrade(connection: sa.Connection, revision: str) -> None:
    from alembic import command
    from alembic import util

    present = version_of(connection)
    if present and not _is_known(present):
        raise Impossible(
            f'the database is of revision {present}, which this release does not know: it is of a '
            'newer release, or of another program'
        )
    try:
        command.upgrade(_config(connection), revision)
    except util.CommandError as error:
        raise Impossible(str(error)) from error


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
    """The revision of whatever database this is; None if alembic has made none.

    :raises Impossible: when it has several.
    """
    if not sa.inspect(connection).has_table('alembic_version'):
        return None
    found = connection.scalars(sa.text('SELECT version_num FROM alembic_version')).all()
    if found and not all(found):
        raise Impossible('the table alembic_version has a row without a revision: delete it')
    if len(found) > 1:
        revisions = ', '.join(sorted(found))[:200]
        raise Impossible(
            f'the table alembic_version has {len(found)} rows ({revisions}): expected one. Restore '
            'the database from a backup, or delete the rows that are not of its tables'
        )
    return found[0] if found else None


def is_foreign(connection: sa.Connection, revision: str) -> bool:
    """Whether the tables are those of another program, which also uses alembic."""
    return not _is_known(revision) and not OURS.issubset(sa.inspect(connection).get_table_names())


def revision(engine: sa.Engine, message: str) -> None:
    """Write a migration from the schema of this database to that of the models."""
    from alembic import command

    with engine.begin() as connection:
        command.revision(_config(connection), message, autogenerate=True)

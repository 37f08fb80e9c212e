# SPDX-License-Identifier: Apache-2.0
"""Bring a database to the schema of this release."""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import typing

from alembic import command
from alembic import config
from alembic import script
from alembic.runtime import migration
import sqlalchemy as sa


def _config(connection: sa.Connection | None = None) -> config.Config:
    made = config.Config()
    made.set_main_option('script_location', str(pathlib.Path(__file__).parent / 'alembic'))
    made.attributes['connection'] = connection
    return made


def head() -> str | None:
    """The revision that this release needs."""
    return script.ScriptDirectory.from_config(_config()).get_current_head()


def upgrade(engine: sa.Engine, revision: str = 'head') -> None:
    """Apply what is missing; nothing happens where nothing is."""
    with engine.connect() as connection, _foreign_keys_off(connection), connection.begin():
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

# SPDX-License-Identifier: Apache-2.0
"""Conductors that die at a commit, and conductors that do not wait for a lock."""

from __future__ import annotations

import collections.abc
import contextlib
import re
import typing

from sqlalchemy import event
from sqlalchemy import orm

from tests.unit.conductor import direct


class Died(BaseException):
    """The conductor has died: nothing that it runs may catch this."""


class Locked(BaseException):
    """Another transaction has a lock that this one needs."""


class Mortal(direct.Conductor):
    """A conductor that dies once at a commit, if it is told to."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self._left, self._done = 0, False
        self._writer = self.database.writer
        self.database.writer = self._watched  # type: ignore[method-assign]

    def die(self, number: int, done: bool) -> None:
        """Let it die at the commit of this number from now on.

        :param done: whether the database carries that commit out.
        """
        self._left, self._done = number, done

    @contextlib.contextmanager
    def _watched(self) -> collections.abc.Iterator[orm.Session]:
        with self._writer() as session:
            yield session
            self._left -= 1
            if not self._left and not self._done:
                raise Died
        if not self._left and self._done:
            raise Died


#: What each database says of a lock that is not to be had at once.
_LOCKED = re.compile('lock timeout|Lock wait timeout|database is locked')
#: How a connection is told not to wait. PostgreSQL's shortest wait is a millisecond.
_HURRY = {
    'sqlite': 'PRAGMA busy_timeout = 0',
    'mysql': 'SET SESSION innodb_lock_wait_timeout = 0',
    'postgresql': "SET lock_timeout = '1ms'",
}


class Rival(direct.Conductor):
    """A conductor that raises Locked where others would wait for a lock."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        engine = self.database.engine
        hurry = _HURRY[engine.dialect.name]

        @event.listens_for(engine, 'checkout')
        def checkout(connection: typing.Any, _record: object, _proxy: object) -> None:
            connection.cursor().execute(hurry)
            connection.commit()

        @event.listens_for(engine, 'do_execute')
        def execute(cursor: typing.Any, statement: str, values: object, _context: object) -> bool:
            try:
                cursor.execute(statement, values)
            except Exception as error:
                if _LOCKED.search(str(error)):
                    raise Locked from error
                raise
            return True

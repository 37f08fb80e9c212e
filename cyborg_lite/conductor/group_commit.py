# SPDX-License-Identifier: Apache-2.0
"""Group commit: pieces of work that wait for the same database share a transaction.

SQLite has one writer at a time.  What waits for it in this process is carried out by the first that
gets it, in one transaction: one commit, and one wait for the disk, for all.  Each piece of work
still succeeds or fails by itself, and is durable when it is answered.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import threading
import typing

from oslo_context import context as oslo_context
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite.db import engine

#: How many pieces of work share a transaction at most: the first one is answered after the last.
MOST = 16
#: The errors of a database that may have undone more than a statement.
AWAY: tuple[type[Exception], ...] = (exception.DatabaseAway, *engine.AWAY)

Answer = typing.TypeVar('Answer')
Work = collections.abc.Callable[[orm.Session], typing.Any]


class _Piece:
    """A piece of work, and what came of it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._caller = oslo_context.get_current()
        self._answer: typing.Any = None
        self._error: Exception | None = None
        #: set when it is done, when its thread has to carry it out alone, or when it is the first
        #: in the queue
        self.called = threading.Event()
        #: whether its thread has to carry it out in a transaction of its own
        self.alone = False

    def carry_out(self, session: orm.Session) -> None:
        """Work in a transaction that others share, and undo only that if it fails.

        :raises BaseException: when the whole transaction has to be undone.
        """
        point, self._error = engine.Savepoint(session), None
        with context.kept():
            if self._caller is not None:
                self._caller.update_store()
            try:
                self._answer = self._work(session)
                session.flush()
            except AWAY:
                # What the others wrote may be gone, too.
                raise
            except Exception as error:
                if not point.undo():
                    raise
                self._error = error
            else:
                point.release()
        # The next one reads for itself.
        session.expunge_all()

    def answer(self) -> typing.Any:
        if self._error is not None:
            raise self._error
        return self._answer


class GroupCommit:
    """Carries out work in transactions of one kind, in the order in which it came."""

    def __init__(
        self, session: collections.abc.Callable[[], contextlib.AbstractContextManager[orm.Session]]
    ) -> None:
        """:param session: begins a transaction once no other one writes."""
        self._session = session
        self._guard = threading.Lock()
        self._waiting: collections.deque[_Piece] = collections.deque()
        #: whether a thread has the transaction, or was called to begin one
        self._led = False

    def run(self, work: collections.abc.Callable[[orm.Session], Answer]) -> Answer:
        """The answer of work, once it is committed.

        :raises cyborg_lite.exception.DatabaseAway: when others write for too long.
        """
        piece = _Piece(work)
        with self._guard:
            self._waiting.append(piece)
            leads, self._led = not self._led, True
        try:
            if not leads:
                self._wait(piece)
        except BaseException:
            self._leave(piece)
            raise
        with self._guard:
            leads = piece in self._waiting
        if leads:
            self._lead(piece)
        if piece.alone:
            with self._session() as session:
                piece.carry_out(session)
        return typing.cast('Answer', piece.answer())

    def _wait(self, piece: _Piece) -> None:
        """Wait until it is called.

        :raises cyborg_lite.exception.DatabaseAway: when that takes too long.
        """
        if not piece.called.wait(engine.PATIENCE):
            with self._guard:
                if piece in self._waiting and not piece.called.is_set():
                    self._waiting.remove(piece)
                    raise exception.DatabaseAway(reason='others write to it all the time')
            # A transaction has it.
            piece.called.wait()

    def _leave(self, piece: _Piece) -> None:
        """Leave the queue; a piece that was called to begin a transaction calls the next one."""
        with self._guard:
            if piece in self._waiting:
                self._waiting.remove(piece)
                if piece.called.is_set():
                    self._call_next()

    def _call_next(self) -> None:
        if self._waiting:
            self._waiting[0].called.set()
        else:
            self._led = False

    def _lead(self, first: _Piece) -> None:
        """Carry out the first piece, which is ours, and the pieces that wait behind it.

        :raises BaseException: when the first piece alone has failed.
        """
        group: list[_Piece] = []
        try:
            with self._session() as session:
                with self._guard:
                    most = min(MOST, len(self._waiting))
                    group = [self._waiting.popleft() for _ in range(most)]
                for each in group:
                    each.carry_out(session)
        except BaseException:
            # Nothing of it is stored.
            if len(group) < 2:
                raise
            for each in group:
                each.alone = True
        finally:
            with self._guard:
                if not group:
                    self._waiting.remove(first)
                self._call_next()
            for each in group:
                each.called.set()

# SPDX-License-Identifier: Apache-2.0
"""Pieces of work that wait for SQLite share a transaction."""

import collections
from concurrent import futures
import contextlib
import threading
import uuid

from oslo_db import exception as db_exception
import pytest
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import group_commit
from cyborg_lite.db import engine
from tests import databases

FULL = exception.DatabaseAway(reason='its disk is full')


class Announced(collections.deque):
    """What waits; tells of each that comes."""

    def __init__(self):
        super().__init__()
        self.came = threading.Semaphore(0)
        self.event = threading.Event

    def append(self, piece):
        piece.called = self.event()
        super().append(piece)
        self.came.release()


class Group:
    """A group commit whose first transaction begins once all work has come."""

    def __init__(self, database):
        self.database = database
        self.commit = group_commit.GroupCommit(self._session)
        self.commit._waiting = self.waiting = Announced()
        self.opened = threading.Event()
        #: how many transactions were begun, and what is raised as those end: an error or None
        self.begun = 0
        self.ends = iter(())
        self._threads = futures.ThreadPoolExecutor(32)

    @contextlib.contextmanager
    def _session(self):
        assert self.opened.wait(10)
        self.begun += 1
        with self.database.writer() as session:
            yield session
            if error := next(self.ends, None):
                raise error

    def come(self, *works):
        """What comes of each, as futures; they come one after the other."""
        come = []
        for work in works:
            come.append(self._threads.submit(self.commit.run, work))
            assert self.waiting.came.acquire(timeout=10)
        return come

    def together(self, *works):
        """What came of each of what has waited for one transaction: an answer, or an error."""
        come = self.come(*works)
        self.opened.set()
        return [each.exception(10) or each.result() for each in come]

    @property
    def names(self):
        with self.database.reader() as session:
            return set(session.scalars(sa.select(model.DeviceProfile.name)))

    def close(self):
        self.opened.set()
        self._threads.shutdown()


@pytest.fixture
def group():
    with databases.Files().empty() as url:
        database = engine.Database(options.load(files=[], database__connection=url))
        made = Group(database)
        yield made
        made.close()
        database.close()


def store(name, error=None):
    """Work that stores a row and answers with its name, or raises an error after that."""

    def work(session):
        session.add(model.DeviceProfile(uuid=str(uuid.uuid4()), name=name, groups=[]))
        if error:
            session.flush()
            raise error
        return name

    return work


def refuse(_session):
    raise exception.Conflict(reason='It was refused.')


def test_what_waits_shares_one_transaction(group):
    names = [f'p{n}' for n in range(8)]
    assert group.together(*map(store, names)) == names
    assert (group.names, group.begun) == (set(names), 1)
    assert group.commit.run(store('alone')) == 'alone'
    assert group.begun == 2


def test_not_more_than_so_many_share_one(group):
    names = [f'p{n}' for n in range(group_commit.MOST + 1)]
    assert group.together(*map(store, names)) == names
    assert group.begun == 2


def test_a_refusal_undoes_no_other(group):
    """And nothing is carried out twice for it."""
    first, refused, last = group.together(store('a'), refuse, store('b'))
    assert (first, type(refused), last) == ('a', exception.Conflict, 'b')
    assert (group.names, group.begun) == ({'a', 'b'}, 1)


@pytest.mark.parametrize('error', [exception.Conflict(reason='No.'), ZeroDivisionError()])
def test_what_has_failed_leaves_nothing_behind(group, error):
    """Whether it has written before, or not; and others are not carried out again for it."""
    answers = group.together(store('a'), store('lost', error), refuse, store('b'))
    assert (answers[0], answers[1], answers[3]) == ('a', error, 'b')
    assert isinstance(answers[2], exception.Conflict)
    assert (group.names, group.begun) == ({'a', 'b'}, 1)


def add_big(session):
    """Work with an object that the disk has no room for."""
    session.add(model.DeviceProfile(uuid=str(uuid.uuid4()), name='big', groups=['x' * 9_000_000]))
    session.flush()


def insert_big(session):
    """The same without an object."""
    values = {'uuid': str(uuid.uuid4()), 'name': 'big', 'groups': ['x' * 9_000_000]}
    session.connection().execute(sa.insert(model.DeviceProfile).values(values))


def hide(work):
    """Work that goes on after an error of the database."""

    def go_on(session):
        with contextlib.suppress(exception.DatabaseAway):
            work(session)

    return go_on


@pytest.mark.parametrize('work', [add_big, insert_big, hide(insert_big)])
def test_a_full_disk_undoes_all(group, work):
    """SQLite then undoes the whole transaction by itself."""

    def fill(session):
        connection = session.connection().connection.dbapi_connection
        [pages] = connection.execute('PRAGMA page_count').fetchone()
        connection.execute(f'PRAGMA max_page_count = {pages + 2}')
        try:
            work(session)
        finally:
            connection.execute('PRAGMA max_page_count = 1000000')

    answers = group.together(store('a'), fill, store('b'))
    assert (answers[0], answers[2]) == ('a', 'b')
    assert isinstance(answers[1], exception.DatabaseAway)
    # All together, and then each by itself.
    assert (group.names, group.begun) == ({'a', 'b'}, 4)


def test_a_duplicate_undoes_all(group):
    """A session cannot go on after an object that it could not write."""
    *answers, last = group.together(store('a'), store('a'), store('b'))
    assert ('a' in answers, last) == (True, 'b')
    answers.remove('a')
    assert isinstance(answers[0], db_exception.DBDuplicateEntry)
    assert (group.names, group.begun) == ({'a', 'b'}, 4)


def test_a_commit_that_fails_is_tried_for_each_alone(group):
    group.ends = iter([FULL, None, FULL])
    answers = group.together(*map(store, 'abc'))
    # They come in any order.
    assert answers.count(FULL) == 1
    assert group.names == set(answers) - {FULL}
    assert group.begun == 4


def test_an_error_of_one_alone_is_its_own(group):
    group.ends = iter([FULL])
    assert group.together(store('a')) == [FULL]
    assert group.together(store('b')) == ['b']
    assert group.begun == 2


def test_a_transaction_that_cannot_begin_fails_the_first_alone(group):
    begin, group.database.writer = group.database.writer, lambda: 1 / 0
    come = group.come(store('a'), store('b'))
    group.opened.set()
    assert {type(each.exception(10)) for each in come} == {ZeroDivisionError}
    group.database.writer = begin
    assert group.commit.run(store('c')) == 'c'


@pytest.mark.parametrize('called', [False, True])
def test_one_that_is_interrupted_as_it_waits_keeps_nobody_waiting(group, monkeypatch, called):
    """Whether it has been called as the first that waits, or not yet."""
    monkeypatch.setattr(group_commit, 'MOST', 1)
    left = threading.Event()

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            assert not called or super().wait(10)
            raise KeyboardInterrupt

    [first] = group.come(store('first'))
    group.waiting.event = Interrupted
    [interrupted] = group.come(store('interrupted'))
    interrupted.add_done_callback(lambda _: left.set())
    group.waiting.event = threading.Event
    [last] = group.come(store('last'))
    assert called or left.wait(10)
    group.opened.set()
    assert isinstance(interrupted.exception(10), KeyboardInterrupt)
    assert (first.result(10), last.result(10)) == ('first', 'last')
    assert group.names == {'first', 'last'}


def test_nobody_waits_for_ever(group, monkeypatch):
    """What was not begun in time is never carried out."""
    monkeypatch.setattr(engine, 'PATIENCE', 0.01)
    first, late = group.come(store('first'), store('late'))
    with pytest.raises(exception.DatabaseAway, match='others write to it all the time'):
        late.result(10)
    group.opened.set()
    assert first.result(10) == 'first'
    assert group.commit.run(store('next')) == 'next'
    assert group.names == {'first', 'next'}


def test_what_a_transaction_has_is_waited_for(group):
    """Its end is not known before, so nothing else can be answered."""
    inside, timed_out = threading.Event(), threading.Event()

    class Impatient(threading.Event):
        def wait(self, timeout=None):
            if timeout is None:
                timed_out.set()
                return super().wait(10)
            assert inside.wait(10)
            return False

    def stay(session):
        inside.set()
        assert timed_out.wait(10)
        return store('first')(session)

    group.waiting.event = Impatient
    assert group.together(stay, store('second')) == ['first', 'second']


def test_each_reads_for_itself(group):
    """What one has read, and another has changed by a statement, is read again."""
    group.opened.set()
    group.commit.run(store('a'))
    group.opened.clear()
    rows = []

    def read(session):
        # A session forgets rows that nobody has any more.
        rows.append(session.scalars(sa.select(model.DeviceProfile)).one())
        return rows[-1].name

    def rename(session):
        assert read(session) == 'a'
        session.connection().execute(sa.update(model.DeviceProfile).values(name='b'))

    assert group.together(rename, read) == [None, 'b']
    assert group.begun == 2


def test_each_works_for_its_caller(group):
    """Its log lines have the id of its own request."""
    seen = []

    def work(_session):
        seen.append(context.context.get_current().request_id)

    def call(request_id):
        context.RequestContext(request_id=request_id)
        group.commit.run(work)
        return context.context.get_current().request_id

    ids = [f'req-{uuid.uuid4()}' for _ in range(3)]
    calls = []
    for each in ids:
        calls.append(group._threads.submit(call, each))
        assert group.waiting.came.acquire(timeout=10)
    group.opened.set()
    assert [each.result(10) for each in calls] == seen == ids

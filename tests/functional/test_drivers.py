# SPDX-License-Identifier: Apache-2.0
"""Both drivers of PostgreSQL report errors alike: ``pytest --database postgresql``.

oslo.db classifies errors by the texts of drivers, and it knows psycopg2.
"""

import importlib
import threading

from oslo_db import exception as db_exception
import pytest
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import engine
from cyborg_lite.db import migration


@pytest.fixture(params=['psycopg', 'psycopg2'])
def url(request, server, databases):
    """A database of PostgreSQL, by one driver or the other."""
    with databases.new() as text:
        made = sa.make_url(text)
        if made.get_backend_name() != 'postgresql':
            pytest.skip('this is about PostgreSQL alone')
        if not importlib.util.find_spec(request.param):
            pytest.skip(f'{request.param} is not installed')
        yield made.set(drivername=f'postgresql+{request.param}')


def connect(url):
    text = url.render_as_string(hide_password=False)
    settings = {'database__connection': text, 'database__max_retries': 0}
    return engine.Database(options.load(files=[], **settings))


@pytest.fixture
def database(url):
    made = connect(url)
    migration.upgrade(made.engine)
    with made.writer() as session:
        for name in ('a', 'b'):
            session.add(model.Host(name=name, boot_id='boot'))
    yield made
    made.close()


def add(session, **values):
    session.execute(sa.insert(model.Host).values(boot_id='boot', **values))


def move(session, name):
    host = sa.update(model.Host).where(model.Host.name == name)
    session.execute(host.values(sequence=model.Host.sequence + 1))


def test_duplicate(database):
    with pytest.raises(db_exception.DBDuplicateEntry) as caught, database.writer() as session:
        add(session, name='a')
    assert caught.value.value == 'a'


def test_reference(database):
    row = {'name': 'a', 'driver_name': 'fake', 'rp_uuid': 'b', 'device_id': 99}
    with pytest.raises(db_exception.DBReferenceError) as caught, database.writer() as session:
        session.execute(sa.insert(model.Deployable).values(row))
    assert (caught.value.table, caught.value.key) == ('deployables', 'device_id')


def test_deadlock(database):
    """Each of two transactions waits for the other: one of them gets the error."""
    both, raised = threading.Barrier(2), []

    def take(first, second):
        try:
            with database.writer() as session:
                move(session, first)
                both.wait(30)
                move(session, second)
        except db_exception.DBError as error:
            raised.append(type(error))

    threads = [threading.Thread(target=take, args=names) for names in ('ab', 'ba')]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == [db_exception.DBDeadlock]


def test_connection_that_is_lost(database):
    lost = pytest.raises(db_exception.DBConnectionError)
    with lost, database.writer() as session, database.writer() as other:
        pid = session.scalar(sa.select(sa.func.pg_backend_pid()))
        other.scalar(sa.select(sa.func.pg_terminate_backend(pid)))
        move(session, 'a')
    # The next one has another connection.
    with database.writer() as session:
        move(session, 'a')


def test_transaction_that_sleeps(database):
    lost = pytest.raises(db_exception.DBConnectionError)
    with lost, database.writer() as session:
        session.execute(sa.text("SET idle_in_transaction_session_timeout = '10ms'"))
        with database.reader() as other:
            other.execute(sa.select(sa.func.pg_sleep(0.5)))
        move(session, 'a')


def test_server_that_is_away(url):
    with pytest.raises(db_exception.DBConnectionError):
        connect(url.set(port=1)).engine.connect()


def test_database_that_is_not_there(url):
    with pytest.raises((db_exception.DBConnectionError, db_exception.DBNonExistentDatabase)):
        connect(url.set(database='nowhere')).engine.connect()


def test_database_that_takes_no_writes(database):
    with pytest.raises(exception.DatabaseAway, match='read-only'), database.writer() as session:
        session.execute(sa.text('SET TRANSACTION READ ONLY'))
        move(session, 'a')


@pytest.mark.parametrize(
    ('order', 'said'),
    [
        ("SET LOCAL lock_timeout = '20ms'", 'lock timeout'),
        ("SET LOCAL statement_timeout = '20ms'", 'statement timeout'),
    ],
)
def test_wait_that_is_cut_off(database, order, said):
    """We set no such timeout, and oslo.db does not translate this error."""
    with database.writer() as session:
        move(session, 'a')
        refused = pytest.raises(sa.exc.OperationalError, match=said)
        with refused, database.writer() as other:
            other.execute(sa.text(order))
            move(other, 'a')


def test_row_that_has_changed(database):
    """Our isolation level is READ COMMITTED: only a higher level raises this error."""
    stale = pytest.raises(sa.exc.OperationalError, match='could not serialize access')
    with stale, database.writer() as session:
        session.execute(sa.text('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ'))
        session.scalar(sa.select(model.Host.sequence).where(model.Host.name == 'a'))
        with database.writer() as other:
            move(other, 'a')
        move(session, 'a')

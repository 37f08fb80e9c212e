# SPDX-License-Identifier: Apache-2.0
from concurrent import futures
import subprocess
import sys
import threading

from alembic import autogenerate
from alembic import command
from alembic import script
from alembic.runtime import migration as runtime
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import engine as engine_
from cyborg_lite.db import migration


def schema(engine):
    found = sa.MetaData()
    found.reflect(engine)
    return [str(sa.schema.CreateTable(table)) for table in found.sorted_tables]


def test_upgrade_of_an_empty_database(empty):
    assert migration.version(empty.engine) is None
    migration.upgrade(empty.engine)
    assert migration.version(empty.engine) == migration.head()
    tables = set(sa.inspect(empty.engine).get_table_names())
    assert tables == set(model.Base.metadata.tables) | {'alembic_version'}


def test_upgrade_twice_changes_nothing(database, monkeypatch):
    with database.writer() as session:
        session.add(model.Host(name='host-1', boot_id='boot-1'))
    before = schema(database.engine)
    # It would load all migrations.
    monkeypatch.delattr(migration, '_upgrade')
    migration.upgrade(database.engine)
    assert schema(database.engine) == before
    with database.reader() as session:
        assert session.scalar(sa.select(model.Host.name)) == 'host-1'


def test_revisions_are_those_of_alembic(database):
    with database.engine.connect() as connection:
        of_alembic = script.ScriptDirectory.from_config(migration._config(connection))
    head, *others = [each.revision for each in of_alembic.walk_revisions()]
    assert migration.head() == head
    assert [each for each in (head, *others) if migration.is_older(each)] == others


def test_database_of_two_revisions(database):
    """Alembic knows such databases, and this project has none."""
    with database.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('another')"))
    with pytest.raises(migration.Impossible, match='has 2 rows'):
        migration.version(database.engine)


def test_upgrade_to_an_unknown_revision(database):
    with pytest.raises(migration.Impossible, match='nowhere'):
        migration.upgrade(database.engine, 'nowhere')
    assert migration.version(database.engine) == migration.head()


def test_revision_writes_what_the_models_have_more(database, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(
        command, 'revision', lambda config, message, autogenerate: told.update(
            message=message, autogenerate=autogenerate, head=migration.version(database.engine)
        )
    )  # fmt: skip
    migration.revision(database.engine, 'Add hosts')
    assert told == {'message': 'Add hosts', 'autogenerate': True, 'head': migration.head()}


def connect(url):
    """An engine like the service's: also on SQLite, DDL is transactional."""
    return engine_.Database(options.load(files=[], database__connection=url)).engine


class Killed(Exception):
    """Raised in place of a kill."""


def killed_at(engine, number):
    """Upgrade until the statement of this number; returns whether it was reached."""
    left = number

    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed('no more')

    event.listen(engine, 'before_cursor_execute', count)
    try:
        migration.upgrade(engine)
    except Exception:
        # oslo.db makes another exception of it.
        assert left < 0
        return True
    finally:
        event.remove(engine, 'before_cursor_execute', count)
        # With the process its connections end.
        engine.dispose()
    return False


def differences(engine):
    """The differences between the database and the models."""
    with engine.connect() as connection:
        context = runtime.MigrationContext.configure(connection)
        return autogenerate.compare_metadata(context, model.Base.metadata)


def test_an_upgrade_that_was_killed_is_run_again(databases):
    """At every statement.  On MariaDB those before it stay."""
    number = 0
    with databases.new() as url:
        made = connect(url)
        while killed_at(made, number):
            # On MariaDB each attempt goes one step further than the one before.
            number += 9
        migration.upgrade(made)
        assert migration.version(made) == migration.head()
        assert differences(made) == []
        made.dispose()
    assert number > 20


@pytest.mark.parametrize('number', (3, 17, 38))
def test_an_upgrade_that_was_killed_early_is_completed(databases, number):
    with databases.new() as url:
        made = connect(url)
        killed_at(made, number)
        migration.upgrade(made)
        assert differences(made) == []
        made.dispose()


def test_a_foreign_table_is_not_used(databases):
    with databases.new() as url:
        made = connect(url)
        with made.begin() as connection:
            connection.execute(sa.text('CREATE TABLE hosts (name INTEGER)'))
        with pytest.raises(Exception, match='hosts.*exists'):
            migration.upgrade(made)
        assert migration.version(made) is None
        made.dispose()


def test_one_waits_until_another_has_migrated(databases):
    with databases.new() as url, futures.ThreadPoolExecutor(1) as pool:
        first, second = connect(url), connect(url)
        begun, later = threading.Event(), []
        event.listen(second, 'after_cursor_execute', lambda *_: begun.set())

        def meet(_connection, _cursor, statement, *_):
            if 'CREATE TABLE' in statement and not later:
                later.append(pool.submit(migration.upgrade, second))
                # The second only waits for a lock until the first has ended.
                begun.wait(0.5)

        event.listen(first, 'before_cursor_execute', meet)
        migration.upgrade(first)
        later[0].result(60)
        assert differences(second) == []
        first.dispose()
        second.dispose()


def test_three_at_once(databases, tmp_path):
    """Three controllers are upgraded at once: they run one after the other."""
    with databases.new() as url:
        (tmp_path / 'a.conf').write_text(f'[database]\nconnection = {url}\n')
        run = 'import sys; from cyborg_lite.cmd import dbsync; sys.exit(dbsync.main())'
        command = [sys.executable, '-c', run, '--config-file', str(tmp_path / 'a.conf'), 'upgrade']
        pipe = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        running = [subprocess.Popen(command, **pipe) for _ in range(3)]
        said = [process.communicate(timeout=120)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0, 0], said
        assert all(text.splitlines()[-1] == migration.head() for text in said)


def test_an_upgrade_that_waits_too_long_fails(databases, monkeypatch):
    with databases.new() as url:
        first, second = connect(url), connect(url)
        if first.dialect.name != 'mysql':
            pytest.skip('this is about MariaDB alone')
        monkeypatch.setattr(migration, 'WAIT', 1)
        with (
            first.connect() as connection,
            migration._alone(connection),
            pytest.raises(exception.Conflict, match='Another process'),
        ):
            migration.upgrade(second)
        migration.upgrade(second)
        first.dispose()
        second.dispose()

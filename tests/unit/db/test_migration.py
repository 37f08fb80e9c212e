# SPDX-License-Identifier: Apache-2.0
import pytest
import sqlalchemy as sa

from cyborg_lite import model
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


def test_upgrade_twice_changes_nothing(database):
    with database.writer() as session:
        session.add(model.Host(name='host-1', boot_id='boot-1'))
    before = schema(database.engine)
    migration.upgrade(database.engine)
    assert schema(database.engine) == before
    with database.reader() as session:
        assert session.scalar(sa.select(model.Host.name)) == 'host-1'


def test_upgrade_to_an_unknown_revision(database):
    with pytest.raises(Exception, match='nowhere'):
        migration.upgrade(database.engine, 'nowhere')
    assert migration.version(database.engine) == migration.head()


def test_revision_writes_what_the_models_have_more(database, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(
        migration.command, 'revision', lambda config, message, autogenerate: told.update(
            message=message, autogenerate=autogenerate, head=migration.version(database.engine)
        )
    )  # fmt: skip
    migration.revision(database.engine, 'Add hosts')
    assert told == {'message': 'Add hosts', 'autogenerate': True, 'head': migration.head()}

# SPDX-License-Identifier: Apache-2.0
"""The steps of a migration, where some are done already; ``pytest --database mariadb`` runs whole
migrations.

SQLite stands in for MariaDB: outside a transaction it, too, keeps each step by itself.
"""

import pytest
import sqlalchemy as sa

from cyborg_lite.db import ddl

HOSTS = sa.Table(
    'hosts',
    sa.MetaData(),
    sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('name', sa.String(8)),
    sa.Index('by_name', 'name'),
)
MORE = sa.Column('boot', sa.String(8))
UNIQUE = sa.UniqueConstraint(HOSTS.c.name, name='one_name')


@pytest.fixture
def connection():
    with sa.create_engine('sqlite://').connect() as made:
        yield made


@pytest.fixture
def steps(connection):
    return ddl.ResumingMySQL(connection.dialect, connection, False, True, None, {})


def there(connection):
    """The columns and the indexes of the table."""
    found = sa.inspect(connection)
    columns = [column['name'] for column in found.get_columns('hosts')]
    return columns, [index['name'] for index in found.get_indexes('hosts')]


def test_steps_that_are_not_done(connection, steps):
    steps.create_table(HOSTS)
    steps.add_column('hosts', MORE)
    assert there(connection) == (['id', 'name', 'boot'], ['by_name'])


def test_steps_that_are_done(connection, steps):
    for _ in range(2):
        steps.create_table(HOSTS)
    for _ in range(2):
        steps.add_column('hosts', MORE)
    steps.create_index(next(iter(HOSTS.indexes)))
    assert there(connection) == (['id', 'name', 'boot'], ['by_name'])


def test_a_table_whose_indexes_did_not_follow(connection, steps):
    connection.execute(sa.text('CREATE TABLE hosts (id INTEGER PRIMARY KEY, name VARCHAR(8))'))
    steps.create_table(HOSTS)
    assert there(connection) == (['id', 'name'], ['by_name'])


def test_a_table_of_somebody_else(connection, steps):
    connection.execute(sa.text('CREATE TABLE hosts (name INTEGER)'))
    with pytest.raises(sa.exc.OperationalError, match='already exists'):
        steps.create_table(HOSTS)
    assert there(connection) == (['name'], [])


def test_a_constraint_that_is_gone(steps):
    steps.create_table(HOSTS)
    steps.drop_constraint(UNIQUE)


def test_a_constraint_that_is_there(connection, steps):
    steps.create_table(HOSTS)
    connection.execute(sa.text('CREATE UNIQUE INDEX one_name ON hosts (name)'))
    # SQLite can drop none, but is asked to.
    with pytest.raises(sa.exc.OperationalError, match='CONSTRAINT'):
        steps.drop_constraint(UNIQUE)

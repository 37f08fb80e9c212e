# SPDX-License-Identifier: Apache-2.0
"""Let a migration of MySQL or MariaDB that was cut short be run again.

There each statement that changes the schema commits implicitly: what a process has done until
it was killed stays, and alembic's revision says nothing of it.  So a step that is done already is
passed over.

Source: MySQL reference manual, "Statements That Cause an Implicit Commit"; alembic, "Cookbook" and
``alembic.ddl.impl.DefaultImpl``.
"""

from __future__ import annotations

import typing

from alembic.ddl import mysql
import sqlalchemy as sa


class ResumingMySQL(mysql.MySQLImpl):
    """What alembic does on MySQL, and on MariaDB by the URL of MySQL."""

    __dialect__ = 'mysql'

    def create_table(self, table: sa.Table, **more: typing.Any) -> None:
        if not self._has(table):
            super().create_table(table, **more)
            return
        # Its indexes come one by one after it.
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            self.create_index(index)

    def add_column(
        self, table_name: str, column: sa.Column[typing.Any], **more: typing.Any
    ) -> None:
        if column.name not in self._columns(table_name):
            super().add_column(table_name, column, **more)

    def create_index(self, index: sa.Index, **more: typing.Any) -> None:
        if index.table is None or index.name not in self._indexes(index.table.name):
            super().create_index(index, **more)

    def drop_constraint(self, const: sa.Constraint, **more: typing.Any) -> None:
        unique = isinstance(const, sa.UniqueConstraint)
        if not unique or str(const.name) in self._indexes(const.table.name):
            super().drop_constraint(const, **more)

    def _has(self, table: sa.Table) -> bool:
        """Whether the table is there as it was to be made; another one of its name is not it."""
        there = sa.inspect(self._bind()).has_table(table.name)
        return there and self._columns(table.name) == {column.name for column in table.columns}

    def _columns(self, table: str) -> set[str]:
        return {column['name'] for column in sa.inspect(self._bind()).get_columns(table)}

    def _indexes(self, table: str) -> set[str | None]:
        """The indexes of a table, which its unique constraints are as well."""
        return {index['name'] for index in sa.inspect(self._bind()).get_indexes(table)}

    def _bind(self) -> sa.Connection:
        return typing.cast('sa.Connection', self.connection)


class ResumingMariaDB(ResumingMySQL):
    """The same by the URL of MariaDB."""

    __dialect__ = 'mariadb'

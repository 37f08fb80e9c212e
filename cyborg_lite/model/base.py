# SPDX-License-Identifier: Apache-2.0
"""The base of the data model: kinds of columns, and the base class of rows."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import json
import typing
import uuid as uuidlib

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql
from sqlalchemy.ext import compiler
from sqlalchemy.sql import functions

Facts = dict[str, typing.Any]
Version = tuple[int, int]

#: A time with microseconds: by default MySQL stores whole seconds, so two events in one second
#: would have no order.
Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def iso(moment: datetime.datetime) -> str:
    """A time in the format of the API: ISO 8601, UTC, whole seconds."""
    return moment.isoformat(timespec='seconds') + '+00:00'


class Second(functions.FunctionElement[int]):
    """The whole seconds of a time since 1970, in SQL."""

    type = sa.BigInteger()
    inherit_cache = True


@compiler.compiles(Second)
def _second(element: Second, compiler: typing.Any, **kwargs: typing.Any) -> str:
    [moment] = (compiler.process(clause, **kwargs) for clause in element.clauses)
    forms = {
        # SQLite would round to the nearest second.
        'sqlite': f"CAST(strftime('%s', substr({moment}, 1, 19)) AS INTEGER)",
        'postgresql': f'CAST(FLOOR(EXTRACT(EPOCH FROM {moment})) AS BIGINT)',
    }
    other = f"TIMESTAMPDIFF(SECOND, '1970-01-01', {moment})"
    return forms.get(compiler.dialect.name, other)


#: Encodes JSON with sorted keys: one encoder costs a third of json.dumps().
as_text = json.JSONEncoder(sort_keys=True).encode


def _column(
    kind: str,
    *type_: typing.Any,
    since: str = '2.0',
    hidden: bool = False,
    doc: str = '',
    **kwargs: typing.Any,
) -> orm.MappedColumn[typing.Any]:
    info = {'kind': kind, 'since': since, 'hidden': hidden}
    return orm.mapped_column(*type_, info=info, doc=doc, **kwargs)


def fact(type_: typing.Any, **kwargs: typing.Any) -> orm.MappedColumn[typing.Any]:
    """A column that a driver reports."""
    return _column('fact', type_, **kwargs)


def own(type_: typing.Any, **kwargs: typing.Any) -> orm.MappedColumn[typing.Any]:
    """A column that the service writes."""
    return _column('own', type_, **kwargs)


def link(target: str, hidden: bool = True, **kwargs: typing.Any) -> orm.MappedColumn[typing.Any]:
    """A column that points to another row."""
    return _column('link', sa.ForeignKey(target), hidden=hidden, index=True, **kwargs)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A field of the API that is computed from columns.

    It is declared by paths, so that a list reads only those columns and makes no objects of rows.
    """

    type: type
    #: Each is the name of a column, or of a relationship and a column of its target, with a dot
    #: between. The values of a relationship to many rows are a list, sorted by id.
    reads: tuple[str, ...]
    make: collections.abc.Callable[..., typing.Any]
    nullable: bool
    doc: str

    def __get__(self, row: typing.Any, _kind: object = None) -> typing.Any:
        if row is None:
            return self
        return self.make(*(_follow(row, path) for path in self.reads))


def shown(
    type_: type,
    *reads: str,
    make: collections.abc.Callable[..., typing.Any] = lambda value: value,
    nullable: bool = False,
    doc: str,
) -> typing.Any:
    """A field that is made of the values of these paths; by default the value of one path."""
    return Shown(type_, reads, make, nullable, doc)


def _follow(row: Base, path: str) -> typing.Any:
    name, _, further = path.partition('.')
    value = getattr(row, name)
    if not further:
        return value
    if isinstance(value, list):
        return [getattr(each, further) for each in value]
    return None if value is None else getattr(value, further)


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a resource in the API: a column, or a computed field."""

    name: str
    type: type
    nullable: bool
    since: str
    doc: str
    column: sa.Column[typing.Any] | None
    #: how it is computed; for a column, if that costs less than the column itself
    shown: Shown | None = None

    @property
    def version(self) -> Version:
        major, minor = self.since.split('.')
        return int(major), int(minor)


def _type(column: sa.Column[typing.Any]) -> type:
    """The type of a column's values.  JSON has any type, but SQLAlchemy 2.0 says dict."""
    return object if isinstance(column.type, sa.JSON) else column.type.python_type


def now() -> datetime.datetime:
    """The time of a row. A test that sets the clock replaces utcnow(), which is looked up here."""
    return timeutils.utcnow()


class Base(orm.DeclarativeBase):
    """A row: an id for the database, a uuid for all else."""

    metadata = sa.MetaData(
        naming_convention={
            'ix': 'ix_%(table_name)s_%(column_0_N_name)s',
            'uq': 'uq_%(table_name)s_%(column_0_N_name)s',
            'fk': 'fk_%(table_name)s_%(column_0_N_name)s',
            'pk': 'pk_%(table_name)s',
        }
    )

    #: the facts that identify a row among the rows of its parent
    keys: typing.ClassVar[tuple[str, ...]] = ()
    #: the relationships to rows that are deleted with this one
    parts: typing.ClassVar[tuple[str, ...]] = ()

    id: orm.Mapped[int] = own(sa.Integer, primary_key=True, hidden=True, sort_order=-2)
    uuid: orm.Mapped[str] = own(
        sa.String(36),
        unique=True,
        sort_order=-1,
        # It assigns the rows of an INSERT's result.
        insert_sentinel=True,
        default=lambda: str(uuidlib.uuid4()),
        doc='The UUID of the resource.',
    )
    created_at: orm.Mapped[datetime.datetime] = own(
        Moment, default=now, doc='When the resource was created, ISO 8601, UTC.'
    )
    updated_at: orm.Mapped[datetime.datetime | None] = own(
        Moment,
        onupdate=now,
        doc='When the resource was last changed, ISO 8601, UTC; null if never.',
    )

    @classmethod
    def columns(cls, kind: str) -> list[sa.Column[typing.Any]]:
        return [c for c in cls._table().columns if c.info['kind'] == kind]

    @classmethod
    def _table(cls) -> sa.Table:
        return typing.cast('sa.Table', cls.__table__)

    @classmethod
    def fields(cls) -> tuple[Field, ...]:
        """The fields in the API, columns first, in order of declaration."""
        columns = [
            Field(
                *(str(c.name), _type(c), bool(c.nullable), c.info['since'], c.doc or '', c),
                c.info.get('shown'),
            )
            for c in cls._table().columns
            if not c.info['hidden']
        ]
        made = [
            Field(name, value.type, value.nullable, '2.0', value.doc, None, value)
            for name, value in vars(cls).items()
            if isinstance(value, Shown)
        ]
        return tuple(columns + made)

    @property
    def identity(self) -> str:
        return as_text([getattr(self, name) for name in self.keys])

    @property
    def reported(self) -> bool:
        """Whether a driver reports this row, so that it is deleted when a report lacks it."""
        return True

    def facts(self) -> Facts:
        """The facts of this row and its parts: plain data for a report."""
        row = {c.name: getattr(self, c.name) for c in self.columns('fact')}
        return row | {name: [part.facts() for part in getattr(self, name)] for name in self.parts}

    @classmethod
    def from_facts(cls, facts: Facts) -> typing.Self:
        """The row of these facts.

        Unknown facts are ignored, and absent facts keep their default: agents and conductors of
        adjacent releases work together.
        """
        known = {c.name: facts[c.name] for c in cls.columns('fact') if c.name in facts}
        parts = {
            name: [cls.part(name).from_facts(part) for part in facts.get(name, ())]
            for name in cls.parts
        }
        return cls(**known, **parts)

    @classmethod
    def part(cls, name: str) -> type[Base]:
        return typing.cast('type[Base]', cls.__mapper__.relationships[name].mapper.class_)


def parts(target: str, parent: str | None = None) -> typing.Any:
    return orm.relationship(
        target, cascade='all, delete-orphan', order_by=f'{target}.id', back_populates=parent
    )

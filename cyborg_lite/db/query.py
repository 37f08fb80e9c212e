# SPDX-License-Identifier: Apache-2.0
"""Queries that fit any model: get one, find a page of many."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import functools
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model

Row = typing.TypeVar('Row', bound=model.Base)
Values = collections.abc.Sequence[collections.abc.Sequence[typing.Any]]


@dataclasses.dataclass(frozen=True)
class Page:
    """Which part of a list: after the row ``marker``, at most ``limit`` rows, sorted."""

    limit: int | None = None
    marker: str | None = None
    sort_key: str = 'id'
    sort_dir: str = 'asc'


def get(
    session: orm.Session,
    kind: type[Row],
    id: str,
    *conditions: sa.ColumnElement[bool],
    what: str,
    by: str = 'uuid',
    options: collections.abc.Sequence[typing.Any] = (),
) -> Row:
    """The row with this id.

    :param what: the name of the resource, as the error is to call it.
    :param by: the column that the id is of.
    :raises cyborg_lite.exception.NotFound: when there is none that meets the conditions.
    """
    query = sa.select(kind).where(getattr(kind, by) == id, *conditions).options(*options)
    row = session.scalars(query).unique().one_or_none()
    if row is None:
        raise exception.NotFound(what=what, id=id)
    return row


def find(
    session: orm.Session,
    kind: type[Row],
    *conditions: sa.ColumnElement[bool],
    page: Page | None = None,
    scope: collections.abc.Sequence[sa.ColumnElement[bool]] = (),
    options: collections.abc.Sequence[typing.Any] = (),
) -> list[Row]:
    """The rows that meet all conditions, in the order of the page.

    :param scope: the conditions that a marker must also meet: callers must not learn of rows
        that they may not see. It need not meet the other conditions any more.
    :raises cyborg_lite.exception.Invalid: when the marker or the sort key is unknown.
    """
    query, page = sa.select(kind).where(*scope, *conditions).options(*options), page or Page()
    rows = list(session.scalars(_in_order(query, kind, page, scope)).unique())
    if not rows:
        _refuse_unknown(session, kind, page, scope)
    return rows


def read(
    session: orm.Session,
    kind: type[Row],
    paths: tuple[str, ...],
    *conditions: sa.ColumnElement[bool],
    page: Page | None = None,
    scope: collections.abc.Sequence[sa.ColumnElement[bool]] = (),
) -> Values:
    """The values of these paths (see ``model.Shown``) of the rows that find() would return.

    It takes one statement, and one more for each relationship that leads to many rows; no object is
    made of a row.
    """
    reading, page = _reading(kind, paths), page or Page()
    query = reading.query.where(*scope, *conditions)
    rows = _values(session, reading._replace(query=_in_order(query, kind, page, scope)))
    if not rows:
        _refuse_unknown(session, kind, page, scope)
    return rows


def read_one(
    session: orm.Session,
    kind: type[Row],
    paths: tuple[str, ...],
    id: str,
    *conditions: sa.ColumnElement[bool],
    by: str = 'uuid',
) -> collections.abc.Sequence[typing.Any] | None:
    """The values of these paths of the row with this id; None if there is none that meets the
    conditions.

    :param by: the column that the id is of.
    """
    reading = _reading_one(kind, paths, by)
    if conditions:
        reading = reading._replace(query=reading.query.where(*conditions))
    rows = _values(session, reading, {_ID: id})
    return rows[0] if rows else None


def read_these(
    session: orm.Session, kind: type[Row], paths: tuple[str, ...], uuids: list[str]
) -> Values:
    """The values of these paths of the rows with these uuids, in the order of their ids."""
    return _values(session, _reading_these(kind, paths), {_IDS: uuids})


class _Many(typing.NamedTuple):
    """A relationship that leads to many rows."""

    #: what is read: the column that points back, then those that are wanted
    query: sa.Select[typing.Any]
    back: sa.ColumnElement[typing.Any]
    #: where the values go in a row; until then the value that the column points to is there
    positions: list[int]


#: The names of the parameters of a statement that have the id of the row, or the ids of rows.
_ID, _IDS = 'wanted_id', 'wanted_ids'


class _Reading(typing.NamedTuple):
    query: sa.Select[typing.Any]
    many: list[_Many]


@functools.cache
def _reading(kind: type[model.Base], paths: tuple[str, ...]) -> _Reading:
    """What reads these paths of all rows."""
    columns: list[typing.Any] = []
    ones: dict[str, typing.Any] = {}
    many: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
    for position, path in enumerate(paths):
        name, _, further = path.partition('.')
        found = getattr(kind, name)
        if not further:
            columns.append(found)
        elif found.property.uselist:
            columns.append(found.property.local_remote_pairs[0][0])
            many[name].append((position, further))
        else:
            other = ones.setdefault(name, orm.aliased(found.property.entity.class_))
            columns.append(getattr(other, further))
    query = sa.select(*columns).select_from(kind)
    for name, other in ones.items():
        query = query.outerjoin(getattr(kind, name).of_type(other))
    return _Reading(query, [_many(getattr(kind, name), at) for name, at in many.items()])


@functools.cache
def _reading_one(kind: type[model.Base], paths: tuple[str, ...], by: str) -> _Reading:
    """The query that reads these paths of the row with an id.

    It is cached: a new statement takes SQLAlchemy twice as long, even if it is equal.
    """
    query, many = _reading(kind, paths)
    return _Reading(query.where(getattr(kind, by) == sa.bindparam(_ID)), many)


@functools.cache
def _reading_these(kind: type[model.Base], paths: tuple[str, ...]) -> _Reading:
    query, many = _reading(kind, paths)
    these = kind.uuid.in_(sa.bindparam(_IDS, expanding=True))
    return _Reading(query.where(these).order_by(kind.id), many)


def _many(relationship: typing.Any, wanted: list[tuple[int, str]]) -> _Many:
    target = relationship.property.entity.class_
    [(_, back)] = relationship.property.local_remote_pairs
    columns = [getattr(target, name) for _, name in wanted]
    query = sa.select(back, *columns).order_by(target.id)
    return _Many(query, back, [position for position, _ in wanted])


def _values(
    session: orm.Session,
    reading: _Reading,
    parameters: collections.abc.Mapping[str, typing.Any] | None = None,
) -> Values:
    # The session would make tuples of its own of each row.
    connection = session.connection()
    rows: Values = connection.execute(reading.query, parameters).all()
    return _with_many(connection, rows, reading.many) if rows and reading.many else rows


def _with_many(connection: sa.Connection, rows: Values, many: list[_Many]) -> Values:
    """These rows with lists of the values that relationships lead to."""
    complete = [[*row] for row in rows]
    for query, back, positions in many:
        ids = {row[positions[0]] for row in complete}
        found: dict[typing.Any, list[list[typing.Any]]] = collections.defaultdict(list)
        for id, *values in connection.execute(query.where(back.in_(ids))).all():
            found[id].append(values)
        for row in complete:
            together = found[row[positions[0]]]
            for number, position in enumerate(positions):
                row[position] = [values[number] for values in together]
    return complete


def _in_order(
    query: sa.Select[typing.Any],
    kind: type[Row],
    page: Page,
    scope: collections.abc.Sequence[sa.ColumnElement[bool]],
) -> sa.Select[typing.Any]:
    """What reads the rows of one page, in its order."""
    column = getattr(kind, page.sort_key)
    if page.marker is not None:
        query = query.where(_after(kind, page, scope))
    direction = sa.desc if page.sort_dir == 'desc' else sa.asc
    if column.property.columns[0].nullable:
        # Nulls come last in either direction, on every engine.
        query = query.order_by(column.is_(None))
    # Ids tell equal values apart.
    return query.order_by(direction(column), direction(kind.id)).limit(page.limit)


def run(
    session: orm.Session, statement: sa.Executable, values: typing.Any = None
) -> sa.CursorResult[typing.Any]:
    """Execute a statement, with the values of its parameters, that needs no objects.

    The session would do so too, but takes about as long as the database does.
    """
    # What the objects of the session have to be written comes first.
    session.flush()
    return session.connection().execute(statement, values)


def matched(
    session: orm.Session,
    statement: sa.Update | sa.Delete,
    values: collections.abc.Mapping[str, typing.Any] | None = None,
) -> int:
    """Execute a statement; returns how many rows met its conditions."""
    return run(session, statement, values).rowcount


def _after(
    kind: type[Row],
    page: Page,
    scope: collections.abc.Sequence[sa.ColumnElement[bool]],
) -> sa.ColumnElement[bool]:
    """The condition that a row comes after the marker; false for all rows if the marker is
    unknown.

    oslo.db's paginate_query returns rows twice where the marker's value is null.
    """
    column = getattr(kind, page.sort_key)
    marked = sa.select(column).where(kind.uuid == page.marker, *scope)
    # The rows of the statement that it is part of have the same table.
    value = marked.correlate(None).scalar_subquery()
    id = marked.with_only_columns(kind.id).correlate(None).scalar_subquery()
    descending = page.sort_dir == 'desc'
    further: sa.ColumnElement[bool] = kind.id < id if descending else kind.id > id
    if page.sort_key == 'id':
        return further
    return sa.or_(
        column < value if descending else column > value,
        sa.and_(column == value, further),
        sa.and_(column.is_(None), sa.or_(value.is_not(None), further)),
    )


def _refuse_unknown(
    session: orm.Session,
    kind: type[Row],
    page: Page,
    scope: collections.abc.Sequence[sa.ColumnElement[bool]],
) -> None:
    """:raises cyborg_lite.exception.Invalid: when there is a marker, and it names no row."""
    marked = sa.select(kind.id).where(kind.uuid == page.marker, *scope)
    if page.marker is not None and session.scalar(marked) is None:
        raise exception.Invalid(
            reason=f'Invalid marker {page.marker!r}: expected the uuid of the last item of the '
            'page before.'
        )

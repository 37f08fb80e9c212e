# SPDX-License-Identifier: Apache-2.0
"""Queries that fit any model: get one, find a page of many."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model

Row = typing.TypeVar('Row', bound=model.Base)


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

    :param scope: the conditions that a marker has to meet as well: who may not see a row is not
        told that it is there. The others it need not meet any more.
    :raises cyborg_lite.exception.Invalid: when the marker or the sort key is unknown.
    """
    page = page or Page()
    column = getattr(kind, page.sort_key)
    query = sa.select(kind).where(*scope, *conditions).options(*options).limit(page.limit)
    if page.marker is not None:
        query = query.where(_after(session, kind, page, scope))
    direction = sa.desc if page.sort_dir == 'desc' else sa.asc
    if column.property.columns[0].nullable:
        # Nulls come last in either direction, on every engine.
        query = query.order_by(column.is_(None))
    # Ids tell equal values apart.
    query = query.order_by(direction(column), direction(kind.id))
    return list(session.scalars(query).unique())


def matched(session: orm.Session, statement: sa.Update | sa.Delete) -> int:
    """Execute a statement; returns how many rows met its conditions."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    return typing.cast('sa.CursorResult[typing.Any]', result).rowcount


def _after(
    session: orm.Session,
    kind: type[Row],
    page: Page,
    scope: collections.abc.Sequence[sa.ColumnElement[bool]],
) -> sa.ColumnElement[bool]:
    """That a row comes after the one that the marker names.

    oslo.db's paginate_query returns rows twice where the marker's value is null.
    """
    column = getattr(kind, page.sort_key)
    found = sa.select(column, kind.id).where(kind.uuid == page.marker, *scope)
    row = session.execute(found).one_or_none()
    if row is None:
        raise exception.Invalid(
            reason=f'Invalid marker {page.marker!r}: expected the uuid of the last item of the '
            'page before.'
        )
    value, id = row
    descending = page.sort_dir == 'desc'
    further = kind.id < id if descending else kind.id > id
    if value is None:
        return sa.and_(column.is_(None), further)
    beyond = column < value if descending else column > value
    return sa.or_(beyond, sa.and_(column == value, further), column.is_(None))

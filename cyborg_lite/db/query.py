# SPDX-License-Identifier: Apache-2.0
"""Queries that fit any model: get one, find a page of many."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

from oslo_db.sqlalchemy import utils
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
    options: collections.abc.Sequence[typing.Any] = (),
) -> list[Row]:
    """The rows that meet all conditions, in the order of the page.

    :raises cyborg_lite.exception.Invalid: when the marker or the sort key is unknown.
    """
    page = page or Page()
    query = sa.select(kind).where(*conditions).options(*options)
    keys = [page.sort_key] if page.sort_key in ('id', 'uuid') else [page.sort_key, 'id']
    query = utils.paginate_query(
        query,
        kind,
        page.limit,
        keys,
        marker=_marker(session, kind, page, conditions),
        # Nulls come last in either direction, on every engine.
        sort_dirs=[f'{page.sort_dir}-nullslast' if key != 'id' else page.sort_dir for key in keys],
    )
    return list(session.scalars(query).unique())


def _marker(
    session: orm.Session,
    kind: type[Row],
    page: Page,
    conditions: tuple[sa.ColumnElement[bool], ...],
) -> typing.Any:
    if page.marker is None:
        return None
    columns = sa.select(kind.id, getattr(kind, page.sort_key).label(page.sort_key))
    # Who may not see a row is not told that it is there.
    row = session.execute(columns.where(kind.uuid == page.marker, *conditions)).one_or_none()
    if row is None:
        raise exception.Invalid(
            reason=f'Invalid marker {page.marker!r}: expected the uuid of the last item of the '
            'page before.'
        )
    return row

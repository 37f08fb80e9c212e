# SPDX-License-Identifier: Apache-2.0
"""What was held, and what is: intervals, and their sums."""

from __future__ import annotations

import datetime
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import query
from cyborg_lite.model import base

_class = orm.aliased(model.Attribute)
# A conductor of the release before notes neither the moment nor the class.
_began_at = model.ARQ.holds_since()

#: The columns of an open interval, by those of a finished one.
_HELD: dict[str, typing.Any] = {
    'project_id': model.ARQ.project_id,
    'resource_class': sa.func.coalesce(model.ARQ.resource_class, _class.value),
    'host': model.Device.hostname,
    'device_uuid': model.Device.uuid,
    'accelerator_uuid': model.AttachHandle.uuid,
    'arq_uuid': model.ARQ.uuid,
    'allocation_uuid': model.ARQ.allocation_uuid,
    'instance_uuid': model.ARQ.instance_uuid,
    'began_at': _began_at,
}


#: The name of the parameter of ending().
MOMENT = 'moment'


class Period(typing.NamedTuple):
    """From when to when usage is counted; the end is not part of it."""

    start: datetime.datetime
    end: datetime.datetime


def _held(columns: dict[str, typing.Any]) -> sa.Select[typing.Any]:
    """What requests hold now."""
    return (
        sa.select(*(column.label(name) for name, column in columns.items()))
        .select_from(model.ARQ)
        .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
        .join(model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id)
        .join(model.Device, model.Device.id == model.Deployable.device_id)
        .outerjoin(_class, sa.and_(_class.deployable_id == model.Deployable.id, _class.key == 'rc'))
    )


def ending(condition: sa.ColumnElement[bool]) -> sa.Insert:
    """The statement that notes that what these requests hold is held until MOMENT and no longer.

    It is made once: the condition has parameters.
    """
    now = sa.bindparam(MOMENT, type_=base.Moment)
    # The clock of another conductor, by which it began, may be ahead.
    columns = _HELD | {'ended_at': sa.case((_began_at > now, _began_at), else_=now)}
    return sa.insert(model.Usage).from_select(list(columns), _held(columns).where(condition))


def rename(session: orm.Session, old: str, new: str) -> None:
    """Have the usage of a host shown under its new name."""
    of_old = sa.update(model.Usage).where(model.Usage.host == old)
    query.matched(session, of_old.values(host=new))


def total(
    session: orm.Session,
    period: Period,
    by: list[str],
    only: list[tuple[str, str]],
    limit: int,
    offset: int = 0,
) -> list[dict[str, typing.Any]]:
    """For how many seconds accelerators were held in a period, in groups and in their order.

    Each moment counts as its whole second, as histories show it. So the sums of two periods that
    follow each other are that of both together, and so are those of smaller groups.

    :param by: of model.Usage.KEYS, by what to group.
    :param only: the keys and values that an interval must have.
    """
    now = timeutils.utcnow()
    over = {name: getattr(model.Usage, name) for name in (*_HELD, 'ended_at')}
    held = _HELD | {'ended_at': sa.literal(now, base.Moment)}
    intervals = sa.union_all(
        _part(sa.select(*(over[name].label(name) for name in _SUMMED)), over, period, only),
        _part(_held({name: held[name] for name in _SUMMED}), held, period, only),
    ).subquery()
    columns = intervals.columns
    first, last = int(_timestamp(period.start)), int(_timestamp(period.end))
    began, ended = base.Second(columns.began_at), base.Second(columns.ended_at)
    seconds = sa.case((ended > last, last), else_=ended) - sa.case(
        (began < first, first), else_=began
    )
    keys = [columns[name] for name in by]
    sums = (
        sa.select(*keys, sa.func.sum(seconds).label('device_seconds'))
        .group_by(*keys)
        .order_by(*keys)
        .limit(limit)
        .offset(offset)
    )
    return [
        {**row, 'device_seconds': int(row['device_seconds'])}
        for row in session.execute(sums).mappings()
    ]


_SUMMED = (*model.Usage.KEYS, 'began_at', 'ended_at')


def _part(
    rows: sa.Select[typing.Any],
    columns: dict[str, typing.Any],
    period: Period,
    only: list[tuple[str, str]],
) -> sa.Select[typing.Any]:
    """Those of these intervals that reach into a period."""
    return rows.where(
        columns['ended_at'] > period.start,
        columns['began_at'] < period.end,
        *(columns[name] == value for name, value in only),
    )


def _timestamp(moment: datetime.datetime) -> float:
    return moment.replace(tzinfo=datetime.UTC).timestamp()

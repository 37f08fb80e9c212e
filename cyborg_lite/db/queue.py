# SPDX-License-Identifier: Apache-2.0
"""The allocations that wait, and how many accelerators their projects hold."""

from __future__ import annotations

import collections
import functools
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import query as queries
from cyborg_lite.model import queue

_waits = model.Allocation.state == 'queued'
_late = sa.and_(
    model.Allocation.state == 'reserved', model.Allocation.starts_at <= sa.bindparam('now')
)
#: Whether an allocation waits.
ANY = sa.exists().where(_waits)
_ANY = sa.select(ANY.label('queued'), sa.exists().where(_late).label('late'))


def any_waits(session: orm.Session) -> tuple[bool, bool]:
    """Whether an allocation is queued, and whether a reservation has to start."""
    found = queries.run(session, _ANY, {'now': timeutils.utcnow()}).one()
    return bool(found.queued), bool(found.late)


def waiting(session: orm.Session, *columns: typing.Any) -> list[sa.Row[typing.Any]]:
    """What decides the turn of each allocation that waits, and these columns.

    ``held`` is how many accelerators of its class its project holds; null for none.
    """
    return list(queries.run(session, _waiting(columns)))


@functools.cache
def _waiting(columns: tuple[typing.Any, ...]) -> sa.Select[typing.Any]:
    """Made once: each allocation asks this."""
    classes = sa.select(model.Allocation.queue).where(_waits)
    _class = orm.aliased(model.Attribute)
    held = (
        sa.select(model.ARQ.project_id, _class.value.label('queue'), sa.func.count().label('held'))
        .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
        .join(_class, _class.deployable_id == model.AttachHandle.deployable_id)
        .where(_class.key == 'rc', _class.value.in_(classes))
        .group_by(model.ARQ.project_id, _class.value)
        .subquery('held')
    )
    mine = sa.and_(
        held.c.project_id == model.Allocation.project_id, held.c.queue == model.Allocation.queue
    )
    return (
        sa.select(
            model.Allocation.id,
            model.Allocation.uuid,
            model.Allocation.project_id,
            model.Allocation.queue,
            model.Allocation.priority,
            model.Allocation.created_at,
            model.Allocation.amount,
            model.Allocation.over_quota,
            held.c.held,
            *columns,
        )
        .outerjoin(held, mine)
        .where(_waits)
        .order_by(model.Allocation.id)
    )


def in_turn(rows: list[sa.Row[typing.Any]]) -> list[sa.Row[typing.Any]]:
    """These rows in the order in which they are served."""
    by_id = {row.id: row for row in rows}
    turns = queue.in_turn(
        [
            queue.Waiting(
                *(row.id, row.project_id, row.queue, row.priority, row.created_at, row.amount),
                held=row.held or 0,
            )
            for row in rows
        ],
        timeutils.utcnow(),
    )
    return [by_id[turn.id] for turn in turns]


def positions(session: orm.Session) -> dict[str, int]:
    """By its uuid, the position in its queue of each allocation that waits, from 1.

    What its quota holds up lets others pass: it comes last.
    """
    found: dict[str, int] = {}
    counts: collections.Counter[str] = collections.Counter()
    for row in sorted(in_turn(waiting(session)), key=lambda row: row.over_quota):
        counts[row.queue] += 1
        found[row.uuid] = counts[row.queue]
    return found

# SPDX-License-Identifier: Apache-2.0
"""What a request holds: the link to its attach handle is set, cleared and deleted through here.

So nothing is given out without a note of since when it is held, and nothing is freed without a note
of how long it was.
"""

from __future__ import annotations

import collections.abc
import datetime
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.conductor import outbox
from cyborg_lite.db import exclusion
from cyborg_lite.db import query
from cyborg_lite.db import usages

#: The columns of a request that holds nothing.
NOTHING: dict[str, None] = dict.fromkeys(('attach_handle_id', 'held_since', 'resource_class'))


def given(handle: int, resource_class: str | None, at: datetime.datetime) -> dict[str, typing.Any]:
    """The columns of a request that holds an accelerator from now on.

    :param handle: the id of the attach handle.
    :param at: when it was bound, as its history says.
    """
    return {'attach_handle_id': handle, 'held_since': at, 'resource_class': resource_class}


def end(
    session: orm.Session,
    statement: sa.Update | sa.Delete,
    arqs: collections.abc.Iterable[model.ARQ] | None = None,
    at: datetime.datetime | None = None,
) -> int:
    """Execute what takes away from requests what they hold; returns how many rows it matched.

    The transaction has locked these requests, or fails if not as many rows match as it expects.

    :param arqs: the requests as they were read, if they were: where none holds, nothing is noted.
    :param at: when they are freed, as their histories say; now by default.
    """
    condition = statement.whereclause
    if condition is None:
        raise ValueError('expected a statement for certain requests')
    if arqs is None or any(arq.attach_handle_id is not None for arq in arqs):
        usages.end(session, condition, at or timeutils.utcnow())
    return query.matched(session, statement)


def excluding(session: orm.Session, arqs: list[model.ARQ]) -> set[str]:
    """The hosts where these requests exclude what is free, while they hold what they hold.

    They are told of last: others wait for a message from then on.
    """
    handles = [arq.attach_handle_id for arq in arqs if arq.attach_handle_id is not None]
    if not handles or not outbox.tells(session, outbox.HOST):
        return set()
    found = (
        sa.select(sa.func.coalesce(model.Host.renamed_to, model.Host.name))
        .select_from(model.AttachHandle)
        .join(model.Deployable)
        .join(model.Device)
        .join(model.Host, model.Host.name == model.Device.hostname)
        .where(
            model.AttachHandle.id.in_(handles),
            sa.or_(model.Host.renamed_to.is_not(None), exclusion.excludes(model.Device.hostname)),
        )
    )
    return {*session.scalars(found)}

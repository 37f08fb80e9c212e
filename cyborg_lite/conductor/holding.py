# SPDX-License-Identifier: Apache-2.0
"""Sets, clears and deletes the link from a request to its attach handle.

All code does so through this module, so that each held accelerator has the time of its bind, and
each freed accelerator has a row of its usage.
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
    """The columns of a request that gets an accelerator.

    :param handle: the id of the attach handle.
    :param at: the time of the bind, the same as in its history.
    """
    return {'attach_handle_id': handle, 'held_since': at, 'resource_class': resource_class}


class Ending:
    """A statement that frees the accelerators of requests, with the one that stores their usage."""

    def __init__(self, statement: sa.Update | sa.Delete) -> None:
        """:param statement: for certain requests; made once, with parameters."""
        condition = statement.whereclause
        if condition is None:
            raise ValueError('expected a statement for certain requests')
        self._statement = statement
        self._note = usages.ending(condition)

    def execute(
        self,
        session: orm.Session,
        values: dict[str, typing.Any],
        arqs: collections.abc.Iterable[model.ARQ] | None = None,
        at: datetime.datetime | None = None,
    ) -> int:
        """Free the accelerators; returns how many rows the statement matched.

        The transaction has locked these requests, or it fails if another number of rows matches.

        :param values: the values of the parameters.
        :param arqs: the requests, if they were read: if none holds an accelerator, no usage is
            stored.
        :param at: the time of the release, the same as in their histories; now by default.
        """
        if arqs is None or any(arq.attach_handle_id is not None for arq in arqs):
            query.run(session, self._note, values | {usages.MOMENT: at or timeutils.utcnow()})
        return query.matched(session, self._statement, values)


def excluding(session: orm.Session, arqs: list[model.ARQ]) -> set[str]:
    """The hosts where the accelerators of these requests exclude free ones.

    Their messages are written last, because other transactions wait for them from then on.
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

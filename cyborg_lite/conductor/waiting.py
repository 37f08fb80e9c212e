# SPDX-License-Identifier: Apache-2.0
"""Why an allocation waits, at the moment when somebody asks.

Nothing is written: the reason that is stored stays that of the moment when it joined the queue.
"""

from __future__ import annotations

import collections.abc
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import taking

Row = sa.Row[typing.Any]


def explain(session: orm.Session, ctxt: context.RequestContext, uuid: str) -> str | None:
    """What a queued allocation needs, what is free for it, and which lease frees more of it first;
    and what the first of its queue needs, if that is another one that the caller may see.

    None if it does not wait, or if a quota holds it up: then the stored reason names the quota.
    """
    rows = [row for row in serving.waiting(session) if not row.over_quota]
    own = next((row for row in rows if row.uuid == uuid), None)
    if own is None:
        return None
    before = [row for row in rows[: rows.index(own)] if row.queue == own.queue]
    refused = next(iter(serving.refusals(session, [own]).values()), ())
    wanted, over, explanation = _explained(session, own, refused)
    hosts, project = own.wish['hosts'], own.project_id
    ending = reasons.ending(session, wanted, hosts, explanation, over, project)
    comes = f'; {ending}' if ending else ''
    return f'It waits: {reasons.said(explanation)}{_behind(session, ctxt, before)}{comes}.'


def explain_first(session: orm.Session, uuids: collections.abc.Collection[str]) -> dict[str, str]:
    """The same of the first of these alone, without quotas: agents ask twice a second.

    They name their host, and it takes as long as there are accelerators on that.
    """
    for row in serving.waiting(session):
        if row.uuid in uuids and not row.over_quota:
            return {row.uuid: f'It waits: {_needs(session, row, near=True)}.'}
    return {}


def _behind(session: orm.Session, ctxt: context.RequestContext, before: list[Row]) -> str:
    """How many come first, and what the first of them waits for: no host, holder or quota of it.

    What another project asks for, or the reservation that it names, is no business of the caller.
    """
    if not before:
        return ''
    one = len(before) == 1
    count = '1 allocation comes' if one else f'{len(before)} allocations come'
    if ctxt.scope not in (None, before[0].project_id):
        return f'; {count} before it'
    which = 'which' if one else 'the first'
    return f'; {count} before it, {which} {_needs(session, before[0])}'


def _needs(
    session: orm.Session,
    row: Row,
    refused: collections.abc.Iterable[exception.OverQuota | None] = (),
    near: bool = False,
) -> str:
    """What an allocation needs, and what is free for it now: see _explained()."""
    _, _, explanation = _explained(session, row, refused, near)
    return reasons.said(explanation)


def _explained(
    session: orm.Session,
    row: Row,
    refused: collections.abc.Iterable[exception.OverQuota | None],
    near: bool = False,
) -> tuple[reasons.Wanted, dict[int, exception.OverQuota], reasons.Explanation]:
    """What an allocation asks for, the limits that its alternatives would exceed, by their numbers,
    and what is free for it now.

    :param refused: for each alternative the limit that it would exceed, or None.
    :param near: as for reasons.explain.
    """
    kinds: taking.Kinds = {}
    sets = [wanted for wanted in serving.entry(row, kinds).sets if wanted]
    over = {number: each for number, each in enumerate(refused) if each}
    wanted, of_hosts = reasons.Wanted([], list(kinds), sets), row.wish['hosts']
    explanation = reasons.explain(session, wanted, of_hosts, None, row.lease, over, near)
    reasons.name_reservation(session, wanted, of_hosts, explanation, row.project_id)
    return wanted, over, explanation

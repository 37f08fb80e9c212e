# SPDX-License-Identifier: Apache-2.0
"""Quotas: limits are set here, and kept in the transaction that creates accelerator requests."""

from __future__ import annotations

import collections
import collections.abc
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import queue
from cyborg_lite.db import quotas

#: The most limits of one project.
MOST = 1000

#: What is asked for, one way or another: how many accelerators, by resource class.
Alternatives = collections.abc.Iterable[collections.abc.Mapping[str, int]]
Key = typing.TypeVar('Key')
#: By project what is limited of it, and what it uses; None for a project without limits.
Counted = dict[str, quotas.Account | None]


def claim(
    session: orm.Session,
    project: str,
    asked: collections.abc.Mapping[str, int],
    has_row: bool | None = None,
) -> None:
    """Return if the project may have so many requests more, by resource class.

    Until the transaction ends, nothing else is counted for the project.

    :param has_row: whether the project has a row, if a statement before has locked it.
    :raises cyborg_lite.exception.OverQuota: otherwise.
    """
    if has_row is None:
        has_row = _lock_row(session, project)
    # Under the lock: both may have changed until it was had.
    account = quotas.accounts(session, [project]).get(project)
    if account and not has_row:
        _add_row(session, project)
        account = quotas.accounts(session, [project])[project]
    if account and (refusal := _beyond(project, account, asked)):
        raise refusal


def refuse_more_than_limit(
    session: orm.Session,
    project: str,
    alternatives: Alternatives,
) -> None:
    """Return if the project may have any of these, by resource class, once it has given back all
    that it has.

    :raises cyborg_lite.exception.OverQuota: otherwise.
    """
    if refusal := first_if_all(beyond_limits(session, project, alternatives)):
        raise refusal


def beyond_limits(
    session: orm.Session, project: str, alternatives: Alternatives
) -> list[exception.OverQuota | None]:
    """For each alternative of these the limit that it would exceed if the project had nothing."""
    # What the project has changes nothing, but the refusal tells it.
    account = quotas.accounts(session, [project]).get(project)
    found = [account and _beyond(project, account, asked) for asked in alternatives]
    return [each if each and each.is_lasting else None for each in found]


def first_if_all(
    refused: collections.abc.Sequence[exception.OverQuota | None],
) -> exception.OverQuota | None:
    """The refusal of the first alternative, if every alternative is refused."""
    return refused[0] if refused and all(refused) else None


def refusals(
    session: orm.Session,
    wishes: collections.abc.Mapping[Key, tuple[str, Alternatives]],
    counted: Counted | None = None,
) -> dict[Key, list[exception.OverQuota | None]]:
    """For each alternative of these the limit that it would exceed now; None for none.

    Nothing is locked: this may change at once.

    :param wishes: by whatever names them, the project and its alternatives by resource class; what
        is of a project without limits is not in the answer.
    :param counted: what this transaction has counted; what is counted now is added.
    """
    counted = {} if counted is None else counted
    if projects := {project for project, _ in wishes.values()} - counted.keys():
        found = quotas.accounts(session, projects)
        counted |= {project: found.get(project) for project in projects}
    return {
        name: [_beyond(project, account, each) for each in alternatives]
        for name, (project, alternatives) in wishes.items()
        if (account := counted[project])
    }


def _beyond(
    project: str, account: quotas.Account, asked: collections.abc.Mapping[str, int]
) -> exception.OverQuota | None:
    """The limit that would be exceeded, at first one for good; None if none would."""
    limits, used = account
    wanted = {**asked, model.Quota.TOTAL: sum(asked.values())}
    exceeded = []
    for name, count in sorted(wanted.items()):
        limit = limits.get(name, model.Quota.UNLIMITED)
        if limit != model.Quota.UNLIMITED and used[name] + count > limit:
            told = {'resource': name, 'limit': limit, 'used': used[name], 'asked': count}
            exceeded.append(exception.OverQuota(**told, whose=f' in project {project}'))
    return min(exceeded, key=lambda each: not each.is_lasting, default=None)


def claim_moved(session: orm.Session, moved: collections.abc.Iterable[tuple[str, str]]) -> None:
    """Count for their new projects requests that change theirs.

    :param moved: of each, its new project and its resource class.
    """
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for project, resource_class in moved:
        found[project][resource_class] += 1
    # In one order, so that two transactions that lock the same projects do not deadlock.
    for project, counts in sorted(found.items()):
        claim(session, project, counts)


def asked(groups: list[dict[str, str]], amounts: list[int]) -> collections.Counter[str]:
    """How many requests of each resource class come of these groups, by how many each makes."""
    found: collections.Counter[str] = collections.Counter()
    for group, amount in zip(groups, amounts, strict=True):
        found += quotas.shares(group, amount)
    return found


def _lock(session: orm.Session, project: str) -> None:
    """Lock the row of a project until the transaction ends; make it where there is none."""
    if not _lock_row(session, project):
        _add_row(session, project)


def _lock_row(session: orm.Session, project: str) -> bool:
    """Lock the row of a project until the transaction ends; returns whether there is one."""
    return session.scalar(_row(project).with_for_update()) is not None


def _add_row(session: orm.Session, project: str) -> None:
    """Make the row of a project: it is locked.

    If two transactions create it, the database refuses the second, which is retried.
    """
    session.execute(sa.insert(model.Quota), [{'project_id': project, 'limits': {}}])


def _row(project: str) -> sa.Select[typing.Any]:
    return sa.select(model.Quota).where(model.Quota.project_id == project)


def may_be(session: orm.Session, stored: bool) -> bool:
    """Whether there may be limits.

    :param stored: whether some may be stored here.
    """
    return stored or quotas.elsewhere(session) is not None


def _refuse_elsewhere(session: orm.Session) -> None:
    if quotas.elsewhere(session) is not None:
        raise exception.LimitsElsewhere


def update(
    session: orm.Session,
    ctxt: context.RequestContext,
    project: str,
    limits: dict[str, int | None],
) -> None:
    """Set limits of a project; None takes one away, so that the default one holds.

    A limit may be lower than what is used: nothing is taken away, and nothing more is given.

    :raises cyborg_lite.exception.Invalid: when the project would have too many.
    :raises cyborg_lite.exception.LimitsElsewhere: when Keystone keeps the limits.
    """
    _refuse_elsewhere(session)
    _lock(session, project)
    row = session.scalars(_row(project)).one()
    merged = row.limits | limits
    if len(merged) > MOST:
        raise exception.Invalid(reason=f'Invalid limits: expected {MOST} at most for a project.')
    row.limits = {name: limit for name, limit in merged.items() if limit is not None}
    # Also where they are the same as before: see Quota.revision.
    row.updated_at = timeutils.utcnow()
    queue.wake(session)


def delete(
    session: orm.Session, ctxt: context.RequestContext, project: str, seen: str | None = None
) -> None:
    """Take away all limits of a project, so that the default ones hold.

    :param seen: the revision of the limits that the caller has read: later limits stay in force.
    :raises cyborg_lite.exception.NotFound: when it has none.
    :raises cyborg_lite.exception.Conflict: when the limits were changed meanwhile.
    :raises cyborg_lite.exception.LimitsElsewhere: when Keystone keeps the limits.
    """
    _refuse_elsewhere(session)
    row = session.scalar(_row(project).with_for_update())
    if row is None:
        raise exception.NotFound(what='Quota of project', id=project)
    if seen not in (None, row.revision):
        raise exception.Conflict(
            reason=f'The limits of project {project} were changed meanwhile: look at them, and '
            'delete them again.'
        )
    session.delete(row)
    queue.wake(session)

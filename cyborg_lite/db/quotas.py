# SPDX-License-Identifier: Apache-2.0
"""The limits of a project, and what of them it uses."""

from __future__ import annotations

import collections
import collections.abc
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import query

_projects: sa.BindParameter[str] = sa.bindparam('projects', expanding=True)
_LIMITS = sa.select(model.Quota.project_id, model.Quota.limits).where(
    model.Quota.project_id.in_(_projects)
)
#: Whether there are limits in our table, of whatever project.
ANY = sa.exists(sa.select(model.Quota.id))
_of = model.ARQ.project_id, model.ARQ.device_profile_id, model.ARQ.device_profile_group_id
_by_group = (
    sa.select(*_of, sa.func.count().label('amount'))
    .where(model.ARQ.project_id.in_(_projects))
    .group_by(*_of)
    .subquery()
)
_USED = sa.select(
    _by_group.c.project_id,
    model.DeviceProfile.groups.label('told'),
    _by_group.c.device_profile_group_id.label('number'),
    _by_group.c.amount,
).join(_by_group, _by_group.c.device_profile_id == model.DeviceProfile.id)
_owners: sa.BindParameter[str] = sa.bindparam('owners', expanding=True)
_limited = model.Quota.project_id.in_(_owners)
#: The limits of owners, and what they use if there are any: each row is a limit or a usage.
_ACCOUNTS = sa.union_all(
    sa.select(
        *(model.Quota.project_id, model.Quota.limits.label('told')),
        *(sa.null().label('number'), sa.null().label('amount')),
    ).where(_limited),
    _USED.where(sa.exists(sa.select(model.Quota.id).where(_limited))),
)
#: The id of the row of an owner in our table; null if there is none. What reads it locks the row
#: until the transaction ends. A statement sees no changes that it waits for: what the owner uses is
#: counted by a later one.
LOCKED = (
    sa.select(model.Quota.id)
    .where(model.Quota.project_id == sa.bindparam('owner'))
    .with_for_update()
    .scalar_subquery()
)
#: The key of a session's info: what knows the limits, if Keystone keeps them and not our table.
ELSEWHERE = 'cyborg_lite.quotas.elsewhere'


Rows = collections.abc.Sequence[sa.Row[typing.Any]]


class Account(typing.NamedTuple):
    """What is limited of a project, and what it uses."""

    limits: dict[str, int]
    used: collections.Counter[str]


class Elsewhere(typing.Protocol):
    """What knows the limits that another service keeps."""

    def known(self, projects: collections.abc.Collection[str]) -> dict[str, dict[str, int]]:
        """What is limited of each of these projects, without asking the other service."""


def elsewhere(session: orm.Session) -> Elsewhere | None:
    """What knows the limits that another service keeps; None if our table has them."""
    return session.info.get(ELSEWHERE)


def limits(session: orm.Session, project: str) -> dict[str, int]:
    """What is limited, by resource class and in total: the project's own limits first."""
    return limits_of(session, [project])[project]


def limits_of(
    session: orm.Session, projects: collections.abc.Collection[str]
) -> dict[str, dict[str, int]]:
    """What is limited of each of these projects."""
    other = elsewhere(session)
    if other is not None:
        return other.known(projects)
    values = {'projects': [*projects, model.Quota.DEFAULTS]}
    rows = query.run(session, _LIMITS, values)
    return _merged({row.project_id: row.limits for row in rows}, projects)


def usage(session: orm.Session, project: str) -> collections.Counter[str]:
    """How many accelerator requests the project has, by resource class and in total.

    Each counts from its creation to its deletion, whatever its state, for the class that its device
    profile asks for. Nothing is stored: counters could drift from the rows.
    """
    return usage_of(session, [project])[project]


def usage_of(
    session: orm.Session, projects: collections.abc.Collection[str]
) -> dict[str, collections.Counter[str]]:
    """The same of each of these projects."""
    return _counted(projects, query.run(session, _USED, {'projects': [*projects]}).all())


def accounts(session: orm.Session, projects: collections.abc.Collection[str]) -> dict[str, Account]:
    """The limits and the usage of each of these projects that has limits, by one statement."""
    if elsewhere(session) is not None:
        found = {each: its for each, its in limits_of(session, projects).items() if its}
        used = usage_of(session, found) if found else {}
        return {each: Account(its, used[each]) for each, its in found.items()}
    values = {'projects': [*projects], 'owners': [*projects, model.Quota.DEFAULTS]}
    rows: Rows = query.run(session, _ACCOUNTS, values).all()
    known = {row.project_id: row.told for row in rows if row.number is None}
    found = {each: its for each, its in _merged(known, projects).items() if its}
    used = _counted(projects, [row for row in rows if row.number is not None])
    return {each: Account(its, used[each]) for each, its in found.items()}


def _merged(
    known: dict[str, dict[str, int]], projects: collections.abc.Iterable[str]
) -> dict[str, dict[str, int]]:
    """The limits of projects, their own first."""
    defaults = known.get(model.Quota.DEFAULTS, {})
    return {project: defaults | known.get(project, {}) for project in projects}


def _counted(
    projects: collections.abc.Iterable[str], rows: Rows
) -> dict[str, collections.Counter[str]]:
    used: dict[str, collections.Counter[str]] = {each: collections.Counter() for each in projects}
    for row in rows:
        used[row.project_id] += shares(row.told[row.number], row.amount)
        used[row.project_id][model.Quota.TOTAL] += row.amount
    return used


def shares(group: dict[str, str], count: int) -> collections.Counter[str]:
    """How many of so many requests of a group are for each resource class.

    A group of several classes does not say which request is for which class. While all requests of
    the group are there the numbers are exact, else they are rounded up.
    """
    amounts = {name: max(0, each) for name, each in model.DeviceProfile.resources(group).items()}
    whole = sum(amounts.values())
    return collections.Counter(
        {name: -(-count * amount // whole) for name, amount in amounts.items() if amount}
    )

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

_LIMITS = sa.select(model.Quota.project_id, model.Quota.limits).where(
    model.Quota.project_id.in_(sa.bindparam('projects', expanding=True))
)
#: The key of a session's info: what knows the limits, if Keystone keeps them and not our table.
ELSEWHERE = 'cyborg_lite.quotas.elsewhere'


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
    found = {row.project_id: row.limits for row in query.run(session, _LIMITS, values)}
    defaults = found.get(model.Quota.DEFAULTS, {})
    return {project: defaults | found.get(project, {}) for project in projects}


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
    of = model.ARQ.project_id, model.ARQ.device_profile_id, model.ARQ.device_profile_group_id
    counts = sa.select(*of, sa.func.count().label('count'))
    counts = counts.where(model.ARQ.project_id.in_(projects)).group_by(*of)
    by_group = counts.subquery()
    used_by = sa.select(
        by_group.c.project_id,
        model.DeviceProfile.groups,
        by_group.c.device_profile_group_id,
        by_group.c.count,
    ).join(by_group, by_group.c.device_profile_id == model.DeviceProfile.id)
    used: dict[str, collections.Counter[str]] = {each: collections.Counter() for each in projects}
    for project, groups, number, count in session.execute(used_by):
        used[project] += shares(groups[number], count)
        used[project][model.Quota.TOTAL] += count
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

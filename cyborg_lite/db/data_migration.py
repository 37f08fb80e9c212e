# SPDX-License-Identifier: Apache-2.0
"""Bring rows that an older release wrote to what this one writes, while the service runs.

A migration of the schema must be fast and fit the release before; what takes long or needs code
is declared here.  It stays for one release: ``cyborg-lite-status upgrade check`` says when some
rows remain, so that a later one may count on none.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import sys
import typing

from oslo_log import log
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.db import engine

LOG = log.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataMigration:
    """Which rows are old, and how one of them becomes new."""

    name: str
    #: the rows that remain; a migrated row must not be among them any more
    pending: sa.Select[typing.Any]
    migrate: collections.abc.Callable[[typing.Any], None]


@dataclasses.dataclass
class Progress:
    """What one migration had to do, and what of it was done."""

    found: int = 0
    done: int = 0
    error: str = ''


#: How many rows one transaction migrates: the service goes on meanwhile.
BATCH = 50
#: In the order in which they run.
MIGRATIONS: tuple[DataMigration, ...] = ()


def remaining(session: orm.Session) -> dict[str, int]:
    """How many rows each migration has still to do, those that have any."""
    counts = {each.name: _count(session, each) for each in MIGRATIONS}
    return {name: count for name, count in counts.items() if count}


def run(database: engine.Database, most: int = sys.maxsize) -> dict[str, Progress]:
    """Migrate at most so many rows; one migration that fails does not stop the others."""
    progress = {each.name: Progress() for each in MIGRATIONS}
    for each in MIGRATIONS:
        now = progress[each.name]
        try:
            with database.reader() as session:
                now.found = _count(session, each)
            while batch := min(BATCH, most, now.found - now.done):
                with database.writer() as session:
                    _migrate(session, each, batch)
                now.done += batch
                most -= batch
        except Exception as error:  # whatever it is, the other migrations go on
            LOG.exception('Data migration %s failed', each.name)
            now.error = f'{type(error).__name__}: {error}'
    return progress


def _count(session: orm.Session, each: DataMigration) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(each.pending.subquery())) or 0


def _migrate(session: orm.Session, each: DataMigration, batch: int) -> None:
    for row in session.scalars(each.pending.limit(batch)).all():
        each.migrate(row)

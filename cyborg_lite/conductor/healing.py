# SPDX-License-Identifier: Apache-2.0
"""What a conductor does now and then, unasked; whichever comes first does it."""

from __future__ import annotations

import collections.abc
import datetime

from oslo_config import cfg
from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite import worker
from cyborg_lite.conductor import idling
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import queue
from cyborg_lite.conductor import releasing
from cyborg_lite.conductor import reserving
from cyborg_lite.db import candidates
from cyborg_lite.db import engine

LOG = log.getLogger(__name__)

#: How many leases are ended at once, at most.
MOST = 1000


class Healer:
    """Does it, in a thread of each conductor."""

    def __init__(self, conf: cfg.ConfigOpts, sender: outbox.Sender) -> None:
        self._conf = conf
        self._outbox = sender
        self._interval = conf.conductor.healing_interval
        #: the id of the host that Placement was last resynced of
        self._resynced = 0
        # When it last did its work, and since when it has done so without a break. One that was not
        # started judges hosts by their rows alone.
        self._looked: datetime.datetime | None = None
        self._watching = datetime.datetime.min
        self._worker = worker.Worker('healer', self._work, delay=self._interval)

    def start(self) -> None:
        self._begin()
        self._worker.start()

    def _begin(self) -> None:
        self._looked = self._watching = timeutils.utcnow()

    def stop(self) -> None:
        self._worker.stop()
        self._worker.join()

    def _work(self) -> float:
        self.heal()
        return float(self._interval)

    def heal(self) -> None:
        began = timeutils.utcnow()
        self._notice()
        self._resync()
        self.expire()
        self._look_for_idle()
        self._forget()
        self._wake()
        self._mend()
        if self._looked is not None:
            self._looked = began

    def _notice(self) -> None:
        with self._outbox.session() as session:
            # The database answers now: it may have kept us waiting.
            self._watch()
            notice_silence(session, self._watching)

    def _watch(self) -> None:
        """Restart the watch after a break: no conductor may have stored the reports of that time.

        It uses the clock of the reports, so that clock jumps count as breaks, too.
        """
        if self._looked is None:
            return
        elapsed = (timeutils.utcnow() - self._looked).total_seconds()
        if not 0 <= elapsed <= 1.5 * self._interval + 1:
            self._begin()

    def _resync(self) -> None:
        with self._outbox.session() as session:
            self._resynced = resync(session, self._resynced)

    def expire(self) -> None:
        """Release what has been leased for long enough, and reservations that nobody has used, each
        in a transaction of its own.
        """
        with self._outbox.session() as session:
            ended, unused = releasing.expired(session, MOST), reserving.lapsed(session, MOST)
        for ids, end in ((ended, releasing.expire), (unused, reserving.lapse)):
            for id in ids:
                with self._outbox.session() as session:
                    end(session, id)

    def _mend(self) -> None:
        """Have reservations keep others in place of accelerators that cannot be used any more."""
        with self._outbox.session() as session:
            ids = candidates.broken(session)
        for id in ids:
            with self._outbox.session() as session:
                reserving.mend(session, id, self._conf.conductor.placing)

    def _look_for_idle(self) -> None:
        """Note which allocations do no work, and do what the operator wants then, each in a
        transaction of its own.
        """
        conf = self._conf.conductor
        policy = idling.Policy(conf.idle_leases, conf.idle_grace)
        with self._outbox.session() as session:
            changes = idling.changes(session, policy)
        for change in changes:
            with self._outbox.session() as session:
                idling.note(session, change)
        if policy.action != idling.RELEASE:
            return
        with self._outbox.session() as session:
            due = idling.due(session, MOST)
        for id, since in due:
            with self._outbox.session() as session:
                idling.release(session, id, since)

    def _wake(self) -> None:
        """Have the queue of allocations served: no message is written when something comes free by
        the clock alone, as when a late host reports again.
        """
        with self._outbox.session() as session:
            queue.wake(session)
            reserving.look_at_next_start(session)

    def _forget(self) -> None:
        with self._outbox.session() as session:
            forget(session)
            releasing.forget(session, self._conf.conductor.keep_released)


def notice_silence(
    session: orm.Session, watching: datetime.datetime = datetime.datetime.min
) -> None:
    """Have nothing scheduled to hosts that are down; their next report ends that.

    :param watching: since when reports could be taken in. A host is judged only when it has had
        since then the time in which it is to report.
    """
    up = ~model.Host.silent
    intervals = session.scalars(sa.select(model.Host.interval).where(up).distinct()).all()
    late = [
        sa.and_(
            model.Host.interval == interval,
            model.Host.seen_at < model.Host.alive_since(interval),
        )
        for interval in intervals
        if watching <= model.Host.alive_since(interval)
    ]
    # A clock that was fast may have dated a report: such a host would be up until then.
    late.append(model.Host.seen_at > model.Host.alive_until())
    down = sa.and_(up, sa.or_(*late))
    ids = session.scalars(sa.select(model.Host.id).where(down)).all()
    # A host that has reported meanwhile does not match any more once it is locked.
    for host in _lock(session, ids, down):
        LOG.warning('Host %s is down: it last reported at %s', host.name, host.seen_at)
        host.silent = True
        outbox.announce(session, _parts(host))


def resync(session: orm.Session, last: int) -> int:
    """Reconcile the next host with Placement: it may have been restored from a backup, or a
    provider may have been deleted.

    :param last: the id of the previous host.
    :returns: the id of this one; 0 after the last.
    """
    if not outbox.tells(session, outbox.PROVIDER):
        return 0
    following = sa.select(model.Host.id).where(model.Host.id > last).order_by(model.Host.id)
    next_ = session.scalar(following.limit(1))
    if next_ is None:
        return 0
    for host in _lock(session, [next_]):
        outbox.announce(session, _parts(host), anew=True)
    return next_


def forget(session: orm.Session) -> None:
    """Delete what was remembered for long enough."""
    for kind in (model.Call, model.Instance):
        session.execute(sa.delete(kind).where(kind.created_at < timeutils.utcnow() - kind.KEPT))


def _lock(
    session: orm.Session, ids: collections.abc.Sequence[int], *conditions: sa.ColumnElement[bool]
) -> list[model.Host]:
    """Those of these hosts that meet the conditions, locked, with all that is announced of them.

    After the wait for the lock the changes of others are visible. A query that skips locked rows
    could miss hosts: MariaDB locks each row that it examines.
    """
    if not ids:
        return []
    parts = orm.selectinload(model.Host.found).selectinload(model.Device.deployables)
    query = (
        sa.select(model.Host)
        .where(model.Host.id.in_(ids), *conditions)
        .options(
            parts.selectinload(model.Deployable.attributes),
            parts.selectinload(model.Deployable.attach_handles),
        )
        .order_by(model.Host.id)
        .with_for_update()
    )
    return list(session.scalars(query))


def _parts(host: model.Host) -> list[model.Deployable]:
    return [part for device in host.found for part in device.deployables]


def end_others(database: engine.Database, names: collections.abc.Collection[str]) -> None:
    """Note that no other hosts report from now on: they are down at once, and up with a report."""
    with database.writer() as session:
        others = sa.update(model.Host).where(model.Host.name.not_in(names))
        session.execute(others.values(interval=0))
        # The hosts of the names report soon: they are not judged.
        notice_silence(session, watching=timeutils.utcnow())

# SPDX-License-Identifier: Apache-2.0
"""Messages for other services: written with the change itself, sent after it, and retried.

A message is a row.  A conductor leases it to send it; if the conductor dies, another takes it over
after the lease.  Messages are idempotent: the present state is sent, so a message may be sent
twice, or represent many changes.
"""

from __future__ import annotations

import collections.abc
from concurrent import futures
import contextlib
import datetime
import functools
import time
import typing
import uuid as uuidlib

from oslo_config import cfg
from oslo_db import api as db_api
from oslo_log import log
from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import clients
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import worker
from cyborg_lite.clients import nova
from cyborg_lite.clients import placement
from cyborg_lite.db import engine
from cyborg_lite.db import exclusion
from cyborg_lite.db import query as queries
from cyborg_lite.model import host

LOG = log.getLogger(__name__)

#: The lease of a message, in seconds. Together with the longest ``outbox_interval`` it is a
#: minute: then another conductor has sent the messages of a dead one.
LEASE = 45
#: The longest backoff, in seconds: a minute after a service is back it has all messages.
PATIENCE = 45

#: How many messages of a kind are leased at once, and sent concurrently.
BATCH = 8
#: The columns that change when a message is replaced or taken over.
CHANGED = ('stamp', 'lease')
#: The maximum wait for Placement before the answer to a call that withdraws devices, in seconds.
TELL = 5
#: How many providers are sent at once while answers wait for them.
TELLERS = 8

#: The kinds: a provider for Placement, the requests of an instance for Nova, a host to reconcile,
#: a device whose holders are notified, or a host whose agent is to look at its processes.
PROVIDER = 'provider'
EVENT = 'event'
HOST = 'host'
NOTICE = 'notice'
LOOK = 'look'
#: Serve the queue of allocations.
QUEUE = 'queue'
#: The entry of a provider's message beside traits, whose names are in capitals.
INVENTORY = 'inventory'
#: The trait of a provider that is withdrawn because of its health.
UNHEALTHY = 'CUSTOM_ACCEL_UNHEALTHY'
#: The keys of a session's info: the kinds of messages that are sent, and those that were put in
#: its transaction.
KINDS = 'cyborg_lite.outbox'
PUT = 'cyborg_lite.outbox.put'


def put(
    session: orm.Session, kind: str, messages: dict[str, model.Facts], after: float = 0
) -> None:
    """Put messages of one kind: see :func:`put_all`."""
    put_all(session, {kind: messages}, after)


def put_all(
    session: orm.Session, by_kind: dict[str, dict[str, model.Facts]], after: float = 0
) -> None:
    """Put messages by kind and key; each is merged with a waiting one of the same key. A message
    that is being sent is sent again afterwards.

    Nothing is written for services that are not configured.

    :param after: how many seconds the senders leave them to the caller of :meth:`Sender.tell`.
    """
    by_kind = {kind: found for kind, found in by_kind.items() if found and tells(session, kind)}
    if not by_kind:
        return
    these = (
        sa.and_(model.Message.kind == kind, model.Message.key.in_(found))
        for kind, found in sorted(by_kind.items())
    )
    same = (
        sa.select(model.Message)
        .where(sa.or_(*these))
        .order_by(model.Message.id)
        # Without the hint MariaDB would read, and lock, a whole small table.
        .with_hint(model.Message, 'FORCE INDEX (uq_messages_kind_key)', 'mysql')
        .with_hint(model.Message, 'FORCE INDEX (uq_messages_kind_key)', 'mariadb')
        # None of them may be deleted meanwhile: a bulk UPDATE does not report which rows it
        # missed.
        .with_for_update()
    )
    waiting = {(row.kind, row.key): row for row in session.scalars(same)}
    for kind, messages in by_kind.items():
        for key, payload in messages.items():
            row = waiting.get((kind, key)) or model.Message(kind=kind, key=key)
            if row.payload == payload and row.lease is None and not row.attempts and not after:
                continue  # it is locked: its sender sees this change
            row.payload = (row.payload or {}) | payload
            row.attempts, row.stamp = 0, str(uuidlib.uuid4())
            if row.lease is None:
                row.due_at = timeutils.utcnow() + datetime.timedelta(seconds=after)
            session.add(row)
    session.info[PUT].update(by_kind)


def tells(session: orm.Session, kind: str) -> bool:
    """Whether messages of this kind are sent at all."""
    return kind in session.info.get(KINDS, ())


def announce(
    session: orm.Session,
    parts: collections.abc.Iterable[model.Deployable],
    anew: bool = False,
    after: float = 0,
) -> None:
    """Put messages for those deployables whose state in Placement is stale.

    :param anew: for the others, too: Placement may have lost data.
    :param after: as for :func:`put`.
    """
    if not tells(session, PROVIDER):
        return
    messages: dict[str, model.Facts] = {}
    parts = list(parts)
    taken = exclusion.excluded(session, parts) | exclusion.allocated(session, parts)
    for part in parts:
        wanted = describe(part, taken)
        before = part.announced
        if before != wanted:
            part.announced = wanted
        if before != wanted or anew:
            messages[part.rp_uuid] = retired(before, wanted) | _changed(before, wanted)
    put(session, PROVIDER, messages, after)


def retired(before: model.Facts | None, wanted: model.Facts | None = None) -> model.Facts:
    """The message by which Placement takes from a provider the traits that were announced of it and
    are wanted no more; others are not ours.
    """
    gone = set(before['traits'] if before else ()) - set(wanted['traits'] if wanted else ())
    return dict.fromkeys(sorted(gone), 'retired')


def _changed(before: model.Facts | None, wanted: model.Facts) -> model.Facts:
    """What the message says of an inventory that differs: it is put without being compared."""
    names = ('resource_class', 'total', 'reserved')
    same = before is not None and all(before[name] == wanted[name] for name in names)
    return {} if same else {INVENTORY: 'changed'}


def describe(part: model.Deployable, taken: collections.abc.Container[int] = ()) -> model.Facts:
    """The provider of a deployable for Placement: it follows from stored marks, not from a clock.

    A late host that is not marked as silent may still report: then no message would withdraw the
    first one.

    :param taken: the ids of handles that others exclude, or that allocations hold: see
        cyborg_lite.db.exclusion.
    """
    device, handles = part.device, part.attach_handles
    total = len(handles)
    lost = sum(handle.lost or handle.id in taken for handle in handles)
    return {
        'uuid': part.rp_uuid,
        'name': part.name,
        'parent': device.hostname,
        'resource_class': part.resource_class or 'CUSTOM_PCI',
        'total': total,
        'reserved': lost if device.allocatable else total,
        'traits': sorted({*part.traits, 'OWNER_CYBORG', *([UNHEALTHY] if device.withheld else [])}),
    }


def _are(messages: list[model.Message], *names: str) -> sa.ColumnElement[bool]:
    """The condition that rows are these messages, as they were read.

    :param names: the columns that are compared; by default those that a put or a claim changes.
    """
    return sa.or_(
        *(
            sa.and_(
                model.Message.id == each.id,
                *(getattr(model.Message, n) == getattr(each, n) for n in names or CHANGED),
            )
            for each in messages
        )
    )


def _patience(message: model.Message) -> int:
    """The backoff of a failed message, in seconds."""
    # The exponent is limited: 2 ** 1000 seconds is not a valid time.
    return min(2 ** min(message.attempts, 16), PATIENCE)


#: Without the retry a deadlock, or a connection that is lost, would leave the message leased.
_again = db_api.wrap_db_retry(
    max_retries=5, retry_interval=0.05, jitter=True, max_retry_interval=1,
    retry_on_deadlock=True, retry_on_disconnect=True,
)  # fmt: skip


class Sender:
    """Sends what waits: a thread of each conductor for each service."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        database: engine.Database,
        announce: collections.abc.Callable[[orm.Session, str], None],
        serve: collections.abc.Callable[[model.Facts], None],
        notify: collections.abc.Callable[[str], None] | None = None,
        look: collections.abc.Callable[[model.Facts], None] | None = None,
    ) -> None:
        """
        :param announce: sends a host's changes to Placement: see hosts.announce.
        :param serve: serves the requests that wait for accelerators: see manager.Manager.
        :param notify: notifies the holders of a device: see notices.Sender; None if nobody is
            to be notified.
        :param look: has the agent of a host look at its processes; None if agents cannot be
            called.
        """
        self._database, self._announce = database, announce
        self._send: dict[str, collections.abc.Callable[[str, model.Facts], None]] = {}
        self._send[QUEUE] = lambda _, message: serve(message)
        if clients.configured(conf, 'placement'):
            client = clients.connect(conf, 'placement', placement.MICROVERSION)
            self._placement = placement.Placement(client)
            self._send |= {HOST: self._compare, PROVIDER: self._publish}
        if clients.configured(conf, 'nova'):
            self._nova = nova.Nova(clients.connect(conf, 'nova', nova.MICROVERSION))
            self._send[EVENT] = self._nova.notify
        if notify is not None:
            self._send[NOTICE] = lambda device, _: notify(device)
        if look is not None:
            self._send[LOOK] = lambda _, message: look(message)
        self._interval = conf.conductor.outbox_interval
        # The healer puts its message as often: see healing.Healer.
        self._intervals = {QUEUE: conf.conductor.healing_interval}
        self._tellers = futures.ThreadPoolExecutor(TELLERS, thread_name_prefix='outbox-tell')
        # One service that hangs must not keep another waiting.
        self._senders = {
            kind: futures.ThreadPoolExecutor(BATCH, thread_name_prefix=f'outbox-send-{kind}')
            for kind in self._send
        }
        self._workers = {
            kind: worker.Worker(f'outbox-{kind}', functools.partial(self._work, kind))
            for kind in self._send
        }

    @contextlib.contextmanager
    def session(self) -> collections.abc.Iterator[orm.Session]:
        """A transaction that may put messages; they are sent as soon as it is committed."""
        put_: set[str] = set()
        done = False
        try:
            with self._database.writer() as session:
                session.info |= {KINDS: self._send.keys(), PUT: put_}
                yield session
                done = True
        finally:
            # Also if the commit was not answered: it may be done, and a next try then does nothing.
            if done:
                self._wake(put_)

    def _wake(self, kinds: set[str]) -> None:
        for kind in self._workers.keys() & kinds:
            self._workers[kind].wake()

    def traits(self, rp_uuids: collections.abc.Iterable[str]) -> dict[str, list[str]]:
        """The traits of these providers in Placement; empty if it cannot be reached."""
        if PROVIDER not in self._send:
            return {}
        try:
            return {rp_uuid: self._placement.traits(rp_uuid) for rp_uuid in rp_uuids}
        except Exception as error:  # the bind is refused then, if traits are missing
            LOG.warning('The traits of a provider cannot be read from Placement: %s', error)
            return {}

    def allocations(self, rp_uuid: str) -> dict[str, dict[str, int]]:
        """What is allocated of a provider in Placement: see placement.Placement.allocations."""
        return self._placement.allocations(rp_uuid)

    def give_back(self, consumer: str, providers: collections.abc.Collection[str]) -> None:
        """Remove what a consumer has in Placement: see placement.Placement.give_back."""
        self._placement.give_back(consumer, providers)

    def is_instance(self, consumer: str) -> bool:
        """Whether Placement says so: see placement.Placement.is_instance."""
        return self._placement.is_instance(consumer)

    def knows(self, instance: str) -> bool:
        """Whether Nova knows an instance.

        :raises cyborg_lite.exception.Conflict: when Nova is not configured.
        """
        if EVENT not in self._send:
            raise exception.Conflict(
                reason=f'Whether instance {instance} is gone is not known: Nova is not configured. '
                'Set auth_type and the credentials in [nova] on all conductors.'
            )
        return self._nova.knows(instance)

    def start(self) -> None:
        for each in self._workers.values():
            each.start()

    def stop(self) -> None:
        for each in self._workers.values():
            each.stop()
        for each in self._workers.values():
            each.join()
        for pool in (self._tellers, *self._senders.values()):
            pool.shutdown(cancel_futures=True)

    def tell(self, providers: collections.abc.Iterable[str]) -> None:
        """Send these providers to Placement now; return when it is done, or after TELL seconds.

        A call that withdraws accelerators is answered after this, so that Nova schedules nothing
        to them. It runs after the transaction, so no lock is held meanwhile.
        """
        if PROVIDER not in self._send:
            return
        jobs = {self._tellers.submit(self._send_now, PROVIDER, each): each for each in providers}
        done, late = futures.wait(jobs, TELL)
        for job in late:
            job.cancel()
            LOG.warning('Placement has not answered yet: provider %s is sent later', jobs[job])
        for job in done:
            if error := job.exception():
                LOG.warning('Provider %s is sent to Placement later: %s', jobs[job], error)

    def _send_now(self, kind: str, key: str) -> None:
        """Send a message now, even if it is not due or leased by another: that one may have
        started before the change, and ends only its own lease.
        """
        query = sa.select(model.Message).where(model.Message.kind == kind, model.Message.key == key)
        while found := self._read(query):
            for message in self._claim(found):
                self._settle([(message, self._try(message))])
                return

    def _work(self, kind: str) -> float:
        """Send all due messages; returns the time until the next."""
        while not self._workers[kind].stopping:
            begun = time.monotonic()
            due, wait = self._look(kind)
            if not due:
                return wait
            # Where all of them are gone, what is left is known: each bind leaves one message.
            gone = self._deliver(self._claim(due)) == len(due)
            left = wait - (time.monotonic() - begun)
            if gone and left > 0:
                return left
        return self._interval

    def _deliver(self, messages: list[model.Message]) -> int:
        """Send leased messages concurrently, and end the lease of each at once: a slow message
        delays no other of them.

        :returns: how many are gone.
        """
        jobs = {self._senders[each.kind].submit(self._try, each): each for each in messages}
        gone = 0
        while jobs:
            done, _ = futures.wait(jobs, return_when=futures.FIRST_COMPLETED)
            gone += self._settle([(jobs.pop(job), job.result()) for job in done])
        return gone

    def _try(self, message: model.Message) -> Exception | None:
        """Send a message; returns why that failed, or None."""
        try:
            self._send[message.kind](message.key, message.payload)
        except Exception as error:  # after any error the message must be kept
            LOG.warning(
                '%s %s waits for %d s: %s', message.kind, message.key, _patience(message), error
            )
            return error
        return None

    def _look(self, kind: str) -> tuple[list[model.Message], float]:
        """The messages that have been due for longest; and the time to wait once they are gone.

        They are read without locks. A query that skips locked rows may miss a due one: MariaDB
        locks each row that it examines, also of other kinds.
        """
        now = timeutils.utcnow()
        # No message waits for longer: a clock that was fast wrote this one.
        never = now + datetime.timedelta(seconds=max(LEASE, PATIENCE) + host.SKEW)
        of_kind = sa.select(model.Message).where(model.Message.kind == kind)
        first = of_kind.order_by(model.Message.due_at, model.Message.id).limit(BATCH)
        found = self._read(first)
        due = [each for each in found if each.due_at <= now]
        later = [(each.due_at - now).total_seconds() for each in found[len(due) :]]
        if found and not due:
            due = self._read(first.where(model.Message.due_at > never))
        # A full batch says nothing of what follows.
        more = len(found) == BATCH or any(each.due_at > never for each in found)
        interval = self._intervals.get(kind, self._interval)
        return due, min([*later, 0 if due and more else interval, interval])

    def _read(self, query: sa.Select[typing.Any]) -> list[model.Message]:
        with self._database.reader() as session:
            found = list(session.scalars(query))
            session.expunge_all()
        return found

    def _claim(self, messages: list[model.Message]) -> list[model.Message]:
        """Take messages for the length of a lease, but for those that have changed since they were
        read.

        Each ``put`` writes another stamp, and each claim counts an attempt.
        """
        # One lease for all tries: a commit may be done and not answered.
        return self._take(messages, str(uuidlib.uuid4()))

    @_again
    def _take(self, messages: list[model.Message], lease: str) -> list[model.Message]:
        due_at = timeutils.utcnow() + datetime.timedelta(seconds=LEASE)
        claim = (
            sa.update(model.Message)
            .where(_are(messages, 'stamp', 'attempts'))
            .values(due_at=due_at, lease=lease, attempts=model.Message.attempts + 1)
        )
        mine = sa.select(model.Message.id).where(model.Message.lease == lease)
        with self._database.writer() as session:
            claimed = {each.id for each in messages}
            if queries.matched(session, claim) < len(messages):
                claimed = set(session.scalars(mine))
        taken = [each for each in messages if each.id in claimed]
        for each in taken:
            each.due_at, each.lease, each.attempts = due_at, lease, each.attempts + 1
        return taken

    @_again
    def _settle(self, outcomes: list[tuple[model.Message, Exception | None]]) -> int:
        """End the lease of messages that were sent, or not; what was replaced meanwhile is due at
        once.

        Nothing is done to those that another conductor has taken over.

        :returns: how many were sent and are gone.
        """
        sent = [message for message, error in outcomes if error is None]
        now = timeutils.utcnow()
        with self._database.writer() as session:
            gone = 0
            if sent:
                gone = queries.matched(session, sa.delete(model.Message).where(_are(sent)))
            settled = gone
            for message, error in outcomes:
                if error is not None:
                    due_at = now + datetime.timedelta(seconds=_patience(message))
                    wait = sa.update(model.Message).where(_are([message]))
                    settled += queries.matched(session, wait.values(due_at=due_at, lease=None))
            if settled < len(outcomes):
                replaced = sa.update(model.Message).where(
                    _are([message for message, _ in outcomes], 'lease')
                )
                queries.matched(session, replaced.values(due_at=now, lease=None))
        return gone

    @_again
    def _compare(self, _: str, host: model.Facts) -> None:
        with self.session() as session:
            self._announce(session, host['name'])

    def _publish(self, rp_uuid: str, payload: model.Facts) -> None:
        self._placement.settle(rp_uuid, functools.partial(self._wanted, rp_uuid, payload))

    def _wanted(self, rp_uuid: str, payload: model.Facts) -> placement.Provider | None:
        query = sa.select(model.Deployable.announced).where(model.Deployable.rp_uuid == rp_uuid)
        with self._database.reader() as session:
            wanted = session.scalar(query)
        if wanted is None:
            return None
        told = {
            'traits': tuple(wanted['traits']),
            'retired': tuple(name for name in payload if name != INVENTORY),
            'changed': INVENTORY in payload,
        }
        return placement.Provider(**wanted | told)

# SPDX-License-Identifier: Apache-2.0
"""Leases of processes: a process of this host holds accelerators until it has ended.

Conductors store the leases; the agent watches the processes, and after a restart finds them by
boot, pid and start time. While no conductor answers, it retries every second.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import functools
import os
import selectors
import threading
import time
import typing
import uuid as uuidlib

from oslo_log import log
import oslo_messaging as messaging

from cyborg_lite import context
from cyborg_lite import delivery
from cyborg_lite import driver
from cyborg_lite import exception
from cyborg_lite import rpc
from cyborg_lite import worker
from cyborg_lite.agent import access as accesses
from cyborg_lite.agent import containers
from cyborg_lite.agent import lines
from cyborg_lite.agent import nodes
from cyborg_lite.agent import observing
from cyborg_lite.agent import processes
from cyborg_lite.agent import specifications as specifications_
from cyborg_lite.agent import terms

LOG = log.getLogger(__name__)

#: How often the positions of queued leases are fetched, in seconds.
POLL = 0.5
#: How often leases are compared with those of conductors, in seconds: others may have released
#: some. It is also done when one starts or ends by its time.
RESYNC = 60.0
#: The time between retries while no conductor answers, in seconds.
RETRY = 1.0
#: The timeout of a call, in seconds.
TIMEOUT = 60
#: The maximum number of processes of one lease that are watched at once: others are searched for
#: when these have ended.
WATCHED = 8
#: How long a stop waits for the round in progress, in seconds.
PATIENCE = 5
#: How often the access to device nodes is checked, in seconds: a program may make a node anew, or
#: change its mode.
CHECK = 5.0
#: How many requests without an answer are remembered: more than can be carried out late.
UNANSWERED = 1024

Row = dict[str, typing.Any]


@dataclasses.dataclass
class Lease:
    """A lease: the row of a conductor, and the processes that are watched."""

    uuid: str
    process: processes.Process
    row: Row
    #: the watched processes by their descriptors
    watched: dict[int, processes.Process] = dataclasses.field(default_factory=dict)
    #: whether the process that the lease was made for has been searched for
    begun: bool = False
    #: why the lease must be released; None while its processes live
    over: str | None = None
    #: the container of the watched processes, as they were found; None for none
    container: str | None = None

    @property
    def queued(self) -> bool:
        return bool(self.row['state'] == 'queued')

    @property
    def active(self) -> bool:
        return bool(self.row['state'] == 'active')

    def nodes(self) -> set[str]:
        """The device nodes of its cards; of shared nodes it has none."""
        held = () if self.queued else self.row['accelerators'] or ()
        return {node for each in held for node in delivery.nodes(each).own}

    def addresses(self) -> set[str]:
        """The addresses of its cards."""
        return {each['address'] for each in self.row['accelerators'] or ()}

    def identities(self) -> set[tuple[int, int]]:
        """What tells its known processes from others."""
        return {each.key for each in (self.process, *self.watched.values())}


class Leases:
    """The leases of the processes of one host."""

    def __init__(
        self,
        bus: rpc.Peers,
        host: driver.Host,
        agent: str,
        reported: threading.Event,
        finding: collections.abc.Callable[[], nodes.Finding],
        access: accesses.Access | None = None,
        specifications: specifications_.Specifications | None = None,
    ) -> None:
        """:param agent: the id of the agent in reports.
        :param reported: set once a conductor knows the host.
        :param finding: returns the last finding of the drivers.
        :param access: the access to the nodes of the host; None if it is advisory.
        :param specifications: the CDI files of the host; None if there are none.
        """
        self._bus = bus
        self._agent = agent
        self._reported = reported
        self._finding = finding
        self._access = access
        self._specifications = specifications
        # Serializes the changes of access.
        self._guarding = threading.Lock()
        #: whether the leases of an earlier start of the agent are known
        self.compared = False
        self.host = host
        #: called when conductors have ended leases: their processes may go on
        self.left: collections.abc.Callable[[], None] = lambda: None
        #: the clients that wait until others release parts of the same reservation
        self.lines = lines.Lines()
        self._worker = worker.Worker(f'leases-{host.name}', self._work)
        self._changed = threading.Condition()
        self._known: dict[str, Lease] = {}
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._due = 0.0
        # The uuids of the leases that are asked for now.
        self._asking: set[str] = set()
        # The uuids of those whose requests got no answer: they must not be held.
        self._unanswered: collections.deque[str] = collections.deque(maxlen=UNANSWERED)

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        """Stop watching.  Leases stay held: the agent finds them again at its next start."""
        self._worker.stop()
        self._wake()
        self._worker.join(PATIENCE)

    def take(self, process: processes.Process, request: Row) -> Lease:
        """Lease for a process; the lease may be queued: see :meth:`wait`.

        :raises cyborg_lite.exception.CyborgError: when the request is refused.
        :raises oslo_messaging.MessagingException: when no conductor answers.
        """
        uuid = str(uuidlib.uuid4())
        with self._changed:
            self._asking.add(uuid)
        try:
            row = self._ask(uuid, process, request)
        except BaseException as error:
            # It may have been carried out, or may be later, although it failed so.
            unknown = not isinstance(error, exception.CyborgError) or error.code >= 500
            with self._changed:
                self._asking.discard(uuid)
                self._unanswered.extend([uuid] if unknown else [])
            if unknown:
                # The lease may exist, or be made later: comparisons find it, and end it.
                self.look_again()
            raise
        lease = Lease(uuid, process, row)
        with self._changed:
            self._asking.discard(uuid)
            self._known[uuid] = lease
        self._wake()
        return lease

    def _ask(self, uuid: str, process: processes.Process, request: Row) -> Row:
        """The row of a new lease.  A request whose answer is lost is sent once more."""
        words = {'uuid': uuid, 'process': dataclasses.asdict(process), 'request': request}
        try:
            row = self._conductor().lease(**words, **self._me())
        except messaging.MessagingTimeout as error:
            LOG.warning('Lease %s is asked for again: %s', uuid, error)
            row = self._conductor().lease(**words, **self._me())
        return typing.cast('Row', row)

    def wait(self, lease: Lease, row: Row, timeout: float) -> Row | None:
        """Wait for a change of a lease, at most so many seconds; None once it is released."""
        with self._changed:
            self._changed.wait_for(lambda: self._row(lease) != row, timeout)
            return self._row(lease)

    def _row(self, lease: Lease) -> Row | None:
        known = self._known.get(lease.uuid)
        return known.row if known is not None and known.over is None else None

    def end(self, lease: Lease, cause: str) -> None:
        """Release a lease; the release is retried until a conductor answers."""
        with self._changed:
            lease.over = lease.over or cause
            self._changed.notify_all()
        self._wake()

    def all(self) -> list[Lease]:
        with self._changed:
            return [lease for lease in self._known.values() if lease.over is None]

    def uuids(self) -> set[str]:
        """The uuids of the leases that conductors have, also of those that must be released."""
        with self._changed:
            return set(self._known)

    def others(self, timeout: int | None = None) -> list[Row]:
        """Who holds accelerators of this host without a lease: see db.leases.others."""
        return typing.cast('list[Row]', self._conductor(timeout).holders(**self._me()))

    def held_by_others(self, timeout: int | None = None) -> set[str]:
        """The addresses of the cards that are held without a lease."""
        # Conductors of the release before do not say them.
        return {card for row in self.others(timeout) for card in row.get('addresses', ())}

    def resources(self) -> list[str]:
        """The names of the resources of this host for Spark."""
        return delivery.resources(self._finding().drivers)

    @property
    def access(self) -> str:
        return accesses.shown(self._access)

    def guard(self, timeout: float = 0.0) -> None:
        """Let users open the device nodes of their leases, and no others.

        Nothing is changed before the earlier leases are known.

        :param timeout: the timeout of the wait for them, in seconds.
        """
        if self._access is None:
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self.compared, timeout):
                return
        with self._guarding:
            self._access.enforce(self._users(), self._finding().shared)

    def specify(self, lease: Lease | None = None) -> None:
        """Keep the CDI file of a lease, or those of all and of no others.

        None is removed before the earlier leases are known.
        """
        if self._specifications is None:
            return
        with self._changed:
            known = [each for each in self._known.values() if not each.over and each.active]
            compared = self.compared
        found = {each.uuid: functools.partial(self.document, each) for each in known}
        if lease is not None:
            found = {uuid: made for uuid, made in found.items() if uuid == lease.uuid}
        self._specifications.keep(found, others=lease is not None or not compared)

    def rogues(self, finding: nodes.Finding | None = None) -> dict[str, list[processes.Use]]:
        """By the address of a card, who uses it without a lease.

        Processes of a lease are left out, also on other cards: some software opens all cards. But
        one that a driver lists on a card without a lease counts. Of cards that are held, a
        conductor decides. Where a driver lists pids, one must have the node open, too: it may be
        used again.
        """
        return observing.rogues(finding or self._finding(), self.all(), self.compared)

    def opened(self) -> dict[str, list[processes.Use]]:
        """Like rogues(), also where a driver that lists the processes has not listed them."""
        return self.rogues(self._finding()._replace(listed={}))

    def _users(self) -> dict[str, set[int]]:
        """By device node, the users with a lease of it."""
        found: dict[str, set[int]] = {
            node: set() for own in self._finding().nodes.values() for node in own
        }
        for lease in self.all():
            for node in lease.nodes():
                found.setdefault(node, set()).add(lease.process.uid)
        return found

    def released(self, lease: Lease, timeout: float) -> bool:
        """Whether a conductor has released a lease, after waiting at most so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: lease.uuid not in self._known, timeout)

    def opening(self, lease: Lease) -> list[processes.Process]:
        """The visible processes that have a device of a lease open."""
        return processes.using(lease.process, self._nodes(lease))

    def look_again(self) -> None:
        """Compare the leases with those of conductors soon, after a comparison in progress."""
        with self._changed:
            self._due = 0.0
        self._wake()

    def _wake(self) -> None:
        """Wake the thread that watches."""
        os.eventfd_write(self._wakeup, 1)

    def _me(self) -> dict[str, str]:
        return {'host': self.host.name, 'agent': self._agent}

    def _conductor(self, timeout: int | None = None, version: str = rpc.LEASES) -> rpc.Peer:
        return self._bus.leases(context.service(), timeout=timeout or TIMEOUT, version=version)

    def _work(self) -> float:
        """Do one round; returns the time until the next, which waits for events itself."""
        if not self._reported.is_set():
            return POLL
        now = time.monotonic()
        if now >= self._due:
            # First: a call of look_again() during the comparison asks for another one.
            self._due = now + RESYNC
            if not self._compare():
                self._bring_forward(now + RETRY)
        known = list(self._known.values())
        late = [lease for lease in known if not self._look(lease)]
        ended = [lease for lease in known if lease.over]
        # First: no device is free that its last user can open, or a container be given.
        self.guard()
        self.specify()
        late += [lease for lease in ended if not self._end(lease)]
        containers.tell(self._bus, known, **self._me())
        self._wait_for_events(RETRY if late else self._pause())
        return 0.0

    def _pause(self) -> float:
        """The time until the next work is due, unless a process ends earlier."""
        with self._changed:
            rows = [lease.row for lease in self._known.values() if not lease.over]
        polling = any(row['state'] == 'queued' for row in rows)
        away = max(RETRY, min(RESYNC, terms.away(rows)))
        self._bring_forward(time.monotonic() + (POLL if polling else away))
        pause = max(0.0, self._due - time.monotonic())
        return pause if self._access is None else min(CHECK, pause)

    def _bring_forward(self, due: float) -> None:
        """Compare at this time, unless an earlier comparison is due."""
        with self._changed:
            self._due = min(self._due, due)

    def _wait_for_events(self, timeout: float) -> None:
        """Wait until a process ends, or another thread wakes this one."""
        for key, _ in self._selector.select(timeout):
            if key.fd == self._wakeup:
                os.eventfd_read(self._wakeup)
            else:
                self._forget(key.data, key.fd)

    def _forget(self, lease: Lease, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        del lease.watched[descriptor]
        os.close(descriptor)

    def _unwatch(self, lease: Lease) -> None:
        """Stop watching the processes of a lease."""
        for descriptor in list(lease.watched):
            self._forget(lease, descriptor)

    def _compare(self) -> bool:
        """Compare the known leases with those of conductors; returns whether one answered.

        After a restart this finds the earlier leases. Those that are queued have no client any
        more.
        """
        with self._changed:
            before = set(self._known)
        try:
            rows = self._conductor().leases(**self._me())
        except (messaging.MessagingException, exception.CyborgError) as error:
            LOG.info('The leases of host %s cannot be compared yet: %s', self.host.name, error)
            return False
        found = {row['uuid']: row for row in rows}
        with self._changed:
            for uuid, row in found.items():
                lease = self._known.get(uuid)
                if lease is not None:
                    lease.row = row
                elif uuid not in self._asking:
                    self._known[uuid] = self._found(row)
            # A lease that was made meanwhile may be absent from the answer.
            gone = [self._known.pop(uuid) for uuid in before - found.keys()]
            self.compared = True
            self._changed.notify_all()
        for lease in gone:
            self._unwatch(lease)
        if gone:
            self.left()
        return True

    def _found(self, row: Row) -> Lease:
        """A lease that a conductor has and this agent did not know."""
        lease = Lease(row['uuid'], processes.of(row['consumer_id'], self.host.name), row)
        if lease.queued:
            lease.over = 'Its client is gone.'
        elif lease.uuid in self._unanswered:
            lease.over = 'The answer to its client was lost.'
        return lease

    def _look(self, lease: Lease) -> bool:
        """Watch the processes of a lease, which ends with the last; False if this failed."""
        if lease.over or not lease.process.pid or lease.watched:
            return True
        lease.container = None
        try:
            if not lease.begun:
                self._watch(lease, lease.process)
                lease.begun = True
            # A process may start during the search: none is left if two searches in a row find
            # none.
            for _ in range(2):
                if lease.watched:
                    return True
                for process in processes.using(lease.process, self._nodes(lease), lease.uuid):
                    self._watch(lease, process)
        except OSError as error:
            LOG.warning('The processes of lease %s cannot be seen now: %s', lease.uuid, error)
            return False
        if not lease.watched:
            self.end(lease, 'Its process ended.')
        return True

    def _watch(self, lease: Lease, process: processes.Process) -> None:
        """
        :raises OSError: when it lives but cannot be watched.
        """
        if len(lease.watched) >= WATCHED:
            return
        try:
            descriptor = processes.watch(process)
        except processes.Gone:
            return
        try:
            self._selector.register(descriptor, selectors.EVENT_READ, lease)
        except BaseException:
            os.close(descriptor)
            raise
        lease.watched[descriptor] = process
        lease.container = processes.container(process.pid) or lease.container

    def _nodes(self, lease: Lease) -> set[str]:
        """The device nodes that only this lease has; a described host has none.

        Two parts of a card share one: a process that has it open may use the other part.
        """
        if self.host.recorded or lease.queued:
            return set()
        with self._changed:
            others = [each for each in self._known.values() if not _is_of(each, lease)]
        mine = lease.nodes()
        return mine.difference(*(each.nodes() for each in others)) if mine else mine

    def document(self, lease: Lease) -> dict[str, typing.Any]:
        """What a process needs to use the accelerators of a lease on this machine."""
        found = delivery.document(lease.uuid, self.host.name, lease.row['accelerators'])
        return found if self.host.recorded else delivery.present(found, os.path.exists)

    def _end(self, lease: Lease) -> bool:
        """Release an ended lease; returns whether a conductor accepted this."""
        words: Row = {'uuid': lease.uuid, 'cause': lease.over, **self._me()}
        version = rpc.LEASES
        if lease.row.get('observed'):
            others = [each for each in self.all() if not _is_of(each, lease)]
            closed = observing.is_closed(lease, self._nodes(lease), others, self.compared)
            version, words['closed'] = rpc.CLOSED, closed
        try:
            self._conductor(version=version).end_lease(**words)
        except (messaging.MessagingException, exception.CyborgError) as error:
            LOG.warning('Lease %s cannot be ended yet: %s', lease.uuid, error)
            return False
        with self._changed:
            self._known.pop(lease.uuid, None)
            drawn = any(_is_of(each, lease) for each in self._known.values())
            self._changed.notify_all()
        if drawn:
            # What was leased from it has ended, too.
            self.look_again()
        self._unwatch(lease)
        LOG.info('Lease %s of process %d ended: %s', lease.uuid, lease.process.pid, lease.over)
        return True


def _is_of(one: Lease, other: Lease) -> bool:
    """Whether two leases are one, or one of them is leased from the other."""
    reservations = one.row.get('reservation_uuid'), other.row.get('reservation_uuid')
    return one is other or one.uuid == reservations[1] or other.uuid == reservations[0]

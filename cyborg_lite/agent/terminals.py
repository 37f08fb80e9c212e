# SPDX-License-Identifier: Apache-2.0
"""Messages to users on the terminals of their processes.

An agent that is root could write anywhere: it writes only to a pseudo-terminal that belongs to the
user of the process. A terminal may be another one by the time it is open, so what counts is what
the descriptor says.

Source: proc_pid_stat(5), field tty_nr; proc_pid_mountinfo(5); pts(4); Linux,
include/uapi/linux/major.h.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import os
import stat

from oslo_log import log

from cyborg_lite import client
from cyborg_lite.agent import leases as leases_
from cyborg_lite.agent import processes

LOG = log.getLogger(__name__)

#: Where pseudo-terminals are, each a node with the name of its number.
PLACE = '/dev/pts'
#: The major number of pseudo-terminals: UNIX98_PTY_SLAVE_MAJOR.
MAJOR = 136
#: The timeout of the call for those who hold cards, in seconds: the next report waits for it.
TIMEOUT = 5
#: The maximum length of a message, in bytes, and of the name of a lease in it.
LONGEST, MOST = 400, 64

#: Of some addresses, who uses each without a lease.
Rogues = collections.abc.Mapping[str, collections.abc.Collection[processes.Use]]
#: Returns what leases.Leases.held_by_others does, within a timeout in seconds.
Held = collections.abc.Callable[[int], collections.abc.Set[str]]
#: See processes.Process.key.
Key = tuple[int, int]


class Notices:
    """Tells each process that uses a card without a lease so, once, on its terminal.

    A process is told when it is seen for the second time: a tool that looks at the cards has ended
    by then. Processes of one terminal are told together. A card that an instance or an allocation
    of the API holds does not count: its user may be the holder.
    """

    def __init__(self) -> None:
        #: those of the last look
        self._seen: set[Key] = set()
        #: those that have been told, while they live
        self._told: dict[Key, processes.Process] = {}

    def look(self, rogues: Rogues, held: Held) -> None:
        """
        :param held: called if somebody is to be told; after an error nothing is changed.
        """
        found = {use.process.key: use.process for uses in rogues.values() for use in uses}
        cards: dict[Key, set[str]] = collections.defaultdict(set)
        for address, uses in rogues.items():
            for use in uses:
                cards[use.process.key].add(address)
        again = found.keys() & self._seen
        places = {key: _terminal(found[key]) for key in again - self._told.keys()}
        if any(places.values()):
            others = held(TIMEOUT)
            cards = {key: used - others for key, used in cards.items()}
        due: dict[tuple[int, int], list[processes.Process]] = collections.defaultdict(list)
        for key, terminal in places.items():
            if terminal and cards[key]:
                due[found[key].uid, terminal].append(found[key])
        for (_, terminal), those in due.items():
            addresses = sorted(set().union(*(cards[each.key] for each in those)))
            those.sort(key=lambda each: each.pid)
            if tell(those[0], terminal, _text(those, addresses)):
                LOG.info('User %s was told of process %d', those[0].user, those[0].pid)
        living = (self._told | found).items()
        told = self._told.keys() | {key for key in again if cards[key]}
        self._told = {
            key: each for key, each in living if key in told and _terminal(each) is not None
        }
        self._seen = set(found)


class Reminders:
    """Tells the user of each idle lease so, once, on the terminal of a process of the lease.

    Conductors decide whether users are told, and what.
    """

    def __init__(self) -> None:
        #: what was told of each lease, by its uuid
        self._told: dict[str, str] = {}

    def look(self, leases: collections.abc.Iterable[leases_.Lease]) -> None:
        idle = {each.uuid: each for each in leases if each.row.get('idleness')}
        told = {uuid: text for uuid, text in self._told.items() if uuid in idle}
        for uuid, lease in idle.items():
            if told.get(uuid) != lease.row['idleness'] and _remind(lease):
                told[uuid] = lease.row['idleness']
                LOG.info('User %s was told of the idle lease %s', lease.process.user, uuid)
        self._told = told


def _remind(lease: leases_.Lease) -> bool:
    """Tell the first process of a lease that has a terminal; returns whether one was told."""
    name = lease.row['name'] or ''
    name = name if 0 < len(name) <= MOST else lease.uuid
    for process in (lease.process, *list(lease.watched.values())):
        text = (
            f'cyborg-lite: lease {name} of process {process.pid} ({process.command}): '
            f'{lease.row["idleness"]} End it if it is done, or "cyborg-lite release {name}".'
        )
        if (terminal := _terminal(process)) and tell(process, terminal, text):
            return True
    return False


def _terminal(process: processes.Process) -> int | None:
    """The device number of the terminal of a process, 0 without one; None if it has ended."""
    with contextlib.suppress(processes.Gone):
        return processes.terminal(process)
    return None


def _text(found: list[processes.Process], addresses: list[str]) -> str:
    first, more = found[0], len(found) - 1
    others = f' and {more} more' if more else ''
    return (
        f'cyborg-lite: process {first.pid} ({first.command}){others} uses '
        f'{processes.shortened(addresses)} without a lease. Lease what it uses with '
        f'"cyborg-lite alloc --pid {first.pid}", or end it and start it with "cyborg-lite run".'
    )


def tell(process: processes.Process, device: int, text: str) -> bool:
    """Write a line to the terminal of a process; returns whether it was written.

    It does not wait: a terminal that takes nothing now is not written to.

    :param device: the device number of the terminal.
    """
    if os.major(device) != MAJOR:
        return False
    line = f'\r\n{client.plain(text)}'.encode()[:LONGEST] + b'\r\n'
    try:
        place = os.open(PLACE, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            file_system = os.fstat(place).st_dev
            # The terminals of a container have the same numbers, and are others.
            if not processes.has_mount(process, PLACE, 'devpts', file_system):
                return False
            # The file system is known: the opened node is a pseudo-terminal.
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(str(os.minor(device)), flags, dir_fd=place)
        finally:
            os.close(place)
        try:
            found = os.fstat(descriptor)
            own = stat.S_ISCHR(found.st_mode) and found.st_uid == process.uid
            own = own and (found.st_dev, found.st_rdev) == (file_system, device)
            # The terminal may have been given to another session before it was opened.
            if not own or processes.terminal(process) != device:
                return False
            return os.write(descriptor, line) == len(line)
        finally:
            os.close(descriptor)
    except (OSError, processes.Gone) as error:
        LOG.debug('Process %d cannot be told on its terminal: %s', process.pid, error)
        return False

# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine: their identity, and whether they still run.

The kernel reuses pids. A process is identified by the boot, its pid, and its start time.

Source: proc(5), pidfd_open(2).
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import datetime
import hashlib
import os
import pathlib
import re
import select
import socket

from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import unix
from cyborg_lite.agent import launching
from cyborg_lite.agent import runtimes

#: The file system of processes.
PROC = pathlib.Path('/proc')
#: The variable that marks the children of a process as part of its lease.
MARK = client.ALLOCATION
#: How many ancestors of a process are looked at.
DEEPEST = 256
#: The maximum size of an environment that is read, in bytes: the kernel allows 6 MB with the
#: arguments.
ENVIRONMENT = 8 << 20

#: The file systems that have device nodes on a usual machine; a user cannot make any elsewhere.
DEVICE_FILE_SYSTEMS = ('devtmpfs', 'tmpfs')

#: The id of a container in the name of a control group, of which the beginning tells it apart. If
#: that is below the slice of a user, the user may have made it, and named it after any container.
#: Source: docker, podman, containerd and CRI-O name the group of a container by its id; systemd
#: lets users make groups below user-UID.slice.
CONTAINER = re.compile(
    '(?P<own>/user-[1-9][0-9]*[.]slice/.*?)?[/:-](?P<id>[0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])'
)

#: Errors for a process that has ended, or that this user may not read.
_ENDED = (ProcessLookupError, FileNotFoundError)
_HIDDEN = (*_ENDED, PermissionError)


class Gone(Exception):
    """A process has ended, or is not visible here."""


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, which may have ended."""

    #: the digest of the boot: everybody sees which process holds a lease
    boot_id: str
    pid: int
    #: its start time, in clock ticks since the boot
    started: int
    uid: int
    user: str
    command: str

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from all other processes of this boot: its pid and its start."""
        return self.pid, self.started


def boot() -> str:
    """The id of this boot (proc(5), /proc/sys/kernel/random/boot_id)."""
    return (PROC / 'sys/kernel/random/boot_id').read_text().strip()


def boot_digest() -> str:
    """What tells this boot from others, and does not tell its id."""
    return hashlib.sha256(f'cyborg_lite {boot()}'.encode()).hexdigest()[:32]


def peer(connection: socket.socket) -> tuple[int, int]:
    """The pid and the uid of the peer, from the kernel.

    :raises Gone: when the peer is in a pid namespace that is not visible here.
    """
    found = unix.peer(connection)
    if found.pid <= 0:
        raise Gone('the process is in a pid namespace that the agent cannot see')
    return found.pid, found.uid


def find(pid: int) -> Process:
    """The process with this pid.

    :raises Gone: when there is none, or the pid is that of another thread than the first: nothing
        tells when such a thread ends.
    """
    with _gone(pid):
        if (first := _first_thread(pid)) != pid:
            raise Gone(f'{pid} is a thread of process {first}')
        uid = (PROC / str(pid)).stat().st_uid
        return Process(boot_digest(), pid, _started(pid), uid, accounts.name(uid), _command(pid))


def of(consumer: str, host: str) -> Process:
    """The process that a conductor names as a consumer: see cyborg_lite.conductor.requesting."""
    boot, pid, started, uid, user, command = consumer.removeprefix(f'{host}/').split('/', 5)
    return Process(boot, int(pid), int(started), int(uid), user, command)


def command(process: Process) -> str:
    """The command that a process runs now: it may have started another since it was found.

    Of a process that has ended it is the last known one.
    """
    with contextlib.suppress(Gone), _gone(process.pid):
        found = _command(process.pid)
        return found if _started(process.pid) == process.started else process.command
    return process.command


def parent(pid: int) -> int:
    """The pid of the parent of a process.

    :raises Gone: when it is init, or has ended.
    """
    with _gone(pid):
        found = int(_stat(pid)[1])
    if found <= 1:
        raise Gone(f'process {pid} has no parent any more')
    return found


def is_below(pid: int, ancestor: int) -> bool:
    """Whether a process is another one, or descends from it."""
    for _ in range(DEEPEST):
        if pid == ancestor:
            return True
        try:
            pid = parent(pid)
        except Gone:
            break
    return False


def terminal(process: Process) -> int:
    """The device number of the controlling terminal of a process; 0 without one.

    :raises Gone: when it has ended.
    """
    with _gone(process.pid):
        fields = _stat(process.pid)
        if int(fields[19]) == process.started:
            # As new_encode_dev() of the kernel makes it, and makedev() of the C library does.
            return int(fields[4]) & 0xFFFFFFFF
    raise Gone(f'process {process.pid} has ended')


def has_mount(process: Process, place: str, kind: str, device: int) -> bool:
    """Whether a process has this very file system at a place.

    Its mounts are read, and not looked at: those of a user may take for ever.

    :param kind: the type of the file system.
    :param device: its device number.
    :raises Gone: when it has ended, or may not be read.
    """
    wanted = f'{os.major(device)}:{os.minor(device)}', '/', place
    with _gone(process.pid):
        text = (_home(process.pid) / 'mountinfo').read_text(errors='replace')
    found = {}
    for line in text.splitlines():
        mount, _, about = line.partition(' - ')
        own, parent, *where = mount.split(' ')[:5]
        if where[2:] == [place]:
            found[parent] = own, tuple(where), about
    # One mount may hide another there: the last one hides all.
    return any(
        own not in found and where == wanted and about.startswith(f'{kind} ')
        for own, where, about in found.values()
    )


def namespace(pid: int) -> str:
    """The id of the pid namespace of a process.

    :raises Gone: when it has ended, or may not be read.
    """
    with _gone(pid):
        return os.readlink(PROC / str(pid) / 'ns/pid')


def watch(process: Process) -> int:
    """A descriptor that becomes readable when the process ends.

    :raises Gone: when it has ended already.
    """
    # A lease that was made before an upgrade has the id itself.
    if process.boot_id not in (boot_digest(), boot()):
        raise Gone('the machine was booted since')
    with _gone(process.pid):
        descriptor = os.pidfd_open(process.pid)
    try:
        # The pid may have been reused before the open; the descriptor prevents it from now on.
        with _gone(process.pid):
            same = _started(process.pid) == process.started
        if not same or ended(descriptor):
            raise Gone(f'process {process.pid} has ended')
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def ended(descriptor: int) -> bool:
    """Whether the process of a descriptor has ended."""
    polling = select.poll()
    polling.register(descriptor, select.POLLIN)
    return bool(polling.poll(0))


def using(
    holder: Process, nodes: collections.abc.Collection[str], mark: str | None = None
) -> list[Process]:
    """The processes with a mark in their environment, or with one of these device nodes open.

    Only processes of the holder's user count, or of root with the mark: other users could keep the
    lease by the mark, and services such as a persistence daemon have nodes open all the time. They
    must have started after the holder.  Unreadable processes are skipped: an agent that is not
    root sees only its own user's processes.

    :raises OSError: when the search fails, such as for lack of descriptors.
    """
    wanted = f'{MARK}={mark}'.encode() if mark else None
    found = []
    for name in os.listdir(PROC):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with contextlib.suppress(Gone):
            pid, uid, state, started = _seen(int(name))
            if uid not in (holder.uid, 0) or started < holder.started:
                continue
            home = _home(pid, state)
            if (uid == holder.uid and _opens(home, nodes)) or _marked(home, wanted):
                found.append(find(pid))
    return found


@dataclasses.dataclass(frozen=True)
class Use:
    """A process that has device nodes open."""

    process: Process
    nodes: frozenset[str]
    #: the uuid of the lease that its environment names; it may say anything
    mark: str | None
    #: the id of its container; None if it is in none
    container: str | None
    #: whether its user may have made that up
    claimed: bool = False
    #: how much memory of a card it has, in MiB; None if the driver does not tell it
    memory_mb: int | None = None

    def __str__(self) -> str:
        process = self.process
        told = f'{process.pid} {process.user} ({process.command}) since {begun(process)}'
        if launcher := launching.launcher(process.pid, process.uid):
            told += f' started by {launcher}'
        if not self.container:
            return told
        # The runtimes of root put no container below the slice of a user.
        about = ['as its user says'] if self.claimed else runtimes.names(self.container)
        names = ', '.join(filter(None, about))
        return f'{told} in container {self.container}' + (f' ({names})' if names else '')


def uses(nodes: collections.abc.Collection[str]) -> list[Use]:
    """The processes of all users that have one of these device nodes open, by their pids.

    An agent that is not root sees only processes of its own user.
    """
    found = []
    for name in sorted(filter(str.isdecimal, os.listdir(PROC)), key=int):
        # With hidepid even the state of others is hidden: proc(5).
        with contextlib.suppress(Gone, PermissionError):
            if (pid := int(name)) != os.getpid():
                home = _home(pid)
                if opened := frozenset(_opened(home, nodes)):
                    inside = container(pid), is_claimed(pid)
                    found.append(Use(find(pid), opened, _mark(home), *inside))
    return found


def listed(uses: collections.abc.Sequence[Use]) -> str:
    """A text of some uses, which a report can hold."""
    more = f'; and {len(uses) - 2} more' if len(uses) > 2 else ''
    room = 115 if len(uses) > 1 else 232
    return '; '.join(client.plain(str(use))[:room] for use in uses[:2]) + more


def shortened(addresses: collections.abc.Sequence[str]) -> str:
    """A text of some addresses of cards: the first two, and how many more there are."""
    more = f' and {len(addresses) - 2} more' if len(addresses) > 2 else ''
    return ', '.join(addresses[:2]) + more


def begun(process: Process) -> str:
    """When a process began, ISO 8601, UTC, in minutes."""
    text = (PROC / 'stat').read_text()
    boot = int(text.partition('\nbtime ')[2].split(None, 1)[0])
    begun = boot + process.started // os.sysconf('SC_CLK_TCK')
    return datetime.datetime.fromtimestamp(begun, datetime.UTC).strftime('%Y-%m-%dT%H:%MZ')


def container(pid: int) -> str | None:
    """The id of the container of a process, as runtimes name its control group."""
    found = _group(pid)
    return found['id'] if found else None


def is_claimed(pid: int) -> bool:
    """Whether the user of a process may have named its control group after a container."""
    found = _group(pid)
    return bool(found and found['own'])


def _group(pid: int) -> re.Match[str] | None:
    try:
        return CONTAINER.search((PROC / str(pid) / 'cgroup').read_text(errors='replace'))
    except _HIDDEN:
        return None


def _mark(home: pathlib.Path) -> str | None:
    """The lease that the environment of a process names."""
    for each in _environment(home):
        name, _, value = each.partition(b'=')
        if name == MARK.encode():
            return value.decode(errors='replace')
    return None


def _seen(pid: int) -> tuple[int, int, str, int]:
    """The pid, the user, the state and the start of a process."""
    with _gone(pid):
        fields = _stat(pid)
        return pid, (PROC / str(pid)).stat().st_uid, fields[0], int(fields[19])


def _marked(home: pathlib.Path, wanted: bytes | None) -> bool:
    return wanted is not None and wanted in _environment(home)


def _environment(home: pathlib.Path) -> list[bytes]:
    try:
        with (home / 'environ').open('rb') as file:
            return file.read(ENVIRONMENT).split(b'\0')
    except _HIDDEN:
        return []


def _opens(home: pathlib.Path, nodes: collections.abc.Collection[str]) -> bool:
    """Whether a process has one of these device nodes open."""
    return any(True for _ in _opened(home, nodes))


def _opened(
    home: pathlib.Path, nodes: collections.abc.Collection[str]
) -> collections.abc.Iterator[str]:
    """Of these device nodes, those that a process has open; some may repeat."""
    if not nodes:
        return
    try:
        names = os.listdir(home / 'fd')
    except _HIDDEN:
        return
    numbers, mounts = _numbers(nodes), None
    for name in names:
        with contextlib.suppress(*_HIDDEN):
            path = os.readlink(home / 'fd' / name)
            if (node := path.removesuffix(' (deleted)')) in nodes:
                yield node
            # A node may have another name.
            elif numbers and path.startswith('/'):
                mounts = _device_mounts(home) if mounts is None else mounts
                if _mount(home, name) in mounts:
                    number = os.stat(home / 'fd' / name).st_rdev
                    yield from [numbers[number]] if number in numbers else []


def _numbers(nodes: collections.abc.Collection[str]) -> dict[int, str]:
    """The nodes by the numbers by which the kernel knows their devices."""
    found = {}
    for node in nodes:
        with contextlib.suppress(OSError):
            found[os.stat(node).st_rdev] = node
    return {number: node for number, node in found.items() if number}


def _device_mounts(home: pathlib.Path) -> set[str]:
    """The ids of the mounts of a process that can have device nodes.

    Others may be on a network: to look at a file of these can take for ever.
    """
    found = set()
    for line in (home / 'mountinfo').read_text(errors='replace').splitlines():
        mount, _, kind = line.partition(' - ')
        if kind.partition(' ')[0] in DEVICE_FILE_SYSTEMS:
            found.add(mount.partition(' ')[0])
    return found


def _mount(home: pathlib.Path, descriptor: str) -> str | None:
    """The id of the mount of an open file."""
    for line in (home / 'fdinfo' / descriptor).read_text().splitlines():
        name, _, value = line.partition(':')
        if name == 'mnt_id':
            return value.strip()
    return None


def _home(pid: int, state: str | None = None) -> pathlib.Path:
    """The directory of a process, or of another thread of it where its first one has ended.

    The kernel shows files, mounts and environment at threads that live.

    :param state: that of its first thread, if it is known.
    :raises Gone: when it has ended.
    """
    place = PROC / str(pid)
    with _gone(pid):
        if (state or _stat(pid)[0]) not in 'ZX':
            return place
        for thread in os.listdir(place / 'task'):
            if thread != str(pid):
                return place / 'task' / thread
    raise Gone(f'process {pid} has ended')


def _first_thread(pid: int) -> int:
    """The pid of the process of a thread."""
    text = (PROC / str(pid) / 'status').read_text(errors='replace')
    return int(text.partition('\nTgid:')[2].split(None, 1)[0])


def _started(pid: int) -> int:
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second may have blanks and brackets."""
    text = (PROC / str(pid) / 'stat').read_text(errors='replace')
    return text.rpartition(')')[2].split()


def _command(pid: int) -> str:
    return (PROC / str(pid) / 'comm').read_text(errors='replace').strip()[:64]


@contextlib.contextmanager
def _gone(pid: int) -> collections.abc.Iterator[None]:
    """Turn the errors of an ended process into Gone, and no others."""
    try:
        yield
    except (*_ENDED, ValueError, IndexError) as error:
        raise Gone(f'process {pid} has ended, or cannot be seen') from error

# SPDX-License-Identifier: Apache-2.0
"""The Unix socket through which processes of this machine lease accelerators.

A client sends one JSON object on one line, and receives one or more objects, each on a line. The
kernel identifies the client (SO_PEERCRED); what a client says of itself is not trusted.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import socket
import threading
import time
import typing

from oslo_log import log
import oslo_messaging as messaging

from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import delivery
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import unix
from cyborg_lite.agent import adopting
from cyborg_lite.agent import drawing
from cyborg_lite.agent import launching
from cyborg_lite.agent import leases
from cyborg_lite.agent import processes
from cyborg_lite.agent import runtimes

LOG = log.getLogger(__name__)

#: The maximum size of a request, in bytes.
SIZE = 64 << 10
#: The timeout for a client to send all of its request, or to read an answer, in seconds.
PATIENCE = 5.0
#: The limits of concurrent clients by kind, in total and of one user: clients whose request is
#: read, clients that wait for a lease, and others. Root is not counted.
LIMITS = {'reading': (256, 64), 'lease': (256, 64), 'other': (64, 16)}
#: The pause after accept() failed for lack of descriptors or threads, in seconds.
PAUSE = 0.2
#: The maximum number of clients that wait to be accepted.
BACKLOG = 256

Words = dict[str, typing.Any]


class Refused(Exception):
    """The request of a client is refused: the text gives the reason."""

    def __init__(self, text: str, code: int = 400) -> None:
        super().__init__(text)
        self.code = code


class _HungUp(Exception):
    """The client has closed the connection."""


class Server:
    """Serves the clients of a socket, each in a thread."""

    def __init__(self, path: str, group: str | None, served: list[leases.Leases]) -> None:
        """Listen at a path.

        :param group: the group whose members may connect, beside the user of this process.
        :param served: the leases of each host; the first host is the default of clients.
        :raises OSError: when the socket cannot be made.
        """
        self._path = pathlib.Path(path)
        self._served = {each.host.name: each for each in served}
        self._default = served[0]
        self._clients: collections.Counter[tuple[str, int]] = collections.Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener = unix.listen(path, group, BACKLOG)
        self._thread = threading.Thread(target=self._run, name='local-server', daemon=True)

    def start(self) -> None:
        for each in self._served.values():
            each.start()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        unix.remove(self._listener)
        for each in self._served.values():
            each.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
                self._begin(connection)
            except (OSError, RuntimeError) as error:
                # Descriptors or threads are short: other clients may end.
                if not self._stopping.wait(PAUSE):
                    LOG.error('Socket %s cannot accept a client now: %s', self._path, error)

    def _begin(self, connection: socket.socket) -> None:
        try:
            threading.Thread(
                target=self._serve, args=(connection,), name='client', daemon=True
            ).start()
        except BaseException:
            connection.close()
            raise

    def _serve(self, connection: socket.socket) -> None:
        """Serve one client; its errors do not affect others."""
        with connection:
            connection.settimeout(PATIENCE)
            try:
                self._answer(connection, *processes.peer(connection))
            except (Refused, processes.Gone) as error:
                _send(connection, {'error': str(error), 'code': getattr(error, 'code', 400)})
            except exception.CyborgError as error:
                _send(connection, {'error': error.message, 'code': error.code})
            except messaging.MessagingException as error:
                said = f'no conductor answers the agent: {type(error).__name__}'
                _send(connection, {'error': said, 'code': 503})
            except (_HungUp, OSError):
                pass
            except Exception:
                LOG.exception('A client of %s could not be served', self._path)
                _send(connection, {'error': 'the agent failed: see its log', 'code': 500})

    @contextlib.contextmanager
    def _counted(self, kind: str, uid: int) -> collections.abc.Iterator[None]:
        """
        :raises Refused: when there are too many clients of this kind.
        """
        most, of_user = LIMITS[kind]
        with self._lock:
            all_ = sum(n for (each, user), n in self._clients.items() if each == kind and user)
            if uid and (all_ >= most or self._clients[kind, uid] >= of_user):
                raise Refused('too many clients ask at once: try again later', 503)
            self._clients[kind, uid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._clients[kind, uid] -= 1
                self._clients += collections.Counter()

    def _answer(self, connection: socket.socket, pid: int, uid: int) -> None:
        with self._counted('reading', uid):
            words = _read(connection)
        with self._counted('lease' if words.get('do') == 'lease' else 'other', uid):
            self._act(connection, pid, uid, words)

    def _act(self, connection: socket.socket, pid: int, uid: int, words: Words) -> None:
        asking = Client(connection, pid, uid)
        served = self._default
        if (name := words.pop('host', None)) is not None:
            if not isinstance(name, str) or name not in self._served:
                known = ', '.join(self._served)
                raise Refused(
                    f'this agent has no host {name!r:.80}: expected one of {known}; {client.OWN}',
                    404,
                )
            served = self._served[name]
        acts = {
            'lease': _lease,
            'list': _list,
            'others': _others,
            'rogues': _rogues,
            'release': _release,
        }
        act = acts.get(str(words.pop('do', None)))
        if act is None:
            raise Refused(f'expected "do" to be one of {", ".join(acts)}')
        try:
            act(served, asking, **words)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise Refused('unknown words in the request') from None


class Client:
    """A process that has connected."""

    def __init__(self, connection: socket.socket, pid: int, uid: int) -> None:
        self._connection = connection
        self.pid = pid
        self.uid = uid

    def send(self, words: Words) -> None:
        if not _send(self._connection, words):
            raise _HungUp

    def has_taken(self) -> bool:
        """Whether the client confirms the lease: a sent answer may never be read."""
        try:
            return self._connection.recv(64).startswith(client.TAKEN.strip())
        except OSError:
            return False

    def refuse_if_gone(self, timeout: float = 0.0) -> None:
        """Return after so many seconds, unless it closes the connection.

        :raises _HungUp: when it has closed the connection.
        """
        polling = select.poll()
        polling.register(self._connection, select.POLLRDHUP)
        if polling.poll(round(1000 * timeout)):
            raise _HungUp

    def may(self, owner: int) -> bool:
        """Whether the client may change what this user owns."""
        return self.uid in (0, owner)


def _lease(
    served: leases.Leases,
    asking: Client,
    request: typing.Any = None,
    of: typing.Any = 'self',
    command: typing.Any = None,
) -> None:
    """Lease for a process, and send the client each change until the lease is active."""
    request = _checked({} if request is None else request, of)
    process = _holder(asking, of)
    if isinstance(of, int):
        request = adopting.request(served, process, request)
    if isinstance(command, str):
        process = dataclasses.replace(process, command=client.plain(command[:64]))
    if 'reservation' in request and request.get('queue'):
        lease = drawing.take(served, asking, process, request)
    else:
        lease = served.take(process, request)
    try:
        _deliver(served, asking, lease, adopted='addresses' in request)
    except BaseException:
        # What a process uses must be given to nobody else, whether or not its client has heard.
        if 'addresses' not in request:
            served.end(lease, 'It was cancelled.')
        raise


def _checked(request: typing.Any, of: typing.Any) -> leases.Row:
    """The request of a client, as far as the agent has to look at it.

    :raises Refused: when it is not valid.
    """
    if not isinstance(request, dict):
        raise Refused('expected "request" to be an object')
    if 'addresses' in request:
        # Whoever named cards would get those that others wait for, or use.
        raise Refused('"addresses" cannot be asked for: the agent sees what a process uses')
    # Before it is compared with another number: True is 1.
    if 'count' in request and type(request['count']) is not int:
        raise Refused(f'expected "count" to be a whole number, not {request["count"]!r:.80}')
    if of == 'time' and 'seconds' not in request:
        raise Refused('a lease of no process needs an end: expected "seconds" in the request')
    return request


def _deliver(served: leases.Leases, asking: Client, lease: leases.Lease, *, adopted: bool) -> None:
    """Send the client the state of its lease until the lease is active and confirmed, or reserved.

    :param adopted: whether its process used the accelerators already.
    :raises _HungUp: when the client has disconnected.
    """
    row: leases.Row | None = lease.row
    while row is not None and row['state'] == 'queued':
        asking.send(_shown(served, lease, row))
        before = row
        while row == before:
            asking.refuse_if_gone()
            row = served.wait(lease, before, drawing.CHECK)
    if row is None:
        raise Refused('the lease was released while it waited', 409)
    if row['state'] == 'reserved':
        asking.send(_shown(served, lease, row))
        return
    served.guard(PATIENCE)
    served.specify(lease)
    document = served.document(lease)
    views = {view: delivery.render(document, view) for view in delivery.VIEWS}
    asking.send(_shown(served, lease, row) | {'views': views, 'adopted': adopted})
    if not asking.has_taken():
        raise _HungUp


def _holder(asking: Client, of: typing.Any) -> processes.Process:
    """The process that will hold a lease: the client, its parent, or another of the same user."""
    if of == 'self':
        pid = asking.pid
    elif of == 'parent':
        pid = processes.parent(asking.pid)
    elif of == 'time':
        # Without a process: the lease ends by a release or by its time.
        return processes.Process(
            processes.boot_digest(), 0, 0, asking.uid, accounts.name(asking.uid), ''
        )
    elif isinstance(of, int) and not isinstance(of, bool) and of > 0:
        if processes.namespace(asking.pid) != processes.namespace(os.getpid()):
            raise Refused('a process of another pid namespace cannot be named by its pid')
        pid = of
    else:
        raise Refused('expected "of" to be "self", "parent", "time", or a pid')
    process = processes.find(pid)
    if pid == asking.pid:
        # The user at the time of connect(): the process may have changed it since.
        return dataclasses.replace(process, uid=asking.uid, user=accounts.name(asking.uid))
    if not asking.may(process.uid):
        raise Refused(f'process {pid} belongs to another user', 403)
    return process


def _list(served: leases.Leases, asking: Client) -> None:
    """List all leases of the host, with their processes, and the host's resources.

    Other users do not see the ids of a lease.
    """
    found = []
    for lease in served.all():
        shown = _shown(served, lease, lease.row)
        found.append(shown if asking.may(lease.process.uid) else _hidden(shown))
    answer = {'leases': found, 'resources': served.resources(), 'access': served.access}
    asking.send(answer)


def _others(served: leases.Leases, asking: Client) -> None:
    """List who holds accelerators of the host without a lease: by an instance, or over the API."""
    asking.send({'others': served.others()})


def _rogues(served: leases.Leases, asking: Client) -> None:
    """List who uses cards of the host without a lease, with the memory that the driver tells."""
    found = [
        _described(use.process)
        | {'host': served.host.name, 'address': address, 'user': use.process.user}
        | {'since': processes.begun(use.process), 'memory_mb': use.memory_mb}
        for address, uses in served.rogues().items()
        for use in uses
    ]
    asking.send({'rogues': found})


def _hidden(shown: Words) -> Words:
    """A lease without the ids by which it could be changed."""
    held = [each | {'arq_uuid': None} for each in shown['accelerators'] or ()]
    return shown | {'uuid': None, 'name': None, 'reservation': None, 'accelerators': held}


def _release(
    served: leases.Leases,
    asking: Client,
    id: typing.Any = None,
    claimed_name: typing.Any = None,
) -> None:
    """Release a lease by its uuid or name, or the only one of the client's parent.

    :param claimed_name: the name that the lease of the parent must have; None if it must have none.
    """
    mine = [lease for lease in served.all() if asking.may(lease.process.uid)]
    if id is None:
        shell = processes.parent(asking.pid)
        held = [lease for lease in mine if lease.process.pid == shell]
        found = [lease for lease in held if lease.row.get('claimed_name') == claimed_name]
        what = 'this shell' if claimed_name is None else f'this shell as {claimed_name!r:.80}'
        if held and not found:
            names = (lease.row.get('claimed_name') for lease in held)
            others = {f'as {name!r}' if name else 'as nobody in particular' for name in names}
            what += f', but there are some {", ".join(sorted(others))}'
    else:
        found = [lease for lease in mine if id in (lease.uuid, lease.row['name'])]
        what = f'{id!r:.80}'
    if len(found) != 1:
        many = ', '.join(lease.uuid for lease in found)
        raise Refused(
            f'which lease of {what} is meant: {many}?' if found else f'no lease of {what}'
        )
    [lease] = found
    if busy := served.opening(lease):
        said = ', '.join(f'{each.pid} ({each.command})' for each in busy[:8])
        raise Refused(f'lease {lease.uuid} is in use: end process {said} first', 409)
    served.end(lease, 'It was released.')
    done = served.released(lease, PATIENCE)
    asking.send({'released': lease.uuid, 'done': done})


def _shown(served: leases.Leases, lease: leases.Lease, row: leases.Row) -> Words:
    """A lease in the form for clients."""
    process = lease.process
    return {
        'uuid': lease.uuid,
        'name': row['name'],
        # Conductors of the release before do not say them.
        **{field: row.get(field) for field in model.Allocation.LABELS},
        'state': row['state'],
        'position': row['position'],
        'reason': row['reason'],
        'since': row['created_at'],
        'starts': row.get('starts_at'),
        'ends': row['lease_ends_at'],
        'reservation': row.get('reservation_uuid'),
        'amount': row.get('amount'),
        'host': served.host.name,
        'user': process.user,
        'pid': process.pid,
        'command': process.command,
        'processes': [_described(each) for each in list(lease.watched.values())],
        'accelerators': row['accelerators'],
        'access': served.access,
    }


def _described(process: processes.Process) -> Words:
    """A process in the form for clients, with its container and who launched it."""
    container = processes.container(process.pid)
    # The user of a process may have made up an id that is claimed: the names are of another's.
    named = container if container and not processes.is_claimed(process.pid) else None
    names = runtimes.names(named) if named else runtimes.Names()
    return {
        'pid': process.pid,
        'command': processes.command(process),
        'launcher': launching.launcher(process.pid, process.uid),
        'container': container,
        'container_name': names.name,
        'image': names.image,
    }


def _read(connection: socket.socket) -> Words:
    """The request of a client.

    :raises Refused: when it is not valid, or has not arrived in time.
    """
    try:
        text = _read_line(connection)
    finally:
        connection.settimeout(PATIENCE)
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, dict):
        raise Refused('expected a JSON object')
    return words


def _read_line(connection: socket.socket) -> bytes:
    """The line that a client sends, with one deadline for all its parts."""
    late = Refused(f'expected a request within {PATIENCE:g} s')
    text, end = b'', time.monotonic() + PATIENCE
    while not text.endswith(b'\n'):
        if (left := end - time.monotonic()) <= 0:
            raise late
        connection.settimeout(left)
        try:
            part = connection.recv(min(4096, SIZE + 1 - len(text)))
        except TimeoutError:
            raise late from None
        text += part
        if not part or len(text) > SIZE:
            raise Refused(f'expected one line of JSON, at most {SIZE} bytes')
    return text


def _send(connection: socket.socket, words: Words) -> bool:
    """Send an answer; returns whether the client took it."""
    try:
        connection.sendall(json.dumps(words).encode() + b'\n')
    except OSError:
        return False
    return True

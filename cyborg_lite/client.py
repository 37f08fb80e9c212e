# SPDX-License-Identifier: Apache-2.0
"""Accelerators for a process, from the agent of this machine.

It uses only the standard library, so that any program can import it.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import errno
import grp
import json
import os
import pathlib
import platform
import pwd
import re
import socket
import stat
import time
import types
import typing

#: The names of the sockets of an agent and of the API in the state directory of ``cyborg-lite up``.
SOCKET, API_SOCKET = 'agent.sock', 'api.sock'
#: How the URL of a Unix socket begins: its path follows.
UNIX = 'unix://'
#: The directory of sockets of services that systemd started.
SYSTEM = pathlib.Path('/run/cyborg-lite')
#: The variable with the path of another socket.
VARIABLE = 'CYBORG_LITE_SOCKET'
#: The variable with the URL of a service, which may be on another machine.
URL = 'CYBORG_LITE_URL'
#: Why no agent of another machine is asked, and what to do.
OWN = 'an agent leases only to processes of its own machine: for cards of another, log in there'
#: The variable with the name that a user of a shared login claims.
CLAIMED = 'CYBORG_LITE_AS'
#: The texts that a user adds to a lease: their maximum lengths.
LABELS = {'claimed_name': 64, 'note': 255}
#: How the kernel keeps users without a lease from devices, for users.
ACCESS = {'acl': 'enforced', 'advisory': 'advisory'}
#: The maximum size of one answer, in bytes.
SIZE = 32 << 20
#: The minimum timeout for the first answer to a request for a lease, in seconds: the timeout of a
#: caller is that of the wait in the queue, which may be none.
ANSWER = 30.0
#: The confirmation of a client that it has received its lease.
TAKEN = b'taken\n'
#: The maximum wait for a place among the clients of a socket, and the pause of it, in seconds.
CONNECT, PAUSE = 10.0, 0.02
#: The longest wait for an answer at once, in seconds: Python does not notice a signal that comes
#: just before a wait until its end.
TICK = 1.0
#: The variables of a process that ``cyborg-lite run`` started: the last says what the others do not
#: say of its lease.
ALLOCATION, DEVICES, LEASE = 'CYBORG_ALLOCATION', 'CYBORG_DEVICES', 'CYBORG_LEASE'

#: How the reason of a request begins if too few accelerators are free.
WAITS = 'It waits: '
#: How a refusal begins for the same reason.
TOO_FEW = 'Cannot allocate: '
#: What both have if there are never enough accelerators.
NEVER = ('even if all were free', 'no links between cards are known')

Words = dict[str, typing.Any]


class Error(Exception):
    """An agent refuses, or no agent answers: the text says what to do.

    ``code`` is the HTTP status of the API for this error; 503 if no agent or no conductor answers.
    """

    def __init__(self, text: str, code: int = 503) -> None:
        super().__init__(text)
        self.code = code


class TimedOut(Error):
    """Too few accelerators were free until the timeout."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 408)


def is_never(text: str) -> bool:
    """Whether there would be too few even if all were free, by a reason or a refusal."""
    return any(each in text for each in NEVER)


def late(cause: str | None) -> TimedOut:
    """The error if too few accelerators were free until the timeout.

    :param cause: why, if that is known.
    """
    said = 'it was not free in time'
    return TimedOut(f'{said}: {cause.removeprefix(WAITS)}' if cause else said)


@dataclasses.dataclass(frozen=True)
class Lease:
    """Accelerators that a process holds until it ends, or until the lease is released."""

    uuid: str
    name: str | None
    host: str
    #: as ``GET /v2/allocations/UUID`` shows them
    accelerators: list[Words]
    #: the views of the delivery by name: see the user guide
    views: Words
    #: the socket of the agent
    socket: str
    #: ``acl`` if the kernel keeps users without a lease from devices, or ``advisory``
    access: str = 'advisory'
    #: whether its process used them already; None from an agent that does not say it
    adopted: bool | None = None

    @property
    def env(self) -> dict[str, str]:
        """The variables that limit the vendor's software to these accelerators."""
        found = {str(name): str(value) for name, value in self.views['process']['env'].items()}
        # A process that has these variables knows its lease: see cyborg_lite.door.allocation().
        known = {'uuid': self.uuid, 'name': self.name, 'host': self.host, 'variables': [*found]}
        return found | {LEASE: json.dumps(known, separators=(',', ':'))}

    @property
    def problems(self) -> list[str]:
        """Texts on accelerators that the variables cannot name, with the reason."""
        return [str(each) for each in self.views['process'].get('problems', ())]

    @property
    def addresses(self) -> list[str]:
        """The name of each device in the vendor's software; its id here if it has no name."""
        return [
            str(name) for each in self.views['spark']['resources'] for name in each['addresses']
        ]

    def release(self) -> None:
        """Release the accelerators before the process ends.

        :raises Error: when a process still has one of their devices open.
        """
        ask(self.socket, {'do': 'release', 'id': self.uuid, 'host': self.host})

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.release()


def labels(claimed_name: str | None, note: str | None) -> dict[str, str]:
    """The texts that a request adds to a lease; empty ones are left out.

    :param claimed_name: None for that in CYBORG_LITE_AS.
    :raises Error: when one is too long, or cannot be shown to others.
    """
    claimed = os.environ.get(CLAIMED) if claimed_name is None else claimed_name
    found = {name: text for name, text in (('claimed_name', claimed), ('note', note)) if text}
    for field, text in found.items():
        if expected := unfit(field, text):
            told = CLAIMED if claimed_name is None and field == 'claimed_name' else field
            raise Error(f'Invalid {told}: {expected}', 400)
    return found


def unfit(field: str, text: str) -> str:
    """What is expected of a text that a user adds to a lease; empty if it is as expected."""
    if text.isprintable() and text == text.strip() and len(text) <= LABELS[field]:
        return ''
    return f'expected 1 to {LABELS[field]} printable characters, with no blank at either end'


def lease(
    path: str,
    request: Words,
    *,
    of: str | int = 'self',
    command: str | None = None,
    host: str | None = None,
    end: float | None = None,
    told: collections.abc.Callable[[Words], None] = lambda _: None,
) -> Lease:
    """Ask an agent for a lease.

    :param of: the process that will hold it: ``self``, ``parent``, or a pid.
    :param command: the command that the process will execute.
    :param host: one of the hosts of the agent; None for the first.
    :param end: the end of the wait in the queue, by the monotonic clock.
    :param told: called with each answer of the agent while the request is queued.
    :raises Error: when it is refused, or when no variable could name what was given.
    """
    words: Words = {'do': 'lease', 'request': request, 'of': of}
    words |= {'command': command} if command else {}
    words |= {'host': host} if host else {}
    queued = False
    for answer in _conversation(path, words, end, ANSWER):
        if answer.get('state') == 'active':
            found = Lease(
                *(answer['uuid'], answer['name'], answer['host']),
                *(answer['accelerators'], answer['views'], path),
                *(answer.get('access', 'advisory'), answer.get('adopted')),
            )
            refuse_unnamed(found)
            return found
        told(answer)
        queued = True
    if queued:
        raise Error(
            'the service has ended, and the request has left the queue: start the service with '
            '"cyborg-lite up", and ask again'
        )
    raise Error('the agent ended the conversation without an answer')


def refuse_unnamed(found: Lease) -> None:
    """Give back what no variable names: the program would see all cards of the machine."""
    if found.views['process'].get('unnamed'):
        with contextlib.suppress(Error):
            found.release()
        raise Error(
            f'a program would see all cards of {found.host}: {" ".join(found.problems)} The '
            'library of their vendor knows the ids: install it beside the agent, such as '
            'nvidia-ml-py',
            409,
        )


def ask(path: str, words: Words, timeout: float | None = None) -> Words:
    """The only answer to a request."""
    end = None if timeout is None else time.monotonic() + timeout
    for answer in _conversation(path, words, end):
        return answer
    raise Error('the agent ended the conversation without an answer')


def find(path: str | None = None) -> str:
    """The path of the agent's socket.

    :param path: the given path, if any.
    :raises Error: when there is none.
    """
    named = path or os.environ.get(VARIABLE)
    if named:
        return named
    if found := _found(SOCKET):
        return found
    own, system = places(SOCKET)
    far = elsewhere()
    raise Error(
        f'no agent listens on this machine: neither {own} nor {system} is a socket. Start one with '
        f'"cyborg-lite up", or name its socket in {VARIABLE}' + (f'. {far}' if far else '')
    )


def elsewhere() -> str:
    """What to say if CYBORG_LITE_URL names another machine, whose agent is not asked; or empty."""
    url = re.match(r'https?://(?:[^@/]*@)?(\[[^]/]*\]|[^:/[]*)', os.environ.get(URL, ''))
    machine = url[1] if url else ''
    # Its name may be given with its domain, or without.
    names = '', 'localhost', platform.node().partition('.')[0]
    if machine in ('127.0.0.1', '[::1]') or machine.partition('.')[0] in names:
        return ''
    return f'{URL} names {machine:.80}, but {OWN}'


def find_api() -> str | None:
    """The path of the first socket of the API that this user may use; None if there is none."""
    return _found(API_SOCKET, os.W_OK)


def barred_api() -> str | None:
    """The path of the first socket of the API, if there is none that this user may use."""
    return None if find_api() else _found(API_SOCKET)


def barred(path: str) -> str:
    """Why this user may not use a socket, and what to type, by what its file says."""
    try:
        found = os.stat(path)
    except OSError as error:
        return f'this user may not look there: {error.strerror}'
    owner = _named(pwd.getpwuid, found.st_uid)
    if not found.st_mode & stat.S_IWGRP:
        return f'it is there, and only user {owner} may use it: ask them to set socket_group'
    group, me = _named(grp.getgrgid, found.st_gid), _named(pwd.getpwuid, os.geteuid())
    return (
        f'it is there, and only user {owner} and group {group} may use it: ask for "usermod -aG '
        f'{group} {me}", and log in again'
    )


def _named(find: collections.abc.Callable[[int], tuple[typing.Any, ...]], id: int) -> str:
    """The name of a user or group; the number if it has none."""
    try:
        return str(find(id)[0])
    except KeyError:
        return str(id)


def _found(name: str, mode: int = os.F_OK) -> str | None:
    """The path of the first socket of this name that this user may use; None if there is none.

    A service that was killed leaves its socket: another is preferred to that.
    """
    found = []
    for each in places(name):
        # Another user's directory may not be readable.
        with contextlib.suppress(OSError):
            if each.is_socket() and os.access(each, mode):
                found.append(str(each))
    return next((each for each in found[:-1] if not _is_left(each)), found[-1] if found else None)


def _is_left(path: str) -> bool:
    """Whether no process listens at a socket any more."""
    try:
        connect(path, CONNECT).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def places(name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Where a socket is looked for: in the state directory, and in that of the system."""
    return pathlib.Path(state_dir()) / name, SYSTEM / name


def state_dir() -> str:
    """The state directory of ``cyborg-lite up``."""
    state = os.environ.get('XDG_STATE_HOME') or os.path.expanduser('~/.local/state')
    return os.path.join(state, 'cyborg-lite')


@contextlib.contextmanager
def short(path: str) -> collections.abc.Iterator[str]:
    """A short path of a socket, through a descriptor: the kernel allows 107 bytes (unix(7))."""
    directory, name = os.path.split(path)
    descriptor = os.open(directory or '.', os.O_PATH | os.O_DIRECTORY)
    try:
        yield f'/proc/self/fd/{descriptor}/{name}'
    finally:
        os.close(descriptor)


def connect(path: str, timeout: float | None = None) -> socket.socket:
    """A connection to a Unix socket, which waits if others connect, too.

    With a timeout the kernel does not wait where too many have not been accepted (unix(7)).

    :param timeout: that of all that is done with it, in seconds.
    :raises OSError: also when others take longer than CONNECT seconds.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        _connect(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, path: str) -> None:
    end = time.monotonic() + CONNECT
    with short(path) as place:
        while True:
            try:
                connection.connect(place)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError('too many clients wait there') from None
                time.sleep(PAUSE)
            else:
                return


def plain(text: str) -> str:
    """A text on one line, without characters that are not printable."""
    return ''.join(each if each.isprintable() else '?' for each in text)


def _conversation(
    path: str, words: Words, end: float | None = None, first: float = 0.0
) -> collections.abc.Iterator[Words]:
    """The answers of an agent, line by line.

    :param end: the end of the wait for them, by the monotonic clock.
    :param first: the minimum timeout for the first of them, in seconds.
    """
    answered = False
    try:
        connection = connect(path)
    except OSError as error:
        raise Error(f'{path}: {_unreachable(path, error)}') from None
    with connection:
        try:
            connection.sendall(json.dumps(words).encode() + b'\n')
            for answer in _answers(connection, end, first):
                answered = True
                if 'views' in answer:
                    # The agent releases a lease that no client confirms.
                    connection.sendall(TAKEN)
                yield answer
        except TimeoutError:
            if not answered:
                raise Error(f'the agent at {path} does not answer') from None
            raise late(None) from None
        except OSError as error:
            raise Error(f'the agent at {path} is gone: {error.strerror or error}') from None
        except (ValueError, TypeError):
            raise Error(f'{path} is no socket of an agent: that is {SOCKET}') from None


def _unreachable(path: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return barred(path)
    words = {
        errno.ENOENT: 'no agent listens here: start one with "cyborg-lite up"',
        errno.ECONNREFUSED: 'its agent has ended: start it again',
    }
    return words.get(error.errno or 0, error.strerror or str(error))


def _answers(
    connection: socket.socket, end: float | None, first: float
) -> collections.abc.Iterator[Words]:
    text = b''
    due = None if end is None else max(end, time.monotonic() + first)
    while True:
        left = TICK if due is None else min(TICK, due - time.monotonic())
        connection.settimeout(max(0.001, left))
        try:
            part = connection.recv(65536)
        except TimeoutError:
            if due is not None and time.monotonic() >= due:
                raise
            continue
        text += part
        if len(text) > SIZE:
            raise Error('the agent sends an answer without an end')
        *lines, text = text.split(b'\n')
        for line in lines:
            # Raises a TypeError if it is no object.
            answer = {**json.loads(line)}
            if 'error' in answer:
                raise Error(str(answer['error']), int(answer.get('code', 400)))
            due = end
            yield answer
        if not part:
            return

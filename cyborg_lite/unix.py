# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: a socket at a path, and who is connected to one.

Source: unix(7).
"""

from __future__ import annotations

import contextlib
import grp
import os
import pathlib
import socket
import stat
import struct
import typing

from cyborg_lite import client

#: The maximum length of the name of a socket in its directory, in bytes: see client.short().
LONGEST = 80
#: The timeout of a connection to a socket that may be in use, in seconds.
PATIENCE = 5.0

#: The key in the environment of a WSGI request for the uid of a client of a Unix socket: only our
#: own web server sets it.
PEER = 'cyborg_lite.peer'

#: The path of each socket that this process has made, and which file it is.
_made: dict[socket.socket, tuple[str, os.stat_result]] = {}

#: pid, uid and gid.
_CREDENTIALS = struct.Struct('iII')


class Peer(typing.NamedTuple):
    """The process that has connected; its user is that of the time of connect()."""

    #: 0 or less if it is in a pid namespace that is not visible here
    pid: int
    uid: int
    gid: int


def peer(connection: socket.socket) -> Peer:
    """The other end of a connection, from the kernel (SO_PEERCRED)."""
    size = _CREDENTIALS.size
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return Peer(*_CREDENTIALS.unpack(told))


def listen(path: str, group: str | None, backlog: int) -> socket.socket:
    """A socket at a path, which the user of this process and a group may use.

    The socket of a process that has ended is replaced.

    :param group: the group whose members may connect, beside the user of this process.
    :param backlog: the maximum number of clients that wait to be accepted.
    :raises OSError: when it cannot be made, or another process listens there.
    """
    place = pathlib.Path(path)
    if len(os.fsencode(place.name)) > LONGEST:
        raise OSError(f'{path}: expected a file name of at most {LONGEST} bytes')
    gid = -1 if group is None else _gid(group)
    _refuse_shared(place)
    _clear(place)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode comes from the mask: to change that of a path would follow a link.
    mask = os.umask(0o177 if group is None else 0o117)
    try:
        with client.short(path) as short:
            listener.bind(short)
        _made[listener] = path, os.lstat(path)
        # Nobody can connect before listen().
        os.chown(place, -1, gid, follow_symlinks=False)
        listener.listen(backlog)
    except BaseException:
        remove(listener)
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def remove(listener: socket.socket) -> None:
    """Remove the file of a socket of :func:`listen`, unless another is at its path now."""
    path, made = _made.pop(listener, ('', None))
    with contextlib.suppress(OSError):
        now = os.lstat(path)
        if made and (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
            os.unlink(path)


def remove_all() -> None:
    """Remove the files of all sockets that this process has made."""
    for listener in list(_made):
        remove(listener)


def _refuse_shared(place: pathlib.Path) -> None:
    """Refuse a directory in which another user could put something else in the place of a socket.

    :raises OSError: also when there is no such directory.
    """
    try:
        found = place.parent.stat()
    except OSError as error:
        raise OSError(f'{place.parent}: {error.strerror}: make it first') from None
    writable = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if writable or found.st_uid not in (0, os.geteuid()):
        raise OSError(f'{place.parent}: other users may write there: use one of your own')


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(f'there is no group {group}: see socket_group') from None


def _clear(path: pathlib.Path) -> None:
    """Remove the socket of a process that has ended."""
    if not path.is_socket():
        if os.path.lexists(path):
            raise OSError(f'{path} is in the way: expected a socket, or nothing')
        return
    try:
        client.connect(os.fspath(path), PATIENCE).close()
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
    else:
        raise OSError(f'{path} is the socket of a process that runs')

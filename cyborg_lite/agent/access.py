# SPDX-License-Identifier: Apache-2.0
"""The device nodes of cards: closed to users, but for those whose lease has the card.

This is ``[agent] device_access = acl``. The nodes then belong to root, and an access control list
opens a node to each user with a lease of its card. The kernel checks it at open(): a descriptor
that is open survives, and root is not refused. The agent keeps how each node was before, and puts
it back when the option is ``advisory`` again.

Source: acl(5); include/uapi/linux/posix_acl_xattr.h of Linux for the attribute.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import stat
import struct
import typing

from oslo_config import cfg
from oslo_log import log

from cyborg_lite import exception
from cyborg_lite.agent import files

LOG = log.getLogger(__name__)

#: The name of the file in a state directory.
FILE = 'agent.access'
#: Whether the kernel keeps other users from the nodes of a card.
ADVISORY, ENFORCED = 'advisory', 'acl'
#: The extended attribute with the list, its version, and the tags of its entries.
ATTRIBUTE = 'system.posix_acl_access'
VERSION = 2
OWNER, USER, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
#: The id of entries that are of no user.
NOBODY = 0xFFFFFFFF
#: The permissions to read and write.
OPEN = 6
#: The maximum size of the file, in bytes.
SIZE = 8 << 20

#: By node, the users who may open it.
Users = collections.abc.Mapping[str, collections.abc.Collection[int]]


@dataclasses.dataclass(frozen=True)
class Found:
    """A device node, and how it was before it was closed."""

    #: what tells the node from one that was made at its path later
    device: int
    inode: int
    #: the number of the device that it leads to
    number: int
    uid: int
    gid: int
    mode: int
    #: the list in hexadecimal digits; empty if there was none
    acl: str

    def is_of(self, facts: os.stat_result) -> bool:
        """Whether this is the node with these facts."""
        node = facts.st_dev, facts.st_ino, facts.st_rdev
        return node == (self.device, self.inode, self.number)


class Access:
    """The access to the device nodes of this machine, which are known as they were found."""

    def __init__(self, path: pathlib.Path) -> None:
        """
        :param path: the file that remembers the nodes.
        :raises cyborg_lite.exception.Refused: when the file cannot be used.
        """
        self._path = path
        self._found = _load(path)
        self._problems: list[str] = []

    @property
    def enforced(self) -> bool:
        """Whether all nodes were closed or opened as they should be."""
        return not self._problems

    def enforce(self, users: Users, shared: collections.abc.Iterable[str] = ()) -> None:
        """Let each node be opened by these users and no others.

        A node that was closed before and is not named stays closed. A path that is no device node,
        or leads to the device of a shared node, is left alone.

        :param shared: nodes that every process needs.
        """
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(_opened(path)) for path in shared]
            left = {node.facts.st_rdev for node in nodes if node}
        problems = self._note({*users, *self._found}, left)
        for path, found in sorted(self._found.items()):
            with _reported(path, problems), _opened(path) as node:
                if node and found.is_of(node.facts):
                    _restrict(node, {*users.get(path, ())})
        if problems and problems != self._problems:
            LOG.error('The access to device nodes is not enforced: %s', '; '.join(problems))
        self._problems = problems

    def _note(self, paths: collections.abc.Iterable[str], left: set[int]) -> list[str]:
        """Remember new nodes, and forget those that are gone; returns the problems.

        :param left: the numbers of devices that are left alone.
        """
        found: dict[str, Found] = {}
        problems: list[str] = []
        for path in paths:
            with _reported(path, problems), _opened(path) as node:
                known = self._found.get(path)
                same = known if node and known and known.is_of(node.facts) else None
                if node and node.facts.st_rdev not in left:
                    found[path] = same or _found(node)
                elif node and same:
                    _put_back(node, same)
        if found != self._found:
            # A node is noted before it is closed: it can be put back after a crash.
            with _reported('[agent] access_file', problems):
                _save(self._path, found)
                self._found = found
        return problems

    def restore(self) -> None:
        """Put all nodes back as they were found, and forget them."""
        problems: list[str] = []
        for path, found in self._found.items():
            with _reported(path, problems), _opened(path) as node:
                if node and found.is_of(node.facts):
                    _put_back(node, found)
        if problems:
            LOG.error('Some device nodes cannot be put back: %s', '; '.join(problems))
            return
        self._path.unlink(missing_ok=True)
        LOG.info('%d device nodes are as they were found', len(self._found))
        self._found = {}


def load(conf: cfg.ConfigOpts) -> Access | None:
    """The access of this machine's nodes; None if it is advisory, and all are put back.

    :raises cyborg_lite.exception.Refused: when the file of the nodes cannot be used.
    """
    path = files.place(conf.agent.access_file, FILE)
    if conf.agent.device_access == ENFORCED:
        if path is None:
            raise exception.Refused(
                '[agent] access_file: expected a path, with device_access = acl: there is no '
                'state directory'
            )
        return Access(path)
    if path is not None and path.exists():
        Access(path).restore()
    return None


def shown(access: Access | None) -> str:
    """Whether the kernel enforces the access: ``acl``, or else ``advisory``."""
    return ENFORCED if access is not None and access.enforced else ADVISORY


class _Node(typing.NamedTuple):
    """A device node that is found."""

    #: a path of its descriptor, for calls that take none that is opened so
    path: str
    facts: os.stat_result


@contextlib.contextmanager
def _opened(path: str) -> collections.abc.Iterator[_Node | None]:
    """The device node at a path; None if there is something else, such as a link, or nothing.

    The device itself is not opened.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        node = _Node(f'/proc/self/fd/{descriptor}', os.fstat(descriptor))
        yield node if stat.S_ISCHR(node.facts.st_mode) else None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _reported(what: str, problems: list[str]) -> collections.abc.Iterator[None]:
    """Add an error to the problems: it does not affect other nodes."""
    try:
        yield
    except OSError as error:
        problems.append(f'{what}: {error.strerror}')


def _found(node: _Node) -> Found:
    facts = node.facts
    return Found(
        *(facts.st_dev, facts.st_ino, facts.st_rdev, facts.st_uid, facts.st_gid),
        *(facts.st_mode & 0o777, (_list(node) or b'').hex()),
    )


def _restrict(node: _Node, users: set[int]) -> None:
    """Let a node be opened by these users, and by root."""
    # An owner could change the mode.
    if (node.facts.st_uid, node.facts.st_gid) != (0, 0):
        os.chown(node.path, 0, 0)
    named = sorted(users - {0})
    wanted = _packed(OPEN, 0, 0, named)
    # The kernel keeps a list without named users as a mode. It is compared each time: a chmod by
    # another program changes the list.
    found = _list(node)
    shut = found is None and node.facts.st_mode & 0o777 == OPEN << 6
    if not (found == wanted if named else shut):
        os.setxattr(node.path, ATTRIBUTE, wanted)


def _put_back(node: _Node, found: Found) -> None:
    plain = _packed(found.mode >> 6 & 7, found.mode >> 3 & 7, found.mode & 7)
    os.setxattr(node.path, ATTRIBUTE, bytes.fromhex(found.acl) or plain)
    os.chown(node.path, found.uid, found.gid)


def _list(node: _Node) -> bytes | None:
    """The access control list of a node; None if it has only a mode."""
    try:
        return os.getxattr(node.path, ATTRIBUTE)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def _packed(owner: int, group: int, other: int, users: collections.abc.Sequence[int] = ()) -> bytes:
    """A list of permissions, in which these users may read and write."""
    entries = [(OWNER, owner, NOBODY), *((USER, OPEN, uid) for uid in users)]
    entries += [(GROUP, group, NOBODY), *([(MASK, OPEN, NOBODY)] if users else [])]
    entries += [(OTHER, other, NOBODY)]
    return struct.pack('<I', VERSION) + b''.join(struct.pack('<HHI', *each) for each in entries)


def _load(path: pathlib.Path) -> dict[str, Found]:
    """
    :raises cyborg_lite.exception.Refused: when it is no such file.
    """
    try:
        with path.open('rb') as file:
            told = json.loads(file.read(SIZE))
        return {str(name): _read(each) for name, each in told.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise exception.Refused(f'[agent] access_file: {exception.line(error)}') from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise exception.Refused(
            f'[agent] access_file: {path}: expected the device nodes that an agent has closed'
        ) from None


def _read(told: dict[str, typing.Any]) -> Found:
    found = Found(**told)
    numbers = [value for name, value in told.items() if name != 'acl']
    if not all(type(each) is int and each >= 0 for each in numbers):
        raise ValueError('expected numbers')
    bytes.fromhex(found.acl)
    return found


def _save(path: pathlib.Path, found: dict[str, Found]) -> None:
    told = {name: dataclasses.asdict(each) for name, each in sorted(found.items())}
    files.write(path, json.dumps(told, indent=1), replace=True)

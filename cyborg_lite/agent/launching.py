# SPDX-License-Identifier: Apache-2.0
"""The user who launched a process that runs as another one: in a container, or with sudo.

Only what the kernel keeps from the process itself is believed. The owner of its user namespace
created that: it is the user of a rootless container. The login of a process of root was set when a
person logged in; a process of another user may set its own to anybody's, if it has none yet.

Source: ioctl_ns(2), user_namespaces(7); Linux, kernel/audit.c, audit_set_loginuid_perm().
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import struct

from cyborg_lite import accounts

#: The file system of processes.
PROC = pathlib.Path('/proc')
#: The requests of ioctl_ns(2).
NS_GET_PARENT, NS_GET_OWNER_UID = 0xB702, 0xB704
#: The login of a process without one: a daemon, and all that it starts.
UNSET = 0xFFFFFFFF


def launcher(pid: int, uid: int) -> str | None:
    """The name of the user who launched a process; None if it is unknown, or is the process's own.

    :param uid: the user that the process has.
    """
    found = _owner(pid) or (None if uid else _login(pid))
    return accounts.name(found) if found and found != uid else None


def _owner(pid: int) -> int | None:
    """The owner of the outermost user namespace of a process below that of the agent."""
    owner = None
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        descriptor = os.open(PROC / str(pid) / 'ns/user', os.O_RDONLY | os.O_CLOEXEC)
        while True:
            opened.callback(os.close, descriptor)
            # Fails at the namespace of the agent.
            outer = fcntl.ioctl(descriptor, NS_GET_PARENT)
            [owner] = struct.unpack('I', fcntl.ioctl(descriptor, NS_GET_OWNER_UID, bytes(4)))
            descriptor = outer
    return owner


def _login(pid: int) -> int | None:
    """The user as whom a person logged in, who started a process of root; None if unknown."""
    with contextlib.suppress(OSError, ValueError):
        found = int((PROC / str(pid) / 'loginuid').read_text())
        return None if found == UNSET else found
    return None

# SPDX-License-Identifier: Apache-2.0
"""Pids: whether this process sees those of the whole machine, and lists of them.

Source: pid_namespaces(7); Linux, include/linux/proc_ns.h: the number of the first namespace does
not change.
"""

from __future__ import annotations

import os
import pathlib
import typing

from cyborg_lite import contract

#: The link that names the pid namespace of this process.
NAMESPACE = pathlib.Path('/proc/self/ns/pid')
#: The number of the pid namespace in which the machine was booted: PROC_PID_INIT_INO.
FIRST = 0xEFFFFFFC


def are_global() -> bool:
    """Whether the pids that this process sees are those by which the kernel knows processes."""
    try:
        return os.readlink(NAMESPACE) == f'pid:[{FIRST}]'
    except OSError:
        return False


def sees_all() -> bool:
    """Whether this process can see what all processes of the machine have open."""
    return are_global() and os.geteuid() == 0


def of(told: typing.Any) -> frozenset[int]:
    """The valid pids of ``{'pids': [...]}`` in an answer: a recording may hold anything."""
    listed = told.get('pids') if isinstance(told, dict) else None
    found = [pid for pid in listed if type(pid) is int] if isinstance(listed, list) else []
    return frozenset([pid for pid in found if 0 < pid <= contract.PID][: contract.PROCESSES])

# SPDX-License-Identifier: Apache-2.0
"""What code reads while a test watches it: files of the host, and what is none of them.

Python tells an audit hook of each file that is opened, each directory that is listed, and each
program, connection and library that is asked for, by whatever function.

Source: Python documentation, "Audit events table".
"""

from __future__ import annotations

import collections.abc
import os
import pathlib
import sys
import sysconfig
import threading
import typing

#: Events whose first argument is a path that is read.
READS = ('open', 'os.listdir', 'os.scandir')
#: Events by which a driver asks this machine, not the host that it was given.
ASKS = {
    'ctypes.dlopen': 'loads the library',
    'os.exec': 'runs',
    'os.posix_spawn': 'runs',
    'os.system': 'runs',
    'socket.connect': 'connects to',
    'subprocess.Popen': 'runs',
}


class Watch:
    """What this thread reads of a host below a root, and what else it asks for, in a block."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = os.path.realpath(root)
        # A module may be loaded when it is first needed, and read data that lies beside it.
        places = (*sysconfig.get_paths().values(), *sys.path)
        self._allowed = tuple(os.path.realpath(place) for place in places)
        #: the files below the root that were opened, each where it leads
        self.files: set[pathlib.Path] = set()
        #: what was asked for that is not below the root, in words
        self.strayed: list[str] = []

    def __enter__(self) -> Watch:
        if not _hooks:
            _hooks.append(_hook)
            sys.addaudithook(_hook)
        _watches[threading.get_ident()] = self
        return self

    def __exit__(self, *_: object) -> None:
        del _watches[threading.get_ident()]

    def note(self, event: str, args: tuple[typing.Any, ...]) -> None:
        """Take in an audit event."""
        if event in ASKS:
            subject = args[1] if event == 'socket.connect' else args[0]
            words = os.fsdecode(subject) if isinstance(subject, bytes) else str(subject)
            self.strayed.append(f'{ASKS[event]} {words[:200]}')
        elif event in READS and not isinstance(args[0], int):
            self._read(os.fsdecode(args[0] or '.'), args[2] if event == 'open' else 0)

    def _read(self, path: str, flags: int) -> None:
        parent, name = os.path.split(path)
        if flags & os.O_NOFOLLOW:
            real = os.path.join(os.path.realpath(parent), name)
        else:
            real = os.path.realpath(path)
        if _is_below(real, self._root):
            if os.path.isfile(real):
                self.files.add(pathlib.Path(real))
        elif not any(_is_below(real, place) for place in self._allowed):
            self.strayed.append(f'reads {path[:200]}')


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip('/') + '/')


#: The watch of each thread that has one.
_watches: dict[int, Watch] = {}
#: Its length says whether the hook is there: it cannot be removed.
_hooks: list[collections.abc.Callable[..., None]] = []


def _hook(event: str, args: tuple[typing.Any, ...]) -> None:
    watch = _watches.get(threading.get_ident())
    if watch is not None:
        watch.note(event, args)

# SPDX-License-Identifier: Apache-2.0
"""Watch which files of a host a driver reads, and what else it uses.

Python calls an audit hook for each opened file, each listed directory, and each use of a program,
connection or library, by any function.

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

#: The events whose first argument is a path that is read.
READS = ('open', 'os.listdir', 'os.scandir')
#: The events in which a driver uses this machine, not its given host.
ASKS = {
    'ctypes.dlopen': 'loads the library',
    'os.exec': 'runs',
    'os.posix_spawn': 'runs',
    'os.system': 'runs',
    'socket.connect': 'connects to',
    'subprocess.Popen': 'runs',
}


class Watch:
    """Records what this thread reads below a root, and what else it uses, in a block."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = os.path.realpath(root)
        # Code may load a module late, and modules may read data beside them.
        places = (*sysconfig.get_paths().values(), *sys.path)
        self._allowed = tuple(os.path.realpath(place) for place in places)
        #: the real paths of the opened files below the root
        self.files: set[pathlib.Path] = set()
        #: descriptions of accesses that are not below the root
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
        """Record an audit event."""
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
#: Not empty once the hook is installed: it cannot be removed.
_hooks: list[collections.abc.Callable[..., None]] = []


def _hook(event: str, args: tuple[typing.Any, ...]) -> None:
    watch = _watches.get(threading.get_ident())
    if watch is not None:
        watch.note(event, args)

# SPDX-License-Identifier: Apache-2.0
"""CDI specifications in the directory of a host: by name, a container gets an allocation's devices.

There is one file for each allocation: a name that is in two files of a directory can be used by
none.  When the file is gone, so is the name, and a container that asks for it does not start.
"""

from __future__ import annotations

import collections.abc
import json
import os
import pathlib
import re

from cyborg_lite.delivery import documents
from cyborg_lite.delivery import views

#: Where runtimes look.  It is empty after each start of the host.
DIRECTORY = pathlib.Path('/var/run/cdi')
#: The names of our files; others in the directory are not ours.
NAME = 'cyborg-lite.local-allocation_{}.json'
OURS = re.compile(re.escape(NAME).replace(r'\{\}', f'({documents.UUID.pattern})'))


def write(
    directory: pathlib.Path,
    document: documents.Document,
    exists: collections.abc.Callable[[str], bool] = os.path.exists,
) -> str:
    """Make the devices of a document known; returns the name by which runtimes know them.

    A file that is there is replaced.  Readers see the one or the other, never a part.  Of what all
    devices share, the specification has what the host has: one path that is not there would keep
    every container from its start.
    """
    view = views.render(documents.present(document, exists), 'container')
    path = _path(directory, document['allocation'])
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Runtimes read names that end with .json or .yaml alone.
    part = path.with_suffix('.tmp')
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(part, flags, 0o644), 'w') as file:
        # Users who are not root read it too, whatever the umask is.
        os.fchmod(file.fileno(), 0o644)
        json.dump(view['cdi'], file)
    part.replace(path)
    return str(view['name'])


def remove(directory: pathlib.Path, allocation: str) -> None:
    """Take the devices of an allocation away; it is no error if there are none."""
    path = _path(directory, allocation)
    path.unlink(missing_ok=True)
    path.with_suffix('.tmp').unlink(missing_ok=True)


def known(directory: pathlib.Path) -> set[str]:
    """The allocations whose devices are known: some may have been released meanwhile."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return set()
    return {match[1] for name in names if (match := OURS.fullmatch(name))}


def _path(directory: pathlib.Path, allocation: str) -> pathlib.Path:
    if not documents.UUID.fullmatch(allocation):
        raise ValueError(f'allocation: expected a UUID, not {allocation!r:.80}')
    return directory / NAME.format(allocation)

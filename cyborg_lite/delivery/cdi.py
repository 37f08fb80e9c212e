# SPDX-License-Identifier: Apache-2.0
"""CDI specifications in a directory of the host: containers use them by name.

Each allocation has one file: runtimes refuse a name that two files define.  Once the file is
removed, a container that uses the name does not start.
"""

from __future__ import annotations

import collections.abc
import json
import os
import pathlib
import re

from cyborg_lite.delivery import documents
from cyborg_lite.delivery import views

#: The directory that runtimes read.  It is empty after each boot of the host.
DIRECTORY = pathlib.Path('/var/run/cdi')
#: The names of our files in the directory.
NAME = 'cyborg-lite.local-allocation_{}.json'
OURS = re.compile(re.escape(NAME).replace(r'\{\}', f'({documents.UUID.pattern})'))


def write(
    directory: pathlib.Path,
    document: documents.Document,
    exists: collections.abc.Callable[[str], bool] = os.path.exists,
) -> str:
    """Write the specification of a document; returns the name of the device for runtimes.

    An existing file is replaced atomically.  Shared paths that the host does not have are left
    out: one absent path would prevent the start of every container.
    """
    view = views.render(documents.present(document, exists), 'container')
    path = _path(directory, document['allocation'])
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Runtimes only read files that end with .json or .yaml.
    part = path.with_suffix('.tmp')
    # A draft may be left of a run that was killed. It is not written to: it may be of another kind.
    part.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(part, flags, 0o644), 'w') as file:
            # Users other than root read the file, too, whatever the umask is.
            os.fchmod(file.fileno(), 0o644)
            json.dump(view['cdi'], file)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return str(view['name'])


def remove(directory: pathlib.Path, allocation: str) -> None:
    """Remove the file of an allocation, if there is one."""
    path = _path(directory, allocation)
    path.unlink(missing_ok=True)
    path.with_suffix('.tmp').unlink(missing_ok=True)


def known(directory: pathlib.Path) -> set[str]:
    """The allocations that have a file: some may have been released."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return set()
    return {match[1] for name in names if (match := OURS.fullmatch(name))}


def _path(directory: pathlib.Path, allocation: str) -> pathlib.Path:
    if not documents.UUID.fullmatch(allocation):
        raise ValueError(f'allocation: expected a UUID, not {allocation!r:.80}')
    return directory / NAME.format(allocation)

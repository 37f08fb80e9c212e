# SPDX-License-Identifier: Apache-2.0
"""Files that an agent keeps over its restarts."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile


def place(configured: str | None, name: str) -> pathlib.Path | None:
    """The path of a file: as configured, or in the state directory; None if there is none."""
    if configured:
        return pathlib.Path(configured)
    # Source: systemd.exec(5), StateDirectory=
    directory = os.environ.get('STATE_DIRECTORY', '').partition(':')[0]
    return pathlib.Path(directory, name) if directory else None


def write(path: pathlib.Path, text: str, replace: bool) -> None:
    """Write a file, whole and for this user alone; it outlives a loss of power.

    :param replace: whether a file that is there is replaced; otherwise it stays.
    :raises OSError: when it cannot be written.
    """
    descriptor, draft = tempfile.mkstemp(prefix=f'{path.name}.', dir=path.parent)
    try:
        with os.fdopen(descriptor, 'w') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

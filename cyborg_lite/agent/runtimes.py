# SPDX-License-Identifier: Apache-2.0
"""What Docker and Podman have written of a container: its name, and its image.

No program is called, and no service asked. Only files of root are read, or of the user of the
agent: those of another user's Podman say what that user wants. Their text is what people typed.

Source: containers/storage, containers.go, and podman, libpod/storage.go; moby,
container/container.go. What Podman 4.3.1 writes is tested with it.
"""

from __future__ import annotations

import collections.abc
import contextlib
import json
import os
import pathlib
import stat
import typing

from cyborg_lite import client

#: Where Podman keeps what it knows of its containers, and of those that a restart ends.
PODMAN = (pathlib.Path('/var/lib/containers/storage'), pathlib.Path('/run/containers/storage'))
#: Where Docker keeps a directory for each container.
DOCKER = pathlib.Path('/var/lib/docker/containers')
#: The maximum size of a file, in bytes: Podman writes half a kilobyte of each container.
SIZE = 4 << 20
#: The maximum length of a name, in characters.
LONGEST = 32


class Names(typing.NamedTuple):
    """What people call a container and its image; None if it is unknown."""

    name: str | None = None
    image: str | None = None


def names(container: str) -> Names:
    """The name of a container and that of its image, as far as they are known.

    :param container: its id, or the beginning of it.
    """
    for written in (_of_podman, _of_docker):
        # The files of one say nothing of those of the other.
        with contextlib.suppress(OSError):
            for found in written(container):
                return Names(*map(_plain, found))
    return Names()


def _plain(text: object) -> str | None:
    """The last part of a name, as it can be shown."""
    last = text.rpartition('/')[2] if isinstance(text, str) else ''
    return client.plain(last)[:LONGEST] or None


def _of_podman(container: str) -> collections.abc.Iterator[tuple[object, object]]:
    for place in PODMAN:
        # The first part is the storage driver. Those with --rm may have a file of their own.
        for path in sorted(place.glob('*-containers/*containers.json')):
            rows = _read(path)
            for row in rows if isinstance(rows, list) else ():
                if isinstance(row, dict) and str(row.get('id')).startswith(container):
                    about = _parse(row.get('metadata'))
                    about = about if isinstance(about, dict) else {}
                    yield about.get('name'), about.get('image-name')


def _of_docker(container: str) -> collections.abc.Iterator[tuple[object, object]]:
    for path in sorted(DOCKER.glob(f'{container}*/config.v2.json')):
        about = _read(path)
        if isinstance(about, dict):
            config = about.get('Config')
            yield about.get('Name'), config.get('Image') if isinstance(config, dict) else None


def _read(path: pathlib.Path) -> typing.Any:
    """What a file of JSON says; None if it is none, or is of another user."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, 'rb') as file:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.geteuid()):
                text = file.read(SIZE + 1)
                return _parse(text) if len(text) <= SIZE else None
    return None


def _parse(text: typing.Any) -> typing.Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None

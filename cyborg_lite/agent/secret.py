# SPDX-License-Identifier: Apache-2.0
"""The secret of an agent: conductors pin it, and then believe nobody else in the host's name."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import tempfile

from oslo_config import cfg

from cyborg_lite import exception

#: The name of the file in a state directory.
FILE = 'agent.secret'


def load(conf: cfg.ConfigOpts) -> str | None:
    """The secret of this agent, made at its first start; None if no file is configured for it.

    :raises cyborg_lite.exception.Refused: when the file cannot be used.
    """
    path = _path(conf.agent.secret_file)
    if path is None:
        return None
    try:
        if not path.exists():
            _make(path)
        text = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise exception.Refused(f'[agent] secret_file: {exception.line(error)}') from None
    if not re.fullmatch('[0-9a-f]{64}', text):
        raise exception.Refused(f'[agent] secret_file: {path}: expected 64 hexadecimal digits')
    return text


def _path(configured: str | None) -> pathlib.Path | None:
    if configured:
        return pathlib.Path(configured)
    # Source: systemd.exec(5), StateDirectory=
    directory = os.environ.get('STATE_DIRECTORY', '').partition(':')[0]
    return pathlib.Path(directory, FILE) if directory else None


def _make(path: pathlib.Path) -> None:
    """Make the file, whole and for this user alone; the first of several processes makes it."""
    descriptor, draft = tempfile.mkstemp(prefix=f'{path.name}.', dir=path.parent)
    try:
        with os.fdopen(descriptor, 'w') as file:
            file.write(f'{secrets.token_hex(32)}\n')
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    # A conductor may pin it at once: it has to outlive a loss of power.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

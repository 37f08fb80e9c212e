# SPDX-License-Identifier: Apache-2.0
"""The secret of an agent: conductors pin it, and then believe nobody else in the host's name."""

from __future__ import annotations

import re
import secrets

from oslo_config import cfg

from cyborg_lite import exception
from cyborg_lite.agent import files

#: The name of the file in a state directory.
FILE = 'agent.secret'


def load(conf: cfg.ConfigOpts) -> str | None:
    """The secret of this agent, made at its first start; None if no file is configured for it.

    :raises cyborg_lite.exception.Refused: when the file cannot be used.
    """
    path = files.place(conf.agent.secret_file, FILE)
    if path is None:
        return None
    try:
        if not path.exists():
            # The first of several processes makes it. A conductor may pin it at once.
            files.write(path, f'{secrets.token_hex(32)}\n', replace=False)
        text = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise exception.Refused(f'[agent] secret_file: {exception.line(error)}') from None
    if not re.fullmatch('[0-9a-f]{64}', text):
        raise exception.Refused(f'[agent] secret_file: {path}: expected 64 hexadecimal digits')
    return text

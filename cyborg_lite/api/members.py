# SPDX-License-Identifier: Apache-2.0
"""The project and the roles of each user of ``http_basic``."""

from __future__ import annotations

import pathlib
import re

from oslo_config import cfg
from oslo_log import log

LOG = log.getLogger(__name__)

#: Each role includes those after it, as in Keystone.
ROLES = ('admin', 'manager', 'member', 'reader')
#: The maximum size of the file, in bytes.
MOST = 1024 * 1024
#: Reserved names: they have another meaning in the URL of a quota.
RESERVED = ('defaults', 'own')

_PROJECT = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}', re.ASCII)
_FORM = (
    'USER:PROJECT:ROLE[,ROLE], where a project is 1 to 64 of A-Z, a-z, 0-9, "_", "." and "-", and '
    f'a role is one of {", ".join(ROLES)}'
)

Headers = dict[str, str]


class Broken(cfg.ConfigFileValueError):
    """The file is invalid: the message names the place and the expected form."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f'[api] http_basic_auth_project_file: {where}: {reason}')


class Members:
    """The users of a file, which is read for each request, like the file of passwords."""

    def __init__(self, file: str) -> None:
        """:raises Broken: when the file is invalid."""
        self._file = pathlib.Path(file)
        self._known = _read(self._file)
        self._said = ''

    def headers(self, user: str) -> Headers | None:
        """The identity headers of a user; None if the file does not name the user.

        While the file is invalid, its last valid content stays in force.
        """
        try:
            self._known, self._said = _read(self._file), ''
        except Broken as error:
            if str(error) != self._said:
                self._said = str(error)
                LOG.error('%s. The projects from before stay in force.', error)
        return self._known.get(user)


def _read(file: pathlib.Path) -> dict[str, Headers]:
    """The users of the file."""
    known: dict[str, Headers] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(_text(file).split('\n'), 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        where = f'{file}, line {number}'
        user, headers = _parse(line, where)
        if user in known:
            raise Broken(where, f'user {user} is in line {lines[user]} already')
        known[user], lines[user] = headers, number
    return known


def _text(file: pathlib.Path) -> str:
    try:
        # Only a plain file is read: a pipe may have no end.
        if file.is_file() and file.stat().st_size <= MOST:
            return file.read_text('utf-8')
    except (OSError, ValueError):
        pass
    raise Broken(
        str(file), f'expected a readable file of lines {_FORM}, in UTF-8, at most {MOST} bytes'
    )


def _parse(line: str, where: str) -> tuple[str, Headers]:
    words = [word.strip() for word in line.split(':')]
    if len(words) != 3 or not 0 < len(words[0]) <= 255:
        raise Broken(where, f'expected {_FORM}')
    user, project, given = words
    roles = [role.strip() for role in given.split(',')]
    if not _PROJECT.fullmatch(project) or not set(roles) <= set(ROLES):
        raise Broken(where, f'expected {_FORM}')
    if project in RESERVED:
        raise Broken(where, f'expected {_FORM}; no project has the name {project}')
    implied = ROLES[min(ROLES.index(role) for role in roles) :]
    return user, {'X-Project-Id': project, 'X-Roles': ','.join(implied)}

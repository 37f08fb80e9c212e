# SPDX-License-Identifier: Apache-2.0
"""The project and the roles of each user of ``http_basic``."""

from __future__ import annotations

from cyborg_lite import accounts
from cyborg_lite.api import userfiles

#: Each role includes those after it, as in Keystone.
ROLES = ('admin', 'manager', 'member', 'reader')

_FORM = (
    'USER:PROJECT:ROLE[,ROLE], where a project is 1 to 64 of A-Z, a-z, 0-9, "_", "." and "-", and '
    f'a role is one of {", ".join(ROLES)}'
)

Headers = dict[str, str]


class Members:
    """The users of a file, which is read for each request, like the file of passwords."""

    def __init__(self, file: str) -> None:
        """:raises cyborg_lite.api.userfiles.Broken: when the file is invalid."""
        self._file = userfiles.UserFile('http_basic_auth_project_file', file, _FORM, _parse)

    def headers(self, user: str) -> Headers | None:
        """The identity headers of a user; None if the file does not name the user."""
        return self._file.users().get(user)

    def projects(self) -> set[str]:
        """The projects of all users."""
        return {headers['X-Project-Id'] for headers in self._file.users().values()}


def _parse(line: str) -> tuple[str, Headers]:
    words = [word.strip() for word in line.split(':')]
    if len(words) != 3 or not 0 < len(words[0]) <= 255:
        raise ValueError(f'expected {_FORM}')
    user, project, given = words
    roles = [role.strip() for role in given.split(',')]
    if not accounts.PROJECT.fullmatch(project) or not set(roles) <= set(ROLES):
        raise ValueError(f'expected {_FORM}')
    if project in accounts.RESERVED:
        raise ValueError(f'expected {_FORM}; no project has the name {project}')
    return user, {'X-Project-Id': project, 'X-Roles': ','.join(implied(*roles))}


def implied(*roles: str) -> tuple[str, ...]:
    """The roles, and those that they include."""
    return ROLES[min(ROLES.index(role) for role in roles) :]

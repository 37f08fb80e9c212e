# SPDX-License-Identifier: Apache-2.0
"""The users of a machine, and their projects: the same at every door."""

from __future__ import annotations

import collections.abc
import pwd
import re

#: The form of the name of a project where there is no Keystone.
PROJECT = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}', re.ASCII)
#: The maximum length of the name of a user, in characters.
LONGEST = 64
#: Reserved names: they have another meaning in the URL of a quota.
RESERVED = ('defaults', 'own')


def name(uid: int) -> str:
    """The name of a user; ``uid-`` and the number if it has none that can be shown.

    A name of that form is one of another user, perhaps, and so is the beginning of a long one.
    """
    try:
        found = pwd.getpwuid(uid).pw_name
    except KeyError:
        found = ''
    sound = 0 < len(found) <= LONGEST and found.isprintable() and not found.startswith('uid-')
    return found if sound else f'uid-{uid}'


def project(uid: int, user: str, projects: collections.abc.Mapping[str, str]) -> str:
    """The project of a user: what the operator says, or the name of the user.

    :param projects: by user the project, where it is not that of the user's own name.
    """
    given = projects.get(user)
    if given is None and user in projects.values():
        # It is the project of others.
        return f'uid-{uid}'
    found = user if given is None else str(given)
    return found if is_project(found) else f'uid-{uid}'


def is_of_user(text: str, projects: collections.abc.Mapping[str, str]) -> bool:
    """Whether this is the project of a user of this machine, or may be that of one."""
    if text in projects.values() or re.fullmatch('uid-[0-9]{1,10}', text):
        return True
    try:
        pwd.getpwnam(text)
    except KeyError:
        return False
    return True


def is_project(text: str) -> bool:
    """Whether a project may have this name."""
    return bool(PROJECT.fullmatch(text)) and text not in RESERVED

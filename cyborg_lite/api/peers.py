# SPDX-License-Identifier: Apache-2.0
"""The users of this machine, whom the kernel names at the Unix socket of the API."""

from __future__ import annotations

import os

from oslo_config import cfg
import webob

from cyborg_lite import accounts
from cyborg_lite import unix
from cyborg_lite.api import members


class Peers:
    """Names the caller, the project and the roles.

    The project is that of the user at the socket of an agent. Root and the user of this process
    are administrators, because they can change the database anyway. All others are members.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf

    def headers(self, request: webob.Request) -> members.Headers:
        """The identity headers of the caller."""
        uid = request.environ[unix.PEER]
        user = accounts.name(uid)
        role = 'admin' if uid in (0, os.geteuid()) else 'member'
        return {
            'X-User-Id': user,
            'X-Project-Id': accounts.project(uid, user, self._conf.conductor.user_projects),
            'X-Roles': ','.join(members.implied(role)),
        }

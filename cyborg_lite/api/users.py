# SPDX-License-Identifier: Apache-2.0
"""The names and passwords of ``http_basic``, in a file as ``htpasswd -B`` writes it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading

import bcrypt
from oslo_log import log
import webob
import webob.exc

from cyborg_lite import client
from cyborg_lite.api import userfiles

LOG = log.getLogger(__name__)

#: How many passwords are compared at once in a process. A comparison occupies a thread of the web
#: server for as long as the cost of the hash says: ``cyborg-lite up`` has 16 threads, and the
#: systemd unit gives 8 to each process. The others answer what needs no password.
COMPARISONS = 6

_HASH = re.compile(r'\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}')
_FORM = 'NAME:HASH with a bcrypt hash'


class Users:
    """Checks the name and the password of a request."""

    def __init__(self, file: str) -> None:
        """:raises cyborg_lite.api.userfiles.Broken: when the file is invalid."""
        form = f'{_FORM} (write one with: htpasswd -B -c FILE NAME)'
        self._file = userfiles.UserFile('http_basic_auth_user_file', file, form, _parse)
        self._slots = threading.BoundedSemaphore(COMPARISONS)
        #: The hash of each user whose password was right, and a digest of the password.
        self._passed: dict[str, tuple[str, bytes]] = {}
        self._key = secrets.token_bytes()

    def name(self, request: webob.Request) -> str:
        """The name of the caller.

        :raises webob.exc.HTTPUnauthorized: for any name and password that are not in the file.
        :raises webob.exc.HTTPServiceUnavailable: when too many passwords are being compared.
        """
        name = ''
        try:
            name, password = _credentials(request.environ.pop('HTTP_AUTHORIZATION', ''))
            right = self._is_right(name, password)
        except ValueError:  # not in the form of Basic, or no password that bcrypt takes
            right = False
        if not right:
            if name:
                said = f'user {name[:255]} from {request.remote_addr}'
                LOG.info('A wrong name or password: %s', client.plain(said))
            raise webob.exc.HTTPUnauthorized('Expected the name and the password of a user.')
        return name

    def _is_right(self, name: str, password: bytes) -> bool:
        users = self._file.users()
        hashed = users.get(name)
        digest = hmac.digest(self._key, password, hashlib.sha256)
        # A user who passed before is not shut out while others try passwords.
        known, before = self._passed.get(name, (None, b''))
        if hashed is not None and known == hashed and hmac.compare_digest(before, digest):
            return True
        if not self._slots.acquire(blocking=False):
            raise webob.exc.HTTPServiceUnavailable(
                f'{COMPARISONS} passwords are being compared now: try again in a second.'
            )
        try:
            right = _compare(password, hashed, max(map(_cost, users.values()), default=4))
        finally:
            self._slots.release()
        if right and hashed is not None:
            self._passed[name] = hashed, digest
        return right


def _compare(password: bytes, hashed: str | None, highest: int) -> bool:
    """Whether the password is right: a wrong one takes as long as with the highest cost.

    Otherwise the time of the answer would tell whether a name exists. The comparisons with dummies
    of the cost c, c + 1, ... highest - 1 add up to what c lacks, as each step doubles the work.
    """
    if hashed is None:
        bcrypt.checkpw(password, _dummy(highest))
        return False
    if bcrypt.checkpw(password, hashed.encode()):
        return True
    for cost in range(_cost(hashed), highest):
        bcrypt.checkpw(password, _dummy(cost))
    return False


def _cost(hashed: str) -> int:
    return int(hashed[4:6])


def _dummy(cost: int) -> bytes:
    return f'$2b${cost:02}$'.encode() + b'.' * 53


def _parse(line: str) -> tuple[str, str]:
    name, colon, hashed = line.strip().partition(':')
    # The line is not shown: it may have a password.
    if not colon or not 0 < len(name) <= 255 or not _HASH.fullmatch(hashed):
        raise ValueError(f'expected {_FORM}: write it with htpasswd -B')
    return name, hashed


def _credentials(header: str) -> tuple[str, bytes]:
    """The name and the password in a header of Basic authentication.

    :raises ValueError: when the header has another form.
    """
    scheme, _, token = header.strip().partition(' ')
    if scheme.lower() != 'basic':
        raise ValueError(scheme)
    name, colon, password = base64.b64decode(token.strip(), validate=True).partition(b':')
    if not colon:
        raise ValueError(token)
    return name.decode(), password

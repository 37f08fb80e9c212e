# SPDX-License-Identifier: Apache-2.0
"""Reads lists of a running service, over HTTP or at its Unix socket."""

from __future__ import annotations

import argparse
import base64
import collections.abc
import getpass
import http.client
import json
import os
import ssl
import termios
import typing
import urllib.error
import urllib.parse
import urllib.request
import warnings

from cyborg_lite import client
from cyborg_lite import exception

Row = dict[str, typing.Any]
_Found = typing.TypeVar('_Found')

#: Where the service answers on this machine, if it has no Unix socket.
LOCAL = 'http://127.0.0.1:6666'
#: The timeout of a request, in seconds.
TIMEOUT = 30
#: Texts of errors when a server has no TLS, and errors when it closes a connection.
NO_TLS = ('WRONG_VERSION_NUMBER', 'RECORD_LAYER_FAILURE', 'PACKET_LENGTH_TOO_LONG', 'HTTP_REQUEST')
CLOSED = (ConnectionResetError, http.client.BadStatusLine)


class Service:
    """A client of a service over HTTP.

    It uses the standard library: requests takes longer to load than the rest of the command.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._root = _url(arguments).rstrip('/').removesuffix('/v2')
        self._local = self._root.startswith(client.UNIX)
        self._user = arguments.user
        # At a socket the kernel tells who the caller is.
        self._headers = {} if self._local else _credentials(arguments.user)
        # Proxies are ignored, as the service is usually on this machine. Redirects are not
        # followed: the credentials are for the named service only.
        self._opener = urllib.request.OpenerDirector()
        handlers = [urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler()]
        if self._local:
            handlers.append(_SocketHandler(_path(self._root)))
        elif self._root.startswith('https:'):
            handlers.append(urllib.request.HTTPSHandler(context=_trust(arguments.cacert)))
        else:
            handlers.append(urllib.request.HTTPHandler())
        for handler in (*handlers, urllib.request.UnknownHandler()):
            self._opener.add_handler(handler)

    @property
    def is_local(self) -> bool:
        """Whether it answers at a socket of this machine."""
        return self._local

    @property
    def tells_users(self) -> bool:
        """Whether it tells users apart: without authentication all have one name."""
        return bool(self._headers or self._local)

    def all(self, resource: str, **arguments: str) -> list[Row]:
        """A list, page by page."""
        rows: list[Row] = []
        page: Row = {f'{resource}_links': True}
        while f'{resource}_links' in page:
            marker = {'marker': self.understood(_last, rows)} if rows else {}
            page = self.page(resource, marker | arguments)
            # A service that is not ours may repeat a page for ever.
            if not page[resource] or page[resource][-1:] == rows[-1:]:
                break
            rows += page[resource]
        return rows

    def understood(
        self, read: collections.abc.Callable[[list[Row]], _Found], rows: list[Row]
    ) -> _Found:
        """What is read from the rows, if they are those of this service."""
        try:
            return read(rows)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            raise exception.Refused(f'{self._root} does not answer as this service') from None

    def page(self, resource: str, arguments: dict[str, str]) -> Row:
        """A page of a list."""
        url = f'{self._root}/v2/{resource}'
        root = 'http://localhost' if self._local else self._root
        try:
            wanted = f'{root}/v2/{resource}?{urllib.parse.urlencode(arguments)}'
            # The opener only knows HTTP and HTTPS.
            request = urllib.request.Request(wanted, headers=self._headers)  # noqa: S310
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                found = json.load(answer)
            if isinstance(found[resource], list):
                return typing.cast('Row', found)
        except urllib.error.HTTPError as error:
            raise exception.Refused(f'{url} {self._refusal(error)}') from None
        except OSError as error:
            raise exception.Refused(self._unreachable(url, error)) from None
        except (http.client.BadStatusLine, http.client.IncompleteRead) as error:
            raise exception.Refused(self._unreachable(url, error)) from None
        except (http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
            pass
        raise exception.Refused(f'{url} is not answered as by this service')

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """The error text for an answer that is not a list."""
        if location := error.headers.get('Location'):
            return f'leads to {location[:200]!r}: name that service with --url'
        try:
            said = str(json.load(error)['errors'][0]['detail'])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return 'is not answered as by this service'
        said = client.plain(said)[:500]
        hint = self._wanted(error) if error.code == 401 else ''
        return f'answers {error.code}: {said}{hint}'

    def _wanted(self, error: urllib.error.HTTPError) -> str:
        """The hint for a service that requires authentication."""
        if error.headers.get('WWW-Authenticate', '').lower().startswith('basic'):
            if self._user:
                return ' The name or the password is wrong.'
            return ' Give the name of a user with --user.'
        wrong = ' The token is wrong, or has expired.' if 'X-Auth-Token' in self._headers else ''
        return (
            f'{wrong} Put a token into OS_TOKEN: "openstack token issue -f value -c id" prints one.'
        )

    def _unreachable(self, url: str, error: Exception) -> str:
        """Why there is no answer, and what to do."""
        cause = getattr(error, 'reason', None) if type(error) is urllib.error.URLError else error
        if isinstance(cause, ssl.SSLError):
            if any(each in str(cause) for each in NO_TLS):
                plain = self._root.replace('https:', 'http:', 1)
                return f'{url} has no TLS: give --url {plain}'
            return f'the certificate of {url} is not trusted: name its authority with --cacert'
        if url.startswith('http:') and isinstance(cause, CLOSED):
            return (
                f'{url} closed the connection without an answer: if it is a service with TLS, give '
                f'--url {self._root.replace("http:", "https:", 1)}'
            )
        if isinstance(cause, PermissionError) and self._local:
            return f'{self._root}: {client.barred(_path(self._root))}'
        said = f'no service answers at {url} ({cause})'
        if self._root == LOCAL and (path := client.barred_api()):
            return f'{said}, and of {path} this user may make no use: {client.barred(path)}'
        return f'{said}: start one with "cyborg-lite up", or say with --url where it is'


class _SocketHandler(urllib.request.HTTPHandler):
    """Sends requests to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        path = self._path

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = client.connect(path, self.timeout)

        return self.do_open(Connection, request)


def _url(arguments: argparse.Namespace) -> str:
    """Where the service answers.

    A socket of this machine is preferred to the port: it may be the only one, and it tells users
    apart. Credentials are for a port.
    """
    if arguments.url:
        url = str(arguments.url)
        if not url.lower().startswith(('http://', 'https://', client.UNIX)):
            raise exception.Refused(
                f'--url {url}: expected http://, https:// or unix:// at its beginning'
            )
        if arguments.user and url.startswith(client.UNIX):
            raise exception.Refused(f'--user is for http and https: {url} knows its users')
        return url
    named = arguments.user or os.environ.get('OS_TOKEN')
    path = None if named else client.find_api()
    return LOCAL if path is None else f'{client.UNIX}{path}'


def _path(url: str) -> str:
    """The path in the URL of a Unix socket."""
    path = url.removeprefix(client.UNIX)
    if not path.startswith('/'):
        raise exception.Refused(f'--url {url}: expected unix:// and an absolute path')
    return path


def _credentials(user: str | None) -> dict[str, str]:
    """The headers that authenticate the caller."""
    if user:
        password = os.environ.get('CYBORG_LITE_PASSWORD') or _ask()
        encoded = base64.b64encode(f'{user}:{password}'.encode(errors='surrogateescape')).decode()
        return {'Authorization': f'Basic {encoded}'}
    if token := os.environ.get('OS_TOKEN'):
        return {'X-Auth-Token': token}
    return {}


def _ask() -> str:
    """The password that is typed at the terminal."""
    try:
        with warnings.catch_warnings():
            # Otherwise it is read from another place, and may be shown.
            warnings.simplefilter('error', getpass.GetPassWarning)
            return getpass.getpass()
    except (EOFError, OSError, termios.error, getpass.GetPassWarning):
        raise exception.Refused(
            'the password cannot be read from the terminal: put it into CYBORG_LITE_PASSWORD'
        ) from None


def _trust(cacert: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=cacert)
    except OSError as error:
        raise exception.Refused(
            f'--cacert {cacert}: expected a certificate in PEM form ({error.strerror or error})'
        ) from None


def _last(rows: list[Row]) -> str:
    return str(rows[-1]['uuid'])

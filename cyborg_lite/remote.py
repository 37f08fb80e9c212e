# SPDX-License-Identifier: Apache-2.0
"""Asks the API of a running service, over HTTP or at its Unix socket.

It uses the standard library: any program can import it, and requests takes longer to load.
"""

from __future__ import annotations

import base64
import getpass
import http.client
import json
import os
import ssl
import termios
import urllib.error
import urllib.request
import warnings

from cyborg_lite import client

#: Where the service answers on this machine, if it has no Unix socket.
LOCAL = 'http://127.0.0.1:6666'
#: The timeout of a request, in seconds.
TIMEOUT = 30
#: Texts of errors when a server has no TLS, and errors when it closes a connection.
NO_TLS = ('WRONG_VERSION_NUMBER', 'RECORD_LAYER_FAILURE', 'PACKET_LENGTH_TOO_LONG', 'HTTP_REQUEST')
CLOSED = (ConnectionResetError, http.client.BadStatusLine)


class Service:
    """A client of a service.

    :param url: where it answers: http://, https:// or unix:// and the path of its socket.
    :param user: the user, with http_basic.
    :param cacert: the file of the authority to trust, with HTTPS.
    :param option: how the parameters are named in errors: a command has ``--url``.
    :raises cyborg_lite.client.Error: when one of them cannot be used.
    """

    def __init__(
        self, url: str, user: str | None = None, cacert: str | None = None, option: str = ''
    ) -> None:
        if not url.lower().startswith(('http://', 'https://', client.UNIX)):
            raise client.Error(
                f'{option}url {url}: expected http://, https:// or unix:// at its beginning', 400
            )
        self._root = url.rstrip('/').removesuffix('/v2')
        self._local = self._root.startswith(client.UNIX)
        if user and self._local:
            raise client.Error(f'{option}user is for http and https: {url} knows its users', 400)
        self._user = user
        self._option = option
        self._basic = _basic(user) if user else {}
        # Proxies are ignored, as the service is usually on this machine. Redirects are not
        # followed: the credentials are for the named service only.
        self._opener = urllib.request.OpenerDirector()
        handlers = [urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler()]
        if self._local:
            handlers.append(_SocketHandler(self._path))
        elif self._root.startswith('https:'):
            handlers.append(urllib.request.HTTPSHandler(context=self._trust(cacert)))
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
        return bool(self._credentials() or self._local)

    def ask(
        self,
        method: str,
        path: str,
        body: client.Words | None = None,
        timeout: float = TIMEOUT,
        **headers: str,
    ) -> client.Words:
        """The answer to a request.

        :param timeout: that of each wait for the service, in seconds.
        :raises cyborg_lite.client.Error: when it is refused, or when there is no answer.
        """
        url = self._url(path)
        root = 'http://localhost' if self._local else self._root
        more = {name.replace('_', '-'): value for name, value in headers.items()}
        sent = None if body is None else json.dumps(body).encode()
        more |= {} if sent is None else {'Content-Type': 'application/json'}
        try:
            # The opener only knows HTTP and HTTPS.
            request = urllib.request.Request(  # noqa: S310
                f'{root}/v2/{path}', sent, self._credentials() | more, method=method
            )
            with self._opener.open(request, timeout=timeout) as answer:
                said = answer.read()
            return {**json.loads(said)} if said else {}
        except urllib.error.HTTPError as error:
            raise client.Error(f'{url} {self._refusal(error)}', error.code) from None
        except OSError as error:
            raise client.Error(self._unreachable(url, error)) from None
        except (http.client.BadStatusLine, http.client.IncompleteRead) as error:
            raise client.Error(self._unreachable(url, error)) from None
        except (http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
            pass
        raise self.misunderstood(path)

    def misunderstood(self, path: str = '') -> client.Error:
        """The error if what is answered there is not what this service answers."""
        if path:
            return client.Error(f'{self._url(path)} is not answered as by this service', 502)
        return client.Error(f'{self._root} does not answer as this service', 502)

    def _credentials(self) -> dict[str, str]:
        """The headers that authenticate the caller: a token expires, and there may be a new one."""
        # At a socket the kernel tells who the caller is.
        token = None if self._user or self._local else os.environ.get('OS_TOKEN')
        return {'X-Auth-Token': token} if token else self._basic

    def _url(self, path: str) -> str:
        return f'{self._root}/v2/{path.partition("?")[0]}'

    @property
    def _path(self) -> str:
        """The path of its Unix socket."""
        path = self._root.removeprefix(client.UNIX)
        if not path.startswith('/'):
            raise client.Error(
                f'{self._option}url {self._root}: expected unix:// and an absolute path', 400
            )
        return path

    def _trust(self, cacert: str | None) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=cacert)
        except OSError as error:
            said = error.strerror or error
            raise client.Error(
                f'{self._option}cacert {cacert}: expected a certificate in PEM form ({said})', 400
            ) from None

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """The error text for an answer that is not a list."""
        if location := error.headers.get('Location'):
            return f'leads to {location[:200]!r}: name that service with {self._option}url'
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
            return f' Give the name of a user with {self._option}user.'
        given = 'X-Auth-Token' in self._credentials()
        wrong = ' The token is wrong, or has expired.' if given else ''
        return (
            f'{wrong} Put a token into OS_TOKEN: "openstack token issue -f value -c id" prints one.'
        )

    def _unreachable(self, url: str, error: Exception) -> str:
        """Why there is no answer, and what to do."""
        cause = getattr(error, 'reason', None) if type(error) is urllib.error.URLError else error
        if isinstance(cause, ssl.SSLError):
            if any(each in str(cause) for each in NO_TLS):
                plain = self._root.replace('https:', 'http:', 1)
                return f'{url} has no TLS: give {self._option}url {plain}'
            return (
                f'the certificate of {url} is not trusted: name its authority with '
                f'{self._option}cacert'
            )
        if url.startswith('http:') and isinstance(cause, CLOSED):
            return (
                f'{url} closed the connection without an answer: if it is a service with TLS, give '
                f'{self._option}url {self._root.replace("http:", "https:", 1)}'
            )
        if isinstance(cause, PermissionError) and self._local:
            return f'{self._root}: {client.barred(self._path)}'
        said = f'no service answers at {url} ({cause})'
        if self._root == LOCAL and (path := client.barred_api()):
            return f'{said}, and of {path} this user may make no use: {client.barred(path)}'
        return f'{said}: start one with "cyborg-lite up", or say with {self._option}url where it is'


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


def _basic(user: str) -> dict[str, str]:
    """The headers that authenticate a user by a password."""
    password = os.environ.get('CYBORG_LITE_PASSWORD') or _ask()
    encoded = base64.b64encode(f'{user}:{password}'.encode(errors='surrogateescape')).decode()
    return {'Authorization': f'Basic {encoded}'}


def _ask() -> str:
    """The password that is typed at the terminal."""
    try:
        with warnings.catch_warnings():
            # Otherwise it is read from another place, and may be shown.
            warnings.simplefilter('error', getpass.GetPassWarning)
            return getpass.getpass()
    except (EOFError, OSError, termios.error, getpass.GetPassWarning):
        raise client.Error(
            'the password cannot be read from the terminal: put it into CYBORG_LITE_PASSWORD',
            401,
        ) from None

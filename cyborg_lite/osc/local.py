# SPDX-License-Identifier: Apache-2.0
"""The authentication type ``cyborg_lite``: the kernel names the user of the API's Unix socket.

Any client with a session of keystoneauth can use it: also the commands of python-openstackclient,
and openstacksdk.
"""

from __future__ import annotations

import typing

from keystoneauth1 import exceptions
from keystoneauth1 import loading
from keystoneauth1 import noauth
from requests import adapters
import urllib3
from urllib3 import connection

from cyborg_lite import client

#: Requests to URLs that begin with it go to the socket.
ROOT = 'http://localhost/'


class Local(noauth.NoAuth):
    """Sends requests to a socket of this machine.

    :param endpoint: ``unix://`` and the absolute path of the socket.
    :raises keystoneauth1.exceptions.OptionError: when it has another form.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        # With the version in it no client looks for another.
        super().__init__(f'{ROOT}v2')
        place = endpoint or ''
        if not place.startswith(f'{client.UNIX}/'):
            raise exceptions.OptionError(
                f'Invalid endpoint {place!r:.200}: expected unix:// and an absolute path.'
            )
        self._adapter = _Adapter(place.removeprefix(client.UNIX))

    def get_connection_params(self, session: typing.Any) -> typing.Any:
        # It is called before each request.
        session.session.mount(ROOT, self._adapter)
        return super().get_connection_params(session)


class Loader(loading.BaseLoader):  # type: ignore[type-arg]
    """Use the Unix socket of the API on this machine, where the kernel names the user."""

    @property
    def plugin_class(self) -> type[Local]:
        return Local

    def get_options(self) -> list[loading.Opt]:
        about = 'unix:// and the absolute path of the socket'
        return [*super().get_options(), loading.Opt('endpoint', help=about, required=True)]


class _Adapter(adapters.HTTPAdapter):
    def __init__(self, path: str) -> None:
        super().__init__()

        class Connection(connection.HTTPConnection):
            def connect(self) -> None:
                try:
                    self.sock = client.connect(path, self.timeout)
                except OSError as error:
                    # keystoneauth would name ROOT, which nobody has configured.
                    where, why = f'{client.UNIX}{path}', error.strerror or error
                    raise exceptions.ConnectFailure(
                        f'Unable to establish connection to {where}: {why}'
                    ) from None

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection

        self.poolmanager.pool_classes_by_scheme = {'http': Pool}

    def send(self, *args: typing.Any, **more: typing.Any) -> typing.Any:
        # The environment may name a proxy, which cannot reach the socket.
        return super().send(*args, **more | {'proxies': None})

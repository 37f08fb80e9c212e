# SPDX-License-Identifier: Apache-2.0
"""What ``openstack accelerator`` can do beside the commands that python-openstackclient brings.

Calls go through openstacksdk's accelerator proxy, so that whoever uses the command is known in
the ways that the client knows.
"""

from __future__ import annotations

import typing
import urllib.parse

from osc_lib import exceptions
from osc_lib.command import command

#: the microversion that shows all that there is to show
MICROVERSION = '2.50'


class Command(command.Command):
    """A command that asks the API."""

    def ask(self, path: str, **arguments: str | None) -> dict[str, typing.Any]:
        """The answer to GET.

        :raises osc_lib.exceptions.CommandError: with what the API said, when it refuses.
        """
        proxy = self.app.client_manager.sdk_connection.accelerator
        given = {name: value for name, value in arguments.items() if value is not None}
        answer = proxy.get(path, params=given, microversion=MICROVERSION)
        if answer.status_code >= 400:
            raise exceptions.CommandError(f'HTTP {answer.status_code}: {answer.text}')
        return typing.cast('dict[str, typing.Any]', answer.json())

    def ask_all(self, collection: str, **arguments: str | None) -> list[dict[str, typing.Any]]:
        """All items of a collection, page by page."""
        items: list[dict[str, typing.Any]] = []
        marker = None
        while True:
            page = self.ask(f'/{collection}', marker=marker, **arguments)
            items += page[collection]
            if f'{collection}_links' not in page:
                return items
            marker = items[-1]['uuid']


def quoted(name: str) -> str:
    return urllib.parse.quote(name, safe='')

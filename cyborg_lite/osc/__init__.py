# SPDX-License-Identifier: Apache-2.0
"""The commands of ``openstack accelerator`` beyond those of python-openstackclient.

Calls use openstacksdk's accelerator proxy, so all methods of authentication of the client work.
"""

from __future__ import annotations

import json
import typing
import urllib.parse

from osc_lib import exceptions
from osc_lib.command import command


class NotFound(exceptions.CommandError):
    """The API answered 404."""


class Forbidden(exceptions.CommandError):
    """The API answered 403."""


#: The errors that callers tell apart, by status.
ERRORS = {403: Forbidden, 404: NotFound}


class Command(command.Command):
    """A command that calls the API."""

    def ask(self, path: str, **arguments: str | None) -> dict[str, typing.Any]:
        """The answer to GET.

        :raises osc_lib.exceptions.CommandError: when the API refuses; the error has its text.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        return typing.cast('dict[str, typing.Any]', self.call('GET', path, params=given).json())

    def call(self, method: str, path: str, **more: typing.Any) -> typing.Any:
        """The answer to a request.

        :raises osc_lib.exceptions.CommandError: when the API refuses; the error has its text.
        """
        proxy = self.app.client_manager.sdk_connection.accelerator
        answer = proxy.request(path, method, raise_exc=False, **more)
        if answer.status_code >= 400:
            raise ERRORS.get(answer.status_code, exceptions.CommandError)(_sentence(answer))
        return answer

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


def place(accelerator: dict[str, typing.Any]) -> str:
    """The address of an accelerator: its own PCI function if it has one, else its card's."""
    try:
        return '{domain}:{bus}:{device}.{function}'.format(**accelerator['attach_info'])
    except KeyError:
        return str(accelerator['address'])


def _sentence(answer: typing.Any) -> str:
    """The text of an error in any form: ours, Cyborg's two layers of JSON, or Keystone's."""
    try:
        said = answer.json()
        if 'errors' in said:
            return str(said['errors'][0]['detail'])
        if 'error' in said:
            return str(said['error']['message'])
        inner = json.loads(said['error_message'])
        return str(inner.get('faultstring') or inner['description'])
    except (ValueError, KeyError, TypeError, IndexError):
        return f'The service answered {answer.status_code} {answer.reason}.'


def quoted(name: str) -> str:
    return urllib.parse.quote(name, safe='')

# SPDX-License-Identifier: Apache-2.0
"""Reads lists of a running service, over HTTP or at its Unix socket."""

from __future__ import annotations

import argparse
import collections.abc
import os
import typing
import urllib.parse

from cyborg_lite import client
from cyborg_lite import remote

Row = dict[str, typing.Any]
_Found = typing.TypeVar('_Found')


class Service(remote.Service):
    """A service whose lists are read."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(_url(arguments), arguments.user, arguments.cacert, option='--')

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
            raise self.misunderstood() from None

    def page(self, resource: str, arguments: dict[str, str]) -> Row:
        """A page of a list."""
        found = self.ask('GET', f'{resource}?{urllib.parse.urlencode(arguments)}')
        if not isinstance(found.get(resource), list):
            raise self.misunderstood(resource)
        return found


def _url(arguments: argparse.Namespace) -> str:
    """Where the service answers.

    A socket of this machine is preferred to the port: it may be the only one, and it tells users
    apart. Credentials are for a port.
    """
    if arguments.url:
        return str(arguments.url)
    named = arguments.user or os.environ.get('OS_TOKEN')
    path = None if named else client.find_api()
    return remote.LOCAL if path is None else f'{client.UNIX}{path}'


def _last(rows: list[Row]) -> str:
    return str(rows[-1]['uuid'])

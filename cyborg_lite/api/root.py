# SPDX-License-Identifier: Apache-2.0
"""The table of URLs, and the documents by which clients discover versions."""

from __future__ import annotations

import collections.abc
import functools
import re
import typing

from cyborg_lite.api import openapi
from cyborg_lite.api import rest
from cyborg_lite.api import version


class Documents:
    """Documents about the API, which need no credentials."""

    @rest.expose()
    def list_versions(self):
        document = _version('v2')
        return {
            'name': 'OpenStack Cyborg API',
            'description': 'Accelerators as a service, by cyborg_lite: find them, bind them to '
            'workloads.',
            'versions': [document],
            'default_version': document,
        }

    @rest.expose()
    def show_version(self):
        # Not wrapped: keystoneauth reads versions from a document with an id at its top, and Nova
        # and OpenStackClient use keystoneauth.
        return _version('v2.0')

    @rest.expose()
    def show_openapi(self):
        return openapi.document() | {'servers': [{'url': rest.call().root}]}


def _version(id: str) -> dict[str, typing.Any]:
    return {
        'id': id,
        'status': 'CURRENT',
        'min_version': version.text(version.MIN),
        'max_version': version.text(version.MAX),
        'links': [{'rel': 'self', 'href': f'{rest.call().root}/v2'}],
    }


class Served(typing.NamedTuple):
    """The method that serves a request, and its arguments in the path."""

    method: collections.abc.Callable[..., typing.Any]
    given: tuple[str, ...]


def served(path: str) -> dict[str, Served]:
    """The methods that serve a path, by HTTP method; empty if the path is unknown."""
    path = plain(path).rstrip('/') or '/'
    found: dict[str, Served] = {}
    for form, verb, method in _table().get(_collection(path), ()):
        if match := form.fullmatch(path):
            found.setdefault(verb, Served(method, match.groups()))
    if 'GET' in found:
        found['HEAD'] = found['GET']
    return found


def plain(path: str) -> str:
    """A path in its declared form: Cyborg serves /v2/devices.json as /v2/devices."""
    return path.removesuffix('.json')


def _collection(path: str) -> str:
    """The name after /v2/, by which the table is sorted."""
    return [*path.split('/', 3), '', ''][2]


@functools.cache
def _table() -> dict[str, list[tuple[re.Pattern[str], str, typing.Any]]]:
    """The routes by collection: the pattern of the path, and the HTTP method."""
    controllers = {route.controller: route.controller() for route in openapi.ROUTES}
    answers = [
        (route.path, route.method, getattr(controllers[route.controller], route.name))
        for route in openapi.ROUTES
    ]
    documents = Documents()
    answers += [
        (path, 'GET', getattr(documents, name)) for path, (name, *_) in openapi.DOCUMENTS.items()
    ]
    table: dict[str, list[tuple[re.Pattern[str], str, typing.Any]]] = {}
    for path, verb, method in answers:
        path = plain(path)
        form = re.compile(re.sub(r'\{\w+\}', '([^/]+)', path))
        table.setdefault(_collection(path), []).append((form, verb, method))
    return table

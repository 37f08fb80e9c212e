# SPDX-License-Identifier: Apache-2.0
"""Make providers in Placement equal to ours: whole sets are PUT, nothing is compared.

Source: the Placement API reference.
"""

from __future__ import annotations

import dataclasses
import typing
import urllib.parse

from keystoneauth1 import adapter
from oslo_log import log
import requests

LOG = log.getLogger(__name__)

#: root providers by name, allocations with generations, reserved up to total
MICROVERSION = '1.39'
#: How often a provider is read anew that somebody else has changed meanwhile.
TRIES = 5


class Refused(Exception):
    """Placement cannot do this now: it is to be tried again later."""


@dataclasses.dataclass(frozen=True)
class Provider:
    """What Placement is to know of a deployable."""

    uuid: str
    name: str
    #: the host, whose root provider nova-compute has made
    parent: str
    resource_class: str
    total: int
    reserved: int
    traits: tuple[str, ...]

    @property
    def inventories(self) -> dict[str, typing.Any]:
        if not self.total:
            return {}
        inventory = {
            'total': self.total,
            'reserved': self.reserved,
            'min_unit': 1,
            'max_unit': self.total,
            'step_size': 1,
            'allocation_ratio': 1.0,
        }
        return {self.resource_class: inventory}


class Placement:
    """The providers that are ours, and no others."""

    def __init__(self, client: adapter.Adapter) -> None:
        self._client = client
        self._known: set[str] = set()

    def publish(self, provider: Provider) -> None:
        """Make a provider equal to this.

        :raises Refused: when the host's root provider is not there, or Placement says no.
        """
        self._ensure_name('resource_classes', provider.resource_class)
        for trait in provider.traits:
            self._ensure_name('traits', trait)
        url = f'/resource_providers/{provider.uuid}'
        generation = self._generation(provider)
        put = {'inventories': provider.inventories}
        generation = self._put(f'{url}/inventories', put, generation, provider)
        self._put(f'{url}/traits', {'traits': sorted(provider.traits)}, generation, provider)

    def remove(self, uuid: str) -> None:
        """Remove a provider, but no allocation: they are Nova's.

        :raises Refused: while it has allocations.
        """
        answer = self._call('DELETE', f'/resource_providers/{uuid}')
        if answer.status_code not in (204, 404):
            raise _refused(answer)

    def _generation(self, provider: Provider) -> int:
        """The provider's generation; it is created if it is not there."""
        answer = self._call('GET', f'/resource_providers/{provider.uuid}')
        if answer.status_code == 404:
            body = {
                'uuid': provider.uuid,
                'name': provider.name,
                'parent_provider_uuid': self._root(provider.parent),
            }
            answer = self._call('POST', '/resource_providers', body)
            if answer.status_code == 409:
                # Another conductor was faster.
                answer = self._call('GET', f'/resource_providers/{provider.uuid}')
        if answer.status_code != 200:
            raise _refused(answer)
        return int(answer.json()['generation'])

    def _root(self, name: str) -> str:
        answer = self._call('GET', '/resource_providers', params={'name': name})
        found = answer.json()['resource_providers'] if answer.status_code == 200 else []
        if not found:
            raise Refused(f'{name} has no root provider yet: nova-compute makes it')
        return str(found[0]['uuid'])

    def _put(
        self, url: str, body: dict[str, typing.Any], generation: int, provider: Provider
    ) -> int:
        """Replace a set; returns the generation that follows."""
        for _ in range(TRIES):
            stamped = body | {'resource_provider_generation': generation}
            answer = self._call('PUT', url, stamped)
            if answer.status_code == 200:
                return int(answer.json()['resource_provider_generation'])
            if 'placement.concurrent_update' not in answer.text:
                raise _refused(answer)
            generation = self._generation(provider)
        raise _refused(answer)

    def _ensure_name(self, kind: str, name: str) -> None:
        if name.startswith('CUSTOM_') and name not in self._known:
            # A trait may be what a user has written: it is a name, and never a path.
            answer = self._call('PUT', f'/{kind}/{urllib.parse.quote(name, safe="")}')
            if answer.status_code not in (201, 204):
                raise _refused(answer)
            self._known.add(name)

    def _call(
        self,
        method: str,
        url: str,
        body: typing.Any = None,
        params: dict[str, str] | None = None,
    ) -> requests.Response:
        # A refusal is an answer here.
        return self._client.request(url, method, json=body, params=params or {}, raise_exc=False)


def _refused(answer: requests.Response) -> Refused:
    return Refused(f'HTTP {answer.status_code}: {answer.text[:500]}')

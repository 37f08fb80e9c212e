# SPDX-License-Identifier: Apache-2.0
"""Make providers in Placement equal to ours: whole sets are PUT, nothing is compared.

Source: the Placement API reference.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import typing
import urllib.parse

from keystoneauth1 import adapter
from oslo_log import log
import requests

LOG = log.getLogger(__name__)

#: root providers by name, allocations with generations, reserved up to total
MICROVERSION = '1.39'
#: How often it is begun anew with a provider that somebody else has changed meanwhile.
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
        self._known: set[tuple[str, str]] = set()

    def settle(self, uuid: str, wanted: collections.abc.Callable[[], Provider | None]) -> None:
        """Make a provider equal to what is wanted, or remove it; allocations are Nova's to remove.

        :param wanted: is asked once more after the generation is known: who is late, and finds
            that it was moved, puts nothing over what came after him.
        :raises Refused: when the host's root provider is not there, when a provider that is to go
            has allocations, or when Placement says no.
        """
        for _ in range(TRIES):
            provider = wanted()
            if provider is None:
                self._remove(uuid)
                generation = 0
            else:
                generation = self._generation(provider)
            if wanted() == provider and (provider is None or self._put(provider, generation)):
                return
        raise Refused(f'{uuid} is changed again and again')

    def _put(self, provider: Provider, generation: int) -> bool:
        """Replace inventory and traits; False if somebody has changed the provider meanwhile."""
        if not self._has('resource_classes', provider.resource_class):
            raise Refused(f'there is no resource class {provider.resource_class}')
        # A trait may be what a user has written: it costs the provider nothing but that trait.
        traits = sorted(name for name in provider.traits if self._has('traits', name))
        for name, content in ('inventories', provider.inventories), ('traits', traits):
            body = {name: content, 'resource_provider_generation': generation}
            answer = self._call('PUT', f'/resource_providers/{provider.uuid}/{name}', body)
            if 'placement.concurrent_update' in answer.text:
                return False
            if answer.status_code != 200:
                # Somebody may have deleted a name that was there.
                self._known.clear()
                raise _refused(answer)
            generation = answer.json()['resource_provider_generation']
        return True

    def _remove(self, uuid: str) -> None:
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

    def _has(self, kind: str, name: str) -> bool:
        """Whether there is such a name: those that anybody may make up are made."""
        if (kind, name) not in self._known:
            method = 'PUT' if name.startswith('CUSTOM_') else 'GET'
            # It is a name, and never a path.
            answer = self._call(method, f'/{kind}/{urllib.parse.quote(name, safe="")}')
            if answer.status_code in (400, 404):
                LOG.warning('Placement takes no %s named %r: %s', kind, name, answer.text[:200])
                return False
            if answer.status_code not in (200, 201, 204):
                raise _refused(answer)
            self._known.add((kind, name))
        return True

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

# SPDX-License-Identifier: Apache-2.0
"""Make providers in Placement equal to ours.

Whole sets are PUT, where they differ. What allocations keep stays, and is offered no more.

Source: the Placement API reference.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import threading
import time
import typing

from keystoneauth1 import adapter
from oslo_log import log
import requests

LOG = log.getLogger(__name__)

#: What Placement takes for the name of a trait or a resource class. Source: its API reference.
_NAME = re.compile('[A-Z0-9_]{1,255}')

#: root providers by name, providers that move between roots, reserved up to total
MICROVERSION = '1.39'
#: How often it is begun anew with a provider that somebody else has changed meanwhile.
TRIES = 5
#: How long it stands what was found of a host, in seconds: who makes its providers asks once.
FRESH = 10


class Refused(Exception):
    """Placement cannot do this now: it is to be tried again later."""


class _InUse(Refused):
    """Allocations keep an inventory that is to go."""


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
    #: traits that it was given by us, and has no more
    retired: tuple[str, ...] = ()
    #: whether the inventory is another one than was announced last: it need not be compared
    changed: bool = False

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


@dataclasses.dataclass(frozen=True)
class _Host:
    """What Placement had of a host when it was looked up."""

    root: str
    #: the uuids of the root provider and of all below it
    providers: set[str]
    #: when that was, in seconds of time.monotonic()
    since: float


class Placement:
    """The providers that are ours, and no others."""

    def __init__(self, client: adapter.Adapter) -> None:
        self._client = client
        self._known: set[tuple[str, str]] = set()
        self._hosts: dict[str, _Host] = {}
        # What many providers need at once is asked for once.
        self._looking = threading.Lock()

    def settle(self, uuid: str, wanted: collections.abc.Callable[[], Provider | None]) -> None:
        """Make a provider equal to what is wanted, or remove it; allocations are Nova's to remove.

        :param wanted: is asked once more after the generation is known: who is late, and finds
            that it was moved, puts nothing over what came after him.
        :raises Refused: when the host's root provider is not there, when allocations keep a
            provider or a resource class that is to go, or when Placement says no.
        """
        for _ in range(TRIES):
            provider = wanted()
            if provider is None:
                held = self._remove(uuid)
                if wanted() is None and (held is None or self._withhold(uuid, held)):
                    return
            else:
                generation = self._generation(provider)
                if wanted() == provider and self._put(provider, generation):
                    return
        raise Refused(f'{uuid} is changed again and again')

    def traits(self, uuid: str) -> list[str]:
        """The traits of a provider, ours and those of others; none if it is not there."""
        answer = self._call('GET', f'/resource_providers/{uuid}/traits')
        if answer.status_code == 404:
            return []
        if answer.status_code != 200:
            raise _refused(answer)
        return [str(name) for name in answer.json()['traits']]

    def _put(self, provider: Provider, generation: int) -> bool:
        """Replace inventory and traits; False if somebody has changed the provider meanwhile."""
        if not self._has('resource_classes', provider.resource_class):
            raise Refused(f'there is no resource class {provider.resource_class}')
        # Nothing was ever put there.
        new = generation == 0
        held: dict[str, typing.Any] = {}
        moved: int | None = generation
        try:
            if new or provider.changed or self._inventories(provider.uuid) != provider.inventories:
                moved = self._replace(
                    provider.uuid, 'inventories', provider.inventories, generation
                )
        except _InUse:
            held = self._held(provider.uuid)
            moved = self._replace(provider.uuid, 'inventories', held, generation)
        if moved is None or not self._put_traits(provider, moved, new):
            return False
        if held:
            raise Refused(
                f'{", ".join(held)} of {provider.name} is still allocated and offered no more: '
                f'{provider.resource_class} is offered when these allocations are gone'
            )
        return True

    def _put_traits(self, provider: Provider, generation: int, new: bool) -> bool:
        """Replace what is ours; what others have put there stays."""
        present = set() if new else set(self.traits(provider.uuid))
        # A trait may be what a user has written: it costs the provider nothing but that trait.
        ours = {name for name in provider.traits if self._has('traits', name)}
        traits = ours | (present - set(provider.retired))
        return traits == present or None is not self._replace(
            provider.uuid, 'traits', sorted(traits), generation
        )

    def _replace(self, uuid: str, name: str, content: typing.Any, generation: int) -> int | None:
        """Replace one set of a provider; returns its generation then, or None if somebody has
        changed the provider meanwhile.
        """
        body = {name: content, 'resource_provider_generation': generation}
        answer = self._call('PUT', f'/resource_providers/{uuid}/{name}', body)
        if 'placement.concurrent_update' in answer.text:
            return None
        if 'placement.inventory.inuse' in answer.text:
            raise _InUse(answer.text[:500])
        if answer.status_code != 200:
            # Somebody may have deleted a name that was there.
            self._known.clear()
            raise _refused(answer)
        return int(answer.json()['resource_provider_generation'])

    def _held(self, uuid: str) -> dict[str, typing.Any]:
        """The inventories from which something is allocated, with the rest reserved."""
        used = self._get(f'/resource_providers/{uuid}/usages')['usages']
        return {
            name: inventory | {'reserved': inventory['total']}
            for name, inventory in self._inventories(uuid).items()
            if used.get(name)
        }

    def _inventories(self, uuid: str) -> dict[str, dict[str, typing.Any]]:
        return dict(self._get(f'/resource_providers/{uuid}/inventories')['inventories'])

    def _remove(self, uuid: str) -> int | None:
        """Delete a provider; if allocations keep it, it stays, and its generation is returned."""
        answer = self._call('DELETE', f'/resource_providers/{uuid}')
        if 'placement.resource_provider.inuse' in answer.text:
            return int(self._tree(uuid)[uuid]['generation'])
        if answer.status_code not in (204, 404):
            raise _refused(answer)
        return None

    def _withhold(self, uuid: str, generation: int) -> bool:
        """Have no more given out of a provider that is to go; False if somebody has changed it."""
        held = self._held(uuid)
        if self._replace(uuid, 'inventories', held, generation) is None:
            return False
        raise Refused(f'{", ".join(held)} of {uuid} is still allocated, and offered no more')

    def _generation(self, provider: Provider) -> int:
        """The provider's generation; it is created, renamed or moved as is needed."""
        host = self._host(provider.parent)
        if host is not None and provider.uuid not in host.providers:
            made = self._create(provider, host.root)
            host.providers.add(provider.uuid)
            if made is not None:
                return made
        known = self._tree(provider.uuid)
        if provider.uuid not in known:
            return self._create_anew(provider)
        ours = known[provider.uuid]
        parent = ours['parent_provider_uuid']
        if known[ours['root_provider_uuid']]['name'] != provider.parent:
            # It stays while the right one is not there: what is withdrawn must not wait for that.
            parent = self._root(provider.parent) or parent
        if (ours['name'], ours['parent_provider_uuid']) != (provider.name, parent):
            LOG.info('Placement moves provider %s below %s', provider.name, provider.parent)
            body = {'name': provider.name, 'parent_provider_uuid': parent}
            answer = self._call('PUT', f'/resource_providers/{provider.uuid}', body)
            if answer.status_code == 409:
                raise self._occupied(provider)
            if answer.status_code != 200:
                raise _refused(answer)
        return int(ours['generation'])

    def _create_anew(self, provider: Provider) -> int:
        """Create a provider that somebody has deleted, or whose name may be another's."""
        root = self._root(provider.parent)
        if root is None:
            raise Refused(f'{provider.parent} has no root provider yet: nova-compute makes it')
        made = self._create(provider, root)
        if made is None:
            raise self._occupied(provider)
        return made

    def _create(self, provider: Provider, root: str) -> int | None:
        """Create a provider below a root; returns its generation, or None if it is there."""
        body = {'uuid': provider.uuid, 'name': provider.name, 'parent_provider_uuid': root}
        answer = self._call('POST', '/resource_providers', body)
        if answer.status_code == 409:
            return None
        if answer.status_code != 200:
            # The root may have gone since it was looked up.
            self._hosts.pop(provider.parent, None)
            raise _refused(answer)
        return int(answer.json()['generation'])

    def _host(self, name: str) -> _Host | None:
        """The root provider of a host and all below it; None if nova-compute has not made it.

        Where a host has many devices, each of their providers asks for it at once.
        """
        with self._looking:
            host = self._hosts.get(name)
            if host is None or time.monotonic() - host.since > FRESH:
                self._hosts.pop(name, None)
                since, root = time.monotonic(), self._root(name)
                if root is None:
                    return None
                host = self._hosts[name] = _Host(root, set(self._tree(root)), since)
        return host

    def _tree(self, uuid: str) -> dict[str, dict[str, typing.Any]]:
        """The provider and all in its tree, by uuid; nothing if it is not there."""
        return {each['uuid']: each for each in self._find(in_tree=uuid)}

    def _root(self, name: str) -> str | None:
        found = self._find(name=name)
        return str(found[0]['uuid']) if found else None

    def _occupied(self, provider: Provider) -> Refused:
        other = self._root(provider.name)
        return Refused(
            f'Placement has another provider named {provider.name}, {other}: if nothing of it is '
            f'allocated, delete it ("openstack resource provider delete {other}"); {provider.uuid} '
            'takes the name then'
        )

    def _find(self, **query: str) -> list[dict[str, typing.Any]]:
        return list(self._get('/resource_providers', query)['resource_providers'])

    def _get(self, url: str, params: dict[str, str] | None = None) -> typing.Any:
        answer = self._call('GET', url, None, params)
        if answer.status_code != 200:
            raise _refused(answer)
        return answer.json()

    def _has(self, kind: str, name: str) -> bool:
        """Whether there is such a name: those that anybody may make up are made."""
        with self._looking:
            return (kind, name) in self._known or self._make(kind, name)

    def _make(self, kind: str, name: str) -> bool:
        # It may be what a user has written: a path, as .. is, must not be asked for.
        if not _NAME.fullmatch(name):
            LOG.warning('Placement takes no %s named %r', kind, name[:255])
            return False
        method = 'PUT' if name.startswith('CUSTOM_') else 'GET'
        answer = self._call(method, f'/{kind}/{name}')
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

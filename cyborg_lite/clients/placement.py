# SPDX-License-Identifier: Apache-2.0
"""The client of Placement: it reconciles resource providers.

A set that differs is replaced by PUT. Inventory with allocations stays, with the rest reserved.

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

#: The form of names of traits and resource classes in Placement. Source: its API reference.
_NAME = re.compile('[A-Z0-9_]{1,255}')

#: root providers by name, providers that move between roots, reserved up to total
MICROVERSION = '1.39'
#: generations of consumers, and not yet their types, which must be known to be put again
_OF_CONSUMERS = '1.28'
#: the type of consumers that are instances of Nova
_INSTANCE = 'INSTANCE'
#: How often a provider is tried again after a concurrent change.
TRIES = 5
#: How long the providers of a host are cached, in seconds.
FRESH = 10


class Refused(Exception):
    """Placement refuses this now: it must be retried."""


class _InUse(Refused):
    """Allocations prevent the removal of an inventory."""


@dataclasses.dataclass(frozen=True)
class Provider:
    """The resource provider of a deployable, as it should be in Placement."""

    uuid: str
    name: str
    #: the host, whose root provider nova-compute makes
    parent: str
    resource_class: str
    total: int
    reserved: int
    traits: tuple[str, ...]
    #: traits that we set earlier, and that must be removed
    retired: tuple[str, ...] = ()
    #: whether the inventory differs from the one sent last: no comparison is needed
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
    """The cached providers of a host."""

    root: str
    #: the uuids of the root provider and of all providers below it
    providers: set[str]
    #: the time of the lookup, in seconds of time.monotonic()
    since: float


class Placement:
    """Reconciles our own resource providers, and no others.  An audit gives back allocations."""

    def __init__(self, client: adapter.Adapter) -> None:
        self._client = client
        self._known: set[tuple[str, str]] = set()
        self._hosts: dict[str, _Host] = {}
        # Concurrent lookups of one host make one call.
        self._looking = threading.Lock()

    def settle(self, uuid: str, wanted: collections.abc.Callable[[], Provider | None]) -> None:
        """Reconcile a provider, or remove it; only Nova, or an audit, removes allocations.

        :param wanted: called again after the generation is read, so that a stale caller does
            not overwrite a newer change.
        :raises Refused: when the host's root provider does not exist, when allocations prevent
            the removal of a provider or a resource class, or when Placement refuses.
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
        """All traits of a provider, also those of others; empty if it does not exist."""
        answer = self._call('GET', f'/resource_providers/{uuid}/traits')
        if answer.status_code == 404:
            return []
        if answer.status_code != 200:
            raise _refused(answer)
        return [str(name) for name in answer.json()['traits']]

    def allocations(self, uuid: str) -> dict[str, dict[str, int]]:
        """What is allocated of a provider: amounts by resource class, by the uuid of the consumer;
        empty if it does not exist.

        :raises Refused: when Placement does not answer this.
        """
        answer = self._call('GET', f'/resource_providers/{uuid}/allocations')
        if answer.status_code == 404:
            return {}
        if answer.status_code != 200:
            raise _refused(answer)
        try:
            found = answer.json()['allocations'].items()
            return {str(consumer): dict(given['resources']) for consumer, given in found}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refused('the answer is not a map of allocations') from None

    def is_instance(self, consumer: str) -> bool:
        """Whether a consumer is an instance: whoever allocated for it may have told its type.

        Placement tells types since microversion 1.38, and ``unknown`` for one that nobody told.

        :raises Refused: when Placement does not answer this.
        """
        answer = self._call('GET', f'/allocations/{consumer}')
        if answer.status_code != 200:
            raise _refused(answer)
        try:
            return bool(answer.json().get('consumer_type') == _INSTANCE)
        except (ValueError, AttributeError):
            raise Refused('the answer is not a map of allocations') from None

    def give_back(self, consumer: str, uuids: collections.abc.Collection[str]) -> None:
        """Remove what a consumer, which is gone, has of these providers; the rest of it stays.

        :raises Refused: when it was changed meanwhile, or Placement refuses.
        """
        path = f'/allocations/{consumer}'
        answer = self._call('GET', path, microversion=_OF_CONSUMERS)
        if answer.status_code != 200:
            raise _refused(answer)
        try:
            known = answer.json()
            left = {
                uuid: {'resources': each['resources']}
                for uuid, each in known['allocations'].items()
                if uuid not in uuids
            }
            if len(left) == len(known['allocations']):
                return
            names = 'project_id', 'user_id', 'consumer_generation'
            body = {'allocations': left} | {name: known[name] for name in names}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refused('the answer is not a map of allocations') from None
        # Another generation means that somebody else uses it.
        answer = self._call('PUT', path, body, microversion=_OF_CONSUMERS)
        if answer.status_code != 204:
            raise _refused(answer)

    def _put(self, provider: Provider, generation: int) -> bool:
        """Replace inventory and traits; False after a concurrent change of the provider."""
        if not self._has('resource_classes', provider.resource_class):
            raise Refused(f'there is no resource class {provider.resource_class}')
        # The provider is new: nothing was ever put into it.
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
        """Replace our traits; those of others stay."""
        present = set() if new else set(self.traits(provider.uuid))
        # A user may have written an invalid trait: only this trait is left out.
        ours = {name for name in provider.traits if self._has('traits', name)}
        traits = ours | (present - set(provider.retired))
        return traits == present or None is not self._replace(
            provider.uuid, 'traits', sorted(traits), generation
        )

    def _replace(self, uuid: str, name: str, content: typing.Any, generation: int) -> int | None:
        """Replace one set of a provider; returns the new generation, or None after a conflict."""
        body = {name: content, 'resource_provider_generation': generation}
        answer = self._call('PUT', f'/resource_providers/{uuid}/{name}', body)
        if 'placement.concurrent_update' in answer.text:
            return None
        if 'placement.inventory.inuse' in answer.text:
            raise _InUse(answer.text[:500])
        if answer.status_code != 200:
            # A known name may have been deleted.
            self._known.clear()
            raise _refused(answer)
        return int(answer.json()['resource_provider_generation'])

    def _held(self, uuid: str) -> dict[str, typing.Any]:
        """The inventories with allocations, with the rest reserved."""
        used = self._get(f'/resource_providers/{uuid}/usages')['usages']
        return {
            name: inventory | {'reserved': inventory['total']}
            for name, inventory in self._inventories(uuid).items()
            if used.get(name)
        }

    def _inventories(self, uuid: str) -> dict[str, dict[str, typing.Any]]:
        return dict(self._get(f'/resource_providers/{uuid}/inventories')['inventories'])

    def _remove(self, uuid: str) -> int | None:
        """Delete a provider; returns its generation if allocations prevent this."""
        answer = self._call('DELETE', f'/resource_providers/{uuid}')
        if 'placement.resource_provider.inuse' in answer.text:
            return int(self._tree(uuid)[uuid]['generation'])
        if answer.status_code not in (204, 404):
            raise _refused(answer)
        return None

    def _withhold(self, uuid: str, generation: int) -> bool:
        """Reserve the rest of a provider to be removed; False after a concurrent change."""
        held = self._held(uuid)
        if self._replace(uuid, 'inventories', held, generation) is None:
            return False
        raise Refused(f'{", ".join(held)} of {uuid} is still allocated, and offered no more')

    def _generation(self, provider: Provider) -> int:
        """The provider's generation; the provider is created, renamed or moved if needed."""
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
            # It stays below the old root while the new one does not exist: withdrawals must not
            # wait.
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
        """Create a provider that was deleted, or whose name another one may have."""
        root = self._root(provider.parent)
        if root is None:
            raise Refused(f'{provider.parent} has no root provider yet: nova-compute makes it')
        made = self._create(provider, root)
        if made is None:
            raise self._occupied(provider)
        return made

    def _create(self, provider: Provider, root: str) -> int | None:
        """Create a provider below a root; returns its generation, or None if it exists."""
        body = {'uuid': provider.uuid, 'name': provider.name, 'parent_provider_uuid': root}
        answer = self._call('POST', '/resource_providers', body)
        if answer.status_code == 409:
            return None
        if answer.status_code != 200:
            # The root may have been deleted since the lookup.
            self._hosts.pop(provider.parent, None)
            raise _refused(answer)
        return int(answer.json()['generation'])

    def _host(self, name: str) -> _Host | None:
        """The root provider of a host and those below it; None if nova-compute has not made it.

        The result is cached: each device of a host looks it up at the same time.
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
        """All providers of a provider's tree, by uuid; empty if it does not exist."""
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
        """Whether a name exists; custom names are created."""
        with self._looking:
            return (kind, name) in self._known or self._make(kind, name)

    def _make(self, kind: str, name: str) -> bool:
        # The name is user input: a path such as ".." must not be requested.
        if not _NAME.fullmatch(name):
            LOG.warning('Placement accepts no %s named %r', kind, name[:255])
            return False
        method = 'PUT' if name.startswith('CUSTOM_') else 'GET'
        answer = self._call(method, f'/{kind}/{name}')
        if answer.status_code in (400, 404):
            LOG.warning('Placement accepts no %s named %r: %s', kind, name, answer.text[:200])
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
        microversion: str = MICROVERSION,
    ) -> requests.Response:
        # The caller handles error statuses.
        return self._client.request(
            url, method, json=body, params=params or {}, raise_exc=False, microversion=microversion
        )


def _refused(answer: requests.Response) -> Refused:
    return Refused(f'HTTP {answer.status_code}: {answer.text[:500]}')

# SPDX-License-Identifier: Apache-2.0
"""Whether a resource provider is what an accelerator request asks for."""

from __future__ import annotations

import collections.abc
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import profiles

#: How many holders an error names.
HOLDERS = 4
_LIST = '"openstack accelerator list'


def check(
    wish: collections.abc.Mapping[str, typing.Any],
    provider: model.Deployable | None,
    arq: model.ARQ,
    vouched: collections.abc.Iterable[str],
) -> None:
    """Refuse a provider that cannot be allocated now, or does not match the request."""
    if provider is None:
        raise exception.ProviderNotFound(provider=wish['device_rp_uuid'])
    device = provider.device
    if not _same_host(wish['hostname'], device.hostname):
        raise exception.Invalid(
            reason=f'Invalid /hostname of {arq.uuid}: resource provider {provider.rp_uuid} is of '
            f'host {device.hostname}, not of {wish["hostname"]}.'
        )
    if device.obstacle:
        raise exception.ProviderUnfit(
            provider=provider.rp_uuid, reason=f'its device {device.obstacle}. {_next(device)}'
        )
    group = arq.device_profile.groups[arq.device_profile_group_id]
    asked = profiles.resources(group)
    if provider.resource_class not in asked:
        raise exception.ProviderUnfit(
            provider=provider.rp_uuid,
            reason=f'it gives {provider.resource_class}, and ARQ {arq.uuid} wants '
            f'{", ".join(sorted(asked))}. {_LIST} --free --resource-class {min(asked)}" shows what '
            'can be used',
        )
    required, forbidden = profiles.traits(group)
    if unwanted := forbidden.intersection(provider.traits):
        raise exception.ProviderUnfit(
            provider=provider.rp_uuid,
            reason=f'it has {", ".join(sorted(unwanted))}, which ARQ {arq.uuid} forbids',
        )
    if missing := required.difference(provider.traits, vouched):
        raise exception.TraitsMissing(
            provider=provider.rp_uuid, traits=', '.join(sorted(missing)), arq=arq.uuid
        )


def exhausted(
    session: orm.Session,
    provider: model.Deployable,
    project: str,
    free: int,
    wanted: int,
) -> exception.NoFreeHandle:
    """The error that the provider has too few free accelerators; it names the holders.

    :param project: the project of the request, which learns nothing of other projects.
    """
    held = (
        sa.select(model.ARQ)
        .join(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
        .where(model.AttachHandle.deployable_id == provider.id)
        .options(orm.lazyload('*'))
    )
    arqs = list(session.scalars(held.order_by(model.ARQ.id)))
    own = dict.fromkeys(_holder(arq) for arq in arqs if arq.project_id == project)
    others = sum(arq.project_id != project for arq in arqs)
    holders = [*list(own)[:HOLDERS], *(['...'] if len(own) > HOLDERS else [])]
    holders += [f'other projects ({others} of them)'] if others else []
    said = f' Held by {", ".join(holders)}.' if holders else ''
    shows = f' {_LIST} --device {provider.device.uuid}" shows each.'
    return exception.NoFreeHandle(
        provider=provider.rp_uuid, free=free, wanted=wanted, holders=said + shows
    )


def _holder(arq: model.ARQ) -> str:
    if arq.allocation_uuid is not None:
        return f'allocation {arq.allocation_uuid}'
    return f'instance {arq.instance_uuid} (ARQ {arq.uuid})'


def _next(device: model.Device) -> str:
    """The command that makes a device available again."""
    if device.status != 'enabled':
        return f'"openstack accelerator enable {device.uuid}" enables it'
    return f'{_LIST} --long --device {device.uuid}" shows its accelerators'


def _same_host(one: str, other: str) -> bool:
    """Whether two names are of one host: a short name is that of any domain."""
    one, other = one.lower().rstrip('.'), other.lower().rstrip('.')
    short = [name.partition('.')[0] for name in (one, other)]
    return one == other or (short[0] == short[1] and (one in short or other in short))


def refuse_scattered(
    wishes: collections.abc.Iterable[collections.abc.Mapping[str, typing.Any]],
) -> None:
    """Refuse to bind for one instance on two hosts, or for two owners."""
    first: dict[str, collections.abc.Mapping[str, typing.Any]] = {}
    for wish in wishes:
        instance = wish['instance_uuid']
        other = first.setdefault(instance, wish)
        same = {
            'hostname': _same_host(wish['hostname'], other['hostname']),
            'project_id': wish['project_id'] == other['project_id'],
        }
        for name in (name for name, holds in same.items() if not holds):
            raise exception.Invalid(
                reason=f'Instance {instance}: expected one {name} for all of its accelerator '
                f'requests, not {other[name]} and {wish[name]}.'
            )

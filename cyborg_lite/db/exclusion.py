# SPDX-License-Identifier: Apache-2.0
"""What must not be held side by side.

A card is held in one form at a time: as a whole, or in parts of one kind.  What is in one IOMMU
group goes to one instance, since the hardware does not keep it apart.  And what is held under the
old name of a machine is not free under its new one.
"""

from __future__ import annotations

import collections.abc
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model

Condition = sa.ColumnElement[bool]

_other = orm.aliased(model.AttachHandle)
_part = orm.aliased(model.Deployable)
_card = orm.aliased(model.Device)
_host = orm.aliased(model.Host)
_arq = orm.aliased(model.ARQ)

_siblings = sa.select(_other.id).join(_part, _part.id == _other.deployable_id)
_held = _siblings.join(_arq, _arq.attach_handle_id == _other.id)


def free(provider: model.Deployable, instance: str) -> list[Condition]:
    """The conditions that a handle of the provider meets that nothing held elsewhere excludes."""
    device = provider.device
    form = _held.where(_part.device_id == device.id, _other.form != model.AttachHandle.form)
    group = _held.join(_card, _card.id == _part.device_id).where(
        _card.hostname.in_(_names(device.hostname)),
        _other.iommu_group == model.AttachHandle.iommu_group,
        _arq.instance_uuid != instance,
    )
    conditions = [~_exists(form), ~_exists(group)]
    if device.host.machine:
        conditions.append(~_exists(_under_old_name(device)))
    return conditions


def _names(hostname: str) -> sa.Select[typing.Any]:
    """The name of a host, and those that its machine had before."""
    return sa.select(_host.name).where(sa.or_(_host.name == hostname, _host.renamed_to == hostname))


def _exists(query: sa.Select[typing.Any]) -> sa.Exists:
    return query.correlate(model.AttachHandle).exists()


def _under_old_name(device: model.Device) -> sa.Select[typing.Any]:
    """What is held of this card under an earlier name of its machine."""
    same = _card.address == device.address
    if device.serial:
        same = sa.case((_card.serial.is_not(None), _card.serial == device.serial), else_=same)
    return (
        _held.join(_card, _card.id == _part.device_id)
        .join(_host, _host.name == _card.hostname)
        .where(_host.renamed_to == device.hostname, same)
    )


def excludes(hostname: str | orm.InstrumentedAttribute[str]) -> Condition:
    """Whether a handle, of a host, may exclude others while it is held."""
    own = orm.aliased(model.Deployable)
    device = sa.select(own.device_id).where(own.id == model.AttachHandle.deployable_id)
    form = _siblings.where(
        _part.device_id == device.correlate(model.AttachHandle).scalar_subquery(),
        _other.form != model.AttachHandle.form,
    )
    group = _siblings.join(_card, _card.id == _part.device_id).where(
        _card.hostname == hostname,
        _other.iommu_group == model.AttachHandle.iommu_group,
        _other.id != model.AttachHandle.id,
    )
    return sa.or_(_exists(form), _exists(group))


def reason(session: orm.Session, provider: model.Deployable, instance: str) -> str | None:
    """Why accelerators of the provider are not free although nobody holds them, in words."""
    device = provider.device
    mine = {handle.form for handle in provider.attach_handles}
    groups = {handle.iommu_group for handle in provider.attach_handles} - {None}
    old = device.host.machine and session.scalar(
        _under_old_name(device).with_only_columns(_host.name).limit(1)
    )
    if old:
        return f'its card is held as of host {old}, which is the name that the host had'
    for held in _held_handles(session, [device.hostname]):
        if held.device_id == device.id and mine - {held.form}:
            return f'its card is held in another form ({held.form})'
        if held.iommu_group in groups and held.instance_uuid != instance:
            return f'another instance holds a device of IOMMU group {held.iommu_group}'
    return None


def excluded(session: orm.Session, parts: collections.abc.Iterable[model.Deployable]) -> set[int]:
    """The ids of those handles of these parts that nobody holds, and that are excluded now."""
    concerned = [part for part in parts if _may_be_excluded(part)]
    if not concerned:
        return set()
    hostnames = sorted({part.device.hostname for part in concerned})
    held = _held_handles(session, hostnames)
    taken = {each.id for each in held}
    return {
        handle.id
        for part in concerned
        for handle in part.attach_handles
        if handle.id not in taken and any(_excludes(each, handle, part.device) for each in held)
    }


def _may_be_excluded(part: model.Deployable) -> bool:
    siblings = [h for other in part.device.deployables for h in other.attach_handles]
    return (
        len({handle.form for handle in siblings}) > 1
        or any(handle.iommu_group for handle in part.attach_handles)
        or bool(part.device.host.machine and not part.device.host.cloned)
    )


def _held_handles(session: orm.Session, hostnames: list[str]) -> list[typing.Any]:
    """What is held of these hosts, and under earlier names of them."""
    columns = (
        model.AttachHandle.id,
        model.AttachHandle.form,
        model.AttachHandle.iommu_group,
        model.Deployable.device_id,
        model.Device.hostname,
        model.Device.address,
        model.Device.serial,
        model.Host.renamed_to,
        model.ARQ.instance_uuid,
    )
    query = (
        sa.select(*columns)
        .join(model.ARQ, model.ARQ.attach_handle_id == model.AttachHandle.id)
        .join(model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id)
        .join(model.Device, model.Device.id == model.Deployable.device_id)
        .join(model.Host, model.Host.name == model.Device.hostname)
        .where(sa.or_(model.Host.name.in_(hostnames), model.Host.renamed_to.in_(hostnames)))
        .order_by(model.AttachHandle.id)
    )
    return list(session.execute(query))


def _excludes(held: typing.Any, handle: model.AttachHandle, device: model.Device) -> bool:
    """Whether a handle that is held excludes a free one of the device."""
    if held.device_id == device.id and held.form != handle.form:
        return True
    if device.hostname not in (held.hostname, held.renamed_to):
        return False
    if handle.iommu_group and held.iommu_group == handle.iommu_group:
        return True
    if held.hostname == device.hostname:
        return False
    if held.serial and device.serial:
        return bool(held.serial == device.serial)
    return bool(held.address == device.address)

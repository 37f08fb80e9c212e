# SPDX-License-Identifier: Apache-2.0
"""What must not be held side by side.

A card is held in one form at a time: as a whole, or in parts of one kind.  What is in one IOMMU
group goes to one instance, since the hardware does not keep it apart.  And what is held under the
old name of a machine is not free under its new one.
"""

from __future__ import annotations

import collections.abc
import types
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import promises

Condition = sa.ColumnElement[bool]

_other = orm.aliased(model.AttachHandle)
_part = orm.aliased(model.Deployable)
_card = orm.aliased(model.Device)
_host = orm.aliased(model.Host)
_arq = orm.aliased(model.ARQ)
_own = orm.aliased(model.Deployable)

_device = sa.select(_own.device_id).where(_own.id == model.AttachHandle.deployable_id)
_siblings = sa.select(_other.id).join(_part, _part.id == _other.deployable_id)
_held = _siblings.join(_arq, _arq.attach_handle_id == _other.id)

#: That a request holds the handle.
HELD = sa.exists().where(model.ARQ.attach_handle_id == model.AttachHandle.id)

#: The parameters of a statement for one device, as the columns of it.
_given = types.SimpleNamespace(
    **{
        name: sa.bindparam(f'device_{name}', type_=getattr(model.Device, name).type)
        for name in ('id', 'hostname', 'type', 'vendor', 'serial', 'address')
    }
)


def parameters(device: model.Device, instance: str) -> dict[str, typing.Any]:
    """The values of the parameters of FREE and EXCLUDES for a device and an instance."""
    values = {f'device_{name}': getattr(device, name) for name in vars(_given)}
    return values | {'instance': instance}


class Cause(typing.NamedTuple):
    """What excludes a handle, and how that is said."""

    holds: Condition
    words: sa.ColumnElement[str]


def causes(
    device: type[model.Device] | types.SimpleNamespace,
    instance: sa.BindParameter[str] | None = None,
    guest: bool = True,
) -> list[Cause]:
    """All that may exclude a handle of a device, of which the first that holds is shown.

    :param device: the class in a statement that joins it to the handle, or parameters.
    :param instance: the instance that gets the handle, if that is known.
    :param guest: whether a guest gets it. A process of the host shares IOMMU groups with
        other processes, and with no guest.
    """
    form = _held.where(_part.device_id == device.id, _other.form != model.AttachHandle.form)
    group = _held.join(_card, _card.id == _part.device_id).where(
        # First: most handles have none, and the devices of the host are many.
        model.AttachHandle.iommu_group.is_not(None),
        _card.hostname.in_(_names(device.hostname)),
        _other.iommu_group == model.AttachHandle.iommu_group,
    )
    if instance is not None:
        group = group.where(_arq.instance_uuid.is_distinct_from(instance))
    if not guest:
        group = group.where(_arq.instance_uuid.is_not(None))
    return [
        _cause(_under_old_name(device), 'its card is held under the old name of its host, ',
               _host.name),
        _cause(form, 'its card is held in another form (', _other.form, ')'),
        _cause(group, 'another instance holds a device of IOMMU group ', _other.iommu_group),
    ]  # fmt: skip


def _cause(query: sa.Select[typing.Any], before: str, named: typing.Any, after: str = '') -> Cause:
    query = query.correlate(model.AttachHandle, model.Device)
    name = query.with_only_columns(sa.func.min(named)).scalar_subquery()
    return Cause(query.exists(), before + name + after)


def _names(hostname: typing.Any) -> sa.Select[typing.Any]:
    """The name of a host, and those that its machine had before."""
    names = sa.select(_host.name).where(
        sa.or_(_host.name == hostname, _host.renamed_to == hostname)
    )
    return names.correlate(model.Device)


def _under_old_name(device: type[model.Device] | types.SimpleNamespace) -> sa.Select[typing.Any]:
    """What is held of this card, or may be, under an earlier name of its machine.

    A card whose serial number cannot be read for now may be any of its kind that has one: it may
    have moved.
    """
    serial = sa.type_coerce(device.serial, sa.String)
    both = sa.and_(_card.serial.is_not(None), serial.is_not(None))
    kind = sa.and_(_card.type == device.type, _card.vendor == device.vendor)
    unread = sa.and_(_card.serial.is_not(None), serial.is_(None), kind)
    same = sa.or_(
        sa.case((both, _card.serial == serial), else_=_card.address == device.address), unread
    )
    return (
        _held.join(_card, _card.id == _part.device_id)
        .join(_host, _host.name == _card.hostname)
        .where(_host.renamed_to == device.hostname, same)
    )


def held_under_old_name(allocation: sa.BindParameter[str]) -> Condition:
    """That an allocation holds this device, or may, under an earlier name of its machine."""
    held = _under_old_name(model.Device).where(_arq.allocation_uuid == allocation)
    return held.correlate(model.Device).exists()


def excludes(hostname: sa.BindParameter[str] | orm.InstrumentedAttribute[str]) -> Condition:
    """Whether a handle, of a host, may exclude others while it is held."""
    form = _siblings.where(
        _part.device_id == _device.correlate(model.AttachHandle).scalar_subquery(),
        _other.form != model.AttachHandle.form,
    )
    group = _siblings.join(_card, _card.id == _part.device_id).where(
        _card.hostname == hostname,
        _other.iommu_group == model.AttachHandle.iommu_group,
        _other.id != model.AttachHandle.id,
    )
    return sa.or_(*(each.correlate(model.AttachHandle).exists() for each in (form, group)))


_CAUSES = causes(_given, sa.bindparam('instance', type_=sa.String()))
#: The conditions that a handle of a device meets that nothing held elsewhere excludes.
FREE = [~cause.holds for cause in _CAUSES]
#: Whether a handle of a device may exclude others while it is held.
EXCLUDES = excludes(_given.hostname)


def reason(session: orm.Session, provider: model.Deployable, instance: str) -> str | None:
    """Why accelerators of the provider are not free although they are not held, as a text."""
    query = sa.select(words(_CAUSES)).where(
        model.AttachHandle.deployable_id == provider.id,
        ~HELD,
        sa.or_(*(cause.holds for cause in _CAUSES)),
    )
    query = query.order_by(model.AttachHandle.id).limit(1)
    return session.scalar(query, parameters(provider.device, instance))


def words(found: list[Cause]) -> sa.ColumnElement[str | None]:
    """Why a handle is excluded; null if it is not."""
    # Those of a cause that does not hold are null.
    return sa.func.coalesce(*(cause.words for cause in found))


def excluded(session: orm.Session, parts: collections.abc.Iterable[model.Deployable]) -> set[int]:
    """The ids of the handles of these parts that are not held but excluded now."""
    concerned = [part.id for part in parts if _may_be_excluded(part)]
    if not concerned:
        return set()
    query = (
        sa.select(model.AttachHandle.id)
        .join(model.Deployable)
        .join(model.Device)
        .where(
            model.AttachHandle.deployable_id.in_(concerned),
            ~HELD,
            sa.or_(*(cause.holds for cause in causes(model.Device))),
        )
    )
    return set(session.scalars(query))


def allocated(session: orm.Session, parts: collections.abc.Iterable[model.Deployable]) -> set[int]:
    """The ids of those handles of these parts that allocations hold, or that are kept for one."""
    held = HELD.where(model.ARQ.allocation_uuid.is_not(None))
    query = sa.select(model.AttachHandle.id).where(
        model.AttachHandle.deployable_id.in_([part.id for part in parts]),
        sa.or_(held, sa.and_(~HELD, promises.KEPT)),
    )
    return set(session.scalars(query))


def _may_be_excluded(part: model.Deployable) -> bool:
    siblings = [h for other in part.device.deployables for h in other.attach_handles]
    return (
        len({handle.form for handle in siblings}) > 1
        or any(handle.iommu_group for handle in part.attach_handles)
        or bool(part.device.host.machine and not part.device.host.cloned)
    )

# SPDX-License-Identifier: Apache-2.0
"""The leases of a host: the id of the consumer of a lease begins with the name of its host."""

from __future__ import annotations

import typing

from oslo_log import log
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model

LOG = log.getLogger(__name__)

_KIND = model.Allocation
#: The separators in the id of a process, after the name of the host.
SEPARATORS = 5


def of(host: str) -> list[sa.ColumnElement[bool]]:
    """The conditions that an allocation is a lease of a process on this host.

    The name is compared exactly: LIKE treats it as a pattern, and ignores its case in SQLite.
    """
    begins = f'{host}/'
    same = sa.func.substr(_KIND.consumer_id, 1, len(begins)) == begins
    return [_KIND.consumer_type == _KIND.PROCESS, same]


def others(session: orm.Session, host: str) -> list[dict[str, typing.Any]]:
    """Who holds accelerators of a host by an instance or an allocation of the API.

    Of each it is told how many, and the addresses of their cards.
    A user is named, or a project where no user is known. No id is told: all users of the host see
    it.
    """
    arq, handle, part = model.ARQ, model.AttachHandle, model.Deployable
    labels = [getattr(_KIND, field) for field in _KIND.LABELS]
    shown = [_KIND.user_name, arq.project_id, _KIND.lease_ends_at, *labels]
    holder = [arq.allocation_uuid, arq.instance_uuid, *shown]
    query = (
        sa.select(*holder, model.Device.address, sa.func.count(arq.id).label('amount'))
        .join(handle, handle.id == arq.attach_handle_id)
        .join(part, part.id == handle.deployable_id)
        .join(model.Device, model.Device.id == part.device_id)
        .outerjoin(_KIND, _KIND.uuid == arq.allocation_uuid)
        .where(
            arq.hostname == host,
            sa.or_(_KIND.consumer_type.is_(None), _KIND.consumer_type != _KIND.PROCESS),
        )
        .group_by(*holder, model.Device.address)
        .order_by(sa.func.min(arq.id))
    )
    found: dict[tuple[typing.Any, ...], dict[str, typing.Any]] = {}
    for row in session.execute(query):
        held = found.setdefault(
            (row.allocation_uuid, row.instance_uuid, row.project_id),
            {field: getattr(row, field) for field in _KIND.LABELS}
            | {
                'user': row.user_name or f'project {row.project_id}',
                'ends': row.lease_ends_at and row.lease_ends_at.isoformat(),
                'amount': 0,
                'addresses': [],
            },
        )
        held['amount'] += row.amount
        held['addresses'].append(row.address)
    return list(found.values())


def rename(session: orm.Session, old: str, new: str) -> None:
    """Move the leases of a host to its new name, and the host in accelerators of allocations.

    It is called before the requests of the host have its new name.
    """
    holding = sa.select(model.ARQ.allocation_uuid).where(
        model.ARQ.hostname == old, model.ARQ.allocation_uuid.is_not(None)
    )
    touched = sa.or_(sa.and_(*of(old)), _KIND.uuid.in_(holding))
    alive = _KIND.state != 'released'
    found = sa.select(_KIND).where(alive, touched).options(orm.lazyload('*'))
    for each in session.scalars(found):
        if each.consumer_type == _KIND.PROCESS:
            each.consumer_id = _consumer(each, old, new)
            if each.wish:
                each.wish = each.wish | {'hosts': [new]}
        each.accelerators = [
            shown | {'host': new} if shown['host'] == old else shown
            for shown in each.accelerators or ()
        ]
    session.flush()


def _consumer(lease: model.Allocation, old: str, new: str) -> str:
    """The id of a process under the new name of its host; only the end of it may be cut off."""
    consumer = lease.consumer_id or ''
    process = consumer.removeprefix(f'{old}/')
    room = 255 - len(f'{new}/')
    if room < 0 or process[:room].count('/') < SEPARATORS:
        LOG.warning(
            'The name %s is too long for lease %s, whose process nobody watches any more: delete '
            'the lease when the process has ended',
            new,
            lease.uuid,
        )
        return consumer
    return f'{new}/{process[:room]}'

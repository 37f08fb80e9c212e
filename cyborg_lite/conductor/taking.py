# SPDX-License-Identifier: Apache-2.0
"""How an allocation gets its accelerators: choose free ones, lock their hosts, bind them.

It is the same for an allocation that is served at once and for one from the queue.
"""

from __future__ import annotations

import collections.abc
import datetime
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import holding
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import topology
from cyborg_lite.db import candidates
from cyborg_lite.db import query
from cyborg_lite.model import device as devices

#: What an allocation notes of an accelerator, beside its request and its ids.
ACCELERATOR = (
    'uuid', 'host', 'device_uuid', 'type', 'model', 'address', 'numa_node', 'attach_type',
    'attach_info', 'form', 'driver',
)  # fmt: skip

#: The most kinds of accelerators of one request: each makes the statements longer.
KINDS = 16

#: The hosts of these names.
_NAMED = sa.select(model.Host.name).where(
    model.Host.name.in_(sa.bindparam('names', expanding=True))
)

#: The number of each kind that is wanted.
Kinds = dict[candidates.Kind, int]
Groups = list[dict[str, str]]


class Taken(typing.NamedTuple):
    """What an allocation holds."""

    #: as the allocation shows them, in order
    accelerators: list[dict[str, typing.Any]]
    providers: set[str]


def sets(
    alternatives: collections.abc.Iterable[Groups],
    same_host: bool,
    same_numa: str,
    link: str,
    kinds: Kinds,
) -> list[placing.Wanted]:
    """What is wanted together, alternative by alternative.

    :param kinds: new kinds are added to it.
    """
    found: list[placing.Wanted] = []
    for groups in alternatives:
        asked = list(_asked(groups))
        refuse_size(sum(amount for _, amount in asked))
        numbers: list[int] = []
        for kind, amount in asked:
            numbers += [kinds.setdefault(kind, len(kinds))] * amount
        required = same_numa == 'require', link == 'require'
        found.append(placing.Wanted(tuple(numbers), same_host, *required))
    amount = len({number for wanted in found for number in wanted.kinds})
    if amount > KINDS:
        raise exception.Invalid(
            reason=f'Invalid groups: expected at most {KINDS} kinds of accelerators, each a '
            f'resource class with its traits, got {amount}.'
        )
    return found


def _asked(groups: Groups) -> collections.abc.Iterator[tuple[candidates.Kind, int]]:
    """The kinds of accelerators that these groups ask for, in order, and how many of each."""
    for group in groups:
        required, forbidden = map(frozenset, profiles.traits(group))
        for name, amount in profiles.resources(group).items():
            if amount > 0:
                yield candidates.Kind(name, required, forbidden), amount


def refuse_size(total: int) -> None:
    if not 1 <= total <= binding.MOST:
        raise exception.Invalid(
            reason=f'Invalid groups: expected 1 to {binding.MOST} accelerators, got {total}.'
        )


def free(
    session: orm.Session, kinds: Kinds, of_hosts: candidates.Hosts, limit: int | None = None
) -> list[placing.Candidate]:
    """The free accelerators of these kinds."""
    rows = candidates.free(session, list(kinds), of_hosts, limit)
    return [_candidate(row) for row in rows]


def _candidate(row: sa.Row[typing.Any]) -> placing.Candidate:
    handle, host, device, form, node, address, told, *fits = tuple(row)
    kinds = frozenset(number for number, fit in enumerate(fits) if fit)
    place = topology.place(address, told)
    return placing.Candidate(handle, host, device, form, node, kinds, place)


def confirm(
    session: orm.Session,
    kinds: Kinds,
    wanted: placing.Wanted,
    chosen: placing.Chosen,
    rank: placing.Rank,
    allowed: collections.abc.Container[int] | None = None,
) -> placing.Chosen:
    """Choose again on the same hosts, now that they are locked: what was read before may be stale.

    :param allowed: the ids of the handles to choose from; None for all.
    :raises sqlalchemy.orm.exc.StaleDataError: when there is not enough left: the call is tried
        again.
    """
    locked = hosts.lock(session, _NAMED, names={each.host for each in chosen})
    found = free(session, kinds, locked)
    if allowed is not None:
        found = [each for each in found if each.handle in allowed]
    again = placing.place(found, wanted, rank)
    if again is None:
        raise orm_exception.StaleDataError
    return again


def take(
    session: orm.Session,
    ctxt: context.RequestContext,
    uuid: str,
    profile: model.DeviceProfile,
    chosen: placing.Chosen,
    limited: bool = True,
    after: float = 0,
) -> Taken:
    """Create the requests of an allocation, each bound, on hosts that are locked.

    :param profile: a private one is stored now.
    :param limited: whether there may be a quota of the project.
    :param after: as for :func:`outbox.put`.
    :raises cyborg_lite.exception.OverQuota: when it exceeds the quota of the project; nothing
        was written then.
    """
    if limited:
        # Before anything is written: it may be refused.
        amounts = [sum(profiles.resources(group).values()) for group in profile.groups]
        quotas.claim(session, ctxt.project_id or '', quotas.asked(profile.groups, amounts))
    profile.limited = False
    if profile.private:
        profile.name = private(uuid)
        session.add(profile)
        session.flush()
    handles = _handles(session, [each.handle for each in chosen])
    found, now = [handles[each.handle] for each in chosen], timeutils.utcnow()
    places = [
        {
            'state': 'Bound',
            'allocation_uuid': uuid,
            'hostname': row.host,
            'device_rp_uuid': row.rp_uuid,
            'moves': _moves(ctxt, row, now),
        }
        | holding.given(row.id, row.resource_class, now)
        for row in found
    ]
    arqs = binding.make(session, ctxt, profile, places)
    hosts.announce_all(session, {each.host for each in chosen}, after=after)
    return Taken(
        [_shown(row, arq) for row, arq in zip(found, arqs, strict=True)],
        {row.rp_uuid for row in found} if outbox.tells(session, outbox.PROVIDER) else set(),
    )


def end(lease: int) -> datetime.datetime:
    """When a lease that begins now ends."""
    return timeutils.utcnow() + datetime.timedelta(seconds=lease)


def private(uuid: str) -> str:
    """The name of the profile that is an allocation's own."""
    return f'allocation-{uuid}'


def _moves(
    ctxt: context.RequestContext, row: sa.Row[typing.Any], at: datetime.datetime
) -> list[dict[str, typing.Any]]:
    place = {'hostname': row.host, 'device_rp_uuid': row.rp_uuid, 'accelerator_uuid': row.uuid}
    return model.ARQ().moved('Bound', None, ctxt.request_id, at, **place)


_device = model.Device
_of_class = sa.and_(
    model.Attribute.deployable_id == model.Deployable.id, model.Attribute.key == 'rc'
)
#: What an allocation shows of handles.
_HANDLES = (
    sa.select(
        model.AttachHandle.id,
        model.AttachHandle.uuid,
        model.AttachHandle.attach_type,
        model.AttachHandle.attach_info,
        model.AttachHandle.form,
        model.Deployable.rp_uuid,
        model.Deployable.driver_name.label('driver'),
        _device.uuid.label('device_uuid'),
        _device.hostname.label('host'),
        *(_device.type, _device.model, _device.address, _device.numa_node, _device.vendor_board),
        *(model.Attribute.value.label('resource_class'),),
    )
    .join(model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id)
    .join(_device)
    .outerjoin(model.Attribute, _of_class)
    .where(model.AttachHandle.id.in_(sa.bindparam('ids', expanding=True)))
)


def _handles(session: orm.Session, ids: list[int]) -> dict[int, sa.Row[typing.Any]]:
    """What an allocation shows of these handles, by their ids."""
    return {row.id: row for row in query.run(session, _HANDLES, {'ids': ids})}


def _shown(row: sa.Row[typing.Any], arq: str) -> dict[str, typing.Any]:
    shown = {name: getattr(row, name) for name in ACCELERATOR}
    return shown | {'arq_uuid': arq, 'ids': devices.ids_of_part(row.vendor_board, row.attach_info)}

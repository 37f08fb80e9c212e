# SPDX-License-Identifier: Apache-2.0
"""Leases from a reservation: it goes on holding what processes lease from it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import reserving
from cyborg_lite.conductor import serving
from cyborg_lite.db import query
from cyborg_lite.model import base

_kind = model.Allocation


def draw(
    session: orm.Session,
    ctxt: context.RequestContext,
    reservation: str,
    count: int | None,
    request: allocating.Request,
    host: str,
    uuid: str,
) -> str:
    """Lease for a process from an active reservation of its project; returns the uuid.

    The reservation goes on holding the accelerators: they are counted once, and are there again
    for the next process.

    :param reservation: its uuid or name.
    :param count: how many; None for all that no other process has.
    :param host: the host of the process.
    :raises cyborg_lite.exception.NotFound: when the project has no such reservation.
    :raises cyborg_lite.exception.Conflict: when it has not started, or has too few.
    """
    digest = allocating.digest_of(request)
    if same := allocating.earlier(session, ctxt, request, digest):
        return same
    columns = _kind.id, _kind.uuid, _kind.state, _kind.starts_at, _kind.cause, _kind.groups
    found = session.execute(
        sa.select(*columns, _kind.accelerators, _kind.profile, _kind.wish)
        .where(
            _kind.project_id == ctxt.project_id,
            sa.or_(_kind.uuid == reservation, _kind.active_name == reservation),
            _kind.starts_at.is_not(None),
            _kind.state.in_(('reserved', 'active')),
        )
        .with_for_update()
    ).one_or_none()
    if found is None:
        raise exception.NotFound(what='Reservation', id=reservation)
    here = [each for each in found.accelerators if each['host'] == host]
    has = _most(found.wish) if found.state == 'reserved' else len(here)
    if (wanted := count or 1) > has:
        raise exception.Conflict(
            reason=f'Reservation {found.uuid} has only {has} accelerators on host {host}: it '
            f'cannot give {wanted}'
        )
    # By its start an agent knows when to ask again.
    waits = {'starts_at': found.starts_at.isoformat(), 'has': has}
    if found.state == 'reserved':
        why = found.cause or f'It starts at {base.iso(found.starts_at)}.'
        raise exception.Conflict(
            reason=f'Reservation {found.uuid} holds nothing yet: {why}',
            in_use=found.cause == reserving.WAITS,
            **waits,
        )
    drawn = sa.select(_kind.accelerators).where(
        _kind.reservation_uuid == found.uuid, _kind.state == 'active'
    )
    taken = {each['uuid'] for held in session.scalars(drawn) for each in held}
    # Whoever had a lease of it before may still have it open: see leaving.
    open_ = set(
        session.scalars(
            sa.select(model.Device.address).where(
                model.Device.hostname == host, model.Device.rogue.is_not(None)
            )
        )
    )
    left = [x for x in here if x['uuid'] not in taken and x['address'] not in open_]
    if len(left) < wanted:
        # What others use comes free: an agent asks again, as before the start.
        raise exception.Conflict(
            reason=f'Reservation {found.uuid} has {has} accelerators on host {host}, and '
            f'{len(left)} are left: expected at least {wanted}.',
            in_use=True,
            reservation=found.uuid,
            **waits,
        )
    profile = model.DeviceProfile(groups=[], private=True)
    row = allocating.row_of(ctxt, uuid, request, profile, digest) | {
        'state': 'active',
        'groups': found.groups,
        'profile': found.profile,
        'accelerators': left[:count],
        'reservation_uuid': found.uuid,
    }
    session.execute(sa.insert(_kind), [row])
    query.matched(session, sa.update(_kind).where(_kind.id == found.id).values(claim_by=None))
    return uuid


def _most(wish: serving.Wish) -> int:
    """The most accelerators that a reservation may have: at its start one alternative is chosen."""
    groups = [[sum(profiles.resources(x).values()) for x in each] for each in wish['alternatives']]
    return max(map(sum, groups))

# SPDX-License-Identifier: Apache-2.0
"""Adopt a process: lease to it the very cards that it uses already, without a lease.

Nobody waits for a card that is ``rogue``, since it is given to nobody: so nothing is chosen.  What
no report has told as used is leased only while nobody waits in line.
"""

from __future__ import annotations

import collections
import collections.abc

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import leaving
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import taking
from cyborg_lite.db import candidates
from cyborg_lite.db import query
from cyborg_lite.db import queue


def adopt(
    session: orm.Session,
    ctxt: context.RequestContext,
    host: str,
    addresses: collections.abc.Collection[str],
    request: allocating.Request,
    uuid: str,
) -> tuple[str, list[str]]:
    """Allocate these cards of a host that is locked, all or none, although processes use them.

    :param addresses: of the cards; the agent has seen that the process uses them, and that no
        process of another user does.
    :param request: without groups: what is allocated follows from the cards.
    :returns: as allocating.create does.
    :raises cyborg_lite.exception.Conflict: when a card is not of the host, is in several parts, or
        could not be allocated if it were not used; when no report has told of its use, and others
        wait in line.
    :raises cyborg_lite.exception.OverQuota: when it exceeds the quota of the project.
    """
    digest = allocating.digest_of(request)
    if same := allocating.earlier(session, ctxt, request, digest):
        return same, []
    known = _forget_use(session, host, addresses)
    if known < len(addresses) and session.scalar(sa.select(queue.ANY)):
        raise exception.Conflict(
            reason=f'Host {host} has not reported yet that processes use {", ".join(addresses)}, '
            'and others wait in line: try again after its next report'
        )
    found = candidates.of_cards(session, host, addresses, request.get('lease'))
    for address in addresses:
        _refuse_unfit(host, address, [each.state for each in found if each.address == address])
    amounts = collections.Counter(each.resource_class for each in found)
    groups = [{f'resources:{name}': str(amount)} for name, amount in sorted(amounts.items())]
    profile = model.DeviceProfile(groups=groups, private=True)
    # In the order of the groups.
    ids = [each.id for each in sorted(found, key=lambda each: (each.resource_class, each.id))]
    chosen = taking.details(session, ids, ctxt.project_id or '')
    taken = taking.take(session, ctxt, uuid, profile, chosen, after=outbox.TELL)
    allocating.store(session, allocating.row_of(ctxt, uuid, request, profile, digest), taken)
    return uuid, sorted(taken.providers)


def _forget_use(session: orm.Session, host: str, addresses: collections.abc.Collection[str]) -> int:
    """Forget that processes use these cards, so that it keeps nobody from them; returns of how many
    it was known.

    The next report is looked at even if it is equal to the last: once the lease has ended, the use
    counts again.
    """
    device = model.Device
    cards = device.hostname == host, device.address.in_(addresses), device.rogue.is_not(None)
    query.matched(session, sa.update(model.Host).where(model.Host.name == host).values(digest=None))
    forget = sa.update(device).where(*cards).values(leaving.NOTHING)
    return query.matched(session, forget)


def _refuse_unfit(host: str, address: str, states: list[str]) -> None:
    """Refuse a card by the states of its accelerators."""
    if len(states) == 1 and states[0] == 'free':
        return
    if not states:
        said = 'no accelerator of it is given out'
    elif len(states) > 1:
        said = f'it has {len(states)} parts, and which of them the process uses is not known'
    else:
        said = f'it is {states[0]}'
    raise exception.Conflict(reason=f'Card {address} of host {host} cannot be leased: {said}')

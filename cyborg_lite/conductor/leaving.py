# SPDX-License-Identifier: Apache-2.0
"""Cards that an allocation has left: none is given out before its host has looked who has it open.

An allocation may end while processes still have its cards open: it was deleted, or its time is
over.  Its cards are noted as used, in the transaction that frees them.  A report takes the note
away if its agent looked at the processes after that, and did not count those of the allocation as
users with a lease.

Which look came after a note is told by reports, without a clock: a report says which one was
accepted before its look began.  The note holds the last report that was accepted before it; so a
look that began after a later one was accepted began after the note.

Hosts whose agents look at no processes have no notes.
"""

from __future__ import annotations

import collections
import collections.abc

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.conductor import heartbeat
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from cyborg_lite.db import query

_DEVICE, _HOST, _KIND = model.Device, model.Host, model.Allocation
_ALLOCATION: sa.BindParameter[str] = sa.bindparam('allocation')
_HELD = (
    sa.select(model.Deployable.device_id)
    .join(model.AttachHandle, model.AttachHandle.deployable_id == model.Deployable.id)
    .join(model.ARQ, model.ARQ.attach_handle_id == model.AttachHandle.id)
)
#: The cards of which an allocation holds a part, and nobody else does.
_CARDS = sa.and_(
    _DEVICE.id.in_(_HELD.where(model.ARQ.allocation_uuid == _ALLOCATION)),
    _DEVICE.id.not_in(_HELD.where(model.ARQ.allocation_uuid.is_distinct_from(_ALLOCATION))),
)
_MINE = sa.and_(_HOST.name == _DEVICE.hostname, _HOST.observes)
_SEEN = sa.select(_HOST.boot_id + ' ' + sa.cast(_HOST.sequence, sa.String(20))).where(_MINE)
_NOTE = (
    sa.update(_DEVICE)
    .where(sa.exists().where(_MINE))
    .values(rogue=sa.bindparam('use'), left_after=_SEEN.scalar_subquery())
)
#: Made once: most allocations that end hold requests of their own.
_NOTE_HELD = _NOTE.where(_CARDS)


def use(uuid: str) -> str:
    """The text that shows as the use of a card that this allocation has left."""
    return f'whoever had lease {uuid}, until its host has looked'


def note(session: orm.Session, allocation: model.Allocation, names: list[str]) -> None:
    """Note of the cards of an active allocation that it leaves them.

    It is not known of the parts of a card who has which open: cards of which others hold parts are
    left out.

    :param names: the hosts of them whose agents look at processes, which are locked: their next
        reports are looked at even if they say what the last ones said.
    """
    if not names:
        return
    values = {'allocation': allocation.uuid, 'use': use(allocation.uuid)}
    drawn = allocation.reservation_uuid is not None
    noted = _NOTE.where(_drawn(session, allocation)) if drawn else _NOTE_HELD
    if query.matched(session, noted, values):
        anew = sa.update(_HOST).where(_HOST.name.in_(names)).values(digest=None)
        query.matched(session, anew)
        outbox.put(session, outbox.LOOK, hosts.messages(names))


def _drawn(session: orm.Session, lease: model.Allocation) -> sa.ColumnElement[bool]:
    """The cards of a lease from a reservation, which goes on holding them, without those of which
    other leases from it have parts.
    """
    others = sa.select(_KIND.accelerators).where(
        _KIND.reservation_uuid == lease.reservation_uuid,
        _KIND.state == 'active',
        _KIND.id != lease.id,
    )
    kept = {(x['host'], x['address']) for held in session.scalars(others) for x in held or ()}
    mine = {(x['host'], x['address']) for x in lease.accelerators or ()} - kept
    by_host = collections.defaultdict(list)
    for host, address in sorted(mine):
        by_host[host].append(address)
    return sa.or_(
        sa.false(),
        *(
            sa.and_(_DEVICE.hostname == host, _DEVICE.address.in_(addresses))
            for host, addresses in by_host.items()
        ),
    )


def keep(
    found: model.Device, known: model.Device, report: heartbeat.Frame, held: bool, fresh: bool
) -> bool:
    """Keep the note of a card, or take it away.

    :param found: as it was reported.
    :param known: a card with a note.
    :param held: whether a request holds it: that of a reservation, from which a lease had it.
    :param fresh: whether its driver has looked since the last report: the pids of some cards are
        known from it.
    :returns: whether the next report has to look at it, even if it says the same.
    """
    if not _has_looked(known, report, fresh):
        # Whoever else has it open may close it before the agent knows.
        found.rogue = known.rogue
        return True
    if not (held and found.rogue):
        known.left_after = None
    return False


def _has_looked(card: model.Device, report: heartbeat.Frame, fresh: bool) -> bool:
    """Whether the agent has looked who has a card open, after it was noted."""
    if not report.get('observes'):
        # Nobody looks any more.
        return True
    boot, _, before = (card.left_after or '').rpartition(' ')
    if boot != report['boot_id']:
        # No process has outlived it.
        return True
    known = report.get('leases')
    if not fresh or known is None or report.get('looked_after', 0) <= int(before):
        return False
    return all(use(uuid) != card.rogue for uuid in known)

# SPDX-License-Identifier: Apache-2.0
"""Cards that an allocation has left: none is given out before its host has looked who has it open.

An allocation may end while processes still have its cards open: it was deleted, or its time is
over.  Its cards are noted as used, in the transaction that frees them.  A report takes the note
away if its agent looked at the processes after that, and did not count those of the allocation as
users with a lease.

Which look came after a note is told by reports, without a clock: a report says which one was
accepted before its look began.  The note holds the last report that was accepted before it; so a
look that began after a later one was accepted began after the note.

Hosts whose agents look at no processes have no notes.  The note of a card that is held under an old
name of its host is made under the present one.

While a driver does not answer, the notes of its cards stay.  An operator who knows that nobody has
such a card open disables it, and enables it again: that forgets the note.
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
from cyborg_lite.db import exclusion
from cyborg_lite.db import query

_DEVICE, _HOST, _KIND = model.Device, model.Host, model.Allocation
_ALLOCATION: sa.BindParameter[str] = sa.bindparam('allocation')
_NAMES: sa.BindParameter[list[str]] = sa.bindparam('names', expanding=True)
_HELD = sa.exists().where(
    model.Deployable.device_id == _DEVICE.id,
    model.AttachHandle.deployable_id == model.Deployable.id,
    model.ARQ.attach_handle_id == model.AttachHandle.id,
)
#: The cards of which an allocation holds a part, also under an old name of the host, and nobody
#: else does.
_CARDS = sa.and_(
    # First: without it MariaDB reads all cards.
    _DEVICE.hostname.in_(_NAMES),
    sa.or_(
        _HELD.where(model.ARQ.allocation_uuid == _ALLOCATION),
        exclusion.held_under_old_name(_ALLOCATION),
    ),
    ~_HELD.where(model.ARQ.allocation_uuid.is_distinct_from(_ALLOCATION)),
)
_named = orm.aliased(_HOST)
#: The name under which the host of a card reports.
_NAME = (
    sa.select(sa.func.coalesce(_named.renamed_to, _named.name))
    .where(_named.name == _DEVICE.hostname)
    .correlate(_DEVICE)
    .scalar_subquery()
)
_MINE = sa.and_(_HOST.name == _NAME, _HOST.observes)
_SEEN = sa.select(_HOST.boot_id + ' ' + sa.cast(_HOST.sequence, sa.String(20))).where(_MINE)
_NOTE = (
    sa.update(_DEVICE)
    .where(sa.exists().where(_MINE))
    .values(rogue=sa.bindparam('use'), left_after=_SEEN.scalar_subquery())
)
#: Made once: most allocations that end hold requests of their own.
_NOTE_HELD = _NOTE.where(_CARDS)
#: How each note begins, and how it goes on while a driver does not answer.
_WHOEVER, _SILENT = 'whoever had lease ', ': driver '
#: The columns of a card without a note.
NOTHING: dict[str, None] = {'rogue': None, 'left_after': None}


def use(uuid: str) -> str:
    """The text that shows as the use of a card that this allocation has left."""
    return f'{_WHOEVER}{uuid}, until its host has looked'


def note(
    session: orm.Session,
    uuid: str,
    found: list[tuple[str, bool]],
    lease: model.Allocation | None = None,
) -> None:
    """Note of the cards of an allocation that it leaves them.

    It is not known of the parts of a card who has which open: cards of which others hold parts are
    left out.

    :param found: its hosts, which are locked, and of each whether its agent looks at processes: the
        next reports of those are looked at even if they say what the last ones said.
    :param lease: the allocation, if it is a lease from a reservation.
    """
    names = [name for name, observes in found if observes]
    if not names:
        return
    values = {'allocation': uuid, 'use': use(uuid), 'names': names}
    noted = _NOTE_HELD if lease is None else _NOTE.where(_drawn(session, lease))
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


def is_noted(card: model.Device) -> bool:
    """Whether a card has a note; a conductor of the release before makes one of a text alone."""
    return card.left_after is not None or (card.rogue or '').startswith(_WHOEVER)


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
    # One without a moment is counted from now.
    known.left_after = known.left_after or f'{report["boot_id"]} {report["sequence"]}'
    boot, _, before = known.left_after.rpartition(' ')
    # Nobody looks at processes any more, or none has outlived the boot.
    over = not report.get('observes') or boot != report['boot_id']
    looked = _has_looked(known, report, int(before))
    if over or (looked and fresh):
        if not (held and found.rogue):
            known.left_after = None
        return False
    # Whoever else has it open may close it before the agent knows.
    text = (known.rogue or found.rogue or '').partition(_SILENT)[0]
    if looked:
        drivers = sorted({part.driver_name for part in found.deployables})
        text += f'{_SILENT}{", ".join(drivers):.100} has not answered since'
    found.rogue = text or None
    return True


def _has_looked(card: model.Device, report: heartbeat.Frame, before: int) -> bool:
    """Whether the agent has looked who has a card open, after it was noted.

    :param before: the last report that was accepted before the note.
    """
    known = report.get('leases')
    if known is None or report.get('looked_after', 0) <= before:
        return False
    return not any((card.rogue or '').startswith(use(uuid)) for uuid in known)

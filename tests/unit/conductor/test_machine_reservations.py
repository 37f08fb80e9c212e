# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to reservations, beside all that happens to what waits and is leased.

What is promised to a reservation is given to nobody for longer than until its start, and to no
other reservation for that time; nor does a project get beyond its quota by one.
"""

import collections
import datetime
import math

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from tests.unit.conductor import test_machine_queue as queue

HOUR = datetime.timedelta(hours=1)
#: An hour has passed since an allocation came: it waits before all that came later.
PATIENCE = HOUR

PROMISES = (
    sa.select(
        model.Promise.allocation_uuid,
        model.Promise.starts_at,
        model.Promise.ends_at,
        model.AttachHandle.attach_info,
    )
    .outerjoin(model.AttachHandle, model.AttachHandle.uuid == model.Promise.accelerator_uuid)
    .order_by(model.Promise.id)
)


class Rows(queue.Rows):
    def __init__(self, session):
        super().__init__(session)
        #: by reservation the cards that are kept for it; None for one that is gone
        self.kept = collections.defaultdict(list)
        for row in session.execute(PROMISES):
            bus = row.attach_info and row.attach_info['bus']
            self.kept[row.allocation_uuid].append(bus)
            reserved = self.allocations[row.allocation_uuid]
            assert reserved.state == 'reserved', 'it is kept for nobody'
            assert (row.starts_at, row.ends_at) == (reserved.starts_at, reserved.lease_ends_at)

    def end(self, arq):
        """When a request gives back what it holds at the latest; None if it may stay."""
        holder = self.allocations.get(self.arqs[arq].allocation_uuid)
        return holder and holder.lease_ends_at

    def harms(self):
        """The requests that hold for longer what is kept for a reservation, each with that."""
        return {
            (arq, uuid)
            for arq, bus in self.buses.items()
            for uuid, kept in self.kept.items()
            if bus in kept and _after(self.end(arq), self.allocations[uuid].starts_at)
        }


class Reservations(queue.Queue):
    made = stateful.Bundle('made')
    reserved = stateful.Bundle('reserved')

    ROWS = Rows
    # Only hours pass: reservations start and end at whole ones.
    STEP = datetime.timedelta(0)
    # The other machine does these, which leaves more steps to reservations.
    hold_twice = race = unbind = None

    def __init__(self, databases):
        #: when each allocation came
        self.since: dict[str, datetime.datetime] = {}
        #: the reservations from which a process has leased
        self.claimed: set[str] = set()
        #: those that hold, and may stay, what was promised to a reservation afterwards
        self.harms: set[tuple[str, str]] = set()
        self.seen: dict[str, str] = {}
        super().__init__(databases)

    @stateful.initialize(target=made)
    def begin(self):
        """Some is held for a time, and both projects wait."""
        wanted = [('p1', 1, None), ('p2', 1, 60), ('p1', 1, 5400), ('p2', 2, None), ('p1', 1, 60)]
        return stateful.multiple(
            *(self._allocate(project, amount, 0, True, lease) for project, amount, lease in wanted)
        )

    @stateful.initialize(target=reserved)
    def begin_to_reserve(self):
        """Before that, or after it; one project is soon at its limit."""
        self.change_limit('p1', 2)
        return stateful.multiple(
            self._reserve('p1', 1, self._window(1, 2)), self._reserve('p2', 2, self._window(2, 2))
        )

    # What clients do

    @stateful.rule(
        target=reserved,
        project=queue.PROJECTS,
        amount=st.integers(1, 3),
        after=st.integers(1, 3),
        hours=st.integers(1, 2),
    )
    def reserve(self, project, amount, after, hours):
        window = self._window(after, hours)
        enough = amount <= len(self._keepable(window))
        within = self._reserved(project, window) + amount <= self._limit(project)
        try:
            uuid = self._reserve(project, amount, window)
        except exception.OverQuota:
            assert enough
            assert not within
            return stateful.multiple()
        except (exception.Conflict, exception.CannotAllocate):
            assert not enough
            return stateful.multiple()
        assert enough, 'promised twice'
        assert within, 'beyond the limit'
        return uuid

    def _window(self, after, hours):
        start = self.now + after * HOUR
        return start, start + hours * HOUR

    def _reserve(self, project, amount, window):
        start, end = window
        lease = round((end - start).total_seconds())
        wish = queue._wish(amount, 0, False, lease) | {'starts_at': start.isoformat()}
        uuid = self._ask('create_reservation', project, request=wish)
        self._note(uuid, project, amount, 0, lease)
        self._look()
        # What is kept may be of no use any more to those that wait for longer.
        self._look_around()
        return uuid

    @stateful.rule(target=made, uuid=reserved, count=st.none() | st.integers(1, 2))
    def draw(self, uuid, count):
        """A process leases from a reservation."""
        project = self.wanted[uuid].project
        process = {'boot_id': 'b-1', 'pid': len(self.wanted), 'started': 1, 'uid': 1000}
        process |= {'user': project, 'command': 'python'}
        request = {'reservation': uuid} | ({'count': count} if count else {})
        asked = {'process': process, 'request': request, 'policy': 'binpack', 'projects': {}}
        state, left = self.rows.allocations[uuid].state, self._undrawn(uuid)
        try:
            made, _ = self._ask('_lease', None, host=self.name, agent=queue.AGENT, **asked)
        except exception.NotFound:
            assert state == 'released'
            return stateful.multiple()
        except exception.Conflict:
            assert state == 'reserved' or (state == 'active' and len(left) < (count or 1))
            return stateful.multiple()
        assert state == 'active'
        self._look()
        got = {each['uuid'] for each in self.rows.allocations[made].accelerators}
        assert got <= left, 'leased twice'
        assert len(got) == (count or len(left))
        self.claimed.add(uuid)
        self._note(made, project, len(got), 0, None)
        return made

    @stateful.rule(target=made, uuid=reserved, hours=st.sampled_from([1, 2]))
    def draw_in_time(self, uuid, hours):
        """It has to have started, and not to have lapsed: that is rare otherwise."""
        self.expire(hours)
        self.all_holds()
        return self.draw(uuid, None)

    @stateful.rule(uuid=stateful.consumes(reserved))
    def cancel_reservation(self, uuid):
        self._ask('release_allocation', uuid=uuid)

    @stateful.rule(uuid=made | reserved, lease=st.sampled_from([60, 5400, 12600]))
    def renew(self, uuid, lease):
        end = self.now + datetime.timedelta(seconds=lease)
        row, held = self.rows.allocations[uuid], self._cards(uuid)
        needed = [
            self.rows.allocations[other].starts_at
            for other, kept in self.rows.kept.items()
            if held & {*kept}
        ]
        can = row.state == 'active' and all(end <= start for start in needed)
        try:
            self._ask('renew_allocation', uuid=uuid, lease=lease)
        except exception.Conflict:
            assert not can
        else:
            assert can

    # What else happens

    @stateful.rule(hours=st.sampled_from([1, 1, 1, 2]))
    def expire(self, hours):
        """Time passes; its host reports, and the healer looks."""
        self._look()
        before, self.now = self.rows, self.now + hours * HOUR
        with self.rival.database.writer() as session:
            session.execute(sa.update(model.Host).values(seen_at=self.now))
        self._surely(lambda: self.conductor._manager.healer.heal())
        self._look()
        if self._close():
            self._surely(lambda: self.conductor._manager.healer.heal())
            self._look()
        for uuid, row in before.allocations.items():
            ended = row.lease_ends_at is not None and row.lease_ends_at <= self.now
            missed = row.claim_by is not None and row.claim_by <= self.now
            held = row.state in ('active', 'reserved')
            if held and (ended or missed):
                assert self.rows.allocations[uuid].state == 'released'
                assert ended or uuid not in self.claimed, 'it was used'
            elif held and not row.reservation_uuid:
                assert self.rows.allocations[uuid].state == row.state
        for uuid in self.rows.of('reserved'):
            row, fit = self.rows.allocations[uuid], self._usable()
            if not {*self.rows.kept[uuid]} <= fit or len(self.rows.kept[uuid]) < self._amount(uuid):
                window = max(row.starts_at, self.now), row.lease_ends_at
                assert len(self._keepable(window, uuid)) < self._amount(uuid), 'not mended'

    def _close(self):
        """Processes close what their leases had, and the agent tells so: returns whether there was
        anything to close.
        """
        left = {bus for bus, card in self.cards.items() if not card.absences}
        noted = {row.rogue for row in self.rows.devices.values()} - {None}
        if noted and left:
            self.report(left)
            self._look()
        return bool(noted)

    # What holds whatever happened

    @stateful.invariant()
    def all_holds(self):
        self._look()
        self._close()
        super().all_holds()

    def _look(self):
        super()._look()
        harms = self.rows.harms()
        for arq, _ in harms - self.harms:
            assert self.seen.get(arq) == self.rows.buses[arq], 'given beyond the start of another'
            assert self.rows.end(arq) is None, 'held beyond the start of another'
        self.harms, self.seen = harms, self.rows.buses

    @stateful.invariant()
    def promises_hold(self):
        rows = self.rows.allocations
        assert {*self.rows.kept} <= {*self.rows.of('reserved')}
        for uuid, kept in self.rows.kept.items():
            assert len(kept) == len({*kept}) <= self._amount(uuid)
            for other in self.rows.kept.keys() - {uuid}:
                apart = not _overlap(rows[uuid], (rows[other].starts_at, rows[other].lease_ends_at))
                assert apart or not {*kept} & {*self.rows.kept[other]} - {None}, 'promised twice'
        for row in rows.values():
            if row.reservation_uuid and row.state == 'active':
                assert rows[row.reservation_uuid].state == 'active', 'it outlives its reservation'

    def _told(self):
        return [row.payload for row in self.rows.told if row.due_at <= self.now]

    def _deliver(self):
        for message in self._told():
            self.conductor._manager._serve_queue(message)

    def _begin(self, given, after):
        """Reservations come before the queue: each has its own cards, or others if they are free,
        or waits.
        """
        used, holds, free = super()._begin(given, after)
        late = any(message.get('late') for message in self._told())
        for uuid in self._late():
            wanted = self.wanted[uuid]
            end = self.rows.allocations[uuid].lease_ends_at
            kept = self.rows.kept.pop(uuid, [])
            own = free & {*kept}
            lease = math.ceil((end - self.now).total_seconds())
            fit = own if len(own) >= wanted.amount else own | self._fit(free, lease)
            room = self._limit(wanted.project) - used[wanted.project]
            if wanted.amount > min(len(fit), room):
                assert not given.get(uuid), 'it cannot have started'
                # It may be promised others then.
                self.rows.kept[uuid] = after.kept[uuid] if after else kept
                continue
            assert late, 'nobody is told'
            cards = given.get(uuid)
            assert cards, 'it has not started'
            assert cards <= fit, 'it has what others need'
            free -= cards
            used[wanted.project] += wanted.amount
            holds[wanted.project] += wanted.amount
        return used, holds, free

    def _late(self):
        """The reservations that have to start, in order."""
        rows = map(self.rows.allocations.get, self.rows.of('reserved'))
        late = [row for row in rows if row.starts_at <= self.now < row.lease_ends_at]
        return [row.uuid for row in sorted(late, key=lambda row: row.starts_at)]

    def _fit(self, cards, lease):
        """The cards that no reservation needs within a second after the end of such a lease."""
        end = None if lease is None else self.now + datetime.timedelta(seconds=lease + 1)
        needed = {
            bus
            for uuid, kept in self.rows.kept.items()
            if _after(end, self.rows.allocations[uuid].starts_at)
            for bus in kept
        }
        return cards - needed

    def _turn(self, uuid, got):
        old = self.since[uuid] <= self.now - PATIENCE
        number = self.wanted[uuid].number
        return (0, number) if old else (1, *super()._turn(uuid, got))

    def _note(self, uuid, *wanted):
        super()._note(uuid, *wanted)
        self.since[uuid] = self.now

    def _keepable(self, window, but=None):
        """The cards that can be kept for a reservation, also if a holder may stay."""
        start, _ = window
        held = {
            bus
            for arq, bus in self.rows.buses.items()
            if (end := self.rows.end(arq)) is not None and end > start
        }
        kept = {
            bus
            for uuid, kept in self.rows.kept.items()
            if uuid != but and _overlap(self.rows.allocations[uuid], window)
            for bus in kept
        }
        return self._usable() - held - kept

    def _usable(self):
        return {bus for bus, card in self.cards.items() if card.enabled and not card.absences}

    def _reserved(self, project, window):
        """What a project has reserved for a time."""
        return sum(
            self._amount(uuid)
            for uuid in self.rows.of('reserved')
            if self.wanted[uuid].project == project
            and _overlap(self.rows.allocations[uuid], window)
        )

    def _amount(self, uuid):
        return self.wanted[uuid].amount

    def _undrawn(self, reservation):
        """What no process has leased from a reservation."""
        rows = self.rows.allocations
        own = {each['uuid'] for each in rows[reservation].accelerators}
        for row in rows.values():
            if row.reservation_uuid == reservation and row.state == 'active':
                own -= {each['uuid'] for each in row.accelerators}
        return own

    def _cards(self, uuid):
        arqs = self.rows.arqs
        return {b for arq, b in self.rows.buses.items() if arqs[arq].allocation_uuid == uuid}


def _after(end, start):
    """Whether something ends after a start; None for never."""
    return end is None or end > start


def _overlap(row, window):
    return row.starts_at < window[1] and row.lease_ends_at > window[0]


@pytest.mark.parametrize('part', range(queue.PARTS))
def test_machine(databases, part):
    machine = hypothesis.seed(part)(lambda: Reservations(databases))
    stateful.run_state_machine_as_test(machine, settings=queue.SETTINGS)

# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to requests, to allocations and to what they want, in any order, beside a few
dicts: also if a conductor dies, or two of them count at once.
"""

import collections
import contextlib
import dataclasses
import datetime
import itertools
import unittest.mock
import uuid as uuidlib

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
from oslo_db import exception as db_exception
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import quotas
from cyborg_lite.db import usages
from tests import support
from tests.unit.conductor import direct
from tests.unit.conductor import faulty
from tests.unit.conductor import search
from tests.unit.conductor import spans

#: The runs are split, so that several processes can share them: 200 in all, of 50 steps each, half
#: of them in test_machine_reservations.
PARTS = 2
SETTINGS = search.settings(50, nightly=250, steps=50)

BUSES = ('3b', '5e', '7a')
BUS = st.sampled_from(BUSES)
NAMES = (support.HOST, 'host-2')
AGENT = 'agent-1'
ABSENCES = 3
UNLIMITED = 99
PROJECTS = st.sampled_from(['p1', 'p2'])
BEGIN = datetime.datetime(2026, 11, 27, 18)
#: In seconds. A minute ends before all that starts at a full hour.
LEASES = st.sampled_from([None, 60, 5400])
#: The ways to ask for one accelerator at once.
DOORS = st.sampled_from(['create_arqs', 'create_allocation'])


ARQS = sa.select(
    model.ARQ.uuid,
    model.ARQ.project_id,
    model.ARQ.state,
    model.ARQ.revision,
    model.ARQ.allocation_uuid,
    model.ARQ.attach_handle_id,
    model.ARQ.device_profile_id,
    model.ARQ.moves,
)
ALLOCATIONS = sa.select(
    model.Allocation.uuid,
    model.Allocation.state,
    model.Allocation.starts_at,
    model.Allocation.lease_ends_at,
    model.Allocation.claim_by,
    model.Allocation.reservation_uuid,
    model.Allocation.accelerators,
).order_by(model.Allocation.id)
HANDLES = sa.select(model.AttachHandle.id, model.AttachHandle.attach_info)
DEVICES = (
    sa.select(
        *(model.Device.address, model.Device.uuid, model.Device.status, model.Device.rogue),
        model.Deployable.rp_uuid,
    )
    .select_from(model.Device)
    .join(model.Deployable)
)
USAGES = sa.select(model.Usage.arq_uuid)
TOLD = sa.select(model.Message.payload, model.Message.due_at).where(
    model.Message.kind == outbox.QUEUE
)


class Rows:
    """The rows of the database at one time."""

    def __init__(self, session):
        self.arqs = {row.uuid: row for row in session.execute(ARQS)}
        self.allocations = {row.uuid: row for row in session.execute(ALLOCATIONS)}
        self.devices = {row.address: row for row in session.execute(DEVICES)}
        self.usages = [*session.scalars(USAGES)]
        #: what a conductor is told to serve the queue
        self.told = [*session.execute(TOLD)]
        buses = {row.id: row.attach_info['bus'] for row in session.execute(HANDLES)}
        #: the bus of each request that holds a card
        self.buses = {
            row.uuid: buses[row.attach_handle_id]
            for row in self.arqs.values()
            if row.attach_handle_id
        }

    def given(self, before):
        """By allocation the cards that it holds now, and that nobody has held before."""
        found = collections.defaultdict(set)
        for uuid, bus in self.buses.items():
            if uuid not in before.buses:
                found[self.arqs[uuid].allocation_uuid].add(bus)
        return found

    def of(self, state):
        """The allocations in a state, in the order of their arrival."""
        return [row.uuid for row in self.allocations.values() if row.state == state]


@dataclasses.dataclass
class Card:
    enabled: bool = True
    #: the number of reports in a row that lack it
    absences: int = 0
    #: the last report before an allocation left it; None once it is known to be closed
    left_after: int | None = None


@dataclasses.dataclass
class Request:
    """A request that is not part of an allocation."""

    project: str
    state: str = 'Initial'


@dataclasses.dataclass
class Wanted:
    """What an allocation asks for."""

    #: it grows with the time of arrival
    number: int
    project: str
    amount: int
    priority: int
    lease: int | None = None


class Queue(stateful.RuleBasedStateMachine):
    made = stateful.Bundle('made')
    requests = stateful.Bundle('requests')

    ROWS = Rows
    #: How long a step takes. All that have a lease of a minute have it until they expire.
    STEP = datetime.timedelta(seconds=1.1)

    def __init__(self, databases):
        super().__init__()
        self.now, self.cleanup = BEGIN, contextlib.ExitStack()
        self.cleanup.enter_context(
            unittest.mock.patch.object(timeutils, 'utcnow', lambda: self.now)
        )
        self.url = self.cleanup.enter_context(databases.empty())
        self.conductor = faulty.Mortal(self.url)
        self.cleanup.callback(lambda: self.conductor.close())
        self.rival = faulty.Rival(self.url)
        self.cleanup.callback(self.rival.close)
        profile = {'name': 'one', 'groups': [{'resources:FPGA': '1'}]}
        self._ask('create_device_profile', profile=profile)
        self.name, self.sequence = NAMES[0], 0
        #: whether the agent looks who has which card open
        self.observes = False
        self.cards: dict[str, Card] = {}
        self.arqs: dict[str, Request] = {}
        self.wanted: dict[str, Wanted] = {}
        #: the limits of projects, and the default one
        self.limits: dict[str, int] = {}
        #: when each request held something
        self.spans = spans.Spans()
        self._look()
        self.report(set(BUSES))

    def _look(self):
        before = getattr(self, 'rows', None)
        with self.rival.database.reader() as session:
            self.rows = self.ROWS(session)
        arqs = self.rows.arqs
        if before and self.observes:
            for uuid in before.buses.keys() - self.rows.buses.keys():
                if before.arqs[uuid].allocation_uuid:
                    self.cards[before.buses[uuid]].left_after = self.sequence
        self.spans.see({uuid: arqs[uuid].project_id for uuid in self.rows.buses}, self.now)

    def teardown(self):
        self.cleanup.close()

    @stateful.initialize(target=made, observes=st.booleans())
    def begin(self, observes):
        """All is held, and both projects wait."""
        self.observes = observes
        self.report(set(BUSES))
        wanted = [('p1', 2), ('p2', 1), ('p1', 1), ('p2', 2), ('p1', 1)]
        return stateful.multiple(
            *(self._allocate(project, amount, 0, True, None) for project, amount in wanted)
        )

    # Conductors

    @stateful.rule(number=st.integers(1, 3), done=st.booleans())
    def kill(self, number, done):
        """Soon: the bus delivers the message once more, or the work is taken over."""
        self.conductor.die(number, done)

    def _ask(self, method, caller=None, /, **words):
        ctxt = direct.member(caller) if caller else context.RequestContext(is_admin=True)
        ctxt.call = str(uuidlib.uuid4())
        return self._surely(lambda: getattr(self.conductor, method)(ctxt, **words))

    def _surely(self, work):
        """The result of work, by a second conductor if the first one dies."""
        try:
            return work()
        except faulty.Died:
            self.conductor.close()
            self.conductor = faulty.Mortal(self.url)
            return work()

    def _look_around(self):
        """What is taken may change turns, or exhaust a quota, and nobody is told of it: conductors
        look from time to time.
        """
        self._surely(lambda: self.conductor._manager.healer._wake())

    # What clients do

    @stateful.rule(
        target=made,
        project=PROJECTS,
        amount=st.integers(1, 4),
        priority=st.integers(-1, 1),
        waits=st.booleans(),
        lease=LEASES,
    )
    def allocate(self, project, amount, priority, waits, lease):
        try:
            return self._allocate(project, amount, priority, waits, lease)
        except exception.OverQuota:
            used = 0 if waits else self._used()[project]
            assert used + amount > self._limit(project), 'it is within the limit'
        except exception.CannotAllocate:
            assert not waits
            assert amount > len(self._left(lease)), 'enough are free'
        return stateful.multiple()

    def _allocate(self, project, amount, priority, waits, lease):
        left = self._left(lease)
        wish = _wish(amount, priority, waits, lease)
        uuid = self._ask('create_allocation', project, request=wish)
        self._note(uuid, project, amount, priority, lease)
        self._look()
        queued = uuid in self.rows.of('queued')
        assert queued or amount <= len(left), 'it goes before those that wait'
        self._look_around()
        return uuid

    def _note(self, uuid, project, amount, priority, lease):
        number = len(self.wanted)
        self.wanted[uuid] = Wanted(number, project, amount, priority, lease)

    @stateful.rule(uuid=stateful.consumes(made))
    def cancel(self, uuid):
        self._ask('release_allocation', uuid=uuid)

    @stateful.rule(uuid=made)
    def renew(self, uuid):
        state = self.rows.allocations[uuid].state
        try:
            self._ask('renew_allocation', uuid=uuid, lease=60)
        except exception.Conflict:
            assert state != 'active'
        else:
            assert state == 'active'

    @stateful.rule(target=requests, project=PROJECTS)
    def create(self, project):
        room = self._limit(project) - self._used()[project]
        try:
            [uuid] = self._ask('create_arqs', project, profile='one')
        except exception.OverQuota:
            assert room < 1, 'it is within the limit'
            return stateful.multiple()
        assert room >= 1, 'beyond the limit'
        self.arqs[uuid] = Request(project)
        self._look_around()
        return uuid

    @stateful.rule(uuid=requests, bus=BUS)
    def bind(self, uuid, bus):
        """Nova's requests do not wait in the queue."""
        request, device = self.arqs[uuid], self._device(bus)
        if device is None:
            return
        wish = {'device_rp_uuid': device.rp_uuid, 'project_id': request.project}
        seen = {uuid: self.rows.arqs[uuid].revision}
        ready = request.state in ('Initial', 'Unbound')
        can = bus in self._fit(self._free(), None)
        try:
            wishes = [self.conductor.wish(uuid, bus, self.name, **wish)]
            self._ask('bind', wishes=wishes, seen=seen)
        except exception.CannotBind:
            assert ready and not can
            request.state = 'BindFailed'
        except exception.Conflict:
            # A failure that was noted before the conductor died is not noted again.
            assert not (ready and can)
            request.state = 'BindFailed' if ready else request.state
        else:
            assert ready and can
            request.state = 'Bound'
            self._look()
            assert self.rows.buses[uuid] == bus
            self._look_around()

    @stateful.rule(uuid=requests)
    def unbind(self, uuid):
        self._ask('unbind', uuids=[uuid])
        self.arqs[uuid].state = 'Unbound'

    @stateful.rule(uuid=stateful.consumes(requests))
    def delete(self, uuid):
        del self.arqs[uuid]
        assert self._ask('delete_arqs', uuids=[uuid]) == []

    @stateful.rule(target=made, project=PROJECTS, first=DOORS, second=DOORS)
    def race(self, project, first, second):
        """A second conductor counts when the first one has counted, and has not written yet."""
        room, doors = self._limit(project) - self._used()[project], [second]
        claim, found = quotas.claim, []

        def count(*of):
            claim(*of)
            if doors:
                door = doors.pop()
                try:
                    found.extend(self._enter(self._ask_rival, door, project))
                except faulty.Locked:
                    # It comes once the first one is through.
                    doors.append(door)

        with unittest.mock.patch.object(quotas, 'claim', count):
            found += self._enter(self._ask, first, project)
        found += [each for door in doors for each in self._enter(self._ask, door, project)]
        assert len(found) <= max(room, 0), 'beyond the limit'
        self._look()
        allocations = self.rows.allocations.keys() & {*found}
        self._ask('delete_arqs', uuids=sorted({*found} - allocations))
        for uuid in allocations:
            self._note(uuid, project, 1, 0, None)
        self._look_around()
        return stateful.multiple(*sorted(allocations))

    def _ask_rival(self, method, project, **words):
        return getattr(self.rival, method)(direct.member(project), **words)

    @staticmethod
    def _enter(ask, door, project):
        """Ask for an accelerator; returns the uuid of what is made, if it is not refused."""
        words = {
            'create_arqs': {'profile': 'one'},
            'create_allocation': {'request': _wish(1, 0, False, None)},
        }[door]
        try:
            made = ask(door, project, **words)
        except (exception.OverQuota, exception.CannotAllocate):
            return []
        return [made] if isinstance(made, str) else made

    # What else happens

    @stateful.rule()
    def expire(self):
        over = sa.update(model.Allocation).where(model.Allocation.lease_ends_at.is_not(None))
        with self.rival.database.writer() as session:
            session.execute(over.values(lease_ends_at=datetime.datetime(2000, 1, 1)))
        self._surely(lambda: self.conductor._manager.healer.expire())
        self._look()
        active = map(self.rows.allocations.get, self.rows.of('active'))
        assert not [row for row in active if row.lease_ends_at]

    @stateful.rule(bus=BUS, enabled=st.booleans())
    def disable(self, bus, enabled):
        if device := self._device(bus):
            status = 'enabled' if enabled else 'maintaining'
            self._ask('set_device_status', uuid=device.uuid, status=status)
            card = self.cards[bus]
            if enabled and not card.enabled:
                card.left_after = None
            card.enabled = enabled

    @stateful.rule(found=st.sets(BUS, min_size=1) | st.just(set(BUSES)))
    def lose(self, found):
        """A card that is absent is not given out; one that is held is lost."""
        self.report(found)

    @stateful.rule(before=st.sampled_from([0, 0, 1]))
    def look(self, before):
        """The agent reports who has which card open: nobody.

        :param before: how many reports were accepted while it looked.
        """
        self.report({bus for bus, card in self.cards.items() if not card.absences}, before)

    def report(self, found, before=0):
        about = {'host': self.name, 'machine': 'machine-1'}
        # An agent that looks now is another one: it was started again.
        about['agent'] = 'agent-2' if self.observes else AGENT
        after = max(0, self.sequence - before)
        self.sequence += 1
        about |= {'sequence': self.sequence, 'observes': self.observes}
        if self.observes:
            about |= {'leases': [], 'looked_after': after}
        cards = [support.card(bus) for bus in sorted(found)]
        self._surely(lambda: self.conductor.report(*cards, **about))
        for bus in found:
            card = self.cards.setdefault(bus, Card())
            card.absences = 0
            # A look that began after a report which came after the end has seen it.
            if card.left_after is not None and card.left_after < after:
                card.left_after = None
        for bus in {*self.cards} - {*found}:
            card = self.cards[bus]
            card.absences = min(card.absences + 1, ABSENCES)
            # What an operator ordered outlives the absence of the card.
            held = bus in self.rows.buses.values()
            if card.absences == ABSENCES and card.enabled and not held:
                del self.cards[bus]

    @stateful.rule(name=st.sampled_from(NAMES), found=st.sets(BUS, min_size=1))
    def rename(self, name, found):
        """The host is down until its agent starts again, under its new name."""
        with self.rival.database.writer() as session:
            session.execute(sa.update(model.Host).values(silent=True))
        self._ask('rename_host', name=self.name, to=name)
        self.name = name
        self.report(found)

    @stateful.rule(
        project=PROJECTS | st.just(model.Quota.DEFAULTS), limit=st.sampled_from([None, 1, 2, 3])
    )
    def change_limit(self, project, limit):
        self._ask('update_quota', project=project, limits={'FPGA': limit})
        self.limits.pop(project, None)
        if limit is not None:
            self.limits[project] = limit

    @stateful.rule(project=PROJECTS)
    def hold_twice(self, project):
        """No caller can give a held accelerator to another request."""
        if not self.rows.buses:
            return
        first = self.rows.arqs[min(self.rows.buses)]
        twin = {name: getattr(first, name) for name in ('device_profile_id', 'attach_handle_id')}
        writer = self.rival.database.writer
        with pytest.raises(db_exception.DBDuplicateEntry), writer() as session:
            session.add(model.ARQ(state='Bound', project_id=project, **twin))

    # What holds whatever happened

    @stateful.invariant()
    def all_holds(self):
        self._look()
        before = self.rows.buses
        # A conductor serves when it was told to, and not else.
        if self._told():
            self._serve()
        else:
            assert self._due() == [], 'nobody is told'
        held = self.rows.buses
        assert len({*held.values()}) == len(held), 'given twice'
        assert before.items() <= held.items(), 'what is held is not given to another'
        self._check_requests()
        self._check_usage()
        status = {True: 'enabled', False: 'maintaining'}
        assert {address: row.status for address, row in self.rows.devices.items()} == {
            direct.address(bus): status[card.enabled] for bus, card in self.cards.items()
        }
        self.now += self.STEP

    def _told(self) -> list[dict[str, object]]:
        """What a conductor is told to do now."""
        return [row.payload for row in self.rows.told]

    def _serve(self):
        before = self.rows
        self._surely(self._deliver)
        with self.rival.database.writer() as session:
            session.execute(sa.delete(model.Message))
        self._look()
        after, self.rows = self.rows, before
        free, used = self._free(), self._used()
        due = self._due(after)
        self.rows = after
        assert {*before.of('queued')} - {*after.of('queued')} == {*due}, 'another one is served'
        given = {bus for uuid, bus in after.buses.items() if uuid not in before.buses}
        assert given <= free, 'it was not free'
        for project, count in self._used().items():
            assert count == used[project] or count <= self._limit(project), 'beyond the limit'

    def _deliver(self):
        self.conductor._manager._serve_all()

    def _left(self, lease) -> set[str]:
        """The cards that a new allocation may have: those that wait cannot use them."""
        left = self._free()
        for uuid in self._turns(self._used(), self._holds()):
            left -= self._fit(left, self.wanted[uuid].lease)
        return self._fit(left, lease)

    def _fit(self, cards, _lease) -> set[str]:
        """The cards among these that an allocation may have for so long."""
        return {*cards}

    def _due(self, after=None) -> list[str]:
        """The allocations that can be served now: none delays an earlier one.

        :param after: the rows afterwards, if they were served: they tell which cards each got.
        """
        given = after.given(self.rows) if after else {}
        used, holds, free, found = *self._begin(given, after), []
        while turn := self._next(self._turns(used, holds, found), free):
            uuid, fit = turn
            wanted = self.wanted[uuid]
            cards = given.get(uuid) or {*sorted(fit)[: wanted.amount]}
            assert cards <= fit, 'given what it may not have'
            found.append(uuid)
            free -= cards
            used[wanted.project] += wanted.amount
            holds[wanted.project] += wanted.amount
        return found

    def _begin(self, _given, _after):
        """What projects use and hold, and what is free, before the queue is served."""
        return self._used(), self._holds(), self._free()

    def _next(self, turns, free):
        """The first that can be served, and the cards for it; others leave to those after them
        what they cannot use.
        """
        for uuid in turns:
            fit = self._fit(free, self.wanted[uuid].lease)
            if len(fit) >= self.wanted[uuid].amount:
                return uuid, fit
            free = free - fit
        return None

    def _turns(self, used, holds, served=()) -> list[str]:
        """The waiting allocations that have room in their quota and enough cards, in order: by
        priority, then by what their project has got, then by age.
        """
        waiting = [uuid for uuid in self.rows.of('queued') if uuid not in served]
        # One that is held up has its turn, too, and is passed over.
        got, turns = collections.Counter(holds), []
        while waiting:
            uuid = min(waiting, key=lambda uuid: self._turn(uuid, got))
            waiting.remove(uuid)
            wanted = self.wanted[uuid]
            got[wanted.project] += wanted.amount
            room = self._limit(wanted.project) - used[wanted.project]
            if wanted.amount <= min(len(self.cards), room):
                turns.append(uuid)
        return turns

    def _turn(self, uuid, got):
        wanted = self.wanted[uuid]
        return -wanted.priority, got[wanted.project], wanted.number

    def _check_requests(self):
        """I2: those outside allocations are as their owners know them, and others hold."""
        rows = self.rows.arqs.values()
        alone = {row.uuid: row.state for row in rows if not row.allocation_uuid}
        assert alone == {uuid: request.state for uuid, request in self.arqs.items()}
        for row in rows:
            assert (row.state == 'Bound') == (row.attach_handle_id is not None)
        of = collections.Counter(row.allocation_uuid for row in rows if row.allocation_uuid)
        active = map(self.rows.allocations.get, self.rows.of('active'))
        alone = [row.uuid for row in active if not row.reservation_uuid]
        assert of == {uuid: self.wanted[uuid].amount for uuid in alone}

    def _check_usage(self):
        """Each holding was counted, once, for as long as it was seen: for the project, the class
        and the host of today.
        """
        assert sorted(self.rows.usages) == sorted(self.spans.over())
        with self.rival.database.reader() as session:
            # The end of a period is not part of it.
            period = usages.Period(BEGIN, self.now + datetime.timedelta(seconds=1))
            found = usages.total(session, period, [*model.Usage.KEYS], [], 9)
        assert {tuple(row.values()) for row in found if row['device_seconds']} == {
            (project, 'FPGA', self.name, seconds)
            for project, seconds in self.spans.seconds(self.now).items()
        }
        for uuid, row in self.rows.arqs.items():
            moves = row.moves or []
            # Older moves are not kept.
            if len(moves) < model.ARQ.REMEMBERED:
                assert _turns(moves) == self.spans.turns(uuid), 'its history differs'

    def _limit(self, project):
        return self.limits.get(project, self.limits.get(model.Quota.DEFAULTS, UNLIMITED))

    def _device(self, bus):
        return self.rows.devices.get(direct.address(bus))

    def _free(self) -> set[str]:
        """The cards that may be given out (I4)."""
        fit = {
            bus
            for bus, card in self.cards.items()
            if card.enabled and not card.absences and card.left_after is None
        }
        return fit - {*self.rows.buses.values()}

    def _used(self) -> collections.Counter[str]:
        return collections.Counter(row.project_id for row in self.rows.arqs.values())

    def _holds(self) -> collections.Counter[str]:
        return collections.Counter(self.rows.arqs[uuid].project_id for uuid in self.rows.buses)


def _turns(moves):
    """When a request began to hold something, and when it ended that, by its history."""
    return [
        move['at']
        for before, move in itertools.pairwise([{'state': 'Initial'}, *moves])
        if (before['state'] == 'Bound') != (move['state'] == 'Bound')
    ]


def _wish(amount, priority, waits, lease):
    """A request for an allocation."""
    return {
        'profile': None,
        'alternatives': [[{'resources:FPGA': str(amount)}]],
        'same_host': True,
        'same_numa': 'prefer',
        'hosts': None,
        'lease': lease,
        'queue': waits,
        'priority': priority,
    }


@pytest.mark.parametrize('part', range(PARTS))
def test_machine(databases, part):
    machine = hypothesis.seed(part)(lambda: Queue(databases))
    stateful.run_state_machine_as_test(machine, settings=SETTINGS)

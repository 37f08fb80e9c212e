# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to allocations and to what they want, in any order, beside a few dicts."""

import collections
import contextlib
import dataclasses
import datetime

from hypothesis import stateful
from hypothesis import strategies as st
from oslo_db import exception as db_exception
import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import releasing
from cyborg_lite.db import accelerators
from tests import databases
from tests import support
from tests.unit.conductor import direct
from tests.unit.conductor import search

SETTINGS = search.settings(10, nightly=200)

BUSES = ('3b', '5e', '7a')
UNLIMITED = 99
FILES = databases.Files()
PROJECTS = st.sampled_from(['p1', 'p2'])
LEASES = st.none() | st.just(60)


@dataclasses.dataclass
class Wanted:
    """What an allocation asks for."""

    #: it grows with the time of arrival
    number: int
    project: str
    amount: int
    priority: int


class Queue(stateful.RuleBasedStateMachine):
    made = stateful.Bundle('made')

    def __init__(self):
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        self.conductor = direct.Conductor(self.cleanup.enter_context(FILES.empty()))
        self.cleanup.callback(self.conductor.close)
        self.conductor.report(*(support.card(bus) for bus in BUSES))
        self.wanted: dict[str, Wanted] = {}
        self.limits: dict[str, int] = {}
        #: the requests that have held something
        self.holders: set[str] = set()

    def teardown(self):
        self.cleanup.close()

    @stateful.initialize(target=made)
    def begin(self):
        """All is held, and both projects wait."""
        wanted = [('p1', 2), ('p2', 1), ('p1', 1), ('p2', 2), ('p1', 1)]
        return stateful.multiple(
            *(self._allocate(project, amount, 0, True, None) for project, amount in wanted)
        )

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
        return stateful.multiple()

    def _allocate(self, project, amount, priority, waits, lease):
        request = {
            'profile': None,
            'alternatives': [[{'resources:FPGA': str(amount)}]],
            'same_host': True,
            'same_numa': 'prefer',
            'hosts': None,
            'lease': lease,
            'queue': waits,
            'priority': priority,
        }
        first = self._first()
        uuid = self.conductor.create_allocation(direct.member(project), request=request)
        self.wanted[uuid] = Wanted(len(self.wanted), project, amount, priority)
        assert not first or uuid in self._queued(), 'it goes before those that wait'
        return uuid

    @stateful.rule(uuid=stateful.consumes(made))
    def give_up(self, uuid):
        self.conductor.release_allocation(uuid=uuid)

    @stateful.rule(uuid=made)
    def renew(self, uuid):
        with contextlib.suppress(exception.Conflict):
            self.conductor.renew_allocation(uuid=uuid, lease=60)

    # What else happens

    @stateful.rule()
    def end_leases(self):
        over = sa.update(model.Allocation).where(model.Allocation.lease_ends_at.is_not(None))
        with self.conductor.database.writer() as session:
            session.execute(over.values(lease_ends_at=datetime.datetime(2000, 1, 1)))
        with self.conductor._manager.outbox.session() as session:
            for id in releasing.expired(session, 99):
                releasing.expire(session, id)

    @stateful.rule(bus=st.sampled_from(BUSES), status=st.sampled_from(['enabled', 'maintaining']))
    def order(self, bus, status):
        if device := self.conductor.device(bus):
            self.conductor.set_device_status(uuid=device.uuid, status=status)

    @stateful.rule(found=st.sets(st.sampled_from(BUSES), min_size=1) | st.just(set(BUSES)))
    def report(self, found):
        """A card that is absent is not given out; one that is held is lost."""
        self.conductor.report(*(support.card(bus) for bus in sorted(found)))

    @stateful.rule(project=PROJECTS, limit=st.sampled_from([None, 1, 2, 3]))
    def limit(self, project, limit):
        self.conductor.update_quota(project=project, limits={'FPGA': limit})
        self.limits[project] = UNLIMITED if limit is None else limit

    @stateful.rule(project=PROJECTS)
    def hold_twice(self, project):
        """Whoever writes it: what is held cannot be given to another request."""
        held = self.conductor.rows(model.ARQ)
        if not held:
            return
        [first, *_] = held
        twin = {name: getattr(first, name) for name in ('device_profile_id', 'attach_handle_id')}
        writer = self.conductor.database.writer
        with pytest.raises(db_exception.DBDuplicateEntry), writer() as session:
            session.add(model.ARQ(state='Bound', project_id=project, **twin))

    # What holds whatever happened

    @stateful.invariant()
    def all_holds(self):
        before = self._held()
        # A conductor serves when it was told to, and not else.
        if any(each.kind == outbox.QUEUE for each in self.conductor.rows(model.Message)):
            self._serve()
        else:
            assert self._due() == [], 'nobody is told'
        held = self._held()
        assert before.items() <= held.items(), 'what is held is not given to another'
        self._check_usage(held)

    def _serve(self):
        due, queued = self._due(), self._queued()
        used = self._used()
        self.conductor._manager._serve_all()
        with self.conductor.database.writer() as session:
            session.execute(sa.delete(model.Message))
        assert set(queued) - set(self._queued()) == set(due), 'another one is served'
        for project, count in self._used().items():
            assert count == used[project] or count <= self._limit(project), 'beyond the limit'

    def _first(self) -> str | None:
        """The allocation of those that wait that could be served if enough were free."""
        return next(iter(self._turns(self._used())), None)

    def _due(self) -> list[str]:
        """Those that are to be served now: each before all that come after it, or not yet."""
        used, free, found = self._used(), self._free(), []
        while turns := self._turns(used, found):
            wanted = self.wanted[turns[0]]
            if wanted.amount > free:
                break
            found.append(turns[0])
            free -= wanted.amount
            used[wanted.project] += wanted.amount
        return found

    def _turns(self, used, served=()) -> list[str]:
        """Those that wait and that neither their quota nor the number of cards holds up, in order:
        by priority, then by what their project has got, then by age.
        """
        cards = len(self.conductor.rows(model.AttachHandle))
        waiting = [uuid for uuid in self._queued() if uuid not in served]
        # One that is held up has its turn, too, and is passed over.
        got, turns = collections.Counter(used), []
        while waiting:
            uuid = min(waiting, key=lambda uuid: self._turn(uuid, got))
            waiting.remove(uuid)
            wanted = self.wanted[uuid]
            got[wanted.project] += wanted.amount
            room = self._limit(wanted.project) - used[wanted.project]
            if wanted.amount <= min(cards, room):
                turns.append(uuid)
        return turns

    def _turn(self, uuid, got):
        wanted = self.wanted[uuid]
        return -wanted.priority, got[wanted.project], wanted.number

    def _check_usage(self, held):
        """Each holding that is over was counted, once, and no other."""
        holding = {arq.uuid for arq in self.conductor.rows(model.ARQ) if arq.attach_handle_id}
        assert len(holding) == len(held)
        self.holders |= holding
        counted = [each.arq_uuid for each in self.conductor.rows(model.Usage)]
        assert sorted(counted) == sorted(self.holders - holding)

    def _limit(self, project):
        return self.limits.get(project, UNLIMITED)

    def _queued(self) -> list[str]:
        rows = self.conductor.rows(model.Allocation)
        return [row.uuid for row in rows if row.state == 'queued']

    def _free(self) -> int:
        with self.conductor.database.reader() as session:
            free = accelerators.Accelerator.state == 'free'
            return session.query(accelerators.Accelerator).where(free).count()

    def _used(self) -> collections.Counter[str]:
        return collections.Counter(arq.project_id for arq in self.conductor.rows(model.ARQ))

    def _held(self) -> dict[str, str]:
        """The requests that hold cards, by the bus of each."""
        handles = {
            row.id: row.attach_info['bus'] for row in self.conductor.rows(model.AttachHandle)
        }
        arqs = self.conductor.rows(model.ARQ)
        found = {handles[arq.attach_handle_id]: arq.uuid for arq in arqs}
        assert len(found) == len(arqs), 'given twice'
        return found


class TestQueue(Queue.TestCase):
    settings = SETTINGS

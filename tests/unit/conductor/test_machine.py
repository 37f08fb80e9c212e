# SPDX-License-Identifier: Apache-2.0
"""Anything that may happen to one host, in any order, beside a model that is a few dicts."""

import contextlib
import dataclasses

from hypothesis import stateful
from hypothesis import strategies as st
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from tests import databases
from tests import support
from tests.unit.conductor import direct
from tests.unit.conductor import search

SETTINGS = search.settings(35, nightly=1000, steps=30)

BUSES = ('3b', '5e')
FUNCTIONS = range(3)
ABSENCES = 3
FILES = databases.Files()

Handle = tuple[str, int]  # bus and function

#: Mostly what was there before.
FUNCTION_SETS = st.sets(st.sampled_from(FUNCTIONS), min_size=1) | st.just(set(FUNCTIONS))
FOUND = st.fixed_dictionaries({}, optional=dict.fromkeys(BUSES, FUNCTION_SETS))
AGAIN = st.sampled_from([1, 1, 1, ABSENCES])


@dataclasses.dataclass
class Card:
    handles: set[int]
    enabled: bool = True
    absences: int = 0
    lost: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Request:
    state: str = 'Initial'
    handle: Handle | None = None


class Machine(stateful.RuleBasedStateMachine):
    requests = stateful.Bundle('requests')

    def __init__(self):
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        url = self.cleanup.enter_context(FILES.empty())
        self.conductor = direct.Conductor(url)
        self.cleanup.callback(self.conductor.close)
        self.conductor.create_device_profile(
            profile={'name': 'one', 'groups': [{'resources:FPGA': '1'}]}
        )
        self.cards: dict[str, Card] = {}
        self.arqs: dict[str, Request] = {}
        self.last: dict[str, object] | None = None

    def teardown(self):
        self.cleanup.close()

    def held(self, bus: str) -> set[int]:
        handles = [arq.handle for arq in self.arqs.values() if arq.handle]
        return {function for where, function in handles if where == bus}

    def ready(self) -> list[str]:
        return [u for u, arq in self.arqs.items() if arq.state in ('Initial', 'Unbound')]

    # What agents do

    @stateful.initialize(target=requests)
    def begin(self):
        self.report(dict.fromkeys(BUSES, set(FUNCTIONS)), False, 1)
        return self.create(3)

    @stateful.rule(found=FOUND, degraded=st.sampled_from([False] * 3 + [True]), again=AGAIN)
    def report(self, found, degraded, again):
        devices = [support.card(bus, sorted(found[bus])) for bus in sorted(found)]
        for _ in range(again):
            more = {'drivers': direct.DEGRADED} if degraded else {}
            self.last = self.conductor.told(*devices, **more)
            self.conductor.report(**self.last)
            self._expect(found, degraded)

    def _expect(self, found, degraded):
        for bus, functions in found.items():
            card = self.cards.setdefault(bus, Card(set()))
            card.lost = self.held(bus) - functions
            card.handles = functions | card.lost
            card.absences = 0
        if degraded:
            return
        for bus in set(self.cards) - set(found):
            card = self.cards[bus]
            card.absences = min(card.absences + 1, ABSENCES)
            # What an operator ordered outlives the absence of the card.
            if card.absences == ABSENCES and card.enabled and not self.held(bus):
                del self.cards[bus]

    @stateful.precondition(lambda self: self.last)
    @stateful.rule()
    def report_arrives_again(self):
        self.conductor.report(**self.last)

    # What clients do

    @stateful.rule(target=requests, count=st.integers(1, 3))
    def create(self, count):
        uuids = [self.conductor.create_arqs(profile='one')[0] for _ in range(count)]
        self.arqs |= {each: Request() for each in uuids}
        return stateful.multiple(*uuids)

    @stateful.precondition(lambda self: self.ready())
    @stateful.rule(data=st.data(), bus=st.sampled_from(BUSES))
    def bind_some_that_are_ready(self, data, bus):
        uuids = st.lists(st.sampled_from(self.ready()), min_size=1, max_size=3, unique=True)
        self._bind(data.draw(uuids), bus)

    @stateful.rule(
        uuids=st.lists(requests, min_size=1, max_size=3, unique=True), bus=st.sampled_from(BUSES)
    )
    def bind_any(self, uuids, bus):
        self._bind(uuids, bus)

    def _bind(self, uuids, bus):
        card = self.cards.get(bus)
        free = card.handles - card.lost - self.held(bus) if card else set()
        ready = set(uuids) <= set(self.ready())
        can = card and card.enabled and not card.absences and len(free) >= len(uuids)
        try:
            self.conductor.take(*uuids, bus=bus)
        except exception.CannotBind:
            assert ready and not can
            for each in uuids:
                self.arqs[each] = Request('BindFailed')
        except exception.Conflict:
            assert not ready
        else:
            assert ready and can
            self._learn(uuids, bus, free)

    def _learn(self, uuids, bus, free):
        """Which of the free handles were given is the conductor's choice."""
        given = {row.uuid: row.attach_handle for row in self.conductor.rows(model.ARQ)}
        for each in uuids:
            place = _place(given[each])
            assert place in {(bus, function) for function in free}
            self.arqs[each] = Request('Bound', place)

    @stateful.rule(each=requests)
    def unbind(self, each):
        self.conductor.unbind(uuids=[each])
        self.arqs[each] = Request('Unbound')

    @stateful.rule(each=stateful.consumes(requests))
    def delete(self, each):
        del self.arqs[each]
        assert self.conductor.delete_arqs(uuids=[each]) == []
        assert self.conductor.delete_arqs(uuids=[each]) == [each]

    @stateful.rule(bus=st.sampled_from(BUSES), enabled=st.sampled_from([True, True, False]))
    def set_status(self, bus, enabled):
        if bus in self.cards:
            status = 'enabled' if enabled else 'maintaining'
            uuid_ = self.conductor.device(bus).uuid
            self.conductor.set_device_status(uuid=uuid_, status=status)
            self.cards[bus].enabled = enabled

    # What always holds

    @stateful.invariant()
    def rows_are_as_in_the_model(self):
        """I4 and I9 among them: the model gives out nothing unfit and deletes nothing held."""
        with self.conductor.database.reader() as session:
            devices = session.execute(
                sa.select(model.Device.address, model.Device.status, model.Device.absences)
            ).all()
            handles = session.execute(
                sa.select(
                    model.AttachHandle.id,
                    model.AttachHandle.attach_info,
                    model.AttachHandle.lost,
                    model.Deployable.rp_uuid,
                ).join(model.Deployable)
            ).all()
            arqs = session.execute(
                sa.select(
                    model.ARQ.uuid,
                    model.ARQ.state,
                    model.ARQ.attach_handle_id,
                    model.ARQ.device_rp_uuid,
                )
            ).all()
        assert {d.address: (d.status == 'enabled', d.absences) for d in devices} == {
            direct.address(bus): (card.enabled, card.absences) for bus, card in self.cards.items()
        }
        assert sorted((*_place(handle), handle.lost) for handle in handles) == sorted(
            (bus, function, function in card.lost)
            for bus, card in self.cards.items()
            for function in card.handles
        )
        places = {handle.id: _place(handle) for handle in handles}
        assert {arq.uuid: (arq.state, places.get(arq.attach_handle_id)) for arq in arqs} == {
            each: (arq.state, arq.handle) for each, arq in self.arqs.items()
        }
        self._check_links(arqs, {handle.id: handle.rp_uuid for handle in handles})

    @staticmethod
    def _check_links(arqs, providers):
        """I1 and I2, asked of the database alone."""
        held = [arq.attach_handle_id for arq in arqs if arq.attach_handle_id]
        assert len(held) == len(set(held))
        for arq in arqs:
            assert (arq.state == 'Bound') == (arq.attach_handle_id is not None)
            if arq.state == 'Bound':
                assert providers[arq.attach_handle_id] == arq.device_rp_uuid


def _place(handle) -> Handle:
    return handle.attach_info['bus'], int(handle.attach_info['function'], 16)


class TestMachine(Machine.TestCase):
    settings = SETTINGS

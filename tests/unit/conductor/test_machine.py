# SPDX-License-Identifier: Apache-2.0
"""Anything that may happen to one host, in any order, beside a model that is a few dicts."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import uuid

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from tests import support
from tests.unit.conductor import direct

hypothesis.settings.register_profile(
    'gate', max_examples=40, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile(
    'nightly', max_examples=1000, stateful_step_count=50, deadline=None
)
SETTINGS = hypothesis.settings.get_profile(os.environ.get('CYBORG_LITE_HYPOTHESIS', 'gate'))

BUSES = ('3b', '5e')
FUNCTIONS = range(3)
ABSENCES = 3

Handle = tuple[str, int]  # bus and function


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
        path = self.cleanup.enter_context(tempfile.TemporaryDirectory(dir=direct.MEMORY))
        self.conductor = direct.Conductor(pathlib.Path(path))
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

    # What agents do

    @stateful.rule(
        found=st.dictionaries(
            st.sampled_from(BUSES), st.sets(st.sampled_from(FUNCTIONS), min_size=1)
        ),
        degraded=st.sampled_from([False, False, False, True]),
        again=st.integers(1, 3),
    )
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
            if card.absences == ABSENCES and not self.held(bus):
                del self.cards[bus]

    @stateful.precondition(lambda self: self.last)
    @stateful.rule()
    def report_arrives_again(self):
        self.conductor.report(**self.last)

    # What clients do

    @stateful.rule(target=requests, count=st.integers(1, 3))
    def create(self, count):
        uuids = [
            self.conductor.create_arqs(profile='one', token=str(uuid.uuid4()))[0]
            for _ in range(count)
        ]
        self.arqs |= {each: Request() for each in uuids}
        return stateful.multiple(*uuids)

    @stateful.rule(
        uuids=st.lists(requests, min_size=1, max_size=3, unique=True), bus=st.sampled_from(BUSES)
    )
    def bind(self, uuids, bus):
        card = self.cards.get(bus)
        free = card.handles - card.lost - self.held(bus) if card else set()
        known = all(each in self.arqs for each in uuids)
        ready = known and all(self.arqs[u].state in ('Initial', 'Unbound') for u in uuids)
        can = card and card.enabled and not card.absences and len(free) >= len(uuids)
        try:
            self.conductor.take(*uuids, bus=bus)
        except exception.CannotBind:
            assert ready and not can
            for each in uuids:
                self.arqs[each] = Request('BindFailed')
        except exception.NotFound:
            assert not known
        except exception.Conflict:
            assert known and not ready
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
        try:
            self.conductor.unbind(uuids=[each])
        except exception.NotFound:
            assert each not in self.arqs
        else:
            self.arqs[each] = Request('Unbound')

    @stateful.rule(each=requests)
    def delete(self, each):
        missing = self.conductor.delete_arqs(uuids=[each])
        assert missing == ([] if self.arqs.pop(each, None) else [each])

    @stateful.rule(bus=st.sampled_from(BUSES), enabled=st.booleans())
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
        devices = {
            row.address: (row.status == 'enabled', row.absences)
            for row in self.conductor.rows(model.Device)
        }
        assert devices == {
            direct.address(bus): (card.enabled, card.absences) for bus, card in self.cards.items()
        }
        handles = {_place(row): row.lost for row in self.conductor.rows(model.AttachHandle)}
        assert handles == {
            (bus, function): function in card.lost
            for bus, card in self.cards.items()
            for function in card.handles
        }

    @stateful.invariant()
    def requests_are_as_in_the_model(self):
        rows = {
            row.uuid: (row.state, row.attach_handle and _place(row.attach_handle))
            for row in self.conductor.rows(model.ARQ)
        }
        assert rows == {each: (arq.state, arq.handle) for each, arq in self.arqs.items()}

    @stateful.invariant()
    def bound_is_to_hold_a_handle_of_the_provider(self):
        """I1 and I2, asked of the database alone."""
        query = (
            sa.select(
                model.ARQ.state,
                model.ARQ.attach_handle_id,
                model.ARQ.device_rp_uuid,
                model.Deployable.rp_uuid,
            )
            .outerjoin(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
            .outerjoin(model.Deployable)
        )
        with self.conductor.database.reader() as session:
            rows = session.execute(query).all()
        held = [row.attach_handle_id for row in rows if row.attach_handle_id]
        assert len(held) == len(set(held))
        for row in rows:
            assert (row.state == 'Bound') == (row.attach_handle_id is not None)
            if row.state == 'Bound':
                assert row.rp_uuid == row.device_rp_uuid


def _place(handle: model.AttachHandle) -> Handle:
    return handle.attach_info['bus'], int(handle.attach_info['function'], 16)


class TestMachine(Machine.TestCase):
    settings = SETTINGS

# SPDX-License-Identifier: Apache-2.0
"""Cards that change form and slot, in a machine that changes its name, beside a model of them.

The model knows the cards themselves.  The conductor sees reports alone, and must not give out a
card twice (I1), nor lose what is held of it (I9), nor forget what an operator ordered (I14).
"""

import contextlib
import dataclasses
import uuid

from hypothesis import stateful
from hypothesis import strategies as st
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import exception
from cyborg_lite import model
from tests import databases
from tests import support
from tests.unit.conductor import direct
from tests.unit.conductor import search

SETTINGS = search.settings(25, nightly=1000)

NAMES = ('a', 'b', 'c')
MACHINE = 'machine-1'
#: Each slot of the machine, and its IOMMU group.
SLOTS = {'01': '7', '02': '7', '03': None}
#: Two cards that have serial numbers, and one that has none.
SERIALS = {'A': 'serial-a', 'B': 'serial-b', 'C': None}
VENDORS = {'A': '19e5', 'B': '19e5', 'C': '10de'}
#: The functions of a card that are given out, by its form.
FORMS = {'whole': {0}, 'part': {1, 2}}
ABSENCES = 3
FILES = databases.Files()
HANDLES = sa.select(model.AttachHandle).options(
    orm.joinedload(model.AttachHandle.arq).lazyload('*'),
    orm.joinedload(model.AttachHandle.deployable).lazyload('*'),
)

#: Which cards are where: without a serial number one is known by its slot, and keeps it.
PLACES = st.permutations([None, None, 'A', 'B']).map(
    lambda cards: dict(zip(SLOTS, cards[:3], strict=True))
)
AGAIN = st.sampled_from([1, 1, ABSENCES])
NAME = st.sampled_from(NAMES)
SLOT = st.sampled_from(sorted(SLOTS))


@dataclasses.dataclass
class Hold:
    """What a request holds: accelerators of a card itself, wherever it is."""

    host: str
    card: str
    form: str
    function: int
    instance: str


class Cards(stateful.RuleBasedStateMachine):
    holds = stateful.Bundle('holds')

    def __init__(self):
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        url = self.cleanup.enter_context(FILES.empty())
        self.conductor = direct.Conductor(url)
        self.cleanup.callback(self.conductor.close)
        profile = {'name': 'one', 'groups': [{'resources:FPGA': '1'}]}
        self.conductor.create_device_profile(profile=profile)
        self.name, self.agent = NAMES[0], 'agent-0'
        self.names = {self.name}
        self.places: dict[str, str | None] = {'01': 'A', '02': 'B', '03': None}
        self.forms = dict.fromkeys(SERIALS, 'whole')
        self.held: dict[str, Hold] = {}
        #: the cards that an operator has disabled, each under a name of its host
        self.disabled: set[tuple[str, str]] = set()

    def teardown(self):
        self.cleanup.close()

    # The machine

    def report(self, again=1):
        devices = [self._device(slot, card) for slot, card in self.places.items() if card]
        for _ in range(again):
            self.conductor.report(
                *devices, host=self.name, machine=MACHINE, agent=self.agent, interval=3600
            )
        self.names.add(self.name)
        # What is disabled under an earlier name is disabled under this one.
        self.disabled |= {
            (host, card)
            for (host, card), row in self._rows().items()
            if row.status != 'enabled' and any(other == card for _, other in self.disabled)
        }

    def _device(self, slot, card):
        found = support.card(
            slot, FORMS[self.forms[card]], serial=SERIALS[card], vendor=VENDORS[card]
        )
        for handle in found.deployables[0].attach_handles:
            handle.attach_type, handle.iommu_group = 'PCI', SLOTS[slot]
        return found

    @stateful.initialize()
    def begin(self):
        self.report()

    @stateful.rule(
        places=PLACES,
        guest=st.sampled_from([None, None, '01']),
        parts=st.sets(st.sampled_from(sorted(SERIALS))),
        again=AGAIN,
    )
    def cards_change(self, places, guest, parts, again):
        """Slots and forms change: the third card comes to its own slot in place of another."""
        self.places = places | ({guest: 'C'} if guest else {})
        self.forms = {card: 'part' if card in parts else 'whole' for card in SERIALS}
        self.report(again)

    @stateful.rule(slots=st.permutations(sorted(SLOTS)))
    def cards_swap(self, slots):
        """Cards with serial numbers swap their slots: nothing else changes."""
        cards = [None if card == 'C' else card for card in self.places.values()]
        self.places = dict(sorted(zip(slots, cards, strict=True)))
        self.report()

    @stateful.rule(slot=SLOT)
    def form_changes(self, slot):
        if card := self.places[slot]:
            self.forms[card] = 'part' if self.forms[card] == 'whole' else 'whole'
        self.report()

    @stateful.rule(name=NAME)
    def agent_starts(self, name):
        """Under its old name or another one."""
        self.name, self.agent = name, str(uuid.uuid4())
        self.report()

    # The administrator

    @stateful.rule(name=NAME, to=NAME)
    def rename_host(self, name, to):
        if name not in self.names or name == to:
            return
        if name == self.name:
            self._refuse(self.conductor.rename_host, name=name, to=to)
            return
        self.conductor.rename_host(name=name, to=to)
        self._renamed(name, to)
        self.report()

    @stateful.rule(to=NAME)
    def rename_host_that_is_down(self, to):
        """And its agent starts under the new name later."""
        name = self.name
        with self.conductor.database.writer() as session:
            down = sa.update(model.Host).where(model.Host.name == name)
            session.execute(down.values(silent=True))
        self.conductor.rename_host(name=name, to=to)
        self._renamed(name, to)
        self.agent_starts(to)

    def _renamed(self, name, to):
        if name != to:
            self.names.remove(name)
        self.names.add(to)
        self.disabled = {(to if host == name else host, card) for host, card in self.disabled}
        for hold in self.held.values():
            hold.host = to if hold.host == name else hold.host

    @stateful.rule(name=NAME)
    def delete_host(self, name):
        if name not in self.names:
            return
        if name == self.name or any(hold.host == name for hold in self.held.values()):
            self._refuse(self.conductor.delete_host, name=name)
            return
        self.conductor.delete_host(name=name)
        self.names.remove(name)
        self.disabled = {(host, card) for host, card in self.disabled if host != name}

    @stateful.rule(card=st.sampled_from(sorted(SERIALS)))
    def delete_device(self, card):
        row = self._rows().get((self.name, card))
        if row is None:
            return
        held = any(h.card == card and h.host == self.name for h in self.held.values())
        if held or card in self.places.values():
            self._refuse(self.conductor.delete_device, uuid=row.uuid)
            return
        self.conductor.delete_device(uuid=row.uuid)
        self.disabled.discard((self.name, card))

    @staticmethod
    def _refuse(method, **more):
        try:
            method(**more)
        except exception.Conflict:
            return
        raise AssertionError(f'{method} was not refused: {more}')

    @stateful.rule(slot=SLOT, enabled=st.sampled_from([True, False]))
    def set_status(self, slot, enabled):
        card = self.places[slot]
        if card is None:
            return
        device = self._rows()[self.name, card]
        status = 'enabled' if enabled else 'maintaining'
        self.conductor.set_device_status(uuid=device.uuid, status=status)
        (self.disabled.discard if enabled else self.disabled.add)((self.name, card))

    # Clients

    @stateful.rule(target=holds, slot=SLOT, count=st.sampled_from([1, 1, 2]))
    def bind(self, slot, count):
        card = self.places[slot]
        if card is None:
            return stateful.multiple()
        free = self._free(slot, card)
        instance = str(uuid.uuid4())
        uuids = [self.conductor.create_arqs(profile='one')[0] for _ in range(count)]
        about = {'instance_uuid': instance, 'device_rp_uuid': self._provider(card)}
        wishes = [self.conductor.wish(each, slot, self.name, **about) for each in uuids]
        try:
            self.conductor.bind(wishes=wishes)
        except exception.CannotBind:
            # What another name of the host holds may block more than the card itself.
            assert len(free) < count or any(h.host != self.name for h in self.held.values())
            self.conductor.delete_arqs(uuids=uuids)
            return stateful.multiple()
        for each in uuids:
            function = self._function(each, slot)
            assert function in free, (function, free)
            free.remove(function)
            self.held[each] = Hold(self.name, card, self.forms[card], function, instance)
        return stateful.multiple(*uuids)

    def _free(self, slot, card):
        """The functions of a card that may be given out."""
        form = self.forms[card]
        if (self.name, card) in self.disabled:
            return set()
        held = [hold for hold in self.held.values() if hold.card == card]
        if any(hold.form != form or hold.host != self.name for hold in held):
            return set()
        if SLOTS[slot] and any(self._group(hold) == SLOTS[slot] for hold in self.held.values()):
            return set()
        return FORMS[form] - {hold.function for hold in held}

    def _group(self, hold):
        """The IOMMU group of what is held, as it was last reported."""
        return self._groups[hold.host, hold.card, hold.form, hold.function]

    def _provider(self, card):
        device = self._rows()[self.name, card]
        [part] = [p for p in self.conductor.rows(model.Deployable) if p.device_id == device.id]
        return part.rp_uuid

    def _function(self, arq, slot):
        info = self.conductor.arq(arq).attach_handle.attach_info
        assert info['bus'] == slot
        return int(info['function'], 16)

    @stateful.rule(each=stateful.consumes(holds), delete=st.booleans())
    def give_back(self, each, delete):
        del self.held[each]
        if not delete:
            self.conductor.unbind(uuids=[each])
        assert self.conductor.delete_arqs(uuids=[each]) == []

    # What always holds

    def _rows(self):
        """The devices, by the name of the host and the card that they are."""
        cards = {(SERIALS[card], VENDORS[card]): card for card in SERIALS}
        rows = self.conductor.rows(model.Device)
        found = {(row.hostname, cards[row.serial, row.vendor]): row for row in rows}
        assert len(found) == len(rows), 'two rows are one card'
        return found

    @stateful.invariant()
    def devices_are_the_cards(self):
        rows = self._rows()
        assert {key for key, row in rows.items() if row.status != 'enabled'} == self.disabled
        there = {key for key, row in rows.items() if key[0] == self.name and not row.absences}
        assert there == {(self.name, card) for card in self.places.values() if card}
        self._check_holds({row.id: key for key, row in rows.items()})

    def _check_holds(self, devices):
        """Requests hold what they were given, each something else, and a card in one form."""
        found, self._groups = {}, {}
        with self.conductor.database.reader() as session:
            for handle in session.scalars(HANDLES):
                host, card = devices[handle.deployable.device_id]
                function = int(handle.attach_info['function'], 16)
                self._groups[host, card, handle.form, function] = handle.iommu_group
                if handle.arq is not None:
                    given = Hold(host, card, handle.form, function, handle.arq.instance_uuid)
                    found[handle.arq.uuid] = given
        assert found == self.held
        assert len({(hold.card, hold.function) for hold in found.values()}) == len(found)
        forms = {(hold.card, hold.form) for hold in found.values()}
        assert len(forms) == len({card for card, _ in forms})


class TestCards(Cards.TestCase):
    settings = SETTINGS

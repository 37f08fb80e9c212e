# SPDX-License-Identifier: Apache-2.0
"""After any change, drivers find the true content of a machine."""

import pytest

from cyborg_lite import conf as options
from cyborg_lite.agent import drivers
from tests.soak import machines

KINDS = ('atlas-300i-duo', 'atlas-800t-a2', 'hgx-8gpu', 'mixed-alveo-qat')


@pytest.fixture
def made(tmp_path):
    laid_out = machines.lay_out(tmp_path, len(KINDS))
    return dict(zip(KINDS, laid_out, strict=True))


def found(machine, looker=None):
    """The findings of the drivers: serial number and accelerators by address."""
    looker = looker or drivers.Drivers(options.load(), machine.host)
    return {
        device.address: machines.Card(
            device.serial,
            frozenset(
                '{domain}:{bus}:{device}.{function}'.format(**handle.attach_info)
                for part in device.deployables
                for handle in part.attach_handles
            ),
        )
        for device in looker.discover(patience=60).devices
    }


def agree(machine, looker=None):
    there, seen = machine.there(), found(machine, looker)
    assert there.keys() == seen.keys()
    for address, card in there.items():
        assert card.serial == seen[address].serial
        assert card.functions in (frozenset(), seen[address].functions)


@pytest.mark.parametrize('kind', KINDS)
def test_as_it_was_laid_out(made, kind):
    machine = made[kind]
    assert set(machine.cards) == machine.there().keys()
    assert machine.host.name == machine.id
    assert machine.host.machine
    agree(machine)


@pytest.mark.parametrize('kind', ['atlas-300i-duo', 'atlas-800t-a2'])
def test_cards_change_slots_and_are_replaced(made, kind):
    machine = made[kind]
    looker = drivers.Drivers(options.load(), machine.host)
    one, other, *_ = sorted(machine.boards)
    before = found(machine, looker)
    machine.swap(one, other)
    after = found(machine, looker)
    assert [after[one].serial, after[other].serial] == [before[other].serial, before[one].serial]
    machine.replace(one, again=False)
    assert found(machine, looker)[one].serial not in {card.serial for card in before.values()}
    machine.replace(one, again=True)
    assert found(machine, looker)[one].serial == before[other].serial
    agree(machine, looker)


@pytest.mark.parametrize('kind', KINDS)
def test_cards_are_pulled_and_put_back(made, kind):
    machine = made[kind]
    machine.pull(machine.cards[0])
    machine.pull(machine.cards[0])
    assert machine.pulled == machine.cards[:1]
    assert machine.cards[0] not in found(machine)
    agree(machine)
    machine.put_back()
    agree(machine)


@pytest.mark.parametrize('parts', [0, 8, 16])
def test_card_changes_its_form(made, parts):
    machine = made['mixed-alveo-qat']
    [(address, most)] = machine.split_cards.items()
    assert (address, most) == ('0000:b1:00.0', 16)
    for number in (parts, 0, parts):
        machine.split(address, number)
        agree(machine)
        assert len(machine.there()[address].functions) == (number or 1)


def test_machine_stays_itself(made):
    machine = made['hgx-8gpu']
    before = machine.host.machine
    machine.rename('another')
    assert (machine.host.name, machine.host.machine) == ('another', before)


def test_no_two_cards_have_one_serial_number(tmp_path):
    laid_out = machines.lay_out(tmp_path, 2 * len(KINDS), KINDS)
    serials = [serial for machine in laid_out for serial in machine.serials.values()]
    assert len(set(serials)) == len(serials) > 0

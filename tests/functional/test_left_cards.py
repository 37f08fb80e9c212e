# SPDX-License-Identifier: Apache-2.0
"""What an allocation leaves is given out once nobody has it open: with real device nodes.

No agent reports here of its own accord: conductors ask it to.
"""

import pytest

from tests import devices
from tests.functional import test_leases
from tests.functional import test_shared_box

pytestmark = devices.needs_root
JANE, BOB = devices.JANE, devices.BOB
place, box = test_shared_box.place, test_shared_box.box


@pytest.fixture
def machine(box):
    made = box('advisory')
    made.until(lambda: made.served.compared)
    with test_leases.opened(made):
        yield made


def allocate(machine, count, **more):
    """The address of a new allocation of the API."""
    wanted = {'groups': [{'resources': {'CUSTOM_NPU': count}}]} | more
    return f'/v2/allocations/{machine.service.api.post("/v2/allocations", wanted).json["uuid"]}'


def delete(machine, allocation):
    assert machine.service.api.delete(allocation).status_int == 204


def state(machine, allocation):
    return machine.service.api.get(allocation).json['state']


def close(machine, user):
    """End a process, and have the agent look."""
    user.kill()
    user.wait()
    machine.agent.look()


def until_used(machine, number, user):
    """Wait until it is known which process has a card open."""
    machine.until(lambda: str(user.pid) in (machine.accelerators()[number]['rogue'] or ''))


def test_cards_of_an_allocation_of_the_api(machine):
    """Its agent does not know of it, nor which processes are of it."""
    made = allocate(machine, 4)
    user, said = machine.opening(JANE, machine.nodes[2])
    assert said == 'opened'
    waits = allocate(machine, 4, queue=True)
    delete(machine, made)
    until_used(machine, 2, user)
    assert [each['state'] for each in machine.accelerators()] == ['free', 'free', 'rogue', 'free']
    assert state(machine, waits) == 'queued'
    close(machine, user)
    machine.until(lambda: state(machine, waits) == 'active')
    # Nobody has them open: no period passes.
    delete(machine, waits)
    machine.until(lambda: {each['state'] for each in machine.accelerators()} == {'free'})


def test_cards_that_a_user_of_no_lease_has_open(machine):
    """The process of the lease has ended, and all its children."""
    made, lease = test_shared_box.hold(machine, JANE)
    number = machine.nodes.index(machine.node_of(lease))
    bob, said = machine.opening(BOB, machine.nodes[number])
    assert said == 'opened'
    made.kill()
    made.wait()
    machine.until(lambda: not machine.held())
    until_used(machine, number, bob)
    close(machine, bob)
    machine.until(lambda: machine.accelerators()[number]['state'] == 'free')


@pytest.mark.parametrize('reservation', ['goes on', 'is released'])
def test_cards_of_a_lease_from_a_reservation(machine, reservation):
    """It is given to no other process of the reservation, and to nobody after its end."""
    status, uuid, err = machine.run('reserve', '-n', '2', '--at', 'now', '--for', '1h')
    assert status == 0, err
    drawing = 'run', '--reservation', uuid.strip()
    made = machine.command(*drawing, '-n', '1', '--', 'sleep', '600')
    machine.until(lambda: machine.lease(made.pid, 'active'))
    lease = machine.lease(made.pid)
    number = machine.nodes.index(machine.node_of(lease))
    user, said = machine.opening(BOB, machine.nodes[number])
    assert said == 'opened'
    delete(machine, f'/v2/allocations/{lease["uuid"]}')
    machine.until(lambda: not machine.lease(made.pid))
    until_used(machine, number, user)
    # It stays known, although a request holds the card, whatever else is reported.
    free = [each['state'] for each in machine.accelerators()].index('free')
    other, _ = machine.opening(BOB, machine.nodes[free])
    machine.agent.report()
    close(machine, other)
    for count, wanted in ('1', 0), ('2', 1):
        shows = '--nonblock', '-n', count, '--', 'printenv', 'CYBORG_DEVICES'
        status, out, _ = machine.run(*drawing, *shows)
        assert status == wanted
        assert f'"name":"{number}"' not in out
    if reservation == 'goes on':
        close(machine, user)
        both = *drawing, '--nonblock', '-n', '2', '--', 'true'
        machine.until(lambda: machine.run(*both)[0] == 0)
        delete(machine, f'/v2/allocations/{uuid.strip()}')
        return
    waits = allocate(machine, 4, queue=True)
    delete(machine, f'/v2/allocations/{uuid.strip()}')
    until_used(machine, number, user)
    assert state(machine, waits) == 'queued'
    close(machine, user)
    machine.until(lambda: state(machine, waits) == 'active')
    delete(machine, waits)

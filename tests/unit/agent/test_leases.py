# SPDX-License-Identifier: Apache-2.0
"""What an agent does with its leases, without a conductor and without processes."""

import threading
import types
import unittest.mock
import uuid

import pytest

from cyborg_lite import driver
from cyborg_lite.agent import leases
from cyborg_lite.agent import nodes
from cyborg_lite.agent import processes

JANE = processes.Process('b-1', 7, 9, 1000, 'jane', 'python')


class Conductor:
    """Answers as a conductor does; ``meanwhile`` is called before the leases are compared."""

    def __init__(self):
        self.rows = []
        self.meanwhile = lambda: None

    def leases(self, **_):
        rows = [*self.rows]
        self.meanwhile()
        return rows

    def lease(self, uuid, request, **_):
        self.rows.append(row(request['accelerators'], uuid))
        return self.rows[-1]


def row(accelerators, uuid):
    return {'uuid': uuid, 'state': 'active', 'name': None, 'accelerators': accelerators}


@pytest.fixture
def conductor():
    return Conductor()


@pytest.fixture
def served(conductor):
    """The leases of this machine, by an agent whose thread does not run."""
    bus = types.SimpleNamespace(leases=lambda *_, **__: conductor)
    return leases.Leases(
        bus, driver.Host.local('host-1'), 'agent-1', threading.Event(), nodes.Finding
    )


def take(served, *accelerators):
    return served.take(JANE, {'accelerators': list(accelerators)})


def instance(number):
    """An instance of MIG of the first card."""
    ids = {
        'uuid': f'MIG-{number}', 'minor': 0, 'gpu_instance_minor': 10 * number,
        'compute_instance_minor': 10 * number + 1,
    }  # fmt: skip
    return {
        'uuid': str(uuid.uuid4()), 'host': 'host-1', 'address': '0000:3b:00.0', 'form': 'mig',
        'driver': 'nvidia_gpu', 'ids': ids,
    }  # fmt: skip


def test_a_node_that_another_lease_has_too_keeps_neither(served):
    """Two instances of a card share its node: a process of one lease would keep the other."""

    def using(holder, nodes, mark=None):
        return sorted(nodes)

    caps = '/dev/nvidia-caps/nvidia-cap'
    first = take(served, instance(1))
    with unittest.mock.patch.object(processes, 'using', using):
        assert served.opening(first) == [f'{caps}10', f'{caps}11', '/dev/nvidia0']
        second = take(served, instance(2), instance(3))
        assert served.opening(first) == [f'{caps}10', f'{caps}11']
        assert served.opening(second) == [f'{caps}{n}' for n in (20, 21, 30, 31)]


def test_a_lease_that_is_made_during_a_comparison_stays_known(served, conductor):
    """The answer was given before it was made."""
    conductor.meanwhile = lambda: take(served)
    assert served._compare()
    conductor.meanwhile = lambda: None
    assert len(served.all()) == 1
    conductor.rows.clear()
    assert served._compare()
    assert served.all() == []

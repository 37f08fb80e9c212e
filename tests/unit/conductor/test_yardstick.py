# SPDX-License-Identifier: Apache-2.0
"""The choice of cards beside the best known one: on one host, over many arrivals and departures.

The yardstick is ../shared/scheduling/bench/topo.py: its three types of hosts, its value iteration
and its simulation.  It needs numpy.
"""

import importlib.util
import os
import pathlib
import sys
import types
import unittest.mock

import pytest

from cyborg_lite.conductor import placing
from tests.unit.conductor import test_topology

YARDSTICK = pathlib.Path(__file__).parents[4] / 'shared/scheduling/bench/topo.py'
#: How many requests arrive: more at night.
ARRIVALS = {'gate': 50_000, 'nightly': 400_000}[os.environ.get('CYBORG_LITE_HYPOTHESIS', 'gate')]
#: The share of requests by the number of cards, and the load of the host.
MIXES = {
    'mixed': {1: 0.45, 2: 0.25, 3: 0.05, 4: 0.15, 5: 0.02, 8: 0.08},
    'powers of two': {1: 0.4, 2: 0.3, 4: 0.2, 8: 0.1},
}
LOAD = 0.7
#: The share of the result of value iteration that is demanded.
DEMANDED = 0.996

#: By the name of the type in the yardstick: the free cards of such a host.
HOSTS = {
    'dgx1v': lambda free: test_topology.host(test_topology.CUBE, free=free),
    'hccs4': lambda free: test_topology.host(test_topology.RINGS, free=free),
    'numa4': lambda free: test_topology.host(bridges=[0, 0, 1, 1, 2, 2, 3, 3], free=free),
}


@pytest.fixture(scope='module')
def topo():
    pytest.importorskip('numpy')
    if not YARDSTICK.exists():
        pytest.skip(f'{YARDSTICK} is absent')
    # It compiles its simulation, which is not necessary.
    plain = types.ModuleType('numba')
    plain.njit = lambda **_: lambda function: function
    with unittest.mock.patch.dict(sys.modules, numba=plain):
        spec = importlib.util.spec_from_file_location('topo', YARDSTICK)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def ours(name):
    """Our choice as the yardstick has them: of a set of bits and a number, a set of bits."""

    def choose(free, count):
        cards = HOSTS[name]([n for n in range(8) if free >> n & 1])
        return sum(1 << n for n in test_topology.chosen(cards, count, placing.binpack))

    return choose


@pytest.mark.parametrize('mix', MIXES)
@pytest.mark.parametrize('name', HOSTS)
def test_as_good_as_value_iteration(topo, name, mix):
    np, shares = topo.np, MIXES[mix]
    speeds = getattr(topo, name)()
    quality = topo.quality(speeds)
    ideal = np.array([1.0, 1.0, *(max(quality[s] for s in topo.SUB[k]) for k in range(2, 9))])
    random = np.random.default_rng(7)
    counts = random.choice([*shares], ARRIVALS, p=[*shares.values()]).astype(np.int64)
    mean = sum(count * share for count, share in shares.items())
    lasting = random.exponential(1.0, ARRIVALS)
    between = random.exponential(mean / (LOAD * 8), ARRIVALS)

    def result(policy):
        table = topo.table(policy)
        return topo.play(table, quality, ideal, counts, between, lasting, 0)[3]

    best = result(topo.solve(speeds, quality, ideal, shares, LOAD))
    assert result(ours(name)) / best >= DEMANDED

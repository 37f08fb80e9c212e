# SPDX-License-Identifier: Apache-2.0
"""The choice among the cards of one host, compared with the search through all sets."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from cyborg_lite.conductor import placing
from cyborg_lite.conductor import topology

#: NVLinks between the GPUs of a DGX-1V.
CUBE = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip
#: Two HCCS rings, as in an Atlas 800.
RINGS = {pair: 1 for half in (range(4), range(4, 8)) for pair in itertools.combinations(half, 2)}


def place(number, links=(), bridges=()):
    """Where a card is: its links by pairs of numbers, the bridges above it by their names."""
    peers = {sum(pair) - number: count for pair, count in dict(links).items() if number in pair}
    told = {'bridges': [*bridges], 'links': {str(peer): count for peer, count in peers.items()}}
    return topology.place(str(number), json.dumps(told))


def host(links=(), name='a', nodes=(0, 0, 0, 0, 1, 1, 1, 1), free=range(8), bridges=None):
    """The free cards of a host; a bridge for each is shared by those with an equal one."""
    return [
        placing.Candidate(
            1000 * ord(name) + n, name, 1000 * ord(name) + n, 'whole', nodes[n], frozenset({0}),
            place(n, links, [str(bridges[n])] if bridges else ()),
        )
        for n in free
    ]  # fmt: skip


def chosen(found, count, rank=placing.binpack, **more):
    """The numbers of the cards that are chosen, each in its host."""
    taken = placing.place(found, placing.Wanted((0,) * count, **more), rank)
    return taken and sorted(each.handle % 1000 for each in taken)


def test_what_is_nearer():
    """Links, the more the nearer; common bridges, the more the nearer; the NUMA node; nothing."""
    links = {(0, 1): 2, (0, 2): 1}
    above = {3: 'abcdefghijk', 4: 'ab', 5: 'a', 6: '', 7: ''}
    cards = [
        topology.Card(place(n, links, 'abcdefghijk' if n == 0 else above.get(n, '')), n != 7)
        for n in range(8)
    ]
    speeds = [topology.speed(cards[0], other) for other in cards[1:]]
    assert speeds == sorted(set(speeds), reverse=True)
    assert [topology.speed(other, cards[0]) for other in cards[1:]] == speeds
    # One of the two may not know the link.
    assert topology.speed(topology.Card(place(1), 0), cards[0]) == speeds[0]


def test_unknown_nodes_are_not_shared():
    assert topology.speed(topology.Card(place(0), None), topology.Card(place(1), None)) == (
        topology.speed(topology.Card(place(0), 0), topology.Card(place(1), 1))
    )


def test_cards_in_equal_places_are_one_place():
    assert place(1, RINGS) is place(1, RINGS)
    assert place(1, RINGS) is not place(2, RINGS)
    for nothing in None, 'null', '{}':
        assert not topology.place('a', nothing).is_known


def test_two_share_a_node_although_others_are_linked():
    bridged = {(0, 4): 4, (1, 5): 4}
    assert chosen(host(bridged), 2) == [2, 3]
    assert chosen(host(bridged, free=[0, 2, 4]), 2) == [0, 2]
    assert chosen(host(bridged, free=[0, 4, 5]), 2) == [4, 5]
    assert chosen(host(bridged, nodes=[0, 1] * 4), 2) == [0, 4]


def test_the_fastest_ring_is_chosen():
    assert chosen(host({(0, 3): 1, (1, 2): 2}), 2) == [1, 2]
    # All pairs but one of 0 to 3 are linked: that is a ring. 4 to 7 are a line.
    ring = {(0, 1): 1, (1, 2): 1, (2, 3): 1, (0, 3): 1, (0, 2): 1}
    line = {(4, 5): 3, (5, 6): 3, (6, 7): 3}
    assert chosen(host(ring | line), 4) == [0, 1, 2, 3]
    assert chosen(host(line | {(4, 7): 3} | ring), 4) == [4, 5, 6, 7]


def test_a_pair_below_one_bridge_is_chosen():
    pairs = [0, 1, 2, 3, 0, 1, 2, 3]
    assert chosen(host(nodes=[0] * 8, bridges=pairs, free=[0, 1, 2, 5, 7]), 2) == [1, 5]


def test_the_best_rest_is_kept():
    pairs = [0, 0, 1, 1, 2, 2, 3, 3]
    assert chosen(host(bridges=pairs, free=[0, 1, 2, 4, 5, 6, 7]), 1) == [2]
    assert chosen(host(RINGS, free=[0, 1, 2, 4, 5]), 1) == [4]
    assert chosen(host({(0, 3): 1, (1, 2): 2}, nodes=[0] * 8), 4) == [4, 5, 6, 7]
    # Either pair has two links: without 1 and 2 the rest is a ring.
    assert chosen(host(CUBE, free=[0, 1, 2, 4, 7]), 2) == [4, 7]


def test_the_best_of_all_hosts_is_chosen():
    """In one node and linked, in one node, linked: the policy decides among equals."""
    both, near = host(RINGS, 'c'), host(name='b', free=[0, 1, 2])
    linked = host({(0, 4): 1}, 'a', free=[0, 4])
    assert _host(linked + near + both, 2) == 'c'
    assert _host(linked + near, 2) == 'b'
    assert _host(linked + host(name='b', free=[0, 4]), 2) == 'a'
    more = host(RINGS, 'd', free=[0, 1, 2])
    assert _host(both + more, 2) == 'd'
    assert _host(both + more, 2, placing.spread) == 'c'
    # One card has no ring.
    assert _host(linked + near + both, 1) == 'a'


def _host(found, count, rank=placing.binpack):
    [name] = {each.host for each in placing.place(found, placing.Wanted((0,) * count), rank)}
    return name


def test_links_can_be_required():
    apart = host({(0, 4): 1}, free=[0, 1, 4])
    assert chosen(apart, 2) == [0, 1]
    assert chosen(apart, 2, linked=True) == [0, 4]
    assert chosen(apart, 2, linked=True, same_host=False) == [0, 4]
    assert chosen(apart, 2, linked=True, same_numa=True) is None
    assert chosen(apart, 3, linked=True) is None
    assert chosen(apart, 3) == [0, 1, 4]
    assert chosen(host(), 2, linked=True) is None
    assert chosen(host(), 1, linked=True) is not None
    assert chosen(host(free=[0]) + host(name='b', free=[1]), 2, linked=True) is None
    line = {(0, 1): 1, (1, 2): 1}
    assert chosen(host(line), 3, linked=True) is None
    assert chosen(host(line | {(0, 2): 1}), 3, linked=True) == [0, 1, 2]


def test_parts_of_one_card_are_not_linked():
    [one, other] = host({(0, 1): 1}, free=[0, 1])
    parts = [one, one._replace(handle=one.handle + 500)]
    assert chosen(parts, 2, linked=True) is None
    assert chosen([*parts, other], 2, linked=True) == [0, 1]
    # Each is of another kind.
    kinds = one, parts[1]._replace(kinds=frozenset({1})), other
    taken = placing.place(kinds, placing.Wanted((1, 0), linked=True), placing.binpack)
    assert [each.handle % 1000 for each in taken] == [500, 1]


def test_kinds_are_matched_with_the_best_set():
    found = host(RINGS)
    found[5:] = [each._replace(kinds=frozenset({1})) for each in found[5:]]
    taken = placing.place(found, placing.Wanted((0, 1, 1)), placing.binpack)
    assert sorted(each.handle % 1000 for each in taken) == [4, 5, 6]
    found[5:7] = host(RINGS, free=[5, 6])
    pair = placing.place(found, placing.Wanted((0, 1), linked=True), placing.binpack)
    assert [each.handle % 1000 for each in pair] == [4, 7]


def test_equal_hosts_are_compared_once():
    topology._sets.cache_clear()
    for name in 'abcdefgh':
        chosen(host(CUBE, name), 4)
    other = {(one + 8, two + 8): count for (one, two), count in CUBE.items()}
    cards = tuple(topology.Card(place(n, other), (n - 8) // 4) for n in range(8, 16))
    assert topology.sets(cards, 4)
    assert topology._sets.cache_info().misses == 1


def test_a_ring_of_many_cards():
    """Sixteen dies, linked in pairs twice, and each with all."""
    dies = {pair: 1 + (pair[1] == pair[0] ^ 1) for pair in itertools.combinations(range(16), 2)}
    nodes = [n // 8 for n in range(16)]
    assert chosen(host(dies, nodes=nodes, free=range(16)), 8, linked=True) == [*range(8)]
    assert len(chosen(host(dies, nodes=nodes, free=range(16)), 16, linked=True)) == 16
    assert chosen(host(dies, nodes=nodes, free=range(16)), 2) == [0, 1]


def test_many_sets_are_not_compared():
    """A host cannot make the choice long: it is made by the nodes alone."""
    wild = {(n, m): 1 + n * m % 37 for n, m in itertools.combinations(range(33), 2) if n * m % 5}
    nodes = [n % 2 for n in range(33)]
    spots = tuple(topology.Card(place(n, wild), nodes[n]) for n in range(33))
    assert topology.sets(spots[:32], 2) is not None
    assert topology.sets(spots[:32], 3) is topology.sets(spots, 1) is None
    for free in 16, 32, 33:
        for count in range(1, free + 1):
            taken = chosen(host(wild, nodes=nodes, free=range(free)), count)
            assert len(taken) == count
            assert count > free // 2 or len({nodes[n] for n in taken}) == 1


@st.composite
def cards(draw):
    """Candidates of two hosts, in any places, and each of some kinds."""
    pairs = st.sampled_from([*itertools.combinations(range(6), 2)])
    links = draw(st.dictionaries(pairs, st.integers(1, 3)))
    found = []
    for name in draw(st.sampled_from(['a', 'ab'])):
        for n in sorted(draw(st.sets(st.integers(0, 5), min_size=1))):
            bridges = draw(st.sampled_from(['', 'p', 'pq', 'r']))
            number = 1000 * ord(name) + n
            found.append(
                placing.Candidate(
                    *(number, name, number, '', draw(st.sampled_from([0, 1, None]))),
                    draw(st.frozensets(st.integers(0, 1), min_size=1)),
                    place(n, links, bridges),
                )
            )
    return found


wants = st.builds(
    placing.Wanted,
    st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple),
    same_host=st.just(True),
    same_numa=st.booleans(),
    linked=st.booleans(),
)


@given(cards(), wants, st.sampled_from([placing.binpack, placing.spread]))
def test_no_set_is_better(found, wanted, rank):
    """In one node before linked on all hosts; and on its host no ring is faster."""
    taken = placing.place(found, wanted, rank)
    allowed = [
        each for each in itertools.permutations(found, len(wanted.kinds)) if _fits(each, wanted)
    ]
    if taken is None:
        assert not allowed
        return
    assert tuple(taken) in allowed
    if any(each.place.is_known for each in taken):
        assert _grade(taken)[:2] == max(_grade(each)[:2] for each in allowed)
        mine = [each for each in allowed if each[0].host == taken[0].host]
        assert _grade(taken) == max(map(_grade, mine))


def _fits(taken, wanted):
    one_node, linked, _ = _grade(taken)
    return (
        all(kind in each.kinds for each, kind in zip(taken, wanted.kinds, strict=True))
        and len({each.host for each in taken}) == 1
        and one_node >= wanted.same_numa
        and linked >= wanted.linked
    )


def _grade(taken):
    """Whether a set is in one node, whether it is linked, and its ring: by all orders of it."""
    nodes = {each.numa_node for each in taken}
    one_node = len(taken) == 1 or (len(nodes) == 1 and None not in nodes)
    spots = [topology.Card(each.place, each.numa_node) for each in taken]
    first, *others = spots
    rings = ((first, *order, first) for order in itertools.permutations(others))
    ring = max(min(map(topology.speed, each, each[1:])) for each in rings) if others else 0
    return one_node, not others or ring >= topology.LINK, ring

# SPDX-License-Identifier: Apache-2.0
"""The choice among free accelerators: no database, no clock."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st
import pytest
from stevedore import exception

from cyborg_lite.conductor import placing


def free(*places, kinds=(0,), form='part'):
    """A candidate on each place (host, NUMA node), each of a device of its own."""
    return [
        placing.Candidate(number, host, number, form, node, frozenset(kinds))
        for number, (host, node) in enumerate(places)
    ]


def place(candidates, *kinds, rank=placing.binpack, **more):
    chosen = placing.place(candidates, placing.Wanted(kinds or (0,), **more), rank)
    return None if chosen is None else [each.handle for each in chosen]


def test_nothing_is_free():
    assert place([]) is None


def test_the_fullest_host_that_has_room_or_the_emptiest():
    places = free(('a', 0), ('a', 0), ('a', 0), ('b', 0), ('b', 0), ('c', 0))
    assert place(places, 0, 0) == [3, 4]
    assert place(places, 0, 0, rank=placing.spread) == [0, 1]
    assert place(places, 0) == [5]


def test_a_set_in_one_node_goes_before_the_fullest_host():
    assert place(free(('a', 0), ('a', 1), ('b', 0), ('b', 0), ('b', 1)), 0, 0) == [2, 3]


def test_the_node_with_most_free_is_kept_whole():
    assert place(free(('a', 0), ('a', 0), ('a', 1), ('a', 1), ('a', 1)), 0, 0) == [0, 1]
    assert place(free(('a', 0), ('a', 0), ('a', 1)), 0) == [2]


def test_a_node_that_is_not_known_is_not_shared():
    unknown = free(('a', None), ('a', None))
    assert place(unknown, 0, 0) == [0, 1]
    assert place(unknown, 0, 0, same_numa=True) is None
    assert place(unknown, 0, same_numa=True) == [0]


def test_hosts_are_apart_only_where_they_may_be():
    places = free(('a', 0), ('b', 0))
    assert place(places, 0, 0) is None
    assert sorted(place(places, 0, 0, same_host=False)) == [0, 1]
    assert place(places, 0, 0, same_host=False, same_numa=True) is None


def test_the_scarcest_kind_is_chosen_first():
    both, one = free(('a', 0), kinds=(0, 1)), free(('b', 0), ('a', 0), kinds=(0,))[1:]
    assert place(both + one, 0, 1) == [1, 0]


def test_a_choice_is_changed_for_another_kind():
    """0 can be served by b and c, 1 by a and b, 2 by a alone."""
    a, b, c = free(*[('h', 0)] * 3)
    a, b, c = (a._replace(kinds=frozenset({1, 2})), b._replace(kinds=frozenset({0, 1})),
               c._replace(kinds=frozenset({0})))  # fmt: skip
    for candidates in itertools.permutations([a, b, c]):
        for kinds in itertools.permutations([0, 1, 2]):
            chosen = placing.place(candidates, placing.Wanted(kinds), placing.binpack)
            assert all(each.kinds >= {k} for each, k in zip(chosen, kinds, strict=True))
            assert len({each.handle for each in chosen}) == 3


def test_a_device_is_given_out_in_one_form():
    whole = placing.Candidate(0, 'a', 7, 'whole', 0, frozenset({0}))
    parts = [placing.Candidate(n, 'a', 7, 'vf', 0, frozenset({0})) for n in (1, 2)]
    assert place([whole, *parts], 0, 0) == [1, 2]
    assert place([whole, *parts], 0, 0, 0) is None


def test_a_card_in_use_is_used_up_first():
    parts = [placing.Candidate(n, 'a', 7 + (n > 3), 'vf', 0, frozenset({0})) for n in range(6)]
    assert place(parts, 0) == [4]


@given(st.data())
def test_a_set_is_found_whenever_there_is_one(data):
    """Compared with the search through all sets."""
    kinds = st.frozensets(st.integers(0, 2), min_size=1)
    spot = st.tuples(st.sampled_from('ab'), st.sampled_from([0, 1, None]), kinds)
    found = [
        placing.Candidate(n, host, n, '', node, fit)
        for n, (host, node, fit) in enumerate(data.draw(st.lists(spot, max_size=6)))
    ]
    wanted = placing.Wanted(
        tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
    )
    rank = data.draw(st.sampled_from([placing.binpack, placing.spread]))
    chosen = placing.place(random.Random(1).sample(found, len(found)), wanted, rank)
    sets = [list(s) for s in itertools.permutations(found, len(wanted.kinds)) if _fits(s, wanted)]
    if chosen is None:
        assert not sets
    else:
        assert chosen in sets
        if any(_one_node(each) for each in sets):
            assert _one_node(chosen)


def _one_node(chosen):
    places = {(each.host, each.numa_node) for each in chosen}
    return len(places) == 1 and (len(chosen) == 1 or chosen[0].numa_node is not None)


def _fits(chosen, wanted):
    if not all(kind in each.kinds for each, kind in zip(chosen, wanted.kinds, strict=True)):
        return False
    one_host = len({each.host for each in chosen}) == 1
    if wanted.same_numa:
        return _one_node(chosen)
    return one_host or not wanted.same_host


def test_policies_are_entry_points():
    assert placing.policy('binpack') is placing.binpack
    assert placing.policy('spread') is placing.spread
    with pytest.raises(exception.NoMatches):
        placing.policy('none')

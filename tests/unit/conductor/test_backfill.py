# SPDX-License-Identifier: Apache-2.0
"""Which of those that wait are served: no database, no clock."""

import collections

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from cyborg_lite.conductor import backfill
from cyborg_lite.conductor import placing
from cyborg_lite.conductor import topology


def card(handle, host='a', kind=0, node=0):
    return placing.Candidate(handle, host, handle, 'part', node, frozenset({kind}))


def entry(id, *amounts, kind=0, hosts=None, **more):
    """An entry that wants so many of a kind together; further amounts are alternatives."""
    sets = tuple(placing.Wanted((kind,) * amount, **more) for amount in amounts or (1,))
    return backfill.Entry(id, sets, hosts)


def capacity(cards):
    """These, as if all were free."""

    def amounts():
        found = collections.defaultdict(collections.Counter)
        for each in cards:
            for kind in each.kinds:
                found[kind][each.host] += 1
        return found

    return backfill.Capacity(amounts, lambda _: cards)


def served(entries, free, known=None):
    known = free if known is None else known
    found = backfill.grants(entries, free, capacity(known), placing.binpack)
    return {each.entry.id: sorted(c.handle for c in each.chosen) for each in found}


def test_entries_are_served_in_order():
    assert served([entry(7), entry(3), entry(5)], [card(1), card(2)]) == {7: [1], 3: [2]}
    assert served([], [card(1)]) == {}
    assert served([entry(1)], []) == {}


def test_accelerators_are_reserved_for_the_first():
    known = [card(1), card(2)]
    assert served([entry(1, 2), entry(2)], [card(1)], known) == {}
    assert served([entry(2), entry(1, 2)], [card(1)], known) == {2: [1]}


def test_accelerators_are_reserved_for_each_that_can_use_them():
    cards = [card(1), card(2), card(3, kind=1), card(4, kind=1)]
    entries = [entry(1, 2), entry(2, 2, kind=1), entry(3), entry(4, kind=1)]
    assert served(entries, [cards[0], cards[2]], cards) == {}
    assert served(entries, [cards[0], *cards[2:]], cards) == {2: [3, 4]}


def test_accelerators_are_reserved_for_a_node_and_for_links():
    known = [
        card(n)._replace(place=topology.Place(str(n), (), {str(m): 1})) for n, m in ((1, 2), (2, 1))
    ]
    for term in 'same_numa', 'linked':
        assert served([entry(1, 2, **{term: True}), entry(2)], known[:1], known) == {}


def test_accelerators_of_no_use_to_the_first_go_on():
    small, other = card(3, 'b'), card(4, 'a', kind=1)
    known = [card(1), card(2), small, other]
    assert served([entry(1, 2), entry(2)], [card(1), small], known) == {2: [3]}
    assert served([entry(1, 2), entry(2, kind=1)], [card(1), other], known) == {2: [4]}
    named = entry(1, 2, hosts=frozenset('a'))
    assert served([named, entry(2)], [card(1), small], [*known, card(5, 'b')]) == {2: [3]}
    apart = entry(1, 4, same_host=False)
    assert served([apart, entry(2)], [card(1), small], known) == {2: [1]}
    assert served([apart, entry(2)], [card(1), small], [*known, card(5, 'b')]) == {}
    nodes = entry(1, 2, same_numa=True)
    assert served([nodes, entry(2)], [card(1)], [card(1), card(2, node=1)]) == {2: [1]}


def test_the_first_alternative_that_fits_is_used():
    assert served([entry(1, 2, 1)], [card(1)]) == {1: [1]}
    assert served([entry(1, 2, 1)], [card(1), card(2)]) == {1: [1, 2]}


def test_accelerators_for_unqueued_requests():
    known = [card(1), card(2), card(3, 'b')]
    left = backfill.unreserved([entry(1, 2)], [card(1), card(3, 'b')], capacity(known))
    assert left == [card(3, 'b')]


def test_all_accelerators_are_read_only_if_needed():
    def read(*_):
        raise AssertionError

    never = backfill.Capacity(read, read)
    found = backfill.grants([entry(1), entry(2)], [card(1)], never, placing.binpack)
    assert [each.entry.id for each in found] == [1]


def test_impossible_wishes_are_cheap():
    """A tenant may request many different sets: counts alone refuse each."""
    cards = [card(n, host=f'host-{n // 8}') for n in range(800)]
    reads = []
    known = capacity(cards)
    counted = backfill.Capacity(known._amounts, lambda wanted: reads.append(wanted) or cards)
    wishes = [
        entry(n, *range(9 + n, 19 + n), hosts=frozenset({f'host-{n}', 'host-0'})) for n in range(90)
    ]
    assert list(backfill.grants(wishes, cards[:80], counted, placing.binpack)) == []
    assert backfill.unreserved(wishes, cards[:80], counted) == cards[:80]
    assert reads == []
    # What is the same is worked out once.
    for hosts in (None, frozenset({'host-1'}), frozenset({'host-1', 'host-2'})):
        full = entry(0, 8, hosts=hosts)
        assert list(backfill.grants([full] * 50, cards[8:12], counted, placing.binpack)) == []
    assert len(reads) == 1


HOSTS = st.sampled_from('abc')
ENTRIES = st.lists(
    st.builds(
        lambda amounts, kind, host, hosts: entry(
            0, *amounts, kind=kind, same_host=host, hosts=hosts
        ),
        st.lists(st.integers(1, 4), min_size=1, max_size=2),
        st.integers(0, 1),
        st.booleans(),
        st.none() | st.frozensets(HOSTS, min_size=1),
    ),
    min_size=1,
    max_size=5,
).map(lambda found: [each._replace(id=n) for n, each in enumerate(found)])


TIMES = st.sampled_from([None, 10, 20])
#: what an entry may need beside the accelerators; its lease has an end if it needs a time
TERMS = {'numa': {'same_numa': True}, 'link': {'linked': True}, 'time': {}, 'nothing': {}}


def needing(entry, term):
    """The entry with one of TERMS."""
    sets = tuple(wanted._replace(**TERMS[term]) for wanted in entry.sets)
    return entry._replace(sets=sets, lease=10 if term == 'time' else None)


@st.composite
def machines(draw):
    """Cards with their nodes and links, of which reservations need some later."""
    number = draw(st.integers(1, 8))
    pairs = [draw(st.frozensets(st.integers(0, 7))) for _ in range(number)]

    def made(n):
        near = {str(m): 1 for m in range(number) if m in pairs[n] or n in pairs[m]}
        place = topology.Place(str(n), (), near)
        where = draw(st.sampled_from('aab')), draw(st.sampled_from([0, 0, 1]))
        one = card(n, *where, node=draw(st.sampled_from([0, 0, 1])))
        return one._replace(place=place, spare=draw(TIMES))

    return [made(n) for n in range(number)]


@pytest.mark.parametrize('term', TERMS)
@settings(max_examples=300)
@given(
    entries=ENTRIES,
    terms=st.lists(st.sampled_from([*TERMS]), min_size=4, max_size=4),
    cards=machines(),
    freed=st.permutations(range(8)),
)
def test_nothing_behind_the_first_delays_it(term, entries, terms, cards, freed):
    """Cards come free one after the other, and served entries keep theirs: the first entry is
    served as early as if it were alone.

    :param term: what the first needs; those behind it need others.
    """
    entries = [needing(*each) for each in zip(entries, [term, *terms], strict=False)]
    first, *behind = entries

    def moment(waiting):
        free, waiting = [], list(waiting)
        for step, number in enumerate(freed):
            if number < len(cards):
                free.append(cards[number])
            while got := next(
                backfill.grants(waiting, free, capacity(cards), placing.binpack), None
            ):
                if got.entry.id == first.id:
                    return step
                free = [each for each in free if each not in got.chosen]
                waiting.remove(got.entry)
        return None

    assert moment(entries) == moment([first])
    assert behind == entries[1:]


@given(entries=ENTRIES, places=st.lists(st.tuples(HOSTS, st.integers(0, 1)), max_size=8))
def test_nothing_is_given_twice_and_the_first_is_served_if_possible(entries, places):
    cards = [card(n, host, kind) for n, (host, kind) in enumerate(places)]
    got = list(backfill.grants(entries, cards, capacity(cards), placing.binpack))
    handles = [each.handle for grant in got for each in grant.chosen]
    assert len(set(handles)) == len(handles)
    ids = [grant.entry.id for grant in got]
    assert ids == sorted(set(ids))
    fit = [each for each in cards if entries[0].fit([each])]
    could = backfill.first(fit, entries[0].sets, placing.binpack) is not None
    assert (0 in ids) == could

# SPDX-License-Identifier: Apache-2.0
"""The order in which allocations are served: no database, no clock."""

import collections
import datetime

from hypothesis import given
from hypothesis import strategies as st

from cyborg_lite.model import queue

NOW = datetime.datetime(2026, 11, 26, 12)


def waiting(id, project='a', priority=0, since=0, amount=1, held=0, resource_class='CUSTOM_NPU'):
    """An allocation that has waited for so many seconds."""
    moment = NOW - datetime.timedelta(seconds=since)
    return queue.Waiting(id, project, resource_class, priority, moment, amount, held)


def order(*found):
    return [each.id for each in queue.in_turn(found, NOW)]


def test_an_empty_queue():
    assert order() == []


def test_higher_priorities_and_then_the_oldest():
    found = [waiting(1), waiting(2, priority=-1), waiting(3, priority=5), waiting(4)]
    assert order(*found) == order(*reversed(found)) == [3, 1, 4, 2]


def test_the_project_that_holds_less():
    assert order(waiting(1, 'a', held=3), waiting(2, 'b', held=2)) == [2, 1]
    assert order(waiting(1, 'a', held=9, priority=1), waiting(2, 'b')) == [1, 2]


def test_earlier_allocations_of_a_project_count():
    a = [waiting(n, 'a', held=1) for n in (1, 2, 3)]
    b = [waiting(n, 'b', held=2) for n in (4, 5)]
    assert order(*a, *b) == [1, 2, 4, 3, 5]
    assert order(waiting(1, 'a', amount=8), waiting(2, 'a'), waiting(3, 'b'), waiting(4, 'b')) == \
        [1, 3, 4, 2]  # fmt: skip
    high = waiting(1, 'a', priority=1, amount=4)
    assert order(high, waiting(2, 'a'), waiting(3, 'b')) == [1, 3, 2]


def test_other_classes_of_a_project_do_not_count():
    found = [waiting(1, 'a', held=5, resource_class='FPGA'), waiting(2, 'a'), waiting(3, 'b')]
    assert order(*found) == [2, 3, 1]


def test_a_long_wait_goes_first():
    old = waiting(1, 'a', priority=queue.LOWEST, since=queue.PATIENCE, held=99)
    young = waiting(2, 'b', priority=queue.HIGHEST, since=queue.PATIENCE - 1)
    assert order(young, old) == [1, 2]
    assert order(young, old._replace(since=young.since)) == [2, 1]


WAITING = st.builds(
    waiting,
    id=st.just(0),
    project=st.sampled_from('abc'),
    priority=st.integers(queue.LOWEST, queue.HIGHEST),
    since=st.integers(0, 2 * queue.PATIENCE),
    amount=st.integers(1, 8),
    held=st.just(0),
    resource_class=st.sampled_from(['CUSTOM_NPU', 'FPGA']),
)
#: In the order in which they came.
QUEUES = st.lists(WAITING, max_size=12).map(
    lambda found: [
        each._replace(id=number)
        for number, each in enumerate(sorted(found, key=lambda each: each.since))
    ]
)


@given(QUEUES)
def test_each_has_one_turn_and_priorities_hold(found):
    turns = queue.in_turn(found, NOW)
    assert collections.Counter(turns) == collections.Counter(found)
    young = [each for each in turns if (NOW - each.since).total_seconds() < queue.PATIENCE]
    assert [each.priority for each in young] == sorted((e.priority for e in young), reverse=True)
    for project in 'abc':
        for name in 'CUSTOM_NPU', 'FPGA':
            mine = [e for e in young if (e.project, e.queue) == (project, name)]
            assert mine == sorted(mine, key=lambda each: (-each.priority, each.id))


@given(QUEUES, st.lists(WAITING, max_size=12))
def test_nothing_starves(found, later):
    """After PATIENCE only earlier allocations go first, never later ones."""
    old = waiting(len(found), priority=queue.LOWEST, since=queue.PATIENCE, held=1000)
    before = [each._replace(since=min(each.since, old.since)) for each in found]
    later = [
        each._replace(id=old.id + 1 + number, since=max(each.since, old.since))
        for number, each in enumerate(later)
    ]
    turns = queue.in_turn([*later, old, *before], NOW)
    assert turns.index(old) <= len(before)
    assert {each.id for each in turns[: turns.index(old)]} <= {each.id for each in before}

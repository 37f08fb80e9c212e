# SPDX-License-Identifier: Apache-2.0
"""The check accepts possible answers about allocations, and finds impossible ones."""

import pytest

from tests.soak import allocations
from tests.soak import history


def asked(kind, at, outcome='ok', state='', held=(), status=200):
    """An operation that takes a second."""
    wanted = 2 if kind == 'allocate' else 0
    more = {'name': 'n', 'state': state, 'accelerators': held, 'wanted': wanted}
    return history.Operation(0, kind, (), at, at + 1, outcome, status, **more)


ACTIVE = asked('allocate', 0, state='active', held=('x', 'y'))
QUEUED = asked('allocate', 0, state='queued')
UNKNOWN = asked('allocate', 0, 'unknown', status=503)
RELEASED = asked('release', 4)
NOT_FOUND = asked('release', 4, 'fail', status=404)


@pytest.mark.parametrize(
    'told',
    [
        [ACTIVE, RELEASED],
        [QUEUED, asked('look', 2, state='active', held=('x', 'y')), RELEASED],
        # It was not sent.
        [ACTIVE, asked('look', 2, 'fail', status=0), RELEASED],
        [ACTIVE, asked('renew', 2, state='active', held=('x', 'y')), RELEASED],
        [QUEUED, asked('renew', 2, 'fail', status=409), RELEASED],
        [ACTIVE, asked('release', 2, 'unknown'), asked('renew', 4, 'fail', status=409)],
        [UNKNOWN, NOT_FOUND],
        [UNKNOWN, NOT_FOUND, asked('look', 6, state='active', held=('x', 'y'))],
        [ACTIVE, asked('release', 2, 'unknown'), asked('look', 4, state='released')],
        [ACTIVE, asked('release', 2, 'unknown'), asked('look', 4, state='active', held=('x', 'y'))],
        [asked('allocate', 0, 'fail', status=409), NOT_FOUND],
        [ACTIVE, asked('release', 2, 'fail', status=0), RELEASED],
    ],
)
def test_a_possible_history_is_accepted(told):
    assert allocations.stories(told)[1] == []


@pytest.mark.parametrize(
    ('told', 'found'),
    [
        ([asked('allocate', 0, state='active', held=('x',))], 'with 1 accelerators of 2'),
        ([asked('allocate', 0, state='active', held=('x', 'x'))], 'with 2 accelerators of 2'),
        ([asked('allocate', 0, state='queued', held=('x',))], 'with 1 accelerators of 0'),
        ([ACTIVE, asked('look', 2, state='active', held=('x', 'z'))], 'with other accelerators'),
        ([ACTIVE, asked('look', 2, state='queued')], 'and it was active'),
        ([ACTIVE, asked('look', 2, state='released')], 'nobody had released it'),
        ([ACTIVE, asked('look', 2, 'fail', status=404)], 'found no n: 404'),
        ([ACTIVE, asked('renew', 2, 'fail', status=409)], 'was refused: 409'),
        ([ACTIVE, asked('renew', 2, state='active', held=('x', 'z'))], 'with other accelerators'),
        ([ACTIVE, NOT_FOUND], 'found no n'),
        ([ACTIVE, asked('release', 4, 'fail', status=409)], 'was refused: 409'),
        (
            [ACTIVE, RELEASED, asked('look', 6, state='active', held=('x', 'y'))],
            'and it was released',
        ),
    ],
)
def test_an_impossible_history_is_found(told, found):
    wrong = allocations.stories(told)[1]
    assert [each for each in wrong if found in each]


@pytest.mark.parametrize(
    ('told', 'found'),
    [
        ([ACTIVE], []),
        ([UNKNOWN, NOT_FOUND], []),
        ([ACTIVE, RELEASED], ['I6: allocation n is active in the end, and it was released']),
        ([], ['I6: allocation n is active in the end, and nobody knows of it']),
    ],
)
def test_allocations_that_remain_are_checked(told, found):
    stories, _ = allocations.stories(told)
    assert list(allocations.check(stories, [('n', 'active')])) == found


def test_an_accelerator_of_an_allocation_has_one_holder():
    stories, _ = allocations.stories([ACTIVE, RELEASED])
    others = allocations.holds(stories, {'x': 'rp 1.0', 'y': 'rp 1.1'})
    assert others == [history.Hold('rp 1.0', 1, 4, 'n'), history.Hold('rp 1.1', 1, 4, 'n')]
    twice = [*others, history.Hold('rp 1.1', 3, 9, 'a request')]
    [wrong] = history.check([], {}, others=twice)
    assert wrong.startswith('I1: rp 1.1 was held by n until 4')
    later = [*others, history.Hold('rp 1.1', 4, 9, 'a request')]
    assert list(history.check([], {}, others=later)) == []


def test_an_allocation_that_may_have_been_released_holds_nothing_for_certain():
    looked = asked('look', 4, state='active', held=('x', 'y'))
    stories, _ = allocations.stories([UNKNOWN, asked('release', 2, 'unknown'), looked])
    assert allocations.holds(stories, {'x': 'rp 1.0', 'y': 'rp 1.1'}) == []

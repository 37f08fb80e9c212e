# SPDX-License-Identifier: Apache-2.0
"""Whether a process sees all pids, and lists of them."""

import pytest

from cyborg_lite import contract
from cyborg_lite.driver import pids


@pytest.mark.parametrize(
    ('link', 'uid', 'are_global', 'sees_all'),
    [
        ('pid:[4026531836]', 0, True, True),
        ('pid:[4026531836]', 1000, True, False),
        ('pid:[4026532201]', 0, False, False),
        (None, 0, False, False),
    ],
)
def test_root_of_the_first_namespace_sees_all(
    monkeypatch, tmp_path, link, uid, are_global, sees_all
):
    if link:
        (tmp_path / 'pid').symlink_to(link)
    monkeypatch.setattr(pids, 'NAMESPACE', tmp_path / 'pid')
    monkeypatch.setattr(pids.os, 'geteuid', lambda: uid)
    assert (pids.are_global(), pids.sees_all()) == (are_global, sees_all)


@pytest.mark.parametrize(
    ('told', 'found'),
    [
        ({'pids': [7, 1 << 22]}, {7, 1 << 22}),
        ({'pids': [0, -1, (1 << 22) + 1, 7]}, {7}),
        ({'pids': [True, 7.0, '7', None, [7]]}, set()),
        ({'pids': 7}, set()),
        ({}, set()),
        ([7], set()),
        (None, set()),
    ],
)
def test_what_is_no_pid_is_left_out(told, found):
    assert pids.of(told) == found


def test_a_list_is_no_longer_than_a_device_may_have():
    assert len(pids.of({'pids': [*range(1, 9000)]})) == contract.PROCESSES

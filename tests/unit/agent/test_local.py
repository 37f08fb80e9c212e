# SPDX-License-Identifier: Apache-2.0
import grp
import os
import stat

import pytest

from cyborg_lite.agent import local


def group():
    """A group to which this user may give a file; for root, another group than its own."""
    every = [each.gr_gid for each in grp.getgrall()] if os.getuid() == 0 else os.getgroups()
    gid = next((each for each in every if each != os.getgid()), os.getgid())
    return grp.getgrgid(gid)


@pytest.mark.parametrize('mode', [0o600, 0o660])
def test_who_may_use_the_socket(tmp_path, mode):
    """Its user, and the members of a group where one is configured; nobody else."""
    named = group() if mode == 0o660 else None
    path, before = tmp_path / 'agent.sock', os.umask(0)
    try:
        local._listen(path, named and named.gr_name).close()
    finally:
        os.umask(before)
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == mode
    assert found.st_gid == (named.gr_gid if named else os.getgid())


def test_a_group_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match='socket_group: there is no group nobodies'):
        local._listen(tmp_path / 'agent.sock', 'nobodies')

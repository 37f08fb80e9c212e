# SPDX-License-Identifier: Apache-2.0
"""Who launched a process, as the kernel keeps it."""

import contextlib
import os
import pathlib
import subprocess
import sys

import pytest

from cyborg_lite.agent import launching

JANE, INSIDE = 4201, 4202
#: A process as in a rootless container of a user, which makes another user namespace itself.
ROOTLESS = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def unshare():
    if libc.unshare(0x10000000):
        print('not possible', flush=True), sys.exit()
    print('done', flush=True)
    sys.stdin.readline()
os.setgroups([]), os.setresgid({JANE}, {JANE}, {JANE}), os.setresuid({JANE}, {JANE}, {JANE})
unshare()
os.setresuid(1, 1, 1)
unshare()
"""
#: A process that sets its own login to that of another.
CLAIM = """
import ctypes, os, sys
os.setgroups([]), os.setgid({uid}), os.setuid({uid})
# PR_SET_DUMPABLE: its files in /proc belong to its user again.
ctypes.CDLL(None).prctl(4, 1)
try:
    with open('/proc/self/loginuid', 'w') as file:
        file.write('4209')
    print('done', flush=True)
except OSError:
    print('not possible', flush=True)
sys.stdin.readline()
"""
needs_users = pytest.mark.skipif(os.geteuid() != 0, reason='it needs two users')


@contextlib.contextmanager
def started(script):
    """A process that has done what it is to do; the test is skipped if the kernel refuses it."""
    pipes = dict.fromkeys(('stdin', 'stdout'), subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-S', '-c', script], **pipes, text=True) as made:
        try:
            go_on(made)
            yield made
        finally:
            made.kill()


def go_on(made):
    if made.stdout.readline() != 'done\n':
        pytest.skip('the kernel refuses it here')


@needs_users
def test_a_rootless_container_is_of_the_owner_of_its_namespace():
    with started(ROOTLESS) as made:
        assert launching.launcher(made.pid, 100999) == f'uid-{JANE}'
        # Its root is that user.
        assert launching.launcher(made.pid, JANE) is None
        home = pathlib.Path('/proc', str(made.pid))
        (home / 'uid_map').write_text(f'0 {JANE} 1\n1 {INSIDE} 1\n')
        (home / 'gid_map').write_text(f'0 {JANE} 1\n')
        made.stdin.write('\n')
        made.stdin.flush()
        go_on(made)
        assert launching.launcher(made.pid, INSIDE) == f'uid-{JANE}'


@needs_users
@pytest.mark.parametrize(('uid', 'found'), [(0, 'uid-4209'), (JANE, None)])
def test_only_a_login_of_root_is_believed(uid, found):
    """Without a login a process may choose one."""
    with started(CLAIM.format(uid=uid)) as made:
        assert launching.launcher(made.pid, uid) == found


@pytest.mark.parametrize(
    ('text', 'found'),
    [('4201', 'uid-4201'), ('4294967295', None), ('0', None), ('', None), ('x', None)],
)
def test_what_the_kernel_tells_of_a_login(tmp_path, monkeypatch, text, found):
    monkeypatch.setattr(launching, 'PROC', tmp_path)
    (tmp_path / '7').mkdir()
    (tmp_path / '7/loginuid').write_text(text)
    assert launching.launcher(7, 0) == found


def test_a_process_that_has_ended_has_no_launcher(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, 'PROC', tmp_path)
    assert launching.launcher(7, 0) is None


def test_a_process_of_the_agents_own_namespace_has_no_owner():
    assert launching._owner(os.getpid()) is None

# SPDX-License-Identifier: Apache-2.0
"""Device nodes for tests, which only root can make, and users who try to open them."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import stat
import tempfile

import pytest

#: Users without a name.
JANE, BOB = 12345, 12346
#: Devices that can be opened, and that no other process has open: full, zero, random, urandom.
#: Source: Linux, Documentation/admin-guide/devices.txt.
NUMBERS = [os.makedev(1, minor) for minor in (7, 5, 8, 9)]
#: The device of a shared node: null.
SHARED = os.makedev(1, 3)

LOCK = pathlib.Path(tempfile.gettempdir(), f'cyborg-lite-test-devices-{os.getuid()}.lock')
#: A mark for tests that need device nodes.
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason='only root can make device nodes and become another user'
)


@contextlib.contextmanager
def directory():
    """A directory in /dev: other file systems may be mounted without devices.

    One test of the machine has one at a time: what opens a device by a node has it open for all.
    """
    with LOCK.open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from _directory()


def _directory():
    place = pathlib.Path(tempfile.mkdtemp(prefix='cyborg-lite-test-', dir='/dev'))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def make(path, number, mode=0o666, owner=(0, 0)):
    """Make a node, in place of an earlier one."""
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFCHR, number)
    path.chmod(mode)
    os.chown(path, *owner)
    return str(path)


def mode(path):
    facts = os.stat(path, follow_symlinks=False)
    return stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid


def may_open(uid, path):
    """Whether a process of this user can open a node; any error but EACCES is raised."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.close(os.open(path, os.O_RDWR))
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, 13):
        raise OSError(status, os.strerror(status))
    return status == 0

# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import errno
import hashlib
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import unittest.mock

import pytest

from cyborg_lite import accounts
from cyborg_lite.agent import processes
from tests import support


@pytest.fixture
def child():
    """A process that waits, with a mark in its environment."""
    argv = [sys.executable, '-S', '-c', 'print(flush=True); input()']
    environment = {processes.MARK: 'mark-1'}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as made:
        made.stdout.readline()
        yield made
        made.kill()


def using(mark=None, nodes=(), **more):
    holder = dataclasses.replace(processes.find(os.getpid()), **({'started': 0} | more))
    return processes.using(holder, nodes, mark)


def has_ended(descriptor):
    return support.ready(descriptor, 0)


def test_a_process_is_watched_until_it_ends(child):
    found = processes.find(child.pid)
    descriptor = processes.watch(found)
    assert not has_ended(descriptor)
    child.kill()
    child.wait()
    assert has_ended(descriptor)
    os.close(descriptor)
    with pytest.raises(processes.Gone):
        processes.watch(found)
    with pytest.raises(processes.Gone):
        processes.find(child.pid)


def test_a_zombie_has_ended(child):
    found = processes.find(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(processes.Gone):
        processes.watch(found)
    assert using('mark-1') == []


def test_a_process_does_not_tell_the_boot(child):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    found = processes.find(child.pid)
    assert boot not in repr(found)
    assert found.boot_id == hashlib.sha256(f'cyborg_lite {boot}'.encode()).hexdigest()[:32]
    # A lease that was made before an upgrade tells it.
    for each in (found, dataclasses.replace(found, boot_id=boot)):
        os.close(processes.watch(each))


@pytest.mark.parametrize('other', [{'started': 1}, {'boot_id': 'another'}])
def test_a_pid_that_is_used_again_is_another_process(child, other):
    before = len(os.listdir('/proc/self/fd'))
    with pytest.raises(processes.Gone):
        processes.watch(dataclasses.replace(processes.find(child.pid), **other))
    assert len(os.listdir('/proc/self/fd')) == before


def test_a_process_is_found_by_its_mark(child):
    assert [each.pid for each in using('mark-1')] == [child.pid]
    assert using('mark') == []
    assert using() == []


@pytest.mark.skipif(os.getuid() != 0, reason='only root can start a process of another user')
def test_a_mark_of_another_user_is_not_believed():
    environment = {processes.MARK: 'mark-2', 'PATH': os.defpath}
    with subprocess.Popen(['sleep', '60'], user=65534, group=65534, env=environment) as made:
        assert using('mark-2', uid=1000) == []
        assert [each.pid for each in using('mark-2', uid=65534)] == [made.pid]
        made.kill()


def test_older_processes_are_not_part_of_a_lease(child):
    later = processes.find(child.pid).started + 1
    assert using('mark-1', started=later) == []


@pytest.mark.parametrize('error', [errno.EMFILE, errno.ENOMEM])
def test_an_unreadable_process_has_not_ended(child, monkeypatch, error):
    def fail(pid):
        raise OSError(error, 'for lack of something')

    found = processes.find(child.pid)
    monkeypatch.setattr(os, 'pidfd_open', fail)
    with pytest.raises(OSError, match='for lack'):
        processes.watch(found)


def test_a_process_is_found_by_what_it_opens(tmp_path, child):
    node = tmp_path / 'davinci0'
    node.write_text('')
    assert using(nodes={str(node)}) == []
    with opening(node) as made:
        assert [each.pid for each in using(nodes={str(node)})] == [made.pid]


@contextlib.contextmanager
def opening(path):
    """A child process that has a file open."""
    argv = [sys.executable, '-S', '-c', 'print(flush=True); input()']
    with (
        open(path) as file,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[file.fileno()]
        ) as made,
    ):
        made.stdout.readline()
        yield made
        made.kill()


def test_a_process_is_found_by_a_node_of_another_name(tmp_path):
    """What counts is the number of the device; a file that is no device has none."""
    node, file = tmp_path / 'davinci0', tmp_path / 'file'
    node.symlink_to('/dev/full')
    file.write_text('')
    with opening('/dev/full') as made:
        assert [each.pid for each in using(nodes={str(node)})] == [made.pid]
        assert using(nodes={str(file)}) == []
        with unittest.mock.patch.object(processes, 'DEVICE_FILE_SYSTEMS', ()):
            assert using(nodes={str(node)}) == []


def test_a_process_is_found_by_a_node_that_was_deleted(tmp_path):
    node = tmp_path / 'davinci0'
    node.write_text('')
    with opening(node) as made:
        node.unlink()
        assert [each.pid for each in using(nodes={str(node)})] == [made.pid]


def test_a_thread_is_no_process():
    """The kernel tells when a process ends, and not when one of its threads does."""
    done, ids = threading.Event(), queue.Queue()

    def work():
        ids.put(threading.get_native_id())
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(processes.Gone, match=f'is a thread of process {os.getpid()}'):
            processes.find(ids.get())
    finally:
        done.set()
        thread.join()


def test_the_peer_is_what_the_kernel_says():
    one, other = socket.socketpair()
    with one, other:
        assert processes.peer(one) == (os.getpid(), os.getuid())


def test_a_command_with_brackets_and_blanks(child, monkeypatch, tmp_path):
    place = tmp_path / '7'
    place.mkdir()
    fields = ['S', '3', *map(str, range(50))]
    (place / 'stat').write_text(f'7 (a) b (c)) {" ".join(fields)}\n')
    (place / 'comm').write_text('a) b (c)\n')
    (place / 'status').write_text('Name:\ta) b (c)\nTgid:\t7\n')
    (tmp_path / 'sys/kernel/random').mkdir(parents=True)
    (tmp_path / 'sys/kernel/random/boot_id').write_text('b-1\n')
    monkeypatch.setattr(processes, 'PROC', tmp_path)
    found = processes.find(7)
    assert (found.started, found.command) == (17, 'a) b (c)')
    assert processes.parent(7) == 3


def test_whether_a_process_descends_from_another(child):
    assert processes.is_below(child.pid, os.getpid())
    assert processes.is_below(child.pid, child.pid)
    assert not processes.is_below(os.getpid(), child.pid)
    # It has ended.
    assert not processes.is_below(2**22 + 1, os.getpid())


def test_an_orphan_has_no_parent():
    with pytest.raises(processes.Gone):
        processes.parent(1)


def test_a_signal_does_not_end_a_watch(child):
    descriptor = processes.watch(processes.find(child.pid))
    os.kill(child.pid, signal.SIGSTOP)
    assert not has_ended(descriptor)
    os.close(descriptor)


#: A process whose first thread ends once another one has a file open.
LEADERLESS = """
import ctypes, os, sys, threading, time
open_file = os.open(sys.argv[1], os.O_RDWR)
threading.Thread(target=time.sleep, args=(600,)).start()
print('ready', flush=True)
ctypes.CDLL(None).pthread_exit(0)
"""


def test_a_process_without_its_first_thread_is_seen(tmp_path):
    """A user could hide it, and have the next one get what it has open."""
    node = tmp_path / 'npu0'
    node.touch()
    holder = processes.find(os.getpid())
    argv = [sys.executable, '-c', LEADERLESS, str(node)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, env=os.environ | {processes.MARK: 'lease-1'}
    ) as made:
        try:
            assert made.stdout.readline() == b'ready\n'
            stat = pathlib.Path(f'/proc/{made.pid}/stat')
            while stat.read_text().rpartition(')')[2].split()[0] != 'Z':
                pass
            [use] = processes.uses([str(node)])
            assert (use.process.pid, use.mark) == (made.pid, 'lease-1')
            for how in ([[str(node)]], [[], 'lease-1']):
                assert [each.pid for each in processes.using(holder, *how)] == [made.pid]
        finally:
            made.kill()


def test_processes_whose_state_is_hidden_are_skipped(tmp_path, monkeypatch):
    """As for an agent that is not root, where /proc is mounted with hidepid."""
    node = tmp_path / 'npu0'
    node.touch()

    def refuse(pid):
        raise PermissionError

    monkeypatch.setattr(processes, '_stat', refuse)
    assert processes.uses([str(node)]) == []


DOCKER = '0::/system.slice/docker-' + '0123456789ab' + 'c' * 52 + '.scope'
PODMAN = '0::/machine.slice/libpod-' + '0123456789ab' + 'c' * 52 + '.scope/container'


@pytest.mark.parametrize(
    ('group', 'id'),
    [
        (DOCKER, '0123456789ab'), (PODMAN, '0123456789ab'),
        ('3:devices:/kubepods/burstable/pod1/' + '0123456789ab' + 'c' * 52, '0123456789ab'),
        ('0::/user.slice/user-1000.slice/session-3.scope', None),
        ('0::/x-' + '0' * 65, None), ('', None),
    ],
)  # fmt: skip
def test_the_container_of_a_process(tmp_path, monkeypatch, group, id):
    (tmp_path / '7').mkdir()
    (tmp_path / '7/cgroup').write_text(f'1:cpu:/\n{group}\n')
    monkeypatch.setattr(processes, 'PROC', tmp_path)
    assert processes.container(7) == id
    assert processes.container(8) is None


@pytest.mark.parametrize(
    ('group', 'claimed'),
    [
        ('/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{}.scope', True),
        ('/user.slice/user-1000.slice/user@1000.service/x/docker-{}.scope/libpod-{}.scope', True),
        ('/user.slice/user-0.slice/user@0.service/user.slice/libpod-{}.scope', False),
        ('/machine.slice/libpod-{}.scope/user.slice/user-1000.slice/libpod-{}.scope', False),
        ('/user.slice/user-1000.slice/session-3.scope', False), ('/docker/{}', False),
    ],
)  # fmt: skip
def test_a_user_may_name_a_group_after_a_container(tmp_path, monkeypatch, group, claimed):
    """Below the own slice, which systemd gives to the user."""
    (tmp_path / '7').mkdir()
    lines = f'3:devices:/user.slice/user-1000.slice\n0::{group}\n'
    ids = '0123456789ab' + 'c' * 52, 'f' * 64
    (tmp_path / '7/cgroup').write_text(lines.format(*ids))
    monkeypatch.setattr(processes, 'PROC', tmp_path)
    assert processes.is_claimed(7) == claimed
    assert processes.container(7) == ('0123456789ab' if '{}' in group else None)
    assert not processes.is_claimed(8)


@pytest.mark.parametrize(('minor', 'there'), [(25, False), (26, True), (27, False)])
def test_only_the_last_mount_at_a_place_is_there(tmp_path, monkeypatch, minor, there):
    """A user may hide the terminals of the machine behind others in a mount namespace."""
    mounts = [
        '20 1 0:6 / /dev rw - devtmpfs udev rw',
        '30 20 0:25 / /dev/pts rw,nosuid master:3 - devpts devpts rw',
        '31 30 0:26 / /dev/pts rw - devpts other rw',
        '32 20 0:27 / /dev/shm rw - tmpfs tmpfs rw',
    ]
    (tmp_path / '7').mkdir()
    (tmp_path / '7/mountinfo').write_text('\n'.join(mounts))
    (tmp_path / '7/stat').write_text('7 (python) S 1')
    monkeypatch.setattr(processes, 'PROC', tmp_path)
    process = processes.Process('b-1', 7, 9, 1000, 'jane', 'python')
    assert processes.has_mount(process, '/dev/pts', 'devpts', os.makedev(0, minor)) == there


def test_uses_of_nodes(tmp_path):
    nodes = [str(tmp_path / f'npu{n}') for n in range(3)]
    for node in nodes:
        pathlib.Path(node).write_text('')
    with opening(nodes[1]) as made:
        [use] = processes.uses(nodes)
    assert (use.process.pid, use.nodes, use.mark) == (made.pid, {nodes[1]}, None)
    begun = processes.begun(use.process)
    assert str(use).startswith(f'{made.pid} {accounts.name(os.getuid())} (python')
    assert f') since {begun}' in str(use)
    assert processes.uses([]) == []

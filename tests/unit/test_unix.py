# SPDX-License-Identifier: Apache-2.0
import contextlib
import grp
import os
import socket
import stat

import pytest

from cyborg_lite import client
from cyborg_lite import unix


def connect(path):
    with socket.socket(socket.AF_UNIX) as connection, client.short(str(path)) as place:
        connection.connect(place)


def group():
    """A group to which this user may give a file; for root, another group than its own."""
    every = [each.gr_gid for each in grp.getgrall()] if os.getuid() == 0 else os.getgroups()
    gid = next((each for each in every if each != os.getgid()), os.getgid())
    return grp.getgrgid(gid)


def test_the_peer_is_what_the_kernel_says():
    one, other = socket.socketpair()
    with one, other:
        assert unix.peer(one) == (os.getpid(), os.getuid(), os.getgid())


@pytest.mark.parametrize('mode', [0o600, 0o660])
def test_who_may_use_the_socket(tmp_path, mode):
    """Its user, and the members of a group where one is configured; nobody else."""
    named = group() if mode == 0o660 else None
    path, before = tmp_path / 'agent.sock', os.umask(0)
    try:
        unix.listen(str(path), named and named.gr_name, 1).close()
    finally:
        os.umask(before)
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == mode
    assert found.st_gid == (named.gr_gid if named else os.getgid())


def test_a_group_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match='there is no group nobodies: see socket_group'):
        unix.listen(str(tmp_path / 'a.sock'), 'nobodies', 1)


def test_the_socket_of_a_process_that_has_ended_is_replaced(tmp_path):
    path = tmp_path / 'a.sock'
    unix.listen(str(path), None, 1).close()
    assert path.is_socket()
    with unix.listen(str(path), None, 1):
        connect(path)


def test_the_socket_of_a_process_that_runs_is_refused(tmp_path):
    path = tmp_path / 'a.sock'
    with unix.listen(str(path), None, 8):
        with pytest.raises(OSError, match='is the socket of a process that runs'):
            unix.listen(str(path), None, 1)
        connect(path)


def test_what_is_no_socket_is_not_replaced(tmp_path):
    path = tmp_path / 'a.sock'
    path.write_text('mine')
    with pytest.raises(OSError, match='is in the way: expected a socket, or nothing'):
        unix.listen(str(path), None, 1)
    assert path.read_text() == 'mine'


def test_a_path_may_be_longer_than_the_kernel_allows(tmp_path):
    """It takes 107 bytes; through a descriptor only the name of the file counts."""
    place = tmp_path / ('d' * 200)
    place.mkdir()
    name = 's' * unix.LONGEST
    with unix.listen(str(place / name), None, 1):
        connect(place / name)
    with pytest.raises(OSError, match=f'expected a file name of at most {unix.LONGEST} bytes'):
        unix.listen(str(place / f'{name}s'), None, 1)


@pytest.mark.parametrize('mode', [0o777, 0o770, 0o1777])
def test_a_directory_of_others_is_refused(tmp_path, mode):
    """They could put a link to another file in the place of the socket."""
    place = tmp_path / 'shared'
    place.mkdir()
    place.chmod(mode)
    if mode & stat.S_ISVTX:
        # As in /tmp, nobody can take away what is another's.
        unix.listen(str(place / 'a.sock'), None, 1).close()
    else:
        with pytest.raises(OSError, match='other users may write there'):
            unix.listen(str(place / 'a.sock'), None, 1)


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 4711)
    if os.getuid() == 0:
        os.chown(tmp_path, 4712, -1)
    with pytest.raises(OSError, match='other users may write there'):
        unix.listen(str(tmp_path / 'a.sock'), None, 1)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match='no: No such file or directory: make it first'):
        unix.listen(str(tmp_path / 'no' / 'a.sock'), None, 1)


def test_a_link_is_not_followed(tmp_path, monkeypatch):
    """Another user has put one in the place of the socket."""
    secret, path = tmp_path / 'secret', tmp_path / 'a.sock'
    secret.write_text('')
    secret.chmod(0o600)
    own, bind = secret.stat(), socket.socket.bind

    class Raced(socket.socket):
        def bind(self, address):
            bind(self, address)
            path.unlink()
            path.symlink_to(secret)

    monkeypatch.setattr(socket, 'socket', Raced)
    unix.listen(str(path), group().gr_name, 1).close()
    found = secret.stat()
    assert (found.st_mode, found.st_gid) == (own.st_mode, own.st_gid)


def test_a_socket_that_was_replaced_is_not_removed(tmp_path):
    path = str(tmp_path / 'a.sock')
    with unix.listen(path, None, 1) as first:
        os.rename(path, f'{path}.old')
        with unix.listen(path, None, 1) as second:
            unix.remove(first)
            assert os.path.exists(path)
            for _ in range(2):
                unix.remove(second)
                assert not os.path.exists(path)


def test_all_sockets_are_removed_but_those_of_others(tmp_path):
    paths = [str(tmp_path / name) for name in 'abc']
    with contextlib.ExitStack() as stack:
        for path in paths[:2]:
            stack.enter_context(unix.listen(path, None, 1))
        stack.enter_context(socket.socket(socket.AF_UNIX)).bind(paths[2])
        unix.remove_all()
    assert [os.path.exists(path) for path in paths] == [False, False, True]


def test_a_client_waits_while_too_many_connect(tmp_path, monkeypatch):
    """The kernel does not wait where the socket has a timeout."""
    path, pauses = str(tmp_path / 'a.sock'), []
    with unix.listen(path, None, 1) as listener, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(client.connect(path))

        def accept(_):
            pauses.append(1)
            if len(pauses) == 3:
                stack.enter_context(listener.accept()[0])

        monkeypatch.setattr(client.time, 'sleep', accept)
        stack.enter_context(client.connect(path, 5))
        assert len(pauses) == 3
        monkeypatch.setattr(client, 'CONNECT', 0)
        with pytest.raises(TimeoutError, match='too many clients wait there'):
            client.connect(path, 5)

# SPDX-License-Identifier: Apache-2.0
"""How long a client waits for an agent."""

import errno
import grp
import json
import os
import platform
import socket
import threading
import time

import pytest

import cyborg_lite
from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import model


@pytest.fixture
def agent(tmp_path):
    """Starts an agent that sends these answers to its only client, and then nothing."""
    path, threads = str(tmp_path / 'agent.sock'), []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def start(*answers):
        def serve():
            connection, _ = listener.accept()
            with connection, connection.makefile() as lines:
                lines.readline()
                for answer in answers:
                    connection.sendall(json.dumps(answer).encode() + b'\n')
                while lines.readline():
                    pass

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return path

    yield start
    for each in threads:
        each.join(30)
        assert not each.is_alive()
    listener.close()


def take(path, wait):
    return client.lease(path, {}, end=time.monotonic() + wait)


def test_a_wait_in_the_queue_has_an_end(agent):
    with pytest.raises(client.TimedOut, match='not free in time'):
        take(agent({'state': 'queued'}), 0.05)


@pytest.mark.parametrize(
    ('answers', 'said'),
    [
        ([], 'the agent ended the conversation without an answer'),
        (
            [{'state': 'queued'}],
            'the service has ended, and the request has left the queue: start ',
        ),
    ],
)
def test_a_service_that_ends_meanwhile(monkeypatch, answers, said):
    monkeypatch.setattr(client, '_conversation', lambda *_: iter(answers))
    with pytest.raises(client.Error, match=said):
        client.lease('agent.sock', {})


def test_an_agent_that_does_not_answer(agent, monkeypatch):
    """Nobody knows whether something is free."""
    monkeypatch.setattr(client, 'ANSWER', 0.05)
    with pytest.raises(client.Error, match='does not answer') as told:
        take(agent(), 0)
    assert (type(told.value), told.value.code) == (client.Error, 503)


class Silent:
    """A connection with an answer after two timeouts."""

    def __init__(self):
        self.timeouts = []
        self._parts = [None, None, b'{"state": "active"}\n', b'']

    def settimeout(self, seconds):
        self.timeouts.append(seconds)

    def recv(self, _size):
        if (part := self._parts.pop(0)) is None:
            raise TimeoutError
        return part


def test_no_wait_is_so_long_that_a_signal_goes_unnoticed():
    connection = Silent()
    assert list(client._answers(connection, None, 0)) == [{'state': 'active'}]
    assert connection.timeouts == [client.TICK] * 4


def test_a_list_that_is_not_answered(agent):
    with pytest.raises(client.Error, match='does not answer') as told:
        client.ask(agent(), {'do': 'list'}, 0.05)
    assert type(told.value) is client.Error


@pytest.mark.parametrize('away', [False, True])
def test_what_no_variable_names_is_given_back(agent, monkeypatch, away):
    """The program would see all cards of the machine."""
    released = []

    def release(lease):
        released.append(lease.uuid)
        if away:
            raise client.Error('the agent is away')

    monkeypatch.setattr(client.Lease, 'release', release)
    process = {'env': {}, 'unnamed': ['b'], 'problems': ['Accelerator b: its ids have no uuid.']}
    answer = {'state': 'active', 'uuid': 'a', 'name': None, 'host': 'h', 'accelerators': []}
    path = agent(answer | {'views': {'process': process}})
    with pytest.raises(client.Error, match=r'would see all cards of h: Accelerator b: .*no uuid\.'):
        client.lease(path, {})
    assert released == ['a']


@pytest.mark.parametrize(
    ('name', 'find'), [(client.SOCKET, client.find), (client.API_SOCKET, client.find_api)]
)
def test_a_socket_that_was_left_hides_no_other(tmp_path, monkeypatch, name, find):
    """If there is no other, the stale socket is used: the error then says what to start."""
    system, own = tmp_path / 'run', tmp_path / 'state' / 'cyborg-lite'
    monkeypatch.setattr(client, 'SYSTEM', system)
    monkeypatch.setenv('XDG_STATE_HOME', str(own.parent))
    monkeypatch.delenv(client.VARIABLE, raising=False)
    own.mkdir(parents=True)
    system.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(own / name))
    assert find() == str(own / name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(system / name))
        listener.listen()
        assert find() == str(system / name)
        (own / name).unlink()
        with socket.socket(socket.AF_UNIX) as first:
            first.bind(str(own / name))
            first.listen()
            assert find() == str(own / name)


@pytest.mark.parametrize(
    ('url', 'machine'),
    [
        ('http://head:6666', 'head'),
        ('https://jane:SECRET@head.example/accelerator/v2', 'head.example'),
        ('http://[2001:db8::1]:6666', '[2001:db8::1]'),
        ('http://localhost:6666', None),
        ('http://127.0.0.1:6666', None),
        ('https://[::1]/', None),
        (f'http://{platform.node()}:6666', None),
        (f'http://{platform.node().partition(".")[0]}.example:6666', None),
        ('unix:///run/elsewhere/api.sock', None),
        ('http://[', None),
        ('', None),
    ],
)
def test_the_agent_of_another_machine_is_not_asked(tmp_path, monkeypatch, url, machine):
    """A user who named another machine must learn why no card of it is leased."""
    monkeypatch.setattr(client, 'SYSTEM', tmp_path / 'run')
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    monkeypatch.delenv(client.VARIABLE, raising=False)
    monkeypatch.setenv(client.URL, url)
    with pytest.raises(client.Error, match='^no agent listens on this machine: ') as told:
        client.find()
    far = '' if machine is None else f'. {client.URL} names {machine}, but {client.OWN}'
    assert str(told.value).endswith(f'in {client.VARIABLE}{far}')


def test_a_socket_says_which_group_to_join(tmp_path, monkeypatch):
    path = tmp_path / 'agent.sock'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    user, group = accounts.name(os.getuid()), grp.getgrgid(path.stat().st_gid).gr_name

    def refuse(*_):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(client, 'connect', refuse)
    for mode, said in (
        (0o600, f'it is there, and only user {user} may use it: ask them to set socket_group'),
        (
            0o660,
            f'it is there, and only user {user} and group {group} may use it: ask for "usermod -aG '
            f'{group} {user}", and log in again',
        ),
    ):
        path.chmod(mode)
        with pytest.raises(client.Error) as told:
            client.ask(str(path), {'do': 'list'})
        assert str(told.value) == f'{path}: {said}'
    path.unlink()
    with pytest.raises(client.Error, match='this user may not look there: No such file'):
        client.ask(str(path), {'do': 'list'})


def test_a_user_without_a_name_has_a_number():
    assert client._named(grp.getgrgid, 2**31 - 7) == str(2**31 - 7)


def test_labels_have_the_lengths_of_the_service():
    """The client imports nothing of the service."""
    schemas = model.Allocation.LABELS
    assert {field: each['maxLength'] for field, each in schemas.items()} == client.LABELS


def test_the_package_shows_what_is_for_programs():
    names = {}
    exec('from cyborg_lite import *', names)
    assert names.keys() >= {'allocate', 'allocation'}
    assert {'allocate', 'allocation'} <= set(dir(cyborg_lite))
    with pytest.raises(AttributeError, match="'cyborg_lite' has no attribute 'nope'"):
        _ = cyborg_lite.nope

# SPDX-License-Identifier: Apache-2.0
"""How long a client waits for an agent."""

import json
import socket
import threading
import time

import pytest

from cyborg_lite import client


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


def test_an_agent_that_does_not_answer(agent, monkeypatch):
    """Nobody knows whether something is free."""
    monkeypatch.setattr(client, 'ANSWER', 0.05)
    with pytest.raises(client.Error, match='does not answer') as told:
        take(agent(), 0)
    assert (type(told.value), told.value.code) == (client.Error, 503)


def test_a_list_that_is_not_answered(agent):
    with pytest.raises(client.Error, match='does not answer') as told:
        client.ask(agent(), {'do': 'list'}, 0.05)
    assert type(told.value) is client.Error

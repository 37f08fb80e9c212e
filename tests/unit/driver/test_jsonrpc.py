# SPDX-License-Identifier: Apache-2.0
"""Calls to peers that answer badly, slowly, or without an end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import driver
from cyborg_lite import unix
from cyborg_lite.driver import jsonrpc


@contextlib.contextmanager
def listening(path, *parts: bytes, closes: bool = True):
    """A peer that sends these parts after a request."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve():
            peer, _ = server.accept()
            with peer, contextlib.suppress(OSError):
                asked.append(json.loads(peer.recv(4096)))
                for part in parts:
                    peer.sendall(part)
                if not closes:
                    done.wait()

        asked: list = []
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            done.set()
            thread.join()


def answer(result) -> bytes:
    return json.dumps({'jsonrpc': '2.0', 'id': 1, 'result': result}).encode()


def test_an_answer_in_parts_ends_with_its_json(tmp_path):
    """The peer keeps the connection."""
    whole = answer([{'a': {}}, {}])
    parts = [whole[n : n + 1] for n in range(len(whole))] + [b'\n']
    with listening(tmp_path / 's', *parts, closes=False) as asked:
        assert jsonrpc.call(str(tmp_path / 's'), 'get') == [{'a': {}}, {}]
    assert asked == [{'jsonrpc': '2.0', 'id': 1, 'method': 'get'}]


@pytest.mark.parametrize(
    ('parts', 'words'),
    [
        ([], 'Expecting value'),
        ([b'{"id": 1, '], 'Expecting'),
        ([b'\xff\xfe{}'], 'Expecting'),
        ([b'[' * 100_000], 'recursion'),
        ([b'7'], 'expected an answer to the request'),
        ([b'{"id": 2, "result": 1}'], 'expected an answer to the request'),
        ([b'{"id": 1, "error": {"code": -32601}}'], 'the peer reports an error: .*-32601'),
        ([b' ' * (jsonrpc.LIMIT + 1)], 'expected an answer of at most 4194304 bytes'),
    ],
)
def test_a_bad_answer_is_an_error(tmp_path, parts, words):
    with (
        listening(tmp_path / 's', *parts),
        pytest.raises(driver.ToolError, match=f'/s: get: .*{words}'),
    ):
        jsonrpc.call(str(tmp_path / 's'), 'get')


def test_a_peer_that_does_not_end_meets_the_deadline(tmp_path):
    with (
        listening(tmp_path / 's', b'{"id": 1, ', closes=False),
        pytest.raises(driver.ToolError, match='get: no answer within 0.1 s'),
    ):
        jsonrpc.call(str(tmp_path / 's'), 'get', timeout=0.1)


def test_nothing_listens(tmp_path):
    assert jsonrpc.call(str(tmp_path / 's'), 'get') is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 's'))
    assert jsonrpc.call(str(tmp_path / 's'), 'get') is None


def test_a_peer_of_another_user_is_refused(tmp_path, monkeypatch):
    stranger = unix.Peer(1, os.geteuid() + 1000, 1)
    monkeypatch.setattr(unix, 'peer', lambda _: stranger)
    with (
        listening(tmp_path / 's', answer([])),
        pytest.raises(driver.ToolError, match='listens there: expected root'),
    ):
        jsonrpc.call(str(tmp_path / 's'), 'get')


@hypothesis.given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_results_are_as_the_peer_sent_them(result):
    assert jsonrpc._result(json.loads(answer(result))) == result

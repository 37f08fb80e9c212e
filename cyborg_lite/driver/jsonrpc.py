# SPDX-License-Identifier: Apache-2.0
"""One call of JSON-RPC 2.0 at a Unix socket, whose other end is not trusted.

The protocol has no frames: an answer ends where its JSON does.  The peer must run as root or as
this user: the directory of the socket may be one in which any user can make it.

Source: JSON-RPC 2.0 specification; SPDK, doc/jsonrpc.md.
"""

from __future__ import annotations

import json
import os
import socket
import time
import typing

from cyborg_lite import unix
from cyborg_lite.driver.host import NoAnswer
from cyborg_lite.driver.host import ToolError

#: The maximum size of an answer, in bytes.
LIMIT = 1 << 22
#: The size of one read, in bytes.
PART = 1 << 16


def call(path: str, method: str, timeout: float = 5.0) -> typing.Any:
    """The result of a method without parameters; None if nothing listens at the socket.

    :param timeout: of the whole call, in seconds
    :raises ToolError: when the peer fails, answers anything else, or takes longer.
    """
    deadline = time.monotonic() + timeout
    request = {'jsonrpc': '2.0', 'id': 1, 'method': method}
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(timeout)
            peer.connect(path)
            _check_user(peer)
            peer.sendall(json.dumps(request).encode())
            return _result(_read(peer, deadline))
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except TimeoutError:
        raise NoAnswer(f'{path}: {method}', timeout) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(f'{path}: {method}: {error}') from error


def _check_user(peer: socket.socket) -> None:
    user = unix.peer(peer).uid
    if user not in (0, os.geteuid()):
        raise ValueError(f'user {user} listens there: expected root or the user of the agent')


def _read(peer: socket.socket, deadline: float) -> typing.Any:
    """The first JSON text that the peer sends in whole."""
    content = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        peer.settimeout(left)
        part = peer.recv(PART)
        content += part
        if len(content) > LIMIT:
            raise ValueError(f'expected an answer of at most {LIMIT} bytes')
        if not part:
            return json.loads(content)
        # Only then may it be complete.
        if content.rstrip().endswith(b'}'):
            try:
                return json.loads(content)
            except ValueError:
                continue


def _result(answer: typing.Any) -> typing.Any:
    if not isinstance(answer, dict) or answer.get('id') != 1:
        raise ValueError('expected an answer to the request')
    if 'result' not in answer:
        raise ValueError(f'the peer reports an error: {str(answer.get("error"))[:128]!r}')
    return answer['result']

# SPDX-License-Identifier: Apache-2.0
"""A server of oslo.messaging whose method does nothing, which shows the cost of a call."""

from __future__ import annotations

import sys
import threading
import typing

import oslo_messaging as messaging

from cyborg_lite import conf as options
from cyborg_lite import shims

TARGET = messaging.Target(topic='bench', server='echo')


class Echo:
    @messaging.expose
    def echo(self, _context: dict[str, typing.Any]) -> None:
        pass


def transport(file: str) -> messaging.RPCTransport:
    conf = options.load(files=[file])
    shims.register_messaging_options(conf)
    return messaging.get_rpc_transport(conf)


def main(file: str) -> None:
    policy = messaging.ExplicitRPCAccessPolicy
    server = messaging.get_rpc_server(transport(file), TARGET, [Echo()], access_policy=policy)
    server.start()
    print('ready', flush=True)
    threading.Event().wait()


if __name__ == '__main__':
    main(*sys.argv[1:])

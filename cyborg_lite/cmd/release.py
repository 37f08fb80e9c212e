# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite release``: release what ``cyborg-lite alloc`` holds, or a reservation."""

from __future__ import annotations

import argparse
import os

from cyborg_lite import client
from cyborg_lite.cmd import leasing

DESCRIPTION = (
    'Releases the accelerators of a lease, or cancels a reservation. Without an id it is the lease '
    f'in {client.ALLOCATION}, which "alloc" sets, or else that of this shell: with --as one of '
    'this name, and without it one without a name. It is refused while a process has one of their '
    'devices open.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('id', nargs='?', help='the uuid or the name of the lease')
    leasing.add_claimed_name(parser)
    leasing.add_agent(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    words = {'do': 'release', 'id': arguments.id, 'host': arguments.host}
    try:
        path = client.find(arguments.socket)
        if arguments.id is None:
            labels = client.labels(arguments.claimed_name, None)
            words |= labels | {'id': _of_shell(path, arguments.host, labels.get('claimed_name'))}
        answer = client.ask(path, words)
    except client.Error as error:
        leasing.say(leasing.advised(str(error)))
        return 1
    late = '' if answer['done'] else ', as soon as a conductor answers'
    leasing.say(f'{answer["released"]} is released{late}')
    return 0


def _of_shell(path: str, host: str | None, claimed_name: str | None) -> str | None:
    """The lease that the environment names; None if it has ended, or is of another name."""
    uuid = os.environ.get(client.ALLOCATION)
    rows = leasing.leases(path, host) if uuid else ()
    mine = [x for x in rows if x['uuid'] == uuid and x.get('claimed_name') == claimed_name]
    return uuid if mine else None

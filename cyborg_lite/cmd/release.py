# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite release``: release what ``cyborg-lite alloc`` holds, or a reservation."""

from __future__ import annotations

import argparse

from cyborg_lite import client
from cyborg_lite.cmd import leasing

DESCRIPTION = (
    'Releases the accelerators of a lease, or those of this shell: with --as those of this name, '
    'and without it those without a name; or cancels a reservation. It is refused while a process '
    'has one of their devices open.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('id', nargs='?', help='the uuid or the name of the lease')
    leasing.add_claimed_name(parser)
    leasing.add_agent(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    words = {'do': 'release', 'id': arguments.id, 'host': arguments.host}
    try:
        if arguments.id is None:
            words |= client.labels(arguments.claimed_name, None)
        answer = client.ask(client.find(arguments.socket), words)
    except client.Error as error:
        leasing.say(str(error))
        return 1
    late = '' if answer['done'] else ', as soon as a conductor answers'
    leasing.say(f'{answer["released"]} is released{late}')
    return 0

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite alloc``: hold accelerators for a shell, another process, or a time."""

from __future__ import annotations

import argparse
import json
import shlex

from cyborg_lite import client
from cyborg_lite.cmd import leasing
from cyborg_lite.cmd import times

DESCRIPTION = (
    'Asks the agent of this machine for accelerators, and prints the variables by which the '
    'software of their vendor finds them: eval "$(cyborg-lite alloc --pid $$ -n 2)" sets them in a '
    'shell, and fails if there are none. They are held until the shell (the parent of this '
    'command), the process of --pid, or the time of --for has ended, or "cyborg-lite release" '
    'gives them back.'
)

#: What a shell evaluates after an error: it has to fail, so that no program starts that would see
#: all devices.
EVALUATED = 'false'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    leasing.add_arguments(parser)
    holder = parser.add_mutually_exclusive_group()
    holder.add_argument(
        '--pid', type=_pid, metavar='PID', help='hold them for this process of yours'
    )
    holder.add_argument(
        '--for',
        dest='seconds',
        type=times.seconds,
        metavar='TIME',
        help='hold them for this time, such as 2h, whichever processes end',
    )
    parser.add_argument(
        '-f', '--format', choices=('shell', 'json'), default='shell', help='(shell)'
    )
    parser.set_defaults(run=run)


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f'expected the number of a process, not {text!r:.80}')
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    of = arguments.pid or ('time' if arguments.seconds else 'parent')
    status, lease = leasing.attempt(arguments, of, seconds=arguments.seconds)
    if lease is None:
        if arguments.format == 'shell':
            print(EVALUATED)
        return status
    if arguments.pid and lease.adopted is not None:
        new = 'new ones, as it uses none without a lease'
        what = 'what it uses already' if lease.adopted else new
        leased = ', '.join(lease.addresses)
        leasing.say(f'process {arguments.pid} leases {what}: {leased} ({lease.uuid})')
    if arguments.format == 'json':
        shown = {'uuid': lease.uuid, 'name': lease.name, 'host': lease.host, 'env': lease.env}
        print(json.dumps(shown | {'accelerators': lease.accelerators}))
    else:
        for name, value in lease.env.items():
            print(f'export {name}={shlex.quote(value)}')
        # A later release without an id means the leases of this name.
        if arguments.claimed_name is not None:
            print(f'export {client.CLAIMED}={shlex.quote(arguments.claimed_name)}')
    return 0

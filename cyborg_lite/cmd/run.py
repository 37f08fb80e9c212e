# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite run``: a command with accelerators that are its own until it ends."""

from __future__ import annotations

import argparse
import os
import shutil
import signal

from cyborg_lite import client
from cyborg_lite.cmd import leasing

DESCRIPTION = (
    'Asks the agent of this machine for accelerators, waits in the queue until they are free, sets '
    'the variables by which the software of their vendor finds them, and becomes COMMAND: its '
    'signals and its exit status are its own. They are released when COMMAND and all processes '
    'that it started have ended. In COMMAND the word {addresses} stands for the list of their '
    'addresses, and the arguments {env}, {podman} and {ray} for variables, for the options of '
    'podman or docker, and for those of ray start.'
)
#: The statuses if a command does not exist, and if it cannot be executed, as in shells.
ABSENT, UNUSABLE = 127, 126
#: The placeholder of the arguments of Ray, which needs variables, too.
RAY = '{ray}'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    leasing.add_arguments(parser)
    parser.add_argument('-q', '--quiet', action='store_true', help='do not print the accelerators')
    parser.add_argument(
        'command', nargs=argparse.REMAINDER, metavar='-- COMMAND', help='the command to run'
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    command = arguments.command[arguments.command[:1] == ['--'] :]
    if not command or not command[0]:
        leasing.say('expected a command after "--": cyborg-lite run -n 2 -- python train.py')
        return 2
    path = shutil.which(command[0])
    if path is None:
        there = os.sep in command[0] and os.path.exists(command[0])
        why = 'it is no program, or may not be run' if there else 'there is no such command'
        leasing.say(f'{command[0]}: {why}')
        return UNUSABLE if there else ABSENT
    status, lease = leasing.attempt(arguments, command=os.path.basename(command[0]))
    if lease is None:
        return status
    if not arguments.quiet:
        given = ', '.join(lease.addresses) or 'no address that a program could use'
        leasing.say(
            f'{len(lease.accelerators)} of host {lease.host}: {given} ({lease.uuid}; '
            f'access is {client.ACCESS.get(lease.access, lease.access)})'
        )
    # Python ignores these signals, and the executed command would inherit this.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        variables = os.environ | _variables(command, lease)
        if arguments.claimed_name is not None:
            variables[client.CLAIMED] = arguments.claimed_name
        os.execve(path, _filled(command, lease), variables)  # noqa: S606 # nosec B606
    except OSError as error:
        leasing.say(f'{command[0]}: {error.strerror}')
        return UNUSABLE


def _variables(command: list[str], lease: client.Lease) -> dict[str, str]:
    return lease.env | (lease.views['ray']['env'] if RAY in command else {})


def _filled(command: list[str], lease: client.Lease) -> list[str]:
    """The command with its placeholders filled."""
    many = {
        '{env}': [f'{name}={value}' for name, value in lease.env.items()],
        '{podman}': [str(each) for each in lease.views['container']['arguments']],
        RAY: [str(each) for each in lease.views['ray']['arguments']],
    }
    addresses = ','.join(lease.addresses)
    return [
        text
        for word in command
        for text in many.get(word, [word.replace('{addresses}', addresses)])
    ]

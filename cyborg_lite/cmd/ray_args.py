# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite ray-args``: the arguments of ``ray start`` for leased accelerators."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys

from cyborg_lite import client
from cyborg_lite.cmd import leasing

DESCRIPTION = (
    'Prints arguments so that Ray uses the accelerators of a lease and no others: '
    'ray start --head $(cyborg-lite ray-args). The lease is the one that this command finds in '
    'its environment, as "cyborg-lite run" and "cyborg-lite alloc" set it, or the one that is '
    'named. Ray needs variables, too: eval "$(cyborg-lite ray-args -f env)" sets them.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'id', nargs='?', help=f'the uuid or the name of the lease ({client.ALLOCATION})'
    )
    leasing.add_agent(parser)
    parser.add_argument(
        '-f',
        '--format',
        choices=('words', 'shell', 'env', 'json'),
        help='words for $( ), quoted arguments for a shell, variables for a shell, or both as JSON '
        '(shell on a terminal, otherwise words)',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    id_ = arguments.id or os.environ.get(client.ALLOCATION)
    try:
        if not id_:
            raise client.Error('expected a lease: begin with "cyborg-lite run -n 2 -- bash"', 400)
        lease = leasing.held(arguments, id_)
        if lease is None:
            raise client.Error(f'no lease of yours is active: {id_:.80}', 404)
    except client.Error as error:
        leasing.say(leasing.advised(str(error)))
        return 1
    _print(lease.views['ray'], arguments.format or ('shell' if sys.stdout.isatty() else 'words'))
    return 0


def _print(view: client.Words, format: str) -> None:
    arguments, variables = view['arguments'], view['env']
    for each in view['problems']:
        leasing.say(each)
    if format == 'json':
        print(json.dumps({'arguments': arguments, 'env': variables}))
    elif format == 'env':
        for name, value in variables.items():
            print(f'export {name}={shlex.quote(value)}')
    else:
        # No argument has a blank, so a shell splits them without quotes.
        print(*(map(shlex.quote, arguments) if format == 'shell' else arguments))
        if any(os.environ.get(name) != value for name, value in variables.items()):
            leasing.say('Ray needs variables, too: eval "$(cyborg-lite ray-args -f env)"')

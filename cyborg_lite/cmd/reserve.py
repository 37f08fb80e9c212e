# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite reserve``: keep accelerators for later."""

from __future__ import annotations

import argparse
import typing

from cyborg_lite import client
from cyborg_lite.cmd import leasing
from cyborg_lite.cmd import times

DESCRIPTION = (
    'Keeps accelerators of this machine from a time on: until then they are leased only for a time '
    'that ends before. "cyborg-lite run --reservation ID -- COMMAND" uses them, and "cyborg-lite '
    'release ID" cancels all of it. If nobody has used them in time, they are released.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    leasing.add_wanted(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--at',
        type=times.moment,
        metavar='TIME',
        help=f'from when on, in local time: {times.TIMES}',
    )
    what.add_argument('--list', action='store_true', help='list the reservations of this machine')
    parser.add_argument(
        '--for',
        dest='seconds',
        type=times.seconds,
        metavar='TIME',
        help='for how long, such as 3h',
    )
    leasing.add_labels(parser, 'reservation')
    leasing.add_agent(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        if arguments.list:
            return _list(arguments)
        if arguments.at is None or arguments.seconds is None:
            what = 'from when' if arguments.at is None else 'for how long'
            leasing.say(f'expected {what}: cyborg-lite reserve -n 4 --at 09:00 --for 3h')
            return 2
        return _reserve(arguments)
    except client.Error as error:
        leasing.say(leasing.advised(str(error)))
        return 1


def _reserve(arguments: argparse.Namespace) -> int:
    request = leasing.request(arguments, arguments.seconds)
    request['starts_at'] = arguments.at.isoformat(timespec='seconds')
    words = {'do': 'lease', 'of': 'time', 'request': request, 'host': arguments.host}
    made = client.ask(client.find(arguments.socket), words)
    print(made['uuid'])
    start, end = times.local(made['starts']), times.local(made['ends'])
    leasing.say(f'{made["amount"]} of host {made["host"]} are reserved from {start} to {end}')
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found = leasing.leases(client.find(arguments.socket), arguments.host)
    for each in sorted((x for x in found if x.get('starts')), key=lambda x: str(x['starts'])):
        print(client.plain('  '.join(map(str, _cells(each)))))
    return 0


def _cells(row: dict[str, typing.Any]) -> tuple[typing.Any, ...]:
    """From when to when, how many, of whom, in which state; its id if it may be changed; its note.

    Agents of the release before do not say who claims it.
    """
    id = row['name'] or row['uuid'] or ''
    window = times.local(row['starts']), times.local(row['ends'])
    user = f'{row["user"]} ({row["claimed_name"]})' if row.get('claimed_name') else row['user']
    note = (f'"{row["note"]}"',) if row.get('note') else ()
    return (*window, row['amount'], user, row['state'], id, *note)

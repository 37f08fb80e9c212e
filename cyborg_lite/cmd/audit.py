# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-status audit``: what is held and should not be, and to mend it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import typing

from oslo_config import cfg
from oslo_db import exception as db_exception
import prettytable
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import startup

if typing.TYPE_CHECKING:
    from cyborg_lite.conductor import auditing

#: The statuses, as of ``upgrade check``: nothing is left to do, something is, something could not
#: be checked.
SUCCESS, WARNING, FAILURE = range(3)
#: The outcome of a finding that nothing is left of; as in auditing, which takes long to load.
MENDED = 'mended'
COLUMNS = ('Kind', 'ID', 'Problem', 'Requests', 'Accelerators', 'Placement', 'Outcome')
#: How long a column may be before it is wrapped, in characters.
WIDTH = 44


def add_to(subparsers: typing.Any) -> argparse.ArgumentParser:
    """Add the command to those of a parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        'audit',
        help='find what is held and should not be, and mend it',
        description='Compares accelerator requests, accelerators, allocations, instances of Nova '
        'and allocations in Placement. Exits with 0 when nothing is left to do, with 1 when '
        'something is, with 2 when something could not be checked.',
    )
    parser.add_argument('--fix', action='store_true', help='mend what is found twice')
    parser.add_argument(
        '--apart',
        type=_seconds,
        default=60,
        metavar='SECONDS',
        help='with --fix: the time between the two looks (60)',
    )
    parser.add_argument(
        '-f', '--format', choices=('table', 'json'), default='table', help='of the output (table)'
    )
    return parser


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 86400):
        raise argparse.ArgumentTypeError(f'expected a number from 1 to 86400, not {text!r}')
    return int(text)


def run(conf: cfg.ConfigOpts, wait: typing.Callable[[float], None] = time.sleep) -> int:
    """Audit as the command line says; returns the exit status.

    :param wait: waits so many seconds.
    """
    arguments = conf.command
    try:
        auditor = _auditor(conf)
        seen = auditor.look()
        outcomes = ['found'] * len(seen.findings)
        if arguments.fix and seen.findings:
            try:
                wait(arguments.apart)
            except KeyboardInterrupt:
                print('cyborg-lite-status: nothing was mended', file=sys.stderr)
                return FAILURE
            earlier, seen = seen, auditor.look()
            twice = seen.again(earlier)
            outcomes = [
                auditor.mend(each) if each in twice else 'left: it was found once'
                for each in seen.findings
            ]
    except (
        exception.Refused,
        exception.CyborgError,
        db_exception.DBError,
        sa.exc.SQLAlchemyError,
    ) as error:
        print(f'cyborg-lite-status: {exception.line(error)}', file=sys.stderr)
        return FAILURE
    _print(seen, outcomes, arguments.format)
    if seen.unchecked:
        return FAILURE
    return SUCCESS if all(each == MENDED for each in outcomes) else WARNING


def _auditor(conf: cfg.ConfigOpts) -> auditing.Auditor:
    database = startup.opened(conf, create=False)
    startup.database(conf)
    startup.peers(conf)
    # An upgrade check needs none of these.
    from cyborg_lite.conductor import auditing
    from cyborg_lite.conductor import manager

    return auditing.Auditor(conf, database, manager.Manager(conf, database).outbox)


def _print(seen: auditing.Sighting, outcomes: list[str], format_: str) -> None:
    findings = [dataclasses.asdict(each) for each in seen.findings]
    for each, outcome in zip(findings, outcomes, strict=True):
        each['requests'] = list(each['requests'])
        each['outcome'] = outcome
    if format_ == 'json':
        told = {'findings': findings, 'unchecked': seen.unchecked, 'notes': seen.notes}
        print(json.dumps(told, indent=2))
        return
    table = prettytable.PrettyTable(COLUMNS, align='l', max_width=WIDTH)
    for each in findings:
        allocated = [
            f'{provider}: {amount} {name}'
            for provider, amounts in each['placement'].items()
            for name, amount in amounts.items()
        ]
        row = each | {'placement': allocated}
        table.add_row(
            [
                '\n'.join(cell) if isinstance(cell, list) else cell
                for cell in (row[column.lower()] for column in COLUMNS)
            ]
        )
    print(table)
    for text in (*seen.unchecked, *seen.notes):
        print(text)

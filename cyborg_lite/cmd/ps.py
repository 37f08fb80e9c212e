# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite ps``: the accelerators of a running service, and their holders."""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import datetime
import functools
import io
import json
import os
import re
import shutil
import sys
import time
import typing

import prettytable
import wcwidth

from cyborg_lite import client
from cyborg_lite import remote
from cyborg_lite.cmd import leasing
from cyborg_lite.cmd import reading

Row = reading.Row

#: The columns of the table and their maximum widths: 79 with two blanks between them.
WIDTHS = {'HOST': 14, 'MODEL': 12, 'ADDRESS': 12, 'STATE': 11, 'HOLDER': 12, 'SINCE': 8}
CSV = (
    'uuid', 'state', 'reason', 'host', 'type', 'vendor', 'model', 'address', 'resource_class',
    'arq_uuid', 'instance_uuid', 'allocation_uuid', 'project_id', 'user_name', 'held_since',
    'health', 'health_reason', 'claimed_name', 'note', 'container',
)  # fmt: skip
#: The widest that HOLDER becomes where there is room, for a pid beside a claimed name.
HOLDER = 32
#: The columns of what holds an accelerator, shown where there is room, and their widths: the kernel
#: keeps 15 characters of a command.
MORE = {
    'LEFT': 6, 'NAME': 12, 'COMMAND': 15, 'MEMORY': 8, 'CONTAINER': 12, 'IMAGE': 14, 'LAUNCHER': 8,
}  # fmt: skip
#: What the agent of this machine tells of the process that has an accelerator.
TOLD = ('container_name', 'image', 'launcher', 'memory_mb')
#: The width from which on notes are shown, and the widest, if the output is not a terminal.
NOTE, WIDEST = 12, 512
#: The states of health that the table shows for held cards.
NOT_WELL = ('warning', 'critical')
#: The longest time between two lists, in seconds: a day.
LONGEST = 86400
CLEAR = '\x1b[2J\x1b[H'


DESCRIPTION = (
    'Lists accelerators, in which state each is, who holds it, and since when. With http_basic the '
    'password is read from the terminal, or from CYBORG_LITE_PASSWORD; with keystone the token is '
    'read from OS_TOKEN.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--url',
        default=os.environ.get(client.URL),
        help='where the service answers: http://, https://, or unix:// and the path of its socket '
        f'({client.URL}, or the socket of this machine, or {remote.LOCAL})',
    )
    parser.add_argument('--user', metavar='NAME', help='the user, with http_basic')
    parser.add_argument('--cacert', metavar='FILE', help='the authority to trust, with HTTPS (PEM)')
    parser.add_argument(
        '-f', '--format', choices=('table', 'json', 'csv'), default='table', help='(table)'
    )
    parser.add_argument(
        '--watch',
        metavar='SECONDS',
        nargs='?',
        type=_seconds,
        const=2.0,
        help='list them again every so many seconds (2), until it is interrupted',
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(
            f'expected a number of seconds above 0, and at most {LONGEST}, not {text!r:.80}'
        )
    return seconds


def run(arguments: argparse.Namespace) -> None:
    show = {'table': _table, 'json': _json, 'csv': _csv}[arguments.format]
    service = reading.Service(arguments)
    try:
        while True:
            rows = service.all('accelerators', sort_key='host')
            table = arguments.format == 'table'
            if arguments.format != 'csv':
                service.understood(functools.partial(_name_holders, service), rows)
            if table and not service.tells_users:
                rows = [row | {'user_name': None} for row in rows]
            text = _nothing(service) if table and not rows else service.understood(show, rows)
            if arguments.watch and table and sys.stdout.isatty():
                text = CLEAR + text
            print(text, flush=True)
            if not arguments.watch:
                return
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _name_holders(service: reading.Service, rows: list[Row]) -> None:
    """Add to each accelerator the name, the process and the end of the allocation that holds it."""
    held = any(row.get('allocation_uuid') for row in rows)
    active = service.all('allocations', state='active') if held else ()
    found = {each['uuid']: each for each in active}
    # What is leased from a reservation: the reservation holds it, and a process uses it.
    drawn = {
        held['uuid']: each
        for each in found.values()
        if each.get('reservation_uuid')
        for held in each['accelerators']
    }
    for row in rows:
        holder = found.get(row.get('allocation_uuid'), {})
        allocation = drawn.get(row.get('uuid')) or holder
        row |= _process(allocation)
        row['allocation_name'] = allocation.get('name')
        row['lease_ends_at'] = allocation.get('lease_ends_at')
        if allocation:
            row['container'] = allocation.get('container')
        row |= dict.fromkeys(TOLD) | {'rogues': []}
    if service.is_local:
        with contextlib.suppress(client.Error):
            agent = client.find()
            _name_processes(agent, [row for row in rows if row['state'] == 'held'])
            _name_rogues(agent, [row for row in rows if row.get('rogue')])


def _name_processes(agent: str, rows: list[Row]) -> None:
    """Add the processes of other users, which the agent of this machine shows to its users.

    Of each process it knows the names of its container, and who launched it.
    """
    leases = leasing.listed(agent, None, 'list', 'leases') if rows else ()
    # The processes of a reservation have leases of their own.
    alive = [each for each in leases if each['pid'] and each['state'] == 'active']
    held = {held['uuid']: each for each in alive for held in each['accelerators']}
    for row in rows:
        lease = held.get(row.get('uuid'))
        if lease and not row['process']:
            row |= _told(lease['pid'], lease['user'], lease['command'])
        for each in lease.get('processes', ()) if lease else ():
            # Agents of the release before tell less.
            row |= {name: each[name] for name in TOLD if each.get(name) and not row[name]}


def _name_rogues(agent: str, rows: list[Row]) -> None:
    """Add who uses devices without a lease: the first of them is shown in place of a holder."""
    found = leasing.listed(agent, None, 'rogues', 'rogues') if rows else ()
    for row in rows:
        place = row['host'], row['address']
        row['rogues'] = [each for each in found if (each['host'], each['address']) == place]
        for each in row['rogues'][:1] if row['state'] == 'rogue' else ():
            row |= _told(each['pid'], each['user'], each['command'])
            row |= {name: each[name] for name in ('container', *TOLD)}


def _nothing(service: reading.Service) -> str:
    """The text for an empty list: there may be devices without accelerators."""
    if service.page('devices', {'limit': '1'})['devices']:
        return 'Devices were found, and nothing of them is given out.'
    return 'No accelerator was found.'


def _table(rows: list[Row]) -> str:
    rows = [row | _more(row) for row in rows]
    widths = _widths(rows)
    table = prettytable.PrettyTable(list(widths), align='l', border=False)
    table.left_padding_width, table.right_padding_width = 0, 2
    for row in rows:
        cells = (
            row['host'], row['model'], _place(row), _states(row),
            _holder(row, widths['HOLDER']),
            _since(row['held_since'] or _used_since(row)),
        )  # fmt: skip
        more = (row.get(column.lower()) or '' for column in list(widths)[len(WIDTHS) :])
        shown = zip(widths.items(), map(str, (*cells, *more)), strict=True)
        table.add_row([_cut(column, cell, width) for (column, width), cell in shown])
    lines = [*table.get_string().splitlines(), *_unknown(rows), *_access(rows)]
    return '\n'.join(line.rstrip() for line in lines)


def _widths(rows: list[Row]) -> dict[str, int]:
    """The widths of the columns; of MORE those of which a row has something, where there is room.

    First HOLDER gets what its pids need. Notes get all that is left.
    """
    room, found = WIDEST, dict(WIDTHS)
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(width + 2 for width in WIDTHS.values())
    holders = [client.plain(_holder(row, HOLDER)) for row in rows if row.get('pid')]
    longest = max(map(wcwidth.wcswidth, holders), default=0)
    found['HOLDER'] += max(0, min(room, min(longest, HOLDER) - WIDTHS['HOLDER']))
    room -= found['HOLDER'] - WIDTHS['HOLDER']
    for column, least in (MORE | {'NOTE': NOTE}).items():
        if room >= least and any(row.get(column.lower()) for row in rows):
            found[column] = MORE.get(column, room)
            room -= found[column] + 2
    return found


def _unknown(rows: list[Row]) -> list[str]:
    """A line for each reason why the health of cards is unknown."""
    told = {(row['host'], row['address'], why) for row in rows if (why := _why_unknown(row))}
    cards = collections.Counter(why for _, _, why in told)
    return [
        f'Health of {number} card{"s"[: number > 1]} is unknown ({why}).'
        for why, number in sorted(cards.items())
    ]


def _why_unknown(row: Row) -> str | None:
    """Why the health of a card is unknown, in words; None if that is not told."""
    if row.get('health') != 'unknown' or not row.get('health_reason'):
        return None
    return client.plain(str(row['health_reason']).replace('_', ' '))


def _access(rows: list[Row]) -> list[str]:
    """A line that says where the kernel keeps users from devices; none if nothing is known."""
    hosts = {row['host']: client.ACCESS.get(str(row.get('access'))) for row in rows}
    known = collections.Counter(word for word in hosts.values() if word)
    if len(hosts) == 1:
        return [f'Access is {word}.' for word in known]
    words = [f'{word} on {number} host{"s"[: number > 1]}' for word, number in known.items()]
    return [f'Access is {", ".join(words)}.'] if words else []


def _more(row: Row) -> Row:
    """The columns of MORE that no field has; the name of a lease where HOLDER has its process."""
    return {
        'left': _left(row.get('lease_ends_at')),
        'name': row.get('allocation_name') if row.get('process') else None,
        'memory': _size(row.get('memory_mb')),
        'container': row.get('container_name') or row.get('container'),
    }


def _size(mebibytes: int | None) -> str:
    """So many MiB in the largest unit that fits; empty if it is unknown."""
    if mebibytes is None:
        return ''
    return f'{mebibytes} MiB' if mebibytes < 1024 else f'{mebibytes / 1024:.1f} GiB'


def _used_since(row: Row) -> str | None:
    """When the process that uses a device without a lease began."""
    uses = row.get('rogues') or [{}]
    return uses[0].get('since')


def _process(allocation: Row) -> Row:
    """The process that holds an allocation."""
    try:
        # Consumers of other types are what a client says.
        if allocation['consumer']['type'] != 'local_process':
            return _told()
        # The format is that of cyborg_lite.conductor.requesting.
        _host, _boot, pid, _started, _uid, user, command = allocation['consumer']['id'].split('/')
        return _told(int(pid), user, command)
    except (KeyError, TypeError, ValueError, AttributeError):
        return _told()


def _told(pid: int = 0, user: str | None = None, command: str | None = None) -> Row:
    """A process as fields of a row; a lease of no process has a user alone."""
    process = f'{user} {pid}' if pid else user
    return {'pid': pid or None, 'process': process, 'command': command}


def _holder(row: Row, width: int = WIDTHS['HOLDER']) -> str:
    """The holder, with the name that the user claims; the pid is left out if both do not fit."""
    names = (
        'process', 'instance_uuid', 'user_name', 'allocation_name', 'allocation_uuid', 'rogue',
    )  # fmt: skip
    name = next((name for name in names if row.get(name)), None)
    found = '' if name is None else str(row[name])
    if name == 'rogue':
        # The text of the API, where no agent names the process: the pid, and then the user.
        found = re.sub(r'^(\d+) (\S+)', r'\2 \1', found)
    if not row.get('claimed_name'):
        return found
    claimed = f'({row["claimed_name"]})'
    if name in ('allocation_name', 'allocation_uuid'):
        return claimed
    if name == 'process' and wcwidth.wcswidth(f'{found} {claimed}') > width:
        found = re.sub(r' \d+$', '', found)
    return f'{found} {claimed}'


def _place(row: Row) -> str:
    """The attached PCI function; the address of the card if there is none."""
    try:
        return '{domain}:{bus}:{device}.{function}'.format(**row['attach_info'])
    except KeyError:
        return str(row['address'])


def _states(row: Row) -> str:
    """The states of a row, without "held" beside others: the column HOLDER shows the holder.

    For a held accelerator of a card with bad health, the health is shown; for an idle one, how long
    it is idle. If a reason is known why the health is unknown, that is shown also for a free one.
    """
    states = row.get('states', [row['state']])
    if states in (['free'], ['held']) and _why_unknown(row):
        return 'unknown'
    if states == ['held'] and row.get('health') in NOT_WELL:
        return str(row['health'])
    if states == ['held'] and row.get('idle_since'):
        return f'idle {_since(row["idle_since"])}'
    return ', '.join(each for each in states if each != 'held' or len(states) == 1)


def _cut(column: str, text: str, width: int | None = None) -> str:
    """The text cut to the width of its column, without characters that are not printable."""
    text, width = client.plain(text), width or WIDTHS[column]
    if wcwidth.wcswidth(text) <= width:
        return text
    # The end of an address is more specific than its beginning.
    if column == 'ADDRESS':
        return f'…{_head(text[::-1], width - 1)[::-1]}'
    return f'{_head(text, width - 1)}…'


def _head(text: str, width: int) -> str:
    """The beginning that fits into so many columns of a terminal: some characters take two."""
    return next(
        text[:length] for length in range(width, -1, -1) if wcwidth.wcswidth(text[:length]) <= width
    )


def _since(moment: str | None) -> str:
    """The time since then; empty for none."""
    return '' if moment is None else _duration(time.time() - _seconds_of(moment))


def _left(moment: str | None) -> str:
    """The time until then; empty for none."""
    return '' if moment is None else _duration(_seconds_of(moment) - time.time())


def _seconds_of(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


def _duration(duration: float) -> str:
    """So many seconds, in the largest unit that fits."""
    seconds = max(0, int(duration))
    units = (('d', 86400), ('h', 3600), ('min', 60), ('s', 1))
    name, length = next((each for each in units if seconds >= each[1]), units[-1])
    return f'{seconds // length} {name}'


def _json(rows: list[Row]) -> str:
    return json.dumps(rows)


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV, lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row[name]) for name in CSV})
    return text.getvalue().rstrip('\n')


def _cell(value: typing.Any) -> typing.Any:
    return client.plain(value) if isinstance(value, str) else value

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite ps``: the accelerators of a service that runs, and who holds them."""

from __future__ import annotations

import argparse
import csv
import datetime
import getpass
import io
import json
import os
import sys
import time
import typing

from oslo_utils import timeutils
import prettytable
import requests

from cyborg_lite import exception

Row = dict[str, typing.Any]

#: The columns of the table, and how wide each may be: 80 with the two blanks after each.
WIDTHS = {'HOST': 16, 'MODEL': 14, 'ADDRESS': 12, 'STATE': 9, 'HOLDER': 8, 'SINCE': 8}
CSV = (
    'uuid', 'state', 'reason', 'host', 'type', 'vendor', 'model', 'address', 'resource_class',
    'arq_uuid', 'instance_uuid', 'allocation_uuid', 'project_id', 'held_since',
)  # fmt: skip
#: How long an answer may take, in seconds.
TIMEOUT = 30
#: What errors say where a server has no TLS, and where one closes a connection.
NO_TLS = ('WRONG_VERSION_NUMBER', 'RECORD_LAYER_FAILURE', 'PACKET_LENGTH_TOO_LONG', 'HTTP_REQUEST')
CLOSED = ('Connection aborted', 'Connection reset', 'RemoteDisconnected')
CLEAR = '\x1b[2J\x1b[H'


DESCRIPTION = (
    'Lists accelerators, in which state each is, who holds it, and since when. With http_basic the '
    'password is read from the terminal, or from CYBORG_LITE_PASSWORD; with keystone the token is '
    'read from OS_TOKEN.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--url',
        default=os.environ.get('CYBORG_LITE_URL', 'http://127.0.0.1:6666'),
        help='where the service answers (%(default)s, or CYBORG_LITE_URL)',
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
    if not 0 < seconds < 10**6:
        raise argparse.ArgumentTypeError(f'expected a number above 0, not {text!r}')
    return seconds


def run(arguments: argparse.Namespace) -> None:
    show = {'table': _table, 'json': _json, 'csv': _csv}[arguments.format]
    url = arguments.url.rstrip('/').removesuffix('/v2')
    try:
        with _session(arguments) as session:
            while True:
                rows = _rows(session, url)
                empty = arguments.format == 'table' and not rows
                text = _nothing(session, url) if empty else show(rows)
                if arguments.watch and arguments.format == 'table' and sys.stdout.isatty():
                    text = CLEAR + text
                print(text, flush=True)
                if not arguments.watch:
                    return
                time.sleep(arguments.watch)
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _session(arguments: argparse.Namespace) -> requests.Session:
    session = requests.Session()
    # No proxy stands before a service on this machine, and a netrc is of other services.
    session.trust_env = False
    session.verify = arguments.cacert or True
    if arguments.user:
        password = os.environ.get('CYBORG_LITE_PASSWORD') or getpass.getpass()
        session.auth = (arguments.user, password)
    elif token := os.environ.get('OS_TOKEN'):
        session.headers['X-Auth-Token'] = token
    return session


def _rows(session: requests.Session, url: str) -> list[Row]:
    """All accelerators, page by page."""
    rows: list[Row] = []
    page: Row = {'accelerators_links': True}
    while 'accelerators_links' in page:
        marker = {'marker': rows[-1]['uuid']} if rows else {}
        page = _ask(session, url, 'accelerators', marker | {'sort_key': 'host'})
        rows += page['accelerators']
    return rows


def _nothing(session: requests.Session, url: str) -> str:
    """What is said where there are no accelerators: there may be cards all the same."""
    if _ask(session, url, 'devices', {'limit': '1'})['devices']:
        return 'Devices were found, and nothing of them is given out.'
    return 'No accelerator was found.'


def _ask(session: requests.Session, url: str, resource: str, arguments: dict[str, str]) -> Row:
    """A page of a list."""
    root, url = url, f'{url}/v2/{resource}'
    try:
        answer = session.get(url, params=arguments, timeout=TIMEOUT)
        found = answer.json()
        if answer.ok and isinstance(found[resource], list):
            return typing.cast('Row', found)
        said = str(found['errors'][0]['detail'])
    except (requests.ConnectionError, requests.Timeout) as error:
        raise exception.Refused(_unreachable(root, url, error)) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise exception.Refused(f'{url} is not answered as by this service') from None
    hint = _credentials(session, answer) if answer.status_code == 401 else ''
    raise exception.Refused(f'{url} answers {answer.status_code}: {said}{hint}')


def _unreachable(root: str, url: str, error: requests.RequestException) -> str:
    """Why there is no answer, and what to type."""
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        if any(each in text for each in NO_TLS):
            return f'{url} has no TLS: give --url {root.replace("https:", "http:", 1)}'
        return f'the certificate of {url} is not trusted: name its authority with --cacert'
    if url.startswith('http:') and any(each in text for each in CLOSED):
        return (
            f'{url} closed the connection without an answer: if it is a service with TLS, give '
            f'--url {root.replace("http:", "https:", 1)}'
        )
    return (
        f'no service answers at {url} ({type(error).__name__}): start one with "cyborg-lite up", '
        'or say with --url where it is'
    )


def _credentials(session: requests.Session, answer: requests.Response) -> str:
    """What a service wants that does not know who asks."""
    if answer.headers.get('WWW-Authenticate', '').lower().startswith('basic'):
        wrong = ' The name or the password is wrong.' if session.auth else ''
        return f'{wrong} Give the name of a user with --user.'
    wrong = ' The token is wrong, or has expired.' if 'X-Auth-Token' in session.headers else ''
    return f'{wrong} Put a token into OS_TOKEN: "openstack token issue -f value -c id" prints one.'


def _table(rows: list[Row]) -> str:
    table = prettytable.PrettyTable(list(WIDTHS), align='l', border=False)
    table.left_padding_width, table.right_padding_width = 0, 2
    for row in rows:
        cells = (
            row['host'], row['model'], _place(row), _states(row),
            row['instance_uuid'] or row.get('allocation_uuid') or '', _since(row['held_since']),
        )  # fmt: skip
        table.add_row([_cut(*each) for each in zip(WIDTHS, map(str, cells), strict=True)])
    return '\n'.join(line.rstrip() for line in table.get_string().splitlines())


def _place(row: Row) -> str:
    """The PCI function that is attached; the address of the card where there is none."""
    try:
        return '{domain}:{bus}:{device}.{function}'.format(**row['attach_info'])
    except KeyError:
        return str(row['address'])


def _states(row: Row) -> str:
    """All that it is; who holds it stands beside that, unless it is held only."""
    states = row.get('states', [row['state']])
    return ', '.join(each for each in states if each != 'held' or len(states) == 1)


def _cut(column: str, text: str) -> str:
    """The text as far as there is room; what is no character of a line is not printed."""
    text = ''.join(each if each.isprintable() else '?' for each in text)
    width = WIDTHS[column]
    if column == 'HOLDER' or len(text) <= width:
        return text[:width]
    # The end of an address tells more than its beginning.
    return f'…{text[1 - width :]}' if column == 'ADDRESS' else f'{text[: width - 1]}…'


def _since(moment: str | None) -> str:
    """How long ago, in the largest unit that fits."""
    if moment is None:
        return ''
    then = timeutils.normalize_time(datetime.datetime.fromisoformat(moment))
    seconds = max(0, int((timeutils.utcnow() - then).total_seconds()))
    units = (('d', 86400), ('h', 3600), ('min', 60), ('s', 1))
    name, length = next((each for each in units if seconds >= each[1]), units[-1])
    return f'{seconds // length} {name}'


def _json(rows: list[Row]) -> str:
    return json.dumps(rows)


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip('\n')

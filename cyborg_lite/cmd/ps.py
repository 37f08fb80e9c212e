# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite ps``: the accelerators of a running service, and their holders."""

from __future__ import annotations

import argparse
import base64
import collections
import collections.abc
import csv
import datetime
import getpass
import http.client
import io
import json
import os
import shutil
import ssl
import sys
import termios
import time
import typing
import urllib.error
import urllib.parse
import urllib.request
import warnings

import prettytable
import wcwidth

from cyborg_lite import client
from cyborg_lite import exception

Row = dict[str, typing.Any]
_Found = typing.TypeVar('_Found')

#: The columns of the table and their maximum widths: 79 with two blanks between them.
WIDTHS = {'HOST': 14, 'MODEL': 12, 'ADDRESS': 12, 'STATE': 11, 'HOLDER': 12, 'SINCE': 8}
CSV = (
    'uuid', 'state', 'reason', 'host', 'type', 'vendor', 'model', 'address', 'resource_class',
    'arq_uuid', 'instance_uuid', 'allocation_uuid', 'project_id', 'user_name', 'held_since',
    'health', 'health_reason', 'claimed_name', 'note', 'container',
)  # fmt: skip
#: The columns of what holds an accelerator, shown where there is room, and their widths: the kernel
#: keeps 15 characters of a command.
MORE = {'LEFT': 6, 'COMMAND': 15, 'CONTAINER': 12}
#: Where the service answers on this machine, if it has no Unix socket.
LOCAL = 'http://127.0.0.1:6666'
#: The width from which on notes are shown, and the widest, if the output is not a terminal.
NOTE, WIDEST = 12, 512
#: The timeout of a request, in seconds.
TIMEOUT = 30
#: Texts of errors when a server has no TLS, and errors when it closes a connection.
NO_TLS = ('WRONG_VERSION_NUMBER', 'RECORD_LAYER_FAILURE', 'PACKET_LENGTH_TOO_LONG', 'HTTP_REQUEST')
CLOSED = (ConnectionResetError, http.client.BadStatusLine)
#: The states of health that the table shows for held cards.
NOT_WELL = ('warning', 'critical')
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
        f'({client.URL}, or the socket of this machine, or {LOCAL})',
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
    service = _Service(arguments)
    try:
        while True:
            rows = service.accelerators()
            table = arguments.format == 'table'
            if table:
                service.understood(service.name_holders, rows)
            text = _nothing(service) if table and not rows else service.understood(show, rows)
            if arguments.watch and table and sys.stdout.isatty():
                text = CLEAR + text
            print(text, flush=True)
            if not arguments.watch:
                return
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        print(file=sys.stderr)


class _Service:
    """A client of a service over HTTP.

    It uses the standard library: requests takes longer to load than the rest of the command.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._root = _url(arguments).rstrip('/').removesuffix('/v2')
        self._local = self._root.startswith(client.UNIX)
        self._user = arguments.user
        # At a socket the kernel tells who the caller is.
        self._headers = {} if self._local else _credentials(arguments.user)
        # Proxies are ignored, as the service is usually on this machine. Redirects are not
        # followed: the credentials are for the named service only.
        self._opener = urllib.request.OpenerDirector()
        handlers = [urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler()]
        if self._local:
            handlers.append(_SocketHandler(_path(self._root)))
        elif self._root.startswith('https:'):
            handlers.append(urllib.request.HTTPSHandler(context=_trust(arguments.cacert)))
        else:
            handlers.append(urllib.request.HTTPHandler())
        for handler in (*handlers, urllib.request.UnknownHandler()):
            self._opener.add_handler(handler)

    def accelerators(self) -> list[Row]:
        """All accelerators."""
        return self._all('accelerators', sort_key='host')

    def name_holders(self, rows: list[Row]) -> None:
        """Add to each accelerator that an allocation holds its name, process and container.

        Without authentication all users have one name: it tells nobody from others.
        """
        if not self._headers and not self._local:
            for row in rows:
                row['user_name'] = None
        if not any(row.get('allocation_uuid') for row in rows):
            return
        found = {each['uuid']: each for each in self._all('allocations', state='active')}
        # What is leased from a reservation: the reservation holds it, and a process uses it.
        drawn = {
            held['uuid']: each
            for each in found.values()
            if each.get('reservation_uuid')
            for held in each['accelerators']
        }
        for row in rows:
            holder = found.get(row.get('allocation_uuid'))
            if allocation := drawn.get(row.get('uuid')) or holder:
                row['process'], row['command'] = _process(allocation)
                row['container'] = allocation.get('container')
                row['allocation_name'] = allocation['name']
                row['left'] = _left(allocation.get('lease_ends_at'))

    def _all(self, resource: str, **arguments: str) -> list[Row]:
        """A list, page by page."""
        rows: list[Row] = []
        page: Row = {f'{resource}_links': True}
        while f'{resource}_links' in page:
            marker = {'marker': self.understood(_last, rows)} if rows else {}
            page = self.page(resource, marker | arguments)
            # A service that is not ours may repeat a page for ever.
            if not page[resource] or page[resource][-1:] == rows[-1:]:
                break
            rows += page[resource]
        return rows

    def understood(
        self, read: collections.abc.Callable[[list[Row]], _Found], rows: list[Row]
    ) -> _Found:
        """What is read from the rows, if they are those of this service."""
        try:
            return read(rows)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            raise exception.Refused(f'{self._root} does not answer as this service') from None

    def page(self, resource: str, arguments: dict[str, str]) -> Row:
        """A page of a list."""
        url = f'{self._root}/v2/{resource}'
        root = 'http://localhost' if self._local else self._root
        try:
            wanted = f'{root}/v2/{resource}?{urllib.parse.urlencode(arguments)}'
            # The opener only knows HTTP and HTTPS.
            request = urllib.request.Request(wanted, headers=self._headers)  # noqa: S310
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                found = json.load(answer)
            if isinstance(found[resource], list):
                return typing.cast('Row', found)
        except urllib.error.HTTPError as error:
            raise exception.Refused(f'{url} {self._refusal(error)}') from None
        except OSError as error:
            raise exception.Refused(self._unreachable(url, error)) from None
        except (http.client.BadStatusLine, http.client.IncompleteRead) as error:
            raise exception.Refused(self._unreachable(url, error)) from None
        except (http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
            pass
        raise exception.Refused(f'{url} is not answered as by this service')

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """The error text for an answer that is not a list."""
        if location := error.headers.get('Location'):
            return f'leads to {location[:200]!r}: name that service with --url'
        try:
            said = str(json.load(error)['errors'][0]['detail'])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return 'is not answered as by this service'
        said = client.plain(said)[:500]
        hint = self._wanted(error) if error.code == 401 else ''
        return f'answers {error.code}: {said}{hint}'

    def _wanted(self, error: urllib.error.HTTPError) -> str:
        """The hint for a service that requires authentication."""
        if error.headers.get('WWW-Authenticate', '').lower().startswith('basic'):
            if self._user:
                return ' The name or the password is wrong.'
            return ' Give the name of a user with --user.'
        wrong = ' The token is wrong, or has expired.' if 'X-Auth-Token' in self._headers else ''
        return (
            f'{wrong} Put a token into OS_TOKEN: "openstack token issue -f value -c id" prints one.'
        )

    def _unreachable(self, url: str, error: Exception) -> str:
        """Why there is no answer, and what to do."""
        cause = getattr(error, 'reason', None) if type(error) is urllib.error.URLError else error
        if isinstance(cause, ssl.SSLError):
            if any(each in str(cause) for each in NO_TLS):
                plain = self._root.replace('https:', 'http:', 1)
                return f'{url} has no TLS: give --url {plain}'
            return f'the certificate of {url} is not trusted: name its authority with --cacert'
        if url.startswith('http:') and isinstance(cause, CLOSED):
            return (
                f'{url} closed the connection without an answer: if it is a service with TLS, give '
                f'--url {self._root.replace("http:", "https:", 1)}'
            )
        if isinstance(cause, PermissionError) and self._local:
            return f'you may not use {url}: ask for membership in [api] socket_group'
        return (
            f'no service answers at {url} ({cause}): start one with "cyborg-lite up", or say with '
            '--url where it is'
        )


class _SocketHandler(urllib.request.HTTPHandler):
    """Sends requests to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        path = self._path

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = client.connect(path, self.timeout)

        return self.do_open(Connection, request)


def _url(arguments: argparse.Namespace) -> str:
    """Where the service answers.

    A socket of this machine is preferred to the port: it may be the only one, and it tells users
    apart. Credentials are for a port.
    """
    if arguments.url:
        url = str(arguments.url)
        if not url.lower().startswith(('http://', 'https://', client.UNIX)):
            raise exception.Refused(
                f'--url {url}: expected http://, https:// or unix:// at its beginning'
            )
        if arguments.user and url.startswith(client.UNIX):
            raise exception.Refused(f'--user is for http and https: {url} knows its users')
        return url
    named = arguments.user or os.environ.get('OS_TOKEN')
    path = None if named else client.find_api()
    return LOCAL if path is None else f'{client.UNIX}{path}'


def _path(url: str) -> str:
    """The path in the URL of a Unix socket."""
    path = url.removeprefix(client.UNIX)
    if not path.startswith('/'):
        raise exception.Refused(f'--url {url}: expected unix:// and an absolute path')
    return path


def _credentials(user: str | None) -> dict[str, str]:
    """The headers that authenticate the caller."""
    if user:
        password = os.environ.get('CYBORG_LITE_PASSWORD') or _ask()
        encoded = base64.b64encode(f'{user}:{password}'.encode(errors='surrogateescape')).decode()
        return {'Authorization': f'Basic {encoded}'}
    if token := os.environ.get('OS_TOKEN'):
        return {'X-Auth-Token': token}
    return {}


def _ask() -> str:
    """The password that is typed at the terminal."""
    try:
        with warnings.catch_warnings():
            # Otherwise it is read from another place, and may be shown.
            warnings.simplefilter('error', getpass.GetPassWarning)
            return getpass.getpass()
    except (EOFError, OSError, termios.error, getpass.GetPassWarning):
        raise exception.Refused(
            'the password cannot be read from the terminal: put it into CYBORG_LITE_PASSWORD'
        ) from None


def _trust(cacert: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=cacert)
    except OSError as error:
        raise exception.Refused(
            f'--cacert {cacert}: expected a certificate in PEM form ({error.strerror or error})'
        ) from None


def _nothing(service: _Service) -> str:
    """The text for an empty list: there may be devices without accelerators."""
    if service.page('devices', {'limit': '1'})['devices']:
        return 'Devices were found, and nothing of them is given out.'
    return 'No accelerator was found.'


def _table(rows: list[Row]) -> str:
    widths = WIDTHS | _more_widths(rows)
    table = prettytable.PrettyTable(list(widths), align='l', border=False)
    table.left_padding_width, table.right_padding_width = 0, 2
    for row in rows:
        cells = (
            row['host'], row['model'], _place(row), _states(row), _holder(row),
            _since(row['held_since']),
        )  # fmt: skip
        more = (row.get(column.lower()) or '' for column in list(widths)[len(WIDTHS) :])
        shown = zip(widths.items(), map(str, (*cells, *more)), strict=True)
        table.add_row([_cut(column, cell, width) for (column, width), cell in shown])
    lines = [*table.get_string().splitlines(), *_access(rows)]
    return '\n'.join(line.rstrip() for line in lines)


def _more_widths(rows: list[Row]) -> dict[str, int]:
    """The widths of more columns, of which a row has something and a terminal has room for.

    Notes get all that is left.
    """
    room, found = WIDEST, {}
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(width + 2 for width in WIDTHS.values())
    for column, least in (MORE | {'NOTE': NOTE}).items():
        if room >= least and any(row.get(column.lower()) for row in rows):
            found[column] = MORE.get(column, room)
            room -= found[column] + 2
    return found


def _access(rows: list[Row]) -> list[str]:
    """A line that says where the kernel keeps users from devices; none if nothing is known."""
    hosts = {row['host']: client.ACCESS.get(str(row.get('access'))) for row in rows}
    known = collections.Counter(word for word in hosts.values() if word)
    if len(hosts) == 1:
        return [f'Access is {word}.' for word in known]
    words = [f'{word} on {number} host{"s"[: number > 1]}' for word, number in known.items()]
    return [f'Access is {", ".join(words)}.'] if words else []


def _process(allocation: Row) -> tuple[str, str] | tuple[None, None]:
    """The pid and the user of the process that holds an allocation, and its command."""
    try:
        # Consumers of other types are what a client says.
        if allocation['consumer']['type'] != 'local_process':
            return None, None
        # The format is that of cyborg_lite.conductor.requesting.
        _host, _boot, pid, _started, _uid, user, command = allocation['consumer']['id'].split('/')
    except (KeyError, TypeError, ValueError, AttributeError):
        return None, None
    return f'{pid} {user}' if pid != '0' else str(user), str(command)


def _holder(row: Row) -> str:
    """The holder, with the name that the user claims; the pid is left out if both do not fit."""
    names = (
        'process', 'instance_uuid', 'user_name', 'allocation_name', 'allocation_uuid', 'rogue',
    )  # fmt: skip
    name = next((name for name in names if row.get(name)), None)
    found = '' if name is None else str(row[name])
    if not row.get('claimed_name'):
        return found
    claimed = f'({row["claimed_name"]})'
    if name in ('allocation_name', 'allocation_uuid'):
        return claimed
    if wcwidth.wcswidth(f'{found} {claimed}') > WIDTHS['HOLDER']:
        found = found.rpartition(' ')[2]
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
    it is idle.
    """
    states = row.get('states', [row['state']])
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


def _last(rows: list[Row]) -> str:
    return str(rows[-1]['uuid'])

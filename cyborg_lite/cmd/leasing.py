# SPDX-License-Identifier: Apache-2.0
"""Common arguments and waiting of the commands that lease accelerators."""

from __future__ import annotations

import argparse
import collections.abc
import datetime
import os
import re
import sys
import time
import typing

from cyborg_lite import client
from cyborg_lite.cmd import times

#: The status of a command that timed out, as in timeout(1).
LATE = 124
#: The timeout for the list of holders from the agent, in seconds.
PATIENCE = 2.0
#: What a reason has if accelerators are in a state that does not end with a lease.
BLOCKED = re.compile(r' \(\d+ [a-z ]+(, \d+ [a-z ]+)*\)')
#: What to type, by a text that a refusal has: the first that fits.
ADVICE = {
    'Quota exceeded': 'Ask for fewer with -n, or ask an administrator for more: "openstack '
    'accelerator quota show" lists your limits',
    **dict.fromkeys(
        client.NEVER,
        'Change -n, --trait, --same-numa or --linked: "cyborg-lite ps -f json" lists the cards '
        'with their traits and NUMA nodes',
    ),
    'kept for reservation': 'Take them for a time that ends before, with "cyborg-lite alloc '
    '--for"; "cyborg-lite reserve --list" lists the times',
    client.TOO_FEW: '"cyborg-lite ps" shows all cards',
    'not free in time': 'Ask for fewer with -n, or wait longer; "cyborg-lite ps" shows all cards',
    'a reservation has its accelerators already': 'Give no --class, --profile, --trait, '
    '--same-numa or --linked with --reservation',
    'Invalid resource_class': 'Name it with --class; another host of this agent is named with '
    '--host',
    'Device profile': '"openstack accelerator device profile list" lists them',
    'holds nothing yet': '"cyborg-lite reserve --list" lists the times',
    'are left: expected': 'Ask for fewer with -n; "cyborg-lite ps" shows who uses the others',
    'it cannot give': 'Ask for fewer with -n: "cyborg-lite reserve --list" lists them',
    'Reservation': '"cyborg-lite reserve --list" lists them',
    'overlaps with': 'Choose another --at, or fewer with -n: "cyborg-lite reserve --list" lists '
    'the times',
    'belongs to another user': 'Name a process of your own: "ps -u $USER" lists them',
    'cannot be leased': '"cyborg-lite ps" shows the state of each card and its holder',
    'no lease of': '"cyborg-lite ps" shows who holds what, and "cyborg-lite reserve --list" for '
    'when something is reserved',
    'already exists': 'Choose another --name, or release that first with "cyborg-lite release"',
}
#: What to type first after --nonblock, and for which of these texts.
QUEUE = 'Leave out --nonblock to wait in line, or give --wait 30m in its place'
QUEUED = ('kept for reservation', client.TOO_FEW, 'holds nothing yet', 'are left: expected')
#: The maximum number of holders that are named, and of characters of a note.
NAMED, NOTE = 4, 40


def fitting(pattern: str, expected: str) -> collections.abc.Callable[[str], str]:
    """Check an argument as the service does, whose error would name no option."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f'expected {expected}, not {text!r:.80}')
        return text

    return check


def label(field: str) -> collections.abc.Callable[[str], str]:
    """Check a text that a user adds to a lease; an empty one stands for none."""

    def check(text: str) -> str:
        if text and (expected := client.unfit(field, text)):
            raise argparse.ArgumentTypeError(f'{expected}, not {text!r:.80}')
        return text

    return check


#: The words of a request as the service takes them, by its names for them.
WORDS = {
    'resource_class': (r'[A-Za-z0-9_.:-]{1,255}', 'a resource class, such as npu'),
    'profile': (r'[^\x00-\x1f\x7f\ud800-\udfff]{1,255}', 'the name of a device profile'),
    'reservation': (r'[^\x00-\x1f\x7f\ud800-\udfff]{1,255}', 'the uuid or name of a reservation'),
    'name': (
        r'[A-Za-z0-9][A-Za-z0-9_.-]{0,254}',
        'up to 255 letters, digits, "_", "." and "-", beginning with a letter or a digit',
    ),
    'traits': (r'!?[A-Z0-9_]{1,255}', 'capital letters, digits and "_", such as CUSTOM_FAST'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_wanted(parser)
    add_labels(parser, 'lease')
    parser.add_argument(
        '--reservation',
        type=fitting(*WORDS['reservation']),
        metavar='ID',
        help='take them from this reservation of yours, by its uuid or name, once it has started: '
        'all that are left of it, or -n',
    )
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument(
        '--nonblock', action='store_true', help='fail at once if they are not free'
    )
    waiting.add_argument(
        '--wait',
        type=times.seconds,
        metavar='TIME',
        help=f'wait at most this time, such as 30m, then exit with status {LATE} (no limit)',
    )
    add_agent(parser)


def add_labels(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the arguments that say what a lease or reservation is called, whose it is, and why."""
    parser.add_argument(
        '--name', type=fitting(*WORDS['name']), metavar='NAME', help=f'a name for the {what}'
    )
    add_claimed_name(parser)
    parser.add_argument(
        '--note', type=label('note'), metavar='TEXT', help='what it is for; others see it'
    )


def add_claimed_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--as',
        dest='claimed_name',
        type=label('claimed_name'),
        metavar='NAME',
        help=f'who you are, where people share a login; it proves nothing ({client.CLAIMED})',
    )


def add_wanted(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select accelerators."""
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        '--class',
        dest='resource_class',
        type=fitting(*WORDS['resource_class']),
        metavar='CLASS',
        help='their resource class, such as npu, gpu or CUSTOM_NPU (the only one of this machine)',
    )
    kind.add_argument(
        '--profile',
        type=fitting(*WORDS['profile']),
        metavar='NAME',
        help='the accelerators of a device profile',
    )
    parser.add_argument('-n', dest='count', type=count, metavar='N', help='how many (1)')
    parser.add_argument(
        '--trait',
        action='append',
        default=[],
        type=fitting(*WORDS['traits']),
        metavar='TRAIT',
        help='a trait that each has to have, or with ! before it must not have; can be given many '
        'times',
    )
    parser.add_argument(
        '--same-numa', action='store_true', help='take them of one NUMA node, or not at all'
    )
    parser.add_argument(
        '--linked',
        action='store_true',
        help='take cards that direct links connect to a ring, or none at all',
    )


def add_agent(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select the agent, and one of its hosts."""
    parser.add_argument(
        '--host', metavar='NAME', help='one of the hosts of "cyborg-lite up --host" (the first)'
    )
    parser.add_argument(
        '--socket',
        metavar='FILE',
        help=f'where the agent of this machine listens ({client.VARIABLE}, or it is looked for)',
    )


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= 1000 and len(text) < 5):
        raise argparse.ArgumentTypeError(f'expected a number from 1 to 1000, not {text!r:.80}')
    return int(text)


def attempt(
    arguments: argparse.Namespace,
    of: str | int = 'self',
    command: str | None = None,
    seconds: float | None = None,
) -> tuple[int, client.Lease | None]:
    """The lease for the arguments; or None, and the exit status."""
    try:
        return 0, take(arguments, of, command, seconds)
    except client.Error as error:
        say(_refusal(error, arguments))
        return LATE if isinstance(error, client.TimedOut) else 1, None


def _refusal(error: client.Error, arguments: argparse.Namespace) -> str:
    """The text of an error and what to type; if too few were free, with the holders."""
    text = str(error)
    busy = text.startswith(client.TOO_FEW) and not client.is_never(text)
    holders = _holders(client.find(arguments.socket), arguments.host) if busy else ''
    # What others write of themselves gives no advice.
    return advised(text, holders, arguments.nonblock)


def advised(text: str, holders: str = '', nonblock: bool = False) -> str:
    """A refusal, the holders, and what to type, if that is known."""
    known = next((known for known in ADVICE if known in text), None)
    advice = [QUEUE] if nonblock and known in QUEUED else []
    advice += [ADVICE[known]] if known else []
    said = _with(text, holders) if holders else text
    return f'{said.rstrip(".")}. {"; ".join(advice)}.' if advice else said


def _with(text: str, holders: str) -> str:
    return f'{text.rstrip(".")}: {holders}'


def take(
    arguments: argparse.Namespace,
    of: str | int = 'self',
    command: str | None = None,
    seconds: float | None = None,
) -> client.Lease:
    """The lease for the arguments.

    :raises cyborg_lite.client.Error: when it is refused.
    """
    path = client.find(arguments.socket)
    named = arguments.socket or os.environ.get(client.VARIABLE)
    if not named and (far := client.elsewhere()):
        say(far)
    end = None if arguments.wait is None else time.monotonic() + arguments.wait
    told = _Waiting(path)
    try:
        found = client.lease(
            path,
            request(arguments, seconds),
            of=of,
            command=command,
            end=end,
            told=told,
            host=arguments.host,
        )
    except client.TimedOut:
        raise client.late(told.cause) from None
    for each in found.problems:
        say(each)
    return found


def held(arguments: argparse.Namespace, id: str) -> client.Lease | None:
    """The active lease of this user with this uuid or name; None if there is none.

    :raises cyborg_lite.client.Error: when no agent answers.
    """
    # Imported here: most commands do not need it, and it takes long to load.
    from cyborg_lite import delivery

    path = client.find(arguments.socket)
    for row in leases(path, arguments.host):
        if row['state'] == 'active' and id in (row['uuid'], row['name']):
            document = delivery.document(row['uuid'], row['host'], row['accelerators'])
            views = {view: delivery.render(document, view) for view in delivery.VIEWS}
            return client.Lease(
                *(row['uuid'], row['name'], row['host'], row['accelerators'], views, path),
                row.get('access', 'advisory'),
            )
    return None


def request(arguments: argparse.Namespace, seconds: float | None = None) -> dict[str, typing.Any]:
    """The request to an agent for the arguments."""
    words: dict[str, typing.Any] = {'queue': not getattr(arguments, 'nonblock', True)}
    for name in ('resource_class', 'profile', 'count', 'name', 'reservation'):
        if getattr(arguments, name, None) is not None:
            words[name] = getattr(arguments, name)
    if arguments.trait:
        words['traits'] = {
            each.removeprefix('!'): 'forbidden' if each.startswith('!') else 'required'
            for each in arguments.trait
        }
    if arguments.same_numa:
        words['same_numa'] = 'require'
    if arguments.linked:
        words['link'] = 'require'
    words |= client.labels(arguments.claimed_name, arguments.note)
    if seconds is not None:
        words['seconds'] = max(1, round(seconds))
    return words


def _holders(path: str, host: str | None, reservation: str | None = None) -> str:
    """Who holds accelerators of a host, or uses those of a reservation; empty if not known."""
    found = listed(path, host, 'list', 'leases')
    # What is leased from a reservation is held by the reservation.
    held = [x for x in found if x['state'] == 'active' and x.get('reservation') == reservation]
    # A conductor may not have ended what is over.
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)  # noqa: UP017
    held += [] if reservation else listed(path, host, 'others', 'others')
    holders = [_holder(each) for each in held if not each.get('ends') or _moment(each) > now]
    more = f' and {len(holders) - NAMED} more' if len(holders) > NAMED else ''
    return f'held by {", ".join(holders[:NAMED])}{more}' if holders else ''


def leases(path: str, host: str | None) -> list[dict[str, typing.Any]]:
    """All leases of a host.

    :raises cyborg_lite.client.Error: when no agent answers in time.
    """
    return _listed(path, host, 'list', 'leases')


def listed(path: str, host: str | None, what: str, named: str) -> list[dict[str, typing.Any]]:
    """What an agent lists; nothing if it does not answer in time, or is of the release before."""
    try:
        return _listed(path, host, what, named)
    except (client.Error, KeyError):
        return []


def _listed(path: str, host: str | None, what: str, named: str) -> list[dict[str, typing.Any]]:
    found = client.ask(path, {'do': what, 'host': host}, PATIENCE)[named]
    return typing.cast('list[dict[str, typing.Any]]', found)


class _Waiting:
    """Prints in one line the position of a queued request, and the holders."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._said = ''
        #: the holders, or the reason, as it was printed last
        self.cause = ''

    def __call__(self, answer: dict[str, typing.Any]) -> None:
        place = answer.get('position')
        text = f'waiting at place {place}' if place else 'waiting'
        holders = _holders(self._path, answer.get('host'), answer.get('reservation'))
        reason = str(answer.get('reason') or '')
        # Holders are named if the request waits for accelerators that would be sufficient.
        busy = answer.get('in_use') or (
            reason.startswith(client.WAITS) and not client.is_never(reason)
        )
        self.cause = reason.removeprefix(client.WAITS)
        if holders and busy:
            self.cause = _with(self.cause, holders) if BLOCKED.search(reason) else holders
        text += f': {self.cause}' if self.cause else ''
        if text != self._said:
            self._said = text
            say(text)


def _holder(held: dict[str, typing.Any]) -> str:
    """A lease, or what another holder has: that has no process."""
    claimed = f'({held["claimed_name"]})' if held.get('claimed_name') else ''
    # Agents of the release before do not say them.
    found = sorted({_container(p) for p in held.get('processes', ()) if p.get('container')})
    inside = f'in container {", ".join(found)}' if found else ''
    ends = f' until {times.local(held["ends"])}' if held.get('ends') else ''
    note = held.get('note') or ''
    said = f', "{note[:NOTE]}{"…" if len(note) > NOTE else ""}"' if note else ''
    amount = len(held['accelerators']) if 'accelerators' in held else held['amount']
    words = held['user'], claimed, held.get('pid'), held.get('command'), inside
    return f'{" ".join(str(each) for each in words if each)} ({amount}{ends}{said})'


def _container(process: dict[str, typing.Any]) -> str:
    """The container of a process, with its name and image where they are known."""
    names = filter(None, map(process.get, ('container_name', 'image')))
    return f'{process["container"]} ({", ".join(names)})'.removesuffix(' ()')


def _moment(held: dict[str, typing.Any]) -> datetime.datetime:
    """The end of what is held, in UTC."""
    return datetime.datetime.fromisoformat(held['ends'])


def say(text: str) -> None:
    """Print one line to the terminal, in local time, without characters that are not printable."""
    print('cyborg-lite:', client.plain(times.localized(text)), file=sys.stderr)

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-discover``: a discovery script of Spark, which leases what it prints."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
import typing
import zlib

from cyborg_lite import client
from cyborg_lite.agent import processes
from cyborg_lite.cmd import leasing
from cyborg_lite.cmd import main as command
from cyborg_lite.cmd import times

DESCRIPTION = (
    'Prints accelerators as a discovery script of Spark does: {"name": "npu", "addresses": ["0"]}. '
    'They are leased for the process that starts this command, which is the JVM of a worker, an '
    'executor or a driver, and released when it has ended: two of them on one machine never get '
    'the same. The same process gets the same again. Spark passes no arguments: the variable '
    'CYBORG_RESOURCE has the resource, such as npu, and CYBORG_LEASE how many are wanted; or '
    'CYBORG_PROFILE has a device profile.'
)
#: The variables of Spark's executors and workers, see "cyborg-lite spark-conf".
RESOURCE, COUNT, PROFILE = 'CYBORG_RESOURCE', 'CYBORG_LEASE', 'CYBORG_PROFILE'
#: The name of a resource of Spark.
NAME = re.compile('[A-Za-z][A-Za-z0-9_]{0,62}')
#: A part of the command line of a JVM that has several workers.
SEVERAL = b'local-cluster['
#: The timeout of the search for a lease of the same process, and its interval, in seconds.
PATIENCE, PAUSE = 5.0, 0.05


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='cyborg-lite-discover', description=DESCRIPTION)
    parser.add_argument(
        '--version', action=command.Version, nargs=0, help='print the version, and exit'
    )
    leasing.add_wanted(parser)
    parser.add_argument(
        '--resource',
        type=resource,
        metavar='NAME',
        help=f"Spark's name of the resource, and its class by default ({RESOURCE}, or it is as the "
        'driver says)',
    )
    parser.add_argument(
        '--wait',
        type=times.seconds,
        metavar='TIME',
        help='wait so long, such as 30s, if they are not free (not at all)',
    )
    leasing.add_agent(parser)
    return parser


def resource(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f'expected a name such as npu, not {text!r:.80}')
    return text


def main() -> int:
    arguments = parser().parse_args()
    try:
        _complete(arguments)
        print(json.dumps(_found(_lease(arguments), arguments.resource)))
    except (client.Error, processes.Gone, OSError) as error:
        leasing.say(str(error))
        return 1
    return 0


def _complete(arguments: argparse.Namespace) -> None:
    """Complete the arguments from the environment.

    :raises cyborg_lite.client.Error: when a variable is invalid.
    """
    if arguments.resource_class is None:
        arguments.profile = arguments.profile or os.environ.get(PROFILE) or None
    wanted: dict[str, tuple[str, typing.Any]] = {'resource': (RESOURCE, resource)}
    if arguments.profile is None:
        wanted['count'] = COUNT, leasing.count
    for name, (variable, check) in wanted.items():
        text = os.environ.get(variable)
        if getattr(arguments, name) is None and text:
            try:
                setattr(arguments, name, check(text))
            except argparse.ArgumentTypeError as error:
                raise client.Error(f'{variable}: {error}', 400) from None
    if arguments.profile is None:
        arguments.resource_class = arguments.resource_class or arguments.resource
    arguments.nonblock = arguments.wait is None
    arguments.name = arguments.claimed_name = arguments.note = None


def _lease(arguments: argparse.Namespace) -> client.Lease:
    """The lease of the parent: that of an earlier call, or a new one.

    The name of a lease is unique: of several concurrent calls, one makes the lease, and the others
    find it.

    :raises cyborg_lite.client.Error: when it cannot be had.
    """
    name = arguments.name = _name(arguments)
    end = time.monotonic() + (arguments.wait or PATIENCE)
    while True:
        try:
            return leasing.take(arguments, 'parent')
        except client.Error as error:
            if name is None or name not in str(error):
                raise
            if earlier := leasing.held(arguments, name):
                return earlier
            if time.monotonic() > end:
                raise
        time.sleep(PAUSE)


def _name(arguments: argparse.Namespace) -> str | None:
    """The name of the parent's lease for this request; None if each call gets a new lease."""
    parent = processes.find(os.getppid())
    # In this mode one process has all workers, and each calls once.
    if SEVERAL in (processes.PROC / str(parent.pid) / 'cmdline').read_bytes():
        return None
    # Two pid namespaces can have the same pids.
    about = processes.namespace(os.getpid()), leasing.request(arguments)
    number = zlib.crc32(repr(about).encode())
    return f'spark-{parent.pid}-{parent.started}-{parent.boot_id}-{number:08x}'


def _found(lease: client.Lease, name: str | None) -> dict[str, typing.Any]:
    """The object that Spark reads.

    :raises cyborg_lite.client.Error: when the accelerators have no addresses, or several names.
    """
    resources = lease.views['spark']['resources']
    names = ', '.join(each['name'] for each in resources) or 'none'
    if len(resources) != 1:
        lease.release()
        raise client.Error(
            f'expected accelerators of one resource of Spark, and found: {names}. Name another '
            f'class in {RESOURCE}',
            400,
        )
    return {'name': name or resources[0]['name'], 'addresses': lease.addresses}

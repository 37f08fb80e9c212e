# SPDX-License-Identifier: Apache-2.0
"""What the service costs on this machine: ``tox -e bench``; doc/source/contributor/bench.rst."""

from __future__ import annotations

import argparse
import collections.abc
import os
import pathlib
import tempfile
import time

import requests

from cyborg_lite import client
from tests import support
from tests.bench import alone
from tests.bench import choices
from tests.bench import cloud
from tests.bench import hosts
from tests.bench import leases
from tests.bench import measure
from tests.bench.measure import Figure
from tests.integration import process
from tests.unit.cmd import process as up_

COMMAND = process.BIN / 'cyborg-lite'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--alone', action='store_true', help='leave out what needs servers')
    parser.add_argument(
        '--hosts', type=int, help='measure only how long so many hosts take to be known'
    )
    parser.add_argument(
        '--leases', type=int, help='measure only what is left of so many killed processes'
    )
    arguments = parser.parse_args()
    if arguments.hosts:
        hosts.run(arguments.hosts)
        return
    # Modules are compiled once, as on any machine of a user.
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
    up_.ENVIRONMENT.pop('PYTHONDONTWRITEBYTECODE', None)
    print(f'load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
    print(f'{"":52} {"is":>10} {"":9} {"aim":>10}')
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        if arguments.leases:
            _tell(leases.killed(place, arguments.leases))
        else:
            _tell(_commands(place))
            _tell(alone.figures(place))
            _tell(choices.figures(place))
        if not (arguments.alone or arguments.leases):
            # Servers of databases refuse to run as root: their directories are open to others.
            place.chmod(0o755)
            _tell(cloud.figures(place))
    print(f'load {os.getloadavg()[0]:.1f}')


def _tell(figures: collections.abc.Iterable[Figure]) -> None:
    for figure in figures:
        print(figure, flush=True)


def _commands(place: pathlib.Path) -> collections.abc.Iterator[Figure]:
    yield Figure('fdatasync', measure.fdatasync(place), '/s')
    yield Figure('cyborg-lite --help, CPU', measure.command(COMMAND, '--help'), 's', 0.25)
    host = ('--host', 'hgx-8gpu')
    with up_.Up(place, *host) as up:
        ps = measure.command(COMMAND, 'ps', '--url', up.url)
        yield Figure('cyborg-lite ps, CPU', ps, 's', 0.25)
        yield from leases.commands(up, place / 'state' / client.SOCKET)
    # Its database is there now.
    begun = time.monotonic()
    with up_.Up(place, *host) as up:
        _bind(f'{up.url}/v2')
        yield Figure('cyborg-lite up to the first bind', time.monotonic() - begun, 's', 1)


def _bind(url: str) -> None:
    row = requests.get(f'{url}/accelerators?free=true&limit=1', timeout=60).json()
    [free] = row['accelerators']
    group = {f'resources:{free["resource_class"]}': '1'}
    profile = [{'name': 'bench', 'groups': [group]}]
    requests.post(f'{url}/device_profiles', json=profile, timeout=60).raise_for_status()
    arqs = f'{url}/accelerator_requests'
    made = requests.post(arqs, json={'device_profile_name': 'bench'}, timeout=60).json()['arqs']
    wish = support.wish(free['rp_uuid'], free['host'], support.INSTANCE)
    requests.patch(arqs, json={made[0]['uuid']: wish}, timeout=60).raise_for_status()


if __name__ == '__main__':
    main()

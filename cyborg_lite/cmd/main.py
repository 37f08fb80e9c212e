# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite``: the whole service in one process, what it holds, and a recorder of hosts."""

from __future__ import annotations

import argparse
import pathlib
import sys

from oslo_config import cfg

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite import startup
from cyborg_lite.agent import drivers
from cyborg_lite.cmd import ps
from cyborg_lite.cmd import up
from cyborg_lite.driver import description
from cyborg_lite.driver import recording


def main() -> int:
    arguments = parser().parse_args()
    try:
        return int(arguments.run(arguments) or 0)
    except (description.HostError, cfg.Error, startup.Refused, OSError) as error:
        print(f'cyborg-lite: {error}', file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='cyborg-lite', description=__doc__)
    parser.add_argument('--version', action='version', version=options.VERSION)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    up.add_parser(commands)
    ps.add_parser(commands)
    record = commands.add_parser(
        'record',
        help='pack what drivers see of this machine, for a bug report',
        description='Writes a tarball that only you can read, of what drivers see of this machine: '
        'of each PCI function the address, ids, class, revision, NUMA node, kernel driver, virtual '
        'functions and types of vGPU; the names of accelerators in /dev; what the tools of vendors '
        'print (npu-smi: chips, boards, health, usage, topology). Left out are the list of '
        "processes that a tool prints and the machine's own ids; serial numbers and UUIDs are "
        'replaced by others of their shape. "cyborg-lite up --host FILE" shows what was recorded.',
    )
    record.add_argument(
        'file', nargs='?', type=pathlib.Path, help='the tarball to write (HOSTNAME.tar.gz)'
    )
    record.add_argument(
        '--with-serials',
        action='store_true',
        help='keep serial numbers, UUIDs and lists of processes in what tools print',
    )
    record.add_argument('--config-file', action='append', help='a configuration file')
    record.set_defaults(run=_record)
    return parser


def _record(arguments: argparse.Namespace) -> None:
    conf = options.load(files=arguments.config_file)
    host = driver.Host.local(conf.host)
    file = arguments.file or pathlib.Path(f'{conf.host}.tar.gz')
    print(f'Looking at {conf.host}...', file=sys.stderr)
    # What drivers ask tools for is recorded as they ask.
    findings = drivers.Drivers(conf, host).discover(patience=conf.agent.driver_timeout)
    recording.record(host, file, arguments.with_serials)
    for name, state in findings.drivers.items():
        print(f'{name}: {state.devices} device(s) {state.reason}'.rstrip())
    print(f'Wrote {file}. Look at it with: cyborg-lite up --host {file}')

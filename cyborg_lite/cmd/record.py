# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite record``: pack what drivers read of this machine."""

from __future__ import annotations

import argparse
import pathlib
import sys

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite.agent import drivers
from cyborg_lite.driver import recording

DESCRIPTION = (
    'Writes a tarball that only you can read, of what drivers see of this machine: '
    'of each PCI function the address, ids, class, revision, NUMA node, kernel driver, virtual '
    'functions and types of vGPU; the names of accelerators in /dev; what the tools of vendors '
    'print (npu-smi: chips, boards, health, usage, topology). Left out are the list of '
    "processes that a tool prints and the machine's own ids; serial numbers and UUIDs are "
    'replaced by others of their shape. "cyborg-lite up --host FILE" shows what was recorded.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'file', nargs='?', type=pathlib.Path, help='the tarball to write (HOSTNAME.tar.gz)'
    )
    parser.add_argument(
        '--with-serials',
        action='store_true',
        help='keep serial numbers, UUIDs and lists of processes in what tools print',
    )
    parser.add_argument('--config-file', action='append', help='a configuration file')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    conf = options.load(files=arguments.config_file)
    host = driver.Host.local(conf.host)
    file = arguments.file or pathlib.Path(f'{conf.host}.tar.gz')
    print(f'Looking at {conf.host}...', file=sys.stderr)
    # The calls of drivers to tools are recorded during a scan.
    findings = drivers.Drivers(conf, host).discover(patience=conf.agent.driver_timeout)
    recording.record(host, file, arguments.with_serials)
    for name, state in findings.drivers.items():
        print(f'{name}: {state.words}')
    print(f'Wrote {file}. Look at it with: cyborg-lite up --host {file}')

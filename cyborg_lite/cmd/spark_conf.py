# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite spark-conf``: settings with which executors of Spark lease accelerators."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys

from cyborg_lite import client
from cyborg_lite.cmd import discover
from cyborg_lite.cmd import leasing

DESCRIPTION = (
    'Prints the settings of Spark by which each executor has accelerators that no other has: '
    'spark-submit $(cyborg-lite spark-conf --class npu) job.py. This command leases nothing: each '
    'executor, or each worker of a standalone cluster, leases its own when it starts, by '
    'cyborg-lite-discover.'
)
SCRIPT = 'cyborg-lite-discover'
#: Text that a shell does not change, typed or from a command substitution.
PLAIN = re.compile('[A-Za-z0-9_./:@%+,-]{1,4096}')
#: The amount of a resource for a task: Spark accepts a whole number, or a share up to one half.
AMOUNT = re.compile('[1-9][0-9]{0,3}|0?[.][0-9]{1,9}')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--class',
        dest='resource',
        type=_resource,
        metavar='CLASS',
        help='their resource class, such as npu or CUSTOM_NPU (the only one of this machine); the '
        'name for Spark is npu',
    )
    parser.add_argument(
        '--profile',
        type=_plain,
        metavar='NAME',
        help='the accelerators of a device profile, whose number must be that of -n',
    )
    parser.add_argument(
        '-n', dest='count', type=leasing.count, default=1, metavar='N',
        help='how many each executor, or each worker, leases (1)',
    )  # fmt: skip
    parser.add_argument(
        '--task', type=_amount, default='1', metavar='AMOUNT',
        help='how many each task has, or its share of one, such as 0.25 (1)',
    )  # fmt: skip
    parser.add_argument(
        '--worker',
        action='store_true',
        help='print lines for conf/spark-env.sh of a standalone worker',
    )
    parser.add_argument(
        '--script',
        type=_plain,
        metavar='FILE',
        help=f'where {SCRIPT} is on each host (where it is here)',
    )
    parser.add_argument(
        '--socket',
        type=_plain,
        default=os.environ.get(client.VARIABLE),
        metavar='FILE',
        help=f'where the agent of each host listens ({client.VARIABLE}, or it is looked for)',
    )
    parser.add_argument(
        '-f', '--format', choices=('shell', 'json'), default='shell', help='(shell)'
    )
    parser.set_defaults(run=run)


def _resource(text: str) -> str:
    return discover.resource(text.lower().removeprefix('custom_'))


def _amount(text: str) -> str:
    if not AMOUNT.fullmatch(text) or 0.5 < float(text) < 1 or not float(text):
        raise argparse.ArgumentTypeError(
            f'expected a whole number, or a share of at most 0.5, not {text!r:.80}'
        )
    return text


def _plain(text: str) -> str:
    if not PLAIN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f'expected no blanks and no other characters of a shell, not {text!r:.80}'
        )
    return text


def run(arguments: argparse.Namespace) -> int:
    try:
        script = arguments.script or _script()
        name = arguments.resource or _only(arguments.socket)
    except client.Error as error:
        leasing.say(str(error))
        return 1
    role = 'worker' if arguments.worker else 'executor'
    resource = f'resource.{name}'
    settings = {
        f'spark.{role}.{resource}.amount': str(arguments.count),
        f'spark.{role}.{resource}.discoveryScript': script,
    }
    variables = {discover.RESOURCE: name}
    if arguments.profile:
        variables[discover.PROFILE] = arguments.profile
    else:
        variables[discover.COUNT] = str(arguments.count)
    variables |= {client.VARIABLE: arguments.socket} if arguments.socket else {}
    if arguments.worker:
        return _print_worker(arguments.format, settings, variables)
    settings[f'spark.task.{resource}.amount'] = arguments.task
    settings |= {f'spark.executorEnv.{name}': value for name, value in variables.items()}
    if arguments.format == 'json':
        print(json.dumps(settings))
    else:
        for name, value in settings.items():
            print(f'--conf {name}={value}')
    return 0


def _print_worker(format: str, settings: dict[str, str], variables: dict[str, str]) -> int:
    """Print variables: one of them has the settings of a worker."""
    options = ' '.join(f'-D{name}={value}' for name, value in settings.items())
    if format == 'json':
        print(json.dumps(variables | {'SPARK_WORKER_OPTS': options}))
    else:
        for name, value in variables.items():
            print(f'export {name}={value}')
        print(f'export SPARK_WORKER_OPTS="{options} ${{SPARK_WORKER_OPTS-}}"')
    return 0


def _script() -> str:
    """The path of the discovery script: beside this command, or else on the PATH.

    :raises cyborg_lite.client.Error: when it is not found, or its path needs quotes.
    """
    places = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get('PATH', os.defpath)))
    found = shutil.which(SCRIPT, path=places)
    if found is None or not PLAIN.fullmatch(found):
        where = f'in {found!r}, which a shell would take apart' if found else 'not installed here'
        raise client.Error(f'{SCRIPT} is {where}: name its place with --script', 404)
    return found


def _only(socket: str | None) -> str:
    """The only resource of this machine.

    :raises cyborg_lite.client.Error: when no agent answers, or there is not exactly one.
    """
    found = client.ask(client.find(socket), {'do': 'list'}, leasing.PATIENCE).get('resources')
    if found is None:
        raise client.Error('the agent is of an older release: name the class with --class', 501)
    if len(found) != 1:
        known = f'one of {", ".join(found)}' if found else 'accelerators, and found none'
        raise client.Error(f'which class is meant: expected {known}. Name it with --class', 400)
    return str(found[0])

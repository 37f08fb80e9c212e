# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite``: the whole service in one process, and the commands for one machine."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import typing

from cyborg_lite import client
from cyborg_lite import exception
from cyborg_lite.cmd import output

#: The commands and their purpose; each is a module here, with _ in place of -.
COMMANDS = {
    'up': 'run the service: API, conductor and agents in one process',
    'run': 'run a command with accelerators that are its own until it ends',
    'alloc': 'hold accelerators for a shell, a process, or a time',
    'reserve': 'keep accelerators for later',
    'release': 'give back what alloc holds, or cancel what reserve keeps',
    'spark-conf': 'print settings by which executors of Spark lease accelerators',
    'ray-args': 'print arguments by which Ray has the accelerators of a lease',
    'ps': 'list the accelerators of a service that runs',
    'driver': 'begin the package of a driver',
    'record': 'pack what drivers see of this machine, for a bug report',
}


class Version(argparse.Action):
    """Prints the version.  It is looked up only then, as this takes long."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> typing.NoReturn:
        from cyborg_lite import conf as options

        print(options.VERSION)
        parser.exit()


class _Command(argparse.ArgumentParser):
    """A command, whose module is imported only when it is used: most take long to load."""

    def __init__(self, module: str, **more: typing.Any) -> None:
        super().__init__(**more)
        self._module = module
        #: what a shell that evaluates the output gets in place of it
        self._evaluated = ''

    def parse_known_args(self, *arguments: typing.Any) -> typing.Any:  # type: ignore[override]
        # What modules define stays: to look for garbage among it is a fifth of the time of a start.
        gc.disable()
        module = importlib.import_module(self._module)
        gc.freeze()
        gc.enable()
        self.description = module.DESCRIPTION
        self.epilog = getattr(module, 'EPILOG', None)
        self._evaluated = getattr(module, 'EVALUATED', '')
        module.add_arguments(self)
        found, unknown = super().parse_known_args(*arguments)
        if unknown:
            # The parser of all commands would show its own usage.
            self.error(f'unrecognized arguments: {" ".join(unknown)}')
        return found, unknown

    def error(self, message: str) -> typing.NoReturn:
        if self._evaluated:
            print(self._evaluated)
        super().error(message)


@output.prepared
def main() -> int:
    arguments = parser().parse_args()
    try:
        return int(arguments.run(arguments) or 0)
    except BrokenPipeError:
        raise
    except (client.Error, exception.Refused, OSError) as error:
        return _fail(error)
    except _unusable() as error:
        return _fail(error)
    except Exception as error:
        # Where a log is written the traceback goes there alone.
        _fail(f'{type(error).__name__}: {error}')
        raise


def _fail(error: Exception | str) -> int:
    print(f'cyborg-lite: {error}', file=sys.stderr)
    return 1


def _unusable() -> tuple[type[Exception], ...]:
    """The errors of configurations and hosts, of the modules that are imported already."""
    from oslo_config import cfg

    from cyborg_lite.driver import description

    return cfg.Error, description.HostError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='cyborg-lite', description=__doc__.replace('`', ''))
    parser.add_argument('--version', action=Version, nargs=0, help='print the version, and exit')
    commands = parser.add_subparsers(required=True, metavar='COMMAND', parser_class=_Command)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, module=f'cyborg_lite.cmd.{name.replace("-", "_")}')
    return parser

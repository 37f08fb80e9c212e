# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator quota list | show | set | delete"""

from __future__ import annotations

import argparse
import sys
import typing

from osc_lib import exceptions
from osc_lib.cli import format_columns
from osc_lib.command import command

from cyborg_lite import osc

COLUMNS = ('resource', 'limit', 'used', 'source')


class ListQuotas(osc.Command, command.Lister):
    """List the projects that have limits of their own, and the default limits."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        rows = (
            (each['project_id'], format_columns.DictColumn(each['limits']))
            for each in self.ask_all('quotas')
        )
        return ('project_id', 'limits'), rows


class ShowQuota(osc.Command, command.Lister):
    """Show the limits and the usage of a project by resource class and in total."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_project(parser, 'ID of the project (your own)')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        return COLUMNS, _rows(self.ask(_path(parsed_args)))


class SetQuota(osc.Command, command.Lister):
    """Set limits of a project by resource class and in total."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_project(parser, 'ID of the project')
        parser.add_argument(
            '--limit',
            metavar='<resource>=<number>',
            dest='limits',
            action='append',
            type=_limit,
            required=True,
            help='A resource class, or "total"; and a number, -1 for unlimited, or "default" for '
            'the default limit (repeat option to set several)',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        body = {'limits': dict(parsed_args.limits)}
        answer = self.call('PATCH', _named(parsed_args), json=body).json()
        if parsed_args.project and not any(each['used'] for each in answer['quotas']):
            # Where the service has no list of projects it takes any id.
            project = parsed_args.project
            print(
                f'Project {project} has no accelerators now: if its id is wrong, "openstack '
                f'accelerator quota delete {project}" takes the limits back.',
                file=sys.stderr,
            )
        return COLUMNS, _rows(answer)


class DeleteQuota(osc.Command):
    """Delete all limits of a project, so that the default limits apply."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        _add_project(parser, 'ID of the project')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.call('DELETE', _named(parsed_args))


def _add_project(parser: argparse.ArgumentParser, about: str) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument('project', metavar='<project>', nargs='?', help=about)
    which.add_argument('--default', action='store_true', help='The default limits')


def _path(parsed_args: argparse.Namespace) -> str:
    project = 'defaults' if parsed_args.default else parsed_args.project or 'own'
    return f'/quotas/{osc.quoted(project)}'


def _named(parsed_args: argparse.Namespace) -> str:
    """The path of a project that the caller must name."""
    if not parsed_args.project and not parsed_args.default:
        raise exceptions.CommandError('Expected <project> or --default.')
    return _path(parsed_args)


def _limit(text: str) -> tuple[str, int | None]:
    name, _, number = text.partition('=')
    try:
        return name, None if number == 'default' else int(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'expected <resource>=<number>, such as total=8, not {text!r}'
        ) from None


def _rows(answer: dict[str, typing.Any]) -> typing.Iterator[tuple[typing.Any, ...]]:
    source = {'source': answer['source']}
    return (tuple((each | source)[name] for name in COLUMNS) for each in answer['quotas'])

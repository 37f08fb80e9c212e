# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator host list | show | rename | delete"""

from __future__ import annotations

import argparse
import typing

from osc_lib.cli import format_columns
from osc_lib.command import command

from cyborg_lite import osc


class ListHosts(osc.Command, command.Lister):
    """List the hosts whose agents report accelerators."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--state', choices=('up', 'down'), help='Only those in this state')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        columns = ('name', 'state', 'last seen', 'devices', 'degraded drivers')
        rows = (
            (
                host['name'],
                host['state'],
                host['seen_at'],
                len(host['devices']),
                format_columns.ListColumn(_degraded(host)),
            )
            for host in self.ask_all('hosts', state=parsed_args.state)
        )
        return columns, rows


class ShowHost(osc.Command, command.ShowOne):
    """Show a host: when it was last seen, its drivers and its devices."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('host', metavar='<host>', help='Name of the host')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        host = self.ask(f'/hosts/{osc.quoted(parsed_args.host)}')
        drivers = {
            name: ': '.join(filter(None, (driver['state'], driver['reason'])))
            for name, driver in host['drivers'].items()
        }
        shown = {
            'name': host['name'],
            'state': host['state'],
            'last seen': host['seen_at'],
            'drivers': format_columns.DictColumn(drivers),
            'devices': format_columns.ListColumn(host['devices']),
        }
        return zip(*shown.items(), strict=True)  # type: ignore[return-value]


class RenameHost(osc.Command):
    """Rename a host that is down: bound requests stay bound."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('host', metavar='<host>', help='Name of the host')
        parser.add_argument('name', metavar='<new-name>', help='New name of the host')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        path = f'/hosts/{osc.quoted(parsed_args.host)}'
        self.call('PATCH', path, json={'name': parsed_args.name})


class DeleteHost(osc.Command):
    """Delete a host that is down, with its devices and their resource providers."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('host', metavar='<host>', help='Name of the host')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.call('DELETE', f'/hosts/{osc.quoted(parsed_args.host)}')


def _degraded(host: dict[str, typing.Any]) -> list[str]:
    return [name for name, driver in host['drivers'].items() if driver['state'] != 'ok']

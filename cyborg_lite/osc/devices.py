# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator device inspect | delete"""

from __future__ import annotations

import argparse
import typing

from osc_lib.command import command

from cyborg_lite import osc

COLUMNS = ('uuid', 'hostname', 'address', 'numa_node', 'type', 'vendor', 'model', 'status')


class InspectDevices(osc.Command, command.Lister):
    """List devices with what microversion 2.50 shows: where in its host each one is."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--host', metavar='<host>', help='Only the devices of this host')
        parser.add_argument('--type', metavar='<type>', help='Only devices of this type')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        devices = self.ask_all('devices', hostname=parsed_args.host, type=parsed_args.type)
        return COLUMNS, ([device[column] for column in COLUMNS] for device in devices)


class DeleteDevice(osc.Command):
    """Delete a device that is missing from its host, and what was decided of it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('uuid', metavar='<uuid>', help='UUID of the device')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.call('DELETE', f'/devices/{osc.quoted(parsed_args.uuid)}')

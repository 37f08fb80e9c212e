# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator device health | delete, and how commands name a device"""

from __future__ import annotations

import argparse
import typing

from osc_lib import exceptions
from osc_lib.cli import format_columns
from osc_lib.command import command

from cyborg_lite import osc


class DeviceCommand(osc.Command):
    """A command for one device, by any of its names in lists."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'device',
            metavar='<device>',
            help='UUID of the device or of one of its accelerators; or the name of its host, '
            'followed by the address',
        )
        parser.add_argument(
            'address',
            metavar='<address>',
            nargs='?',
            help='Address of the device or of one of its accelerators on the host',
        )
        return parser

    def send(self, method: str, parsed_args: argparse.Namespace, action: str = '') -> typing.Any:
        """Send a request to the device that the arguments name."""
        name, address = parsed_args.device, parsed_args.address
        if address is not None:
            name = self._at(name, address)
        try:
            return self.call(method, f'/devices/{osc.quoted(name)}{action}')
        except osc.NotFound:
            return self.call(method, f'/devices/{self._of_accelerator(name)}{action}')

    def _at(self, host: str, address: str) -> str:
        """The UUID of the device at an address of a host."""
        for each in self.ask_all('accelerators', host=host):
            if address.lower() in (each['address'], osc.place(each)):
                return str(each['device_uuid'])
        raise exceptions.CommandError(
            f'Host {host} has no accelerator at {address}: "openstack accelerator list --host '
            f'{host}" shows the addresses.'
        )

    def _of_accelerator(self, name: str) -> str:
        """The UUID of the device of an accelerator."""
        try:
            return str(self.ask(f'/accelerators/{osc.quoted(name)}')['device_uuid'])
        except osc.NotFound:
            raise exceptions.CommandError(
                f'Device {name} not found, and no accelerator has this UUID. Give the UUID of a '
                'device or of an accelerator, or HOST ADDRESS: "openstack accelerator list --long" '
                'shows them.'
            ) from None


class DeleteDevice(DeviceCommand):
    """Delete a device that is missing from its host, with its status and its attributes."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.send('DELETE', parsed_args)


class ShowHealth(DeviceCommand, command.Lister):
    """Show the changes of a device's health, and their effects."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        history = self.send('GET', parsed_args, '/health').json()['history']
        columns = ('at', 'health', 'reason', 'effects')
        return columns, (
            [*(each[name] for name in columns[:3]), format_columns.ListColumn(each['effects'])]
            for each in history
        )

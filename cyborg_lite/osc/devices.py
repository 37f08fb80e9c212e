# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator device delete"""

from __future__ import annotations

import argparse

from cyborg_lite import osc


class DeleteDevice(osc.Command):
    """Delete a device that is missing from its host, and what was decided of it."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('uuid', metavar='<uuid>', help='UUID of the device')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.call('DELETE', f'/devices/{osc.quoted(parsed_args.uuid)}')

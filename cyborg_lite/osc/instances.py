# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator instance free"""

from __future__ import annotations

import argparse

from cyborg_lite import osc


class FreeInstance(osc.Command):
    """Free the accelerators of an instance that does not exist any more."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('instance', metavar='<instance>', help='UUID of the instance')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.call('DELETE', f'/instances/{osc.quoted(parsed_args.instance)}')

# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator usage list"""

from __future__ import annotations

import argparse
import typing

from osc_lib.command import command

from cyborg_lite import osc

KEYS = ('project_id', 'resource_class', 'host')


class ListUsages(osc.Command, command.Lister):
    """List the seconds that accelerators were held, by project, resource class and host.

    By default from the beginning of this month until now, UTC. "-f csv" is for accounting.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--start',
            metavar='<time>',
            help='From when to count: 2026-11-01, or 2026-11-01T00:00:00+01:00; UTC by default '
            '(the beginning of the month of the end)',
        )
        parser.add_argument(
            '--end', metavar='<time>', help='Until when to count, in the same form (now)'
        )
        parser.add_argument(
            '--group-by',
            metavar='<key>',
            dest='keys',
            action='append',
            choices=KEYS,
            help='Group by project_id, resource_class or host (repeat option to name '
            'several; all three)',
        )
        parser.add_argument('--project', metavar='<project>', help='Only this project, by its ID')
        parser.add_argument('--resource-class', metavar='<class>', help='Only this resource class')
        parser.add_argument('--host', metavar='<host>', help='Only this host')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        shown = [key for key in KEYS if key in (parsed_args.keys or KEYS)]
        columns = (*shown, 'device_seconds')
        rows = self._ask(
            group_by=','.join(shown),
            start=parsed_args.start,
            end=parsed_args.end,
            project_id=parsed_args.project,
            resource_class=parsed_args.resource_class,
            host=parsed_args.host,
        )
        return columns, (tuple(row[column] for column in columns) for row in rows)

    def _ask(self, **arguments: str | None) -> list[dict[str, typing.Any]]:
        """All rows, page by page, of one period."""
        rows: list[dict[str, typing.Any]] = []
        while True:
            page = self.ask('/usages', offset=str(len(rows)), **arguments)
            rows += page['usages']
            if 'usages_links' not in page:
                return rows
            arguments |= {'start': page['start'], 'end': page['end']}

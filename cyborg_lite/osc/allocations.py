# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator allocation create | list | show | renew | delete"""

from __future__ import annotations

import argparse
import sys
import time
import typing

from cliff import columns as formattable
from osc_lib import exceptions
from osc_lib.cli import format_columns
from osc_lib.command import command

from cyborg_lite import client
from cyborg_lite import osc

COLUMNS = (
    'uuid', 'name', 'project_id', 'user_name', 'state', 'position', 'profile', 'accelerators',
    'starts_at', 'lease_ends_at',
)  # fmt: skip
MORE = (
    'claimed_name',
    'note',
    'reason',
    'idle_since',
    'priority',
    'groups',
    'hosts',
    'consumer',
    'container',
    'lease',
    'claim_by',
    'reservation_uuid',
    'released_at',
    'created_at',
)
#: The fields that a list can be filtered by, as options.
FILTERS = {
    'name': 'of this name',
    'state': 'in this state: queued, reserved, active or released',
    'project': 'of this project',
    'user': 'that this user created',
    'claimed-name': 'whose user gave this name',
    'profile': 'of this device profile',
    'consumer-type': 'of consumers of this type',
    'consumer-id': 'of the consumer of this id',
}
Shown = tuple[typing.Any, typing.Any]
#: The maximum wait of one request, and the pause before the next one, in seconds.
WAIT, PAUSE = 60, 1


class CreateAllocation(osc.Command, command.ShowOne):
    """Allocate accelerators: all of a request or none, at once or from the queue.

    They are chosen by a device profile, or by resource classes and traits.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument('--profile', metavar='<profile>', help='Name or UUID of a device profile')
        what.add_argument(
            '--resource',
            metavar='<class>=<amount>',
            action='append',
            type=_amount,
            help='Resource class and amount (repeat for several classes)',
        )
        parser.add_argument(
            '--trait',
            metavar='<trait>[=required|forbidden]',
            action='append',
            default=[],
            help='Trait that each accelerator must have, or must not have; used with --resource '
            '(repeat for several traits)',
        )
        parser.add_argument(
            '--alternative',
            metavar='<class>=<amount>[,<trait>[=required|forbidden]]',
            action='append',
            type=_alternative,
            help='What is taken if nothing before it can be had: classes with amounts and traits, '
            'separated by commas (repeat for several alternatives, in the order of preference)',
        )
        parser.add_argument('--name', metavar='<name>', help='Name of the allocation')
        parser.add_argument(
            '--claimed-name',
            metavar='<name>',
            help='Who you are, where people share a login; it proves nothing',
        )
        parser.add_argument('--note', metavar='<text>', help='What it is for')
        parser.add_argument(
            '--host',
            metavar='<host>',
            action='append',
            help='Host that may be chosen (repeat for several hosts; all by default)',
        )
        parser.add_argument(
            '--any-host', action='store_true', help='Accelerators may be of different hosts'
        )
        parser.add_argument(
            '--same-numa', action='store_true', help='All accelerators must share a NUMA node'
        )
        parser.add_argument(
            '--linked',
            action='store_true',
            help='The cards must form a ring of direct links, such as HCCS or NVLink',
        )
        parser.add_argument(
            '--lease', metavar='<seconds>', type=int, help='Release it after this time'
        )
        parser.add_argument(
            '--at',
            metavar='<time>',
            help='Reserve it from this time on, for the time of --lease: ISO 8601, UTC unless it '
            'says otherwise',
        )
        parser.add_argument(
            '--queue', action='store_true', help='Wait in the queue if too few are free'
        )
        parser.add_argument(
            '--possible',
            action='store_true',
            help='Fail, and do not wait, if it could not be served even if all were free',
        )
        parser.add_argument(
            '--priority',
            metavar='<priority>',
            type=int,
            help='Priority in the queue, from -100 to 100 (0 by default); administrators may give '
            'one above 0',
        )
        parser.add_argument(
            '--wait', action='store_true', help='Return when the allocation is not queued any more'
        )
        parser.add_argument('--consumer-type', metavar='<type>', help='Kind of the consumer')
        parser.add_argument('--consumer-id', metavar='<id>', help='Id of the consumer')
        parser.add_argument(
            '--idempotency-key',
            metavar='<key>',
            help='A key by which a command that is repeated gets the same allocation',
        )
        parser.add_argument(
            '--dry-run',
            action='store_true',
            help='Take nothing: show whether it could be allocated, and fail if it could not',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        key = parsed_args.idempotency_key
        headers = {'headers': {'Idempotency-Key': key}} if key is not None else {}
        query = {'params': {'dry_run': 'true'}} if parsed_args.dry_run else {}
        try:
            answer = self.call('POST', '/allocations', json=_body(parsed_args), **headers, **query)
        except exceptions.CommandError as error:
            raise type(error)(_with_hint(str(error), parsed_args)) from None
        found = answer.json()
        if parsed_args.dry_run:
            return self._tried(parsed_args, found)
        return _one(self._served(found) if parsed_args.wait else found)

    def _tried(self, parsed_args: argparse.Namespace, found: dict[str, typing.Any]) -> Shown:
        """Show a dry run.

        :raises osc_lib.exceptions.CommandError: after it is shown, when it does not fit.
        """
        alternatives = found['alternatives']
        shown = _one(found | {'alternatives': _Alternatives(alternatives)})
        if not found['fits']:
            self.produce_output(parsed_args, *shown)
            reasons = [each['reason'] for each in alternatives]
            raise exceptions.CommandError(f'{client.TOO_FEW}{"; or ".join(reasons)}.')
        return shown

    def _served(self, found: dict[str, typing.Any]) -> dict[str, typing.Any]:
        """Wait until an allocation is not queued any more.

        :raises osc_lib.exceptions.CommandError: when it was given up meanwhile.
        """
        uuid = found['uuid']
        try:
            while found['state'] == 'queued':
                began = time.monotonic()
                found = self.ask(_path(uuid), wait=str(WAIT))
                if found['state'] == 'queued' and time.monotonic() - began < PAUSE:
                    time.sleep(PAUSE)
        except KeyboardInterrupt:
            print(
                f'\nAllocation {uuid} waits on. To give it up: '
                f'"openstack accelerator allocation delete {uuid}".',
                file=sys.stderr,
            )
            raise
        if found['state'] != 'active':
            raise exceptions.CommandError(f'Allocation {found["uuid"]}: {found["reason"]}')
        return found


def _with_hint(refusal: str, given: argparse.Namespace) -> str:
    """The text of a refusal; if --queue is missing that --wait waits for, it says so."""
    short = refusal.startswith(client.TOO_FEW) and not client.is_never(refusal)
    missing = short and given.wait and not given.queue
    return f'{refusal} Give --queue with --wait to wait in the queue.' if missing else refusal


class _Accelerators(formattable.FormattableColumn[typing.Any]):
    """Accelerators: a line with the address of each in tables, all data for programs."""

    def human_readable(self) -> str:
        return '\n'.join(_places(self.machine_readable()))


def _places(accelerators: list[dict[str, typing.Any]]) -> list[str]:
    return [f'{each["host"]} {osc.place(each)}' for each in accelerators]


class _Groups(format_columns.ListDictColumn):
    """Groups of resources and traits; in tables without what is empty, which would add a comma."""

    def human_readable(self) -> str:
        full = [{k: v for k, v in each.items() if v} for each in self.machine_readable()]
        return format_columns.ListDictColumn(full).human_readable()


class _Alternatives(formattable.FormattableColumn[typing.Any]):
    """The counts of a dry run: a line for each request in tables, all data for programs."""

    def human_readable(self) -> str:
        return '\n'.join(
            _counted(request) for each in self.machine_readable() for request in each['requests']
        )


def _counted(request: dict[str, typing.Any]) -> str:
    """How many accelerators a request needs, how many fit, and which filters drop the others."""
    traits = [*request['required'], *(f'no {each}' for each in request['forbidden'])]
    wanted = ' with '.join(filter(None, (request['resource_class'], ', '.join(traits))))
    removed = [f'{name}: {count}' for name, count in request['removed'].items() if count]
    others = f' (not: {", ".join(removed)})' if removed else ''
    return f'{request["amount"]} of {wanted}: {request["left"]} of {request["candidates"]}{others}'


class ListAllocations(osc.Command, command.Lister):
    """List allocations, also those that were released recently."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--long', action='store_true', help='Show all that is known of them')
        for name, which in FILTERS.items():
            parser.add_argument(f'--{name}', metavar=f'<{name}>', help=f'Only those {which}')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        given = {name.replace('-', '_'): getattr(parsed_args, name.replace('-', '_'))
                 for name in FILTERS}  # fmt: skip
        given['project_id'], given['user_name'] = given.pop('project'), given.pop('user')
        columns = COLUMNS + MORE if parsed_args.long else COLUMNS
        rows = self.ask_all('allocations', **given)
        return columns, (_row(each, columns) for each in rows)


class ShowAllocation(osc.Command, command.ShowOne):
    """Show an allocation."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        return _with_allocation(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        return _one(self.ask(_path(parsed_args.allocation)))


class RenewAllocation(osc.Command, command.ShowOne):
    """Set a new end of the lease of an allocation."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _with_allocation(super().get_parser(prog_name))
        parser.add_argument(
            '--lease',
            metavar='<seconds>',
            type=int,
            required=True,
            help='The new length of the lease, from now on',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Shown:
        body = {'lease': parsed_args.lease}
        return _one(self.call('PATCH', _path(parsed_args.allocation), json=body).json())


class DeleteAllocations(osc.Command):
    """Release allocations, active or queued, or cancel reservations."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'allocations',
            metavar='<allocation>',
            nargs='+',
            help='Name or UUID of an allocation',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        failed = []
        for each in parsed_args.allocations:
            try:
                self.call('DELETE', _path(each))
            except exceptions.CommandError as error:
                failed.append(str(error))
        if failed:
            raise exceptions.CommandError('\n'.join(failed))


def _with_allocation(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument('allocation', metavar='<allocation>', help='Name or UUID of the allocation')
    return parser


def _path(allocation: str) -> str:
    return f'/allocations/{osc.quoted(allocation)}'


def _amount(text: str) -> tuple[str, int]:
    name, _, amount = text.partition('=')
    if not name or not amount.isascii() or not amount.isdigit():
        raise argparse.ArgumentTypeError(f'expected <class>=<amount>, got {text!r}')
    return name, int(amount)


def _alternative(text: str) -> dict[str, dict[str, typing.Any]]:
    """A group of resources and traits."""
    group: dict[str, dict[str, typing.Any]] = {'resources': {}, 'traits': {}}
    for each in text.split(','):
        name, separator, value = each.partition('=')
        if name and (not separator or value in ('required', 'forbidden')):
            group['traits'][name] = value or 'required'
        elif name and value.isascii() and value.isdigit():
            group['resources'][name] = int(value)
        else:
            group['resources'].clear()
            break
    if not group['resources']:
        raise argparse.ArgumentTypeError(
            f'expected <class>=<amount>[,<trait>[=required|forbidden]], got {text!r}'
        )
    return group


def _body(given: argparse.Namespace) -> dict[str, typing.Any]:
    """The body of the request."""
    body: dict[str, typing.Any] = {'same_host': not given.any_host}
    if given.profile is not None:
        if given.trait:
            raise exceptions.CommandError('--trait is for --resource: a profile has its own.')
        body['profile'] = given.profile
    else:
        traits = [each.partition('=') for each in given.trait]
        group = {'resources': dict(given.resource)}
        group['traits'] = {name: value or 'required' for name, _, value in traits}
        body['groups'] = [group]
    if given.alternative:
        body['alternatives'] = [[group] for group in given.alternative]
    if given.same_numa:
        body['same_numa'] = 'require'
    if given.linked:
        body['link'] = 'require'
    if given.consumer_type is not None or given.consumer_id is not None:
        body['consumer'] = {'type': given.consumer_type, 'id': given.consumer_id}
    body |= {name: True for name in ('queue', 'possible') if getattr(given, name)}
    more = {'name': given.name, 'hosts': given.host, 'lease': given.lease}
    more |= {'priority': given.priority, 'starts_at': given.at}
    more |= {'claimed_name': given.claimed_name, 'note': given.note}
    return body | {name: value for name, value in more.items() if value is not None}


def _one(found: dict[str, typing.Any]) -> Shown:
    found.pop('links', None)
    # A dry run has none.
    if 'accelerators' in found:
        found['accelerators'] = _Accelerators(found['accelerators'])
    return tuple(found), tuple(map(_cell, found.values()))


def _row(found: dict[str, typing.Any], columns: tuple[str, ...]) -> list[typing.Any]:
    """The row of an allocation in a list: only the addresses of its accelerators."""
    found = found | {'accelerators': _places(found['accelerators'])}
    return [_cell(found[column]) for column in columns]


def _cell(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return format_columns.DictColumn(value)
    if not isinstance(value, list):
        return value
    dicts = any(isinstance(each, dict) for each in value)
    return _Groups(value) if dicts else format_columns.ListColumn(value)

# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator list | show | summary | bind | unbind | history | enable | disable"""

from __future__ import annotations

import argparse
import collections.abc
import contextlib
import sys
import typing
import uuid

from osc_lib import exceptions
from osc_lib.cli import format_columns
from osc_lib.command import command

from cyborg_lite import osc
from cyborg_lite.osc import devices

COLUMNS = (
    'uuid', 'state', 'host', 'type', 'vendor', 'model', 'address', 'instance_uuid',
    'allocation_uuid', 'project_id', 'user_name',
)  # fmt: skip
MORE = (
    'reason', 'health', 'health_reason', 'health_since', 'device_uuid', 'device_address',
    'numa_node', 'resource_class', 'traits', 'driver', 'rp_uuid', 'arq_uuid',
    'held_since', 'idle_since', 'claimed_name', 'note', 'container', 'ids',
)  # fmt: skip
#: The fields that a list can be filtered by, as options.
FILTERS = {
    'state': 'in this state, whatever else they are',
    'host': 'of this host',
    'device': 'of this device, by its UUID',
    'type': 'of this type, such as GPU, AICHIP or FPGA, in any case',
    'vendor': 'of this vendor, by its name',
    'model': 'of this model',
    'resource-class': 'of this resource class',
    'trait': 'with this trait',
    'health': 'of a device whose health is this',
    'instance': 'that this instance holds',
    'project': 'that requests of this project hold',
    'user': 'that allocations of this user hold',
    'ids': "that their vendor's software knows by these ids, such as uuid:GPU-..., logic_id:3 or "
    'npu_id:3,chip_id:0',
    'held-after': 'that are held since this time, or later',
    'held-before': 'that are held since before this time',
}
MOVE = ('at', 'state', 'hostname', 'reason')
MOVE_MORE = ('accelerator_uuid', 'device_rp_uuid', 'instance_uuid', 'request_id')
#: The states of accelerators that are allocated, or that a release frees.
USABLE = ('free', 'held', 'excluded')
REQUEST = (
    'uuid', 'state', 'hostname', 'attach_handle_uuid', 'attach_handle_type', 'attach_handle_info',
    'instance_uuid',
)  # fmt: skip


class ListAccelerators(osc.Command, command.Lister):
    """List accelerators with their states and holders."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('--free', action='store_true', help='Only those that are free')
        parser.add_argument('--long', action='store_true', help='Show all that is known of them')
        for name, which in FILTERS.items():
            parser.add_argument(f'--{name}', metavar=f'<{name}>', help=f'Only those {which}')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        given = vars(parsed_args)
        renamed = {
            'device': 'device_uuid',
            'instance': 'instance_uuid',
            'project': 'project_id',
            'user': 'user_name',
        }
        wanted = {name.replace('-', '_') for name in FILTERS}
        arguments = {renamed.get(name, name): given[name] for name in wanted}
        found = self.ask_all('accelerators', free='true' if parsed_args.free else None, **arguments)
        columns = COLUMNS + MORE if parsed_args.long else COLUMNS
        shown = (_shown(each) for each in found)
        return columns, ([_cell(each[column]) for column in columns] for each in shown)


class ShowAccelerator(osc.Command, command.ShowOne):
    """Show an accelerator."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('uuid', metavar='<uuid>', help='UUID of the accelerator')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        found = _shown(_find(self, parsed_args.uuid))
        del found['links']
        return tuple(found), tuple(_cell(value) for value in found.values())


class SummarizeAccelerators(osc.Command, command.Lister):
    """Count all and free accelerators by resource class, model and traits."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        columns = ('resource_class', 'model', 'traits', 'total', 'free')
        counts = self.ask('/accelerators/summary')['summary']
        return columns, ([_cell(each[column]) for column in columns] for each in counts)


class BindAccelerators(osc.Command, command.Lister):
    """Create the requests of a device profile and bind all of them, or none.

    Each is bound to the resource provider of one of the accelerators, in order.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('profile', metavar='<profile>', help='Name of the device profile')
        parser.add_argument(
            'accelerators',
            metavar='<accelerator>',
            nargs='+',
            help='UUID of an accelerator; one for each request of the profile',
        )
        parser.add_argument(
            '--instance',
            metavar='<instance>',
            default=str(uuid.uuid4()),
            help='UUID of the instance that is to hold them (a new UUID)',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        places = [_find(self, each) for each in parsed_args.accelerators]
        body = {'device_profile_name': parsed_args.profile}
        made = self.call('POST', '/accelerator_requests', json=body).json()['arqs']
        uuids = [each['uuid'] for each in made]
        try:
            return REQUEST, self._bind(uuids, places, parsed_args.instance)
        except exceptions.CommandError:
            # The requests were created only for this bind.
            self.call('DELETE', '/accelerator_requests', params={'arqs': ','.join(uuids)})
            raise

    def _bind(
        self, uuids: list[str], places: list[dict[str, typing.Any]], instance: str
    ) -> list[list[typing.Any]]:
        if len(uuids) != len(places):
            raise exceptions.CommandError(
                f'The profile makes {len(uuids)} requests: expected as many accelerators, not '
                f'{len(places)}.'
            )
        patch = {
            each: [
                {'op': 'add', 'path': '/hostname', 'value': place['host']},
                {'op': 'add', 'path': '/device_rp_uuid', 'value': place['rp_uuid']},
                {'op': 'add', 'path': '/instance_uuid', 'value': instance},
            ]
            for each, place in zip(uuids, places, strict=True)
        }
        self.call('PATCH', '/accelerator_requests', json=patch)
        found = [self.ask(f'/accelerator_requests/{each}') for each in uuids]
        if failed := [each['uuid'] for each in found if each['state'] != 'Bound']:
            raise exceptions.CommandError(f'Not bound: {", ".join(failed)}.')
        return [[_cell(each[column]) for column in REQUEST] for each in found]


class UnbindAccelerators(osc.Command):
    """Unbind accelerator requests: all of them, or none."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            'requests', metavar='<request>', nargs='+', help='UUID of an accelerator request'
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        remove = [{'op': 'remove', 'path': '/hostname'}]
        patch = dict.fromkeys(parsed_args.requests, remove)
        with _explained():
            self.call('PATCH', '/accelerator_requests', json=patch)


class ShowHistory(osc.Command, command.Lister):
    """Show the history of an accelerator request: each change of state, its time and reason."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('request', metavar='<request>', help='UUID of an accelerator request')
        parser.add_argument('--long', action='store_true', help='Show all that is known of them')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[typing.Any, typing.Any]:
        request = osc.quoted(parsed_args.request)
        with _explained():
            moves = self.ask(f'/accelerator_requests/{request}/history')['history']
        columns = MOVE + MOVE_MORE if parsed_args.long else MOVE
        return columns, ([move[column] for column in columns] for move in moves)


class EnableDevice(devices.DeviceCommand):
    """Enable a device: its accelerators can be allocated again.

    If they cannot be allocated for another reason, such as the health of the device, it is printed.
    """

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.send('POST', parsed_args, '/enable')
        # A caller who may enable it may not be allowed to list it.
        with contextlib.suppress(osc.Forbidden):
            device = self.send('GET', parsed_args).json()['uuid']
            found = self.ask_all('accelerators', device_uuid=device)
            reasons = {each['reason'] for each in found if each['state'] not in USABLE}
            for reason in sorted(filter(None, reasons)):
                print(f'{device} is enabled, but cannot be allocated: {reason}', file=sys.stderr)


class DisableDevice(devices.DeviceCommand):
    """Disable a device: its accelerators are not allocated any more; what is held stays held."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        self.send('POST', parsed_args, '/disable')


def _find(asking: osc.Command, uuid: str) -> dict[str, typing.Any]:
    """An accelerator by its UUID."""
    try:
        return asking.ask(f'/accelerators/{osc.quoted(uuid)}')
    except osc.NotFound as error:
        hint = f'{error} "openstack accelerator list" shows the UUIDs.'
    with contextlib.suppress(osc.NotFound):
        asking.ask(f'/devices/{osc.quoted(uuid)}')
        hint = (
            f'{uuid} is a device: "openstack accelerator list --device {uuid}" shows its '
            'accelerators. Give the UUID of one.'
        )
    raise exceptions.CommandError(hint)


@contextlib.contextmanager
def _explained() -> collections.abc.Iterator[None]:
    """Add to a NotFound error where the UUIDs of requests are shown."""
    try:
        yield
    except osc.NotFound as error:
        raise exceptions.CommandError(
            f'{error} "openstack accelerator list --long" shows the request of each accelerator '
            'as arq_uuid.'
        ) from None


def _shown(accelerator: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The shown fields: all states, the accelerator's own address, and that of its device."""
    shown = dict(accelerator)
    states = shown.pop('states', [shown['state']])
    device = {'device_address': accelerator['address']}
    return shown | {'state': ', '.join(states), 'address': osc.place(accelerator)} | device


def _cell(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return format_columns.DictColumn(value)
    return format_columns.ListColumn(value) if isinstance(value, list) else value

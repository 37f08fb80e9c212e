# SPDX-License-Identifier: Apache-2.0
"""What ``cyborg-lite up`` prints when it runs: its accelerators, and how to ask for one."""

from __future__ import annotations

import collections
import collections.abc
import itertools
import json
import math
import pathlib
import shlex
import sys
import textwrap
import typing

import prettytable
from sqlalchemy import orm

from cyborg_lite import client
from cyborg_lite import model
from cyborg_lite import service
from cyborg_lite.agent import drivers as agent_drivers
from cyborg_lite.db import accelerators
from cyborg_lite.db import query
from cyborg_lite.driver import host as hosts

COLUMNS = ('Host', 'Type', 'Vendor', 'Model', 'Address', 'NUMA', 'Free', 'State')
#: The width of the table, in characters: longer cells are wrapped.
WIDTH = 100
#: The columns that --long adds.
MORE = ('Driver', 'Device', 'Reason')
#: The state of devices of hosts that this process does not run.
ABSENT = 'not of this run'
#: The option of curl for a body.
JSON = "-H 'Content-Type: application/json'"


class Door(typing.NamedTuple):
    """How a client reaches the API."""

    #: where it is served
    place: str
    #: the URL of its root in requests
    url: str
    #: the shell command that sends a request
    curl: str
    #: whether every client is an administrator
    open: bool


def show(embedded: service.Embedded, door: Door, long: bool) -> None:
    with embedded.database.reader() as session:
        names = [agent.manager.host.name for agent in embedded.agents]
        rows = _rows(session, names)
        example = _example(session, names)
        drivers = {host.name: host.drivers for host in query.find(session, model.Host)}
    if rows:
        table = prettytable.PrettyTable([*COLUMNS, *MORE], align='l')
        table.add_rows(rows)
        if not long:
            table.max_table_width = WIDTH
        print(table.get_string() if long else table.get_string(fields=COLUMNS))
        for line in () if long else _reasons(rows):
            print(line)
    else:
        print('No accelerator was found.')
    _explain(embedded, drivers, bool(rows))
    print(f'\nThe API answers at {door.place} (Ctrl-C ends it).')
    if embedded.conf.api.socket and not door.place.startswith('unix:'):
        print(f'It knows the users of this machine at unix://{embedded.conf.api.socket}.')
    if embedded.conf.agent.socket:
        print(_local(embedded.conf.agent.socket))
    if example:
        # Only administrators may create a profile and choose an accelerator themselves.
        requests = _requests if door.open else _allocation
        print(requests(door.curl, f'{door.url}/v2', *example))
    sys.stdout.flush()


def _local(socket: str) -> str:
    """Where commands find the agent; and what to set, if they do not look there."""
    text = f'"cyborg-lite run" and "alloc" ask at {socket}'
    if pathlib.Path(socket) in client.places(client.SOCKET):
        return f'{text}.'
    return f'{text} after:\n  export {client.VARIABLE}={shlex.quote(socket)}'


def _reasons(rows: list[list[typing.Any]]) -> collections.abc.Iterator[str]:
    """Why accelerators are not free; a host of an earlier run is told once."""
    absent: collections.Counter[str] = collections.Counter()
    for host, *_, address, _numa, _free, state, _driver, _device, reason in rows:
        if state == ABSENT:
            absent[host] += 1
        elif reason:
            yield f'{host}: {address} is {state}: {reason}'
    for host, count in absent.items():
        devices = f'{count} device{"s"[: count > 1]}'
        yield (
            f'{host}: {devices} of an earlier run. Name it with --host, or forget it: '
            f'openstack accelerator host delete {host}'
        )


def _rows(session: orm.Session, names: collections.abc.Collection[str]) -> list[list[typing.Any]]:
    """A row for each deployable, with the columns of --long.

    A device without accelerators has a row, too.

    :param names: the hosts of this run: accelerators of other hosts are not shown as free.
    """
    kind, by_part = accelerators.Accelerator, query.Page(sort_key='deployable_id')
    found = query.find(session, kind, page=by_part)
    parts = [[*part] for _, part in itertools.groupby(found, key=lambda each: each.deployable_id)]
    rows: list[tuple[list[typing.Any], int]] = [(part, len(part)) for part in parts]
    rows += [([each], 0) for each in accelerators.devices_without(session)]
    rows.sort(key=lambda row: row[0][0].deployable_id or math.inf)
    return [_row(each, total, each[0].host in names) for each, total in rows]


def _row(together: list[typing.Any], total: int, ours: bool) -> list[typing.Any]:
    """The row of the accelerators of one deployable, or of a device without any."""
    each, *others = together
    free = sum(one.states == ['free'] for one in together) if ours else 0
    states = {state for one in together for state in one.states} - ({'free'} if others else set())
    reasons = {one.reason for one in together if one.reason}
    return [
        *(each.host, each.type, each.vendor, each.model, each.address),
        '' if each.numa_node is None else each.numa_node,
        f'{free}/{total}',
        (', '.join(sorted(states)) or 'free') if ours else ABSENT,
        *(each.driver or '', each.device_uuid, '; '.join(sorted(reasons))),
    ]


def _explain(
    embedded: service.Embedded, drivers: dict[str, dict[str, model.Facts]], found: bool
) -> None:
    """Print failed drivers and, if nothing was found, also the drivers that found nothing."""
    for host in (agent.manager.host for agent in embedded.agents):
        if host.name not in drivers:
            print(f'{host.name} could not be reported: the log says why')
        for name, state in drivers.get(host.name, {}).items():
            if state['reason']:
                print(f'{host.name}: {name} is {state["state"]}: {state["reason"]}')
            elif not found:
                print(f'{host.name}: {name} looked in {host.root} and found nothing')
    for name in agent_drivers.idle(embedded.conf):
        print(f'{name} is installed but not enabled: see [agent] enabled_drivers')
    if not found:
        known = ' '.join(f'--host {name}' for name in sorted(hosts.shipped()))
        print(f'Try hosts that come with cyborg_lite:\n  cyborg-lite up {known}')


def _example(
    session: orm.Session, names: collections.abc.Collection[str]
) -> tuple[str, str] | None:
    """The resource class and the host of a free accelerator of these hosts."""
    kind = accelerators.Accelerator
    free = query.find(
        session, kind, kind.state == 'free', kind.host.in_(names), page=query.Page(limit=1)
    )
    return next(((str(each.resource_class), each.host) for each in free), None)


def _requests(curl: str, url: str, resource_class: str, hostname: str) -> str:
    """Shell commands that bind an accelerator; they can be pasted again while one is free."""
    name = 'one-' + resource_class.removeprefix('CUSTOM_').lower()
    profile = json.dumps([{'name': name, 'groups': [{f'resources:{resource_class}': '1'}]}])
    wish = json.dumps({'device_profile_name': name})
    free = f'accelerators?free=true&limit=1&host={hostname}&resource_class={resource_class}'
    # The shell looks these up: another accelerator and another instance each time.
    values = {'hostname': hostname, 'device_rp_uuid': "'$RP'", 'instance_uuid': "'$INSTANCE'"}
    patch = [{'path': f'/{k}', 'op': 'add', 'value': v} for k, v in values.items()]
    bind = f'{{"\'$ARQ\'": {json.dumps(patch)}}}'
    first = 'import json, sys; print(json.load(sys.stdin)["{}"][0]["{}"])'
    return textwrap.dedent(
        f"""
        Ask for one:
          {curl} '{url}/device_profiles?name={name}' | grep -q {name} \\
            || {curl} {url}/device_profiles {JSON} -d '{profile}'
          ARQ=$({curl} {url}/accelerator_requests {JSON} -d '{wish}' \\
            | python3 -c '{first.format('arqs', 'uuid')}')
          RP=$({curl} '{url}/{free}' \\
            | python3 -c '{first.format('accelerators', 'rp_uuid')}')
          INSTANCE=$(cat /proc/sys/kernel/random/uuid)
          {curl} -X PATCH {url}/accelerator_requests {JSON} -d '{bind}'
        and see what you got:
          {curl} {url}/accelerator_requests/$ARQ"""
    )


def _allocation(curl: str, url: str, resource_class: str, _hostname: str) -> str:
    """Shell commands that allocate an accelerator: a member of any project may run them."""
    wish = json.dumps({'groups': [{'resources': {resource_class: 1}}], 'lease': 3600})
    uuid = 'import json, sys; print(json.load(sys.stdin)["uuid"])'
    return textwrap.dedent(
        f"""
        Ask for one:
          ALLOCATION=$({curl} {url}/allocations {JSON} -d '{wish}' \\
            | python3 -c '{uuid}')
        see what you got:
          {curl} {url}/allocations/$ALLOCATION
        and give it back:
          {curl} -X DELETE {url}/allocations/$ALLOCATION"""
    )

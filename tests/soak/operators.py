# SPDX-License-Identifier: Apache-2.0
"""The operators of a cloud: one calls the API, another changes the machines."""

from __future__ import annotations

import collections
import time

from tests.soak import allocations
from tests.soak import clients
from tests.soak import cloud as cloud_
from tests.soak import machines as machines_
from tests.soak import reservations
from tests.soak import watch

#: The number of allocations of other consumers in Placement.
ALLOCATIONS = 10
#: The clients, of eight, that use allocations: they have a project of their own.
CONSUMERS = (3, 6)
#: The clients, of eight, that reserve accelerators.
BOOKERS = (5,)
#: How long a machine stays unchanged, in seconds, so that some of its states are reported.
STAY = 3.0
#: The timeout of the last renames of hosts, in seconds.
PATIENCE = 60


class Operator(clients.Client):
    """Disables and enables devices of machines without changes."""

    def __init__(
        self, cloud: cloud_.Cloud, seed: str, number: int, providers: list[cloud_.Provider]
    ) -> None:
        super().__init__(cloud, seed, number)
        self._headers = cloud_.ADMIN
        self._project = 'admin'
        self._devices = collections.defaultdict(list)
        for provider in providers:
            self._devices[provider.device].append(provider.uuid)
        # Only of unchanged machines: an allocated provider could not be deleted at the end.
        cloud.allocate(providers[:ALLOCATIONS])

    def cycle(self) -> None:
        device = self._draw.choice(sorted(self._devices))
        self._order('disable', device)
        self.pause(0.2, 3)
        for _ in range(clients.TRIES):
            if self._order('enable', device):
                break

    def _order(self, kind: str, device: str) -> bool:
        providers = tuple(self._devices[device])
        noted, _ = self.note(kind, 'POST', f'/devices/{device}/{kind}', providers=providers)
        return noted.outcome == 'ok'


class Technician(clients.Client):
    """Removes, moves, replaces and splits cards, and renames machines.

    A host under an old name is renamed by the API or, without held accelerators, deleted.
    """

    def __init__(
        self,
        cloud: cloud_.Cloud,
        seed: str,
        number: int,
        seen: watch.Watch,
        machines: list[machines_.Machine],
    ) -> None:
        super().__init__(cloud, seed, number)
        self._headers = cloud_.ADMIN
        self._project = 'admin'
        self._seen, self._machines = seen, machines
        #: the machines that are down until they have their new name
        self._stopped_machines: dict[machines_.Machine, str] = {}
        self._old_names: list[tuple[machines_.Machine, str]] = []
        #: the time of the last change of a machine
        self._changed: dict[machines_.Machine, float] = {}
        #: the counts of changes of machines
        self.changes: collections.Counter[str] = collections.Counter()

    def cycle(self) -> None:
        for _ in range(self._draw.randint(1, 4)):
            self._change(self._draw.choice(self._machines))
            self.pause(0.05, 0.5)
        if self._old_names:
            self._settle(*self._draw.choice(self._old_names))
        else:
            self._delete_device(self._draw.choice(self._machines))

    def _change(self, machine: machines_.Machine) -> None:
        """Change a machine, unless it was changed recently."""
        now = time.monotonic()
        if now - self._changed.get(machine, -STAY) < STAY:
            return
        self._changed[machine] = now
        kinds = [self._pull, self._pull, self._put_back, self._put_back]
        kinds.append(self._draw.choice([self._rename, self._rename_down]))
        if machine.boards:
            kinds += [self._swap] * 4 + [self._replace] * 2
        if machine.split_cards:
            kinds += [self._split] * 6
        self._draw.choice(kinds)(machine)

    def _pull(self, machine: machines_.Machine) -> None:
        machine.pull(self._draw.choice(machine.cards))
        self.changes['pulled'] += 1

    def _put_back(self, machine: machines_.Machine) -> None:
        machine.put_back()

    def _swap(self, machine: machines_.Machine) -> None:
        machine.swap(*self._draw.sample(sorted(machine.boards), 2))
        self.changes['swapped'] += 1

    def _replace(self, machine: machines_.Machine) -> None:
        slot, again = self._draw.choice(sorted(machine.boards)), self._draw.random() < 0.5
        machine.replace(slot, again)
        self.changes['replaced'] += 1

    def _split(self, machine: machines_.Machine) -> None:
        """Into the whole card, half of its parts or all of them."""
        [(address, most)] = machine.split_cards.items()
        machine.split(address, self._draw.choice([0, 0, most // 2, most]))
        self.changes['form changed'] += 1

    def _rename(self, machine: machines_.Machine) -> None:
        """The agent starts under another name at once, and the API call follows later."""
        if machine in self._stopped_machines:
            return
        old, new = machine.name, self._another_name(machine)
        machine.rename(new)
        self._old_names = [each for each in self._old_names if each != (machine, new)]
        self._old_names.append((machine, old))
        self.changes['renamed'] += 1

    def _rename_down(self, machine: machines_.Machine) -> None:
        """The agent is stopped, and starts under the other name after the API call."""
        if machine in self._stopped_machines or any(m is machine for m, _ in self._old_names):
            return
        old, new = machine.name, self._another_name(machine)
        machine.rename('')
        self._stopped_machines[machine] = new
        self._old_names.append((machine, old))
        self.changes['renamed while down'] += 1

    def _another_name(self, machine: machines_.Machine) -> str:
        return self._draw.choice([n for n in cloud_.names(machine) if n != machine.name])

    def _settle(self, machine: machines_.Machine, old: str, delete: float = 0.3) -> None:
        """Rename or delete the host of an old name.

        :param delete: the probability of a delete instead of a rename.
        """
        new = self._stopped_machines.get(machine) or machine.name
        if self._draw.random() < delete:
            noted, answer = self.note('delete host', 'DELETE', f'/hosts/{old}')
        else:
            noted, answer = self.note('rename host', 'PATCH', f'/hosts/{old}', {'name': new})
        if noted.outcome == 'ok' or answer.status == 404:
            self._old_names = [each for each in self._old_names if each != (machine, old)]
            if machine in self._stopped_machines:
                machine.rename(self._stopped_machines.pop(machine))

    def _delete_device(self, machine: machines_.Machine) -> None:
        """Delete a removed card: this is refused until it is missing, and while it is held."""
        pulled = machine.pulled
        devices = [
            provider.device
            for provider in self._seen.providers
            if provider.host == machine.name and provider.address in pulled
        ]
        if devices:
            self.note('delete device', 'DELETE', f'/devices/{self._draw.choice(sorted(devices))}')

    def finish(self) -> None:
        """Put all cards back, and rename all hosts."""
        for machine in self._machines:
            machine.put_back()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and (self._old_names or self._late_names()):
            for each in self._old_names or self._late_names():
                self._settle(*each, delete=0)
            time.sleep(1)

    def _late_names(self) -> list[tuple[machines_.Machine, str]]:
        """Old names that a late call has restored."""
        answer = self.ask('GET', '/hosts?limit=1000')
        known = {host['name'] for host in answer.body['hosts']} if answer.status == 200 else set()
        return [
            (machine, name)
            for machine in self._machines
            for name in cloud_.names(machine)
            if name in known and name != machine.name
        ]


def population(
    cloud: cloud_.Cloud, seed: str, number: int, seen: watch.Watch
) -> tuple[list[clients.Client], Technician]:
    """The operator, the clients, and the technician of every other machine of each kind."""
    changing = sorted(cloud.machines, key=lambda machine: machine.id)[::2]
    names = {machine.name for machine in changing}
    stay = [provider for provider in seen.providers if provider.host not in names]
    technician = Technician(cloud, seed, number + 1, seen, changing)
    workloads: list[clients.Workload] = []
    consumers = [each for each in range(number) if each % 8 in CONSUMERS]
    bookers = [each for each in range(number) if each % 8 in BOOKERS]
    for each in sorted({*range(number)} - {*consumers, *bookers}):
        workloads.append(clients.Workload(cloud, seed, each, seen, workloads))
    return [
        *workloads,
        *(allocations.Consumer(cloud, seed, each, seen=seen) for each in consumers),
        *(reservations.Booker(cloud, seed, each, seen=seen) for each in bookers),
        Operator(cloud, seed, number, stay),
    ], technician

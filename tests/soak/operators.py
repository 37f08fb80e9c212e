# SPDX-License-Identifier: Apache-2.0
"""Who runs a cloud: one gives orders, another one works on the machines."""

from __future__ import annotations

import collections
import time

from tests.soak import allocations
from tests.soak import clients
from tests.soak import cloud as cloud_
from tests.soak import machines as machines_
from tests.soak import watch

#: How many accelerators somebody else has, in Placement.
ALLOCATIONS = 10
#: Which of eight clients ask for allocations: one of each project.
CONSUMERS = (3, 6)
#: How long a machine stays as it is, in seconds: some of its states are to be reported.
STAY = 3.0
#: How long it is tried to give hosts their names at the end, in seconds.
PATIENCE = 60


class Operator(clients.Client):
    """Disables and enables devices of the machines that stay as they are."""

    def __init__(
        self, cloud: cloud_.Cloud, seed: str, number: int, providers: list[cloud_.Provider]
    ) -> None:
        super().__init__(cloud, seed, number)
        self._headers = cloud_.ADMIN
        self._project = 'admin'
        self._devices = collections.defaultdict(list)
        for provider in providers:
            self._devices[provider.device].append(provider.uuid)
        # What cannot be deleted while it is allocated would be waited for.
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
    """Pulls cards, moves, replaces and splits them, and gives machines other names.

    What is called as before is renamed by the API or, where nobody holds anything of it, deleted.
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
        #: those that are down until they have their new name
        self._stopped_machines: dict[machines_.Machine, str] = {}
        self._old_names: list[tuple[machines_.Machine, str]] = []
        #: when a machine was changed last
        self._changed: dict[machines_.Machine, float] = {}
        #: what was done to machines, which nobody is asked for
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
        """Do something to a machine, unless it was changed a moment ago."""
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
        """As a whole, half of its parts or all of them."""
        [(address, most)] = machine.split_cards.items()
        machine.split(address, self._draw.choice([0, 0, most // 2, most]))
        self.changes['form changed'] += 1

    def _rename(self, machine: machines_.Machine) -> None:
        """The agent starts under another name at once, and the API is told later."""
        if machine in self._stopped_machines:
            return
        old, new = machine.name, self._another_name(machine)
        machine.rename(new)
        self._old_names = [each for each in self._old_names if each != (machine, new)]
        self._old_names.append((machine, old))
        self.changes['renamed'] += 1

    def _rename_down(self, machine: machines_.Machine) -> None:
        """The agent is stopped, and starts under the other name once the API knows that."""
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
        """Have a name that a machine has no more be that of no host.

        :param delete: how likely it is tried to delete it rather than to rename it.
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
        """One that was pulled: it is refused until the device is missing, and while it is held."""
        pulled = machine.pulled
        devices = [
            provider.device
            for provider in self._seen.providers
            if provider.host == machine.name and provider.address in pulled
        ]
        if devices:
            self.note('delete device', 'DELETE', f'/devices/{self._draw.choice(sorted(devices))}')

    def finish(self) -> None:
        """Leave no card pulled, and no host under an old name."""
        for machine in self._machines:
            machine.put_back()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and (self._old_names or self._late_names()):
            for each in self._old_names or self._late_names():
                self._settle(*each, delete=0)
            time.sleep(1)

    def _late_names(self) -> list[tuple[machines_.Machine, str]]:
        """Those that an order has brought back which came late."""
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
    """The operator and so many clients, and who works on every other machine of each kind."""
    changing = sorted(cloud.machines, key=lambda machine: machine.id)[::2]
    names = {machine.name for machine in changing}
    stay = [provider for provider in seen.providers if provider.host not in names]
    technician = Technician(cloud, seed, number + 1, seen, changing)
    workloads: list[clients.Workload] = []
    consumers = [each for each in range(number) if each % 8 in CONSUMERS]
    for each in sorted({*range(number)} - {*consumers}):
        workloads.append(clients.Workload(cloud, seed, each, seen, workloads))
    return [
        *workloads,
        *(allocations.Consumer(cloud, seed, each, seen=seen) for each in consumers),
        Operator(cloud, seed, number, stay),
    ], technician

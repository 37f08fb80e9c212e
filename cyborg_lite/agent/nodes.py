# SPDX-License-Identifier: Apache-2.0
"""The device nodes of the cards of a host."""

from __future__ import annotations

import collections.abc
import typing

from cyborg_lite import delivery
from cyborg_lite import model
from cyborg_lite.model import device as devices


class Finding(typing.NamedTuple):
    """What a scan found, as far as leases depend on it."""

    #: the drivers that found devices
    drivers: frozenset[str] = frozenset()
    #: by the address of each card that can be leased, the nodes of its accelerators
    nodes: dict[str, frozenset[str]] = {}
    #: the nodes that every process needs
    shared: frozenset[str] = frozenset()
    #: by node, the address of the card that a process uses which has it open
    used: dict[str, str] = {}
    #: by the address of each card whose node others have open, too, the pids of those that use it
    listed: dict[str, frozenset[int]] = {}
    #: by the address of a card, how much of its memory each process has, in MiB, by its pid
    memory: dict[str, dict[int, int]] = {}


def find(
    drivers: collections.abc.Iterable[str], found: collections.abc.Iterable[model.Device]
) -> Finding:
    """The finding of a scan on this machine.

    :param drivers: the drivers that found devices.
    :param found: the devices.
    """
    nodes: dict[str, frozenset[str]] = {}
    shared: set[str] = set()
    used: dict[str, str] = {}
    listed: dict[str, frozenset[int]] = {}
    memory: dict[str, dict[int, int]] = {}
    for device in found:
        # The host itself may use such a card: it may show the console.
        if device.unusable:
            continue
        memory[device.address] = device.memory or {}
        told = [delivery.nodes(each) for each in _accelerators(device)]
        nodes[device.address] = frozenset(node for each in told for node in each.own)
        shared.update(node for each in told for node in each.shared)
        used |= {node: device.address for each in told for node in each.used}
        if any(each.listed for each in told):
            listed[device.address] = device.processes or frozenset()
    return Finding(frozenset(drivers), nodes, frozenset(shared), used, listed, memory)


def _accelerators(device: model.Device) -> collections.abc.Iterator[dict[str, typing.Any]]:
    """The accelerators of a device, in the form in which an allocation stores them."""
    for part in device.deployables:
        for handle in part.attach_handles:
            yield {
                'driver': part.driver_name,
                'form': handle.form or handle.default_form,
                'ids': devices.ids_of_part(device.vendor_board, handle.attach_info),
            }

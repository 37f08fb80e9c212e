# SPDX-License-Identifier: Apache-2.0
"""Ascend NPUs of hosts that show no PCI function of them.

A 310B may be the processor of its board, and a container may hide the PCI bus.  The nodes
``/dev/davinciN`` are the NPUs then: npu-smi, if it answers, adds their names and their health.

Source: Ascend/mind-cluster, ascend-common/cdi/devnode.go for the nodes; npu-smi 23.0.rc3 on an
Atlas 200I A2, which prints NA as the Bus-Id.
"""

from __future__ import annotations

import collections.abc
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import versions
from cyborg_lite.drivers.tools import npu_smi

#: The node of an NPU; the numbers from 100 are those of vNPUs.
NODE = re.compile('davinci([0-9]{1,2})')


def nodes(host: driver.Host) -> list[int]:
    """The physical ids of the chips that have a node, sorted."""
    found = map(NODE.fullmatch, host.tree.names(host.root / 'dev'))
    return sorted(int(match[1]) for match in found if match)


def numbers(host: driver.Host) -> list[int]:
    """The physical ids of the NPUs, sorted; empty if one may be a PCI function."""
    found = nodes(host)
    # A function whose class cannot be read may be the card of a node.
    classes = [function.pci_class for function in host.tree.functions()] if found else []
    return found if all(each and not each.startswith('12') for each in classes) else []


def devices(
    name: str, found: list[int], table: str, runtime: str | None
) -> collections.abc.Iterator[driver.Device]:
    """A Device for each NPU.

    :param name: that of the driver
    :param found: their physical ids, sorted
    :param table: what ``npu-smi info`` prints, in the order of these ids; empty if it does not
        answer
    :param runtime: the version of CANN, if it is known
    """
    rows = npu_smi.parse_info(table)
    told = rows if len(rows) == len(found) else [{}] * len(found)
    software = {'driver': npu_smi.parse_release(table), 'runtime': runtime}
    for number, row in zip(found, told, strict=True):
        yield _device(name, number, row, versions.sound(software))


def _device(
    name: str, number: int, row: dict[str, typing.Any], software: dict[str, str]
) -> driver.Device:
    health, chip = row.get('health', driver.Health()), row.get('chip_name', '')
    place, is_processor = f'davinci{number}', chip.startswith('310B')
    facts = {key: row.get(key) for key in ('npu_id', 'chip_name')} | versions.facts(software)
    # The node has the physical id of the chip.
    facts['chips'] = [row.get('chip', {}) | {'phy_id': number}]
    traits = [driver.trait('NPU', each) for each in ([chip, '310B'] if is_processor else [chip])]
    traits += versions.traits(name, software)
    return driver.Device(
        type='AICHIP',
        vendor='19e5',
        model=f'Ascend {chip or "NPU"}',
        address=place,
        vendor_board={key: value for key, value in facts.items() if value not in (None, '')},
        health=health.level,
        health_reason=health.reason,
        utilization=row.get('utilization'),
        deployables=[
            driver.Deployable(
                name=place,
                driver_name=name,
                resource_class='CUSTOM_NPU',
                traits=[each for each in traits if each],
                attach_handles=[
                    driver.AttachHandle(
                        attach_type='NODE',
                        attach_info={'node': f'/dev/{place}'},
                        form='processor' if is_processor else 'whole',
                    )
                ],
            )
        ],
    )

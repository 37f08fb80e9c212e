# SPDX-License-Identifier: Apache-2.0
"""The checks of devices from drivers: a bad card or string does not affect others.

The agent checks the results of its drivers, and the conductor checks the reports of agents.
"""

from __future__ import annotations

import datetime
import json
import re
import typing

import os_resource_classes
import os_traits

from cyborg_lite import model
from cyborg_lite.model import health
from cyborg_lite.model import pci

Seen = set[tuple[str, str]]

#: Source: the placement API reference, resource classes and traits.
RESOURCE_CLASS = re.compile(r'CUSTOM_[A-Z0-9_]{1,248}')
TRAIT = re.compile(r'CUSTOM_[A-Z0-9_]{1,248}')
STANDARD_TRAITS = frozenset(os_traits.get_traits())
#: Texts of firmware and tools for an unknown serial number.
PLACEHOLDER = re.compile(
    r'(.)\1{2,}|[0?-]+|n/?a|none|null|unknown|default( string)?'
    r'|not (specified|available|applicable)|to be filled by o\.?e\.?m\.?'
    r'|(system )?serial number|\[(n/a|not supported)\]',
    re.IGNORECASE,
)
#: The maximum size of the facts of a board, in bytes of JSON.
BOARD = 16384
#: The maximum number of levels of these facts: MariaDB takes no more.
LEVELS = 31
#: The maximum number of bridges above a device, of devices that it is linked with, and of links
#: between two.
BRIDGES, PEERS, LINKS = 16, 64, 64
#: The maximum number of processes that a driver lists of a device, and the highest pid.
#: Source: proc(5), /proc/sys/kernel/pid_max.
PROCESSES, PID = 1024, 1 << 22
#: The maximum memory that a process has of a device, in MiB.
MEMORY = 1 << 30
#: The maximum number of accelerators of a device.
HANDLES = 4096
#: The maximum length of a deployable's name, before which the service puts the host's name.
NAME = 128


def check(devices: typing.Any, seen: Seen | None = None) -> tuple[list[model.Device], list[str]]:
    """The valid devices, and complaints about the rest.

    An invalid trait is dropped, and its device stays; a device with any other error is left out.

    :param devices: the result of ``discover``, of any type
    :param seen: the locations that are in use on the host already.  Pass one set to the checks
        of all drivers, so that no accelerator is reported twice: it would go to two tenants
    """
    seen = set() if seen is None else seen
    if not isinstance(devices, list | tuple):
        return [], [f'expected a list of devices, not {type(devices).__name__}']
    good, complaints = [], []
    for number, device in enumerate(devices):
        try:
            taken, dropped = _device(device, seen)
        except Exception as reason:  # a driver may return anything
            complaints.append(f'device {number} left out: {reason}')
        else:
            seen |= taken
            complaints += [f'device {number} ({device.address}): {text}' for text in dropped]
            good.append(device)
    return good, complaints


def _device(device: typing.Any, seen: Seen) -> tuple[Seen, list[str]]:
    """The locations of the device, and complaints that do not exclude it."""
    if not isinstance(device, model.Device):
        raise ValueError(f'expected a Device, not {type(device).__name__}')
    for name in ('address', 'type', 'vendor', 'model'):
        _text(name, getattr(device, name), _width(model.Device, name))
    for name in ('serial', 'unusable', 'rogue'):
        _text_or_none(name, getattr(device, name), _width(model.Device, name))
    if device.serial and PLACEHOLDER.fullmatch(device.serial.strip()):
        device.serial = None
    node = device.numa_node
    if node is not None and (type(node) is not int or not 0 <= node < 65536):
        raise ValueError(f'numa_node: expected a number or None, not {node!r:.64}')
    device.address = pci.canonical_address(device.address)
    _board('board', device.board)
    _board('vendor_board', device.vendor_board)
    if sum(len(part.attach_handles) for part in device.deployables) > HANDLES:
        raise ValueError(f'expected up to {HANDLES} attach handles')
    taken: Seen = set()
    _take(taken, seen, 'address', device.address)
    dropped = _health(device) + _topology(device) + _processes(device) + _memory(device)
    dropped += _utilization(device) + _idleness(device)
    for deployable in device.deployables:
        dropped += _deployable(deployable, taken, seen)
    return taken, dropped


def _health(device: model.Device) -> list[str]:
    """Replace an invalid health, and complain: the card stays."""
    level, reason = device.health, device.health_reason
    device.health, device.health_reason = level or health.UNKNOWN, None
    if device.health not in health.LEVELS:
        device.health = health.UNKNOWN
        levels = ', '.join(health.LEVELS)
        return [f'health: expected one of {levels}, not {level!r:.64}']
    if device.health == health.OK:
        return []
    if reason is None or health.is_code(reason):
        bad = device.health != health.UNKNOWN
        device.health_reason = reason or (health.UNSPECIFIED if bad else None)
        return []
    device.health_reason = health.UNSPECIFIED
    return [f'health_reason: expected up to {health.LONGEST} of a-z, 0-9 and _, not {reason!r:.64}']


def _processes(device: model.Device) -> list[str]:
    """Drop an invalid list of processes, and complain: the card stays."""
    told, device.processes = device.processes, None
    if told is None:
        return []
    if not isinstance(told, frozenset) or len(told) > PROCESSES:
        return [f'processes: expected a frozenset of up to {PROCESSES} pids, not {told!r:.64}']
    if not all(type(pid) is int and 0 < pid <= PID for pid in told):
        return [f'processes: expected pids from 1 to {PID}, not {told!r:.64}']
    device.processes = told
    return []


def _memory(device: model.Device) -> list[str]:
    """Drop an invalid memory of processes, and complain: the card stays."""
    told, device.memory = device.memory, None
    if told is None:
        return []
    if not isinstance(told, dict) or len(told) > PROCESSES:
        return [f'memory: expected a mapping of up to {PROCESSES} pids, not {told!r:.64}']
    for pid, size in told.items():
        if not (type(pid) is int and 0 < pid <= PID and type(size) is int and 0 <= size <= MEMORY):
            return [f'memory: expected up to {MEMORY} MiB by pid, not {pid!r:.32}: {size!r:.32}']
    device.memory = told
    return []


def _utilization(device: model.Device) -> list[str]:
    """Drop an invalid utilization, and complain: the card stays."""
    told, device.utilization = device.utilization, None
    if told is None:
        return []
    if type(told) is not int or not 0 <= told <= 100:
        return [f'utilization: expected a whole number from 0 to 100, not {told!r:.64}']
    device.utilization = told
    return []


def _idleness(device: model.Device) -> list[str]:
    """Drop what is invalid of since when it is idle and whether it is used: the card stays."""
    since, device.idle_since = device.idle_since, None
    used, device.used = device.used, None
    if since is None:
        return []
    if not isinstance(since, datetime.datetime) or since.tzinfo:
        return [f'idle_since: expected a time in ISO 8601, not {since!r:.64}']
    device.idle_since = since
    if used is None or isinstance(used, bool):
        device.used = used
        return []
    return [f'used: expected true, false or null, not {used!r:.64}']


def _topology(device: model.Device) -> list[str]:
    """Drop an invalid topology, and complain: the card stays."""
    told, device.topology = device.topology, None
    if told is None:
        return []
    try:
        device.topology = _canonical_topology(told) or None
    except ValueError as error:
        return [f'topology: {error}']
    return []


def _canonical_topology(told: typing.Any) -> dict[str, typing.Any]:
    if not isinstance(told, dict) or not told.keys() <= {'bridges', 'links'}:
        raise ValueError(f'expected a mapping of bridges and links, not {told!r:.64}')
    bridges, links = told.get('bridges', []), told.get('links', {})
    if not isinstance(bridges, list) or len(bridges) > BRIDGES:
        raise ValueError(f'bridges: expected a list of up to {BRIDGES}, not {bridges!r:.64}')
    if not isinstance(links, dict) or len(links) > PEERS:
        raise ValueError(f'links: expected a mapping of up to {PEERS}, not {links!r:.64}')
    for address in (*bridges, *links):
        _text('address', address, 64)
    for address, count in links.items():
        if type(count) is not int or not 1 <= count <= LINKS:
            raise ValueError(
                f'links: {address}: expected a number from 1 to {LINKS}, not {count!r:.64}'
            )
    canonical = pci.canonical_address
    above = [canonical(address) for address in bridges]
    peers = {canonical(address): count for address, count in links.items()}
    return {name: value for name, value in (('bridges', above), ('links', peers)) if value}


def _deployable(deployable: model.Deployable, taken: Seen, seen: Seen) -> list[str]:
    _text('deployable name', deployable.name, NAME)
    _text('driver_name', deployable.driver_name, _width(model.Deployable, 'driver_name'))
    _take(taken, seen, 'deployable name', deployable.name)
    for attribute in deployable.attributes:
        _text('attribute key', attribute.key, 255)
        _take(taken, seen, f'attribute of {deployable.name}', attribute.key)
        # Only traits can be dropped alone: see _drop_traits.
        if not attribute.key.startswith('trait'):
            _text(f'attribute {attribute.key}', attribute.value, 255)
    resource_class = deployable.resource_class
    standard = resource_class in os_resource_classes.STANDARDS
    if not standard and not RESOURCE_CLASS.fullmatch(resource_class or ''):
        raise ValueError(f'resource class: {resource_class!r:.80} is no standard nor CUSTOM_ one')
    for handle in deployable.attach_handles:
        _take(taken, seen, 'attach handle', _handle(handle))
    return _drop_traits(deployable)


def _drop_traits(deployable: model.Deployable) -> list[str]:
    bad = [
        attribute
        for attribute in deployable.attributes
        if attribute.key.startswith('trait') and not is_trait(attribute.value)
    ]
    for attribute in bad:
        deployable.attributes.remove(attribute)
    return [f'dropped {attribute.value!r:.80}, which is no trait' for attribute in bad]


def is_trait(value: typing.Any) -> bool:
    """Whether Placement accepts the value as a trait."""
    return isinstance(value, str) and (value in STANDARD_TRAITS or bool(TRAIT.fullmatch(value)))


def _handle(handle: model.AttachHandle) -> str:
    """The identity of a handle on its host."""
    kind, info = handle.attach_type, handle.attach_info
    _text('attach_type', kind, _width(model.AttachHandle, 'attach_type'))
    for name in ('form', 'iommu_group'):
        _text_or_none(name, getattr(handle, name), _width(model.AttachHandle, name))
    if not isinstance(info, dict) or not info:
        raise ValueError(f'attach_info: expected a mapping of texts, not {info!r:.80}')
    for key, value in info.items():
        _text('attach_info key', key, 64)
        _text(f'attach_info {key}', value, 255)
    if kind.endswith('PCI'):
        # Nova needs these parts of a PCI function.
        if missing := pci.PARTS.keys() - info.keys():
            raise ValueError(f'attach_info: {", ".join(sorted(missing))} is missing')
        try:
            handle.attach_info = info = pci.canonical_info(info)
        except ValueError as error:
            # A test handle may have an address that no machine has.
            if kind == 'PCI':
                raise ValueError(f'attach_info {error}') from error
        # Other keys do not matter: it is one function.
        info = {part: info[part] for part in pci.PARTS}
    return json.dumps(info, sort_keys=True)


def _take(taken: Seen, seen: Seen, kind: str, name: str) -> None:
    if (kind, name) in taken or (kind, name) in seen:
        raise ValueError(f'{kind} {name!r:.160} is there twice')
    taken.add((kind, name))


def _board(name: str, value: typing.Any) -> None:
    try:
        size = len(json.dumps(value, allow_nan=False))
        # MariaDB refuses half of a character also where it is escaped.
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f'{name}: not JSON: {error}') from error
    if not isinstance(value, dict | None) or size > BOARD:
        raise ValueError(f'{name}: expected a mapping, at most {BOARD} bytes of JSON')
    if _levels(value) > LEVELS:
        raise ValueError(f'{name}: expected at most {LEVELS} levels')


def _levels(value: typing.Any) -> int:
    """The number of levels of JSON; 0 for a single value."""
    if not isinstance(value, dict | list | tuple):
        return 0
    parts = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_levels, parts), default=0)


def _text(name: str, value: typing.Any, width: int) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{name}: expected a text, not {value!r:.64}')
    if len(value) > width or not value.isprintable():
        raise ValueError(f'{name}: expected up to {width} printable characters: {value!r:.64}')


def _text_or_none(name: str, value: typing.Any, width: int) -> None:
    if value is not None:
        _text(name, value, width)


def _width(row: type[model.Device | model.Deployable | model.AttachHandle], name: str) -> int:
    """The length of the row's column, in characters."""
    return typing.cast('int', row.__table__.columns[name].type.length)  # type: ignore[attr-defined]

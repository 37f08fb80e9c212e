# SPDX-License-Identifier: Apache-2.0
"""Mediated devices (mdev) of the type that the operator chose for a card.

Nothing is created here.  A hypervisor creates the device with the UUID of the attach handle, and
leaves it when the guest ends: Nova 34, ``_allocate_cyborg_mdevs`` in nova/virt/libvirt/driver.py.
So a card has as many attach handles as it can have devices of the type, existing ones included.

Source: Documentation/driver-api/vfio-mediated-device.rst of Linux; NVIDIA vGPU software user
guide, "Creating an NVIDIA vGPU that supports SR-IOV"; Cyborg, drivers/gpu/nvidia/sysinfo.py.
"""

from __future__ import annotations

import collections.abc
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import sysfs

#: A type, as the kernel names its directory: the kernel driver and the maker's name for it.
TYPE = re.compile(r'[A-Za-z0-9][A-Za-z0-9_+-]{0,63}')
#: The maximum number of devices of one card: a bound for what its files say.
MOST = 128
#: How often both numbers of a card are read if devices come and go meanwhile.
TRIES = 5
#: The maximum number of devices of a type on one physical GPU, in the file ``description``.
LIMIT = re.compile(r'(?:^|[, ])max_instance=([0-9]{1,4})(?:[, ]|$)')


def choices(
    texts: collections.abc.Iterable[str], note: typing.Callable[[str], None]
) -> dict[str, str]:
    """The type by the address of a card, of ``[agent] vgpu_types``.

    :param note: called with a text for each invalid value
    """
    found: dict[str, str] = {}
    for number, text in enumerate(texts):
        address, _, kind = (part.strip() for part in text.partition('='))
        place = sysfs.normal(address)
        if place is None or not TYPE.fullmatch(kind):
            expected = 'expected ADDRESS=TYPE, such as 0000:3b:00.0=nvidia-223'
            note(f'[agent] vgpu_types[{number}]: {expected}, not {text!r:.80}')
        elif found.setdefault(place, kind) != kind:
            note(f'[agent] vgpu_types[{number}]: {place} has the type {found[place]} already')
    return found


def handles(
    functions: collections.abc.Sequence[sysfs.Function], kind: str
) -> list[driver.AttachHandle]:
    """The attach handles of a card, one for each device of the type that exists or can be made.

    :param functions: its virtual functions if it has any, else the card
    """
    most = min([MOST, *(int(match[1]) for f in functions if (match := _limit(f, kind)))])
    counts = {function: _counts(function, kind) for function in functions}
    # Each virtual function tells of room for one, until the card is full.
    ordered = sorted(counts, key=lambda function: not counts[function][0])
    places = [(f, number) for f in ordered for number in range(min(sum(counts[f]), MOST))][:most]
    return [_handle(function, kind, number) for function, number in places]


def name(functions: collections.abc.Iterable[sysfs.Function], kind: str) -> str | None:
    """The maker's name of the type, such as ``GRID T4-2B``; None if no function tells it."""
    told = (function.read(f'mdev_supported_types/{kind}/name') for function in functions)
    return next((text for text in told if text), None)


def _handle(function: sysfs.Function, kind: str, number: int) -> driver.AttachHandle:
    return driver.AttachHandle(
        attach_type='MDEV',
        # Nova reads the address and asked_type; vgpu_mark tells the handles apart, as in Cyborg.
        attach_info=function.address | {'asked_type': kind, 'vgpu_mark': f'{kind}_{number}'},
        form='mdev',
    )


def _counts(function: sysfs.Function, kind: str) -> tuple[int, int]:
    """How many devices of the type exist, and how many more can be made."""
    for _ in range(TRIES):
        existing = _existing(function, kind)
        room = function.number(f'mdev_supported_types/{kind}/available_instances') or 0
        # Otherwise one was made or removed between both.
        if existing == _existing(function, kind):
            break
    return existing, room


def _existing(function: sysfs.Function, kind: str) -> int:
    return len(function.tree.names(function.path / 'mdev_supported_types' / kind / 'devices'))


def _limit(function: sysfs.Function, kind: str) -> re.Match[str] | None:
    return LIMIT.search(function.read(f'mdev_supported_types/{kind}/description') or '')

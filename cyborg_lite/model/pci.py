# SPDX-License-Identifier: Apache-2.0
"""PCI addresses in canonical form: two spellings of a function would be allocated twice."""

from __future__ import annotations

import collections.abc
import re

#: The parts of an address: the number of hexadecimal digits in sysfs, and the largest value.
#: Source: pci_setup_device() in drivers/pci/probe.c of Linux; domains are wider than 16 bits
#: behind some controllers (VMD: 10000:00:02.0).
PARTS = {
    'domain': (4, 0xFFFFFFFF),
    'bus': (2, 0xFF),
    'device': (2, 0x1F),
    'function': (1, 0x7),
}
#: The names of vendors of accelerators, by vendor id.  Source: the PCI ID repository.
VENDORS = {
    '1002': 'AMD',
    '10b5': 'Broadcom',
    '10de': 'NVIDIA',
    '10ee': 'Xilinx',
    '1172': 'Altera',
    '144d': 'Samsung',
    '15b3': 'Mellanox',
    '19e5': 'Huawei',
    '1ac1': 'Google',
    '1d0f': 'Amazon',
    '1da3': 'Habana Labs',
    '1dd8': 'AMD Pensando',
    '1e52': 'Tenstorrent',
    '8086': 'Intel',
    'cabc': 'Cambricon',
}
NUMBER = re.compile('(?:0[xX])?([0-9a-fA-F]{1,8})')
ADDRESS = re.compile(
    r'(?:(?P<domain>[^:.]+):)?(?P<bus>[^:.]+):(?P<device>[^:.]+)\.(?P<function>[^:.]+)'
)


def canonical_info(info: collections.abc.Mapping[str, str]) -> dict[str, str]:
    """An attach info with its PCI parts in the form of sysfs.

    :raises ValueError: when a part is not a number, or too large; the error names the part.
    """
    return {key: _part(key, value) if key in PARTS else value for key, value in info.items()}


def canonical_address(text: str) -> str:
    """A PCI address in the form of sysfs; other text unchanged."""
    match = ADDRESS.fullmatch(text)
    if not match:
        return text
    try:
        parts = canonical_info(match.groupdict(default='0'))
    except ValueError:
        return text
    return '{domain}:{bus}:{device}.{function}'.format(**parts)


def parse(address: str) -> dict[str, str]:
    """The attach info of a PCI address; empty for other text."""
    match = ADDRESS.fullmatch(address)
    return match.groupdict(default='0') if match else {}


def function(info: collections.abc.Mapping[str, str]) -> tuple[int, int] | None:
    """Domain and routing id (PCI Express, 2.2.4.2) of an attach info; None if it has none."""
    try:
        domain, bus, device, number = (int(info[name], 16) for name in PARTS)
    except (KeyError, TypeError, ValueError):
        return None
    return domain, bus << 8 | device << 3 | number


def moved(info: collections.abc.Mapping[str, str], before: str, after: str) -> dict[str, str]:
    """The attach info after its card has moved to another address; unchanged if unclear."""
    place, old, new = function(info), function(parse(before)), function(parse(after))
    if place is None or old is None or new is None or place[0] != old[0]:
        return dict(info)
    number = new[1] + place[1] - old[1]
    numbers = (new[0], number >> 8, number >> 3 & 0x1F, number & 0x7)
    if not 0 <= number < 2**16:
        return dict(info)
    return {**info, **canonical_info({k: f'{n:x}' for k, n in zip(PARTS, numbers, strict=True)})}


def rest(info: collections.abc.Mapping[str, str]) -> dict[str, str]:
    """The parts of an attach info beside the PCI function; all if it has none."""
    plain = function(info) is None
    return {name: value for name, value in info.items() if plain or name not in PARTS}


def _part(name: str, text: str) -> str:
    digits, most = PARTS[name]
    match = NUMBER.fullmatch(text)
    if not match:
        raise ValueError(f'{name}: {text!r:.64} is not hexadecimal')
    value = int(match[1], 16)
    if value > most:
        raise ValueError(f'{name}: {text!r:.64} is more than {most:x}')
    return f'{value:0{digits}x}'

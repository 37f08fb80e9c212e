# SPDX-License-Identifier: Apache-2.0
"""Any PCI card that the operator names in ``[pci] device_spec``, as Nova's option of that name.

Each value is a JSON object, and matches a function that has all it says::

    {"vendor_id": "8086", "product_id": "0b25", "class_id": "0880", "address": "*:3b:00.*",
     "resource_class": "CUSTOM_DSA", "traits": ["CUSTOM_DSA_V1"], "type": "PCI"}

``class_id`` is how the PCI class begins.  A card whose physical function matches is given out
by its virtual functions if it has any.  Where several specs match a card, the first is taken.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import fnmatch
import json
import re
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import contract
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: Pattern of each key that is a text, and how it reads in words.
KEYS = {
    'vendor_id': (r'[0-9a-f]{4}|\*', 'four hexadecimal digits, or *'),
    'product_id': (r'[0-9a-f]{4}|\*', 'four hexadecimal digits, or *'),
    'class_id': (r'[0-9a-f]{2,6}', 'two to six hexadecimal digits'),
    'address': (r'([0-9a-f*?]*:){0,2}[0-9a-f*?]*(\.[0-7*?]?)?', '[[domain:]bus:]device[.function]'),
    'resource_class': (contract.RESOURCE_CLASS.pattern, 'CUSTOM_ and then A-Z, 0-9 or _'),
    'type': (r'[A-Z]{1,32}', 'a type of device, in capitals'),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to look for, and as what to give it out."""

    vendor_id: str = '*'
    product_id: str = '*'
    class_id: str = ''
    address: str = '*:*:*.*'
    resource_class: str = 'CUSTOM_PCI'
    type: str = 'PCI'
    traits: tuple[str, ...] = ()

    def matches(self, function: sysfs.Function) -> bool:
        if not fnmatch.fnmatchcase(function.bdf, self.address):
            return False
        vendor, product = function.ids
        return (
            self.vendor_id in ('*', vendor)
            and self.product_id in ('*', product)
            and function.pci_class.startswith(self.class_id)
        )


def parse(text: str, place: str) -> Spec:
    """The device spec that the text holds.

    :raises ValueError: naming the place and the key, when it holds none.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place}: not JSON: {error}') from error
    if not isinstance(data, dict):
        raise ValueError(f'{place}: expected a JSON object')
    if not data.keys() & {'vendor_id', 'product_id', 'class_id', 'address'}:
        raise ValueError(f'{place}: expected vendor_id, product_id, class_id or address')
    values = {key: _value(key, value, f'{place}.{key}') for key, value in data.items()}
    return Spec(**values)


def _value(key: str, value: typing.Any, place: str) -> typing.Any:
    if key == 'traits':
        if not isinstance(value, list) or not all(contract.is_trait(name) for name in value):
            raise ValueError(f'{place}: expected a list of traits, not {value!r:.80}')
        return tuple(value)
    if key not in KEYS:
        raise ValueError(f'{place}: not known; expected {", ".join([*KEYS, "traits"])}')
    pattern, words = KEYS[key]
    if key in ('vendor_id', 'product_id', 'class_id', 'address') and isinstance(value, str):
        value = value.lower().removeprefix('0x')
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f'{place}: expected {words}, not {value!r:.80}')
    return _glob(value) if key == 'address' else value


def _glob(address: str) -> str:
    """An address as a whole pattern: what is left out may be anything."""
    place, _, function = address.partition('.')
    fields = [field or '*' for field in place.split(':')]
    return ':'.join(['*'] * (3 - len(fields)) + fields) + f'.{function or "*"}'


class _Cards(pci.PciDriver):
    """The cards of one spec."""

    name = 'pci'

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts, spec: Spec) -> None:
        super().__init__(host, conf)
        self.spec = spec
        self.type = spec.type
        self.resource_class = spec.resource_class

    def is_card(self, function: sysfs.Function) -> bool:
        return all(function.ids) and (
            self.spec.matches(function) or any(map(self.spec.matches, function.virtual_functions))
        )

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        functions = super().functions(card)
        # A spec may name some of the virtual functions only.
        whole = self.spec.matches(card)
        return [f for f in functions if whole or self.spec.matches(f)]

    def model(self, card: sysfs.Function) -> str:
        return f'PCI {":".join(card.ids)}'

    def traits(self, card: sysfs.Function) -> collections.abc.Iterable[str | None]:
        return self.spec.traits


class PciDevices(driver.Driver):
    """Finds nothing unless it is told what to look for."""

    name = 'pci'

    def discover(self) -> list[driver.Device]:
        found: dict[str, driver.Device] = {}
        for number, text in enumerate(self.conf.pci.device_spec or ()):
            spec = parse(text, f'[pci] device_spec[{number}]')
            for device in _Cards(self.host, self.conf, spec).discover():
                found.setdefault(device.address, device)
        return list(found.values())

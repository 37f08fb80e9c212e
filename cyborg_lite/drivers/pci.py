# SPDX-License-Identifier: Apache-2.0
"""Any PCI card that the operator names in ``[pci] device_spec``, as Nova's option of that name.

Each value is a JSON object, and matches a function with all of its values::

    {"vendor_id": "8086", "product_id": "0b25", "class_id": "0880", "address": "*:3b:00.*",
     "resource_class": "CUSTOM_DSA", "traits": ["CUSTOM_DSA_V1"], "type": "PCI",
     "model": "Data Streaming Accelerator"}

``class_id`` is a prefix of the PCI class.  A resource class that is not a standard one is
normalised as in Nova.  A card whose physical function matches is allocated by its virtual
functions if it has any.  If several specs match a card, the first is used.  An invalid spec does
not affect others.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import fnmatch
import json
import re
import typing

import os_resource_classes
from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import contract
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

#: The pattern of each text key, and its description for errors.
KEYS = {
    'vendor_id': (r'[0-9a-f]{4}|\*', 'four hexadecimal digits, or *'),
    'product_id': (r'[0-9a-f]{4}|\*', 'four hexadecimal digits, or *'),
    'class_id': (r'[0-9a-f]{2,6}', 'two to six hexadecimal digits'),
    'address': (r'([0-9a-f*?]*:){0,2}[0-9a-f*?]*(\.[0-7*?]?)?', '[[domain:]bus:]device[.function]'),
    'resource_class': (r'.*[A-Za-z0-9].*', 'a resource class, or a name for a custom one'),
    'type': (r'[A-Z]{1,32}', 'a type of device, in capitals'),
    'model': (r'\S.{0,254}', 'up to 255 printable characters'),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which functions to find, and how to report them."""

    vendor_id: str = '*'
    product_id: str = '*'
    class_id: str = ''
    address: str = '*:*:*.*'
    resource_class: str = 'CUSTOM_PCI'
    type: str = 'PCI'
    traits: tuple[str, ...] = ()
    model: str = ''

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
    """Parse a device spec.

    :raises ValueError: when it is invalid; the error names the place and the key.
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
    return FORMS[key](value, place) if key in FORMS else value


def _glob(address: str, place: str) -> str:
    """An address as a complete pattern: absent parts match anything, and zeros may be left out."""
    slot, _, function = address.partition('.')
    fields = [field or '*' for field in slot.split(':')]
    fields = ['*'] * (3 - len(fields)) + fields
    widths = zip(fields, (4, 2, 2), strict=True)
    full = [f if '*' in f or '?' in f else f.zfill(width) for f, width in widths]
    return f'{":".join(full)}.{function or "*"}'


def _resource_class(name: str, place: str) -> str:
    """The class of a name, in any case; a name that is not standard becomes a custom class.

    Source: Nova, ``[pci] device_spec``: upper case, anything else than A-Z, 0-9 and _ becomes _,
    and CUSTOM_ is put before it unless it is there.
    """
    normal = re.sub('[^A-Z0-9_]+', '_', name.upper())
    if normal in os_resource_classes.STANDARDS:
        return normal
    custom = normal if normal.startswith('CUSTOM_') else f'CUSTOM_{normal}'
    if not contract.RESOURCE_CLASS.fullmatch(custom):
        raise ValueError(f'{place}: expected at most 255 characters, not {name!r:.80}')
    return custom


def _model(text: str, place: str) -> str:
    if not text.isprintable():
        raise ValueError(f'{place}: expected printable characters, not {text!r:.80}')
    return text


#: The conversions of some keys.
FORMS = {'address': _glob, 'resource_class': _resource_class, 'model': _model}


class _Cards(pci.PciDriver):
    """The cards of one spec."""

    name = 'pci'

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts, spec: Spec) -> None:
        super().__init__(host, conf)
        self.spec = spec
        self.type = spec.type
        self.resource_class = spec.resource_class

    def is_card(self, function: sysfs.Function) -> bool:
        own = self.spec.matches(function)
        return own or any(map(self.spec.matches, function.virtual_functions))

    def functions(self, card: sysfs.Function) -> list[sysfs.Function]:
        functions = super().functions(card)
        # A spec may match only some of the virtual functions.
        whole = self.spec.matches(card)
        return [f for f in functions if whole or self.spec.matches(f)]

    def model(self, card: sysfs.Function) -> str:
        return self.spec.model or super().model(card)

    def traits(self, card: sysfs.Function) -> collections.abc.Iterable[str | None]:
        return self.spec.traits


class PciDevices(driver.Driver):
    """Finds only the devices that the options describe."""

    name = 'pci'

    def discover(self) -> list[driver.Device]:
        found: dict[str, driver.Device] = {}
        for number, text in enumerate(self.conf.pci.device_spec or ()):
            try:
                spec = parse(text, f'[pci] device_spec[{number}]')
            except ValueError as error:
                # The meaning of the spec is unknown: devices that it found before are not missing.
                self.note(str(error), complete=False)
                continue
            for device in _Cards(self.host, self.conf, spec).discover():
                found.setdefault(device.address, device)
        return [found[address] for address in sorted(found)]

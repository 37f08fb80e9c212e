# SPDX-License-Identifier: Apache-2.0
"""The needs of workloads that use the cards of a driver: a TOML file beside the driver.

The file is named after the driver: ``acme_npu.toml``, in the directory of the module that the
entry point ``acme_npu`` names.  All keys are optional::

    resource = 'npu'                       # the name of the resource for Spark
    ray = 'NPU'                            # and for Ray, if Ray has one of its own
    variable = 'ACME_VISIBLE_DEVICES'      # names the devices that a process is to use
    shared = ['/dev/acme_manager']         # nodes that every process needs
    use = 'open'                           # a process that has a first node open uses the device;
                                           # 'listed': only if the driver's processes() has it
    mounts = ['/usr/lib/acme']             # files of the host that a container needs

    [env]                                  # further variables of each workload
    [container]                            # and of containers alone

    [forms.whole]                          # for each form in which a card is given out to processes
    each = 'chips'                         # the id that lists the devices of a card with several
    name = '{index}'                       # the name of a device in the variable
    nodes = ['/dev/acme{index}']           # the nodes of a device

Ids of the accelerator are in braces: ``{phy_id|logic_id}`` is the first of these that is known.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import tomllib
import typing

#: The group of the entry points of drivers.
DRIVERS = 'cyborg_lite.drivers'
#: The directory of the drivers of this package.
OURS = pathlib.Path(__file__).parent.parent / 'drivers'
#: The maximum size of a file, in bytes.
SIZE = 65536

DRIVER = re.compile('[A-Za-z0-9][A-Za-z0-9_-]{0,99}')
WORD = re.compile('[A-Za-z][A-Za-z0-9_]{0,62}')
VARIABLE = re.compile('[A-Z][A-Z0-9_]{0,62}')
VALUE = re.compile('[A-Za-z0-9_.:/-]{0,255}')
#: An absolute path.  No part of it begins with a dot, and no character has a meaning in an option
#: of a command.
PATH = re.compile('(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}){1,16}')
SHARED = re.compile('/dev' + PATH.pattern)
#: The path of a node, with ids in it, which are numbers.
_ID = r'\{[a-z_|]{1,64}\}'
NODE = re.compile(rf'/dev(?:/(?:[A-Za-z0-9_]|{_ID})(?:[A-Za-z0-9_.-]|{_ID}){{0,63}}){{1,8}}')
NAME = re.compile(_ID)
USE = re.compile('open|listed')

Needs = dict[str, typing.Any]


def of_driver(name: str) -> Needs | None:
    """The needs of the cards of a driver; None if its package has no file.

    :raises ValueError: when the file is invalid; the error names the file and the key.
    """
    return _read(name) if DRIVER.fullmatch(name) else None


@functools.lru_cache(256)
def _read(name: str) -> Needs | None:
    place = _place(name)
    if place is None or not place.is_file():
        return None
    with place.open('rb') as file:
        content = file.read(SIZE + 1)
    if len(content) > SIZE:
        raise ValueError(f'{place.name}: expected at most {SIZE} bytes')
    try:
        data = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place.name}: not TOML: {error}') from None
    return parse(data, place.name)


def _place(name: str) -> pathlib.Path | None:
    """The path of a driver's file; None if no driver of that name is installed."""
    # Our own drivers are found without loading the entry points of all packages.
    ours = OURS / f'{name}.toml'
    if ours.is_file():
        return ours
    # Entry points take long to load, and only drivers of other packages need them.
    from importlib import metadata
    from importlib import util

    for point in metadata.entry_points(group=DRIVERS, name=name):
        found = None
        # Another package may be broken in any way.
        with contextlib.suppress(Exception):
            found = util.find_spec(point.module)
        if found and found.origin:
            return pathlib.Path(found.origin).with_name(f'{name}.toml')
    return None


def parse(data: dict[str, typing.Any], place: str) -> Needs:
    """The needs in a file, with defaults.

    :raises ValueError: when the data are invalid; the error names the key.
    """
    found = _fields(data, FIELDS, place)
    return found | {
        'forms': {
            str(name): _fields(_table(form, f'{place}: forms.{name}'), FORM, f'{place}: {name}')
            for name, form in _table(data.get('forms', {}), f'{place}: forms').items()
        }
    }


def _fields(data: dict[str, typing.Any], fields: dict[str, Field], place: str) -> Needs:
    if unknown := sorted(data.keys() - fields.keys() - {'forms'}):
        raise ValueError(f'{place}: {unknown[0]}: not known; expected {", ".join(fields)}')
    return {
        name: field.check(data[name], f'{place}: {name}') if name in data else field.default()
        for name, field in fields.items()
    }


class Field(typing.NamedTuple):
    """A key of a file: one text, a list of texts, or a table of them."""

    pattern: re.Pattern[str]
    #: the default; None for a text
    default: typing.Callable[[], typing.Any] = lambda: None

    def check(self, value: typing.Any, place: str) -> typing.Any:
        if self.default is dict:
            pairs = _table(value, place).items()
            return {_text(k, VARIABLE, place): _text(v, self.pattern, place) for k, v in pairs}
        if self.default is list:
            if not isinstance(value, list):
                raise ValueError(f'{place}: expected a list of texts')
            return [_text(each, self.pattern, place) for each in value]
        return _text(value, self.pattern, place)


def _text(value: typing.Any, pattern: re.Pattern[str], place: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f'{place}: expected a text like {pattern.pattern}, not {value!r:.80}')
    return value


def _table(value: typing.Any, place: str) -> dict[str, typing.Any]:
    if not isinstance(value, dict):
        raise ValueError(f'{place}: expected a table')
    return value


FIELDS = {
    'resource': Field(WORD),
    'ray': Field(WORD),
    'variable': Field(VARIABLE),
    'shared': Field(SHARED, list),
    'use': Field(USE),
    'mounts': Field(PATH, list),
    'env': Field(VALUE, dict),
    'container': Field(VALUE, dict),
}
FORM = {'each': Field(WORD), 'name': Field(NAME), 'nodes': Field(NODE, list)}

#: What a process or a container needs to use a function that is bound to vfio-pci, by a driver of
#: its own: the nodes are those of the kernel, whoever made the card.
#: Source: Linux, Documentation/driver-api/vfio.rst; for the second form "VFIO Device cdev".
VFIO = parse(
    {
        'shared': ['/dev/vfio/vfio', '/dev/iommu'],
        'forms': {
            'group': {'nodes': ['/dev/vfio/{vfio_group}']},
            'device': {'nodes': ['/dev/vfio/{vfio_group}', '/dev/vfio/devices/vfio{vfio_device}']},
        },
    },
    'vfio',
)

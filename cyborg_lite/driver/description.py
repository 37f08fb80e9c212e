# SPDX-License-Identifier: Apache-2.0
"""Host descriptions: a short YAML text becomes a tree like sysfs.

::

    name: example                   # of the host; by default that of the file
    functions:                      # each entry: functions of one kind
    - id: 8086:37c8                 # vendor and device
      class: 0b4000
      revision: 04                  # optional, as are all below but "at"
      subsystem: 8086:35cf
      driver: c6xx                  # the kernel driver that is bound
      at:                           # addresses by NUMA node; node -1 is none
        0: [0000:3d:00.0, 0000:3f:00.0]
      virtual: {id: 8086:37c9, total: 16, enabled: 16, offset: 8, stride: 1,
                iommu_group: 90,    # of the first one: each next one has the next
                files: {0: {nvidia/current_vgpu_type: 1428}}}   # of each, counted from 0
      iommu_group: 17               # of them all
      health: critical acme_fan     # what their driver reports, with a reason if it is not ok
      # Further attributes of sysfs.
      files: {boot_vga: 1, mdev_supported_types/nvidia-36/devices/0: ''}
    dev: [davinci0, davinci1]       # names in /dev
    tools:                          # what vendor tools print: tool, arguments, text
      npu-smi: {info: '...', info -m: '...'}
    files:                          # whatever else drivers read, by path
      sys/class/kfd/kfd/topology/nodes/1/properties: '...'

Every scalar is text: in YAML 1.1 the address 0000:01:00.0 would be a number.
Anchors and aliases are refused.
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import re
import typing

import yaml

from cyborg_lite.driver import sysfs

Data = dict[str, typing.Any]

#: The maximum size of a description, in characters.
LIMIT = 1 << 20
#: The maximum number of files, directories and links of a description.
FILES = 20_000
#: The maximum size of these files together, in characters.
SIZE = 1 << 24
#: The maximum number of files and links of each function beside the named files.
COMMON = 13


class Text(typing.NamedTuple):
    """A text: its pattern, and the description of it for errors."""

    pattern: str
    words: str


class Each(typing.NamedTuple):
    """A mapping of any keys of one form to values of one form."""

    key: Text
    value: typing.Any


#: The directory of a described host that has the health of its functions.
HEALTH = pathlib.PurePath('health')

ID = Text(r'[0-9a-f]{4}:[0-9a-f]{4}', 'vendor and device id, four hexadecimal digits each')
COUNT = Text(r'[0-9]{1,3}', 'a number below 1000')
WORD = Text(r'(?a)\w[\w.+-]{0,63}', 'a name')
PATH = Text(
    r'(?a)\w[\w.+-]{0,99}(/\w[\w.+-]{0,99}){0,9}',
    'a path without .. in it, of up to 10 names of up to 100 characters',
)
FILE = Text(
    r'(?a)(?:sys|proc|etc|run|usr|opt)(/(?!\.\.?(?:/|\Z))[\w.][\w.+:-]{0,99}){1,12}',
    'a path below sys, proc, etc, run, usr or opt without .. in it, of up to 12 more names',
)
TEXT = Text('[^\ud800-\udfff]*', 'a text')
ARGUMENTS = Text(r'[ -~]{1,200}', 'arguments of up to 200 ASCII characters')

#: The form of each place: a dict is a mapping with these keys; keys with ! are required.
FUNCTION = {
    'id!': ID,
    'class!': Text(r'[0-9a-f]{6}', 'six hexadecimal digits'),
    'at!': Each(
        Text(r'-1|[0-9]{1,4}', 'a NUMA node, or -1'),
        [Text(sysfs.BDF.pattern, 'a PCI address, DDDD:BB:DD.F')],
    ),
    'revision': Text(r'[0-9a-f]{2}', 'two hexadecimal digits'),
    'subsystem': ID,
    'driver': WORD,
    'iommu_group': COUNT,
    'health': Text(
        '(ok|warning|critical|unknown)( [a-z0-9]+(_[a-z0-9]+)*)?',
        'ok, warning, critical or unknown, and perhaps a reason of a-z, 0-9 and _',
    ),
    'files': Each(PATH, TEXT),
    'virtual': {
        'id!': ID,
        'total!': COUNT,
        'enabled': COUNT,
        'offset': COUNT,
        'stride': COUNT,
        'iommu_group': COUNT,
        'files': Each(COUNT, Each(PATH, TEXT)),
    },
}
DESCRIPTION = {
    'name': Text(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,62}', 'a host name'),
    'functions': [FUNCTION],
    'dev': [PATH],
    'tools': Each(WORD, Each(ARGUMENTS, TEXT)),
    'files': Each(FILE, TEXT),
}


class HostError(ValueError):
    """A host cannot be written to disk: the message names the expectation and the place."""


class _Loader(yaml.BaseLoader):
    """Makes texts, lists and mappings, and refuses aliases.

    A few lines of nested aliases can expand to billions of values.
    """

    def compose_node(self, parent: yaml.Node | None, index: typing.Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor is not None:
            line = event.start_mark.line + 1
            raise HostError(f'line {line}: expected no anchors and no aliases (not YAML in full)')
        return super().compose_node(parent, index)


def load(path: pathlib.Path) -> Data:
    """Read and check the description in a file.

    :raises HostError: when it is unreadable or invalid; the error names the file and the place.
    """
    try:
        with path.open(encoding='utf-8') as file:
            text = file.read(LIMIT + 1)
            _expect(len(text) <= LIMIT, '', f'at most {LIMIT} characters')
            return parse(text)
    except (OSError, ValueError) as error:
        raise HostError(f'{path}: {error}') from error


def parse(text: str) -> Data:
    """Parse and check a description.

    :raises HostError: when it is invalid; the error names the place.
    """
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 # nosec B506
    except (yaml.YAMLError, RecursionError) as error:
        raise HostError(f'not YAML: {error}') from error
    _check(data, DESCRIPTION, '')
    _check_size(data)
    return typing.cast('Data', data)


def _check(value: typing.Any, form: typing.Any, place: str) -> None:
    if isinstance(form, Text):
        sound = isinstance(value, str) and re.fullmatch(form.pattern, value)
        _expect(sound, place, f'{form.words}, not {str(value)[:64]!r}')
    elif isinstance(form, list):
        _expect(isinstance(value, list), place, 'a list')
        for number, item in enumerate(value):
            _check(item, form[0], f'{place}[{number}]')
    else:
        _expect(isinstance(value, dict), place, 'a mapping')
        _check_mapping(value, form, place)


def _check_mapping(value: Data, form: typing.Any, place: str) -> None:
    forms = {} if isinstance(form, Each) else {key.rstrip('!'): form[key] for key in form}
    for key in forms.keys() - value.keys():
        _expect(f'{key}!' not in form, f'{place}.{key}', 'a value')
    for key, item in value.items():
        inner = f'{place}.{str(key)[:64]}'
        if isinstance(form, Each):
            _check(key, form.key, inner)
        else:
            _expect(key in forms, inner, f'one of {", ".join(forms)}')
        _check(item, forms.get(key, getattr(form, 'value', None)), inner)


def _check_size(data: Data) -> None:
    """Refuse a tree that is too large: a few lines can describe many virtual functions."""
    files = size = 0
    for number, function in enumerate(data.get('functions', [])):
        cards = sum(map(len, function['at'].values()))
        virtual = function.get('virtual', {})
        enabled = int(virtual.get('enabled', 0))
        named = [function.get('files', {}), *virtual.get('files', {}).values()]
        levels = sum(name.count('/') + 1 for each in named for name in each)
        files += cards * (COMMON * (1 + enabled) + levels)
        size += cards * sum(len(text) for each in named for text in each.values())
        place = f'functions[{number}].{"virtual.enabled" if enabled else "at"}'
        _expect(files <= FILES, place, f'at most {FILES} files of all functions together')
        _expect(size <= SIZE, place, f'at most {SIZE} characters in all files together')
    files = sum(name.count('/') + 1 for name in data.get('dev', []))
    _expect(files <= FILES, 'dev', f'at most {FILES} files')
    files = sum(1 + len(outputs) for outputs in data.get('tools', {}).values())
    _expect(files <= FILES, 'tools', f'at most {FILES} files')
    files = sum(name.count('/') + 1 for name in data.get('files', {}))
    _expect(files <= FILES, 'files', f'at most {FILES} files')


def _expect(sound: object, place: str, words: str) -> None:
    if not sound:
        raise HostError(f'{place.lstrip(".") or "the description"}: expected {words}')


def output(tool: str, args: collections.abc.Iterable[str]) -> pathlib.PurePath:
    """The path of a tool's output in a recorded host."""
    name = '_'.join(args).replace('/', '_') or 'default'
    return pathlib.PurePath('tools', tool, f'{name}.txt')


def write(data: Data, root: pathlib.Path) -> None:
    """Write the tree of a described host into an empty directory.

    :raises HostError: when two functions have one address, or two files one path.
    """
    (root / sysfs.DEVICES).mkdir(parents=True)  # also if there are no functions
    for number, function in enumerate(data.get('functions', [])):
        add(function, root, f'functions[{number}]')
    for number, name in enumerate(data.get('dev', [])):
        with _naming(f'dev[{number}]'):
            _write(root / 'dev' / name, '')
    for tool, outputs in data.get('tools', {}).items():
        for command, text in outputs.items():
            with _naming(f'tools.{tool}.{command}'):
                _write(root / output(tool, command.split()), text)
    for name, text in data.get('files', {}).items():
        with _naming(f'files.{name}'):
            _write(root / name, text)


def add(function: Data, root: pathlib.Path, field: str = 'function') -> None:
    """Add functions of one kind to the tree of a host.

    :param function: in the form of an entry of ``functions``
    :param field: its name in errors
    """
    (root / sysfs.DEVICES).mkdir(parents=True, exist_ok=True)
    for node, addresses in function['at'].items():
        for bdf in addresses:
            _write_card(root, bdf, node, function, field)


@contextlib.contextmanager
def _naming(field: str) -> collections.abc.Iterator[None]:
    """Add the field to errors of writing: another file is at its path."""
    try:
        yield
    except OSError as error:
        raise HostError(f'{field}: cannot be laid out: {error.strerror}') from error


def _write_card(root: pathlib.Path, bdf: str, node: str, data: Data, field: str) -> None:
    """One physical function, and the virtual ones that are enabled on it."""
    home = pathlib.PurePath(f'devices/pci{bdf[:-5]}')
    card = _write_function(root, home / bdf, node, data, field)
    if 'health' in data:
        _write(root / HEALTH / bdf, data['health'])
    virtual = data.get('virtual')
    if virtual:
        with _naming(f'{field}.virtual'):
            _write_virtual(root, card, node, data)


def _write_virtual(root: pathlib.Path, card: pathlib.Path, node: str, data: Data) -> None:
    bdf, virtual = card.name, data['virtual']
    enabled = virtual.get('enabled', '0')
    offset, stride = virtual.get('offset', '1'), virtual.get('stride', '1')
    _write(card / 'sriov_totalvfs', virtual['total'])
    _write(card / 'sriov_numvfs', enabled)
    _write(card / 'sriov_offset', offset)
    _write(card / 'sriov_stride', stride)
    _write(card / 'sriov_vf_device', virtual['id'].partition(':')[2])
    for number in range(int(enabled)):
        name = _address(bdf, _routing_id(bdf) + int(offset) + number * int(stride))
        alike = {'id': virtual['id'], 'class': data['class']}
        alike['files'] = virtual.get('files', {}).get(str(number), {})
        if 'iommu_group' in virtual:
            alike['iommu_group'] = str(int(virtual['iommu_group']) + number)
        # In the directory of the physical function, even if it is on the next bus.
        place = pathlib.PurePath('devices', card.parent.name, name)
        function = _write_function(root, place, node, alike, f'virtual function {number} of {bdf}')
        (function / 'physfn').symlink_to(f'../{bdf}')
        (card / f'virtfn{number}').symlink_to(f'../{name}')


def _routing_id(bdf: str) -> int:
    part = sysfs.address(bdf)
    return int(part['bus'], 16) << 8 | int(part['device'], 16) << 3 | int(part['function'])


def _address(bdf: str, routing_id: int) -> str:
    """The address of a routing id in the domain of another address; source: PCI Express."""
    if routing_id > 0xFFFF:
        raise HostError(f'{bdf}: its virtual functions run past the last bus')
    bus, rest = divmod(routing_id, 256)
    return f'{bdf.partition(":")[0]}:{bus:02x}:{rest >> 3:02x}.{rest & 7}'


def _write_function(
    root: pathlib.Path, place: pathlib.PurePath, node: str, data: Data, field: str
) -> pathlib.Path:
    path = root / 'sys' / place
    listed = root / sysfs.DEVICES / place.name
    if listed.is_symlink():
        raise HostError(f'{place.name}: there are two functions at this address')
    listed.symlink_to(pathlib.PurePath('../../..') / place)
    vendor, device = data['id'].split(':')
    files = {'vendor': f'0x{vendor}', 'device': f'0x{device}', 'class': f'0x{data["class"]}'}
    files |= {'numa_node': node, 'revision': f'0x{data.get("revision", "00")}'}
    if 'subsystem' in data:
        vendor, device = data['subsystem'].split(':')
        files |= {'subsystem_vendor': f'0x{vendor}', 'subsystem_device': f'0x{device}'}
    for name, text in (files | data.get('files', {})).items():
        with _naming(f'{field}.files.{name}'):
            _write(path / name, text)
    if 'driver' in data:
        with _naming(f'{field}.driver'):
            (path / 'driver').symlink_to(f'../../../bus/pci/drivers/{data["driver"]}')
    if 'iommu_group' in data:
        group = int(data['iommu_group'])
        with _naming(f'{field}.iommu_group'):
            (path / 'iommu_group').symlink_to(f'../../../kernel/iommu_groups/{group}')
    return path


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text}\n' if text else '', encoding='utf-8')

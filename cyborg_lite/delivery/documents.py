# SPDX-License-Identifier: Apache-2.0
"""The document of an allocation and a host: the devices, and what a workload needs to use them."""

from __future__ import annotations

import collections.abc
import itertools
import re
import typing

from cyborg_lite.delivery import needs

Document = dict[str, typing.Any]
Accelerator = dict[str, typing.Any]
Device = dict[str, typing.Any]

UUID = re.compile('[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')
#: The form of ids in the name of a device: numbers, UUIDs such as GPU-... and MIG-..., and the
#: older form MIG-GPU-.../1/0.  Ids come from hardware and go into command lines: all else is
#: refused.
NAME = re.compile('[0-9A-Za-z](?:[0-9A-Za-z-]{0,62}[0-9A-Za-z])?(?:/[0-9]{1,2}){0,2}')
#: The form of ids in the path of a node.
NUMBER = re.compile('[0-9]{1,7}')
#: The placeholder of an id in a template.
PLACE = re.compile(r'\{([a-z_|]{1,64})\}')
#: The fields of an accelerator in the document, as far as the allocation has them.
FACTS = ('uuid', 'type', 'model', 'address', 'numa_node', 'driver', 'form', 'ids')


def document(
    allocation: str, host: str, accelerators: collections.abc.Iterable[Accelerator]
) -> Document:
    """The document of one host of an allocation.

    The devices of a driver are sorted by their nodes.  So they have the same numbers in a process,
    which gets the names in this order, and in a container, which numbers the nodes.

    :param accelerators: the accelerators that the allocation holds, as it has stored them.
    :raises ValueError: when the allocation is no UUID.
    """
    if not UUID.fullmatch(allocation):
        raise ValueError(f'allocation: expected a UUID, not {allocation!r:.80}')
    found = [_accelerator(each) for each in accelerators if each['host'] == host]
    order = {driver: number for number, driver in enumerate(_drivers(found))}
    found.sort(key=lambda each: (order[each['driver']], _place(each)))
    numbers: dict[str | None, collections.abc.Iterator[int]]
    numbers = {driver: itertools.count() for driver in order}
    for each in found:
        for device in each['devices']:
            device['ordinal'] = next(numbers[each['driver']])
    known = {driver: _needs(driver)[0] for driver in order if driver}
    if any(_vfio(each['ids']) for each in found):
        known['vfio'] = needs.VFIO
    return {
        'allocation': allocation,
        'host': host,
        'accelerators': found,
        'drivers': {driver: told for driver, told in known.items() if told},
    }


def present(document: Document, exists: collections.abc.Callable[[str], bool]) -> Document:
    """The document without the shared nodes and the mounts that its host does not have.

    :param exists: whether the host has a path.
    """
    drivers = {
        name: told | {key: [each for each in told[key] if exists(each)] for key in OPTIONAL}
        for name, told in document['drivers'].items()
    }
    return document | {'drivers': drivers}


class Nodes(typing.NamedTuple):
    """The device nodes of an accelerator."""

    own: list[str] = []
    #: the nodes that other accelerators share with it
    shared: list[str] = []
    #: of its own the nodes that a process has open which uses the accelerator
    used: list[str] = []
    #: whether other processes have them open, too: then the driver lists those that use it
    listed: bool = False


def nodes(noted: Accelerator) -> Nodes:
    """The device nodes of an accelerator.

    Also nodes of devices that no variable can name.

    :param noted: the accelerator as an allocation stores it: driver, form and ids matter.
    """
    driver = noted.get('driver')
    told = _needs(driver)[0] if isinstance(driver, str) else None
    form = _form(noted, told) or {'each': None, 'nodes': []}
    found = [_nodes(form['nodes'], ids, []) for ids in _each(noted.get('ids'), form['each'])]
    own = [node for each in found for node in each]
    all_needs = [told, needs.VFIO if _vfio(noted.get('ids')) else None]
    shared = [node for each in all_needs if each for node in each['shared']]
    use = told['use'] if told else None
    used = [node for each in found for node in each[:1]] if use else []
    return Nodes(own, shared, used, use == 'listed')


def resources(drivers: collections.abc.Iterable[str]) -> list[str]:
    """The names of the resources of these drivers, where the drivers declare them."""
    told = [_needs(driver)[0] for driver in drivers]
    return sorted({each['resource'] for each in told if each and each['resource']})


#: Needs that a host may lack: another release of the vendor's software may have others.
OPTIONAL = ('shared', 'mounts')


def _drivers(found: list[Accelerator]) -> dict[str | None, None]:
    return dict.fromkeys(each['driver'] for each in found)


def _place(each: Accelerator) -> tuple[list[int], str]:
    """The sort key of accelerators of one driver: the number of the node, then the address."""
    nodes = [node for device in each['devices'] for node in device['nodes'][:1]]
    numbers = [int(number) for node in nodes[:1] for number in re.findall('[0-9]+', node)]
    return numbers, str(each['address'])


def _accelerator(noted: Accelerator) -> Accelerator:
    shown: Accelerator = {name: noted.get(name) for name in FACTS}
    devices: list[Device] = []
    reason: str | None
    if not isinstance(shown['driver'], str):
        shown['driver'] = None
        reason = 'an older release allocated it and did not note its driver: allocate it again'
    else:
        told, reason = _needs(shown['driver'])
        if form := _form(shown, told):
            devices, reason = _devices(shown['ids'], form)
        elif told:
            reason = f'its form is {shown["form"]}, which is for guests'
    return shown | {'devices': devices, 'reason': reason}


def _needs(driver: str) -> tuple[needs.Needs | None, str | None]:
    """The needs of the cards of a driver; or None, and why they are unknown."""
    try:
        told = needs.of_driver(driver)
    except ValueError as error:
        return None, f'the data of its driver cannot be used: {error}'
    # A name that is none names no file.
    file = f'{driver}.toml' if needs.DRIVER.fullmatch(driver) else 'a file'
    return told, None if told else (
        f'{file} beside its driver, which is to tell how processes use it, is missing: see "How '
        'processes use the cards" in the guide for drivers'
    )


def _vfio(ids: typing.Any) -> dict[str, typing.Any]:
    """The ids of a function that VFIO is bound to, so that no other driver has nodes for it."""
    return ids if isinstance(ids, dict) and ids.get('vfio_group') is not None else {}


def _form(noted: Accelerator, told: needs.Needs | None) -> needs.Needs | None:
    """The needs of an accelerator's form; None if it is not for processes, or they are unknown."""
    name = noted.get('form')
    if ids := _vfio(noted.get('ids')):
        told, name = needs.VFIO, 'group' if ids.get('vfio_device') is None else 'device'
    return told['forms'].get(name) if told else None


def _devices(listed: typing.Any, form: needs.Needs) -> tuple[list[Device], str | None]:
    """The devices of an accelerator; and which of their ids are unknown, as a text.

    A device without a name is left out if the driver names devices.
    """
    missing: list[str] = []
    devices: list[Device] = []
    for ids in _each(listed, form['each']):
        name = _fill(form['name'], ids, NAME, missing) if form['name'] else None
        nodes = _nodes(form['nodes'], ids, missing)
        if name or not form['name']:
            devices.append({'name': name, 'nodes': nodes})
    reason = f'its ids have no usable {", no ".join(dict.fromkeys(missing))}' if missing else None
    return devices, reason


def _each(ids: typing.Any, list_: str | None) -> list[dict[str, typing.Any]]:
    """The ids of each device of an accelerator."""
    ids = ids if isinstance(ids, dict) else {}
    parts = ids.get(list_) if list_ else None
    if not isinstance(parts, list) or not parts:
        return [ids]
    return [ids | each for each in parts if isinstance(each, dict)]


def _nodes(templates: list[str], ids: dict[str, typing.Any], missing: list[str]) -> list[str]:
    """All nodes of a device, or none: a device does not work with some of them."""
    nodes = [_fill(template, ids, NUMBER, missing) for template in templates]
    return [node for node in nodes if node] if all(nodes) else []


def _fill(
    template: str, ids: dict[str, typing.Any], pattern: re.Pattern[str], missing: list[str]
) -> str | None:
    """The template filled with ids; None if an id is unknown, or does not fit the pattern."""
    values = {}
    for names in PLACE.findall(template):
        value = next((ids[name] for name in names.split('|') if ids.get(name) is not None), None)
        text = str(value) if type(value) in (int, str) else ''
        if not pattern.fullmatch(text):
            missing.append(' or '.join(sorted(names.split('|'))))
            return None
        values[names] = text
    return PLACE.sub(lambda match: values[match[1]], template)

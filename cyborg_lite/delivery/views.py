# SPDX-License-Identifier: Apache-2.0
"""The views of a document: each kind of workload has one.

A view is a pure function of the document.  An unknown value is left out, and ``problems`` names
it.
"""

from __future__ import annotations

import collections.abc
import json
import typing

from cyborg_lite.delivery.documents import Document

View = dict[str, typing.Any]

#: The kind of our CDI devices, and the version of CDI that it needs: podman 4.3 knows no later
#: one.  Source: the CDI specification, 0.5.0: names may begin with a digit.
KIND, VERSION = 'cyborg-lite.local/allocation', '0.5.0'
#: The options of mounts of host files in a container.
MOUNT = ['ro', 'nosuid', 'nodev', 'bind']


def render(document: Document, view: str) -> View:
    """A view of the document.

    :raises ValueError: when there is no such view; the error names the views.
    """
    if view not in RENDERERS:
        raise ValueError(f'Invalid view {view!r:.64}: expected one of {", ".join(VIEWS)}.')
    return RENDERERS[view](document)


def process(document: Document) -> View:
    """For a process of the host: variables, its device nodes, and the shared nodes."""
    return {
        'env': _env(document, 'env') | _names(document),
        'nodes': _nodes(document),
        'shared': _told(document, 'shared'),
        'unnamed': _unnamed(document),
        'problems': _problems(document),
    }


def container(document: Document) -> View:
    """For a container: a CDI specification with one device, its name, and options without CDI.

    No variable names devices here: the container sees only its own, and numbers them itself.
    """
    env = _env(document, 'env', 'container')
    nodes = _nodes(document) + _told(document, 'shared')
    mounts = _told(document, 'mounts')
    edits: dict[str, list[typing.Any]] = {
        'env': [f'{name}={value}' for name, value in env.items()],
        'deviceNodes': [{'path': node, 'hostPath': node} for node in nodes],
        'mounts': [{'hostPath': path, 'containerPath': path, 'options': MOUNT} for path in mounts],
    }
    return {
        'name': f'{KIND}={document["allocation"]}',
        'cdi': {
            'cdiVersion': VERSION,
            'kind': KIND,
            'devices': [
                {
                    'name': document['allocation'],
                    'containerEdits': {name: each for name, each in edits.items() if each},
                }
            ],
        },
        'arguments': [
            *(f'--device={node}' for node in nodes),
            *(f'--env={each}' for each in edits['env']),
            *(f'--mount=type=bind,source={path},target={path},readonly' for path in mounts),
        ],
        'problems': _problems(document),
    }


def spark(document: Document) -> View:
    """For Spark: resources as discovery scripts print them, and as a worker's file lists them."""
    resources = _resources(document, 'resource')
    return {
        'resources': [
            {'name': name, 'addresses': addresses} for name, addresses in resources.items()
        ],
        'worker_resources': [
            {
                'id': {'componentName': 'spark.worker', 'resourceName': name},
                'addresses': addresses,
            }
            for name, addresses in resources.items()
        ],
        'problems': _problems(document),
    }


def ray(document: Document) -> View:
    """For ``ray start``: variables, and arguments with the numbers of devices."""
    amounts = {name: len(each) for name, each in _resources(document, 'ray').items()}
    # Ray refuses GPU in --resources.
    gpus = amounts.pop('GPU', 0)
    # Without this variable a task without accelerators sees all of them (ray-project/ray#62492).
    env = {'RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO': '1'}
    return {
        'env': _env(document, 'env') | _names(document) | env,
        'arguments': [f'--num-gpus={gpus}', f'--resources={_json(amounts)}'],
        'problems': _problems(document),
    }


def facts(document: Document) -> View:
    """The document itself."""
    return document


RENDERERS: dict[str, collections.abc.Callable[[Document], View]] = {
    'process': process,
    'container': container,
    'spark': spark,
    'ray': ray,
    'json': facts,
}
VIEWS = tuple(RENDERERS)


def _env(document: Document, *tables: str) -> dict[str, str]:
    """The variables of the allocation, and those of the drivers."""
    devices = [
        {
            'id': each['uuid'],
            'ordinal': device.get('ordinal'),
            'name': device.get('name'),
            'type': each['type'],
            'address': each['address'],
        }
        for each in document['accelerators']
        for device in each['devices'] or [{}]
    ]
    found = {'CYBORG_ALLOCATION': document['allocation'], 'CYBORG_DEVICES': _json(devices)}
    for told in document['drivers'].values():
        for table in tables:
            found |= told[table]
    return found


def _names(document: Document) -> dict[str, str]:
    """The variables that name the devices.

    A device without a name is left out.  A variable is not set if none of its devices has a name.
    """
    names: dict[str, list[str]] = {}
    for each, device in _devices(document):
        variable = document['drivers'].get(each['driver'], {}).get('variable')
        if variable and device['name']:
            names.setdefault(variable, []).append(device['name'])
    return {variable: ','.join(each) for variable, each in names.items()}


def _unnamed(document: Document) -> list[str]:
    """The accelerators that their variable should name, and does not: a program might use others in
    their place.
    """
    return [
        each['uuid']
        for each in document['accelerators']
        if document['drivers'].get(each['driver'], {}).get('variable')
        and not any(device['name'] for device in each['devices'])
    ]


def _resources(document: Document, key: str) -> dict[str, list[str]]:
    """The devices by the name of their resource: their names, or else their ids here."""
    found: dict[str, list[str]] = {}
    for each, device in _devices(document):
        if resource := document['drivers'].get(each['driver'], {}).get(key):
            found.setdefault(resource, []).append(device['name'] or each['uuid'])
    return found


def _devices(document: Document) -> collections.abc.Iterator[tuple[View, View]]:
    """Each device, and the accelerator that it belongs to."""
    for each in document['accelerators']:
        for device in each['devices']:
            yield each, device


def _nodes(document: Document) -> list[str]:
    """The nodes of the devices without duplicates: two parts of a card share one."""
    nodes = (node for _, device in _devices(document) for node in device['nodes'])
    return list(dict.fromkeys(nodes))


def _told(document: Document, key: str) -> list[str]:
    """The needs of the drivers under one key."""
    return list(dict.fromkeys(path for told in document['drivers'].values() for path in told[key]))


def _problems(document: Document) -> list[str]:
    return [
        f'Accelerator {each["uuid"]}: {each["reason"]}.'
        for each in document['accelerators']
        if each['reason']
    ]


def _json(value: typing.Any) -> str:
    return json.dumps(value, separators=(',', ':'))

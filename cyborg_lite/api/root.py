# SPDX-License-Identifier: Apache-2.0
"""The tree of URLs, and the documents by which clients discover versions."""

from __future__ import annotations

import typing

import pecan
from pecan import rest as pecan_rest

from cyborg_lite import shims
from cyborg_lite.api import accelerator_requests
from cyborg_lite.api import accelerators
from cyborg_lite.api import allocations
from cyborg_lite.api import attributes
from cyborg_lite.api import deployables
from cyborg_lite.api import device_profiles
from cyborg_lite.api import devices
from cyborg_lite.api import hosts
from cyborg_lite.api import instances
from cyborg_lite.api import openapi
from cyborg_lite.api import quotas
from cyborg_lite.api import rest
from cyborg_lite.api import version


def _document(id: str) -> dict[str, typing.Any]:
    return {
        'id': id,
        'status': 'CURRENT',
        'min_version': version.text(version.MIN),
        'max_version': version.text(version.MAX),
        'links': [{'rel': 'self', 'href': f'{rest.call().root}/v2'}],
    }


class V2(pecan_rest.RestController):
    """/v2"""

    devices = devices.Devices()
    deployables = deployables.Deployables()
    attributes = attributes.Attributes()
    accelerators = accelerators.Accelerators()
    allocations = allocations.Allocations()
    hosts = hosts.Hosts()
    instances = instances.Instances()
    quotas = quotas.Quotas()
    device_profiles = device_profiles.DeviceProfiles()
    accelerator_requests = accelerator_requests.AcceleratorRequests()

    openapi = openapi.Document()

    @rest.expose()
    def get_all(self):
        # Bare, with an id at its top: keystoneauth reads the versions of such a document, and
        # Nova and OpenStackClient ask keystoneauth.
        return _document('v2.0')


class Root(pecan_rest.RestController):
    """/"""

    v2 = V2()

    @rest.expose()
    def get_all(self):
        document = _document('v2')
        return {
            'name': 'OpenStack Cyborg API',
            'description': 'Accelerators as a service, by cyborg_lite: find them, bind them to '
            'workloads.',
            'versions': [document],
            'default_version': document,
        }


def application() -> typing.Any:
    shims.cache_signatures()
    # A host's name may end in .com: what follows a dot is no file type.
    return pecan.make_app(
        Root(), force_canonical=False, debug=False, guess_content_type_from_ext=False
    )

# SPDX-License-Identifier: Apache-2.0
"""The data model: hosts, devices, handles, profiles, requests, allocations, quotas, usage.

Each concept is declared once, in a file of its name.  The kind of a column shows what writes it::

    fact    a driver reports it; a report that differs changes it
    own     the service writes it
    link    it points to another row

``since`` is the API microversion that first shows the field, ``hidden`` keeps it from the
API altogether, ``doc`` is its line in the API reference.  The tables, the report that an
agent sends, its reconciliation, and the API's types, filters and sort keys all follow from
these declarations: a new field is one new entry.

Facts that follow from other rows are not stored: a handle is in use if and only if an accelerator
request links to it, and a deployable has as many accelerators as it has handles.
"""

from cyborg_lite.model.allocation import Allocation
from cyborg_lite.model.arq import ARQ
from cyborg_lite.model.base import Base
from cyborg_lite.model.base import Facts
from cyborg_lite.model.base import Field
from cyborg_lite.model.base import Version
from cyborg_lite.model.call import Call
from cyborg_lite.model.deployable import AttachHandle
from cyborg_lite.model.deployable import Attribute
from cyborg_lite.model.deployable import Deployable
from cyborg_lite.model.device import Device
from cyborg_lite.model.host import Host
from cyborg_lite.model.instance import Instance
from cyborg_lite.model.message import Message
from cyborg_lite.model.profile import DeviceProfile
from cyborg_lite.model.promise import Promise
from cyborg_lite.model.quota import Quota
from cyborg_lite.model.usage import Usage

__all__ = (
    'ARQ',
    'Allocation',
    'AttachHandle',
    'Attribute',
    'Base',
    'Call',
    'Deployable',
    'Device',
    'DeviceProfile',
    'Facts',
    'Field',
    'Host',
    'Instance',
    'Message',
    'Promise',
    'Quota',
    'Usage',
    'Version',
)

# SPDX-License-Identifier: Apache-2.0
"""/v2/devices"""

from __future__ import annotations

import typing

from sqlalchemy import orm
from wsme import types as wtypes

from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.db import query
from cyborg_lite.model import base
from cyborg_lite.model import health as healths

_LEVEL: types.Schema = {'enum': [*healths.LEVELS]}
_REASON: types.Schema = {'type': ['string', 'null']}
_EFFECTS: types.Schema = {'type': 'array', 'items': {'enum': [*model.Device.EFFECTS.values()]}}
_CHANGE: types.Schema = {
    'at': {'type': 'string', 'format': 'date-time'},
    'health': _LEVEL,
    'reason': _REASON,
    'effects': _EFFECTS,
}
_HEALTH: types.Schema = {
    'health': _LEVEL,
    'reason': _REASON,
    'since': {'type': ['string', 'null'], 'format': 'date-time'},
    'fault': _REASON,
    'effects': _EFFECTS,
    'history': {
        'type': 'array',
        'maxItems': model.Device.REMEMBERED,
        'items': {
            'type': 'object',
            'required': [*_CHANGE],
            'additionalProperties': False,
            'properties': _CHANGE,
        },
    },
}
HEALTH: types.Schema = {
    'type': 'object',
    'required': [*_HEALTH],
    'additionalProperties': False,
    'properties': _HEALTH,
}


class Devices(rest.Controller):
    """The accelerators of the hosts."""

    kind, path, what = model.Device, 'devices', 'Device'

    @rest.expose(wtypes.text, wtypes.text, wtypes.text, [types.Filter], paged=True)
    def get_all(self, page, type=None, vendor=None, hostname=None, filters=None):
        rest.call().context.can('cyborg:device:get_all')
        dotted, _ = rest.split_filters(filters, ())
        wanted = {'type': type, 'vendor': vendor, 'hostname': hostname}
        conditions = [getattr(model.Device, k) == v for k, v in wanted.items() if v is not None]
        return self.list(*conditions, page=page | dotted)

    @rest.expose(types.id)
    def get_one(self, uuid):
        rest.call().context.can('cyborg:device:get_one')
        return self.fetch(uuid)

    # Cyborg does not have this method.
    @rest.expose(types.id, shows=HEALTH)
    def health(self, uuid):
        rest.call().context.can('cyborg:device:get_one')
        with rest.call().database.reader() as session:
            options = [orm.lazyload('*'), orm.undefer(model.Device.changes)]
            return _health(query.get(session, self.kind, uuid, what=self.what, options=options))

    @rest.expose(types.id, status=204)
    def delete(self, uuid):
        rest.call().context.can('cyborg:device:delete')
        rest.call().conductor.delete_device(uuid=uuid)

    # openstacksdk accepts any status here, and Tempest 204 only.

    @rest.expose(types.id, status=204)
    def enable(self, uuid):
        rest.call().context.can('cyborg:device:enable')
        self._set_status(uuid, 'enabled')

    @rest.expose(types.id, status=204)
    def disable(self, uuid):
        rest.call().context.can('cyborg:device:disable')
        self._set_status(uuid, 'maintaining')

    def _set_status(self, uuid: str, status: str) -> None:
        with rest.call().database.reader() as session:
            seen = query.get(session, self.kind, uuid, what=self.what).revision
        rest.call().conductor.set_device_status(uuid=uuid, status=status, seen=seen)


def _health(device: model.Device) -> dict[str, typing.Any]:
    """The health of a device, and its recent changes."""
    since = device.health_since
    return {
        'health': device.health,
        'reason': device.health_reason,
        'since': since and base.iso(since),
        'fault': device.fault,
        'effects': device.effects,
        'history': device.changes or [],
    }

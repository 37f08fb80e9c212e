# SPDX-License-Identifier: Apache-2.0
"""/v2/devices"""

from __future__ import annotations

from wsme import types as wtypes

from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.db import query


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

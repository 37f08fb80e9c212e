# SPDX-License-Identifier: Apache-2.0
"""/v2/instances: not of Cyborg, and so the same at every microversion"""

from __future__ import annotations

import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types


class Instances(rest.Controller):
    """Instances by the accelerator requests that they hold."""

    kind, path, id, what = model.ARQ, 'instances', 'instance_uuid', 'Instance'

    @rest.expose(types.uuid, status=204)
    def delete(self, uuid):
        """Free what an instance holds that Nova has lost: no service token is needed."""
        rest.call().context.can('cyborg:instance:free')
        held = sa.select(model.ARQ.uuid, model.ARQ.revision).where(
            model.ARQ.instance_uuid == uuid, model.ARQ.visible(rest.call().context.scope)
        )
        with rest.call().database.reader() as session:
            seen = {row.uuid: row.revision for row in session.execute(held)}
        if not seen:
            raise exception.NotFound(what='Accelerator request of instance', id=uuid)
        rest.call().conductor.free_instance(instance=uuid, seen=seen)

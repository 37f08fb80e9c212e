# SPDX-License-Identifier: Apache-2.0
"""/v2/deployables"""

from __future__ import annotations

import webob.exc

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types

PROGRAM: types.Schema = {
    'type': 'array',
    'minItems': 1,
    'maxItems': 1,
    'items': {
        'type': 'object',
        'required': ['path', 'op', 'value'],
        'properties': {
            'path': {'const': '/program'},
            'op': {'const': 'replace'},
            'value': {
                'type': 'array',
                'minItems': 1,
                'maxItems': 100,
                'items': {
                    'type': 'object',
                    'required': ['image_uuid'],
                    'properties': {'image_uuid': {'type': 'string', 'format': 'uuid'}},
                },
            },
        },
    },
}


class Deployables(rest.Controller):
    """The parts of devices that requests are bound to."""

    kind, path, what = model.Deployable, 'deployables', 'Deployable'

    def links(self, row, root):
        bookmark = f'{root}/deployables/{row["uuid"]}'
        return [*super().links(row, root), {'rel': 'bookmark', 'href': bookmark}]

    @rest.expose([types.Filter], paged=True)
    def get_all(self, page, filters=None):
        rest.call().context.can('cyborg:deployable:get_all')
        dotted, wanted = rest.split_filters(filters, ('name',))
        conditions = [getattr(model.Deployable, k) == v for k, v in wanted.items()]
        return self.list(*conditions, page=page | dotted)

    @rest.expose(types.uuid)
    def get_one(self, uuid):
        rest.call().context.can('cyborg:deployable:get_one')
        return self.fetch(uuid)

    # openstacksdk names the deployable a second time: /deployables/{uuid}/program/{uuid}.
    @rest.expose(types.uuid, types.uuid, body=PROGRAM)
    def patch(self, uuid, again=None):
        if again not in (None, uuid):
            raise webob.exc.HTTPNotFound
        rest.call().context.can('cyborg:deployable:program')
        rest.body()
        driver = self.fetch(uuid)['driver_name']
        raise exception.Conflict(reason=f'The driver {driver} cannot program its devices.')

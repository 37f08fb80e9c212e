# SPDX-License-Identifier: Apache-2.0
"""/v2/hosts: not of Cyborg, and so the same at every microversion"""

from __future__ import annotations

from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types

#: The states of a host.
STATES = ('up', 'down')

UPDATE: types.Schema = {
    'type': 'object',
    'required': ['name'],
    'additionalProperties': False,
    'properties': {
        'name': {
            'type': 'string',
            'pattern': '^[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?$',
            'description': 'a host name: letters, digits, -, _ and dots, at most 128 characters',
        },
    },
}


class Hosts(rest.Controller):
    """The machines whose agents report."""

    kind, path, id, what = model.Host, 'hosts', 'name', 'Host'

    @rest.expose(wtypes.text, wtypes.text, paged=True)
    def get_all(self, page, host=None, state=None):
        rest.call().context.can('cyborg:host:get_all')
        if state not in (None, *STATES):
            raise exception.Invalid(reason=f'Invalid state: expected one of {", ".join(STATES)}.')
        conditions = [] if host is None else [model.Host.name == host]
        if state is not None:
            down = model.Host.is_down()
            conditions.append(down if state == 'down' else ~down)
        return self.list(*conditions, page=page)

    @rest.expose(wtypes.text)
    def get_one(self, name):
        rest.call().context.can('cyborg:host:get_one')
        return self.fetch(name)

    @rest.expose(wtypes.text, body=UPDATE)
    def patch(self, name):
        rest.call().context.can('cyborg:host:update')
        new = rest.body()['name']
        rest.call().conductor.rename_host(name=name, to=new)
        return self.fetch(new)

    @rest.expose(wtypes.text, status=204)
    def delete(self, name):
        rest.call().context.can('cyborg:host:delete')
        rest.call().conductor.delete_host(name=name)

# SPDX-License-Identifier: Apache-2.0
"""/v2/hosts: ours, and so the same at every microversion"""

from __future__ import annotations

from sqlalchemy import orm
from wsme import types as wtypes

from cyborg_lite import model
from cyborg_lite.api import rest


class Hosts(rest.Controller):
    """The machines whose agents report."""

    kind, path, id, what = model.Host, 'hosts', 'name', 'Host'
    options = (orm.joinedload(model.Host.found).load_only(model.Device.uuid),)

    @rest.expose(paged=True)
    def get_all(self, page):
        rest.call().context.can('cyborg:host:get_all')
        return self.list(page=page)

    @rest.expose(wtypes.text)
    def get_one(self, name):
        rest.call().context.can('cyborg:host:get_one')
        return self.fetch(name)

# SPDX-License-Identifier: Apache-2.0
"""/v2/attributes"""

from __future__ import annotations

import re

import os_resource_classes
import os_traits
import sqlalchemy as sa
from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types

CREATE: types.Schema = {
    'type': 'object',
    'required': ['deployable_id', 'key', 'value'],
    'properties': {
        'deployable_id': {
            'type': ['integer', 'string'],
            'description': 'the number or the uuid of a deployable',
        },
        'key': {'type': 'string', 'minLength': 1, 'maxLength': 255},
        'value': {'type': 'string', 'maxLength': 255},
    },
}

#: Source: the placement API reference, resource classes and traits.
CUSTOM = re.compile('CUSTOM_[A-Z0-9_]{1,248}')
#: No deployable has a number as high as this.
MOST = 2**31


class Attributes(rest.Controller):
    """The attributes of deployables."""

    kind, path, what = model.Attribute, 'attributes', 'Attribute'

    @rest.expose(int, wtypes.text, paged=True)
    def get_all(self, page, deployable_id=None, key=None):
        rest.call().context.can('cyborg:attribute:get_all')
        wanted = {'deployable_id': deployable_id, 'key': key}
        conditions = [getattr(model.Attribute, k) == v for k, v in wanted.items() if v is not None]
        if deployable_id is not None and not 0 < deployable_id < MOST:
            conditions = [sa.false()]  # no deployable matches, and SQL cannot hold the number
        return self.list(*conditions, page=page)

    @rest.expose(types.uuid)
    def get_one(self, uuid):
        rest.call().context.can('cyborg:attribute:get_one')
        return self.fetch(uuid)

    @rest.expose(status=201, body={'type': 'object'})
    def post(self):
        rest.call().context.can('cyborg:attribute:create')
        body = rest.body()
        # openstacksdk and OpenStackClient wrap what they send; the API reference does not.
        attribute = body.get('attribute', body)
        types.check(attribute, CREATE)
        _check_name(attribute['key'], attribute['value'])
        uuid = rest.call().conductor.create_attribute(
            deployable=_deployable(attribute['deployable_id']),
            key=attribute['key'],
            value=attribute['value'],
        )
        return self.fetch(uuid)

    @rest.expose(types.uuid, status=204)
    def delete(self, uuid):
        rest.call().context.can('cyborg:attribute:delete')
        rest.call().conductor.delete_attribute(uuid=uuid)


def _check_name(key: str, value: str) -> None:
    """Refuse a trait or resource class that Placement would refuse."""
    own = CUSTOM.fullmatch(value)
    if key.startswith('trait') and not own and value not in os_traits.get_traits():
        raise exception.Invalid(
            reason=f'Invalid value: a key that begins with "trait" expects a trait, a standard one '
            f'or CUSTOM_ and then A-Z, 0-9 or _, not {value!r:.80}.'
        )
    if key == 'rc' and not own and value not in os_resource_classes.STANDARDS:
        raise exception.Invalid(
            reason='Invalid value: the key "rc" expects a resource class, a standard one or '
            f'CUSTOM_ and then A-Z, 0-9 or _, not {value!r:.80}.'
        )


def _deployable(given: int | str) -> int | str:
    """A number, which may come as text, or a uuid."""
    if not isinstance(given, str) or (given.isascii() and given.isdigit()):
        number = int(given) if not isinstance(given, str) else int(given[:20])
        if 0 < number < MOST:
            return number
        raise exception.NotFound(what='Deployable', id=number)
    try:
        return types.uuid.validate(given)
    except ValueError as error:
        raise exception.Invalid(reason=f'Invalid deployable_id: {error}, or a number.') from None

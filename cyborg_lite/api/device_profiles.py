# SPDX-License-Identifier: Apache-2.0
"""/v2/device_profiles"""

from __future__ import annotations

import collections.abc
import contextlib
import re
import typing

from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import explanation
from cyborg_lite.api import rest
from cyborg_lite.api import types

CREATE: types.Schema = {
    'type': 'array',
    'minItems': 1,
    'maxItems': 1,
    'description': 'a list of exactly one device profile',
    'items': {
        'type': 'object',
        'required': ['name', 'groups'],
        'properties': {
            'name': {'type': 'string', 'description': 'letters, digits, - and _'},
            'uuid': {'type': 'string', 'format': 'uuid'},
            'description': {'type': ['string', 'null'], 'maxLength': 255},
            'groups': {
                'type': 'array',
                'minItems': 1,
                'maxItems': 100,
                'items': {
                    'type': 'object',
                    'maxProperties': 100,
                    'additionalProperties': {'type': ['string', 'integer'], 'maxLength': 255},
                },
            },
        },
    },
}

#: The largest amount of one class in a group: Placement has the same limit.
MOST = 2**31 - 1


class DeviceProfiles(rest.Controller):
    """The profiles that requests are created from."""

    kind, path, what = model.DeviceProfile, 'device_profiles', 'Device profile'

    def scope(self) -> list[typing.Any]:
        return [~model.DeviceProfile.private]

    @rest.expose(types.names, paged=True)
    def get_all(self, page, name=None):
        rest.call().context.can('cyborg:device_profile:get_all')
        conditions = [] if name is None else [model.DeviceProfile.name.in_(name)]
        return self.list(*conditions, page=page)

    # Only this resource is wrapped: openstacksdk expects it.
    @rest.expose(wtypes.text, wrap='device_profile')
    def get_one(self, id):
        rest.call().context.can('cyborg:device_profile:get_one')
        if rest.call().version < (2, 2) and not types.is_uuid(id):
            raise exception.NotAcceptable(
                reason='Request not acceptable. The minimal required API version should be 2.2'
            )
        return self._find(id)

    @rest.expose(status=201, body=CREATE)
    def post(self):
        rest.call().context.can('cyborg:device_profile:create')
        [given] = rest.body()
        profile = {
            'name': _name(given['name']),
            'groups': [group(each, f'groups[{n}]') for n, each in enumerate(given['groups'])],
            'description': given.get('description'),
        }
        if given.get('uuid'):
            profile['uuid'] = types.uuid.validate(given['uuid'])
        try:
            uuid = rest.call().conductor.create_device_profile(profile=profile)
        except exception.Duplicate as error:
            if error.kwargs['field'] == 'uuid':
                raise _wart(error) from None
            raise
        return self.fetch(uuid)

    @rest.expose(wtypes.text, types.names, status=204)
    def delete(self, id=None, value=None):
        rest.call().context.can('cyborg:device_profile:delete')
        if (id is None) == (not value):
            raise exception.Invalid(
                reason='Expected either a name or uuid in the path or ?value=NAME,NAME.'
            )
        for each in [id] if id is not None else value:
            # By uuid: a late call does not delete a new profile of the same name.
            rest.call().conductor.delete_device_profile(id=self._find(each)['uuid'])

    @rest.expose(wtypes.text, shows=explanation.SCHEMA)
    def check(self, id):
        """Whether the profile could be allocated now: not of Cyborg, at every microversion."""
        rest.call().context.can('cyborg:device_profile:check')
        request = {'profile': id, 'alternatives': [], 'same_host': True, 'same_numa': 'prefer'}
        return rest.call().conductor.check_allocation(request=request | {'hosts': None})

    def _find(self, id: str) -> dict[str, typing.Any]:
        """The profile of this uuid, or else of this name: a name may look like a uuid."""
        if types.is_uuid(id):
            with contextlib.suppress(exception.NotFound):
                return self.fetch(id)
        return self.fetch(id, by='name')


def _wart(error: exception.CyborgError) -> exception.CyborgError:
    """The error as a 500, which Tempest asserts in three cases."""
    error.code = 500
    return error


def _name(name: str) -> str:
    if not name:
        raise _wart(exception.Invalid(reason='Invalid name: expected 1 to 255 characters.'))
    if not re.fullmatch('[a-zA-Z0-9-_]+', name):
        raise exception.Invalid(reason='Invalid name: expected letters, digits, - and _ only.')
    if len(name) > 255:
        raise _wart(exception.Invalid(reason='Invalid name: expected 255 characters at most.'))
    return name


def group(given: collections.abc.Mapping[str, str | int], place: str) -> dict[str, str]:
    """A group in its stored form: names without blanks around them, amounts as text."""
    kept: dict[str, str] = {}
    for key, value in given.items():
        prefix, _, name = key.partition(':')
        name, text = name.strip(), str(value).strip()
        where = f'{place} {key[:100]!r}'
        if prefix not in _CHECKS:
            raise exception.Invalid(
                reason=f'Invalid {where}: expected a key that begins with resources:, trait: or '
                'accel:.'
            )
        if f'{prefix}:{name}' in kept:
            raise exception.Invalid(reason=f'Invalid {where}: it is given twice.')
        if len(text) > 255:
            raise exception.Invalid(reason=f'Invalid {where}: expected 255 characters at most.')
        _CHECKS[prefix](where, name, text)
        kept[f'{prefix}:{name}'] = text
    return kept


def _check_resources(where: str, name: str, amount: str) -> None:
    if not re.fullmatch('FPGA|GPU|VGPU|PGPU|CUSTOM_[A-Z0-9_]{1,248}', name):
        raise exception.Invalid(
            reason=f'Invalid {where}: expected the resource class FPGA, GPU, VGPU, PGPU or '
            'CUSTOM_..., in capitals.'
        )
    if not re.fullmatch('[0-9]{1,10}', amount) or not 1 <= int(amount) <= MOST:
        raise exception.Invalid(
            reason=f'Invalid {where}: expected an amount, a number from 1 to {MOST}.'
        )


def _check_trait(where: str, name: str, value: str) -> None:
    if not re.fullmatch('CUSTOM_[A-Z0-9_]{1,248}', name):
        raise exception.Invalid(
            reason=f'Invalid {where}: expected a trait CUSTOM_..., in capitals.'
        )
    if value not in ('required', 'forbidden'):
        raise exception.Invalid(reason=f'Invalid {where}: expected required or forbidden.')


def _check_accel(where: str, name: str, value: str) -> None:
    if not name:
        raise exception.Invalid(reason=f'Invalid {where}: expected a name after accel:.')


_CHECKS = {'resources': _check_resources, 'trait': _check_trait, 'accel': _check_accel}

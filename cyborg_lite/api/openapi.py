# SPDX-License-Identifier: Apache-2.0
"""/v2/openapi.json: the API in OpenAPI 3.1, from the declarations that serve it."""

from __future__ import annotations

import datetime
import functools
import http
import typing

from pecan import rest as pecan_rest
from wsme import types as wtypes

from cyborg_lite.api import accelerator_requests
from cyborg_lite.api import attributes
from cyborg_lite.api import deployables
from cyborg_lite.api import device_profiles
from cyborg_lite.api import devices
from cyborg_lite.api import hosts
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.api import version

#: The table of contents: every URL and method, and who serves it.
ROUTES: tuple[tuple[str, str, type[rest.Controller], str], ...] = (
    ('GET', '/v2/devices', devices.Devices, 'get_all'),
    ('GET', '/v2/devices/{uuid}', devices.Devices, 'get_one'),
    ('POST', '/v2/devices/{uuid}/enable', devices.Devices, 'enable'),
    ('POST', '/v2/devices/{uuid}/disable', devices.Devices, 'disable'),
    ('GET', '/v2/deployables', deployables.Deployables, 'get_all'),
    ('GET', '/v2/deployables/{uuid}', deployables.Deployables, 'get_one'),
    ('PATCH', '/v2/deployables/{uuid}/program', deployables.Deployables, 'patch'),
    ('GET', '/v2/attributes', attributes.Attributes, 'get_all'),
    ('GET', '/v2/attributes/{uuid}', attributes.Attributes, 'get_one'),
    ('POST', '/v2/attributes', attributes.Attributes, 'post'),
    ('DELETE', '/v2/attributes/{uuid}', attributes.Attributes, 'delete'),
    ('GET', '/v2/device_profiles', device_profiles.DeviceProfiles, 'get_all'),
    ('GET', '/v2/device_profiles/{id}', device_profiles.DeviceProfiles, 'get_one'),
    ('POST', '/v2/device_profiles', device_profiles.DeviceProfiles, 'post'),
    ('DELETE', '/v2/device_profiles', device_profiles.DeviceProfiles, 'delete'),
    ('DELETE', '/v2/device_profiles/{id}', device_profiles.DeviceProfiles, 'delete'),
    ('GET', '/v2/accelerator_requests', accelerator_requests.AcceleratorRequests, 'get_all'),
    ('GET', '/v2/accelerator_requests/{uuid}', accelerator_requests.AcceleratorRequests, 'get_one'),
    ('POST', '/v2/accelerator_requests', accelerator_requests.AcceleratorRequests, 'post'),
    ('PATCH', '/v2/accelerator_requests', accelerator_requests.AcceleratorRequests, 'patch'),
    ('DELETE', '/v2/accelerator_requests', accelerator_requests.AcceleratorRequests, 'delete'),
    ('DELETE', '/v2/accelerator_requests/{uuid}', accelerator_requests.AcceleratorRequests,
     'delete'),
    ('GET', '/v2/hosts', hosts.Hosts, 'get_all'),
    ('GET', '/v2/hosts/{name}', hosts.Hosts, 'get_one'),
)  # fmt: skip

Json = dict[str, typing.Any]

#: What any request may be refused with.
REFUSALS = (400, 401, 403, 404, 406, 409, 413, 415, 423, 500, 503)

_KINDS: dict[type, Json] = {
    str: {'type': 'string'},
    int: {'type': 'integer'},
    dict: {'type': 'object'},
    list: {'type': 'array'},
    datetime.datetime: {'type': 'string', 'format': 'date-time'},
}
_LINKS: Json = {
    'type': 'array',
    'items': {
        'type': 'object',
        'required': ['rel', 'href'],
        'properties': {'rel': {'type': 'string'}, 'href': {'type': 'string', 'format': 'uri'}},
    },
}


class Document(pecan_rest.RestController):
    """The document itself."""

    @rest.expose()
    def get_all(self):
        return _document() | {'servers': [{'url': rest.call().root}]}


@functools.cache
def _document() -> Json:
    paths: dict[str, Json] = {}
    for method, path, controller, name in ROUTES:
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, controller, name)
    return {
        'openapi': '3.1.0',
        'info': {'title': 'cyborg_lite', 'version': version.text(version.MAX)},
        'paths': paths,
        'components': {
            'schemas': {c.kind.__name__: _resource(c) for _, _, c, _ in ROUTES}
            | {'Error': {'type': 'object', 'required': ['error_message']}},
            'securitySchemes': {
                'token': {'type': 'apiKey', 'in': 'header', 'name': 'X-Auth-Token'},
                'basic': {'type': 'http', 'scheme': 'basic'},
            },
        },
        'security': [{'token': []}, {'basic': []}, {}],
    }


def _operation(method: str, path: str, controller: type[rest.Controller], name: str) -> Json:
    function = getattr(controller, name)
    declared: rest.Operation = function.operation
    shown = {
        'operationId': f'{method.lower()} {path}',
        'summary': f'{name} of {controller.path}',
        'parameters': [_version_header(), *_parameters(path, declared)],
        'responses': {
            str(declared.status): _answer(controller, declared),
            **{str(code): _refusal(code) for code in REFUSALS},
        },
    }
    if declared.body is not None:
        content = {'application/json': {'schema': declared.body}}
        shown['requestBody'] = {'required': True, 'content': content}
    return shown


def _version_header() -> Json:
    known = [f'{version.SERVICE_TYPE} {version.text(v)}' for v in version.VERSIONS]
    return {'in': 'header', 'name': version.HEADER, 'schema': {'enum': known}}


def _parameters(path: str, declared: rest.Operation) -> list[Json]:
    found = []
    for argument in declared.arguments:
        schema = _schema_of(argument.datatype)
        if f'{{{argument.name}}}' in path:
            found.append({'in': 'path', 'name': argument.name, 'required': True, 'schema': schema})
        elif '{' not in path and isinstance(argument.datatype, wtypes.ArrayType):
            # The dotted form, which is all of a list of objects that a URL can carry.
            found += [
                {'in': 'query', 'name': f'{argument.name}.{part}', 'schema': {'type': 'string'}}
                for part in ('field', 'value')
            ]
        elif '{' not in path:
            found.append({'in': 'query', 'name': argument.name, 'schema': schema})
    return found


def _schema_of(kind: typing.Any) -> Json:
    if kind is types.uuid:
        return {'type': 'string', 'format': 'uuid'}
    return _KINDS.get(kind, {'type': 'string'})


def _answer(controller: type[rest.Controller], declared: rest.Operation) -> Json:
    answer: Json = {'description': http.HTTPStatus(declared.status).phrase}
    row = {'$ref': f'#/components/schemas/{controller.kind.__name__}'}
    rows = {'type': 'array', 'items': row}
    collection = controller.collection or controller.path
    if declared.status in (202, 204):
        return answer
    if declared.paged:
        schema = _object({collection: rows}, {f'{collection}_links': _LINKS})
    elif declared.wrap:
        schema = _object({declared.wrap: rows if declared.wrap == collection else row})
    else:
        schema = row
    return answer | {'content': {'application/json': {'schema': schema}}}


def _refusal(code: int) -> Json:
    schema = {'$ref': '#/components/schemas/Error'}
    answer: Json = {'description': http.HTTPStatus(code).phrase}
    # 401 has the form that keystonemiddleware gives it.
    return answer if code in (401, 423) else answer | _json(schema)


def _json(schema: Json) -> Json:
    return {'content': {'application/json': {'schema': schema}}}


def _object(required: Json, optional: Json | None = None) -> Json:
    return {
        'type': 'object',
        'required': sorted(required),
        'properties': required | (optional or {}),
        'additionalProperties': False,
    }


def _resource(controller: type[rest.Controller]) -> Json:
    """A resource at all microversions: a field that a later one brings is not required."""
    always: Json = {'links': _LINKS}
    later: Json = {}
    for field in controller.kind.fields():
        schema = dict(_KINDS.get(field.type, {}))
        if field.nullable and 'type' in schema:
            schema['type'] = [schema['type'], 'null']
        since = '' if field.version == version.MIN else f' From microversion {field.since} on.'
        schema['description'] = field.doc + since
        (always if field.version == version.MIN else later)[field.name] = schema
    return _object(always, later)

# SPDX-License-Identifier: Apache-2.0
"""/v2/openapi.json: the API in OpenAPI 3.1, from the declarations that serve it."""

from __future__ import annotations

import copy
import datetime
import functools
import http
import re
import typing

from wsme import types as wtypes

from cyborg_lite import delivery
from cyborg_lite import model
from cyborg_lite.api import accelerator_requests
from cyborg_lite.api import accelerators
from cyborg_lite.api import allocations
from cyborg_lite.api import attributes
from cyborg_lite.api import deployables
from cyborg_lite.api import device_profiles
from cyborg_lite.api import devices
from cyborg_lite.api import explanation
from cyborg_lite.api import hosts
from cyborg_lite.api import instances
from cyborg_lite.api import quotas
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.api import usages
from cyborg_lite.api import version

Json = dict[str, typing.Any]


class Route(typing.NamedTuple):
    """A URL, a method, and the controller that serves them."""

    method: str
    path: str
    controller: type[rest.Controller]
    name: str
    #: the error statuses that do not follow from the declaration
    also: tuple[int, ...] = ()

    @property
    def operation(self) -> rest.Operation:
        return typing.cast('rest.Operation', getattr(self.controller, self.name).operation)

    @property
    def refusals(self) -> list[int]:
        """The statuses of errors."""
        found = {400, 401, 403, 406, 503, *self.also}
        found |= {404} if '{' in self.path else set()
        return sorted(found if self.operation.body is None else found | {413, 415})


_ARQS = accelerator_requests.AcceleratorRequests
_PROFILES = device_profiles.DeviceProfiles

#: The table of all URLs except the documents below. The first route that matches is used.
ROUTES = (
    Route('GET', '/v2/devices', devices.Devices, 'get_all'),
    Route('GET', '/v2/devices/{uuid}', devices.Devices, 'get_one'),
    Route('GET', '/v2/devices/{uuid}/health', devices.Devices, 'health'),
    Route('DELETE', '/v2/devices/{uuid}', devices.Devices, 'delete', (409,)),
    Route('POST', '/v2/devices/{uuid}/enable', devices.Devices, 'enable'),
    Route('POST', '/v2/devices/{uuid}/disable', devices.Devices, 'disable'),
    Route('GET', '/v2/deployables', deployables.Deployables, 'get_all'),
    Route('GET', '/v2/deployables/{uuid}', deployables.Deployables, 'get_one'),
    Route('PATCH', '/v2/deployables/{uuid}/program', deployables.Deployables, 'patch', (409,)),
    Route(
        'PATCH', '/v2/deployables/{uuid}/program/{again}', deployables.Deployables, 'patch', (409,)
    ),
    Route('GET', '/v2/attributes', attributes.Attributes, 'get_all'),
    Route('GET', '/v2/attributes/{uuid}', attributes.Attributes, 'get_one'),
    Route('POST', '/v2/attributes', attributes.Attributes, 'post', (404, 409)),
    Route('DELETE', '/v2/attributes/{uuid}', attributes.Attributes, 'delete', (409,)),
    Route('GET', '/v2/device_profiles', _PROFILES, 'get_all'),
    Route('GET', '/v2/device_profiles/{id}', _PROFILES, 'get_one'),
    # Tempest asserts 500 in three cases.
    Route('POST', '/v2/device_profiles', _PROFILES, 'post', (409, 500)),
    Route('DELETE', '/v2/device_profiles', _PROFILES, 'delete', (404, 409)),
    Route('DELETE', '/v2/device_profiles/{id}', _PROFILES, 'delete', (409,)),
    Route('POST', '/v2/device_profiles/{id}/check', _PROFILES, 'check'),
    Route('GET', '/v2/accelerator_requests', _ARQS, 'get_all', (423,)),
    Route('GET', '/v2/accelerator_requests/{uuid}', _ARQS, 'get_one'),
    Route('GET', '/v2/accelerator_requests/{uuid}/history', _ARQS, 'history'),
    Route('POST', '/v2/accelerator_requests', _ARQS, 'post', (404,)),
    Route('PATCH', '/v2/accelerator_requests', _ARQS, 'patch', (404, 409)),
    Route('PATCH', '/v2/accelerator_requests/{uuid}', _ARQS, 'patch', (409,)),
    Route('DELETE', '/v2/accelerator_requests', _ARQS, 'delete', (404, 409)),
    Route('DELETE', '/v2/accelerator_requests/{uuid}', _ARQS, 'delete', (409,)),
    Route('GET', '/v2/accelerators', accelerators.Accelerators, 'get_all'),
    Route('GET', '/v2/accelerators/summary', accelerators.Accelerators, 'summary'),
    Route('GET', '/v2/accelerators/{uuid}', accelerators.Accelerators, 'get_one'),
    Route('GET', '/v2/allocations', allocations.Allocations, 'get_all'),
    Route('GET', '/v2/allocations/{id}', allocations.Allocations, 'get_one'),
    Route('GET', '/v2/allocations/{id}/deliveries', allocations.Allocations, 'deliveries', (409,)),
    Route('POST', '/v2/allocations', allocations.Allocations, 'post', (404, 409, 422)),
    Route('PATCH', '/v2/allocations/{id}', allocations.Allocations, 'patch', (409,)),
    Route('DELETE', '/v2/allocations/{id}', allocations.Allocations, 'delete'),
    Route('GET', '/v2/hosts', hosts.Hosts, 'get_all'),
    Route('GET', '/v2/hosts/{name}', hosts.Hosts, 'get_one'),
    Route('PATCH', '/v2/hosts/{name}', hosts.Hosts, 'patch', (409,)),
    Route('DELETE', '/v2/hosts/{name}', hosts.Hosts, 'delete', (409,)),
    Route('DELETE', '/v2/instances/{uuid}', instances.Instances, 'delete', (409,)),
    Route('GET', '/v2/quotas', quotas.Quotas, 'get_all', (409,)),
    Route('GET', '/v2/quotas/{project_id}', quotas.Quotas, 'get_one'),
    Route('PATCH', '/v2/quotas/{project_id}', quotas.Quotas, 'patch', (409,)),
    Route('DELETE', '/v2/quotas/{project_id}', quotas.Quotas, 'delete', (409,)),
    Route('GET', '/v2/usages', usages.Usages, 'get_all'),
)

#: The resources that Cyborg does not have: they are strict, and have their own form of errors.
OURS = ('accelerators', 'allocations', 'hosts', 'instances', 'quotas', 'usages')
#: Resources of ours below those of Cyborg.
_BELOW = re.compile(
    r'/v2/(accelerator_requests/[^/]+/history|device_profiles/[^/]+/check|devices/[^/]+/health)'
    r'(\.json)?/?'
)

#: Documents about the API, which need no credentials.
DOCUMENTS = {
    '/': ('list_versions', 'The versions of the API.'),
    '/v2': ('show_version', 'The microversions of version 2.'),
    '/v2/openapi.json': ('show_openapi', 'This document.'),
}

_TEXT: Json = {'type': 'string'}
_UUID: Json = {'type': 'string', 'format': 'uuid'}
_KINDS: dict[typing.Any, Json] = {
    str: _TEXT,
    int: {'type': 'integer'},
    dict: {'type': 'object'},
    list: {'type': 'array'},
    datetime.datetime: {'type': 'string', 'format': 'date-time'},
    wtypes.text: _TEXT,
    types.uuid: _UUID,
    types.number: {'type': 'integer', 'minimum': 0, 'maximum': types.Number.MOST},
    types.flag: {'type': 'boolean'},
    types.ids: {
        'type': 'array',
        'minItems': 1,
        'maxItems': types.Ids.MOST,
        'items': {'type': 'string', 'pattern': f'^{types.Ids.PATTERN}$'},
    },
    types.moment: {
        'type': 'string',
        'oneOf': [{'format': 'date'}, {'format': 'date-time'}],
    },
    types.seconds: {'type': 'integer', 'minimum': 0, 'maximum': types.Seconds.MOST},
    # Tempest asserts 404 for a text that is not a UUID.
    types.id: _TEXT,
    types.names: {
        'type': 'array',
        'minItems': 1,
        'items': {'type': 'string', 'pattern': '^[^,]+$'},
    },
}
#: Further constraints of arguments, by name.
_ARGUMENTS: dict[str, Json] = {
    'limit': {'type': 'integer', 'minimum': 0},
    'marker': _UUID,
    'sort_dir': {'enum': ['asc', 'desc']},
    'bind_state': {'enum': ['resolved']},
    'health': {'enum': [*accelerators.WORDS['health']]},
    'group_by': {
        'type': 'array',
        'minItems': 1,
        'items': {'enum': [*model.Usage.KEYS]},
    },
    'arqs': {'type': 'array', 'minItems': 1, 'items': _UUID},
    'view': {'enum': [*delivery.VIEWS]},
}
#: The values of the filter "state", by resource.
_STATES = {
    accelerators.Accelerators: accelerators.WORDS['state'],
    allocations.Allocations: model.Allocation.STATES,
    hosts.Hosts: hosts.STATES,
}
_ERRORS: Json = {
    'Error': {
        'type': 'object',
        'required': ['error_message'],
        'properties': {
            'error_message': {
                'type': 'string',
                'contentMediaType': 'application/json',
                'description': 'A JSON object, as text: with faultcode, faultstring and '
                'debuginfo, or with code, title and description.',
            }
        },
    },
    'Unauthorized': {'type': 'object', 'required': ['error']},
    # The form of the API-SIG guideline on errors.
    'Errors': {
        'type': 'object',
        'required': ['errors'],
        'additionalProperties': False,
        'properties': {
            'errors': {
                'type': 'array',
                'minItems': 1,
                'items': {
                    'type': 'object',
                    'required': ['status', 'title', 'detail', 'request_id'],
                    'additionalProperties': False,
                    'properties': {
                        'status': {'type': 'integer'},
                        'title': {'type': 'string'},
                        'detail': {'type': 'string'},
                        'request_id': {'type': 'string'},
                        # Why nothing can be allocated.
                        'explanation': explanation.SCHEMA,
                    },
                },
            }
        },
    },
}
_HEADERS: Json = {
    name: {'required': True, 'schema': _TEXT}
    for name in (version.HEADER, *version.headers(None), 'X-Openstack-Request-Id')
}


def is_ours(path: str) -> bool:
    """Whether a path is of a resource that Cyborg does not have."""
    version_, _, rest_ = path.removeprefix('/').partition('/')
    ours = version_ == 'v2' and rest_.partition('/')[0].removesuffix('.json') in OURS
    return ours or _BELOW.fullmatch(path) is not None


@functools.cache
def document() -> Json:
    paths: dict[str, Json] = {path: {'get': _shown(*about)} for path, about in DOCUMENTS.items()}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        'openapi': '3.1.0',
        'info': {'title': 'cyborg_lite', 'version': version.text(version.MAX)},
        'paths': paths,
        'components': {
            'schemas': {r.controller.kind.__name__: _resource(r.controller) for r in ROUTES}
            | _ERRORS,
            'headers': _HEADERS,
            'securitySchemes': {
                'token': {'type': 'apiKey', 'in': 'header', 'name': 'X-Auth-Token'},
                'basic': {'type': 'http', 'scheme': 'basic'},
            },
        },
        'security': [{'token': []}, {'basic': []}, {}],
    }


def _shown(name: str, about: str) -> Json:
    answers = {'200': {'description': about} | _json({'type': 'object'})}
    return {'operationId': name, 'summary': about, 'security': [], 'responses': answers}


def _operation(route: Route) -> Json:
    shown = {
        'operationId': _name(route),
        'summary': _name(route).replace('_', ' ').capitalize(),
        'parameters': [_version_header(), *_parameters(route)],
        'responses': {
            str(route.operation.status): _answer(route),
            **{
                status: _headed(int(status)) | _json(schema)
                for status, schema in _ALSO.get((route.controller, route.name), {}).items()
            },
            **{str(code): _refusal(code, is_ours(route.path)) for code in route.refusals},
        },
    }
    if route.operation.body is not None:
        refined = _BODIES.get((route.controller, route.name))
        body = refined() if refined else route.operation.body
        shown['requestBody'] = {'required': True} | _json(body)
    return shown


def _name(route: Route) -> str:
    """The name of an operation: generated clients name a function by it."""
    collection, *more = route.path.split('/')[2:]
    if '{' not in route.path:
        return f'{_VERBS[route.name]}_{collection}'
    verb, *again = [part.strip('{}') for part in more[1:]] or [_VERBS[route.name]]
    if route.method == 'GET' and more[1:]:
        return '_'.join(['show', collection.removesuffix('s'), verb])
    return '_'.join([verb, collection.removesuffix('s'), *again])


#: The verb of each controller method in the name of its operation.
_VERBS = {'get_all': 'list', 'get_one': 'show', 'post': 'create', 'patch': 'update',
          'delete': 'delete', 'summary': 'summarize', 'check': 'check'}  # fmt: skip


def _attribute() -> Json:
    """The two forms that clients send, and the checks of the method itself."""
    wrapped = _object({'attribute': attributes.CREATE})
    return {'anyOf': [attributes.CREATE, wrapped]}


def _profile() -> Json:
    """The declared schema, and the checks of the method itself: names, and keys of groups."""
    schema = copy.deepcopy(device_profiles.CREATE)
    profile = schema['items']
    profile['required'] = ['name', 'groups']
    profile['properties']['name'] = {'type': 'string', 'pattern': '^[a-zA-Z0-9_-]{1,255}$'}
    named = r'\s*CUSTOM_[A-Z0-9_]{1,248}\s*$'
    amount = {
        'type': ['string', 'integer'],
        'pattern': r'^\s*[0-9]{1,10}\s*$',
        'minimum': 1,
        'maximum': device_profiles.MOST,
    }
    profile['properties']['groups']['items'] = {
        'type': 'object',
        'maxProperties': 100,
        'additionalProperties': False,
        'patternProperties': {
            rf'^resources:(\s*(FPGA|GPU|VGPU|PGPU)\s*$|{named})': amount,
            f'^trait:{named}': {'enum': ['required', 'forbidden']},
            r'^accel:\s*\S': {'type': ['string', 'integer'], 'maxLength': 255},
        },
    }
    return schema


#: Bodies with more constraints than the method declares.
_BODIES = {(attributes.Attributes, 'post'): _attribute, (_PROFILES, 'post'): _profile}


#: The headers of a request, by method.
_HEADERS_OF: dict[typing.Any, list[Json]] = {
    (allocations.Allocations, 'post'): [
        {
            'in': 'header',
            'name': allocations.KEY,
            'schema': {'type': 'string', 'minLength': 1, 'maxLength': allocations.KEY_LENGTH},
        }
    ],
}
#: Answers of a method beyond the declared one, by status.
_ALSO: dict[typing.Any, dict[str, Json]] = {
    # A dry run.
    (allocations.Allocations, 'post'): {'200': explanation.SCHEMA},
}


def _version_header() -> Json:
    known = [version.text(v) for v in version.VERSIONS] + ['latest']
    schema = {'enum': [f'{version.SERVICE_TYPE} {each}' for each in known]}
    return {'in': 'header', 'name': version.HEADER, 'schema': schema}


def _parameters(route: Route) -> list[Json]:
    found = []
    # A method with a mandatory argument in the path has no other route.
    alone = any(a.mandatory and f'{{{a.name}}}' in route.path for a in route.operation.arguments)
    same = [r.path for r in ROUTES if (r.controller, r.name) == (route.controller, route.name)]
    for argument in route.operation.arguments:
        name, kind = argument.name, argument.datatype
        if f'{{{name}}}' in route.path:
            schema = _KINDS[kind]
            found.append({'in': 'path', 'name': name, 'required': True, 'schema': schema})
        elif (
            ('{' in route.path and not alone)
            or name in rest.KEYS
            or any(f'{{{name}}}' in path for path in same)
        ):
            continue  # another route of the method takes it
        elif isinstance(kind, wtypes.ArrayType):
            # The dotted form: a URL can carry only this of a list of objects.
            found += [
                {'in': 'query', 'name': f'{name}.{part}', 'schema': _TEXT}
                for part in ('field', 'value')
            ]
        else:
            found.append(_query(route, name, _ARGUMENTS.get(name, _KINDS[kind])))
    return found + _HEADERS_OF.get((route.controller, route.name), [])


def _query(route: Route, name: str, schema: Json) -> Json:
    if name == 'state':
        schema = {'enum': [*_STATES[route.controller]]}
    if name == 'sort_key':
        schema = {'enum': types.sort_keys(route.controller.kind, version.MAX)}
    commas = {'style': 'form', 'explode': False} if schema.get('type') == 'array' else {}
    return {'in': 'query', 'name': name, 'schema': schema} | commas


def _answer(route: Route) -> Json:
    controller, declared = route.controller, route.operation
    answer = _headed(declared.status)
    row = {'$ref': f'#/components/schemas/{controller.kind.__name__}'}
    rows = {'type': 'array', 'items': row}
    collection = controller.collection or controller.path
    if declared.status in (202, 204):
        return answer
    if declared.shows:
        schema = declared.shows
    elif declared.paged:
        schema = _object({collection: rows}, {f'{collection}_links': rest.LINKS})
    elif declared.wrap:
        schema = _object({declared.wrap: rows if declared.wrap == collection else row})
    else:
        schema = row
    return answer | _json(schema)


def _headed(status: int) -> Json:
    headers = {name: {'$ref': f'#/components/headers/{name}'} for name in _HEADERS}
    return {'description': http.HTTPStatus(status).phrase, 'headers': headers}


def _refusal(code: int, ours: bool) -> Json:
    answer: Json = {'description': http.HTTPStatus(code).phrase}
    if code == 423:
        return answer
    # keystonemiddleware makes the body of 401.
    schema = 'Errors' if ours else 'Unauthorized' if code == 401 else 'Error'
    return answer | _json({'$ref': f'#/components/schemas/{schema}'})


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
    """A resource at all microversions: a field of a later microversion is not required."""
    always: Json = {'links': rest.LINKS}
    later: Json = {}
    for field in controller.kind.fields():
        schema = dict(_KINDS.get(field.type, {}))
        if field.nullable and 'type' in schema:
            schema['type'] = [schema['type'], 'null']
        schema['description'] = field.doc
        if field.version > version.MIN:
            schema['x-openstack'] = {'min-ver': field.since}
        (always if field.version == version.MIN else later)[field.name] = schema
    return _object(always, later)

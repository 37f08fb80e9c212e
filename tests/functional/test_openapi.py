# SPDX-License-Identifier: Apache-2.0
"""/v2/openapi.json is valid, complete and correct."""

import collections
import copy
import re

import jsonschema
import openapi_spec_validator
import pytest

from cyborg_lite import policy
from cyborg_lite.api import accelerators
from cyborg_lite.api import app
from cyborg_lite.api import deployables
from cyborg_lite.api import openapi
from cyborg_lite.api import rest
from cyborg_lite.api import root
from cyborg_lite.api import version
from tests import support
from tests.functional import samples

VERSIONS = [version.text(each) for each in version.VERSIONS]
METHODS = {'GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'TRACE'}

each_route = pytest.mark.parametrize(
    'route', openapi.ROUTES, ids=[f'{route.method} {route.path}' for route in openapi.ROUTES]
)


@pytest.fixture(scope='module')
def service(databases):
    with databases.empty() as url:
        made = support.Service(url)
        yield made
        made.stop()


@pytest.fixture(scope='module')
def document(service):
    return service.api.get('/v2/openapi.json').json


def at(document, asked):
    """The document at one microversion: fields of later ones are absent, all others required."""
    parts = copy.deepcopy(document['components'])
    for schema in parts['schemas'].values():
        fields = schema.get('properties', {})
        for name in list(fields):
            since = fields[name].get('x-openstack', {}).get('min-ver', VERSIONS[0])
            if VERSIONS.index(since) > VERSIONS.index(asked):
                del fields[name]
        schema['required'] = list(fields) or schema['required']
    return document | {'components': parts}


def check(document, exchange):
    """Assert that the document declares the answer."""
    operation = document['paths'][exchange.path][exchange.method.lower()]
    declared = operation['responses'][str(exchange.answer.status_int)]
    for name in declared.get('headers', ()):
        assert name in exchange.answer.headers
    if 'content' not in declared:
        assert exchange.answer.body == b''
        return
    assert exchange.answer.content_type in declared['content']
    schema = declared['content']['application/json']['schema']
    jsonschema.Draft202012Validator(
        schema | {'components': document['components']},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    ).validate(exchange.answer.json)


def example(route):
    """A path of the route to an absent object, and a valid body."""
    bodies = {
        '/v2/device_profiles': [{'name': 'a', 'groups': [{'resources:FPGA': '1'}]}],
        '/v2/attributes': {'deployable_id': 1, 'key': 'a', 'value': ''},
        '/v2/accelerator_requests': {'device_profile_name': 'a'},
        '/v2/hosts/{name}': {'name': 'a'},
        '/v2/allocations': {'groups': [{'resources': {'FPGA': 1}}]},
        '/v2/allocations/{id}': {'lease': 60},
    }
    body = bodies.get(route.path) if route.operation.body else None
    if route.controller is deployables.Deployables:
        body = [{'path': '/program', 'op': 'replace', 'value': [{'image_uuid': support.INSTANCE}]}]
    elif route.method == 'PATCH' and route.path not in bodies:
        body = {support.INSTANCE: [{'path': '/hostname', 'op': 'remove'}]}
    return re.sub(r'\{\w+\}', support.INSTANCE, route.path), body


def test_the_document_is_valid(document):
    openapi_spec_validator.validate(document)
    assert document['openapi'].startswith('3.1.')
    listing = document['paths']['/v2/accelerator_requests']['get']
    assert listing['summary'] == 'List accelerator requests'
    assert document['servers'] == [{'url': 'http://localhost'}]


@each_route
def test_each_route_is_served(service, route):
    path, body = example(route)
    answer = service.api.request(route.method, path, body)
    assert answer.status_int != 405
    # The object is not found, but the path is.
    assert answer.status_int != 404 or 'not found' in support.fault(answer)


@pytest.mark.parametrize('path', sorted(openapi.document()['paths']))
def test_no_other_method_is_served(service, document, path):
    for method in METHODS - {method.upper() for method in document['paths'][path]}:
        answer = service.api.request(method, re.sub(r'\{\w+\}', support.INSTANCE, path), {})
        assert answer.status_int == 405, method
        served = {method.upper() for method in document['paths'][path]}
        served |= {'HEAD'} & {method.replace('GET', 'HEAD') for method in served}
        assert set(answer.headers['Allow'].split(', ')) == served


def exposed(kind):
    """The methods of a class that serve requests."""
    return {name for name, value in vars(kind).items() if hasattr(value, 'operation')}


def test_all_that_is_exposed_is_in_the_document():
    found = {(kind, name) for kind in rest.Controller.__subclasses__() for name in exposed(kind)}
    assert found == {(route.controller, route.name) for route in openapi.ROUTES}
    assert exposed(root.Documents) == {name for name, _ in openapi.DOCUMENTS.values()}


#: Rules that are checked after another rule has allowed the request.
SECOND = {'cyborg:allocation:priority'}


@pytest.mark.parametrize(('name', 'words'), accelerators.WORDS.items())
def test_a_filter_declares_the_words_that_it_takes(document, name, words):
    parameters = document['paths']['/v2/accelerators']['get']['parameters']
    assert {'in': 'query', 'name': name, 'schema': {'enum': [*words]}} in parameters


def test_rules_and_routes_are_the_same(service, monkeypatch):
    """Without a role, each route is refused by its own rule."""
    monkeypatch.setitem(app.ALONE, 'X-Roles', '')
    asked = collections.defaultdict(set)
    for route in openapi.ROUTES:
        path, body = example(route)
        answer = service.api.request(route.method, path, body)
        assert answer.status_int == 403, route
        [rule] = re.findall(r'resource: (\S+)\. It needs ', support.fault(answer))
        asked[rule].add((route.method, route.path))
    assert asked == {
        rule.name: {(each['method'], each['path']) for each in rule.operations}
        for rule in policy.list_rules()
        if rule.name.startswith('cyborg:') and rule.name not in SECOND
    }


@pytest.mark.parametrize('asked', VERSIONS)
def test_every_answer_is_declared_at_every_version(database_url, asked):
    service = support.Service(database_url)
    try:
        exchanges = samples.converse(service, asked)
        document = at(service.api.get('/v2/openapi.json').json, asked)
    finally:
        service.stop()
    for exchange in exchanges:
        check(document, exchange)
    routes = {f'{method.upper()} {path}' for path, each in document['paths'].items()
              for method in each}  # fmt: skip
    assert {exchange.route for exchange in exchanges} == routes
    unsuccessful = {each.route for each in exchanges if each.answer.status_int >= 400}
    assert unsuccessful == {
        'PATCH /v2/deployables/{uuid}/program',  # no driver supports it
        'PATCH /v2/deployables/{uuid}/program/{again}',
        'DELETE /v2/device_profiles',  # of absent profiles
        'DELETE /v2/instances/{uuid}',
    }


@each_route
@pytest.mark.parametrize('asked', ['2.0', '2.3', '2.4'])
def test_every_refusal_is_declared(service, document, route, asked):
    """For absent objects, unknown arguments, and an unknown version."""
    path, body = example(route)
    for query, given in ('', body), ('?no=1', body), ('', b'{'), ('', b' ' * 200_000):
        answer = service.api.at(asked).request(route.method, path + query, given)
        if answer.status_int >= 400 and (given == body or route.operation.body):
            exchange = samples.Exchange(route.method, route.path, given, answer, '', '')
            check(document, exchange)

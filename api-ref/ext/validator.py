# SPDX-License-Identifier: Apache-2.0
"""Fails the build unless every route, field, status and sample of the API has its place."""

import pathlib
import re

import yaml

from cyborg_lite import cmd  # noqa: F401 - native threads, before oslo.service is imported
from cyborg_lite.api import openapi

API_REF = pathlib.Path(__file__).parents[1]
#: what no schema tells of: who asks
CREDENTIALS = {'X-Auth-Token', 'X-Service-Token'}


def problems(api_ref=API_REF):
    """What is in the API and not in the reference, or the other way round."""
    text = '\n'.join(path.read_text() for path in sorted((api_ref / 'source').glob('*.inc')))
    known = yaml.safe_load((api_ref / 'source/parameters.yaml').read_text())
    pieces = re.split(r'^\.\. rest_method:: (.+)$', text, flags=re.M)
    sections = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    document = openapi.document()
    paths = document['paths'].items()
    operations = {f'{m.upper()} {path}': o for path, each in paths for m, o in each.items()}
    found = _compare('routes', pieces[1::2], operations)
    for title in sorted(set(sections) & set(operations)):
        found += _check(title, sections[title], operations[title], known, document['components'])
    samples = [f'{path.parent.name}/{path.name}' for path in api_ref.glob('samples/*/*')]
    shown = re.findall(r'literalinclude:: ../samples/(\S+)', text)
    return found + _compare('samples', set(shown), samples)


def _check(title, text, operation, known, parts):
    statuses = re.findall(r'(?:^   - |codes: )(\d{3})\b', text, flags=re.M)
    found = _compare(f'{title}: statuses', statuses, operation['responses'])
    asked, _, answered = text.partition('\nResponse\n--')
    names = {p['name'].partition('.')[0] for p in operation.get('parameters', ())}
    if 'requestBody' in operation:
        names |= set(_fields(operation['requestBody'], parts)) or {'patch'}
    found += _compare(f'{title}: request', set(_table(asked)) - CREDENTIALS, names)
    successes = [answer for code, answer in operation['responses'].items() if code < '300']
    table, fields = _table(answered), {}
    for success in successes:
        fields |= _fields(success, parts)
    if fields:
        found += _compare(f'{title}: response', table, fields)
    for name in sorted(set(table) & set(fields)):
        since = known[table[name]].get('min_version')
        if since != fields[name]:
            found.append(f'{title}: {name} has min_version {since}, not {fields[name]}')
    return found


def _table(text):
    return dict(re.findall(r'^   - ([A-Za-z][\w-]*): (\S+)$', text, flags=re.M))


def _fields(schema, parts):
    """The names in a message's schema, at any depth but of links: the microversion of each."""
    schema = schema.get('content', {}).get('application/json', schema).get('schema', schema)
    schema = parts['schemas'][schema['$ref'].split('/')[-1]] if '$ref' in schema else schema
    schema = schema.get('anyOf', [schema])[0]
    found = dict(_fields(schema['items'], parts)) if 'items' in schema else {}
    for name, inner in schema.get('properties', {}).items():
        deeper = {} if name.endswith('links') else _fields(inner, parts)
        found |= deeper | {name: inner.get('x-openstack', {}).get('min-ver')}
    return found


def _compare(what, given, wanted):
    missing = [f'{what}: {each} is missing' for each in sorted(set(wanted) - set(given))]
    unknown = [f'{what}: {each} is not in the API' for each in sorted(set(given) - set(wanted))]
    return missing + unknown + [f'{what}: some are there twice'] * (len(given) > len(set(given)))


def setup(app):
    if found := problems():
        raise SystemExit('\n'.join(found))
    return {'parallel_read_safe': True}

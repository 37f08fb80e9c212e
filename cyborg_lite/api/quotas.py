# SPDX-License-Identifier: Apache-2.0
"""/v2/quotas: not of Cyborg, and so the same at every microversion"""

from __future__ import annotations

import re
import typing

import os_resource_classes
from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import projects
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.db import query
from cyborg_lite.db import quotas

#: The alias of the caller's project in a URL.
OWN = 'own'
_PROJECT = re.compile(r'[A-Za-z0-9_.-]{1,64}', re.ASCII)
_RESOURCES = '|'.join(
    [model.Quota.TOTAL, 'CUSTOM_[A-Z0-9_]{1,248}', *sorted(os_resource_classes.STANDARDS)]
)

UPDATE: types.Schema = {
    'type': 'object',
    'required': ['limits'],
    'additionalProperties': False,
    'properties': {
        'limits': {
            'type': 'object',
            'minProperties': 1,
            'maxProperties': 100,
            'propertyNames': {
                # "$" also matches before a final line feed.
                'pattern': rf'^(?:{_RESOURCES})$(?!\n)',
                'description': '"total" or a resource class: a standard one, or CUSTOM_ and '
                'A-Z, 0-9, _',
            },
            'additionalProperties': {
                'type': ['integer', 'null'],
                'minimum': -1,
                'maximum': 2**31 - 1,
                'description': 'a number, -1 for unlimited, or null for the default limit',
            },
        },
    },
}

SHOWN: types.Schema = {
    'type': 'object',
    'required': ['project_id', 'source', 'quotas'],
    'additionalProperties': False,
    'properties': {
        'project_id': {'type': 'string'},
        'source': {'type': 'string', 'enum': ['database', 'keystone']},
        'quotas': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': ['resource', 'limit', 'used'],
                'additionalProperties': False,
                'properties': {
                    'resource': {'type': 'string'},
                    'limit': {'type': 'integer'},
                    'used': {'type': 'integer'},
                },
            },
        },
    },
}


class Quotas(rest.Controller):
    """The limits and the usage of accelerator requests by project."""

    kind, path, id, what = model.Quota, 'quotas', 'project_id', 'Quota'

    @rest.expose(paged=True)
    def get_all(self, page):
        rest.call().context.can('cyborg:quota:get_all')
        if _is_elsewhere():
            raise exception.LimitsElsewhere
        return self.list(page=page)

    @rest.expose(wtypes.text, shows=SHOWN)
    def get_one(self, project_id):
        project = project_id if project_id != OWN else rest.call().context.project_id or ''
        rest.call().context.can('cyborg:quota:get_one', {'project_id': project})
        return _show(_checked(project))

    @rest.expose(wtypes.text, body=UPDATE, shows=SHOWN)
    def patch(self, project_id):
        rest.call().context.can('cyborg:quota:update')
        project = _named(project_id)
        if project != model.Quota.DEFAULTS:
            projects.check(project)
        # In JSON 1.0 is an integer, too.
        given = rest.body()['limits'].items()
        limits = {name: None if limit is None else int(limit) for name, limit in given}
        rest.call().conductor.update_quota(project=project, limits=limits)
        return _show(project)

    @rest.expose(wtypes.text, status=204)
    def delete(self, project_id):
        rest.call().context.can('cyborg:quota:delete')
        project = _named(project_id)
        rest.call().conductor.delete_quota(project=project, seen=_revision(project))


def _named(project: str) -> str:
    """Refuse the alias: the project must be named by its id."""
    if project == OWN:
        raise exception.Invalid(reason='Invalid project_id: expected the id of the project.')
    return _checked(project)


def _checked(project: str) -> str:
    if not _PROJECT.fullmatch(project):
        raise exception.Invalid(
            reason=f'Invalid project_id {project[:64]!r}: expected the id of a project, 1 to 64 of '
            'A-Z, a-z, 0-9, "_", "." and "-".'
        )
    return project


def _revision(project: str) -> str:
    """The revision of the limits of a project."""
    if _is_elsewhere():
        raise exception.LimitsElsewhere
    with rest.call().database.reader() as session:
        row = query.get(session, model.Quota, project, what='Quota of project', by='project_id')
        return row.revision


def _show(project: str) -> dict[str, typing.Any]:
    elsewhere = _is_elsewhere()
    with rest.call().database.reader() as session:
        limits = {} if elsewhere else quotas.limits(session, project)
        used = quotas.usage(session, project)
    if elsewhere:
        limits = rest.call().conductor.show_limits(project=project)
    total = model.Quota.TOTAL
    names = [total, *sorted((limits.keys() | used.keys()) - {total})]
    shown = [
        {'resource': n, 'limit': limits.get(n, model.Quota.UNLIMITED), 'used': used[n]}
        for n in names
    ]
    source = 'keystone' if elsewhere else 'database'
    return {'project_id': project, 'source': source, 'quotas': shown}


def _is_elsewhere() -> bool:
    return bool(rest.call().conf.quota.driver == 'keystone')

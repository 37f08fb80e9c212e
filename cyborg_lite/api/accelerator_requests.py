# SPDX-License-Identifier: Apache-2.0
"""/v2/accelerator_requests"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import typing
import uuid as uuidlib

import sqlalchemy as sa
from sqlalchemy import orm
from wsme import types as wtypes

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.db import arqs as arqs_
from cyborg_lite.db import query

CREATE: types.Schema = {
    'type': 'object',
    'required': ['device_profile_name'],
    'properties': {'device_profile_name': {'type': 'string'}},
}

UPDATE: types.Schema = {
    'type': 'object',
    'minProperties': 1,
    'maxProperties': types.NAMES,
    'propertyNames': {'format': 'uuid'},
    'description': 'an object of uuids of accelerator requests, each with a list of operations',
    'additionalProperties': {
        'type': 'array',
        'minItems': 1,
        'maxItems': 20,
        'items': {
            'type': 'object',
            'required': ['path', 'op'],
            'properties': {
                'path': {'enum': ['/hostname', '/device_rp_uuid', '/instance_uuid', '/project_id']},
                'op': {'enum': ['add', 'remove']},
                'value': {'type': ['string', 'null'], 'maxLength': 255},
            },
        },
    },
}

_MOMENT: types.Schema = {'type': 'string', 'format': 'date-time'}
_NAME: types.Schema = {'type': ['string', 'null']}
_MOVE: types.Schema = {
    'at': _MOMENT,
    'state': {'type': 'string'},
    'reason': _NAME,
    'hostname': _NAME,
    'device_rp_uuid': _NAME,
    'instance_uuid': _NAME,
    'accelerator_uuid': _NAME,
    'request_id': _NAME,
}
HISTORY: types.Schema = {
    'type': 'object',
    'required': ['history'],
    'additionalProperties': False,
    'properties': {
        'history': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': [*_MOVE],
                'additionalProperties': False,
                'properties': _MOVE,
            },
        }
    },
}


class AcceleratorRequests(rest.Controller):
    """The requests of workloads for accelerators."""

    kind, path, what = model.ARQ, 'accelerator_requests', 'ARQ'
    collection = 'arqs'

    def scope(self) -> list[typing.Any]:
        """Hide the requests of other projects.

        Nova sees them while an instance holds them: an administrator may have evacuated the server
        with a token of another project.
        """
        ctxt = rest.call().context
        return [model.ARQ.visible(ctxt.scope, ctxt.vouched)]

    @rest.expose(types.uuid, wtypes.text, paged=True)
    def get_all(self, page, instance=None, bind_state=None):
        rest.call().context.can('cyborg:arq:get_all')
        # A service sees requests of other projects only in the list of one named instance.
        conditions = [model.ARQ.visible(rest.call().context.scope)]
        if instance is not None:
            conditions = [model.ARQ.instance_uuid == instance]
        if bind_state is not None:
            if bind_state != 'resolved':
                raise exception.Invalid(reason='Invalid bind_state: expected resolved.')
            if instance is not None:
                self._refuse_changing(instance)
            conditions.append(model.ARQ.state.in_(model.ARQ.RESOLVED))
        return self.list(*conditions, page=page)

    def _refuse_changing(self, instance: str) -> None:
        changing = sa.select(model.ARQ.id).where(
            model.ARQ.instance_uuid == instance,
            model.ARQ.state.not_in(model.ARQ.RESOLVED),
            *self.scope(),
        )
        with rest.call().database.reader() as session:
            if session.scalar(changing.limit(1)):
                raise exception.StillChanging(instance=instance)

    @rest.expose(types.uuid)
    def get_one(self, uuid):
        rest.call().context.can('cyborg:arq:get_one')
        return self.fetch(uuid)

    # Cyborg does not have this method.
    @rest.expose(types.uuid, shows=HISTORY)
    def history(self, uuid):
        rest.call().context.can('cyborg:arq:get_one')
        with rest.call().database.reader() as session:
            moves = [orm.lazyload('*'), orm.undefer(model.ARQ.moves)]
            arq = query.get(session, self.kind, uuid, *self.scope(), what=self.what, options=moves)
            return {'history': arq.history}

    @rest.expose(status=201, body=CREATE, wrap='arqs')
    def post(self):
        rest.call().context.can('cyborg:arq:create')
        uuids = rest.call().conductor.create_arqs(profile=rest.body()['device_profile_name'])
        return self.these(uuids)

    # openstacksdk names the request in the path as well.
    @rest.expose(types.uuid, status=202, body=UPDATE)
    def patch(self, uuid=None):
        rest.call().context.can('cyborg:arq:update')
        _require_service_token()
        body = rest.body()
        if uuid is not None and [_uuid(each) for each in body] != [uuid]:
            raise exception.Invalid(reason=f'Invalid body: expected {uuid}, as in the path, alone.')
        if {operation['op'] for patch in body.values() for operation in patch} == {'add'}:
            wishes = _with_owners([_wish(*item) for item in body.items()])
            _refuse_twice('body', [wish['uuid'] for wish in wishes])
            seen = _seen(arqs_.seen, [wish['uuid'] for wish in wishes])
            rest.call().conductor.bind(wishes=wishes, seen=seen)
        elif {operation['op'] for patch in body.values() for operation in patch} == {'remove'}:
            uuids = [types.uuid.validate(uuid) for uuid in body]
            seen = _seen(arqs_.seen, uuids)
            rest.call().conductor.unbind(uuids=uuids, seen=seen)
        else:
            raise exception.Invalid(
                reason='Invalid op: expected add in all operations of the request, or remove in '
                'all.'
            )

    @rest.expose(types.uuid, types.names, types.uuid, status=204)
    def delete(self, uuid=None, arqs=None, instance=None):
        rest.call().context.can('cyborg:arq:delete')
        # openstacksdk deletes by the path; Nova by one of the arguments.
        if sum(given is not None for given in (uuid, arqs, instance)) != 1:
            raise exception.Invalid(reason='Expected either ?arqs=UUID,UUID or ?instance=UUID.')
        if instance is not None:
            _require_service_token()
            seen = _seen(arqs_.seen_of, instance)
            rest.call().conductor.delete_arqs_of(instance=instance, seen=seen)
            return
        uuids = [uuid] if uuid is not None else [_uuid(each) for each in arqs]
        if not uuids:
            raise exception.Invalid(reason='Invalid arqs: expected at least one uuid.')
        missing = rest.call().conductor.delete_arqs(uuids=uuids, seen=self._seen_free(uuids))
        if missing:
            # Nova relies on this: the requests that exist are deleted before the error.
            raise exception.NotFound(what='ARQ', id=', '.join(missing))

    def _seen_free(self, uuids: list[str]) -> dict[str, int] | None:
        """The revisions that the caller saw; None if it may delete a request of an instance."""
        if _may_act_for_instances():
            return None
        rows = _read(arqs_.seen, uuids)
        for row in rows:
            if row.instance_uuid is not None:
                raise exception.ARQHeldByInstance(uuid=row.uuid, instance=row.instance_uuid)
        return _revisions(rows)


#: What reads revisions of requests: see arqs.seen and arqs.seen_of.
Reading = collections.abc.Callable[..., arqs_.Revisions]


def _seen(read: Reading, which: typing.Any) -> dict[str, int]:
    """The revisions that the caller saw: a conductor ignores a stale call."""
    return _revisions(_read(read, which))


def _revisions(rows: arqs_.Revisions) -> dict[str, int]:
    return {row.uuid: row.revision for row in rows}


def _read(read: Reading, which: typing.Any) -> arqs_.Revisions:
    ctxt = rest.call().context
    with rest.call().database.reader() as session:
        return read(session, arqs_.Sight(ctxt.scope, ctxt.vouched), which)


def _may_act_for_instances() -> bool:
    """Whether a service token came with the request; without Keystone there are none."""
    return rest.call().conf.api.auth_strategy != 'keystone' or rest.call().context.vouched


def _require_service_token() -> None:
    if not _may_act_for_instances():
        raise exception.ServiceTokenRequired()


def _uuid(text: str) -> str:
    try:
        return types.uuid.validate(text)
    except ValueError as error:
        raise exception.Invalid(reason=f'Invalid arqs: {error}.') from None


def _wish(uuid: str, patch: list[dict[str, str]]) -> dict[str, str]:
    """The target of a bind, in the form that the conductor takes."""
    _refuse_twice(f'patch of {uuid}', [operation['path'] for operation in patch])
    given = {operation['path'][1:]: operation.get('value') or '' for operation in patch}
    for name in ('hostname', 'device_rp_uuid', 'instance_uuid'):
        if not given.get(name):
            raise exception.Invalid(reason=f'Invalid patch of {uuid}: /{name} is missing or empty.')
    for name in ('device_rp_uuid', 'instance_uuid'):
        try:
            given[name] = types.uuid.validate(given[name])
        except ValueError as error:
            raise exception.Invalid(reason=f'Invalid /{name} of {uuid}: {error}.') from None
    return {'uuid': types.uuid.validate(uuid), **given, 'project_id': _named_owner(given)}


def _refuse_twice(where: str, names: list[str]) -> None:
    """Refuse a name that is given twice: the two values may contradict each other."""
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise exception.Invalid(reason=f'Invalid {where}: {twice[0]} is there twice.')


def _with_owners(wishes: list[dict[str, str]]) -> list[dict[str, str]]:
    """Add the owner to each: the project that an administrator names, or that of the instance.

    An instance that has released its accelerators keeps its project: an administrator may have
    evacuated it with a token of another project.  The caller owns an instance that never had any.
    """
    ctxt = rest.call().context
    owners: dict[str, str] = {}
    if ctxt.vouched:
        instances = {wish['instance_uuid'] for wish in wishes}
        with rest.call().database.reader() as session:
            rows = query.find(session, model.Instance, model.Instance.uuid.in_(instances))
            owners = {row.uuid: row.project_id for row in rows}
    for wish in wishes:
        known = wish['project_id'] or owners.get(wish['instance_uuid'])
        wish['project_id'] = known or ctxt.project_id or ''
    return wishes


def _named_owner(given: dict[str, str]) -> str:
    """The project that an administrator names as the owner; empty if none is named."""
    if 'project_id' not in given:
        return ''
    if rest.call().version < (2, 1):
        raise exception.NotAcceptable(
            reason='Request not acceptable. The minimal required API version should be 2.1'
        )
    if not rest.call().context.is_admin:
        raise exception.NotAuthorized(
            resource='cyborg:arq:update /project_id', needed='the role admin'
        )
    if not given['project_id']:
        raise exception.Invalid(reason='Invalid /project_id: expected the id of a project.')
    with contextlib.suppress(ValueError):
        # Keystone shows the ids of projects without dashes.
        return uuidlib.UUID(given['project_id']).hex
    return given['project_id']

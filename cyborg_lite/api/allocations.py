# SPDX-License-Identifier: Apache-2.0
"""/v2/allocations: not of Cyborg, and so the same at every microversion"""

from __future__ import annotations

import typing

from oslo_log import log
import oslo_messaging as messaging
import sqlalchemy as sa
from wsme import types as wtypes

from cyborg_lite import delivery
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.api import device_profiles
from cyborg_lite.api import rest
from cyborg_lite.api import types
from cyborg_lite.api import waiting
from cyborg_lite.db import queue as db_queue
from cyborg_lite.model import queue

LOG = log.getLogger(__name__)

#: How long a conductor may take to explain why an allocation waits, in seconds; and the errors
#: after which its stored reason is shown.
PATIENCE = 5
UNEXPLAINED = (
    exception.CyborgError,
    messaging.MessagingException,
    messaging.MessageUndeliverable,
)

#: The header that makes a request idempotent, and the maximum length of its value.
#: Source: draft-ietf-httpapi-idempotency-key-header.
KEY, KEY_LENGTH = 'Idempotency-Key', 255
#: The most accelerators of one allocation.
MOST = 1000
#: The longest lease, in seconds: a year.
LEASE = 366 * 24 * 3600

_NAME: types.Schema = {'type': 'string', 'minLength': 1, 'maxLength': 255}
_LEASE: types.Schema = {
    'type': 'integer',
    'minimum': 1,
    'maximum': LEASE,
    'description': f'seconds, from 1 to {LEASE}',
}
_GROUPS: types.Schema = {
    'type': 'array',
    'minItems': 1,
    'maxItems': 16,
    'items': {
        'type': 'object',
        'required': ['resources'],
        'additionalProperties': False,
        'properties': {
            'resources': {
                'type': 'object',
                'minProperties': 1,
                'maxProperties': 16,
                'additionalProperties': {'type': 'integer', 'minimum': 1, 'maximum': MOST},
                'description': f'amounts from 1 to {MOST} by resource class',
            },
            'traits': {
                'type': 'object',
                'maxProperties': 32,
                'additionalProperties': {'enum': ['required', 'forbidden']},
                'description': 'required or forbidden by trait',
            },
        },
    },
}

CREATE: types.Schema = {
    'type': 'object',
    'oneOf': [{'required': ['profile']}, {'required': ['groups']}],
    'additionalProperties': False,
    'description': 'an object with either profile or groups',
    'properties': {
        'profile': _NAME,
        'groups': _GROUPS,
        'alternatives': {'type': 'array', 'maxItems': 8, 'items': _GROUPS},
        'same_host': {'type': 'boolean'},
        'same_numa': {'enum': ['prefer', 'require']},
        'link': {'enum': ['prefer', 'require']},
        'hosts': {'type': 'array', 'minItems': 1, 'maxItems': 1000, 'items': _NAME},
        'name': {
            'type': 'string',
            'pattern': '^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$',
            'description': 'letters, digits, -, _ and dots, 255 characters at most',
        },
        'consumer': {
            'type': 'object',
            'required': ['type', 'id'],
            'additionalProperties': False,
            'properties': {'type': _NAME, 'id': _NAME},
        },
        **model.Allocation.LABELS,
        'lease': _LEASE,
        'starts_at': {
            'type': 'string',
            'maxLength': 64,
            'description': 'a time in ISO 8601, UTC if it names no zone',
        },
        'queue': {'type': 'boolean'},
        'possible': {'type': 'boolean'},
        'priority': {
            'type': 'integer',
            'minimum': queue.LOWEST,
            'maximum': queue.HIGHEST,
            'description': f'a whole number from {queue.LOWEST} to {queue.HIGHEST}',
        },
    },
}

UPDATE: types.Schema = {
    'type': 'object',
    'required': ['lease'],
    'additionalProperties': False,
    'properties': {'lease': _LEASE},
}

DELIVERIES: types.Schema = {
    'type': 'object',
    'required': ['deliveries'],
    'additionalProperties': False,
    'properties': {
        'deliveries': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': ['host', 'view', 'delivery'],
                'additionalProperties': False,
                'properties': {
                    'host': {'type': 'string'},
                    'view': {'enum': [*delivery.VIEWS]},
                    'delivery': {'type': 'object'},
                },
            },
        }
    },
}


class Allocations(rest.Controller):
    """Accelerators that consumers hold together."""

    kind, path, what = model.Allocation, 'allocations', 'Allocation'

    def scope(self) -> list[typing.Any]:
        project = rest.call().context.scope
        return [] if project is None else [model.Allocation.project_id == project]

    @rest.expose(
        paged=True,
        filters=dict.fromkeys(
            (
                'name',
                'state',
                'project_id',
                'user_name',
                'claimed_name',
                'profile',
                'consumer_type',
                'consumer_id',
            ),
            wtypes.text,
        ),
    )
    def get_all(self, page, wanted):
        rest.call().context.can('cyborg:allocation:get_all')
        if wanted['state'] not in (None, *model.Allocation.STATES):
            states = ', '.join(model.Allocation.STATES)
            raise exception.Invalid(reason=f'Invalid state: expected one of {states}.')
        given = {name: value for name, value in wanted.items() if value is not None}
        conditions = [getattr(model.Allocation, name) == given[name] for name in given]
        return self.list(*conditions, page=page)

    def read(self, *conditions, page=None):
        return self._placed(super().read(*conditions, page=page))

    def fetch(self, id, by=''):
        [row] = self._placed([super().fetch(id, by)])
        return row

    def _placed(self, rows: list[dict[str, typing.Any]]) -> list[dict[str, typing.Any]]:
        """Add its position to each allocation that is queued."""
        if any(row['state'] == 'queued' for row in rows):
            with rest.call().database.reader() as session:
                positions = db_queue.positions(session)
            for row in rows:
                row['position'] = positions.get(row['uuid'])
        return rows

    @rest.expose(wtypes.text, types.seconds)
    def get_one(self, id, wait=None):
        rest.call().context.can('cyborg:allocation:get_one')
        uuid = self._uuid(id)
        self._wait(uuid, wait)
        [row] = self._placed([self._explained(super().fetch(uuid))])
        return row

    def _explained(self, row: dict[str, typing.Any]) -> dict[str, typing.Any]:
        """With the reason of this moment, if it waits; the stored one if no conductor tells it.

        Conductors of the release before do not know the method.
        """
        if row['state'] == 'queued':
            conductor = rest.call().bus.conductor(rest.call().context, timeout=PATIENCE)
            try:
                row['reason'] = conductor.explain_waiting(uuid=row['uuid']) or row['reason']
            except UNEXPLAINED as error:
                LOG.info('The reason of allocation %s is the stored one: %s', row['uuid'], error)
        return row

    @rest.expose(wtypes.text, wtypes.text, wtypes.text, shows=DELIVERIES)
    def deliveries(self, id, view=None, host=None):
        rest.call().context.can('cyborg:allocation:get_one')
        view = 'json' if view is None else view
        if view not in delivery.VIEWS:
            raise exception.Invalid(
                reason=f'Invalid view: expected one of {", ".join(delivery.VIEWS)}.'
            )
        found = self.fetch(self._uuid(id))
        if found['state'] != 'active':
            raise exception.Conflict(
                reason=f'Allocation {found["uuid"]} is {found["state"]}: it holds nothing.'
            )
        uuid, held = found['uuid'], found['accelerators']
        documents = (
            delivery.document(uuid, name, held)
            for name in dict.fromkeys(each['host'] for each in held)
            if host in (None, name)
        )
        return {
            'deliveries': [
                {'host': each['host'], 'view': view, 'delivery': delivery.render(each, view)}
                for each in documents
            ]
        }

    @rest.expose(types.flag, types.seconds, status=201, body=CREATE)
    def post(self, dry_run=None, wait=None):
        rest.call().context.can('cyborg:allocation:create')
        request = _request(rest.body()) | {'key': _key()}
        if request.get('priority', 0) > 0:
            rest.call().context.can('cyborg:allocation:priority')
        if dry_run:
            rest.call().status = 200
            return rest.call().conductor.check_allocation(request=request)
        if 'starts_at' in request:
            uuid = rest.call().conductor.create_reservation(request=request)
        else:
            uuid = rest.call().conductor.create_allocation(request=request)
        self._wait(uuid, wait)
        try:
            return self.fetch(uuid)
        except Exception as error:
            if rest.away(error) is None:
                raise
            raise exception.CreatedUnread(what=self.what, uuid=uuid) from error

    @rest.expose(wtypes.text, body=UPDATE)
    def patch(self, id):
        rest.call().context.can('cyborg:allocation:update')
        lease = int(rest.body()['lease'])
        uuid = self._uuid(id)
        rest.call().conductor.renew_allocation(uuid=uuid, lease=lease)
        return self.fetch(uuid)

    @rest.expose(wtypes.text, status=204)
    def delete(self, id):
        rest.call().context.can('cyborg:allocation:delete')
        rest.call().conductor.release_allocation(uuid=self._uuid(id))

    def _wait(self, uuid: str, seconds: int | None) -> None:
        """Wait while an allocation is in the queue, for so many seconds at most."""
        if not seconds:
            return
        queued = sa.select(model.Allocation.id).where(
            model.Allocation.uuid == uuid, model.Allocation.state == 'queued', *self.scope()
        )

        def done() -> bool:
            with rest.call().database.reader() as session:
                return session.scalar(queued) is None

        waiting.wait(done, seconds)

    def _uuid(self, id: str) -> str:
        """The uuid of an allocation by its uuid, or by its name in the caller's project.

        A name means the allocation that is queued or active, or else the last one that was
        released.
        """
        if types.is_uuid(id):
            return types.canonical(id)
        named = (
            sa.select(model.Allocation.uuid)
            .where(
                model.Allocation.name == id,
                model.Allocation.project_id == rest.call().context.project_id,
            )
            .order_by(model.Allocation.active_name.is_(None), model.Allocation.id.desc())
        )
        with rest.call().database.reader() as session:
            uuid = session.scalar(named.limit(1))
        if uuid is None:
            raise exception.NotFound(what=self.what, id=id)
        return uuid


def _key() -> str | None:
    key = rest.call().headers.get(KEY)
    if key is not None and not (key.isprintable() and 1 <= len(key) <= KEY_LENGTH):
        raise exception.Invalid(
            reason=f'Invalid {KEY}: expected 1 to {KEY_LENGTH} printable characters.'
        )
    return key


def _request(body: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The request, in the form that the conductor takes."""
    if body.get('consumer', {}).get('type') == model.Allocation.PROCESS:
        raise exception.Invalid(
            reason=f'Invalid consumer.type: expected another type than {model.Allocation.PROCESS}, '
            'which only agents of hosts set: see "cyborg-lite run".'
        )
    if types.is_uuid(body.get('name', '')):
        raise exception.Invalid(reason='Invalid name: expected a name that is not a UUID.')
    if wrong := model.Allocation.wrong_label(body):
        raise exception.Invalid(reason=wrong)
    given = [('groups', body['groups'])] if 'groups' in body else []
    given += [(f'alternatives[{n}]', each) for n, each in enumerate(body.get('alternatives', ()))]
    return {
        'profile': body.get('profile'),
        'alternatives': [_groups(where, groups) for where, groups in given],
        'same_host': body.get('same_host', True),
        'same_numa': body.get('same_numa', 'prefer'),
        'hosts': body.get('hosts'),
        'name': body.get('name'),
        'consumer': body.get('consumer'),
        'lease': int(body['lease']) if 'lease' in body else None,
    } | _added(body)


def _added(body: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The fields that came with a later release, where they are given.

    A request without these fields keeps the digest that the previous release computed.
    """
    found = {'link': body['link']} if 'link' in body else {}
    found |= {field: body[field] for field in model.Allocation.LABELS if field in body}
    found |= {'starts_at': _start(body)} if 'starts_at' in body else {}
    found |= {'priority': int(body['priority'])} if 'priority' in body else {}
    return found | {field: True for field in ('queue', 'possible') if body.get(field)}


def _start(body: dict[str, typing.Any]) -> str:
    """When a reservation starts, in UTC."""
    try:
        start = types.Moment.parse(body['starts_at'])
    except ValueError as error:
        raise exception.Invalid(reason=f'Invalid starts_at: {error}.') from None
    if 'lease' not in body:
        raise exception.Invalid(
            reason='Invalid lease: expected a number of seconds, since starts_at reserves.'
        )
    if body.get('queue'):
        raise exception.Invalid(
            reason='Invalid queue: what starts at a time does not wait in the queue.'
        )
    return start.isoformat()


def _groups(where: str, groups: list[dict[str, typing.Any]]) -> list[dict[str, str]]:
    """Groups in the form of device profiles."""
    total = sum(int(amount) for group in groups for amount in group['resources'].values())
    if total > MOST:
        raise exception.Invalid(
            reason=f'Invalid {where}: expected {MOST} accelerators at most, got {total}.'
        )
    return [
        device_profiles.group(
            {f'resources:{name}': int(amount) for name, amount in group['resources'].items()}
            | {f'trait:{name}': value for name, value in group.get('traits', {}).items()},
            f'{where}[{number}]',
        )
        for number, group in enumerate(groups)
    ]

# SPDX-License-Identifier: Apache-2.0
"""Calls are idempotent: a second execution returns the first answer.

The answer of a commit is lost, or the bus delivers a message twice.
"""

import concurrent.futures
import contextlib
import os
import re
import socket
import threading
import types
import unittest.mock
import uuid

from oslo_db import api as db_api
from oslo_db import exception as db_exception
from oslo_messaging.rpc import dispatcher
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import outbox
from tests import support

ARQS = '/v2/accelerator_requests'
GROUPS = [{'resources:FPGA': '1'}]


@contextlib.contextmanager
def commit_lost(database):
    """The next commit reaches the server; then the connection is cut."""
    dialect, wrote, left = database.engine.dialect, threading.local(), [1]
    commit = dialect.do_commit

    def see(_connection, _cursor, statement, *_):
        wrote.anything = re.match('INSERT|UPDATE|DELETE', statement) or wrote.__dict__.get(
            'anything'
        )

    def do_commit(connection):
        commit(connection)
        if wrote.__dict__.pop('anything', None) and left:
            left.clear()
            cut(dialect.name, connection.dbapi_connection)

    event.listen(database.engine, 'before_cursor_execute', see)
    dialect.do_commit = do_commit
    try:
        yield
    finally:
        dialect.do_commit = commit
        event.remove(database.engine, 'before_cursor_execute', see)
    assert not left, 'nothing was committed'


def cut(engine, connection):
    """Cut a connection, and let its driver notice."""
    if engine == 'sqlite':
        raise db_exception.DBConnectionError  # there is nothing to cut
    with socket.socket(fileno=os.dup(_number(engine, connection))) as cable:
        cable.shutdown(socket.SHUT_RDWR)
    connection.cursor().execute('SELECT 1')


def _number(engine, connection):
    return connection.fileno() if engine == 'postgresql' else connection._sock.fileno()


@contextlib.contextmanager
def delivered_twice(_database):
    """The caller gets the answer to the second message."""
    dispatch = dispatcher.RPCDispatcher.dispatch

    def twice(self, incoming):
        with contextlib.suppress(Exception):
            dispatch(self, incoming)
        return dispatch(self, incoming)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.RPCDispatcher, 'dispatch', twice)
        yield


@contextlib.contextmanager
def delivered_to_two(_database):
    """Two conductors process the message concurrently; either may answer."""
    dispatch = dispatcher.RPCDispatcher.dispatch

    def both(self, incoming):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            made = [pool.submit(dispatch, self, incoming) for _ in range(2)]
        [first, second] = [each.result() for each in made]
        assert (first or None) == (second or None)
        return first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.RPCDispatcher, 'dispatch', both)
        yield


ALLOCATIONS = '/v2/allocations'
WISH = {'groups': [{'resources': {'FPGA': 1}}]}
AGENT = {'agent': 'agent-1'}
PROCESS = {
    'boot_id': 'b-1', 'pid': 7, 'started': 9, 'uid': 1000, 'user': 'jane', 'command': 'python',
}  # fmt: skip
#: The answer to a call of an agent, which has no status.
DONE = types.SimpleNamespace(status_int=200, text='')


class Things:
    """One object of each kind that can be deleted, and their prerequisites."""

    def __init__(self, service):
        self.service, self.api = service, service.api
        service.report(support.card(handles=5), **AGENT)
        [self.part] = service.rows(model.Deployable)
        [self.device] = service.rows(model.Device)
        service.profile()
        service.profile('idle')
        [self.free], [self.held] = service.arqs(), service.arqs()
        bound = self.api.bind(self.held, provider=self.part.rp_uuid, instance=support.INSTANCE)
        assert bound.status_int == 202
        body = {'deployable_id': self.part.uuid, 'key': 'rack', 'value': '12'}
        self.attribute = self.api.post('/v2/attributes', body).json['uuid']
        self.allocation = self.api.post(ALLOCATIONS, WISH | {'lease': 3600}).json['uuid']
        self.api.patch('/v2/quotas/p', {'limits': {'total': 1}})
        self.lease = self.agent('lease', process=PROCESS, request={'resource_class': 'FPGA'})
        for cards in ([support.card('4b'), support.card('5e')], [support.card('4b')]):
            service.report(*cards, host='host-2')
        devices = [each for each in service.rows(model.Device) if each.hostname == 'host-2']
        [self.missing] = [each.uuid for each in devices if each.absences]
        [self.disabled] = [each.uuid for each in devices if not each.absences]
        assert self.api.post(f'/v2/devices/{self.disabled}/disable').status_int == 204
        with service.database.writer() as session:
            session.query(model.Host).filter_by(name='host-2').update({'silent': True})

    def agent(self, method, **words):
        """A call of the agent of host-1."""
        peer = self.service.embedded.bus.leases(context.service())
        return getattr(peer, method)(host=support.HOST, **AGENT, **words)


def create_profile(things):
    body = [{'name': 'new', 'groups': GROUPS}]
    return things.api.post('/v2/device_profiles', body), model.DeviceProfile, 1


def create_profile_of_a_uuid(things):
    body = [{'name': 'new', 'uuid': str(uuid.uuid4()), 'groups': GROUPS}]
    return things.api.post('/v2/device_profiles', body), model.DeviceProfile, 1


def create_attribute(things):
    body = {'deployable_id': things.part.uuid, 'key': 'room', 'value': '1'}
    return things.api.post('/v2/attributes', body), model.Attribute, 1


def create_requests(things):
    return things.api.post(ARQS, {'device_profile_name': 'profile-1'}), model.ARQ, 1


def delete_profile(things):
    return things.api.delete('/v2/device_profiles/idle'), model.DeviceProfile, -1


def delete_profiles(things):
    return things.api.delete('/v2/device_profiles?value=idle'), model.DeviceProfile, -1


def delete_attribute(things):
    return things.api.delete(f'/v2/attributes/{things.attribute}'), model.Attribute, -1


def delete_request(things):
    return things.api.delete(f'{ARQS}/{things.free}'), model.ARQ, -1


def delete_requests(things):
    return things.api.delete(f'{ARQS}?arqs={things.free},{things.held}'), model.ARQ, -2


def delete_of_instance(things):
    return things.api.delete(f'{ARQS}?instance={support.INSTANCE}'), model.ARQ, -1


def unbind(things):
    return things.api.unbind(things.held), model.ARQ, 0


def bind(things):
    return things.api.bind(things.free, provider=things.part.rp_uuid), model.ARQ, 0


def disable(things):
    return things.api.post(f'/v2/devices/{things.device.uuid}/disable'), model.Device, 0


def allocate(things):
    return things.api.post(ALLOCATIONS, WISH), model.ARQ, 1


def allocate_in_the_queue(things):
    wish = {'groups': [{'resources': {'FPGA': 4}}], 'queue': True}
    return things.api.post(ALLOCATIONS, wish), model.Allocation, 1


def release(things):
    return things.api.delete(f'{ALLOCATIONS}/{things.allocation}'), model.ARQ, -1


def renew(things):
    path = f'{ALLOCATIONS}/{things.allocation}'
    return things.api.patch(path, {'lease': 7200}), model.Allocation, 0


def limit(things):
    return things.api.patch('/v2/quotas/q', {'limits': {'total': 2}}), model.Quota, 1


def take_limits_away(things):
    return things.api.delete('/v2/quotas/p'), model.Quota, -1


def delete_host(things):
    return things.api.delete('/v2/hosts/host-2'), model.Host, -1


def rename_host(things):
    return things.api.patch('/v2/hosts/host-2', {'name': 'host-3'}), model.Host, 0


def delete_device(things):
    return things.api.delete(f'/v2/devices/{things.missing}'), model.Device, -1


def enable(things):
    return things.api.post(f'/v2/devices/{things.disabled}/enable'), model.Device, 0


def free_instance(things):
    with unittest.mock.patch.object(outbox.Sender, 'knows', return_value=False):
        return things.api.delete(f'/v2/instances/{support.INSTANCE}'), model.ARQ, -1


def report(things):
    things.service.report(support.card(handles=5), support.card('6a'), **AGENT)
    return DONE, model.Device, 1


def lease(things):
    words = {'process': PROCESS, 'request': {'resource_class': 'FPGA'}, 'uuid': str(uuid.uuid4())}
    things.agent('lease', **words)
    return DONE, model.ARQ, 1


def lease_of_the_previous_release(things):
    """Its agents give no uuid."""
    things.agent('lease', process=PROCESS, request={'resource_class': 'FPGA'})
    return DONE, model.ARQ, 1


def end_lease(things):
    things.agent('end_lease', uuid=things.lease['uuid'], cause='Its process ended.')
    return DONE, model.ARQ, -1


ACTS = [
    create_profile, create_profile_of_a_uuid, create_attribute, create_requests, delete_profile,
    delete_profiles, delete_attribute, delete_request, delete_requests, delete_of_instance, unbind,
    bind, disable, allocate, allocate_in_the_queue, release, renew, limit, take_limits_away,
    delete_host, rename_host, delete_device, enable, free_instance, report, lease,
    lease_of_the_previous_release, end_lease,
]  # fmt: skip


@pytest.mark.parametrize('fault', [commit_lost, delivered_twice, delivered_to_two])
@pytest.mark.parametrize('act', ACTS)
def test_a_retried_call_answers_success(service, fault, act):
    things = Things(service)
    kinds = [model.ARQ, model.Allocation, model.Attribute, model.Device, model.DeviceProfile]
    before = {kind: len(service.rows(kind)) for kind in (*kinds, model.Host, model.Quota)}
    with fault(service.database):
        answer, kind, more = act(things)
    assert answer.status_int in (200, 201, 202, 204), answer.text
    assert len(service.rows(kind)) == before[kind] + more


OF_AGENTS = {report, lease, lease_of_the_previous_release, end_lease}


class Away:
    """A database that no transaction can begin in."""

    def __getattr__(self, name):
        raise db_exception.DBConnectionError('gone')


@pytest.mark.parametrize('act', ACTS)
def test_each_call_is_told_that_the_database_of_the_conductor_is_away(service, act, monkeypatch):
    things = Things(service)
    manager = service.manager
    # It is tried again, and waits before.
    monkeypatch.setattr(db_api.time, 'sleep', lambda _: None)
    for each in (manager, manager.outbox):
        monkeypatch.setattr(each, '_database', Away())
    if act in OF_AGENTS:
        with pytest.raises(exception.DatabaseAway):
            act(things)
        return
    answer, *_ = act(things)
    assert answer.status_int == 503, answer.text
    assert 'database' in support.fault(answer)


@contextlib.contextmanager
def upgraded_meanwhile(service, kept):
    """The first answer is stored in the form of another release, then the message comes again."""
    dispatch = dispatcher.RPCDispatcher.dispatch

    def twice(self, incoming):
        with contextlib.suppress(Exception):
            dispatch(self, incoming)
        with service.database.writer() as session:
            session.execute(sa.update(model.Call).values(answer=kept))
        return dispatch(self, incoming)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.RPCDispatcher, 'dispatch', twice)
        yield


#: As the release before keeps it, as one keeps it that answers by another form, and neither.
KEPT = [[[], ['a']], ['a'], 'a', None, {'form': 'tuple[str, str]', 'answer': ['a', 'b']}, {}]


@pytest.mark.parametrize(
    ('act', 'kept'),
    [
        *((delete_requests, kept) for kept in KEPT),
        *((act, KEPT[0]) for act in (create_profile, create_attribute, create_requests, unbind)),
    ],
)
def test_an_answer_of_another_release_is_a_503(service, act, kept):
    things = Things(service)
    with upgraded_meanwhile(service, kept):
        answer, kind, more = act(things)
    assert answer.status_int in (200, 201, 202, 204, 503), answer.text
    if answer.status_int == 503:
        assert 'has been carried out already' in support.fault(answer)


@pytest.mark.parametrize('fault', [delivered_twice, delivered_to_two])
def test_a_refused_call_stays_refused(service, fault):
    """A second, separate call gets the error."""
    things = Things(service)
    for act in create_profile, delete_profile, delete_request:
        assert act(things)[0].status_int in (201, 204)
    with fault(service.database):
        assert create_profile(things)[0].status_int == 409
        assert delete_profile(things)[0].status_int == 404
        assert delete_request(things)[0].status_int == 404


def test_answers_are_deleted_after_an_hour(service):
    service.profile()
    assert service.rows(model.Call)
    service.manager.healer.heal()
    assert service.rows(model.Call)
    with service.database.writer() as session:
        for call in session.query(model.Call):
            call.created_at -= model.Call.KEPT
    service.manager.healer.heal()
    assert service.rows(model.Call) == []

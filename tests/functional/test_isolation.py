# SPDX-License-Identifier: Apache-2.0
"""Two concurrent writers, step by step; SQLite serializes them."""

import contextlib
import re
import uuid

from oslo_db import exception as db_exception
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import inventory
from cyborg_lite.conductor import manager
from cyborg_lite.conductor import orders
from cyborg_lite.conductor import outbox
from cyborg_lite.db import engine
from tests import support
from tests.integration import process

pytestmark = pytest.mark.usefixtures('server')

CALLER = context.RequestContext(project_id='p', is_admin=True, overwrite=False)


#: The errors of a lock timeout.
LOCKED = (db_exception.DBDeadlock, sa.exc.OperationalError)

#: The report of a host that has lost its device.
NOTHING = {
    'host': support.HOST,
    'boot_id': 'boot-1',
    'sequence': 99,
    'interval': 3600,
    'digest': 'none',
    'devices': [],
    'drivers': {},
}


@pytest.fixture
def other(service):
    """Another conductor; its lock timeout is one second."""
    made = engine.Database(service.conf)
    waits = {'mysql': 'SET innodb_lock_wait_timeout = 1', 'postgresql': "SET lock_timeout = '1s'"}

    @event.listens_for(made.engine, 'connect')
    def connect(connection, _record):
        with connection.cursor() as cursor:
            cursor.execute(waits[made.engine.dialect.name])
        connection.commit()

    made.engine.dispose()
    yield made
    made.close()


@contextlib.contextmanager
def before(database, statement, act):
    """Call a function once, just before a matching statement is sent."""
    left = [act]

    def see(_connection, _cursor, sent, *_):
        if left and re.search(statement, sent, re.S):
            left.pop()()

    event.listen(database.engine, 'before_cursor_execute', see)
    try:
        yield
    finally:
        event.remove(database.engine, 'before_cursor_execute', see)
    assert not left, 'the statement was never sent'


def wish(service, host, bus='3b', **more):
    """The bind of a new request to the card on this bus."""
    name = f'{host}_0000:{bus}:00.0'
    [rp_uuid] = [part.rp_uuid for part in service.rows(model.Deployable) if part.name == name]
    [arq] = service.arqs()
    place = {'hostname': host, 'device_rp_uuid': rp_uuid, 'instance_uuid': arq}
    return {'uuid': arq, 'project_id': 'p', **place, **more}


def test_requests_of_one_profile_are_bound_on_two_hosts_at_the_same_time(service, other):
    for host in ('host-1', 'host-2'):
        service.report(support.card(), host=host)
    service.profile()
    first, second = wish(service, 'host-1'), wish(service, 'host-2')
    with service.database.writer() as session:
        binding.bind(session, CALLER, [first])
        with other.writer() as more:
            binding.bind(more, CALLER, [second])
    assert {arq.state for arq in service.rows(model.ARQ)} == {'Bound'}


def test_an_instance_waits_until_it_is_known_whether_it_has_requests(service, other):
    for host in ('host-1', 'host-2'):
        service.report(support.card(), host=host)
    service.profile()
    # Each locks its own host: they share only the instance.
    first, second = (
        wish(service, host, instance_uuid=support.INSTANCE) for host in ('host-1', 'host-2')
    )
    with service.database.writer() as session:
        binding.bind(session, CALLER, [first])
        with pytest.raises(LOCKED, match='(?i)lock'), other.writer() as more:
            binding.bind(more, CALLER, [second])
    with pytest.raises(exception.Invalid, match='already has'), other.writer() as more:
        binding.bind(more, CALLER, [second])


TELLING = {outbox.KINDS: {outbox.HOST, outbox.PROVIDER, outbox.EVENT}}
#: A name as clouds have them: longer than a UUID.
LONG = 'compute-0123.rack-07.pod-2.dc1.cloud.example.org'


@contextlib.contextmanager
def telling(database):
    """A transaction of a conductor with a Placement and a Nova."""
    with database.writer() as session:
        session.info |= TELLING | {outbox.PUT: set()}
        yield session
        session.flush()


def grouped(*buses):
    """Cards of one IOMMU group: a held card excludes the others."""
    cards = [support.card(bus) for bus in buses]
    for card in cards:
        card.deployables[0].attach_handles[0].iommu_group = '7'
    return cards


def test_binds_that_exclude_others_do_not_wait_for_another_host(service, other):
    for host in ('host-1', LONG):
        service.report(*grouped('3b', '3c'), host=host)
    service.profile()
    first, second = wish(service, 'host-1'), wish(service, LONG)
    with telling(service.database) as session:
        binding.bind(session, CALLER, [first])
        session.flush()
        with telling(other) as more:
            binding.bind(more, CALLER, [second])
    assert {arq.state for arq in service.rows(model.ARQ)} == {'Bound'}
    with telling(service.database) as session:
        binding.unbind(session, CALLER, [first['uuid']])
        session.flush()
        with telling(other) as more:
            binding.delete(more, CALLER, [second['uuid']])
    compared = [row.payload for row in service.rows(model.Message) if row.kind == outbox.HOST]
    assert compared == [{'name': 'host-1'}, {'name': LONG}]


def test_a_stopped_conductor_keeps_no_host_locked(service, other, monkeypatch):
    """The same holds after a power loss: others continue, and the conductor retries later."""
    service.report(support.card())
    monkeypatch.setattr(engine, 'IDLE', 1)
    database = engine.Database(service.conf)
    stopped = manager.Manager(service.conf, database)

    def take():
        with contextlib.suppress(*LOCKED), other.writer() as session:
            return inventory.receive(session, CALLER, NOTHING, 3) or True

    def stop():
        process.until(take)

    devices = [support.card(handles=2).facts()]
    report = {**NOTHING, 'sequence': 100, 'digest': 'more', 'devices': devices}
    with before(database, 'INSERT INTO attach_handles', stop):
        stopped.report(CALLER, **report)
    database.close()
    assert len(service.rows(model.AttachHandle)) == 2
    assert [device.absences for device in service.rows(model.Device)] == [0]


def test_hosts_report_for_the_first_time_at_the_same_time(service, other):
    """A search for an absent row does not block the insert of another."""
    nobody = sa.select(model.Host).where(model.Host.name == 'host-1').with_for_update()
    with service.database.writer() as session:
        assert session.scalar(nobody) is None
        with other.writer() as more:
            more.add(model.Host(name='host-2', boot_id='boot-1'))
        session.add(model.Host(name='host-1', boot_id='boot-1'))
    assert [host.name for host in service.rows(model.Host)] == ['host-2', 'host-1']


@pytest.mark.parametrize('order', ['disable', 'add a trait', 'delete a trait'])
def test_concurrent_changes_of_a_device_are_all_announced(service, other, order):
    """A report and a disable both announce a provider: the second one sees the first."""
    service.report(support.card())
    [part], [device] = service.rows(model.Deployable), service.rows(model.Device)
    with other.writer() as session:
        old = orders.add_attribute(session, CALLER, part.id, 'trait7', 'CUSTOM_OLD')
    act, *given = {
        'disable': (orders.set_status, device.uuid, 'maintaining'),
        'add a trait': (orders.add_attribute, part.id, 'trait8', 'CUSTOM_NEW'),
        'delete a trait': (orders.delete_attribute, old),
    }[order]
    outcome = []

    def give():
        try:
            with other.writer() as session:
                act(session, CALLER, *given)
        except LOCKED:
            outcome.append('waits')

    with before(service.database, 'INSERT INTO attach_handles', give):
        service.report(support.card(handles=2))
    assert outcome == ['waits']
    give()
    assert outcome == ['waits']


def test_a_report_waits_for_the_one_before(service, other):
    """Otherwise the older report could overwrite the newer one."""
    service.report(support.card())
    outcome = []

    def newer():
        try:
            with other.writer() as session:
                inventory.receive(session, CALLER, NOTHING, 3)
        except LOCKED:
            outcome.append('waits')
        else:
            outcome.append('is taken')

    with before(service.database, 'UPDATE hosts .* WHERE hosts.id', newer):
        service.report(support.card(handles=2))
    assert outcome == ['waits']
    assert len(service.rows(model.AttachHandle)) == 2


def test_a_device_that_goes_while_it_is_disabled_is_not_found(service, other):
    service.report(support.card())
    [device] = service.rows(model.Device)

    def remove():
        with other.writer() as session:
            session.delete(session.get(model.Device, device.id))

    with before(service.database, 'UPDATE devices', remove):
        answer = service.api.post(f'/v2/devices/{device.uuid}/disable')
    assert answer.status_int == 404


def test_a_bind_sees_the_changes_of_the_report_that_it_waited_for(service, other):
    """The device became missing after the start of the bind, before its read."""
    service.report(support.card())
    service.profile()
    wanted = wish(service, 'host-1')
    conductor = manager.Manager(service.conf, other)

    def report():
        conductor.report(CALLER, **NOTHING)

    with before(service.database, 'SELECT hosts.name', report):
        answer = service.api.bind(wanted['uuid'], provider=wanted['device_rp_uuid'], host='host-1')
    assert answer.status_int == 409
    assert 'missing' in support.fault(answer)


def test_a_bind_ignores_a_provider_that_was_added_after_its_lock(service, other):
    """The bind does not hold the lock of that provider's host."""
    service.report(support.card('3c'))
    service.profile()
    [arq] = service.arqs()
    rp_uuid = str(uuid.uuid3(uuid.NAMESPACE_DNS, 'host-1_0000:3b:00.0'))
    facts = [support.card(bus).facts() for bus in ('3b', '3c')]
    report = {**NOTHING, 'digest': 'more', 'devices': facts}
    conductor = manager.Manager(service.conf, other)
    with before(service.database, 'instance_uuid IN', lambda: conductor.report(CALLER, **report)):
        answer = service.api.bind(arq, provider=rp_uuid)
    assert answer.status_int == 404
    assert [part.rp_uuid for part in service.rows(model.Deployable)][-1] == rp_uuid


def test_messages_that_are_replaced_do_not_end_meanwhile(service, other):
    """The sender of the old messages is about to delete them."""

    def put(payload):
        with service.database.writer() as session:
            session.info |= {outbox.KINDS: {outbox.EVENT}, outbox.PUT: set()}
            outbox.put(session, outbox.EVENT, {'one': payload, 'two': payload})

    def end():
        with contextlib.suppress(*LOCKED), other.writer() as session:
            session.execute(sa.delete(model.Message))

    put({})
    with before(service.database, 'UPDATE messages', end):
        put({'arq': 'completed'})
    assert [message.key for message in service.rows(model.Message)] == ['one', 'two']

# SPDX-License-Identifier: Apache-2.0
"""Every migration, over a used database, and beside a running older release."""

import datetime
import json
import pathlib
import unittest

from alembic import script
from alembic.operations import base
from alembic.operations import ops
from oslo_db.sqlalchemy import test_migrations
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests import support

SCRIPTS = pathlib.Path(migration.__file__).with_name('alembic')


def fill_b754f9f71354(connection, tables):
    """A host with a card, one of whose two accelerators is held, and a message."""

    def add(name, /, **values):
        table, values = tables[name], {'uuid': name, 'created_at': sa.func.now()} | values
        for column, value in values.items():
            # MariaDB has no JSON type.
            if isinstance(value, dict | list) and not isinstance(table.c[column].type, sa.JSON):
                values[column] = json.dumps(value)
        connection.execute(sa.insert(table).values(**values))
        return connection.scalar(sa.select(sa.func.max(table.c.id)))

    common = {'interval': 20, 'seen_at': sa.func.now(), 'past_boots': [], 'drivers': {}}
    add('hosts', name='hôst-1 😀', boot_id='boot-1', sequence=2**40, **common)
    facts = {'type': 'FPGA', 'vendor': 'é' * 255, 'model': '一', 'address': '0000:3b:00.0'}
    state = {'hostname': 'hôst-1 😀', 'status': 'enabled', 'absences': 0}
    device = add('devices', **facts, **state)
    names = {'name': 'card', 'driver_name': 'fake', 'rp_uuid': support.INSTANCE}
    part = add('deployables', **names, device_id=device, announced={'total': 2})
    add('attributes', key='rc', value='FPGA', deployable_id=part, added=False)
    handle = {'attach_type': 'PCI', 'deployable_id': part, 'lost': False}
    add('attach_handles', uuid='free', attach_info={'bus': '3b'}, **handle)
    held = add('attach_handles', attach_info={'bus': '3c'}, **handle)
    profile = add('device_profiles', name='p', groups=[{'resources:FPGA': '1'}])
    owner = {'device_profile_id': profile, 'device_profile_group_id': 0, 'project_id': 'p'}
    add('accelerator_requests', state='Bound', attach_handle_id=held, **owner)
    due = {'due_at': sa.func.now(), 'attempts': 3, 'stamp': 's', 'payload': {}}
    add('messages', kind='provider', key=support.INSTANCE, **due)


def fill_8c41d07be2f6(connection, tables):
    """A host that has fallen silent."""
    host = {'name': 'host-2', 'uuid': 'host-2', 'boot_id': 'boot-1', 'sequence': 1, 'interval': 20}
    host |= {'created_at': sa.func.now(), 'seen_at': sa.func.now(), 'silent': True}
    connection.execute(sa.insert(tables['hosts']).values(past_boots='[]', drivers='{}', **host))


def fill_4c1e7a90b2d8(connection, tables):
    """A leased message."""
    message = {'uuid': 'leased', 'created_at': sa.func.now(), 'due_at': sa.func.now()}
    message |= {'kind': 'event', 'key': support.INSTANCE, 'attempts': 1, 'stamp': 's'}
    connection.execute(sa.insert(tables['messages']).values(payload='{}', lease='l', **message))


def fill_e2b6d05f3a71(connection, tables):
    """A request and a device that have moved."""
    for table in ('accelerator_requests', 'devices'):
        connection.execute(sa.update(tables[table]).values(revision=3))


def fill_7a2f9d4c61e0(connection, tables):
    """A host of a known machine that has another name now."""
    host = {'name': 'host-3', 'uuid': 'host-3', 'boot_id': 'boot-1', 'sequence': 1, 'interval': 20}
    host |= {'created_at': sa.func.now(), 'seen_at': sa.func.now(), 'machine': 'm'}
    host |= {'renamed_to': 'host-2', 'past_boots': '[]', 'drivers': '{}', 'past_agents': '[]'}
    connection.execute(sa.insert(tables['hosts']).values(**host))


def fill_a93d6e0c51f7(connection, tables):
    """A call that was answered."""
    call = {'uuid': support.INSTANCE, 'created_at': sa.func.now(), 'answer': '["a"]'}
    connection.execute(sa.insert(tables['calls']).values(**call))


def fill_b17f4d2e8c05(connection, tables):
    """An instance that released its accelerator."""
    instance = {'uuid': support.INSTANCE, 'created_at': sa.func.now(), 'project_id': 'p'}
    connection.execute(sa.insert(tables['instances']).values(**instance))


def fill_d41f6b2a9e73(connection, tables):
    """A request with a stored move."""
    connection.execute(sa.update(tables['accelerator_requests']).values(moves='[]'))


def fill_c7e1a4f09b36(connection, tables):
    """A host that reports again under its old name."""
    connection.execute(sa.update(tables['hosts']).values(returns='["boot-2 agent-2 7"]'))


def fill_f5a07c93e1b4(connection, tables):
    """A project with a limit."""
    quota = {'uuid': support.INSTANCE, 'created_at': sa.func.now(), 'project_id': 'p'}
    connection.execute(sa.insert(tables['quotas']).values(**quota, limits='{"total": 1}'))


def fill_d3f81b6a0c24(connection, tables):
    """An allocation with a request, and a profile of its own."""
    lists = {'groups': '[]', 'accelerators': '[]'}
    allocation = {'uuid': support.INSTANCE, 'created_at': sa.func.now(), 'project_id': 'p'}
    allocation |= {'state': 'active', 'digest': 'd', 'name': 'é' * 255, 'active_name': 'é' * 255}
    allocation |= {'idempotency_key': 'é' * 255, 'lease_ends_at': sa.func.now()}
    connection.execute(sa.insert(tables['allocations']).values(**allocation, **lists))
    held = sa.update(tables['accelerator_requests']).values(allocation_uuid=support.INSTANCE)
    connection.execute(held)
    connection.execute(sa.update(tables['device_profiles']).values(private=True))


def fill_a5e83c1d7f42(connection, tables):
    """A queued allocation."""
    waits = {'state': 'queued', 'queue': 'é' * 255, 'amount': 1, 'wish': '{}', 'over_quota': True}
    connection.execute(sa.update(tables['allocations']).values(**waits))


def fill_c94e7b1f6a20(connection, tables):
    """A finished interval."""
    interval = {'project_id': 'é' * 255, 'resource_class': 'FPGA', 'host': 'hôst-1 😀'}
    interval |= dict.fromkeys(('device_uuid', 'accelerator_uuid', 'arq_uuid'), support.INSTANCE)
    times = dict.fromkeys(('began_at', 'ended_at'), sa.func.now())
    connection.execute(sa.insert(tables['usages']).values(**interval, **times))


def fill_5b8d02e6c7f1(connection, tables):
    """A device with bad health."""
    health = {'health': 'warning', 'health_reason': 'pcie_width', 'health_since': sa.func.now()}
    connection.execute(sa.update(tables['devices']).values(**health))


def fill_6e1f9a3c7b05(connection, tables):
    """A faulty device, and a host whose agent counts scans."""
    fault = {'streak': -1, 'fault': 'critical: xid_79', 'withheld': True, 'changes': '[]'}
    connection.execute(sa.update(tables['devices']).values(**fault))
    connection.execute(sa.update(tables['hosts']).values(looks='{"fake": ["a", 1]}'))


def fill_3f7c5a918e2d(connection, tables):
    """A device whose samples differ."""
    samples = {'streak': 2, 'nearest': 'warning: pcie_width', 'further': 1}
    connection.execute(sa.update(tables['devices']).values(**samples))


def fill_9d4e2b71c6a8(connection, tables):
    """A host whose agent has a secret."""
    connection.execute(sa.update(tables['hosts']).values(secret='0' * 64))


def fill_1d7c9e4b83f0(connection, tables):
    """A host whose kernel keeps users from devices."""
    connection.execute(sa.update(tables['hosts']).values(access='acl'))


def fill_2e8d0f5c94a1(connection, tables):
    """A device that a process uses without a lease."""
    connection.execute(sa.update(tables['devices']).values(rogue='4711 bob (python)'))


def fill_e7b3150c92da(connection, tables):
    """A device with links."""
    links = '{"bridges": ["0000:40:01.0"], "links": {"0000:c2:00.0": 4}}'
    connection.execute(sa.update(tables['devices']).values(topology=links))


def fill_b6f2d80c3e95(connection, tables):
    """An allocation whose user is known."""
    connection.execute(sa.update(tables['allocations']).values(user_name='é' * 255))


def fill_f1c84d7e2a90(connection, tables):
    """A device that does no work."""
    values = {'idle_since': datetime.datetime(2026, 11, 27, 1, 2, 3), 'used': False}
    connection.execute(sa.update(tables['devices']).values(**values))
    connection.execute(sa.update(tables['hosts']).values(idle_after=1800))


def fill_0b7e5d29c4f8(connection, tables):
    """An allocation that does no work."""
    when = datetime.datetime(2026, 11, 27, 1, 2, 3)
    values = {'idle_since': when, 'idle_told': True, 'idle_until': when}
    connection.execute(sa.update(tables['allocations']).values(**values))


def fill_8b3e6f1d2c97(connection, tables):
    """An allocation of somebody who shares a login."""
    labels = {'claimed_name': '简' * 64, 'note': '😀' * 255}
    connection.execute(sa.update(tables['allocations']).values(**labels))


def fill_5c9e27f4d1a8(connection, tables):
    """A reservation, with what is kept for it."""
    start, end = datetime.datetime(2026, 11, 28, 9), datetime.datetime(2026, 11, 28, 12)
    names = {'allocation_uuid': 'a', 'accelerator_uuid': 'free', 'device_uuid': 'd', 'form': 'vf'}
    connection.execute(sa.insert(tables['promises']).values(starts_at=start, ends_at=end, **names))
    connection.execute(sa.update(tables['allocations']).values(starts_at=start, claim_by=end))


def fill_2d6f8b1e9c47(connection, tables):
    """An allocation whose process is in a container."""
    connection.execute(sa.update(tables['allocations']).values(container='3f1c9ab27d04'))


def fill_8a4f1d6c3b97(connection, tables):
    """A card that an allocation has left, of a host that looks at processes."""
    connection.execute(sa.update(tables['hosts']).values(observes=True))
    connection.execute(sa.update(tables['devices']).values(left_after=f'{"b" * 36} {2**63 - 1}'))


#: By revision, the function that adds rows for it: each new revision needs one.
FILL = {
    'b754f9f71354': fill_b754f9f71354,
    '8c41d07be2f6': fill_8c41d07be2f6,
    '4c1e7a90b2d8': fill_4c1e7a90b2d8,
    'e2b6d05f3a71': fill_e2b6d05f3a71,
    '7a2f9d4c61e0': fill_7a2f9d4c61e0,
    'a93d6e0c51f7': fill_a93d6e0c51f7,
    'b17f4d2e8c05': fill_b17f4d2e8c05,
    'd41f6b2a9e73': fill_d41f6b2a9e73,
    'c7e1a4f09b36': fill_c7e1a4f09b36,
    'f5a07c93e1b4': fill_f5a07c93e1b4,
    'a5e83c1d7f42': fill_a5e83c1d7f42,
    'd3f81b6a0c24': fill_d3f81b6a0c24,
    'c94e7b1f6a20': fill_c94e7b1f6a20,
    '5b8d02e6c7f1': fill_5b8d02e6c7f1,
    '6e1f9a3c7b05': fill_6e1f9a3c7b05,
    '3f7c5a918e2d': fill_3f7c5a918e2d,
    '9d4e2b71c6a8': fill_9d4e2b71c6a8,
    '1d7c9e4b83f0': fill_1d7c9e4b83f0,
    '2e8d0f5c94a1': fill_2e8d0f5c94a1,
    'e7b3150c92da': fill_e7b3150c92da,
    'b6f2d80c3e95': fill_b6f2d80c3e95,
    'f1c84d7e2a90': fill_f1c84d7e2a90,
    '0b7e5d29c4f8': fill_0b7e5d29c4f8,
    '8b3e6f1d2c97': fill_8b3e6f1d2c97,
    '5c9e27f4d1a8': fill_5c9e27f4d1a8,
    '2d6f8b1e9c47': fill_2d6f8b1e9c47,
    '8a4f1d6c3b97': fill_8a4f1d6c3b97,
}


def revisions():
    """All revisions, the first one first."""
    found = script.ScriptDirectory(str(SCRIPTS)).walk_revisions()
    return [each.revision for each in found][::-1]


def contents(connection):
    """The tables, and their rows by columns."""
    found = sa.MetaData()
    found.reflect(connection)
    rows = {
        name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
        for name, table in found.tables.items()
        if name != 'alembic_version'
    }
    return found.tables, rows


@pytest.fixture
def fresh(databases):
    """A database without tables."""
    with databases.new() as url:
        conf = options.load(files=[], database__connection=url)
        made = engine.Database(conf)
        yield made
        made.close()


def test_each_migration_keeps_the_rows_of_those_before(fresh):
    known = {}
    for revision in revisions():
        assert revision in FILL, f'{revision} brings no rows to be migrated: add them to FILL'
        migration.upgrade(fresh.engine, revision)
        with fresh.engine.begin() as connection:
            tables, now = contents(connection)
            for name, rows in known.items():
                for old, new in zip(rows, now[name], strict=True):
                    assert old.items() <= new.items(), name
            FILL[revision](connection, tables)
            _, known = contents(connection)
    assert migration.version(fresh.engine) == migration.head()
    assert known.keys() == model.Base.metadata.tables.keys()
    assert all(known.values()), 'each table has a row'


def test_the_rows_can_be_read_by_the_models(fresh):
    for revision in revisions():
        migration.upgrade(fresh.engine, revision)
        with fresh.engine.begin() as connection:
            FILL[revision](connection, contents(connection)[0])
    with fresh.reader() as session:
        [arq] = session.query(model.ARQ)
        assert (arq.attach_handle_info, arq.revision) == ({'bus': '3c'}, 3)
        assert arq.device_profile.groups == [{'resources:FPGA': '1'}]
        [part] = session.query(model.Deployable)
        assert [host.silent for host in session.query(model.Host)] == [False, True, False]
        assert (part.handle_count, part.device.host.name) == (2, 'hôst-1 😀')
        assert (part.device.vendor, part.device.host.sequence) == ('é' * 255, 2**40)


def test_a_held_accelerator_has_usage_since_its_bind(fresh):
    moves = [
        {'at': f'2026-11-0{day}T01:02:03+00:00', 'state': state}
        for day, state in ((1, 'Bound'), (2, 'Unbound'), (3, 'Bound'))
    ]
    for revision in revisions():
        if revision == 'c94e7b1f6a20':
            with fresh.engine.begin() as connection:
                table = contents(connection)[0]['accelerator_requests']
                connection.execute(sa.update(table).values(moves=json.dumps(moves)))
        migration.upgrade(fresh.engine, revision)
        with fresh.engine.begin() as connection:
            FILL[revision](connection, contents(connection)[0])
    with fresh.reader() as session:
        [arq] = session.query(model.ARQ)
        assert arq.held_since == datetime.datetime(2026, 11, 3, 1, 2, 3)
        assert arq.resource_class == 'FPGA'


def test_times_keep_their_microseconds(fresh):
    migration.upgrade(fresh.engine)
    when = datetime.datetime(2026, 11, 26, 1, 2, 3, 456789)
    times = {'created_at': when, 'updated_at': when}
    with fresh.writer() as session:
        session.add(model.Host(name='a', boot_id='b', seen_at=when, **times))
        session.add(model.Message(kind='event', key='k', stamp='s', due_at=when, **times))
    with fresh.reader() as session:
        host, message = session.query(model.Host).one(), session.query(model.Message).one()
        assert {host.created_at, host.updated_at, host.seen_at} == {when}
        assert {message.created_at, message.due_at} == {when}


def test_every_text_of_mariadb_is_compared_by_its_bytes(fresh):
    if fresh.engine.dialect.name != 'mysql':
        pytest.skip('this is about MariaDB alone')
    migration.upgrade(fresh.engine)
    columns = sa.text(
        'SELECT table_name, column_name, collation_name FROM information_schema.columns'
        " WHERE table_schema = database() AND table_name <> 'alembic_version'"
        " AND collation_name NOT IN ('utf8mb4_nopad_bin', 'utf8mb4_bin')"
    )
    with fresh.engine.connect() as connection:
        assert connection.execute(columns).all() == []


class TestModelsEqualMigrations(test_migrations.ModelsMigrationsSync, unittest.TestCase):
    """oslo.db's comparison."""

    @pytest.fixture(autouse=True)
    def _begin(self, fresh):
        self.database = fresh

    def db_sync(self, engine):
        migration.upgrade(engine)

    def get_engine(self):
        return self.database.engine

    def get_metadata(self):
        return model.Base.metadata

    def include_object(self, object_, name, type_, reflected, compare_to):
        return not (type_ == 'table' and name == 'alembic_version')

    def compare_server_default(self, ctxt, ins_col, meta_col, insp_def, meta_def, rendered):
        if insp_def == "''" == rendered:  # for MariaDB oslo.db compares a text with an expression
            return False
        return super().compare_server_default(ctxt, ins_col, meta_col, insp_def, meta_def, rendered)


def expands(operation, made):
    """Whether an older release works as before after the operation.

    :param made: the tables, and (table, column) pairs, that its migration has made
    """
    if isinstance(operation, ops.AddColumnOp):
        return bool(operation.column.nullable or operation.column.server_default)
    if isinstance(operation, ops.CreateIndexOp):
        # The old release leaves a new column null, and nulls are never equal.
        new = {(operation.table_name, getattr(c, 'name', c)) for c in operation.columns} & made
        return not operation.unique or operation.table_name in made or bool(new)
    if isinstance(operation, ops.DropConstraintOp):
        return operation.constraint_type == 'unique'
    if isinstance(operation, ops.AlterColumnOp):
        # Only the precision of the time changes.
        precise = isinstance(operation.modify_type, mysql.DATETIME) and operation.modify_type.fsp
        return bool(precise and operation.modify_nullable is None)
    return isinstance(operation, ops.CreateTableOp)


def makes(operations):
    """The tables and columns that these operations create."""
    tables = {each.table_name for each in operations if isinstance(each, ops.CreateTableOp)}
    return tables | {
        (each.table_name, each.column.name)
        for each in operations
        if isinstance(each, ops.AddColumnOp)
    }


@pytest.fixture
def seen(monkeypatch):
    """The operations of migrations from now on."""
    found = []
    invoke = base.AbstractOperations.invoke

    def see(self, operation):
        found.append(operation)
        return invoke(self, operation)

    monkeypatch.setattr(base.AbstractOperations, 'invoke', see)
    return found


def test_migrations_only_add(fresh, seen):
    """A running older release continues to work: its tables and columns do not change."""
    for revision in revisions():
        seen.clear()
        migration.upgrade(fresh.engine, revision)
        made = makes(seen)
        assert seen, revision
        for operation in seen:
            assert expands(operation, made), (revision, operation.to_diff_tuple())


NUMBER = sa.Column('number', sa.Integer(), nullable=False)


@pytest.mark.parametrize(
    'operation',
    [
        ops.DropTableOp('hosts'),
        ops.DropColumnOp('hosts', 'digest'),
        ops.RenameTableOp('hosts', 'machines'),
        ops.AlterColumnOp('hosts', 'digest', modify_nullable=False),
        ops.AddColumnOp('hosts', NUMBER),
        ops.CreateIndexOp('a', 'hosts', ['digest'], unique=True),
        ops.CreateUniqueConstraintOp('a', 'hosts', ['digest']),
        ops.DropConstraintOp('a', 'hosts', type_='foreignkey'),
        ops.AlterColumnOp('hosts', 'digest', modify_type=sa.String(8)),
        ops.ExecuteSQLOp('DELETE FROM hosts'),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_a_destructive_operation_is_not_an_expansion(operation):
    assert not expands(operation, {'devices'})


def test_no_migration_goes_back():
    for revision in script.ScriptDirectory(str(SCRIPTS)).walk_revisions():
        assert not hasattr(revision.module, 'downgrade')

# SPDX-License-Identifier: Apache-2.0
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import quotas
from cyborg_lite.db import engine
from cyborg_lite.db import quotas as counts
from tests import support
from tests.unit.conductor import direct

P = {'project_id': 'p'}


@pytest.fixture
def sent(service):
    """A session of a project with a limit, and the statements as PostgreSQL would be sent them."""
    service.profile()
    service.report(support.card())
    service.api.patch('/v2/quotas/p', {'limits': {'total': 1}})
    seen = []
    with service.database.writer() as session:

        @event.listens_for(session.connection(), 'before_execute')
        def see(_connection, statement, *_):
            if isinstance(statement, sa.SelectBase):
                seen.append(str(statement.compile(dialect=postgresql.dialect())))

        yield session, seen


def test_the_project_is_locked_before_it_is_counted(sent):
    """SQLite has one writer at a time: what the others are sent tells."""
    session, seen = sent
    quotas.claim(session, 'p', {'FPGA': 1})
    [lock] = [n for n, text in enumerate(seen) if 'FOR UPDATE' in text]
    assert 'FROM quotas' in seen[lock]
    after = [n for n, text in enumerate(seen) if 'accelerator_requests' in text]
    assert after
    assert min(after) > lock
    # Limits count as they are once the lock is had.
    assert any('quotas.limits' in text for text in seen[lock + 1 :])


def test_an_allocation_locks_its_host_then_its_project_and_counts_after_that(sent, monkeypatch):
    monkeypatch.setattr(engine, 'has_one_writer', lambda _: False)
    session, seen = sent
    request = {'profile': 'profile-1', 'alternatives': [], 'same_host': True}
    request |= {'same_numa': 'prefer', 'hosts': None}
    allocating.create(session, direct.member('p'), request, 'binpack')
    host, project = [n for n, text in enumerate(seen) if 'FOR UPDATE' in text]
    assert 'FROM hosts' in seen[host]
    assert 'FROM quotas' in seen[project]
    assert max(n for n, text in enumerate(seen) if 'UNION ALL' in text) > project


def test_the_first_request_of_a_project_makes_the_row_that_is_locked(sent):
    session, _ = sent
    session.execute(sa.update(model.Quota).values(project_id=model.Quota.DEFAULTS))
    quotas.claim(session, 'p', {'FPGA': 1})
    rows = session.scalars(sa.select(model.Quota).where(model.Quota.project_id == 'p'))
    assert [row.limits for row in rows] == [{}]


@pytest.mark.parametrize(
    ('asked', 'refused'),
    [
        ({'FPGA': 2}, None),
        ({'FPGA': 3}, 'FPGA'),
        ({'FPGA': 2, 'PGPU': 1}, None),
        ({'FPGA': 2, 'PGPU': 2}, 'total'),
        ({'PGPU': 4}, 'total'),
        ({}, None),
    ],
)
def test_each_class_and_the_total_have_their_limit(sent, asked, refused):
    session, _ = sent
    session.execute(sa.update(model.Quota).values(limits={'FPGA': 2, 'total': 3, 'PGPU': -1}))
    if refused is None:
        quotas.claim(session, 'p', asked)
        return
    with pytest.raises(exception.OverQuota, match=f'for {refused}: the limit is'):
        quotas.claim(session, 'p', asked)


@pytest.mark.parametrize(
    ('group', 'count', 'shares'),
    [
        ({'resources:FPGA': '2'}, 3, {'FPGA': 3}),
        ({'resources:FPGA': '2', 'resources:PGPU': '1'}, 3, {'FPGA': 2, 'PGPU': 1}),
        ({'resources:FPGA': '2', 'resources:PGPU': '1'}, 6, {'FPGA': 4, 'PGPU': 2}),
        # One is gone, and nobody knows for which class it was.
        ({'resources:FPGA': '2', 'resources:PGPU': '1'}, 2, {'FPGA': 2, 'PGPU': 1}),
        # Cyborg let such profiles pass.
        ({'resources:FPGA': '-2', 'resources:PGPU': '1'}, 1, {'PGPU': 1}),
        ({'resources:FPGA': '0'}, 0, {}),
        ({'trait:CUSTOM_A': 'required'}, 0, {}),
    ],
)
def test_requests_of_a_group_are_shared_by_its_classes(group, count, shares):
    assert counts.shares(group, count) == shares


def test_an_empty_database_uses_nothing(service):
    with service.database.reader() as session:
        assert isinstance(session, orm.Session)
        assert counts.usage(session, 'p') == {}
        assert counts.limits(session, 'p') == {}

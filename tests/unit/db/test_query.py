# SPDX-License-Identifier: Apache-2.0
import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import query

NODES = (1, None, 0, None, 1, 0, None)


@pytest.fixture
def session(database):
    """Seven devices: their NUMA nodes are often equal, and often null."""
    with database.writer() as writing:
        writing.add(model.Host(name='host-1', boot_id='boot-1'))
        writing.flush()
        for number, node in enumerate(NODES):
            facts = {'type': 'GPU', 'vendor': '10de', 'model': 'x', 'address': f'a{number}'}
            writing.add(
                model.Device(**facts, numa_node=node, hostname='host-1', uuid=f'uuid-{number}')
            )
    with database.reader() as reading:
        yield reading


def pages(session, limit, **more):
    """The numbers of the devices, page by page."""
    marker, seen = None, []
    while len(seen) < 10:  # pages that go round end, too
        page = query.Page(limit=limit, marker=marker, **more)
        rows = query.find(session, model.Device, page=page)
        seen.append([int(row.address[1:]) for row in rows])
        if len(rows) < limit:
            break
        marker = rows[-1].uuid
    return seen


def expected(sort_key, sort_dir):
    """Nulls last in either direction, and equal ones in the order of creation."""
    sign = 1 if sort_dir == 'asc' else -1
    if sort_key == 'numa_node':
        return sorted(range(7), key=lambda n: (NODES[n] is None, sign * (NODES[n] or 0), sign * n))
    return list(range(7))[::sign]


@pytest.mark.parametrize('sort_dir', ['asc', 'desc'])
@pytest.mark.parametrize('sort_key', ['id', 'uuid', 'address', 'numa_node', 'created_at'])
@pytest.mark.parametrize('limit', [1, 2, 3, 7, 8])
def test_pages_have_each_row_once_and_in_order(session, limit, sort_key, sort_dir):
    seen = [number for page in pages(session, limit, sort_key=sort_key, sort_dir=sort_dir)
            for number in page]  # fmt: skip
    assert sorted(seen) == list(range(7))
    assert [NODES[n] for n in seen] == [NODES[n] for n in expected(sort_key, sort_dir)]
    if sort_key != 'numa_node':
        assert seen == expected(sort_key, sort_dir)


def test_page_after_the_last(session):
    assert query.find(session, model.Device, page=query.Page(marker='uuid-6')) == []


@pytest.mark.parametrize('marker', ['nobody', '', "' OR 1=1 --"])
def test_unknown_marker(session, marker):
    with pytest.raises(exception.Invalid, match='Invalid marker') as refused:
        query.find(session, model.Device, page=query.Page(marker=marker))
    assert repr(marker) in str(refused.value)


def test_find_without_a_page_finds_all(session):
    assert len(query.find(session, model.Device)) == 7


def test_find_with_conditions(session):
    rows = query.find(session, model.Device, model.Device.numa_node == 1)
    assert [row.uuid for row in rows] == ['uuid-0', 'uuid-4']
    page = query.Page(limit=1, marker='uuid-0')
    rows = query.find(session, model.Device, model.Device.numa_node == 1, page=page)
    assert [row.uuid for row in rows] == ['uuid-4']


def test_marker_that_is_out_of_scope_is_unknown(session):
    """A caller must not learn of a row that it may not see."""
    page = query.Page(marker='uuid-3')
    with pytest.raises(exception.Invalid, match='Invalid marker'):
        query.find(session, model.Device, scope=[model.Device.numa_node == 1], page=page)


def test_marker_need_not_meet_the_conditions_any_more(session):
    """A request may be unbound while a list of the bound ones is walked."""
    page = query.Page(marker='uuid-3')
    query.find(session, model.Device, model.Device.numa_node == 1, page=page)


def test_get(session):
    row = query.get(session, model.Device, 'uuid-3', what='Device')
    assert row.address == 'a3'
    assert query.get(session, model.Device, 'a3', what='Device', by='address').uuid == 'uuid-3'


def test_get_of_none(session):
    with pytest.raises(exception.NotFound, match='Device nobody not found'):
        query.get(session, model.Device, 'nobody', what='Device')


def test_get_of_what_the_conditions_exclude(session):
    with pytest.raises(exception.NotFound, match='Device uuid-3 not found'):
        query.get(session, model.Device, 'uuid-3', sa.false(), what='Device')

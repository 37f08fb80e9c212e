# SPDX-License-Identifier: Apache-2.0
"""The checks accept possible reservations, and find impossible ones."""

import datetime
import types

import pytest
import sqlalchemy as sa

from cyborg_lite import model
from tests import support
from tests.integration import invariants
from tests.soak import allocations
from tests.soak import history
from tests.soak import watch


def asked(kind, at, outcome='ok', state='', held=(), near=True):
    """An operation that takes a second."""
    wanted = 2 if kind == 'reserve' else 0
    more = {'name': 'n', 'state': state, 'accelerators': held, 'wanted': wanted, 'near': near}
    return history.Operation(0, kind, (), at, at + 1, outcome, 200, **more)


NEAR, FAR = (asked('reserve', 0, state='reserved', near=near) for near in (True, False))
ACTIVE = asked('look', 2, state='active', held=('x', 'y'))
DRAWN = asked('draw', 4, held=('x',))


@pytest.mark.parametrize(
    'told',
    [
        [NEAR, ACTIVE, DRAWN, asked('look', 6, state='active', held=('x', 'y'))],
        [NEAR, asked('look', 2, state='released')],
        [NEAR, ACTIVE, asked('look', 6, state='released')],
        [NEAR, ACTIVE, asked('draw', 4, 'fail'), asked('look', 6, state='released')],
        [FAR, asked('look', 2, state='reserved'), asked('release', 4)],
        [asked('reserve', 0, 'unknown'), asked('look', 2, state='reserved')],
    ],
)
def test_a_possible_reservation_is_accepted(told):
    assert allocations.stories(told)[1] == []


@pytest.mark.parametrize(
    ('told', 'found'),
    [
        ([FAR, ACTIVE], 'long before its start'),
        ([FAR, asked('look', 2, state='released')], 'nobody had released it'),
        ([NEAR, ACTIVE, DRAWN, asked('look', 6, state='released')], 'nobody had released it'),
        (
            [
                *(NEAR, ACTIVE, DRAWN, asked('look', 6, state='active', held=('x', 'y'))),
                asked('look', 8, state='reserved'),
            ],
            'and it was active',
        ),
        ([NEAR, asked('release', 2), DRAWN], 'and it was released'),
        (
            [
                *(NEAR, DRAWN, asked('look', 6, state='active', held=('x', 'y'))),
                asked('draw', 8, held=('z',)),
            ],
            'not of n',
        ),
    ],
)
def test_an_impossible_reservation_is_found(told, found):
    assert [each for each in allocations.stories(told)[1] if found in each]


@pytest.fixture
def service(database_url):
    made = support.Service(database_url)
    cards = (support.card(bus, resource_class='CUSTOM_NPU') for bus in ('3b', '5e', '86', 'af'))
    made.report(*cards)
    yield made
    made.stop()


def allocate(service, number=1, **more):
    """The uuid of an allocation."""
    body = {'groups': [{'resources': {'CUSTOM_NPU': number}}]} | more
    answer = service.api.post('/v2/allocations', body)
    assert answer.status_int == 201, answer.text
    return answer.json['uuid']


def reserve(service):
    """A reservation of one accelerator for a day in ten days: its uuid."""
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=10)
    return allocate(service, lease=24 * 3600, starts_at=start.isoformat())


def change(service, kind, uuid, **values):
    own = kind.uuid if kind is model.Allocation else kind.allocation_uuid
    with service.database.writer() as session:
        session.execute(sa.update(kind).where(own == uuid).values(**values))


def accelerators(service, uuid):
    return service.api.get(f'/v2/allocations/{uuid}').json['accelerators']


def found(service):
    with service.database.reader() as session:
        return list(invariants.reservations(session))


def test_what_is_kept_twice_is_found(service):
    one, other = reserve(service), reserve(service)
    assert found(service) == []
    with service.database.reader() as session:
        query = sa.select(model.Promise).where(model.Promise.allocation_uuid == one)
        kept = session.scalars(query).one()
    same = {'accelerator_uuid': kept.accelerator_uuid, 'device_uuid': kept.device_uuid}
    change(service, model.Promise, other, **same)
    [wrong] = found(service)
    assert wrong.startswith(f'I1: kept for two at a time: {kept.accelerator_uuid}')
    change(service, model.Promise, other, starts_at=kept.ends_at)
    assert found(service) == []


@pytest.mark.parametrize('lease', [None, 20 * 24 * 3600, 60])
def test_what_is_held_in_a_time_for_which_it_is_kept_is_found(service, lease):
    """A holder without an end may have been there before: the watch sees whether it was."""
    holder = allocate(service, **({'lease': lease} if lease else {}))
    kept = reserve(service)
    seen = watch.Watch(types.SimpleNamespace(database=service.database, providers=list))
    assert (found(service), seen.wrong) == ([], {})
    [held] = accelerators(service, holder)
    with service.database.writer() as session:
        card = sa.select(model.Promise.accelerator_uuid).where(
            model.Promise.allocation_uuid == kept
        )
        handle = sa.select(model.AttachHandle.id).where(
            model.AttachHandle.uuid == session.scalar(card)
        )
        arq = model.ARQ.uuid == held['arq_uuid']
        session.execute(
            sa.update(model.ARQ).where(arq).values(attach_handle_id=session.scalar(handle))
        )
    seen.look()
    seen.look()
    told = [*found(service), *seen.wrong]
    texts = {None: 'and given to ARQ', 20 * 24 * 3600: f'and {holder} holds it for longer'}
    assert all(each.startswith('I1: kept for') and texts[lease] in each for each in told)
    assert bool(told) == (lease != 60)


def test_a_lease_is_of_its_reservation_alone(service):
    whole, one, other = allocate(service, 2), allocate(service), allocate(service)
    mine = accelerators(service, whole)
    for each, part in zip((one, other), mine, strict=True):
        change(service, model.Allocation, each, reservation_uuid=whole, accelerators=[part])
    assert found(service) == []
    change(service, model.Allocation, other, accelerators=mine[:1])
    [wrong] = found(service)
    assert wrong.startswith(f'I1: {mine[0]["uuid"]} of {whole} is leased to ')
    change(service, model.Allocation, other, accelerators=[{'uuid': 'another'}])
    assert found(service) == [f'I2: {other} has another, which is not of {whole}']
    change(service, model.Allocation, other, state='released')
    change(service, model.Allocation, whole, state='released')
    assert found(service) == [f'I2: {one} is leased from {whole}, which is released']


def test_a_holder_that_was_there_before_may_stay(service):
    allocate(service, 4)
    reserve(service)
    seen = watch.Watch(types.SimpleNamespace(database=service.database, providers=list))
    seen.look()
    assert (found(service), seen.wrong) == ([], {})

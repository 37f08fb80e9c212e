# SPDX-License-Identifier: Apache-2.0
import uuid

import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import outbox
from cyborg_lite.db import exclusion
from tests.support import card
from tests.unit.conductor import direct


def functions(*numbers, bus='3b', form=None, group=None, **more):
    """A card that gives out these of its functions; 0 is the card itself."""
    device = card(bus, handles=numbers, **more)
    for handle in device.deployables[0].attach_handles:
        handle.attach_type, handle.form, handle.iommu_group = 'PCI', form, group
    return device


@pytest.fixture
def conductor(database_url):
    made = direct.Conductor(database_url)
    yield made
    made.close()


WHOLE = functions(0)
PARTS = functions(1, 2, 3)


def excluded(conductor):
    """The functions of the handles that are excluded now."""
    with conductor.database.reader() as session:
        parts = session.scalars(sa.select(model.Deployable)).all()
        ids = exclusion.excluded(session, parts)
        return sorted(
            handle.attach_info['function']
            for part in parts
            for handle in part.attach_handles
            if handle.id in ids
        )


@pytest.mark.parametrize(
    ('device', 'forms'),
    [
        (WHOLE, ['whole']),
        (PARTS, ['part', 'part', 'part']),
        (functions(0, 1), ['whole', 'part']),
        (functions(0, 1, form='mdev'), ['mdev', 'mdev']),
        (card(handles=2), ['part', 'part']),
    ],
)
def test_form_that_a_driver_does_not_say(conductor, device, forms):
    conductor.report(device)
    assert [row.form for row in conductor.rows(model.AttachHandle)] == forms


@pytest.mark.parametrize(
    ('before', 'after', 'blocked'), [(WHOLE, PARTS, ['1', '2', '3']), (PARTS, WHOLE, ['0'])]
)
def test_whole_and_parts_exclude_each_other(conductor, before, after, blocked):
    conductor.report(before)
    [held] = conductor.hold()
    conductor.report(after)
    for _ in range(4):
        with pytest.raises(exception.ProviderUnfit, match='held in another form'):
            conductor.hold()
        assert excluded(conductor) == blocked
    conductor.unbind(uuids=[held])
    assert excluded(conductor) == []
    conductor.report(after)
    conductor.hold()


def test_parts_of_one_form_do_not_exclude_each_other(conductor):
    conductor.report(PARTS)
    conductor.hold()
    conductor.hold(count=2)
    assert excluded(conductor) == []


def test_forms_that_are_offered_at_once(conductor):
    """Whichever is taken first decides."""
    conductor.report(functions(0, 1, 2))
    with pytest.raises(exception.NoFreeHandle, match='has 2 free'):
        conductor.hold(count=3)
    parts = conductor.hold(count=2)
    assert excluded(conductor) == ['0']
    conductor.delete_arqs(uuids=parts)
    [held] = conductor.hold()
    assert conductor.arq(held).attach_handle.form == 'whole'
    assert excluded(conductor) == ['1', '2']


def test_forms_of_several_deployables(conductor):
    """A card may give out its forms as different resources."""
    device = functions(0)
    other = functions(1, 2).deployables[0]
    other.name += '-vf'
    device.deployables.append(other)
    conductor.report(device)
    conductor.hold()
    parts = {part.name: part.rp_uuid for part in conductor.rows(model.Deployable)}
    arqs = conductor.arqs()
    with pytest.raises(exception.ProviderUnfit, match='held in another form'):
        conductor.take(*arqs, device_rp_uuid=parts['host-1_0000:3b:00.0-vf'])


def test_other_cards_are_not_excluded(conductor):
    conductor.report(functions(0, bus='3b'), functions(1, 2, bus='5e'))
    conductor.hold('3b')
    conductor.hold('5e', count=2)


def test_iommu_group_goes_to_one_instance(conductor):
    one, two = functions(0, bus='3b', group='7'), functions(0, bus='5e', group='7')
    conductor.report(one, two, functions(0, bus='6f', group='8'))
    instance = str(uuid.uuid4())
    first, second = conductor.arqs(2)
    conductor.bind(
        wishes=[
            conductor.wish(first, '3b', instance_uuid=instance),
            conductor.wish(second, '5e', instance_uuid=instance),
        ]
    )
    conductor.unbind(uuids=[second])
    with pytest.raises(exception.ProviderUnfit, match='IOMMU group 7'):
        conductor.hold('5e')
    assert excluded(conductor) == ['0']
    conductor.hold('6f')
    conductor.delete_arqs(uuids=[first])
    conductor.hold('5e')


def test_iommu_group_of_another_host_is_another(conductor):
    conductor.report(functions(0, group='7'))
    conductor.report(functions(0, group='7'), host='host-2')
    conductor.hold()
    conductor.take(*conductor.arqs(), device_rp_uuid=direct.provider(host='host-2'),
                   hostname='host-2')  # fmt: skip


def test_two_instances_in_one_call_do_not_share_a_group(conductor):
    conductor.report(functions(0, bus='3b', group='7'), functions(0, bus='5e', group='7'))
    first, second = conductor.arqs(2)
    wishes = [conductor.wish(first, '3b'), conductor.wish(second, '5e')]
    with pytest.raises(exception.ProviderUnfit, match='IOMMU group 7'):
        conductor.bind(wishes=wishes)
    assert [conductor.arq(each).state for each in (first, second)] == ['BindFailed'] * 2


def report_as(conductor, name, *cards, agent='1'):
    conductor.report(*cards, host=name, machine='m', agent=agent)


def take(conductor, name, bus):
    values = {'hostname': name, 'device_rp_uuid': direct.provider(bus, name)}
    conductor.take(*conductor.arqs(), **values)


def test_iommu_group_under_the_old_name(conductor):
    cards = functions(0, bus='01', group='7'), functions(0, bus='02', group='7')
    report_as(conductor, 'a', *cards)
    take(conductor, 'a', '01')
    report_as(conductor, 'b', *cards, agent='2')
    with pytest.raises(exception.ProviderUnfit, match='IOMMU group 7'):
        take(conductor, 'b', '02')
    assert excluded(conductor) == ['0', '0', '0']


@pytest.mark.parametrize(
    ('serials', 'buses'),
    [
        (('A', 'B'), ['01']),
        (('B', 'A'), ['02']),
        # They may have changed slots while nobody can read which is which.
        ((None, None), ['01', '02']),
        ((None, 'A'), ['01', '02']),
    ],
)
def test_accelerators_held_under_the_old_name_are_excluded(conductor, serials, buses):
    def cards(*serials):
        places = ('01', '02')
        return [functions(0, bus=b, serial=s) for b, s in zip(places, serials, strict=True)]

    report_as(conductor, 'a', *cards('A', 'B'))
    take(conductor, 'a', '01')
    report_as(conductor, 'b', *cards(*serials), agent='2')
    with conductor.database.reader() as session:
        parts = [p for p in session.scalars(sa.select(model.Deployable)) if p.name[0] == 'b']
        ids = exclusion.excluded(session, parts)
        handles = [h for part in parts for h in part.attach_handles if h.id in ids]
        assert [handle.attach_info['bus'] for handle in handles] == buses
    for bus in buses:
        with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, a'):
            take(conductor, 'b', bus)


def test_another_kind_of_card_is_not_held_under_the_old_name(conductor):
    report_as(conductor, 'a', functions(0, bus='01', serial='A'))
    take(conductor, 'a', '01')
    other = functions(0, bus='02', vendor='10de')
    report_as(conductor, 'b', functions(0, bus='01', serial='A'), other, agent='2')
    take(conductor, 'b', '02')


def test_two_machines_asked_for_at_once(conductor):
    for name, machine in ('a', 'm'), ('b', 'n'):
        conductor.report(functions(0, bus='01'), host=name, machine=machine)
    take(conductor, 'a', '01')
    assert excluded(conductor) == []


@pytest.mark.parametrize(('cards', 'told'), [((0,), False), ((0, 1), True)])
def test_a_host_is_reconciled_if_a_freed_card_excluded_others(conductor, monkeypatch, cards, told):
    conductor.report(functions(*cards, group='7'))
    held = conductor.hold()
    monkeypatch.setattr(conductor._manager.outbox, '_send', {outbox.HOST: None})
    conductor.unbind(uuids=held)
    assert [row.kind for row in conductor.rows(model.Message)] == [outbox.HOST] * told


def test_the_form_of_a_held_accelerator_stays(conductor):
    conductor.report(functions(0))
    conductor.hold()
    conductor.report(functions(0, 1, 2, form='vf'))
    with pytest.raises(exception.ProviderUnfit, match='held in another form'):
        conductor.hold()

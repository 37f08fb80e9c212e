# SPDX-License-Identifier: Apache-2.0
import datetime
import threading
import uuid

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import health
from cyborg_lite.conductor import heartbeat
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import reports
from cyborg_lite.driver import description
from cyborg_lite.driver import host
from cyborg_lite.driver import testing
from cyborg_lite.drivers import huawei_ascend
from cyborg_lite.drivers import nvidia_gpu
from tests.support import card
from tests.unit.conductor import direct
from tests.unit.conductor.direct import DEGRADED

BDF = '0000:3b:00.0'
HOST = """
functions:
- id: 19e5:d100
  class: 120000
  at: {0: [0000:3b:00.0]}
- id: 19e5:d802
  class: 120000
  at: {1: [0000:5e:00.0]}
"""


def together(*calls):
    """Call each in a thread of its own, all at once; returns what they raised."""
    barrier, raised = threading.Barrier(len(calls)), []

    def run(call):
        barrier.wait()
        try:
            call()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_ascend_cards_make_complete_rows(conductor, tmp_path):
    """P1: upstream stops half way through the row of a 310, and never sees a 910B."""
    description.write(description.parse(HOST), tmp_path / 'root')
    machine = host.Host('host-1', tmp_path / 'root')
    conductor.report(*testing.discover(huawei_ascend.HuaweiAscend, machine))
    rows = conductor.rows(model.Device)
    assert [(d.model, d.type, d.vendor, d.numa_node) for d in rows] == [
        ('Ascend 310', 'AICHIP', '19e5', 0),
        ('Ascend 910B', 'AICHIP', '19e5', 1),
    ]
    attributes = {(a.deployable_id, a.key): a.value for a in conductor.rows(model.Attribute)}
    for part, trait in zip(conductor.rows(model.Deployable), ('310', '910B'), strict=True):
        assert attributes[part.id, 'rc'] == 'CUSTOM_NPU'
        assert f'CUSTOM_NPU_{trait}' in attributes.values()
    assert len(conductor.rows(model.AttachHandle)) == 2


def test_same_address_in_two_hosts(conductor):
    """P2: upstream gives both cards the uuid of one provider."""
    conductor.report(card(), host='host-1')
    conductor.report(card(), host='host-2')
    names = {part.name: part.rp_uuid for part in conductor.rows(model.Deployable)}
    assert names == {
        name: str(uuid.uuid3(uuid.NAMESPACE_DNS, name))
        for name in ('host-1_0000:3b:00.0', 'host-2_0000:3b:00.0')
    }


def test_facts_that_change_are_written_and_rows_stay(conductor):
    conductor.report(card(model='Old', traits=['CUSTOM_A', 'CUSTOM_B']))
    before = conductor.device()
    conductor.report(card(model='New', traits=['CUSTOM_B'], numa_node=1))
    after = conductor.device()
    assert (after.id, after.uuid) == (before.id, before.uuid)
    assert (after.model, after.numa_node) == ('New', 1)
    attributes = {a.key: a.value for a in conductor.rows(model.Attribute)}
    assert attributes == {'rc': 'FPGA', 'trait0': 'CUSTOM_B'}


def test_facts_of_a_newer_agent_are_ignored(conductor):
    report = conductor.told(card())
    report['devices'][0]['colour'] = 'blue'
    report['devices'][0]['deployables'][0]['parts'] = [1]
    conductor.report(**report)
    assert conductor.device().model == 'miss model info'


# Absence


def test_one_empty_report_keeps_all(conductor):
    """P8: upstream deletes every device of the host."""
    conductor.report(card('3b'), card('5e', handles=4))
    before = conductor.dump('hosts', 'devices')
    conductor.report()
    assert conductor.dump('hosts', 'devices') == before
    assert [device.absences for device in conductor.rows(model.Device)] == [1, 1]


def test_absence_deletes_what_is_free_after_three_reports(conductor):
    conductor.report(card('3b', handles=2), card('5e'))
    for absences in (1, 2):
        conductor.report(card('5e'))
        assert conductor.device('3b').absences == absences
        assert len(conductor.rows(model.AttachHandle)) == 3
    conductor.report(card('5e'))
    assert [device.address for device in conductor.rows(model.Device)] == ['0000:5e:00.0']
    assert len(conductor.rows(model.AttachHandle)) == 1


def test_absences_in_a_row_are_what_counts(conductor):
    conductor.report(card())
    uuid_ = conductor.device().uuid
    for _ in range(3):
        conductor.report()
        conductor.report()
        assert conductor.device().absences == 2
        conductor.report(card())
    assert (conductor.device().uuid, conductor.device().absences) == (uuid_, 0)


def test_a_look_soon_after_another_is_no_further_absence(conductor):
    """What is missing for some seconds, in which leases end, keeps its row."""
    [name] = direct.OK
    conductor.report(card(), looks={name: 1}, samples={name: 1})
    found = []
    for look, sample in ((2, 1), (3, 1), (4, 1), (5, 2), (5, 2), (6, 3)):
        conductor.report(looks={name: look}, samples={name: sample})
        found.append([device.absences for device in conductor.rows(model.Device)])
    assert found == [[1], [1], [1], [2], [2], []]


def test_absences_option(database_url):
    conductor = direct.Conductor(database_url, conductor__absences=1)
    conductor.report(card())
    conductor.report()
    assert conductor.device() is None
    conductor.close()


def test_absence_in_one_host_is_not_absence_in_another(conductor):
    conductor.report(card(), host='host-1')
    conductor.report(card(), host='host-2')
    for _ in range(4):
        conductor.report(host='host-2')
    assert [device.hostname for device in conductor.rows(model.Device)] == ['host-1']


def test_held_device_is_missing_and_never_deleted(conductor):
    """P8: upstream aborts this report and all that follow."""
    conductor.report(card('3b', handles=2), card('5e'))
    [arq] = conductor.hold('3b')
    for _ in range(5):
        conductor.report(card('5e'))
    assert conductor.device('3b').absences == 3
    assert conductor.arq(arq).state == 'Bound'
    [other] = conductor.arqs()
    with pytest.raises(exception.ProviderUnfit):
        conductor.take(other, bus='3b')
    # Further reports are stored.
    conductor.report(card('5e', model='New'), card('7a'))
    assert conductor.device('5e').model == 'New'
    assert conductor.device('7a') is not None


def test_missing_device_comes_back_whole(conductor):
    conductor.report(card(handles=2))
    [arq] = conductor.hold()
    before = conductor.dump('hosts', 'devices')
    for _ in range(5):
        conductor.report()
    conductor.report(card(handles=2))
    assert conductor.dump('hosts', 'devices') == before
    conductor.hold()
    assert conductor.arq(arq).state == 'Bound'


def test_missing_device_goes_once_it_is_free(conductor):
    conductor.report(card())
    arqs = conductor.hold()
    for _ in range(5):
        conductor.report()
    conductor.unbind(uuids=arqs)
    conductor.report()
    assert conductor.device() is None
    assert conductor.arq(*arqs).state == 'Unbound'


def test_free_handles_of_a_missing_device_are_not_given_out(conductor):
    conductor.report(card(handles=2))
    conductor.report()
    [arq] = conductor.arqs()
    with pytest.raises(exception.ProviderUnfit):
        conductor.take(arq)
    assert conductor.arq(arq).attach_handle_id is None


@pytest.mark.parametrize('times', [1, 5])
def test_devices_of_a_degraded_driver_are_untouched(conductor, times):
    """P9: a failed driver has no information on its devices."""
    conductor.report(card('3b', handles=2), card('5e'))
    before = conductor.dump('hosts')
    for _ in range(times):
        conductor.report(drivers=DEGRADED)
    assert conductor.dump('hosts') == before
    [host_] = conductor.rows(model.Host)
    assert host_.drivers == DEGRADED
    conductor.hold()


def test_degraded_driver_that_looked_at_all_cards_does_not_keep_one_that_is_gone(conductor):
    """It only reports unread facts of found cards."""
    noting = {'fake': {'state': 'degraded', 'reason': 'no board', 'devices': 1, 'complete': True}}
    conductor.report(card('3b'), card('5e'))
    for _ in range(3):
        conductor.report(card('3b'), drivers=noting)
    assert [d.address for d in conductor.rows(model.Device)] == ['0000:3b:00.0']


def test_card_of_a_degraded_driver_is_no_other_drivers(conductor):
    """An agent that has just started does not know the owner yet."""
    conductor.report(card('3b', handles=2))
    before = conductor.dump('hosts')
    other = card('3b', handles=2, resource_class='CUSTOM_PCI')
    other.deployables[0].driver_name = 'pci'
    for _ in range(2):
        conductor.report(other, drivers=DEGRADED | {'pci': {'state': 'ok'}})
        assert conductor.dump('hosts') == before


def test_degraded_driver_does_not_cover_for_another(conductor):
    conductor.report(card(), drivers={'fake': {'state': 'ok'}, 'other': {'state': 'ok'}})
    conductor.report(drivers={'fake': {'state': 'ok'}, 'other': {'state': 'degraded'}})
    assert conductor.device().absences == 1


# Handles


def test_lacking_handle_alone_goes(conductor):
    """P12: upstream deletes handle 16 where handle 3 is lacking."""
    conductor.report(card(handles=16))
    before = {row.attach_info['function']: row.uuid for row in conductor.rows(model.AttachHandle)}
    conductor.report(card(handles=[n for n in range(16) if n != 3]))
    after = {row.attach_info['function']: row.uuid for row in conductor.rows(model.AttachHandle)}
    assert after == {function: uuid for function, uuid in before.items() if function != '3'}


def test_held_handle_that_is_lacking_stays_and_is_given_to_nobody_else(conductor):
    conductor.report(card(handles=[3, 4]))
    [arq] = conductor.hold()
    [held] = [
        row for row in conductor.rows(model.AttachHandle) if row.attach_info['function'] == '3'
    ]
    assert conductor.arq(arq).attach_handle_id == held.id
    conductor.report(card(handles=[4]))
    assert {r.attach_info['function']: r.lost for r in conductor.rows(model.AttachHandle)} == {
        '3': True,
        '4': False,
    }
    assert conductor.arq(arq).attach_handle_id == held.id
    # After its release it is not allocated...
    conductor.unbind(uuids=[arq])
    conductor.hold()
    [other] = conductor.arqs()
    with pytest.raises(exception.NoFreeHandle):
        conductor.take(other)
    # ... and the next report deletes it, even if it equals the last one.
    conductor.report(card(handles=[4]))
    assert conductor.handles() == ['4']


def test_lost_handle_comes_back(conductor):
    conductor.report(card(handles=2))
    conductor.hold(count=2)
    conductor.report(card(handles=[]))
    conductor.report(card(handles=2))
    assert [row.lost for row in conductor.rows(model.AttachHandle)] == [False, False]


def test_held_accelerator_is_not_given_again_below_another_device(conductor):
    """The drivers' view of a card may change while it is held: the function stays the same."""
    conductor.report(card('3b', handles=[1]))
    conductor.hold('3b')
    whole = card('3b', handles=[1])
    whole.address = whole.deployables[0].name = '0000:3b:00.1'
    conductor.report(whole)
    [other] = conductor.arqs()
    rp_uuid = str(uuid.uuid3(uuid.NAMESPACE_DNS, 'host-1_0000:3b:00.1'))
    with pytest.raises(exception.CyborgError):
        conductor.take(other, device_rp_uuid=rp_uuid)


# Late and doubled reports


def test_report_taken_twice_is_taken_once(conductor):
    report = conductor.told(card())
    conductor.report(**report)
    before = conductor.dump()
    conductor.report(**report)
    assert conductor.dump() == before


def test_older_report_is_dropped(conductor):
    old, new = conductor.told(card('3b')), conductor.told(card('3b'), card('5e'))
    conductor.report(**new)
    before = conductor.dump()
    conductor.report(**old)
    assert conductor.dump() == before


def test_absences_are_counted_once_per_report(conductor):
    conductor.report(card())
    empty = conductor.told()
    for _ in range(4):
        conductor.report(**empty)
    assert conductor.device().absences == 1


def test_report_of_an_old_boot_is_dropped(conductor):
    conductor.report(card('3b'), boot_id='boot-1', sequence=900)
    # A new boot restarts the sequence.
    conductor.report(card('3b'), card('5e'), boot_id='boot-2', sequence=1)
    before = conductor.dump()
    conductor.report(card('7a'), boot_id='boot-1', sequence=901)
    assert conductor.dump() == before
    assert len(conductor.rows(model.Device)) == 2
    conductor.report(boot_id='boot-2', sequence=2)
    assert conductor.device('3b').absences == 1


def test_a_boot_that_was_over_counts_again_once_the_other_is_silent(conductor):
    """In between came an agent with the same host name, or a very late report."""
    conductor.report(card(), boot_id='right')
    conductor.report(boot_id='wrong')
    conductor.report(card(), boot_id='right')
    assert conductor.device().absences == 1
    with conductor.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(hours=1)
        session.execute(sa.update(model.Host).values(seen_at=past))
    conductor._manager.healer.heal()
    conductor.report(card(), boot_id='right')
    assert conductor.device().absences == 0
    [host_] = conductor.rows(model.Host)
    assert (host_.boot_id, host_.past_boots) == ('right', ['wrong'])


def test_boots_beyond_the_last_are_remembered_for_a_while(conductor):
    for number in range(12):
        conductor.report(boot_id=f'boot-{number}', sequence=1)
    [host_] = conductor.rows(model.Host)
    assert host_.past_boots == [f'boot-{number}' for number in range(10, 2, -1)]


@pytest.mark.parametrize('attempt', range(5))
def test_two_conductors_take_one_report(twins, attempt):
    """P11: upstream turns two devices into four."""
    report = twins[0].told(card('3b'), card('5e'))
    assert not together(*[lambda each=each: each.report(**report) for each in twins])
    assert len(twins[0].rows(model.Device)) == 2
    assert len(twins[0].rows(model.AttachHandle)) == 2


@pytest.mark.parametrize('attempt', range(5))
def test_two_conductors_take_different_reports(twins, attempt):
    reports = [
        twins[0].told(card('3b'), card('5e'), drivers={'fake': {'state': 'ok', 'devices': n}})
        for n in range(4)
    ]
    calls = [
        lambda each=each, report=report: each.report(**report)
        for report in reports
        for each in twins
    ]
    assert not together(*calls)
    assert len(twins[0].rows(model.Device)) == 2
    [host_] = twins[0].rows(model.Host)
    assert (host_.sequence, host_.drivers) == (4, reports[-1]['drivers'])


# Costs


def test_unchanged_report_is_a_heartbeat(conductor):
    devices = [card('3b', handles=16), card('5e', handles=16)]
    conductor.report(*devices)
    before, [first] = conductor.dump('hosts'), conductor.rows(model.Host)
    with conductor.statements() as seen:
        conductor.report(*devices)
    assert len(seen) <= 2, seen
    assert conductor.dump('hosts') == before
    [second] = conductor.rows(model.Host)
    assert second.sequence > first.sequence
    assert second.seen_at >= first.seen_at


def test_an_unchanged_report_is_processed_once_placement_is_told(conductor):
    """It has heard of no device yet."""
    report = conductor.told(card())
    with conductor.database.writer() as session:
        marks = []
        for told in ((), (outbox.PROVIDER,)):
            session.info[outbox.KINDS] = told
            marks.append(heartbeat.mark(session, report, health.Policy()))
    assert marks[0] != marks[1]


def test_unchanged_report_after_a_boot_is_processed(conductor):
    """An agent of the release before does not say that it is another one."""
    conductor.report(card())
    conductor.report(card(), boot_id='boot-2')
    [host_] = conductor.rows(model.Host)
    assert (host_.boot_id, host_.past_boots) == ('boot-2', ['boot-1'])


def test_unchanged_report_notes_its_interval(conductor):
    conductor.report(card())
    conductor.report(card(), interval=40)
    [host_] = conductor.rows(model.Host)
    assert host_.interval == 40


def test_first_report_of_16_handles(conductor):
    with conductor.statements() as seen:
        conductor.report(card(handles=16))
    # Two transactions: the first one finds that the report is new.
    assert len(seen) <= 13, seen


def test_unchanged_report_makes_no_device(conductor, monkeypatch):
    """Devices are not looked at: that would be most of the work."""
    conductor.report(card())
    monkeypatch.setattr(reports, 'check_devices', None)
    conductor.report(card())


def test_heartbeat_after_a_device_has_gone(conductor):
    conductor.report(card('3b'), card('5e'))
    for _ in range(3):
        conductor.report(card('5e'))
    with conductor.statements() as seen:
        conductor.report(card('5e'))
    assert len(seen) <= 2, seen


def test_heartbeat_while_a_disabled_device_is_gone(conductor):
    conductor.report(card('3b'), card('5e'))
    uuid_ = conductor.device('3b').uuid
    conductor.set_device_status(uuid=uuid_, status='maintaining')
    for _ in range(3):
        conductor.report(card('5e'))
    with conductor.statements() as seen:
        conductor.report(card('5e'))
    assert len(seen) <= 2, seen
    # When it is enabled the next report deletes it.
    conductor.set_device_status(uuid=uuid_, status='enabled')
    conductor.report(card('5e'))
    assert [device.identity for device in conductor.rows(model.Device)] == ['0000:5e:00.0']


def test_unchanged_report_after_something_was_released_is_read(conductor):
    """An equal report must be processed, too: the lost handle can be deleted now."""
    conductor.report(card(handles=2))
    arqs = conductor.hold(count=2)
    conductor.report(card(handles=[0]))
    conductor.report(card(handles=[0]))
    conductor.delete_arqs(uuids=arqs)
    conductor.report(card(handles=[0]))
    assert conductor.handles() == ['0']


# A device whose name is taken


def test_card_at_a_new_address_waits_for_the_name_of_the_missing_one(conductor):
    conductor.report(card('3b'))
    moved = card('5e')
    moved.deployables[0].name = '0000:3b:00.0'
    for _ in range(3):
        conductor.report(moved)
    conductor.report(moved)
    assert [device.address for device in conductor.rows(model.Device)] == ['0000:5e:00.0']


def test_name_that_another_host_has_gets_something_added(conductor):
    """Two hosts may spell one name: ``a`` with ``b_c``, and ``a_b`` with ``c``."""
    conductor.report(card(), host='a_b')
    other = card('3b')
    other.deployables[0].name = 'b_0000:3b:00.0'
    conductor.report(other, card('5e'), host='a')
    names = [part.name for part in conductor.rows(model.Deployable)]
    assert names == ['a_b_0000:3b:00.0', 'a_b_0000:3b:00.0_0xABCD', 'a_0000:5e:00.0']
    before = conductor.dump('hosts')
    conductor.report(other, card('5e', model='Changed'), card('6f'), host='a')
    assert [part.name for part in conductor.rows(model.Deployable)][:3] == names
    assert before != conductor.dump('hosts')


def test_deployable_that_passes_to_another_card(conductor, monkeypatch):
    """In one report two cards may have exchanged their parts."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between the retries
    conductor.report(card('3b'), card('5e'))
    first, second = card('3b'), card('5e')
    first.deployables[0].name, second.deployables[0].name = '0000:5e:00.0', '0000:3b:00.0'
    conductor.report(first, second)
    assert len(conductor.rows(model.Deployable)) == 2


# Calls of operators


def test_disable_is_of_one_device(conductor):
    """P3: upstream reserves the provider whose number the device has."""
    # The second device has the third deployable.
    pair = card('3b')
    pair.deployables.append(card('3c').deployables[0])
    conductor.report(pair, card('5e'), card('7a'))
    conductor.set_device_status(uuid=conductor.device('5e').uuid, status='maintaining')
    assert [(d.address, d.status) for d in conductor.rows(model.Device)] == [
        ('0000:3b:00.0', 'enabled'),
        ('0000:5e:00.0', 'maintaining'),
        ('0000:7a:00.0', 'enabled'),
    ]
    [arq] = conductor.arqs()
    with pytest.raises(exception.ProviderUnfit, match='maintaining'):
        conductor.take(arq, bus='5e')
    conductor.hold('3b')
    conductor.hold('7a')


def test_disabled_stays_disabled_over_reports(conductor):
    conductor.report(card())
    uuid_ = conductor.device().uuid
    for _ in range(2):
        conductor.set_device_status(uuid=uuid_, status='maintaining')
    conductor.report(card(model='New'))
    assert conductor.device().status == 'maintaining'
    conductor.set_device_status(uuid=uuid_, status='enabled')
    conductor.hold()


def test_disable_keeps_what_is_bound(conductor):
    conductor.report(card())
    [arq] = conductor.hold()
    conductor.set_device_status(uuid=conductor.device().uuid, status='maintaining')
    assert conductor.arq(arq).state == 'Bound'


def test_status_of_an_unknown_device(conductor):
    with pytest.raises(exception.NotFound, match='Device nobody not found'):
        conductor.set_device_status(uuid='nobody', status='enabled')


def test_added_attribute_survives_reports(conductor):
    conductor.report(card(traits=['CUSTOM_A']))
    [part] = conductor.rows(model.Deployable)
    conductor.create_attribute(deployable=part.id, key='rack', value='12')
    conductor.report(card(traits=['CUSTOM_B', 'CUSTOM_C']))
    for _ in range(2):
        conductor.report()
    conductor.report(card(traits=['CUSTOM_B']))
    attributes = {a.key: a.value for a in conductor.rows(model.Attribute)}
    assert attributes == {'rc': 'FPGA', 'trait0': 'CUSTOM_B', 'rack': '12'}


def test_attribute_by_number_or_uuid_of_the_deployable(conductor):
    conductor.report(card())
    [part] = conductor.rows(model.Deployable)
    made = conductor.create_attribute(deployable=part.uuid, key='a', value='1')
    assert made in [a.uuid for a in conductor.rows(model.Attribute)]
    with pytest.raises(exception.Duplicate, match='key a already exists'):
        conductor.create_attribute(deployable=part.id, key='a', value='2')
    conductor.delete_attribute(uuid=made)
    with pytest.raises(exception.NotFound):
        conductor.delete_attribute(uuid=made)
    for nobody in (part.id + 1, 'nobody'):
        with pytest.raises(exception.NotFound, match=f'Deployable {nobody} not found'):
            conductor.create_attribute(deployable=nobody, key='b', value='1')


def test_added_attribute_is_not_taken_over_by_a_driver(conductor):
    """The driver later reports one with the same key, and then none."""
    conductor.report(card(traits=['CUSTOM_A']))
    [part] = conductor.rows(model.Deployable)
    conductor.create_attribute(deployable=part.id, key='trait1', value='CUSTOM_OURS')
    for traits in (['CUSTOM_A', 'CUSTOM_B'], ['CUSTOM_A']):
        conductor.report(card(traits=traits))
        kept = {row.key: row.value for row in conductor.rows(model.Attribute)}
        assert kept['trait1'] == 'CUSTOM_OURS'


def test_added_attribute_outlives_the_absence_of_its_device(conductor):
    conductor.report(card())
    before = conductor.device()
    [part] = conductor.rows(model.Deployable)
    made = conductor.create_attribute(deployable=part.id, key='rack', value='12')
    for _ in range(4):
        conductor.report()
    conductor.report(card())
    assert conductor.device().uuid == before.uuid
    assert made in [row.uuid for row in conductor.rows(model.Attribute)]


# Hosts that go down


def test_host_that_is_down_gives_out_nothing(conductor):
    """I11: the state of its cards is unknown; bound requests stay bound."""
    conductor.report(card(handles=3), interval=20)
    [before] = conductor.hold()
    with conductor.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(seconds=51)
        session.execute(sa.update(model.Host).values(seen_at=past))
    conductor.heal()
    [refused] = conductor.arqs()
    with pytest.raises(exception.ProviderUnfit, match='host-1, which is down'):
        conductor.take(refused)
    assert conductor.arq(before).state == 'Bound'
    # A heartbeat is enough.
    conductor.report(card(handles=3), interval=20)
    conductor.hold()


def test_late_order_to_disable_leaves_a_device_enabled(conductor):
    conductor.report(card())
    device = conductor.device()
    for status in ('maintaining', 'enabled'):
        conductor.set_device_status(uuid=device.uuid, status=status)
    conductor.set_device_status(uuid=device.uuid, status='maintaining', seen=device.revision)
    assert conductor.device().status == 'enabled'
    conductor.set_device_status(
        uuid=device.uuid, status='maintaining', seen=conductor.device().revision
    )
    assert conductor.device().status == 'maintaining'


def test_rows_of_an_older_spelling_are_the_same(conductor):
    """Otherwise a held handle would be lost, and its accelerator free under the new spelling."""
    conductor.report(card())
    [arq] = conductor.arqs(FPGA=1)
    conductor.bind(wishes=[conductor.wish(arq)])
    [device], [held] = conductor.rows(model.Device), conductor.rows(model.AttachHandle)
    address, info = device.address, held.attach_info
    with conductor.database.writer() as session:
        session.get(model.Device, device.id).address = address.removeprefix('000').upper()
        old = {key: f'0x{int(value, 16):X}' for key, value in info.items()}
        session.get(model.AttachHandle, held.id).attach_info = old
    conductor.report(card(), card('5e'))
    first, _ = conductor.rows(model.Device)
    assert (first.uuid, first.address) == (device.uuid, address)
    assert conductor.arq(arq).attach_handle.uuid == held.uuid
    infos = [handle.attach_info for handle in conductor.rows(model.AttachHandle)]
    assert infos.count(info) == 1 and len(infos) == 2
    assert not any(handle.lost for handle in conductor.rows(model.AttachHandle))


# Identity of cards


def npu(bus, serial=None, **more):
    return card(bus, serial=serial, **more)


def test_cards_that_change_slots(conductor):
    conductor.report(npu('3b', 'A'), npu('5e', 'B'))
    disabled, held = conductor.device('3b'), conductor.device('5e')
    conductor.set_device_status(uuid=disabled.uuid, status='maintaining')
    [arq] = conductor.hold('5e')
    conductor.report(npu('3b', 'B'), npu('5e', 'A'))
    assert (conductor.device('5e').uuid, conductor.device('3b').uuid) == (disabled.uuid, held.uuid)
    assert conductor.device('5e').status == 'maintaining'
    # The held handle has the address of its card.
    handle = conductor.arq(arq).attach_handle
    assert (handle.attach_info['bus'], handle.lost) == ('3b', False)
    with pytest.raises(exception.ProviderUnfit, match='is maintaining'):
        conductor.hold('3b')
    conductor.report(npu('3b', 'B'), npu('5e', 'A'))
    assert conductor.device('5e').uuid == disabled.uuid


def test_serial_number_that_cannot_be_read_for_now(conductor):
    conductor.report(npu('3b', 'A'))
    before = conductor.device()
    conductor.report(npu('3b'))
    conductor.report(npu('5e', 'A'))
    assert conductor.device('5e').uuid == before.uuid
    assert len(conductor.rows(model.Device)) == 1


def test_another_card_at_the_address_of_a_held_one(conductor, caplog):
    conductor.report(card(vendor='19e5', board={'product_id': 'd802'}, type='AICHIP'))
    old = conductor.device()
    [arq] = conductor.hold()
    gpu = card(vendor='10de', board={'product_id': '2330'}, type='GPU', resource_class='PGPU')
    for _ in range(4):
        conductor.report(gpu)
    first, second = conductor.rows(model.Device)
    assert (first.uuid, first.type, first.absences) == (old.uuid, 'AICHIP', 3)
    assert (second.type, second.absences) == ('GPU', 0)
    assert [part.name for part in conductor.rows(model.Deployable)] == [
        'host-1_0000:3b:00.0',
        'host-1_0000:3b:00.0_2330',
    ]
    [line] = [each for each in caplog.messages if 'another card is there' in each]
    assert old.uuid in line
    bound = conductor.arq(arq)
    assert bound.device_rp_uuid == direct.provider()
    [new] = conductor.arqs(PGPU=1)
    provider = conductor.rows(model.Deployable)[1].rp_uuid
    conductor.take(new, device_rp_uuid=provider)
    # The old one is deleted after its release.
    conductor.delete_arqs(uuids=[arq])
    conductor.report(gpu)
    assert [row.type for row in conductor.rows(model.Device)] == ['GPU']


def test_a_request_does_not_pass_to_a_card_of_another_model(conductor, tmp_path, caplog):
    """An A16 in the place of an A2: neither has a serial number without NVML."""

    def look(name, subsystem):
        text = f"functions: [{{id: 10de:25b6, class: '030200', {subsystem}at: {{0: ['{BDF}']}}}}]"
        description.write(description.parse(text), tmp_path / name)
        found = testing.discover(nvidia_gpu.NvidiaGpu, host.Host('host-1', tmp_path / name))
        conductor.report(*found)

    look('a2', 'subsystem: 10de:157e, ')
    conductor.take(*conductor.arqs(PGPU=1))
    look('a16', 'subsystem: 10de:14a9, ')
    held, new = conductor.rows(model.Device)
    assert [(held.model, held.absences), (new.model, new.absences)] == [
        ('NVIDIA A2', 1),
        ('NVIDIA A16', 0),
    ]
    [line] = [each for each in caplog.messages if 'another card is there' in each]
    assert 'NVIDIA A2' in line and 'NVIDIA A16' in line
    look('a2-again', 'subsystem: 10de:157e, ')
    assert [row.absences for row in conductor.rows(model.Device)] == [0, 1]


def test_disabled_device_stays_disabled_whatever_it_misses(conductor):
    conductor.report(card())
    device = conductor.device()
    conductor.set_device_status(uuid=device.uuid, status='maintaining')
    for _ in range(5):
        conductor.report(drivers={})
    conductor.report(card())
    assert (conductor.device().uuid, conductor.device().status) == (device.uuid, 'maintaining')


def test_unusable_device_is_not_given_out(conductor):
    conductor.report(card(unusable='it shows the console'))
    with pytest.raises(exception.ProviderUnfit, match='it shows the console'):
        conductor.hold()
    conductor.report(card())
    conductor.hold()


def test_trait_of_an_operator_and_one_of_a_driver_keep_apart(conductor):
    conductor.report(card(traits=['CUSTOM_A']))
    [part] = conductor.rows(model.Deployable)
    conductor.create_attribute(deployable=part.id, key='trait1', value='CUSTOM_OURS')
    for traits in (['CUSTOM_A', 'CUSTOM_B'], ['CUSTOM_B'], ['CUSTOM_0', 'CUSTOM_A', 'CUSTOM_B']):
        conductor.report(card(traits=traits))
        values = {a.key: a.value for a in conductor.rows(model.Attribute) if a.is_trait}
        assert values['trait1'] == 'CUSTOM_OURS'
        assert sorted(values.values()) == sorted([*traits, 'CUSTOM_OURS'])


def test_trait_of_a_driver_stays_while_an_operator_has_an_equal_one(conductor):
    """In any order: Placement keeps the trait when the operator deletes the added one."""
    conductor.report(card(traits=['CUSTOM_A']))
    [part] = conductor.rows(model.Deployable)
    made = conductor.create_attribute(deployable=part.id, key='trait1', value='CUSTOM_B')
    conductor.report(card(traits=['CUSTOM_A', 'CUSTOM_B']))
    kept = {(a.key, a.value, a.added) for a in conductor.rows(model.Attribute) if a.is_trait}
    ours, theirs = ('trait1', 'CUSTOM_B', True), ('trait2', 'CUSTOM_B', False)
    assert kept == {('trait0', 'CUSTOM_A', False), ours, theirs}
    conductor.delete_attribute(uuid=made)
    values = [a.value for a in conductor.rows(model.Attribute) if a.is_trait]
    assert sorted(values) == ['CUSTOM_A', 'CUSTOM_B']


def test_attribute_of_a_driver_cannot_be_deleted(conductor):
    conductor.report(card())
    for attribute in conductor.rows(model.Attribute):
        with pytest.raises(exception.Conflict, match='is reported by the driver fake'):
            conductor.delete_attribute(uuid=attribute.uuid)


def test_report_from_the_future_counts_as_none(conductor):
    conductor.report(card())
    with conductor.database.writer() as session:
        future = timeutils.utcnow() + datetime.timedelta(hours=1)
        session.execute(sa.update(model.Host).values(seen_at=future))
    conductor.heal()
    with pytest.raises(exception.ProviderUnfit, match='which is down'):
        conductor.hold()


def test_lost_accelerator_moves_with_its_card(conductor):
    """In the new slot it is recognised as the same accelerator."""

    def npu(bus, *functions):
        return card(bus, functions, serial='A')

    conductor.report(npu('3b', 1, 2))
    arqs = conductor.hold(count=2)
    conductor.report(npu('3b', 3))
    conductor.report(npu('5e', 3))
    conductor.report(npu('5e', 1, 2))
    assert [row.lost for row in conductor.rows(model.AttachHandle)] == [False, False]
    held = [conductor.arq(arq).attach_handle.attach_info for arq in arqs]
    assert [(info['bus'], info['function']) for info in held] == [('5e', '1'), ('5e', '2')]


def test_card_comes_to_the_slot_of_one_that_moves(conductor):
    """The old card has moved: the new card is recognised at once."""
    conductor.report(card('3b', serial='A'))
    conductor.report(card('5e', serial='A'), card('3b', vendor='10de'))
    assert sorted(row.address for row in conductor.rows(model.Device)) == [
        '0000:3b:00.0',
        '0000:5e:00.0',
    ]


def test_card_without_a_readable_serial_number_may_be_a_missing_one(conductor):
    conductor.report(npu('01', 'A'), npu('02', 'B'))
    [arq] = conductor.hold('01')
    for _ in range(3):
        conductor.report(npu('02'), npu('01', 'B'))
    assert sorted(row.serial for row in conductor.rows(model.Device)) == ['A', 'B']
    conductor.report(npu('02', 'A'), npu('01', 'B'))
    assert conductor.arq(arq).attach_handle.attach_info['bus'] == '02'


def test_moved_card_at_the_place_of_a_held_one_gives_out_nothing(conductor):
    conductor.report(npu('01', 'A'), npu('02'))
    conductor.hold('02')
    conductor.report(npu('02', 'A'))
    moved = next(row for row in conductor.rows(model.Device) if row.serial == 'A')
    [part] = [p for p in conductor.rows(model.Deployable) if p.device_id == moved.id]
    with pytest.raises(exception.CannotBind):
        conductor.take(*conductor.arqs(), device_rp_uuid=part.rp_uuid)


@pytest.mark.parametrize(('key', 'value'), [('traitx', 'CUSTOM_B'), ('rack', '12')])
def test_attribute_of_a_driver_outlives_an_equal_one_of_an_operator(conductor, key, value):
    def told():
        device = card(traits=['CUSTOM_A'])
        more = 'trait1' if key == 'traitx' else key
        device.deployables[0].attributes.append(model.Attribute(key=more, value=value))
        return device

    conductor.report(card(traits=['CUSTOM_A']))
    [part] = conductor.rows(model.Deployable)
    made = conductor.create_attribute(deployable=part.id, key=key, value=value)
    for _ in range(2):
        conductor.report(told())
    conductor.delete_attribute(uuid=made)
    conductor.report(told())
    values = [a.value for a in conductor.rows(model.Attribute) if a.reported]
    assert sorted(values) == sorted(['FPGA', 'CUSTOM_A', value])


def test_serial_number_of_two_cards_may_be_that_of_a_missing_one(conductor):
    conductor.report(npu('3b', 'A'), npu('3c', 'A'))
    [arq] = conductor.hold('3b')
    conductor.report(npu('3c', 'A'))
    conductor.report(npu('3d', 'A'))
    assert conductor.device('3d') is None
    # Once the other one is deleted, only the held card has this number.
    for _ in range(3):
        conductor.report(npu('3d', 'A'))
    assert conductor.arq(arq).attach_handle.attach_info['bus'] == '3d'


def test_group_of_what_is_held_stays(conductor):
    """Other devices of the group stay excluded."""
    found = card('3b')
    found.deployables[0].attach_handles[0].iommu_group = '7'
    conductor.report(found)
    [arq] = conductor.hold('3b')
    conductor.report(card('3b'))
    assert conductor.arq(arq).attach_handle.iommu_group == '7'
    conductor.unbind(uuids=[arq])
    conductor.report(card('3b'), card('3c'))
    assert conductor.rows(model.AttachHandle)[0].iommu_group is None

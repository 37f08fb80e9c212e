# SPDX-License-Identifier: Apache-2.0
import datetime
import json
import pathlib
import sys
import tempfile
import uuid

import pytest
import sqlalchemy as sa

from cyborg_lite import conf
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.agent import drivers
from cyborg_lite.db import upstream
from cyborg_lite.driver import host as hosts
from cyborg_lite.drivers import nvidia_gpu
from tests import databases
from tests.unit.conductor import direct
from tests.unit.db import cyborg as cyborg_

CARD = '0000:3b:00.0'
FIXTURES = pathlib.Path(__file__).parents[2] / 'fixtures'


@pytest.fixture
def tmp_path():
    with tempfile.TemporaryDirectory(dir=databases.MEMORY) as path:
        yield pathlib.Path(path)


@pytest.fixture
def cyborg(tmp_path):
    made = cyborg_.Cyborg(f'sqlite:///{tmp_path}/cyborg.sqlite')
    yield made
    made.close()


@pytest.fixture
def conductor(database_url):
    """A conductor over the target database."""
    made = direct.Conductor(database_url)
    yield made
    made.close()


@pytest.fixture
def take_over(cyborg, conductor):
    return lambda **more: upstream.take_over(conductor.database, cyborg.url, **more)


def rows(conductor, kind):
    return {row.uuid: row for row in conductor.rows(kind)}


def gpu(address=CARD, **more):
    """The card as our driver reports it."""
    domain, bus, rest = address.split(':')
    info = {'domain': domain, 'bus': bus, 'device': rest[:2], 'function': rest[3:]}
    part = model.Deployable(
        name=address,
        driver_name='nvidia_gpu',
        resource_class='PGPU',
        traits=['CUSTOM_NVIDIA_1EB8'],
        attach_handles=[model.AttachHandle(attach_type='PCI', attach_info=info)],
    )
    facts = {'type': 'GPU', 'vendor': '10de', 'model': 'Tesla T4', 'address': address}
    return model.Device(**(facts | more), deployables=[part])


def check_promises(conductor):
    """A bound request has one accelerator, of its provider; another one has none."""
    with conductor.database.reader() as session:
        held = []
        for arq in session.scalars(sa.select(model.ARQ)):
            assert (arq.state == 'Bound') == (arq.attach_handle_id is not None)
            if arq.attach_handle:
                held.append(arq.attach_handle_id)
                part = session.get(model.Deployable, arq.attach_handle.deployable_id)
                assert part.rp_uuid == arq.device_rp_uuid
        assert len(held) == len(set(held))


def test_all_is_kept(cyborg, conductor, take_over):
    card, profile = cyborg.gpu(), cyborg.profile(description='One T4')
    arq = cyborg.bound(profile, card, updated_at=datetime.datetime(2026, 2, 3, 4, 5, 6))
    waiting = cyborg.arq(profile)
    outcome = take_over()
    assert outcome.notes == []
    assert outcome.counts == {
        'devices': (1, 1),
        'deployables': (1, 1),
        'attributes': (2, 2),
        'attach_handles': (1, 1),
        'device_profiles': (1, 1),
        'extended_accelerator_requests': (2, 2),
    }
    [host] = conductor.rows(model.Host)
    assert (host.name, host.state) == ('host-1', 'down')
    device = rows(conductor, model.Device)[card.device.uuid]
    assert (device.address, device.hostname, device.type) == (CARD, 'host-1', 'GPU')
    assert device.board == {'product_id': '1eb8', 'controller': '3D controller'}
    assert (device.status, device.created_at) == ('enabled', card.device.created_at)
    part = rows(conductor, model.Deployable)[card.part.uuid]
    assert (part.name, part.rp_uuid) == (card.part.name, card.part.rp_uuid)
    assert part.driver_name == 'nvidia_gpu'
    attributes = {row.key: row.value for row in conductor.rows(model.Attribute)}
    assert attributes == {'rc': 'PGPU', 'trait0': 'CUSTOM_NVIDIA_1EB8'}
    kept = rows(conductor, model.DeviceProfile)[profile.uuid]
    assert (kept.name, kept.description) == ('one-gpu', 'One T4')
    assert kept.groups == json.loads(profile.profile_json)['groups']
    bound = conductor.arq(arq.uuid)
    assert bound.attach_handle.uuid == card.handle.uuid
    assert bound.attach_handle.attach_info['bus'] == '3b'
    for name in (
        'state', 'hostname', 'device_rp_uuid', 'instance_uuid', 'project_id', 'created_at',
        'updated_at',
    ):  # fmt: skip
        assert getattr(bound, name) == getattr(arq, name), name
    assert conductor.arq(waiting.uuid).state == 'Initial'
    check_promises(conductor)


@pytest.mark.parametrize('revision', [cyborg_.FIRST, cyborg_.LAST])
def test_schemas_of_all_releases(tmp_path, conductor, revision):
    old = cyborg_.Cyborg(f'sqlite:///{tmp_path}/{revision}.sqlite', revision)
    old.gpu()
    assert upstream.take_over(conductor.database, old.url).counts['devices'] == (1, 1)
    old.close()


def test_the_other_database_is_only_read(cyborg, take_over, tmp_path):
    cyborg.bound(cyborg.profile(), cyborg.gpu())
    cyborg.close()
    before = (tmp_path / 'cyborg.sqlite').read_bytes()
    take_over()
    assert (tmp_path / 'cyborg.sqlite').read_bytes() == before
    assert {f.name for f in tmp_path.glob('cyborg.sqlite*')} == {'cyborg.sqlite'}


@pytest.mark.parametrize('revision', ['ede4e3f1a232', 'b754f9f71354', '0' * 32])
def test_schema_that_is_not_known(tmp_path, conductor, revision):
    other = cyborg_.Cyborg(f'sqlite:///{tmp_path}/other.sqlite', revision)
    with pytest.raises(exception.Invalid, match=f'{revision}.*expected.*cyborg-dbsync upgrade'):
        upstream.take_over(conductor.database, other.url)
    other.close()


def test_database_of_nobody(tmp_path, conductor):
    missing = tmp_path / 'missing.sqlite'
    with pytest.raises(exception.Invalid, match=f'no file {missing}'):
        upstream.take_over(conductor.database, f'sqlite:///{missing}')
    assert not missing.exists()
    missing.touch()
    with pytest.raises(exception.Invalid, match=r'schema \(none\)'):
        upstream.take_over(conductor.database, f'sqlite:///{missing}')


def test_target_that_is_not_empty(cyborg, conductor, take_over):
    cyborg.gpu()
    conductor.create_device_profile(profile={'name': 'a', 'groups': []})
    before = conductor.dump()
    with pytest.raises(exception.Conflict, match='device_profiles already: create an empty one'):
        take_over()
    assert conductor.dump() == before


def test_target_of_another_release(cyborg, empty):
    with pytest.raises(exception.Conflict, match='run cyborg-lite-dbsync upgrade first'):
        upstream.take_over(empty, cyborg.url)


def test_all_or_nothing(cyborg, conductor, take_over, monkeypatch):
    cyborg.bound(cyborg.profile(), cyborg.gpu())
    before = conductor.dump()
    monkeypatch.setattr(upstream._Takeover, '_note_leaks', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take_over()
    assert conductor.dump() == before


# What our agent reports afterwards is the same card.


def test_a_report_adopts_what_was_imported(cyborg, conductor, take_over):
    card = cyborg.gpu()
    arq = cyborg.bound(cyborg.profile(), card)
    take_over()
    before = conductor.dump('hosts', 'devices', 'deployables', 'attributes')
    conductor.report(gpu())
    assert conductor.dump('hosts', 'devices', 'deployables', 'attributes') == before
    [device], [part] = conductor.rows(model.Device), conductor.rows(model.Deployable)
    assert (device.uuid, device.model) == (card.device.uuid, 'Tesla T4')
    assert (part.uuid, part.rp_uuid) == (card.part.uuid, card.part.rp_uuid)
    assert conductor.rows(model.Host)[0].state == 'up'
    # Bound requests stay bound, and freed accelerators can be bound again.
    [other] = conductor.arqs(PGPU=1)
    wish = conductor.wish(other, device_rp_uuid=part.rp_uuid)
    with pytest.raises(exception.NoFreeHandle):
        conductor.bind(wishes=[wish])
    conductor.unbind(uuids=[arq.uuid, other])
    conductor.bind(wishes=[wish | {'instance_uuid': str(uuid.uuid4())}])
    assert conductor.arq(other).attach_handle.uuid == card.handle.uuid


def test_our_drivers_find_the_devices_of_upstreams_drivers(cyborg, conductor, take_over, tmp_path):
    """Eight GPUs by upstream's names, then a report of our own driver of that host."""
    host = hosts.find('hgx-8gpu', tmp_path)
    found = drivers.Drivers(conductor.conf, host).discover().devices
    boards = [json.dumps({'product_id': device.board['product_id']}) for device in found]
    cards = [
        cyborg.gpu(host.name, device.address, std_board_info=board)
        for device, board in zip(found, boards, strict=True)
    ]
    profile = cyborg.profile()
    arqs = [cyborg.bound(profile, card) for card in cards[:3]]
    take_over()
    conductor.report(*found, host=host.name)
    assert set(rows(conductor, model.Device)) == {card.device.uuid for card in cards}
    assert set(rows(conductor, model.Deployable)) == {card.part.uuid for card in cards}
    assert set(rows(conductor, model.AttachHandle)) == {card.handle.uuid for card in cards}
    assert {conductor.arq(arq.uuid).attach_handle.uuid for arq in arqs} == {
        card.handle.uuid for card in cards[:3]
    }
    assert len(cards) == 8


def test_fake_device_is_adopted(cyborg, conductor, take_over, tmp_path):
    """Upstream's fake driver names its device, and writes 0 where others write 00."""
    device = cyborg.add('devices', type='FPGA', vendor='0xABCD', model='miss model info',
                        std_board_info='{}', vendor_board_info='fake_vendor_info',
                        hostname='host-1', status='enabled')  # fmt: skip
    cyborg.add('controlpath_ids', device_id=device.id, cpid_info=cyborg_.slot('0000:0c:00.0'))
    part = cyborg.part(device, 'host-1_FakeDevice', 'fake', rc='FPGA', traits1='CUSTOM_FAKE_DEVICE')
    handles = [
        cyborg.handle(part, cyborg_.slot(f'0000:0c:{n // 8}.{n % 8}'), attach_type='TEST_PCI')
        for n in range(1, 17)
    ]
    arq = cyborg.bound(cyborg.profile(), cyborg_.Card(device, part, handles[0]))
    take_over()
    conf = direct.options.load(files=[], agent__enabled_drivers=['fake'])
    found = drivers.Drivers(conf, hosts.find('hgx-8gpu', tmp_path)).discover().devices
    conductor.report(*found)
    assert list(rows(conductor, model.Device)) == [device.uuid]
    assert list(rows(conductor, model.Deployable)) == [part.uuid]
    kept = rows(conductor, model.AttachHandle)
    # Upstream counts from 1 to 16, we from 0 to 15.
    assert len(kept) == 16
    assert len(kept.keys() & {handle.uuid for handle in handles}) == 15
    assert conductor.arq(arq.uuid).attach_handle.uuid == handles[0].uuid


def test_name_without_a_host(cyborg, conductor, take_over):
    """P2: upstream's names of Ascend cards, and so their providers, are the same in every host."""
    cards = []
    for host in ('host-1', 'host-2'):
        device = cyborg.gpu(host, type='AICHIP', vendor='19e5')
        cyborg.change('deployables', device.part, name='Device_0000_3b_00_0', rp_uuid='1' * 32,
                      driver_name='huawei')  # fmt: skip
        cards.append(device)
    arqs = [cyborg.bound(cyborg.profile(f'p{n}'), card) for n, card in enumerate(cards)]
    outcome = take_over()
    first, second = conductor.rows(model.Deployable)
    assert (first.name, second.name) == (f'host-1_{CARD}', f'host-2_{CARD}')
    assert first.rp_uuid == str(uuid.UUID('1' * 32))
    assert second.rp_uuid == direct.provider(host='host-2')
    assert first.driver_name == 'huawei_ascend'
    assert [note for note in outcome.notes if second.rp_uuid in note and second.uuid in note]
    assert conductor.arq(arqs[1].uuid).device_rp_uuid == second.rp_uuid
    check_promises(conductor)
    conductor.report(gpu(type='AICHIP', vendor='19e5'), host='host-2')
    assert conductor.arq(arqs[1].uuid).attach_handle.uuid == cards[1].handle.uuid
    assert len(conductor.rows(model.AttachHandle)) == 2


def test_provider_of_each_virtual_function(cyborg, conductor, take_over):
    """Upstream's QAT driver: as many deployables as virtual functions; ours has one."""
    card = cyborg.gpu(type='QAT')
    cyborg.change('deployables', card.part, name='host-1_0000:3b:00.1', driver_name='intel')
    cyborg.change('attach_handles', card.handle, attach_info=cyborg_.slot('0000:3b:00.1'))
    part = cyborg.part(card.device, 'host-1_0000:3b:00.2', 'intel', rc='CUSTOM_QAT')
    second = cyborg.handle(part, cyborg_.slot('0000:3b:00.2'))
    arq = cyborg.bound(cyborg.profile(), cyborg_.Card(card.device, part, second))
    assert take_over().notes == []
    [device] = conductor.rows(model.Device)
    assert (device.address, len(conductor.rows(model.Deployable))) == (CARD, 2)
    found = gpu(type='QAT')
    for function in ('1', '2'):
        info = {'domain': '0000', 'bus': '3b', 'device': '00', 'function': function}
        found.deployables[0].attach_handles.append(
            model.AttachHandle(attach_type='PCI', attach_info=info)
        )
    del found.deployables[0].attach_handles[0]
    conductor.report(found)
    # The one that is held stays where it is, and is not given out twice.
    infos = [handle.attach_info['function'] for handle in conductor.rows(model.AttachHandle)]
    assert sorted(infos) == ['1', '2']
    assert conductor.arq(arq.uuid).attach_handle.uuid == second.uuid


# Inconsistencies of upstream's bugs.


def test_one_accelerator_of_two_requests(cyborg, conductor, take_over):
    """P4: the first request keeps it; the hypervisor refuses it to the other one."""
    card, profile = cyborg.gpu(), cyborg.profile()
    late = cyborg.bound(profile, card, updated_at=datetime.datetime(2026, 3, 1))
    early = cyborg.bound(profile, card, updated_at=datetime.datetime(2026, 2, 1))
    outcome = take_over()
    assert conductor.arq(early.uuid).state == 'Bound'
    lost = conductor.arq(late.uuid)
    assert (lost.state, lost.attach_handle) == ('BindFailed', None)
    # So that it is deleted with its instance.
    assert lost.instance_uuid == late.instance_uuid
    [note] = outcome.notes
    assert note == (
        f'ARQ {late.uuid} was Bound and is BindFailed: ARQ {early.uuid} holds its accelerator'
    )
    assert [device.status for device in conductor.rows(model.Device)] == ['enabled']
    check_promises(conductor)


def test_accelerator_that_leaked(cyborg, conductor, take_over):
    """P6: in use, and of no request."""
    card = cyborg.gpu()
    cyborg.change('attach_handles', card.handle, in_use=1)
    [note] = take_over().notes
    assert card.handle.uuid in note and 'free now' in note
    conductor.report(gpu())
    [arq] = conductor.arqs(PGPU=1)
    conductor.bind(wishes=[conductor.wish(arq, device_rp_uuid=card.part.rp_uuid)])


@pytest.mark.parametrize('state', ['UnbindFailed', 'Deleting'])
def test_request_that_may_still_hold_its_accelerator(cyborg, conductor, take_over, state):
    """Its instance may use the accelerator: it is not allocated again."""
    card = cyborg.gpu()
    arq = cyborg.bound(cyborg.profile(), card, state=state)
    notes = take_over().notes
    assert conductor.arq(arq.uuid).state == state
    assert notes == [
        f'Device {card.device.uuid} is disabled: ARQ {arq.uuid} was {state} and may use it'
    ]
    conductor.report(gpu())
    [other] = conductor.arqs(PGPU=1)
    with pytest.raises(exception.ProviderUnfit, match='maintaining'):
        conductor.bind(wishes=[conductor.wish(other, device_rp_uuid=card.part.rp_uuid)])
    check_promises(conductor)


@pytest.mark.parametrize('state', ['UnbindFailed', 'Deleting'])
@pytest.mark.parametrize('broken', [{'attach_handle_id': 99}, {'uuid': 'no uuid'}])
def test_broken_request_that_may_still_hold_its_accelerator(
    cyborg, conductor, take_over, state, broken
):
    cyborg.bound(cyborg.profile(), cyborg.gpu(), state=state, **broken)
    take_over()
    assert [device.status for device in conductor.rows(model.Device)] == ['maintaining']


@pytest.mark.parametrize('state', ['UnbindFailed', 'Deleting'])
def test_accelerator_that_another_request_holds(cyborg, conductor, take_over, state):
    card, profile = cyborg.gpu(), cyborg.profile()
    cyborg.bound(profile, card, state=state)
    bound = cyborg.bound(profile, card)
    assert take_over().notes == []
    assert [device.status for device in conductor.rows(model.Device)] == ['enabled']
    assert conductor.arq(bound.uuid).attach_handle.uuid == card.handle.uuid
    check_promises(conductor)


def test_attributes_of_an_operator_stay(cyborg, conductor, take_over):
    card = cyborg.gpu()
    theirs = {'rack': '12', 'trait-9': 'CUSTOM_B', 'trait7': 'CUSTOM_RACK_7', 'traitor': 'x'}
    for key, value in theirs.items():
        cyborg.add('attributes', deployable_id=card.part.id, key=key, value=value)
    take_over()
    conductor.report(gpu())
    kept = {row.key: row.value for row in conductor.rows(model.Attribute)}
    assert kept == theirs | {'rc': 'PGPU', 'trait0': 'CUSTOM_NVIDIA_1EB8'}


def test_attributes_of_a_driver_are_replaced_by_its_report(cyborg, conductor, take_over):
    card = cyborg.gpu()
    about = {'deployable_id': card.part.id, 'created_at': card.part.created_at}
    old = {'trait1': 'CUSTOM_A', 'trait2': 'CUSTOM_B'}
    for key, value in old.items():
        cyborg.add('attributes', key=key, value=value, **about)
    take_over()
    conductor.report(gpu())
    kept = {row.key: row.value for row in conductor.rows(model.Attribute)}
    assert kept == {'rc': 'PGPU', 'trait0': 'CUSTOM_NVIDIA_1EB8'}


def test_trait_of_an_operator_that_continues_the_numbers_of_a_driver(cyborg, conductor, take_over):
    """Cyborg writes the traits of a driver with the class; what comes later is an operator's."""
    card = cyborg.gpu()
    cyborg.add('attributes', deployable_id=card.part.id, key='trait1', value='CUSTOM_RACK_7')
    take_over()
    more = gpu()
    more.deployables[0].attributes.append(model.Attribute(key='trait1', value='CUSTOM_MORE'))
    for device in (gpu(), more):
        conductor.report(device)
    kept = {row.key: row.value for row in conductor.rows(model.Attribute) if row.is_trait}
    assert kept.pop('trait1') == 'CUSTOM_RACK_7'
    assert sorted(kept.values()) == ['CUSTOM_MORE', 'CUSTOM_NVIDIA_1EB8']


def test_addresses_have_one_spelling(cyborg, conductor, take_over):
    """What our driver reports is the same card, and what is held is not free once more."""
    card = cyborg.gpu(address='0:3B:0.0')
    arq = cyborg.bound(cyborg.profile(), card)
    take_over()
    conductor.report(gpu())
    assert [device.address for device in conductor.rows(model.Device)] == [CARD]
    [handle] = conductor.rows(model.AttachHandle)
    assert (handle.uuid, handle.attach_info['bus']) == (card.handle.uuid, '3b')
    assert conductor.arq(arq.uuid).attach_handle.uuid == card.handle.uuid


def executed(cyborg, number):
    """How many lines run to take over so many rows of each kind, most of them odd."""
    profile, first = cyborg.profile(), cyborg.gpu()
    for n in range(number):
        card = cyborg.gpu(f'host-{n}')
        cyborg.bound(profile, card, attach_handle_id=None, deployable_id=None)
        part = cyborg.part(first.device, f'host-1_part-{n}', rc='PGPU')
        cyborg.add('attributes', deployable_id=first.part.id, key=f'k{n}', value='v')
        cyborg.handle(part, cyborg_.slot(f'0000:{n // 32:02x}:{n % 32:02x}.1'), in_use=1)
    rows, lines = upstream._read(cyborg.url), 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == 'line'
        return trace if frame.f_code.co_filename == upstream.__file__ else None

    sys.settrace(trace)
    try:
        upstream._Takeover(None).run(rows)
    finally:
        sys.settrace(None)
    return lines


def test_twice_the_rows_take_twice_the_steps(tmp_path):
    counts = []
    for number in (50, 100):
        made = cyborg_.Cyborg(f'sqlite:///{tmp_path}/{number}.sqlite')
        counts.append(executed(made, number))
        made.close()
    assert counts[1] < 2.1 * counts[0]


def test_bind_that_had_not_ended(cyborg, conductor, take_over):
    """No conductor would continue it: its instance would wait for ever."""
    card = cyborg.gpu()
    arq = cyborg.bound(cyborg.profile(), card, state='BindStarted')
    notes = take_over().notes
    assert conductor.arq(arq.uuid).state == 'BindFailed'
    assert any(f'ARQ {arq.uuid} was BindStarted' in note for note in notes)
    check_promises(conductor)


@pytest.mark.parametrize('state', ['Initial', 'Unbound', 'BindFailed', 'UnbindFailed', 'Deleting'])
def test_state_that_is_kept(cyborg, conductor, take_over, state):
    arq = cyborg.arq(cyborg.profile(), state)
    assert take_over().notes == []
    assert conductor.arq(arq.uuid).state == state


def test_devices_that_are_there_twice(cyborg, conductor, take_over):
    """P11: two conductors took one report in.  It is one card, and had two holders."""
    first, second, profile = cyborg.gpu(), cyborg.gpu(), cyborg.profile()
    arqs = [cyborg.bound(profile, second), cyborg.bound(profile, first)]
    outcome = take_over()
    assert outcome.counts['devices'] == (2, 1)
    assert list(rows(conductor, model.Device)) == [first.device.uuid]
    assert [conductor.arq(arq.uuid).state for arq in arqs] == ['Bound', 'BindFailed']
    assert any(f'{second.device.uuid} is {first.device.uuid}' in note for note in outcome.notes)
    check_promises(conductor)
    conductor.report(gpu())
    assert len(conductor.rows(model.AttachHandle)) == 1


def test_accelerator_under_two_deployables(cyborg, conductor, take_over):
    card, profile = cyborg.gpu(), cyborg.profile()
    part = cyborg.part(card.device, 'host-1_other')
    twin = cyborg.handle(part, cyborg_.slot(CARD))
    arqs = [cyborg.bound(profile, cyborg_.Card(card.device, part, twin)),
            cyborg.bound(profile, card)]  # fmt: skip
    take_over()
    assert [conductor.arq(arq.uuid).state for arq in arqs] == ['Bound', 'BindFailed']
    check_promises(conductor)


@pytest.mark.parametrize('lost', [{'attach_handle_id': 99}, {'attach_handle_id': None}])
def test_bound_to_nothing(cyborg, conductor, take_over, lost):
    """The instance may have the card: it is not allocated again."""
    card = cyborg.gpu()
    arq = cyborg.bound(cyborg.profile(), card, **lost)
    notes = take_over().notes
    assert conductor.arq(arq.uuid).state == 'BindFailed'
    assert [device.status for device in conductor.rows(model.Device)] == ['maintaining']
    assert any(f'Device {card.device.uuid} is disabled' in note for note in notes)
    conductor.report(gpu())
    [other] = conductor.arqs(PGPU=1)
    with pytest.raises(exception.ProviderUnfit, match='maintaining'):
        conductor.bind(wishes=[conductor.wish(other, device_rp_uuid=card.part.rp_uuid)])


@pytest.mark.parametrize(
    'broken',
    [
        {'device_profile_id': 99},
        {'device_profile_group_id': 7},
        {'device_profile_group_id': -1},
        {'device_profile_group_id': None},
        {'project_id': None},
        {'uuid': 'no uuid'},
        {'uuid': '\x1b[31m' + '9' * 100},
        {'instance_uuid': 'x' * 37},
    ],
)
def test_request_that_cannot_be_kept(cyborg, conductor, take_over, broken):
    card = cyborg.gpu()
    arq = cyborg.bound(cyborg.profile(), card, **broken)
    outcome = take_over()
    assert conductor.rows(model.ARQ) == []
    assert outcome.counts['extended_accelerator_requests'] == (1, 0)
    assert outcome.notes[0].startswith(f'ARQ {ascii(arq.uuid)[1:-1][:36]} is left out: ')
    assert [device.status for device in conductor.rows(model.Device)] == ['maintaining']
    assert all(note.isprintable() for note in outcome.notes)


def test_unknown_state(cyborg, conductor, take_over):
    cyborg.arq(cyborg.profile(), 'Dreaming')
    [note] = take_over().notes
    assert "its state is 'Dreaming'" in note


def test_project_of_requests_that_have_none(cyborg, conductor, take_over):
    profile = cyborg.profile()
    arqs = [cyborg.bound(profile, cyborg.gpu(), project_id=None), cyborg.arq(profile)]
    assert take_over(project='a-project').notes == []
    assert [conductor.arq(a.uuid).project_id for a in arqs] == ['a-project', cyborg_.PROJECT]


@pytest.mark.parametrize('state', ['pending_cleaning', 'cleaning', 'error'])
def test_device_that_is_not_clean(cyborg, conductor, take_over, state):
    """I4: data of a tenant must not reach the next one."""
    cyborg.gpu(device_state=state)
    [note] = take_over().notes
    assert f'disabled: its state is {state}' in note
    assert [device.status for device in conductor.rows(model.Device)] == ['maintaining']


@pytest.mark.parametrize('state', ['available', 'allocated', None])
def test_device_that_is_clean(cyborg, conductor, take_over, state):
    cyborg.gpu(device_state=state)
    assert take_over().notes == []
    assert [device.status for device in conductor.rows(model.Device)] == ['enabled']


def test_device_that_was_disabled(cyborg, conductor, take_over):
    cyborg.gpu(status='maintaining')
    take_over()
    assert [device.status for device in conductor.rows(model.Device)] == ['maintaining']


def test_mediated_devices(cyborg, conductor, take_over):
    """Our driver reports the whole GPU: it is not allocated while parts of it are in use."""
    card = cyborg.gpu()
    info = json.loads(cyborg_.slot(CARD)) | {'asked_type': 'nvidia-223', 'vgpu_mark': 'a_0'}
    cyborg.change('attach_handles', card.handle, attach_type='MDEV', attach_info=json.dumps(info))
    arq = cyborg.bound(cyborg.profile(), card)
    [note] = take_over().notes
    assert 'vgpu_types' in note
    for _ in range(4):
        conductor.report(gpu())
    assert conductor.arq(arq.uuid).attach_handle.attach_info == info
    [other] = conductor.arqs(PGPU=1)
    with pytest.raises(exception.ProviderUnfit, match='maintaining'):
        conductor.bind(wishes=[conductor.wish(other, device_rp_uuid=card.part.rp_uuid)])


def test_a_driver_that_reports_mediated_devices_keeps_the_attach_handle(
    cyborg, conductor, take_over, tmp_path
):
    """Its UUID is that of the device, which Nova has made: a guest goes on with it."""
    card = cyborg.gpu()
    info = json.loads(cyborg_.slot(CARD)) | {
        'asked_type': 'nvidia-223',
        'vgpu_mark': 'nvidia-223_0',
    }
    cyborg.change('attach_handles', card.handle, attach_type='MDEV', attach_info=json.dumps(info))
    arq = cyborg.bound(cyborg.profile(), card)
    take_over()
    before = conductor.arq(arq.uuid).attach_handle.uuid
    host = hosts.find(str(FIXTURES / 'vgpu-t4.yaml'), tmp_path)
    chosen = conf.new(agent__vgpu_types=[f'{CARD}=nvidia-223'])
    conductor.report(*nvidia_gpu.NvidiaGpu(host, chosen).look()[0])
    held = conductor.arq(arq.uuid).attach_handle
    assert (held.uuid, held.form, held.lost) == (before, 'mdev', False)
    assert [each.form for each in conductor.rows(model.AttachHandle)] == ['mdev'] * 8


def test_device_that_has_no_address(cyborg, conductor, take_over):
    """Its accelerator is known by its own address, so the card is not given out beside it."""
    card = cyborg.gpu(address='0000:3b:00.0')
    cyborg.change('deployables', card.part, name='nameless')
    with cyborg.engine.begin() as connection:
        connection.execute(sa.delete(cyborg.tables['controlpath_ids']))
    arq = cyborg.bound(cyborg.profile(), card)
    take_over()
    assert [device.address for device in conductor.rows(model.Device)] == [card.device.uuid]
    for _ in range(4):
        conductor.report(gpu())
    assert conductor.arq(arq.uuid).state == 'Bound'
    infos = [handle.attach_info for handle in conductor.rows(model.AttachHandle)]
    assert len(infos) == 1


@pytest.mark.parametrize(
    ('table', 'broken', 'what', 'reason'),
    [
        ('devices', {'hostname': 'h' * 256}, 'Device', 'hostname'),
        ('devices', {'model': None}, 'Device', 'it has no model'),
        ('devices', {'vendor': 'a\x1b[2Jb'}, 'Device', 'vendor'),
        ('deployables', {'device_id': 99}, 'Deployable', 'its device is gone'),
        ('deployables', {'rp_uuid': 'x'}, 'Deployable', 'UUID'),
        ('attributes', {'value': 'v' * 256}, 'Attribute', 'value'),
        ('attributes', {'deployable_id': None}, 'Attribute', 'its deployable is gone'),
        ('attach_handles', {'attach_info': '{"bus"'}, 'Attach handle', 'attach_info'),
        ('attach_handles', {'attach_info': '{"bus": 3}'}, 'Attach handle', 'attach_info'),
        ('attach_handles', {'deployable_id': 99}, 'Attach handle', 'its deployable is gone'),
        ('device_profiles', {'profile_json': '[' * 9999}, 'Device profile', 'its groups'),
        ('device_profiles', {'profile_json': '{"groups": ["a"]}'}, 'Device profile', 'its groups'),
        ('device_profiles', {'profile_json': '{"groups": [{"resources:A": "x"}]}'},
         'Device profile', 'its groups'),
        ('device_profiles', {'name': 'n' * 256}, 'Device profile', 'its name'),
    ],
)  # fmt: skip
def test_row_that_cannot_be_kept(cyborg, conductor, take_over, table, broken, what, reason):
    """It is left out, with its dependent rows."""
    first, good = cyborg.gpu(), cyborg.gpu('host-2')
    profiles = [cyborg.profile(), cyborg.profile('good')]
    bound = cyborg.bound(profiles[1], good)
    row = {
        'devices': first.device,
        'deployables': first.part,
        'attach_handles': first.handle,
        'device_profiles': profiles[0],
    }.get(table)
    row = row or cyborg.add('attributes', deployable_id=first.part.id, key='k', value='v')
    cyborg.change(table, row, **broken)
    notes = take_over().notes
    assert notes[0].startswith(f'{what} {row.uuid} is left out: ')
    assert reason in notes[0]
    assert all(note.isprintable() for note in notes)
    assert row.uuid not in rows(conductor, upstream.TABLES[table])
    assert conductor.arq(bound.uuid).attach_handle.uuid == good.handle.uuid
    check_promises(conductor)


def test_profiles_of_one_uuid(cyborg, conductor, take_over):
    """Upstream's constraint is on uuid and name together."""
    first = cyborg.profile('a')
    cyborg.profile('b', uuid=first.uuid.upper())
    [note] = take_over().notes
    assert note.endswith('another one has the same uuid')
    assert [profile.name for profile in conductor.rows(model.DeviceProfile)] == ['a']


def test_times_that_are_none(cyborg, conductor, take_over):
    cyborg.gpu(created_at=None)
    with cyborg.engine.begin() as connection:
        connection.execute(sa.text("UPDATE devices SET updated_at = 'yesterday'"))
    take_over()
    [device] = conductor.rows(model.Device)
    assert device.created_at and device.updated_at is None

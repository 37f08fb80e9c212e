# SPDX-License-Identifier: Apache-2.0
"""/v2/accelerators: all accelerators with states, reasons and holders."""

import datetime

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.api import app
from cyborg_lite.conductor import healing
from cyborg_lite.db import accelerators
from tests import support

PATH = '/v2/accelerators'


def function(bus, number, **more):
    """A card whose accelerator is one of its functions: 0 is the card itself."""
    device = support.card(bus, handles=[number], **more)
    device.deployables[0].attach_handles[0].attach_type = 'PCI'
    return device


def found(service, query=''):
    answer = service.api.get(f'{PATH}{query}')
    assert answer.status_int == 200, answer.text
    return answer.json['accelerators']


def nested(levels):
    """JSON of so many levels: the deepest that every engine stores has 31."""
    return [nested(levels - 1)] if levels else 1


def states(service):
    """State and reason of each."""
    return [(each['state'], each['reason']) for each in found(service)]


def bind(service, provider=0, **more):
    """Bind a new request to a provider; returns its uuid."""
    if not service.rows(model.DeviceProfile):
        service.profile()
    [arq] = service.arqs()
    part = service.rows(model.Deployable)[provider]
    assert service.api.bind(arq, provider=part.rp_uuid, **more).status_int == 202
    return arq


def change(service, kind, **values):
    with service.database.writer() as session:
        session.execute(sa.update(kind).values(**values))


def test_a_row_tells_all_of_an_accelerator(service):
    npu = support.card(
        'c1', type='AICHIP', vendor='19e5', model='Ascend 910B3', resource_class='CUSTOM_NPU',
        traits=['CUSTOM_NPU_910B', 'CUSTOM_NPU_910B3'], numa_node=4,
        vendor_board={'npu_id': 3, 'chip_name': '910B3', 'board_id': '0x33',
                      'chips': [{'chip_id': 0, 'logic_id': 3, 'phy_id': 3, 'memory_mb': 65536}]},
    )  # fmt: skip
    service.report(npu)
    [row] = found(service)
    [device], [part] = service.rows(model.Device), service.rows(model.Deployable)
    [handle] = service.rows(model.AttachHandle)
    assert row['links'] == [{'rel': 'self', 'href': f'http://localhost{PATH}/{handle.uuid}'}]
    assert {name: row[name] for name in row if name not in ('links', 'created_at')} == {
        'uuid': handle.uuid,
        'updated_at': None,
        'state': 'free',
        'states': ['free'],
        'reason': None,
        'host': 'host-1',
        'device_uuid': device.uuid,
        'type': 'AICHIP',
        'vendor': 'Huawei',
        'vendor_id': '19e5',
        'model': 'Ascend 910B3',
        'address': '0000:c1:00.0',
        'numa_node': 4,
        'resource_class': 'CUSTOM_NPU',
        'rp_uuid': part.rp_uuid,
        'driver': 'fake',
        'attach_type': 'TEST_PCI',
        'attach_info': {'domain': '0000', 'bus': 'c1', 'device': '00', 'function': '0'},
        'health': 'unknown',
        'health_reason': None,
        'health_since': f'{device.health_since.isoformat(timespec="seconds")}+00:00',
        'arq_uuid': None,
        'instance_uuid': None,
        'access': None,
        'rogue': None,
        'allocation_uuid': None,
        'project_id': None,
        'user_name': None,
        'claimed_name': None,
        'note': None,
        'container': None,
        'held_since': None,
        'idle_since': None,
        'traits': ['CUSTOM_NPU_910B', 'CUSTOM_NPU_910B3'],
        'ids': {'npu_id': 3, 'chips': [{'chip_id': 0, 'logic_id': 3, 'phy_id': 3}]},
    }
    assert service.api.get(f'{PATH}/{handle.uuid}').json == row


def test_who_holds_it_and_since_when(service):
    service.report(support.card(handles=2))
    arq = bind(service, instance=support.INSTANCE)
    shown = service.api.get(f'/v2/accelerator_requests/{arq}').json
    [row] = found(service, '?state=held')
    assert row['uuid'] == shown['attach_handle_uuid']
    assert (row['arq_uuid'], row['instance_uuid']) == (arq, support.INSTANCE)
    assert (row['project_id'], row['held_since']) == (shown['project_id'], shown['updated_at'])
    for query in f'arq_uuid={arq}', f'instance_uuid={support.INSTANCE.upper()}':
        assert found(service, f'?{query}') == [row]
    service.api.unbind(arq)
    assert {each['held_since'] for each in found(service, '?free=true')} == {None}


def test_states_of_a_device(service):
    service.report(support.card())
    [device] = service.rows(model.Device)
    for action, state in ('disable', 'disabled'), ('enable', 'free'):
        service.api.post(f'/v2/devices/{device.uuid}/{action}')
        assert states(service)[0][0] == state
    assert states(service) == [('free', None)]
    change(service, model.Device, unusable='it has a bridge')
    assert states(service) == [('unusable', 'its device cannot be used: it has a bridge')]
    unusable = 'cannot be used: it has a bridge'
    change(service, model.Device, absences=1)
    missing = f'is missing from its host and {unusable}'
    assert states(service) == [('missing', f'its device {missing}')]
    change(service, model.Device, status='maintaining')
    assert states(service) == [('disabled', f'its device is maintaining and {missing}')]


def test_all_states_of_an_accelerator_are_shown_and_found(service):
    """Which of them is ``state`` follows from their order; a filter finds each."""
    service.report(support.card('3b'), support.card('4c'))
    bind(service)
    other = found(service)[1]['uuid']
    device, _ = service.rows(model.Device)
    changes = [
        ('held', lambda: None),
        ('host down', lambda: change(service, model.Host, renamed_to='b')),
        ('host down', lambda: change(service, model.Host, silent=True)),
        ('unusable', lambda: change_one(model.Device, unusable='it is odd')),
        ('missing', lambda: change_one(model.Device, absences=1)),
        ('disabled', lambda: change_one(model.Device, status='maintaining')),
        ('lost', lambda: change_one(model.AttachHandle, lost=True)),
    ]

    def change_one(kind, **values):
        with service.database.writer() as session:
            session.execute(sa.update(kind).where(kind.id == 1).values(**values))

    expected = []
    for state, happens in changes:
        happens()
        expected = [state, *(each for each in expected if each != state)]
        [row] = [row for row in found(service) if row['device_uuid'] == device.uuid]
        assert (row['state'], row['states']) == (state, expected)
        for each in accelerators.STATES:
            rows = [row['uuid'] for row in found(service, f'?state={each}')]
            assert (row['uuid'] in rows) is (each in expected), each
    assert row['reason'] == (
        'its host does not report it any more; its device is maintaining and is missing from its '
        'host and cannot be used: it is odd and is in host-1, which reports as b now and is in '
        'host-1, which is down'
    )
    [row] = [row for row in found(service) if row['uuid'] == other]
    assert row['states'] == ['host down']
    assert [row['state'] for row in found(service, '?sort_key=state')] == ['host down', 'lost']


def host_names(service, query):
    return [host['name'] for host in service.api.get(f'/v2/hosts{query}').json['hosts']]


@pytest.mark.parametrize('seconds', [-9000, 60])
def test_host_that_is_down(service, seconds):
    """Or a host whose last report has a time in the future."""
    service.report(support.card())
    then = timeutils.utcnow() + datetime.timedelta(seconds=seconds)
    change(service, model.Host, seen_at=then)
    # By itself the clock says nothing: after an outage every host is overdue.
    assert host_names(service, '?state=up') == ['host-1']
    with service.database.writer() as session:
        healing.notice_silence(session)
    assert states(service) == [('host down', 'its device is in host-1, which is down')]
    assert host_names(service, '?state=down') == ['host-1']
    assert host_names(service, '?state=up') == []
    change(service, model.Host, silent=False, renamed_to='b')
    assert states(service) == [
        ('host down', 'its device is in host-1, which reports as b now'),
    ]
    assert host_names(service, '?state=down&host=host-1') == ['host-1']
    change(service, model.Host, renamed_to=None)
    assert states(service) == [('free', None)]
    assert host_names(service, '?state=up&host=host-1') == ['host-1']
    assert host_names(service, '?host=host-2') == []
    answer = service.api.get('/v2/hosts?state=odd')
    assert answer.status_int == 400
    assert support.fault(answer) == 'Invalid state: expected one of up, down.'


def test_accelerator_that_a_report_lacks_while_it_is_held(service):
    service.report(support.card(handles=[0]))
    bind(service)
    service.report(support.card(handles=[1]))
    assert sorted(states(service), key=str) == [
        ('free', None),
        ('lost', 'its host does not report it any more'),
    ]


def test_other_form_of_a_card_that_is_held(service):
    service.report(function('3b', 0), function('4c', 0))
    bind(service)
    service.report(function('3b', 1), function('4c', 0))
    said = 'its card is held in another form (whole)'
    assert ('excluded', said) in states(service)
    assert sorted(state for state, _ in states(service)) == ['excluded', 'free', 'lost']
    assert len(found(service, '?free=true')) == 1


def test_the_state_is_that_by_which_a_bind_is_refused(service):
    """Every combination of obstacles: only a free accelerator is bound."""
    service.report(support.card(handles=1))
    service.profile()
    [part] = service.rows(model.Deployable)
    [arq] = service.arqs()
    ways = [
        (model.Device, {'status': 'maintaining'}, {'status': 'enabled'}),
        (model.Device, {'absences': 2}, {'absences': 0}),
        (model.Device, {'unusable': 'it is odd'}, {'unusable': None}),
        (model.Host, {'renamed_to': 'x'}, {'renamed_to': None}),
        (model.Host, {'silent': True}, {'silent': False}),
    ]
    for number in range(2 ** len(ways)):
        for bit, (kind, bad, good) in enumerate(ways):
            change(service, kind, **(bad if number >> bit & 1 else good))
        [(state, reason)] = states(service)
        answer = service.api.bind(arq, provider=part.rp_uuid)
        assert (state == 'free') is (answer.status_int == 202)
        if state != 'free':
            assert reason in support.fault(answer)
        service.api.unbind(arq)


def many(service):
    service.report(
        support.card('3b', 2, numa_node=1),
        support.card('4c', type='GPU', vendor='10de', model='A100', resource_class='PGPU',
                     traits=['CUSTOM_A']),
    )  # fmt: skip
    service.report(support.card('5d', type='AICHIP', vendor='0x19e5'), host='host-2')
    bind(service)


def test_every_field_of_one_value_filters(service):
    many(service)
    rows = found(service)
    assert len(rows) == 4
    for name, value in ((name, row[name]) for row in rows for name in row):
        if (
            isinstance(value, (str, int))
            and name != 'uuid'
            and not name.endswith(('_at', '_since'))
        ):
            wanted = [row['uuid'] for row in rows if row[name] == value]
            assert [row['uuid'] for row in found(service, f'?{name}={value}')] == wanted, name
    assert found(service, '?vendor=Nobody') == []
    assert found(service, '?type=aichip') == found(service, '?type=AICHIP') != []
    assert [row['host'] for row in found(service, '?trait=CUSTOM_A')] == ['host-1']
    assert [row['vendor'] for row in found(service, '?vendor=Huawei&free=true')] == ['Huawei']
    assert len(found(service, '?free=false')) == 1


def test_every_field_of_one_value_sorts(service):
    many(service)
    rows = found(service)
    plain = [name for name in rows[0] if not isinstance(rows[0][name], (list, dict))]
    for name in plain:
        for direction in 'asc', 'desc':
            page = f'?sort_key={name}&sort_dir={direction}'
            values = [row[name] for row in found(service, page) if row[name] is not None]
            assert values == sorted(values, reverse=direction == 'desc'), name


def test_ids_of_the_vendors_software_filter(service):
    """Of an accelerator with ids of its own those count, and not those of its card."""
    mig = function('4c', 0, vendor='10de', vendor_board={'uuid': 'GPU-b', 'index': 1})
    [handle] = mig.deployables[0].attach_handles
    handle.attach_info = {**handle.attach_info, 'uuid': 'MIG-a'}
    npu = {'npu_id': 3, 'note': '"logic_id": 6', 'chips': [{'chip_id': 0, 'logic_id': 6}]}
    hostile = {'uuid': 'GPU-A', 'index': 12, 'note': '\0"phy_id": "1"', 'deep': nested(30)}
    service.report(
        support.card('3b', vendor='10de', vendor_board={'uuid': 'GPU-a', 'index': 0}),
        mig,
        support.card('5d', vendor='19e5', vendor_board=npu),
        support.card('6e', vendor='10de', vendor_board=hostile),
        support.card('7f'),
    )
    found_at = {
        'uuid:GPU-a': ['3b'], 'uuid:GPU-A': ['6e'], 'uuid:GPU': [], 'uuid:GPU-b': [],
        'uuid:MIG-a': ['4c'], 'index:1': [], 'index:12': ['6e'], 'index:0': ['3b'], 'index:': None,
        'npu_id:3': ['5d'], 'chip_id:0': ['5d'], 'npu_id:3,chip_id:0': ['5d'], 'logic_id:6': ['5d'],
        'npu_id:3,chip_id:1': [], 'logic_id:3': [], 'logic_id:06': [], 'phy_id:1': [],
        'uuid:%': [], 'uuid:GPU-_': [],
    }  # fmt: skip
    for ids, buses in found_at.items():
        answer = service.api.get(f'{PATH}?ids={ids.replace("%", "%25")}')
        if buses is None:
            assert answer.status_int == 400
            continue
        rows = answer.json['accelerators']
        assert [row['address'] for row in rows] == [f'0000:{bus}:00.0' for bus in buses], ids
        for name, _, value in (each.partition(':') for each in ids.split(',')):
            shown = [str(row['ids']) for row in rows]
            assert all(f"'{name}': " in each and value in each for each in shown)


def test_the_time_of_the_hold_filters(service):
    many(service)
    [held] = found(service, '?state=held')
    moment = datetime.datetime.fromisoformat(held['held_since'])
    later = (moment + datetime.timedelta(seconds=1)).isoformat().replace('+', '%2B')
    since = held['held_since'].replace('+', '%2B')
    for query, rows in {
        f'held_after={since}': [held],
        f'held_after={later}': [],
        f'held_before={since}': [],
        f'held_before={later}': [held],
        f'held_after={since}&held_before={later}&free=false': [held],
        f'held_before={later}&free=true': [],
    }.items():
        assert found(service, f'?{query}') == rows, query


def test_counts_for_whoever_sees_no_hosts(service, monkeypatch):
    many(service)
    monkeypatch.setitem(app.ALONE, 'X-Roles', 'member,reader')
    assert service.api.get(PATH).status_int == 403
    [handle, *_] = service.rows(model.AttachHandle)
    assert service.api.get(f'{PATH}/{handle.uuid}').status_int == 403
    assert service.api.get(f'{PATH}/summary').json == {
        'summary': [
            {'resource_class': 'FPGA', 'model': 'miss model info', 'total': 3, 'free': 2,
             'traits': ['CUSTOM_FAKE_DEVICE']},
            {'resource_class': 'PGPU', 'model': 'A100', 'total': 1, 'free': 1,
             'traits': ['CUSTOM_A']},
        ]
    }  # fmt: skip


@pytest.mark.parametrize(
    ('query', 'said'),
    [
        ('?no=1', 'Unknown argument: "no"'),
        ('?uuid=1', 'Unknown argument: "uuid"'),
        ('?state=bad', 'Invalid state: expected one of free, lost, '),
        ('?health=bad', 'Invalid health: expected one of ok, warning, unknown, critical.'),
        ('?free=1', "Invalid free: expected true or false, got '1'"),
        ('?numa_node=-1', 'Invalid numa_node: expected a number from 0 to'),
        ('?numa_node=' + '0' * 20, 'Invalid numa_node: expected a number'),
        ('?numa_node=2147483648', 'Invalid numa_node: expected a number from 0 to'),
        ('?device_uuid=1', 'Invalid device_uuid: expected a UUID'),
        ('?ids=', 'Invalid ids: expected 1 to 7 of NAME:VALUE'),
        ('?ids=GPU-a', 'where NAME is one of chip_id, index, logic_id'),
        ('?ids=cuda_uuid:GPU-a', "got 'cuda_uuid:GPU-a'"),
        ('?ids=index:1,', 'Invalid ids: expected'),
        ('?ids=' + ','.join(['index:1'] * 8), 'Invalid ids: expected'),
        ('?ids=index:1&ids=index:2', 'Invalid ids: expected'),
        ('?ids=uuid:' + 'a' * 256, 'Invalid ids: expected'),
        ('?held_before=yesterday', 'Invalid held_before: expected a date or a time in ISO 8601'),
        ('?held_after=2026-11-27T10:00:00+01:00', 'Invalid held_after: expected a date or a time'),
        ('?sort_key=ids', "Invalid sort_key 'ids'"),
        ('?sort_key=traits', "Invalid sort_key 'traits'"),
        ('/summary?host=a', 'Unknown argument: "host"'),
    ],
)
def test_bad_input(service, query, said):
    answer = service.api.get(f'{PATH}{query}')
    assert answer.status_int == 400
    assert said in support.fault(answer)


@pytest.mark.parametrize(
    ('method', 'path', 'status', 'said'),
    [
        ('GET', f'{PATH}/nothing', 404, 'Accelerator nothing not found.'),
        ('GET', f'{PATH}/a/b', 404, 'Nothing matches the given URI.'),
        ('PUT', PATH, 405, 'Specified method is invalid for this resource.'),
        ('GET', f'{PATH}?no=1', 400, 'Unknown argument: "no"'),
        ('PATCH', '/v2/hosts/a', 413, 'The body is too large: expected 114688 bytes at most.'),
        ('DELETE', '/v2/instances/a', 400, "Invalid uuid: expected a UUID, got 'a'."),
    ],
)
def test_errors_of_our_own_have_one_form(service, method, path, status, said):
    answer = service.api.request(method, path, b' ' * 200_000 if status == 413 else None)
    id = answer.headers['x-openstack-request-id']
    title = answer.status.partition(' ')[2]
    error = {'status': status, 'title': title, 'detail': said, 'request_id': id}
    assert (answer.status_int, answer.json) == (status, {'errors': [error]})


def test_unknown_version_of_our_own(service):
    answer = service.api.at('2.50').get(PATH)
    assert answer.status_int == 406
    assert 'Version 2.50 is not supported' in support.fault(answer)


def test_unknown_field_of_our_own(service):
    answer = service.api.patch('/v2/hosts/a', {'name': 'b', 'colour': 'red'})
    assert answer.status_int == 400
    assert 'colour' in support.fault(answer)


def test_states_are_declared(service):
    assert set(accelerators.STATES) == {
        'free', 'held', 'disabled', 'missing', 'lost', 'host down', 'unusable', 'rogue', 'faulty',
        'excluded',
    }  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""/v2/allocations/{id}/deliveries: how a workload uses the accelerators on each host."""

import json

import sqlalchemy as sa

from cyborg_lite import model
from tests import support

PATH = '/v2/allocations'
NPUS = {'groups': [{'resources': {'CUSTOM_NPU': 2}}], 'same_host': False}


def report(service, host, number):
    board = {'npu_id': number, 'chips': [{'chip_id': 0, 'logic_id': number}]}
    card = support.card('c1', resource_class='CUSTOM_NPU', type='AICHIP', vendor_board=board)
    [part] = card.deployables
    part.driver_name = 'huawei_ascend'
    part.attach_handles[0].form = 'whole'
    service.report(card, host=host)


def allocated(service):
    report(service, 'host-1', 3)
    report(service, 'host-2', 5)
    return service.api.post(PATH, NPUS).json


def deliveries(service, allocation, query=''):
    answer = service.api.get(f'{PATH}/{allocation["uuid"]}/deliveries{query}')
    return answer.json['deliveries']


def test_each_host_has_its_own(service):
    made = allocated(service)
    found = deliveries(service, made, '?view=process')
    names = {e['host']: e['delivery']['env']['ASCEND_RT_VISIBLE_DEVICES'] for e in found}
    assert names == {'host-1': '3', 'host-2': '5'}
    [one] = deliveries(service, made, '?view=process&host=host-2')
    assert one == next(each for each in found if each['host'] == 'host-2')
    assert one['delivery']['nodes'] == ['/dev/davinci5']
    assert one['delivery']['problems'] == []


def test_an_allocation_of_the_release_before_says_so(service):
    made = allocated(service)
    with service.database.writer() as session:
        old = [
            {name: value for name, value in each.items() if name not in ('form', 'driver')}
            for each in made['accelerators']
        ]
        session.execute(sa.update(model.Allocation).values(accelerators=old))
    for each in deliveries(service, made, '?view=process'):
        assert 'an older release' in each['delivery']['problems'][0]
        devices = json.loads(each['delivery']['env']['CYBORG_DEVICES'])
        assert [device['name'] for device in devices] == [None]


def test_an_allocation_of_another_project_is_not_found(service, member):
    made = allocated(service)
    member('another')
    answer = service.api.get(f'{PATH}/{made["uuid"]}/deliveries')
    assert answer.status_int == 404

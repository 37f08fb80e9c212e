# SPDX-License-Identifier: Apache-2.0
import threading
import uuid

import pytest

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import profiles

GROUPS = [{'resources:FPGA': '1', 'trait:CUSTOM_A': 'required'}]


def test_create(conductor):
    made = conductor.create_device_profile(
        profile={'name': 'a', 'groups': GROUPS, 'description': 'one'}
    )
    [row] = conductor.rows(model.DeviceProfile)
    assert (row.uuid, row.name, row.groups, row.description) == (made, 'a', GROUPS, 'one')


def test_create_with_a_uuid(conductor):
    wanted = str(uuid.uuid4())
    profile = {'name': 'a', 'groups': GROUPS, 'uuid': wanted}
    assert conductor.create_device_profile(profile=profile) == wanted
    with pytest.raises(exception.Duplicate, match=f'Device profile with uuid {wanted} already'):
        conductor.create_device_profile(profile=profile | {'name': 'b'})


def test_create_of_a_name_that_is_taken(conductor):
    profile = {'name': 'a', 'groups': GROUPS}
    conductor.create_device_profile(profile=profile)
    with pytest.raises(exception.Duplicate, match='Device profile with name a already exists'):
        conductor.create_device_profile(profile=profile)


def test_create_of_one_name_in_a_race(twins):
    barrier, outcomes = threading.Barrier(8), []

    def race(conductor):
        barrier.wait()
        try:
            conductor.create_device_profile(profile={'name': 'a', 'groups': GROUPS})
        except exception.Duplicate:
            outcomes.append('refused')
        else:
            outcomes.append('created')

    threads = [threading.Thread(target=race, args=[twins[n % 2]]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ['created'] + ['refused'] * 7


@pytest.mark.parametrize('by', ['name', 'uuid'])
def test_delete(conductor, by):
    conductor.create_device_profile(profile={'name': 'a', 'groups': GROUPS})
    conductor.create_device_profile(profile={'name': 'b', 'groups': GROUPS})
    [first, _] = conductor.rows(model.DeviceProfile)
    conductor.delete_device_profile(id=getattr(first, by))
    assert [row.name for row in conductor.rows(model.DeviceProfile)] == ['b']
    with pytest.raises(exception.NotFound, match='Device profile .* not found'):
        conductor.delete_device_profile(id=getattr(first, by))


def test_delete_while_in_use(conductor):
    conductor.create_device_profile(profile={'name': 'a', 'groups': GROUPS})
    uuids = conductor.create_arqs(profile='a')
    with pytest.raises(exception.Conflict, match='Device profile a is in use') as refused:
        conductor.delete_device_profile(id='a')
    assert refused.value.code == 409
    conductor.delete_arqs(uuids=uuids)
    conductor.delete_device_profile(id='a')
    assert conductor.rows(model.DeviceProfile) == []


@pytest.mark.parametrize(
    ('group', 'asked'),
    [
        ({}, {}),
        ({'trait:CUSTOM_A': 'required', 'accel:function_id': '7'}, {}),
        ({'resources:FPGA': '2', 'resources:CUSTOM_NPU': '1'}, {'FPGA': 2, 'CUSTOM_NPU': 1}),
    ],
)
def test_resources(group, asked):
    assert profiles.resources(group) == asked

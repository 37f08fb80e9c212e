# SPDX-License-Identifier: Apache-2.0
"""What becomes of a driver's answer, whatever it is."""

from __future__ import annotations

import json
import re

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite.driver import testing
from tests.support import card

INFO = {'domain': '0000', 'bus': '01', 'device': '00', 'function': '0'}


def device(number: int = 0, part: dict | None = None, handle: dict | None = None, **changes):
    """A sound device, but for the changes to it, to its deployable and to its handle."""
    address = f'0000:{number:02x}:00.0'
    handles = [
        driver.AttachHandle(
            **{'attach_type': 'PCI', 'attach_info': INFO | {'bus': f'{number:02x}'}}
            | (handle or {})
        )
    ]
    deployable = driver.Deployable(
        **{
            'name': address,
            'driver_name': 'test',
            'resource_class': 'CUSTOM_NPU',
            'traits': ['CUSTOM_NPU_910B'],
            'attach_handles': handles,
        }
        | (part or {})
    )
    usual = {'type': 'AICHIP', 'vendor': '19e5', 'model': 'Ascend', 'address': address}
    return driver.Device(**usual | {'deployables': [deployable]} | changes)


def test_sound_devices_pass():
    devices = [device(1, numa_node=3, board={'a': 1}), device(2), device(3, deployables=[])]
    assert contract.check(devices) == (devices, [])


def test_standard_names_pass():
    good, complaints = contract.check(
        [device(part={'resource_class': 'PGPU', 'traits': ['HW_NUMA_ROOT', 'CUSTOM_A']})]
    )
    assert (len(good), complaints) == (1, [])


@pytest.mark.parametrize('answer', [None, 7, 'devices', {}, object(), (d for d in [])])
def test_no_list(answer):
    good, [complaint] = contract.check(answer)
    assert good == []
    assert complaint.startswith('expected a list of devices, not ')


@pytest.mark.parametrize('thing', [None, 7, 'x', {'type': 'GPU'}, driver.Deployable()])
def test_a_thing_that_is_no_device(thing):
    sound = device(1)
    good, [complaint] = contract.check([thing, sound])
    assert good == [sound]
    assert complaint.startswith('device 0 left out: expected a Device, not ')


class Trap:
    """Raises at whatever is done with it."""

    def __getattribute__(self, name):
        raise RuntimeError('trap')

    def __repr__(self):
        raise RuntimeError('trap')


UNSOUND = [
    (dict(address=None), 'address'),
    (dict(address=''), 'address'),
    (dict(address='a' * 256), 'address: expected up to 255'),
    (dict(type='a' * 33), 'type: expected up to 32'),
    (dict(vendor=0x19E5), 'vendor: expected a text'),
    (dict(vendor=None), 'vendor'),
    (dict(model='a\x00b'), 'model: expected up to 255 printable'),
    (dict(model='\udcff'), 'model'),
    (dict(model='  '), 'model: expected a text'),
    (dict(serial=''), 'serial: expected a text'),
    (dict(serial=7), 'serial: expected a text'),
    (dict(serial='a' * 256), 'serial: expected up to 255'),
    (dict(unusable='a\x00b'), 'unusable: expected up to 255 printable'),
    (dict(handle={'form': 'a' * 33}), 'form: expected up to 32'),
    (dict(handle={'iommu_group': 17}), 'iommu_group: expected a text'),
    (dict(handle={'iommu_group': '1' * 33}), 'iommu_group: expected up to 32'),
    (dict(numa_node=-1), 'numa_node'),
    (dict(numa_node=True), 'numa_node'),
    (dict(numa_node='0'), 'numa_node'),
    (dict(board=['x']), 'board: expected a mapping'),
    (dict(board={'x': b'bytes'}), 'board: not JSON'),
    (dict(vendor_board={'x': float('nan')}), 'vendor_board: not JSON'),
    (dict(vendor_board={'x': 'y' * 20000}), 'vendor_board: expected a mapping, at most'),
    (dict(vendor_board={'x': ['\ud800']}), 'vendor_board: not JSON'),
    (dict(vendor_board={'x': json.loads('[' * 31 + ']' * 31)}), 'expected at most 31 levels'),
    (dict(part={'name': None}), 'deployable name'),
    (dict(part={'name': 'x' * 129}), 'deployable name: expected up to 128'),
    (dict(part={'driver_name': None}), 'driver_name'),
    (dict(part={'resource_class': 'NPU'}), "resource class: 'NPU'"),
    (dict(part={'resource_class': 'CUSTOM_npu'}), 'resource class'),
    (dict(part={'resource_class': 'CUSTOM_' + 'A' * 249}), 'resource class|attribute rc'),
    (dict(part={'resource_class': 'CUSTOM_\n'}), 'attribute rc'),
    (dict(part={'resource_class': None}), 'attribute rc'),
    (dict(handle={'attach_type': None}), 'attach_type'),
    (dict(handle={'attach_type': 'x' * 17}), 'attach_type'),
    (dict(handle={'attach_info': None}), 'attach_info'),
    (dict(handle={'attach_info': {}}), 'attach_info'),
    (dict(handle={'attach_info': []}), 'attach_info'),
    (dict(handle={'attach_info': {'domain': '0000'}}), 'bus, device, function is missing'),
    (dict(handle={'attach_info': INFO | {'bus': 1}}), 'attach_info bus: expected a text'),
    (dict(handle={'attach_info': INFO | {'bus': '0xx1'}}), 'bus: .*not hexadecimal'),
    (dict(handle={'attach_info': INFO | {'bus': '0x'}}), 'bus: .*not hexadecimal'),
    (dict(handle={'attach_info': INFO | {'bus': ' 1'}}), 'bus: .*not hexadecimal'),
    (dict(handle={'attach_info': INFO | {'bus': '٣'}}), 'bus: .*not hexadecimal'),
    (dict(handle={'attach_info': INFO | {'bus': '100'}}), "bus: '100' is more than ff"),
    (dict(handle={'attach_info': INFO | {'device': '20'}}), "device: '20' is more than 1f"),
    (dict(handle={'attach_info': INFO | {'function': '8'}}), "function: '8' is more than 7"),
    (dict(handle={'attach_info': INFO | {'domain': '100000000'}}), 'domain: .*not hexadecimal'),
    (dict(handle={'attach_info': INFO | {1: 'x'}}), 'attach_info key'),
    (dict(numa_node=Trap()), 'trap'),
    (dict(handle={'attach_info': Trap()}), ''),
]


@pytest.mark.parametrize(('changes', 'reason'), UNSOUND)
def test_one_unsound_device_is_left_out(changes, reason):
    sound = [device(1), device(2)]
    good, [complaint] = contract.check([sound[0], device(**changes), sound[1]])
    assert good == sound
    assert complaint.startswith('device 1 left out: ')
    assert re.search(reason, complaint)


def test_a_deployable_without_a_resource_class():
    part = driver.Deployable(name='x', driver_name='test')
    _, [complaint] = contract.check([device(deployables=[part])])
    assert 'resource class: None' in complaint


@pytest.mark.parametrize('trait', ['CUSTOM_a', '910B', '', 'HW_NO_SUCH', 'CUSTOM_', None, 'X\x00'])
def test_a_bad_trait_goes_and_its_device_stays(trait):
    subject = device(part={'traits': ['CUSTOM_GOOD', 'CUSTOM_X']})
    subject.deployables[0].attributes[-1].value = trait
    good, [complaint] = contract.check([subject])
    assert good == [subject]
    assert subject.deployables[0].traits == ['CUSTOM_GOOD']
    assert subject.deployables[0].resource_class == 'CUSTOM_NPU'
    assert complaint == f'device 0 (0000:00:00.0): dropped {trait!r}, which is no trait'


@pytest.mark.parametrize(
    ('second', 'reason'),
    [
        (dict(number=1), "address '0000:01:00.0' is there twice"),
        (dict(number=2, part={'name': '0000:01:00.0'}), 'deployable name .* is there twice'),
        (dict(number=2, handle={'attach_info': INFO}), 'attach handle .* is there twice'),
    ],
)
def test_nothing_is_there_twice(second, reason):
    first, again = device(1), device(**second)
    good, [complaint] = contract.check([first, again])
    assert good == [first]
    assert re.search(reason, complaint)


#: Spellings of the function INFO.
SPELLINGS = [
    {'domain': '0'},
    {'domain': '00000000', 'bus': '1'},
    {'bus': '0x01', 'device': '0X0'},
    {'function': '00'},
    # Whatever is said beside: it is one function.
    {'note': 'another'},
]


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_a_function_has_one_spelling(spelling):
    """Two spellings of one function went to two tenants."""
    first, again = device(1), device(2, handle={'attach_info': INFO | spelling})
    for order in ([first, again], [again, first]):
        good, [complaint] = contract.check(order)
        assert good == order[:1]
        assert 'attach handle' in complaint and 'is there twice' in complaint
    info = again.deployables[0].attach_handles[0].attach_info
    assert {key: info[key] for key in INFO} == INFO


def test_upper_case_is_no_other_function():
    info = {'domain': '10000', 'bus': 'AF', 'device': '1F', 'function': '7'}
    subject = device(1, handle={'attach_info': info})
    assert contract.check([subject]) == ([subject], [])
    kept = subject.deployables[0].attach_handles[0].attach_info
    assert kept == {'domain': '10000', 'bus': 'af', 'device': '1f', 'function': '7'}


@pytest.mark.parametrize(
    ('address', 'kept'),
    [
        ('0:3B:0.0', '0000:3b:00.0'),
        ('00000000:3b:00.0', '0000:3b:00.0'),
        ('0x0000:0x3b:0x00.0x0', '0000:3b:00.0'),
        ('3b:00.0', '0000:3b:00.0'),
        ('10000:3b:1f.7', '10000:3b:1f.7'),
        # These are of no PCI function, and stay.
        ('0000:3b:20.0', '0000:3b:20.0'),
        ('0000:3b:00.8', '0000:3b:00.8'),
        ('USB-1:2.3:4', 'USB-1:2.3:4'),
        ('Board A', 'Board A'),
    ],
)
def test_an_address_has_one_spelling(address, kept):
    subject = device(1, address=address)
    contract.check([subject])
    assert subject.address == kept
    again = device(2, address=kept)
    good, [complaint] = contract.check([subject, again])
    assert good == [subject]
    assert f"address '{kept}' is there twice" in complaint


def test_an_attribute_is_there_once_in_a_deployable():
    """The database would refuse the whole host."""
    odd, good = device(1), device(2)
    attributes = odd.deployables[0].attributes
    attributes.append(type(attributes[0])(key='rc', value='FPGA'))
    left, [complaint] = contract.check([odd, good])
    assert left == [good]
    assert "attribute of 0000:01:00.0 'rc' is there twice" in complaint


def test_nothing_is_reported_by_two_drivers():
    seen = set()
    assert contract.check([device(1)], seen)[1] == []
    good, [complaint] = contract.check([device(1), device(2)], seen)
    assert [d.address for d in good] == ['0000:02:00.0']
    assert 'is there twice' in complaint


def test_a_device_that_is_left_out_takes_nothing():
    bad = device(1, model=None)
    assert [d.model for d in contract.check([bad, device(1)])[0]] == ['Ascend']
    late = device(1, handle={'attach_info': {}})
    assert [d.model for d in contract.check([late, device(1)])[0]] == ['Ascend']


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(
            ['type', 'vendor', 'model', 'address', 'numa_node', 'board', 'vendor_board']
        ),
        JUNK,
    )
)
@hypothesis.settings(deadline=None)
def test_nothing_raises(changes):
    subject = device(**changes)
    good, complaints = contract.check([subject])
    assert (good, complaints) == ([subject], []) or (good == [] and len(complaints) == 1)


class Changing(driver.Driver):
    name = 'changing'
    looks = 0

    def discover(self):
        self.looks += 1
        return [device(model=f'look {self.looks}')]


class Careless(driver.Driver):
    name = 'careless'

    def discover(self):
        return [device(), device()]


def test_authors_are_told(tmp_path):
    host = driver.Host('host', tmp_path)
    with pytest.raises(AssertionError, match='changing: two looks differ'):
        testing.discover(Changing, host)
    with pytest.raises(AssertionError, match='careless: device 1 left out: address'):
        testing.discover(Careless, host)


@pytest.mark.parametrize(
    ('given', 'kept'),
    [('0', None), ('N/A', None), ('Unknown', None), ('00000000', None), ('[N/A]', None),
     ('Default string', None), ('033EFS10N5000001', '033EFS10N5000001'), (None, None)],
)  # fmt: skip
def test_placeholders_of_serial_numbers(given, kept):
    [device], complaints = contract.check([card(serial=given)])
    assert (device.serial, complaints) == (kept, [])


@pytest.mark.parametrize(
    ('level', 'reason', 'kept', 'complaints'),
    [
        ('ok', None, ('ok', None), 0),
        ('ok', 'pcie_width', ('ok', None), 0),
        ('warning', 'pcie_width', ('warning', 'pcie_width'), 0),
        ('critical', None, ('critical', 'unspecified'), 0),
        ('unknown', None, ('unknown', None), 0),
        (None, None, ('unknown', None), 0),
        ('Critical', 'x', ('unknown', None), 1),
        (3, 'x', ('unknown', None), 1),
        (['critical'], 'x', ('unknown', None), 1),
        ('critical', 'x' * 65, ('critical', 'unspecified'), 1),
        ('warning', 'rm -rf\u202e', ('warning', 'unspecified'), 1),
        ('warning', {}, ('warning', 'unspecified'), 1),
    ],
)
def test_an_invalid_health_does_not_drop_the_card(level, reason, kept, complaints):
    [device], told = contract.check([card(health=level, health_reason=reason)])
    assert (device.health, device.health_reason) == kept
    assert len(told) == complaints


@pytest.mark.parametrize(
    ('told', 'kept'),
    [
        (None, None),
        ({}, None),
        ({'bridges': [], 'links': {}}, None),
        ({'links': {'0:C2:0.0': 4}}, {'links': {'0000:c2:00.0': 4}}),
        (
            {'bridges': ['0:40:1.0', '0000:41:00.0'], 'links': {}},
            {'bridges': ['0000:40:01.0', '0000:41:00.0']},
        ),
    ],
)
def test_a_topology_has_one_spelling(told, kept):
    subject = device(1, topology=told)
    assert contract.check([subject]) == ([subject], [])
    assert subject.topology == kept


@pytest.mark.parametrize(
    ('told', 'reason'),
    [
        (['x'], 'a mapping of bridges and links'),
        ({'links': {}, 'rings': {}}, 'a mapping of bridges and links'),
        ({'bridges': 'x'}, 'bridges: expected a list'),
        ({'bridges': ['0000:00:01.0'] * 17}, 'bridges: expected a list of up to 16'),
        ({'bridges': [7]}, 'address: expected a text'),
        ({'bridges': ['a\0b']}, 'address: expected up to 64 printable'),
        ({'links': ['x']}, 'links: expected a mapping'),
        ({'links': {f'{n}': 1 for n in range(65)}}, 'links: expected a mapping of up to 64'),
        ({'links': {7: 1}}, 'address: expected a text'),
        ({'links': {'x' * 65: 1}}, 'address: expected up to 64'),
        ({'links': {'0000:c2:00.0': 0}}, 'links: 0000:c2:00.0: expected a number from 1 to 64'),
        ({'links': {'0000:c2:00.0': 65}}, 'links: 0000:c2:00.0: expected a number'),
        ({'links': {'0000:c2:00.0': True}}, 'links: 0000:c2:00.0: expected a number'),
        ({'links': {'0000:c2:00.0': '1'}}, 'links: 0000:c2:00.0: expected a number'),
    ],
)
def test_an_invalid_topology_does_not_drop_the_card(told, reason):
    subject = device(1, topology=told)
    good, [complaint] = contract.check([subject])
    assert good == [subject]
    assert subject.topology is None
    assert complaint.startswith('device 0 (0000:01:00.0): topology: ')
    assert reason in complaint


@hypothesis.given(JUNK | st.fixed_dictionaries({}, optional={'bridges': JUNK, 'links': JUNK}))
@hypothesis.settings(deadline=None)
def test_any_topology_leaves_the_card(told):
    subject = device(1, topology=told)
    good, complaints = contract.check([subject])
    assert (good, len(complaints)) == (
        [subject],
        int(subject.topology is None and bool(complaints)),
    )


@pytest.mark.parametrize(
    ('told', 'kept'),
    [(None, True), (0, True), (100, True), (-1, False), (101, False), (0.0, False), (True, False),
     ('0', False)],
)  # fmt: skip
def test_an_invalid_utilization_does_not_drop_the_card(told, kept):
    subject = device(1, utilization=told)
    good, complaints = contract.check([subject])
    assert (good, subject.utilization) == ([subject], told if kept else None)
    assert [each.split('expected')[0] for each in complaints] == (
        [] if kept else ['device 0 (0000:01:00.0): utilization: ']
    )


@pytest.mark.parametrize(
    ('told', 'kept'),
    [
        (None, True),
        ({}, True),
        ({7: 0, contract.PID: contract.MEMORY}, True),
        ([(7, 1)], False),
        ({7: contract.MEMORY + 1}, False),
        ({7: -1}, False),
        ({7: 1.5}, False),
        ({7: None}, False),
        ({'7': 1}, False),
        ({0: 1}, False),
        ({pid: 1 for pid in range(1, contract.PROCESSES + 2)}, False),
    ],
    ids=lambda each: str(each)[:40],
)
def test_invalid_memory_does_not_drop_the_card(told, kept):
    subject = device(1, memory=told)
    good, complaints = contract.check([subject])
    assert (good, subject.memory) == ([subject], told if kept else None)
    assert [each.split('expected')[0] for each in complaints] == (
        [] if kept else ['device 0 (0000:01:00.0): memory: ']
    )


@pytest.mark.parametrize(
    ('told', 'kept'),
    [
        (None, True),
        (frozenset(), True),
        (frozenset({1, 1 << 22}), True),
        ([7], False),
        (7, False),
        (frozenset({0}), False),
        (frozenset({(1 << 22) + 1}), False),
        (frozenset({'7'}), False),
        (frozenset({True}), False),
        (frozenset(range(1, 1026)), False),
    ],
)
def test_invalid_processes_do_not_drop_the_card(told, kept):
    subject = device(1, processes=told)
    good, complaints = contract.check([subject])
    assert (good, subject.processes) == ([subject], told if kept else None)
    assert [each.split('expected')[0] for each in complaints] == (
        [] if kept else ['device 0 (0000:01:00.0): processes: ']
    )

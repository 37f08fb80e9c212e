# SPDX-License-Identifier: Apache-2.0
"""Every report is checked before it is stored."""

import copy
import logging

import pytest

from cyborg_lite import contract
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import reports
from tests.support import card

#: What is put into a report, and what the refusal says.
BAD = [
    ({'host': None}, 'host'),
    ({'host': ''}, 'host'),
    ({'host': '../x'}, 'host'),
    ({'host': 'a b'}, 'host'),
    ({'host': 'a\n'}, 'host'),
    ({'host': 'h' * 256}, 'host'),
    ({'host': ['host-1']}, 'host'),
    ({'boot_id': 'b' * 37}, 'boot_id'),
    ({'boot_id': 7}, 'boot_id'),
    ({'boot_id': 'a\x00'}, 'boot_id'),
    ({'digest': None}, 'digest'),
    ({'digest': 'd' * 65}, 'digest'),
    ({'machine': 'm' * 65}, 'machine'),
    ({'machine': {}}, 'machine'),
    ({'agent': 'a' * 37}, 'agent'),
    ({'sequence': -1}, 'sequence'),
    ({'sequence': 2**63}, 'sequence'),
    ({'sequence': '1'}, 'sequence'),
    ({'sequence': True}, 'sequence'),
    ({'sequence': 1.5}, 'sequence'),
    ({'leases': {'a': 1}}, 'leases'),
    ({'observes': 1}, 'observes'),
    ({'observes': None}, 'observes'),
    ({'looked_after': -1}, 'looked_after'),
    ({'looked_after': True}, 'looked_after'),
    ({'looked_after': 2**63}, 'looked_after'),
    ({'leases': [1]}, 'leases'),
    ({'leases': ['a' * 37]}, 'leases'),
    ({'leases': ['a'] * 65537}, 'leases'),
    ({'interval': 0}, 'interval'),
    ({'interval': -5}, 'interval'),
    ({'interval': '20'}, 'interval'),
    ({'interval': 2.5}, 'interval'),
    ({'idle_after': -1}, 'idle_after'),
    ({'idle_after': 2**31}, 'idle_after'),
    ({'idle_after': None}, 'idle_after'),
    ({'drivers': []}, 'drivers'),
    ({'drivers': {'fake': 'ok'}}, 'drivers'),
    ({'drivers': {'fake': {}}}, 'state'),
    ({'drivers': {'fake': {'state': ['ok']}}}, 'state'),
    ({'drivers': {'fake': {'state': 'fine'}}}, 'state'),
    ({'drivers': {'fake': {'state': 'ok', 'reason': 7}}}, 'reason'),
    ({'drivers': {'fake': {'state': 'ok', 'reason': 'x' * 5000}}}, 'reason'),
    ({'drivers': {str(n): {'state': 'ok'} for n in range(257)}}, 'drivers'),
    ({'drivers': {'': {'state': 'ok'}}}, 'drivers'),
    ({'drivers': {'a\n': {'state': 'ok'}}}, 'drivers'),
    ({'drivers': {'n' * 256: {'state': 'ok'}}}, 'drivers'),
    ({'drivers': {'fake': {'state': 'ok', 'devices': '1'}}}, 'devices'),
    ({'drivers': {'fake': {'state': 'ok', 'devices': -1}}}, 'devices'),
    ({'drivers': {'fake': {'state': 'ok', 'devices': True}}}, 'devices'),
    ({'drivers': {'fake': {'state': 'degraded', 'complete': 'yes'}}}, 'complete'),
    ({'drivers': {'fake': {'state': 'degraded', 'waited': -1}}}, 'waited'),
    ({'devices': {}}, 'devices'),
    ({'devices': None}, 'devices'),
    ({'devices': [{}] * 4097}, 'devices'),
    ({'devices': ['x' * (8 << 20)]}, 'bytes'),
    ({'devices': [float('nan')]}, 'JSON'),
]


@pytest.fixture
def known(conductor):
    """A conductor that knows a host with one device."""
    conductor.report(card())
    return conductor


@pytest.mark.parametrize(
    ('change', 'said'),
    BAD,
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_bad_report_is_refused_and_changes_nothing(known, change, said, caplog):
    before = known.dump()
    with pytest.raises(exception.Invalid, match=said):
        known.report(card(), card('5e'), **change)
    assert known.dump() == before
    [record] = [r for r in caplog.records if 'is refused' in r.message]
    assert record.levelno == logging.WARNING
    assert len(record.message) < 1000


@pytest.mark.parametrize('name', sorted(reports.REQUIRED))
def test_nothing_may_be_missing(known, name):
    told = known.told(card())
    del told[name]
    with pytest.raises(exception.Invalid, match=f'{name} is missing'):
        known._call('report', **told)


def test_no_interval_locks_a_host_out(conductor):
    """A host counts as up for two and a half intervals, also if an agent sets the interval."""
    conductor.report(card(), interval=2**31 - 1)
    assert conductor.rows(model.Host)[0].interval == reports.INTERVAL


#: What is done to the facts of a device.
SPOILT = {
    'no mapping': lambda facts: 'x',
    'null': lambda facts: None,
    'nothing': lambda facts: {},
    'no address': lambda facts: facts.pop('address'),
    'address is a number': lambda facts: facts.update(address=7),
    'address too long': lambda facts: facts.update(address='a' * 256),
    'type too long': lambda facts: facts.update(type='t' * 33),
    'control characters': lambda facts: facts.update(model='a\x00b'),
    'numa_node too large': lambda facts: facts.update(numa_node=2**40),
    'a board that is large': lambda facts: facts.update(board={'x': 'y' * 20000}),
    'parts are no list': lambda facts: facts.update(deployables=7),
    'parts are texts': lambda facts: facts.update(deployables='abc'),
    'handles are no list': lambda facts: facts['deployables'][0].update(attach_handles=7),
    'no resource class': lambda facts: facts['deployables'][0].update(attributes=[]),
    'a class that is none': lambda facts: facts['deployables'][0]['attributes'][0].update(
        value='x/../y'
    ),
    'handle twice': lambda facts: facts['deployables'][0]['attach_handles'].append(
        copy.deepcopy(facts['deployables'][0]['attach_handles'][0])
    ),
    'handle without a function': lambda facts: facts['deployables'][0]['attach_handles'][0][
        'attach_info'
    ].pop('function'),
}


@pytest.mark.parametrize('spoil', SPOILT)
def test_a_bad_device_is_dropped_alone(conductor, spoil, caplog):
    good, bad = card('3b').facts(), card('5e').facts()
    spoilt = SPOILT[spoil](bad)
    bad = spoilt if spoil in ('no mapping', 'null', 'nothing') else bad
    conductor.report(devices=[bad, good])
    assert [device.address for device in conductor.rows(model.Device)] == [good['address']]
    assert 'reports a bad device: device 0 left out' in caplog.text
    [host] = conductor.rows(model.Host)
    assert host.drivers['fake']['state'] == 'degraded'
    assert host.drivers['fake']['reason'].startswith('device 0 left out')


def test_a_bad_device_degrades_no_other_driver(conductor):
    """What another driver does not report any more is gone all the same."""
    other = card('5e').facts()
    other['deployables'][0]['driver_name'] = 'pci'
    drivers = {name: {'state': 'ok', 'reason': '', 'devices': 1} for name in ('fake', 'pci')}
    conductor.report(devices=[card('3b').facts(), other], drivers=drivers)
    bad = card('3b').facts() | {'model': ''}
    conductor.report(devices=[bad], drivers=drivers, digest='another')
    [host] = conductor.rows(model.Host)
    states = {name: driver['state'] for name, driver in host.drivers.items()}
    assert states == {'fake': 'degraded', 'pci': 'ok'}
    absences = {device.address: device.absences for device in conductor.rows(model.Device)}
    assert absences == {card('3b').address: 0, other['address']: 1}


def test_a_device_that_is_bad_for_now_does_not_count_as_gone(known):
    bad = card().facts() | {'model': ''}
    for number in range(5):
        known.report(devices=[bad], digest=str(number))
    [device] = known.rows(model.Device)
    assert device.absences == 0


def test_two_devices_that_have_one_handle(conductor):
    """The second would be given out as well."""
    twin = card('5e')
    twin.deployables[0].attach_handles = card('3b').deployables[0].attach_handles
    conductor.report(card('3b'), twin)
    assert len(conductor.rows(model.AttachHandle)) == 1


def test_an_invalid_trait_is_dropped_alone(conductor):
    conductor.report(card(traits=['CUSTOM_GOOD', 'bad/../trait']))
    values = {attribute.value for attribute in conductor.rows(model.Attribute)}
    assert values == {'FPGA', 'CUSTOM_GOOD'}


def test_unknown_facts_of_a_later_release_are_ignored(conductor):
    conductor.report(devices=[card().facts() | {'later': 1}], later={'a': 'b'})
    assert len(conductor.rows(model.Device)) == 1


def test_a_bad_device_is_not_gone_though_its_driver_has_looked_at_all(conductor):
    conductor.report(card('3b'), card('5e'))
    bad = card('5e').facts()
    bad['deployables'][0]['name'] = '\x07bad'
    looked = {'state': 'degraded', 'reason': 'x', 'devices': 2, 'complete': True}
    for number in range(4):
        conductor.report(
            devices=[card('3b').facts(), bad], drivers={'fake': looked}, digest=str(number)
        )
    assert [device.absences for device in conductor.rows(model.Device)] == [0, 0]


def test_only_fields_known_of_a_driver_are_kept(conductor):
    state = {'state': 'degraded', 'reason': 'a\nb\x00', 'devices': 1, 'complete': True}
    state['waited'] = 20
    conductor.report(card(), drivers={'fake': state | {'more': 'x' * 1_000_000}})
    [host] = conductor.rows(model.Host)
    assert host.drivers == {'fake': state | {'reason': 'a?b?'}}


def many(count, bus='3b'):
    """The facts of a device that gives out so many accelerators."""
    facts = card(bus).facts()
    [handle] = facts['deployables'][0]['attach_handles']
    facts['deployables'][0]['attach_handles'] = [
        handle | {'attach_type': 'X', 'attach_info': {bus: str(number)}} for number in range(count)
    ]
    return facts


def test_a_device_of_too_many_accelerators_costs_itself(conductor):
    conductor.report(devices=[many(contract.HANDLES + 1), card('5e').facts()])
    assert [device.address for device in conductor.rows(model.Device)] == [card('5e').address]
    [host] = conductor.rows(model.Host)
    assert f'expected up to {contract.HANDLES} attach handles' in host.drivers['fake']['reason']


@pytest.mark.parametrize('parts', reports.PARTS)
def test_a_report_of_too_many_parts_is_refused(known, parts, monkeypatch):
    monkeypatch.setitem(reports.PARTS, parts, 2)
    before = known.dump()
    facts = [card(bus).facts() for bus in ('01', '02', '03')]
    with pytest.raises(exception.Invalid, match=f'expected up to 2 {parts}, not [36]'):
        known.report(devices=facts)
    assert known.dump() == before

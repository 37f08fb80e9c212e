# SPDX-License-Identifier: Apache-2.0
import threading
import types

import pytest

from cyborg_lite.agent import drivers
from cyborg_lite.driver import sysfs
from tests import support
from tests.unit.agent import cards
from tests.unit.agent.conftest import conf

CARDS = 'tests.unit.agent.cards'


def buses(findings):
    return [device.address[5:7] for device in findings.devices]


def states(findings):
    return {name: state.state for name, state in findings.drivers.items()}


def hung():
    return [thread for thread in threading.enumerate() if thread.name == 'discover-hanging']


@pytest.fixture
def let_go():
    """Wait until no hung driver is left."""

    def wait():
        cards.RELEASED.set()
        for thread in hung():
            thread.join()

    yield wait
    wait()
    cards.RELEASED.clear()


def test_driver_is_loaded_by_its_entry_point(load):
    findings = load(cards.Good).discover()
    assert findings.drivers == {'good': drivers.State('ok', '', 1)}
    [device] = findings.devices
    assert device.deployables[0].driver_name == 'good'


def test_only_enabled_drivers_are_loaded(entry_points, host):
    entry_points({'good': f'{CARDS}:Good', 'raising': f'{CARDS}:Raising'})
    assert states(drivers.Drivers(conf('good'), host).discover()) == {'good': 'ok'}


def test_driver_of_upstreams_group_that_meets_the_contract(entry_points, host):
    entry_points({}, {'good': f'{CARDS}:Good'})
    assert buses(drivers.Drivers(conf('good'), host).discover()) == ['3b']


def test_ours_goes_before_upstreams_of_the_same_name(entry_points, host):
    entry_points({'good': f'{CARDS}:Good'}, {'good': f'{CARDS}:Upstream'})
    assert states(drivers.Drivers(conf('good'), host).discover()) == {'good': 'ok'}


@pytest.mark.parametrize(
    ('target', 'reason'),
    [
        (None, 'no entry point of that name in the group cyborg_lite.drivers: '),
        (f'{CARDS}:Nothing', 'it does not load: '),
        ('no.such.module:Driver', "it does not load: ModuleNotFoundError: No module named 'no'"),
        (f'{CARDS}:Upstream', f'{CARDS} does not derive from cyborg_lite.driver.Driver'),
        (f'{CARDS}:function', f'{CARDS} does not derive from cyborg_lite.driver.Driver'),
        (f'{CARDS}:RELEASED', 'does not derive from cyborg_lite.driver.Driver'),
        (f'{CARDS}:Stillborn', 'it does not start: RuntimeError: no library'),
        (f'{CARDS}:Abstract', "it does not start: TypeError: Can't instantiate abstract class"),
    ],
)
@pytest.mark.parametrize('group', ['ours', 'theirs'])
def test_a_driver_that_does_not_load_has_a_reason(entry_points, host, target, reason, group):
    points = {'bad': target} if target else {}
    good = {'good': f'{CARDS}:Good'}
    entry_points(*((good | points, {}) if group == 'ours' else (good, points)))
    findings = drivers.Drivers(conf('bad', 'good'), host).discover()
    assert states(findings) == {'bad': 'degraded', 'good': 'ok'}
    assert reason in findings.drivers['bad'].reason
    assert buses(findings) == ['3b']


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('huawei_ascnd', 'did you mean huawei_ascend?'),
        ('acme', 'there are amd_gpu, fake, huawei_ascend, '),
    ],
)
def test_a_driver_that_is_misspelt_has_a_hint(host, name, hint):
    findings = drivers.Drivers(conf(name), host).discover()
    assert hint in findings.drivers[name].reason


@pytest.mark.parametrize(
    ('kind', 'reason'),
    [
        (cards.Raising, 'discover() failed: OSError: no such card'),
        (cards.Exiting, 'discover() failed: SystemExit: out of here'),
    ],
)
def test_driver_that_fails_harms_no_other(load, kind, reason):
    """P9: upstream's agent reports nothing at all."""
    findings = load(kind, cards.Good).discover()
    assert findings.drivers[kind.name] == drivers.State('degraded', reason, 0)
    assert findings.drivers['good'] == drivers.State('ok', '', 1)
    assert buses(findings) == ['3b']


def test_driver_that_hangs_harms_no_other(load, let_go):
    loaded = load(cards.Hanging, cards.Good, timeout=0.05)
    for _ in range(4):
        findings = loaded.discover()
        assert states(findings) == {'hanging': 'degraded', 'good': 'ok'}
        assert findings.drivers['hanging'].reason == 'no answer within 0.05 s'
        assert buses(findings) == ['3b']
    # Repeated scans start no further thread.
    assert len(hung()) == 1
    let_go()
    # Its late answer is used, and it is scanned again.
    findings = loaded.discover()
    assert states(findings) == {'hanging': 'ok', 'good': 'ok'}
    assert buses(findings) == ['7a', '3b']


def test_hung_driver_does_not_keep_the_process(load, let_go):
    load(cards.Hanging, timeout=0.01).discover()
    [thread] = hung()
    assert thread.daemon


def test_drivers_are_asked_at_the_same_time(load):
    """Each driver waits for the other: sequential scans would never end."""
    barrier = threading.Barrier(2)

    def kind(name):
        def discover(self):
            barrier.wait(timeout=20)
            return []

        made = type(name, (cards.Good,), {'name': name, 'discover': discover})
        setattr(cards, name, made)
        made.__module__, made.__qualname__ = cards.__name__, name
        return made

    try:
        assert states(load(kind('first'), kind('second')).discover()) == {
            'first': 'ok',
            'second': 'ok',
        }
    finally:
        del cards.first, cards.second


def test_driver_recovers(load, monkeypatch):
    loaded = load(cards.Moody)
    for mood, state, found in ((None, 'ok', 1), (OSError('busy'), 'degraded', 0), (None, 'ok', 1)):
        monkeypatch.setattr(cards.Moody, 'mood', mood)
        findings = loaded.discover()
        assert (findings.drivers['moody'].state, len(findings.devices)) == (state, found)
    assert findings.drivers['moody'].reason == ''


def test_rubbish_among_devices_harms_only_itself(load):
    findings = load(cards.Rubbish).discover()
    assert buses(findings) == ['7a', '7b']
    state = findings.drivers['rubbish']
    assert (state.state, state.devices) == ('degraded', 2)
    assert 'device 1 left out: expected a Device, not str' in state.reason
    assert "'no trait'" in state.reason


@pytest.mark.parametrize(
    ('kinds', 'owner'), [((cards.Good, cards.Other), 'good'), ((cards.Other, cards.Good), 'other')]
)
def test_first_enabled_driver_has_a_device_that_two_find(load, kinds, owner):
    findings = load(*kinds).discover()
    owners = {device.address[5:7]: device.deployables[0].driver_name for device in findings.devices}
    assert owners == {'3b': owner, '5e': 'other'}
    [loser] = {'good', 'other'} - {owner}
    # Neither driver is degraded.
    left_out = f'device 0000:3b:00.0 is left out: driver {owner} has it'
    assert findings.drivers == {
        owner: drivers.State('ok', '', len(kinds[0].buses)),
        loser: drivers.State('ok', left_out, len(kinds[1].buses) - 1),
    }


@pytest.mark.parametrize('mood', [OSError('busy'), ['no device'], 'no list'])
def test_device_of_a_driver_that_fails_is_no_other_drivers(load, monkeypatch, mood):
    """Otherwise an NPU would be a plain PCI function for one scan."""
    loaded = load(cards.Moody, cards.Other)
    assert buses(loaded.discover()) == ['3b', '5e']
    if isinstance(mood, Exception):
        monkeypatch.setattr(cards.Moody, 'mood', mood)
    else:
        monkeypatch.setattr(cards.Moody, 'discover', lambda _: mood)
    for _ in range(3):
        findings = loaded.discover()
        assert states(findings) == {'moody': 'degraded', 'other': 'ok'}
        assert buses(findings) == ['5e']
        assert findings.drivers['other'].reason.endswith('driver moody has it')
    monkeypatch.undo()
    monkeypatch.setattr(cards.Moody, 'buses', ())
    # It is ok, and does not own the card any more.
    assert owners(loaded.discover()) == {'3b': 'other', '5e': 'other'}


def owners(findings):
    return {device.address[5:7]: device.deployables[0].driver_name for device in findings.devices}


def test_device_of_a_driver_that_hangs_is_no_other_drivers(load, let_go, monkeypatch):
    monkeypatch.setattr(cards.Hanging, 'discover', lambda _: [support.card('3b')])
    loaded = load(cards.Hanging, cards.Other, timeout=0.05)
    assert owners(loaded.discover()) == {'3b': 'hanging', '5e': 'other'}
    monkeypatch.undo()
    for _ in range(3):
        findings = loaded.discover()
        assert states(findings) == {'hanging': 'degraded', 'other': 'ok'}
        assert owners(findings) == {'5e': 'other'}


def test_driver_that_could_not_learn_all_keeps_its_devices(load, monkeypatch):
    loaded = load(cards.Noting)
    findings = loaded.discover()
    reason = 'the tool is slow; no board id'
    assert findings.drivers == {'noting': drivers.State('degraded', reason, 1, complete=True)}
    assert buses(findings) == ['3b']
    monkeypatch.setattr(cards.Noting, 'notes', ())
    assert loaded.discover().drivers == {'noting': drivers.State('ok', '', 1)}


def test_driver_that_could_not_look_for_all_cards(load, monkeypatch):
    monkeypatch.setattr(cards.Noting, 'all', False)
    loaded = load(cards.Noting)
    reason = 'the tool is slow; no board id'
    assert loaded.discover().drivers == {'noting': drivers.State('degraded', reason, 1)}
    monkeypatch.setattr(cards.Noting, 'notes', ())
    assert loaded.discover().drivers == {'noting': drivers.State('ok', '', 1)}


def test_device_that_a_noting_driver_lacks_may_be_another_drivers(load, monkeypatch):
    loaded = load(cards.Noting, cards.Other)
    assert owners(loaded.discover()) == {'3b': 'noting', '5e': 'other'}
    monkeypatch.setattr(cards.Noting, 'buses', ())
    assert owners(loaded.discover()) == {'3b': 'other', '5e': 'other'}


def test_notes_are_bounded(load, monkeypatch):
    monkeypatch.setattr(cards.Noting, 'notes', [f'{n} ' + 'x' * 10_000 for n in range(1000)])
    assert len(load(cards.Noting).discover().drivers['noting'].reason) <= 1000


def test_report_says_whether_a_degraded_driver_has_looked_at_all_cards():
    """Only then is an unreported card missing."""
    usual = {'state': 'ok', 'reason': '', 'devices': 1}
    assert drivers.State('ok', '', 1).facts() == usual
    degraded = usual | {'state': 'degraded'}
    assert drivers.State('degraded', '', 1).facts() == degraded
    assert drivers.State('degraded', '', 1, complete=True).facts() == degraded | {'complete': True}


def test_slow_driver_is_well_until_its_time_is_over(load, let_go, monkeypatch):
    """Its last answer is used; the next report does not wait for it again."""
    monkeypatch.setattr(cards.Hanging, 'discover', lambda _: [support.card('7a')])
    loaded = load(cards.Hanging, cards.Good, timeout=30, interval=0.4)
    before = loaded.discover()
    assert states(before) == {'hanging': 'ok', 'good': 'ok'}
    monkeypatch.undo()
    clock = Clock(monkeypatch)
    # The wait is half an interval of a real clock.
    findings = loaded.discover()
    assert (buses(findings), findings.drivers) == (buses(before), before.drivers)
    clock.now += 0.3
    assert loaded.discover().drivers == before.drivers
    assert loaded.deadline == pytest.approx(clock.begun + 0.4)
    clock.now += 0.2
    late = loaded.discover()
    said = 'no answer within 0.4 s'
    assert late.drivers['hanging'] == drivers.State('degraded', said, waited=1)
    assert buses(late) == ['3b']
    assert loaded.deadline == pytest.approx(clock.begun + 30)


class Clock:
    """A clock that a test advances."""

    def __init__(self, monkeypatch):
        self.begun = self.now = 1000.0
        monkeypatch.setattr(drivers, 'time', types.SimpleNamespace(monotonic=lambda: self.now))


def test_driver_that_was_late_rests_for_an_interval(load, monkeypatch):
    """Otherwise a driver slower than the interval would be scanned all the time."""
    asked, go_on = [], threading.Event()
    monkeypatch.setattr(cards.Good, 'discover', lambda _: asked.append(1) or go_on.wait(20) and [])
    woken = threading.Event()
    loaded = load(cards.Good, timeout=0.01, woken=woken.set)
    clock = Clock(monkeypatch)
    assert states(loaded.discover()) == {'good': 'degraded'}
    assert not woken.is_set()
    go_on.set()
    assert woken.wait(20)
    assert states(loaded.discover(anew=False)) == {'good': 'ok'}
    clock.now += 3599
    assert states(loaded.discover()) == {'good': 'ok'}
    assert len(asked) == 1
    clock.now += 1
    loaded.discover()
    assert len(asked) == 2


def test_looks_are_counted_and_reports_are_not(load):
    """A repeated health is one sample."""
    loaded = load(cards.Good)
    looks = [loaded.discover(anew).looks for anew in (True, False, False, True)]
    assert looks == [{'good': 1}, {'good': 1}, {'good': 1}, {'good': 2}]


def test_a_scan_soon_after_another_is_no_sample_of_health(load, monkeypatch):
    """Three allocations that end in a second do not make a fault of one bad scan."""
    loaded, clock = load(cards.Good), Clock(monkeypatch)
    found = []
    for later in (0, 1, 1, 1797, 1, 3600):
        clock.now += later
        findings = loaded.discover()
        found.append((findings.looks['good'], findings.samples['good']))
    assert found == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 3)]


def test_an_answer_is_of_the_moment_at_which_its_scan_began(load, let_go):
    """What a late driver has seen may be long ago."""
    loaded = load(cards.Hanging, cards.Good)
    found = [loaded.discover(patience=0.1, moment=moment).after for moment in (3, 5)]
    let_go()
    found.append(loaded.discover(anew=False, moment=7).after)
    found.append(loaded.discover(moment=9).after)
    assert [each['hanging'] for each in found[:3]] == [0, 0, 3]
    assert [each['good'] for each in found] == [3, 5, 5, 9]


def test_findings_of_a_driver_are_logged_when_they_change(load, monkeypatch, caplog):
    caplog.set_level('INFO', 'cyborg_lite.agent.drivers')
    loaded = load(cards.Moody, cards.Raising)
    for _ in range(3):
        loaded.discover()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ('INFO', 'Host host-1: driver moody is ok, 1 device'),
        (
            'WARNING',
            'Host host-1: driver raising is degraded: discover() failed: OSError: no such card',
        ),
    ]
    caplog.clear()
    monkeypatch.setattr(cards.Moody, 'buses', ('3b', '5e'))
    loaded.discover()
    assert caplog.messages == ['Host host-1: driver moody is ok, 2 devices']


@pytest.mark.parametrize(('expected', 'state'), [(1, 'ok'), (2, 'degraded')])
def test_a_driver_that_lacks_expected_devices_is_degraded(load, caplog, expected, state):
    findings = load(cards.Good, expected={'good': expected}).discover()
    assert buses(findings) == ['3b']
    found = findings.drivers['good']
    assert (found.state, found.devices) == (state, 1)
    if state == 'degraded':
        assert found.reason == 'it finds 1 of the 2 expected devices'
        # It looked at all cards: absent ones are missing, not unknown.
        assert found.complete
        assert 'driver good is degraded, 1 device: it finds 1 of the 2' in caplog.text


def test_a_failed_driver_also_lacks_expected_devices(load):
    found = load(cards.Raising, expected={'raising': 2}).discover().drivers['raising']
    assert found.reason.startswith('it finds 0 of the 2 expected devices; discover() failed')
    assert not found.complete


def test_expected_devices_of_a_driver_that_is_not_enabled_are_logged(load, caplog):
    load(cards.Good, expected={'god': 1})
    assert 'expected_devices names god, which [agent] enabled_drivers lacks' in caplog.text


def test_states_are_in_the_order_of_the_option(load):
    findings = load(cards.Raising, cards.Good, cards.Exiting).discover()
    assert list(findings.drivers) == ['raising', 'good', 'exiting']


def test_each_scan_reads_the_functions_of_its_host_anew(load, host):
    scanned = load(cards.Counting)
    for number in range(1, 4):
        function = host.root / sysfs.DEVICES / f'0000:0{number}:00.0'
        function.mkdir(parents=True)
        (function / 'vendor').write_text('0x19e5')
        scanned.discover()
        assert cards.Counting.count == number
        # No scan: late answers are collected.
        scanned.discover(anew=False)

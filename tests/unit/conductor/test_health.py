# SPDX-License-Identifier: Apache-2.0
"""Sequences of health samples, and their effects."""

import logging

import hypothesis
from hypothesis import strategies
import pytest

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.conductor import health
from cyborg_lite.conductor import notices
from cyborg_lite.conductor import outbox
from tests.support import card
from tests.unit.conductor import direct

#: The health of each letter in a sequence of samples.
SAMPLES = {
    'g': {'health': 'ok'},
    'w': {'health': 'warning', 'health_reason': 'pcie_width'},
    'b': {'health': 'critical', 'health_reason': 'xid_79'},
    '?': {'health': 'unknown'},
}


def sample(conductor, letter, **more):
    conductor.report(card(**SAMPLES[letter]), **more)


@pytest.mark.parametrize(
    ('samples', 'withheld'),
    [
        # The first sample of a device decides; later ones must come three in a row.
        ('g', '.'),
        ('b', 'x'),
        ('?', '.'),
        ('gbbb', '...x'),
        ('gbbgbb', '......'),
        ('gbb?b', '....x'),
        ('g???', '....'),
        ('bggg', 'xxx.'),
        ('bggbgg', 'xxxxxx'),
        ('bgg?g', 'xxxx.'),
        ('b????', 'xxxxx'),
        ('?bbb', '...x'),
        # By default a warning withdraws nothing.
        ('gwww', '....'),
        ('bwww', 'xxx.'),
        ('gbbwbb', '......'),
        ('gbbwbbb', '......x'),
        # The last of three is not three.
        ('gwwb', '....'),
        ('gwwbbb', '.....x'),
        ('bwwg', 'xxx.'),
        # What all of three show is applied; unknown ones are not among them.
        ('gww?b', '.....'),
        ('gww?bbb', '......x'),
        ('gwbb', '....'),
        ('gwbbb', '....x'),
        ('gbwb', '....'),
        ('gbwbbb', '.....x'),
        ('gbb?w', '.....'),
        ('bgww', 'xxx.'),
    ],
)
def test_so_many_samples_in_a_row_count(conductor, samples, withheld):
    for letter, out in zip(samples, withheld, strict=True):
        sample(conductor, letter)
        assert conductor.device().withheld == (out == 'x'), samples


@pytest.mark.parametrize(
    ('samples', 'alerted'),
    [
        ('gww', '...'),
        ('gwww', '...x'),
        ('gwbb', '...x'),
        ('bggg', 'xxx.'),
        # An alert ends after three good samples, whatever came before them.
        ('bwwg', 'xxxx'),
        ('bww?g', 'xxxxx'),
        ('bww?ggg', 'xxxxxx.'),
        ('bwgg', 'xxxx'),
        ('bwggg', 'xxxx.'),
    ],
)
def test_so_many_samples_in_a_row_begin_and_end_an_alert(conductor, samples, alerted):
    for letter, told in zip(samples, alerted, strict=True):
        sample(conductor, letter)
        assert conductor.device().alerted == (told == 'x'), samples


#: The effects of the letters by the policy that is built in: no, an alert, and withheld too.
RANKS = {'g': 0, 'w': 1, 'b': 2}


@hypothesis.given(
    strategies.lists(
        strategies.sampled_from(['g', 'w', 'b', '?', 'gg', 'ww', 'bb', 'bbb']), min_size=1
    ).map(''.join),
    strategies.integers(1, 4),
    strategies.integers(1, 4),
)
def test_the_count_is_that_of_the_last_samples(samples, bad, good):
    """The effects change as far as all of the last samples go, if one keeps all of them."""
    policy = health.Policy(bad=bad, good=good)
    row = card(**SAMPLES[samples[0]])
    row.streak, row.further, row.host = 0, 0, model.Host(name='host-1')
    health.begin(row, policy)
    ranks = [RANKS[each] for each in samples[:1] if each != '?']
    force = sum(ranks)
    for letter in samples[1:]:
        health.weigh(row, card(**SAMPLES[letter]), policy, fresh=True)
        if letter != '?':
            ranks.append(RANKS[letter])
            if len(ranks) >= bad:
                force = max(force, min(ranks[-bad:]))
            if len(ranks) >= good:
                force = min(force, max(ranks[-good:]))
        assert len(row.effects) == force, (samples, letter)


def test_many_devices_that_change_cost_no_statement_each(conductor):
    def report(number, letter):
        buses = [f'{bus:02x}' for bus in range(number)]
        with conductor.statements() as statements:
            conductor.report(*(card(bus, **SAMPLES[letter]) for bus in buses))
        return [each for each in statements if each.startswith('SELECT')]

    report(20, 'g')
    many = len(report(20, 'b'))
    assert many <= len(report(2, 'w')) + 2


def test_a_stable_health_costs_one_statement(conductor):
    """A report is processed in full only while samples are being counted."""
    for settled in ('g', 'gbbb', 'bggg', 'gb?', 'gw', 'gwww'):
        for letter in settled:
            sample(conductor, letter)
        if settled == 'gw':
            continue
        sample(conductor, settled[-1])
        with conductor.statements() as statements:
            sample(conductor, settled[-1])
        assert len(statements) <= 2, (settled, statements)
        assert [each for each in statements if 'devices' in each] == []


def test_a_report_that_comes_late_or_twice_counts_once(conductor):
    sample(conductor, 'g')
    bad = conductor.told(card(**SAMPLES['b']))
    for _ in range(5):
        conductor.report(card(), **bad)
    assert (conductor.device().streak, conductor.device().withheld) == (1, False)


def test_a_look_that_is_reported_again_counts_once(conductor):
    """An agent repeats a report without an answer, and reports early for a late driver."""
    sample(conductor, 'g', looks={'fake': 1}, agent='a')
    for look in (2, 2, 2, 3, 3):
        sample(conductor, 'b', looks={'fake': look}, agent='a')
        assert conductor.device().streak == look - 1
    # Another agent restarts the count.
    sample(conductor, 'b', looks={'fake': 3}, agent='b')
    assert conductor.device().withheld


def test_a_look_that_is_no_sample_is_shown_and_does_not_count(conductor):
    """An agent looks early when an allocation ends: what it sees has to last."""
    sample(conductor, 'g', looks={'fake': 1}, samples={'fake': 1}, agent='a')
    for look in (2, 3, 4, 5):
        sample(conductor, 'b', looks={'fake': look}, samples={'fake': 1}, agent='a')
        assert (conductor.device().health, conductor.device().streak) == ('critical', 0)
    # The next ones count although they say the same.
    for count in (2, 3, 4):
        sample(conductor, 'b', looks={'fake': count + 4}, samples={'fake': count}, agent='a')
    assert conductor.device().withheld
    for look in (9, 10, 11):
        sample(conductor, 'g', looks={'fake': look}, samples={'fake': 4}, agent='a')
    assert conductor.device().withheld
    for count in (5, 6, 7):
        sample(conductor, 'g', looks={'fake': count + 7}, samples={'fake': count}, agent='a')
    assert not conductor.device().withheld


def test_a_good_look_that_is_no_sample_does_not_end_a_row_of_bad_ones(conductor):
    sample(conductor, 'g', looks={'fake': 1}, samples={'fake': 1}, agent='a')
    for look, (letter, count) in enumerate([('b', 2), ('b', 3), ('g', 3), ('b', 4)], 2):
        sample(conductor, letter, looks={'fake': look}, samples={'fake': count}, agent='a')
    assert conductor.device().withheld


@pytest.mark.parametrize('field', ['looks', 'samples'])
@pytest.mark.parametrize(
    'looks', [3, ['fake'], {'fake': -1}, {'fake': '1'}, {'fake': True}, {'': 1}, {'x' * 256: 1}]
)
def test_invalid_looks_are_refused(conductor, field, looks):
    with pytest.raises(Exception, match=f'{field}|expected a whole number'):
        sample(conductor, 'g', **{field: looks})


def test_a_card_that_goes_missing_while_it_is_faulty_is_so_when_it_comes_back(conductor):
    sample(conductor, 'b')
    for _ in range(4):
        conductor.report()
    before = conductor.device()
    assert (before.absences, before.withheld) == (3, True)
    sample(conductor, 'g')
    after = conductor.device()
    assert (after.uuid, after.absences, after.withheld) == (before.uuid, 0, True)
    sample(conductor, 'g')
    sample(conductor, 'g')
    assert not conductor.device().withheld


def test_another_card_is_not_faulty_for_the_one_before(conductor):
    conductor.report(card(**SAMPLES['b'], serial='A1234'))
    conductor.report(card(**SAMPLES['g'], serial='B1234'))
    rows = {row.serial: (row.withheld, row.absences) for row in conductor.rows(model.Device)}
    assert rows == {'A1234': (True, 1), 'B1234': (False, 0)}


def test_disable_and_fault_are_independent(conductor):
    sample(conductor, 'b')
    uuid = conductor.device().uuid
    conductor.set_device_status(uuid=uuid, status='maintaining')
    conductor.set_device_status(uuid=uuid, status='enabled')
    assert conductor.device().withheld
    conductor.set_device_status(uuid=uuid, status='maintaining')
    for _ in range(3):
        sample(conductor, 'g')
    device = conductor.device()
    assert (device.status, device.withheld) == ('maintaining', False)


def test_a_host_that_is_renamed_takes_the_fault_along(conductor):
    old = {'machine': 'm' * 32, 'agent': 'a', 'host': 'old'}
    sample(conductor, 'b', **old)
    sample(conductor, '?', **(old | {'agent': 'b', 'host': 'new'}))
    assert conductor.device(host='new').withheld


def test_a_change_is_remembered_with_its_time_and_their_number_is_bounded(conductor):
    for letter in 'gbbbb??ggg':
        sample(conductor, letter)
    changes = remembered(conductor)
    assert [(c['health'], c['reason'], c['effects']) for c in changes] == [
        ('ok', None, []),
        ('critical', 'xid_79', []),
        ('critical', 'xid_79', ['no_new', 'tell']),
        ('unknown', None, ['no_new', 'tell']),
        ('ok', None, ['no_new', 'tell']),
        ('ok', None, []),
    ]
    for _ in range(20):
        sample(conductor, 'b')
        sample(conductor, 'g')
    assert len(remembered(conductor)) == model.Device.REMEMBERED


def remembered(conductor):
    with conductor.database.reader() as session:
        [device] = session.query(model.Device).all()
        return device.changes


def test_a_card_that_is_taken_out_and_comes_back_is_logged_once(conductor, caplog):
    caplog.set_level(logging.INFO)
    for letter in 'gbbbbbgggg':
        sample(conductor, letter)
    said = [r.getMessage() for r in caplog.records if 'its health is' in r.getMessage()]
    assert said == [
        'Device 0000:3b:00.0 (miss model info) of host host-1 is given out no more: its health is '
        'critical: xid_79',
        'Device 0000:3b:00.0 (miss model info) of host host-1 is given out again: its health is ok',
    ]


def test_placement_is_told_of_a_faulty_device(conductor):
    sample(conductor, 'g')
    with conductor.database.writer() as session:
        [part] = session.query(model.Deployable).all()
        free = outbox.describe(part)
        part.device.withheld = True
        faulty = outbox.describe(part)
    assert (free['reserved'], faulty['reserved'], faulty['total']) == (0, 1, 1)
    assert {*faulty['traits']} - {*free['traits']} == {'CUSTOM_ACCEL_UNHEALTHY'}


def policy(tmp_path, text, **settings):
    file = tmp_path / 'health.toml'
    file.write_text(text)
    settings |= {'conductor__health_policy': str(file)}
    return health.load(options.load(files=[], **settings))


def test_the_policy_that_is_built_in():
    built_in = health.load(options.load(files=[]))
    assert built_in == built_in._replace(bad=3, good=3)
    assert built_in.of('critical', 'xid_79') == {'no_new', 'tell'}
    assert built_in.of('warning', 'pcie_width') == {'tell'}
    for level in ('ok', 'unknown'):
        assert built_in.of(level, None) == frozenset()


@pytest.mark.parametrize(
    ('level', 'reason', 'effects'),
    [
        ('critical', 'xid_79', {'no_new'}),
        ('critical', 'xid_790', {'tell'}),
        ('critical', 'xid_48', {'tell'}),
        ('critical', 'xid', {'tell'}),
        ('critical', 'xidx', {'no_new', 'tell'}),
        ('critical', 'ascend_alarm_80e01801', set()),
        ('critical', 'ascend_alarm', {'no_new', 'tell'}),
        ('warning', 'xid_79', {'no_new'}),
        ('warning', 'pcie_width', set()),
        ('unknown', 'xid_79', set()),
        ('ok', None, set()),
    ],
)
def test_the_longest_matching_reason_of_the_policy_counts(tmp_path, level, reason, effects):
    found = policy(
        tmp_path,
        'warning = "none"\nxid = "tell"\nxid_79 = ["no_new"]\nascend_alarm_80e01801 = "none"\n',
    )
    assert found.of(level, reason) == effects


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('critical = "no-new"', 'critical: expected "none", "no_new", "tell"'),
        ('critical = ["none", "tell"]', 'critical: expected'),
        ('critical = []', 'critical: expected'),
        ('critical = 3', 'critical: expected'),
        ('[critical]\neffect = "tell"', 'critical: expected'),
        ('unknown = "no_new"', 'unknown: expected warning, critical, or a reason'),
        ('ok = "none"', 'ok: expected'),
        ('Xid = "none"', 'Xid: expected warning, critical, or a reason'),
        ('critical', 'expected TOML'),
        ('a = [' * 5000, 'expected TOML'),
        ('a = ' + '9' * 5000, 'expected TOML'),
        ('\n'.join(f'a{n} = "none"' for n in range(1025)), 'expected at most 1024 entries'),
        ('#' * 65537, 'expected a readable file of TOML, at most 65536 bytes'),
    ],
)
def test_an_invalid_policy_names_the_place_and_the_expectation(tmp_path, text, said):
    with pytest.raises(health.Broken) as error:
        policy(tmp_path, text)
    assert str(error.value).startswith(f'[conductor] health_policy: {tmp_path}/health.toml')
    assert said in str(error.value)


def test_a_policy_file_that_is_not_there_is_named(tmp_path):
    for place in (tmp_path / 'none.toml', tmp_path):
        with pytest.raises(health.Broken, match=str(place)):
            health.load(options.load(files=[], conductor__health_policy=str(place)))


def test_another_policy_holds_from_the_next_report_on(conductor):
    """Also for a card with unknown health, and for an equal report."""
    sample(conductor, 'b')
    reports = conductor._manager.reports
    reports._policy = health.Policy((('critical', frozenset()), ('warning', frozenset())))
    sample(conductor, 'b')
    assert (conductor.device().withheld, conductor.device().fault) == (False, None)
    reports._policy = health.Policy()
    for out in (False, False, True):
        sample(conductor, 'b')
        assert conductor.device().withheld == out
    sample(conductor, '?')
    reports._policy = health.Policy((('critical', frozenset({'tell'})), ('warning', frozenset())))
    sample(conductor, '?')
    assert (conductor.device().withheld, conductor.device().alerted) == (False, True)


def test_how_many_samples_count_can_be_set(databases):
    with databases.empty() as url:
        made = direct.Conductor(
            url, conductor__health_bad_samples=1, conductor__health_good_samples=2
        )
        for letter, out in zip('gbgg', '.xx.', strict=True):
            sample(made, letter)
            assert made.device().withheld == (out == 'x')
        made.close()


@pytest.mark.parametrize('silent', [False, True])
def test_a_policy_that_tells_is_applied_while_the_driver_does_not_answer(
    conductor, monkeypatch, silent
):
    """Holders are told as if it had answered that the health is unknown."""
    told = []
    monkeypatch.setattr(notices, 'put', lambda _, devices: told.extend(devices))
    reports = conductor._manager.reports
    reports._policy = health.Policy((('critical', frozenset({'no_new'})),))
    sample(conductor, 'g')
    conductor.hold()
    for _ in range(3):
        sample(conductor, 'b')
    assert not told
    reports._policy = health.Policy((('critical', frozenset({'no_new', 'tell'})),))
    state = {'state': 'degraded', 'reason': 'it hangs', 'devices': 0, 'waited': 20}
    if silent:
        conductor.report(drivers={'fake': state})
    else:
        sample(conductor, '?')
    assert len(told) == 1

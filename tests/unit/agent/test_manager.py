# SPDX-License-Identifier: Apache-2.0
import contextlib
import pathlib
import threading
import time
import types
import uuid

import oslo_messaging as messaging
import pytest

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite.agent import manager
from cyborg_lite.agent import processes
from tests.unit.agent import cards
from tests.unit.agent.conftest import conf


class Bus:
    """A conductor that records reports, or fails as a test sets it."""

    def __init__(self):
        self.reports, self.contexts, self.timeouts, self.errors = [], [], [], []
        self.told = threading.Semaphore(0)

    def receiver(self, ctxt, timeout):
        self.contexts.append(ctxt)
        self.timeouts.append(timeout)
        return self

    def report(self, **report):
        self.reports.append(report)
        self.told.release()
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def bus():
    return Bus()


#: Of a process that has ended.
USE = processes.Use(processes.Process('b', 0, 0, 1000, 'bob', 'python'), frozenset(), None, None)


def rogues(_finding):
    return {'0000:3b:00.0': [USE]}


@pytest.fixture
def agent(entry_points, host, bus):
    entry_points({'moody': 'tests.unit.agent.cards:Moody'})
    return manager.Manager(conf('moody', interval=17), bus, host)


def test_report(agent, bus):
    told = agent.report()
    [report] = bus.reports
    facts = report['devices'][0]
    assert report['host'] == 'host-1'
    assert report['boot_id'] == pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    assert report['interval'] == 17
    assert report['drivers'] == told == {'moody': {'state': 'ok', 'reason': '', 'devices': 1}}
    assert facts['address'] == '0000:3b:00.0'
    assert facts['deployables'][0]['attach_handles'][0]['attach_info']['bus'] == '3b'
    assert facts['deployables'][0]['driver_name'] == 'moody'
    assert bus.contexts[0].is_admin


def test_processes_that_cannot_be_seen_do_not_hide_devices(agent, bus):
    """The last answer stays."""
    agent.rogues = rogues
    agent.report()

    def fail(_):
        raise OSError('too many open files')

    agent.rogues = fail
    agent.report()
    assert [each['devices'][0]['rogue'] for each in bus.reports] == [f'{USE}'] * 2


def test_rogues_are_looked_for_if_it_is_configured(agent, bus):
    agent.rogues = rogues
    for looks in (True, False):
        agent._conf.agent.withhold_rogues = looks
        agent.report()
    assert [each['devices'][0]['rogue'] for each in bus.reports] == [f'{USE}', None]


def test_users_of_rogues_are_told_if_it_is_configured(agent, bus, monkeypatch):
    looks = []

    def look(found, held):
        assert held is agent.held
        # The conductor knows what it is asked about.
        looks.append((found, len(bus.reports)))

    monkeypatch.setattr(agent._notices, 'look', look)
    agent.rogues = rogues
    for tells in (True, False):
        agent._conf.agent.tell_rogues = tells
        agent.report()
    agent._conf.agent.tell_rogues, agent.compared = True, lambda: False
    agent.report()
    assert looks == [({'0000:3b:00.0': [USE]}, 1), ({}, 2), ({}, 3)]


@pytest.mark.parametrize('error', [messaging.MessagingTimeout('no answer'), OSError('no file')])
def test_users_that_cannot_be_told_do_not_fail_the_report(agent, bus, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(agent._notices, 'look', fail)
    assert agent.report()
    assert len(bus.reports) == 1


def test_a_requested_report_has_the_callers_context(agent, bus):
    caller = context.RequestContext(user_id='u1', overwrite=False)
    agent.report(caller)
    assert bus.contexts == [caller]


def test_answer_is_not_waited_for_beyond_the_next_report(agent, bus):
    """A host that has not reported for two and a half intervals is down."""
    agent.report()
    assert bus.timeouts == [17]


def test_sequence_grows(agent, bus):
    for _ in range(50):
        agent.report()
    sequence = [report['sequence'] for report in bus.reports]
    assert sequence == sorted(set(sequence))


def test_sequence_grows_over_restarts(agent, bus, host):
    agent.report()
    manager.Manager(conf('moody'), bus, host).report()
    first, second = bus.reports
    assert first['sequence'] < second['sequence']
    assert first['boot_id'] == second['boot_id']


def test_report_names_the_machine(agent, bus, host):
    agent.report()
    machine = uuid.uuid4().hex
    (host.root / 'etc').mkdir()
    (host.root / 'etc/machine-id').write_text(f'{machine}\n')
    agent.report()
    assert [report['machine'] for report in bus.reports] == [None, machine]


def test_report_has_the_secret_of_the_agent_over_restarts(agent, bus, host, tmp_path):
    agent.report()
    for _ in range(2):
        made = conf('moody', secret_file=str(tmp_path / 'agent.secret'))
        manager.Manager(made, bus, host).report()
    secret = (tmp_path / 'agent.secret').read_text().strip()
    assert [report['secret'] for report in bus.reports] == [None, secret, secret]


def test_report_names_the_start_of_the_agent(agent, bus, host):
    agent.report()
    agent.report()
    manager.Manager(conf('moody'), bus, host).report()
    first, second, other = (uuid.UUID(report['agent']) for report in bus.reports)
    assert first == second != other


def test_a_call_to_look_is_not_forgotten_for_a_report(agent, bus):
    """Both note a moment at once: the later one counts, whichever is written last."""
    late = []

    class Early(int):
        def __gt__(self, other):
            late.append(threading.Thread(target=agent.look))
            late[0].start()
            # Until it waits for this one, or has noted its moment.
            late[0].join(0.2)
            return super().__gt__(other)

    agent._hear(Early(1))
    late[0].join()
    agent.report()
    assert bus.reports[0]['looked_after'] > 1


def test_a_report_says_no_later_moment_than_that_of_a_late_scan(agent, bus, monkeypatch):
    """Until a conductor has taken it: then another scan tells what is so now."""
    agent.report()
    [first] = [report['looked_after'] for report in bus.reports]
    real = agent._drivers.discover

    def late(anew, moment):
        found = real(anew, moment=moment)
        found.after['moody'] = first
        return found

    with monkeypatch.context() as patch:
        patch.setattr(agent._drivers, 'discover', late)
        bus.errors = [messaging.MessagingTimeout()]
        for _ in range(2):
            agent.look()
            with contextlib.suppress(messaging.MessagingTimeout):
                agent.report()
    agent.look()
    agent.report()
    assert [report['looked_after'] for report in bus.reports[1:3]] == [first] * 2
    assert bus.reports[3]['looked_after'] > first


def test_a_call_to_look_while_a_report_begins_is_not_forgotten(agent, bus):
    """It comes right after the agent has seen that nobody has asked."""
    agent._due = float('inf')
    asked = agent._asked

    class Late:
        def is_set(self):
            was = asked.is_set()
            if not bus.reports:
                agent.look()
            return was

        clear, set = asked.clear, asked.set

    agent._asked = Late()
    agent._work()
    agent._work()
    assert [report['looks'] for report in bus.reports] == [{'moody': 0}, {'moody': 1}]


def test_digest_is_equal_if_and_only_if_the_content_is(agent, bus, host, monkeypatch):
    agent.report()
    agent.report()
    # A restarted agent with the same content.
    manager.Manager(conf('moody'), bus, host).report()
    monkeypatch.setattr(cards.Moody, 'buses', ('5e',))
    agent.report()
    monkeypatch.setattr(cards.Moody, 'buses', ())
    agent.report()
    # The same devices, but another state of a driver.
    monkeypatch.setattr(cards.Moody, 'mood', OSError('busy'))
    agent.report()
    monkeypatch.setattr(cards.Moody, 'mood', OSError('broken'))
    agent.report()
    digests = [report['digest'] for report in bus.reports]
    assert len(set(digests[:3])) == 1
    assert len(set(digests)) == 5
    assert all(len(digest) == 64 for digest in digests)


def test_agent_reports_at_start(agent, bus):
    agent.start()
    assert agent.reported.wait(20)
    agent.stop()
    assert len(bus.reports) == 1


def test_agent_reports_again_and_again(entry_points, host, bus):
    entry_points({'good': 'tests.unit.agent.cards:Good'})
    agent = manager.Manager(conf('good', interval=0.001), bus, host)
    agent.start()
    for _ in range(5):
        assert bus.told.acquire(timeout=20)
    agent.stop()
    assert len({report['sequence'] for report in bus.reports[:5]}) == 5


def test_agent_reports_at_once_when_asked(agent, bus):
    agent.start()
    assert agent.reported.wait(20)
    agent.report(context.service())
    agent.stop()
    first, second = bus.reports
    assert first['sequence'] < second['sequence']


UNDELIVERABLE = messaging.MessageUndeliverable('basic.return', 'cyborg_lite', 'conductor', {})


@pytest.mark.parametrize(
    'error',
    [messaging.MessagingTimeout('nobody'), UNDELIVERABLE, ValueError('nonsense'), OSError('gone')],
)
def test_conductor_that_fails_does_not_end_the_reports(entry_points, host, bus, error):
    entry_points({'good': 'tests.unit.agent.cards:Good'})
    bus.errors = [error, error]
    agent = manager.Manager(conf('good', interval=0.001), bus, host)
    agent.start()
    for _ in range(4):
        assert bus.told.acquire(timeout=20)
    agent.stop()
    assert len(bus.reports) >= 4


@pytest.mark.parametrize('error', [messaging.MessagingTimeout('nobody'), UNDELIVERABLE])
def test_conductor_that_is_not_there_is_a_warning_of_one_line(agent, bus, caplog, error):
    bus.errors = [error]
    agent.start()
    assert agent.reported.wait(20)
    agent.stop()
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert type(error).__name__ in caplog.text
    assert 'Traceback' not in caplog.text


def test_the_first_report_does_not_wait_for_a_failing_conductor(agent, bus):
    bus.errors = [ValueError('nonsense')]
    agent.start()
    assert agent.reported.wait(20)
    agent.stop()
    assert len(bus.reports) == 1


def test_reports_do_not_pass_each_other(agent, bus, monkeypatch):
    """The conductor would drop the older report as stale."""
    alone = []
    monkeypatch.setattr(bus, 'report', lambda **report: alone.append(agent._reporting.locked()))
    threads = [threading.Thread(target=agent.report) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone == [True] * 8


def test_a_report_that_takes_long_makes_the_next_one_no_later(agent, monkeypatch):
    """Otherwise one lost report would take the host down."""
    now, waits, takes = [0.0], [], iter([3, 25, 17, 0])

    def report(ctxt, anew):
        assert anew
        now[0] += next(takes)

    monkeypatch.setattr(manager, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(agent, '_report', report)
    for _ in range(4):
        waits.append(agent._work())
        now[0] += waits[-1]
    assert waits == [14, 0, 0, 17]


@pytest.fixture
def hanging(entry_points, host, bus):
    """An agent with a hung driver and a good one, after its first report."""

    def make(**options):
        names = ('hanging', 'good')
        entry_points({name: f'tests.unit.agent.cards:{name.capitalize()}' for name in names})
        made = manager.Manager(conf(*names, **options), bus, host)
        made.start()
        agents.append(made)
        assert bus.told.acquire(timeout=20)
        return made

    agents = []
    yield make
    cards.RELEASED.set()
    for each in agents:
        each.stop()
    cards.RELEASED.clear()


def found(report):
    states = {name: state['state'] for name, state in report['drivers'].items()}
    return [device['address'][5:7] for device in report['devices']], states


def test_driver_that_hangs_delays_no_report(hanging, bus):
    begun = time.monotonic()
    hanging(interval=1)
    for _ in range(3):
        assert bus.told.acquire(timeout=20)
    # Half an interval for the first report, one for each other, and a margin.
    assert time.monotonic() - begun < 10
    assert all(
        found(report) == (['3b'], {'hanging': 'degraded', 'good': 'ok'}) for report in bus.reports
    )


def test_late_answer_is_reported_at_once(hanging, bus):
    hanging(interval=0.2 * 3600, timeout=0.1)
    cards.RELEASED.set()
    assert bus.told.acquire(timeout=20)
    assert found(bus.reports[-1]) == (['7a', '3b'], {'hanging': 'ok', 'good': 'ok'})


def test_the_first_report_waits_for_a_slow_driver(hanging, bus):
    """Otherwise ``up`` would print that nothing was found."""
    agent = hanging(interval=0.1, timeout=30)
    assert not agent.reported.is_set()
    cards.RELEASED.set()
    assert agent.reported.wait(20)
    assert found(bus.reports[-1]) == (['7a', '3b'], {'hanging': 'ok', 'good': 'ok'})


def test_the_first_report_does_not_wait_for_a_hung_driver(hanging):
    assert hanging(interval=3600, timeout=0.05).reported.wait(20)


def test_the_first_report_waits_for_a_conductor(agent, bus, monkeypatch):
    """Storing the report of many devices may take longer than an interval."""
    monkeypatch.setattr(manager, 'RETRY', 0.01)
    answering = threading.Event()

    def report(**_):
        bus.told.release()
        if not answering.is_set():
            raise messaging.MessagingTimeout('not yet')

    monkeypatch.setattr(bus, 'report', report)
    agent.start()
    for _ in range(3):
        assert bus.told.acquire(timeout=20)
    assert not agent.reported.is_set()
    answering.set()
    assert agent.reported.wait(20)
    agent.stop()


@pytest.mark.parametrize('error', [UNDELIVERABLE, exception.DatabaseAway(reason='it is full')])
def test_report_that_no_conductor_took_is_sent_again_soon(agent, bus, monkeypatch, caplog, error):
    """The agent may have started first. Retries do not scan its drivers."""
    caplog.set_level('INFO', 'cyborg_lite.agent.manager')
    monkeypatch.setattr(manager, 'RETRY', 0.01)
    asked = []
    monkeypatch.setattr(cards.Moody, 'discover', lambda self: asked.append(self) or [])
    bus.errors = [error] * 4
    agent.start()
    assert agent.reported.wait(20)
    agent.stop()
    assert len(asked) == 1
    assert [record.levelname for record in caplog.records] == ['WARNING', 'INFO']
    assert 'Host host-1 waits for a conductor to report to' in caplog.messages[0]
    assert caplog.messages[1] == 'Host host-1 is reported: a conductor took the report'


def test_agent_that_never_began_can_be_stopped(agent):
    """Ctrl-C may come before the agents are started."""
    agent.stop()


def test_agent_does_not_wait_for_a_conductor_that_hangs(agent, bus, monkeypatch):
    """The next report repeats all; a host that goes down must not be kept up."""
    answered = threading.Event()
    monkeypatch.setattr(manager, 'PATIENCE', 0.01)
    monkeypatch.setattr(bus, 'report', lambda **_: bus.told.release() or answered.wait(20))
    agent.start()
    assert bus.told.acquire(timeout=20)
    agent.stop()
    assert agent._worker._thread.is_alive()
    answered.set()

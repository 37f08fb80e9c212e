# SPDX-License-Identifier: Apache-2.0
import datetime
import logging
import uuid

from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import trust
from tests.support import card
from tests.unit.conductor import direct

MACHINE = '3c1f0a52-7a0b-4c55-9d5e-6b1f2d8e9a01'


def pci(bus='01', **more):
    """A card whose only handle is its own function."""
    device = card(bus, **more)
    for handle in device.deployables[0].attach_handles:
        handle.attach_type = 'PCI'
    return device


@pytest.fixture
def agents(conductor, monkeypatch):
    # The log names each stranger once in a process.
    monkeypatch.setattr(trust, '_refused', {})
    return Agents(conductor)


class Agents:
    """``agents.report('a', cards...)`` is a report of the agent that runs as host ``a``."""

    def __init__(self, conductor):
        self._conductor = conductor
        self._started = {}

    def report(self, name, *cards, start=False, machine=MACHINE, **more):
        if start or name not in self._started:
            self._started[name] = str(uuid.uuid4())
        about = {'host': name, 'machine': machine, 'agent': self._started[name]}
        self._conductor.report(*cards, **(about | more))


def host(conductor, name):
    return next((row for row in conductor.rows(model.Host) if row.name == name), None)


def make_silent(conductor, name):
    """Make the last report of a host too old."""
    with conductor.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(seconds=51)
        session.execute(sa.update(model.Host).where(model.Host.name == name).values(seen_at=past))
    conductor.heal()


def take(conductor, name, bus='01', count=1):
    [arq, *_] = made = conductor.arqs(count)
    values = {'hostname': name, 'device_rp_uuid': direct.provider(bus, name)}
    conductor.take(*made, bus=bus, **values)
    return arq


# Another machine under the name of a host


@pytest.mark.parametrize('boot', ['boot-1', 'another'])
@pytest.mark.parametrize('machine', [MACHINE[::-1], None])
def test_a_host_that_is_up_is_reported_by_its_own_machine_alone(
    conductor, agents, caplog, machine, boot
):
    """Each user of the machine knows its boot."""
    agents.report('a', pci('01'), pci('02'))
    before = conductor.dump()
    for _ in range(4):
        agents.report('a', start=True, machine=machine, boot_id=boot, interval=3600)
    assert conductor.dump() == before
    assert caplog.text.count('Another machine reports as host a') == 1
    agents.report('a', pci('01'), start=True)
    assert conductor.device('02', 'a').absences == 1


def test_a_machine_that_replaces_a_host_is_heard_once_that_is_down(conductor, agents):
    agents.report('a', pci('01'))
    make_silent(conductor, 'a')
    conductor.heal()
    agents.report('a', pci('02'), start=True, machine=MACHINE[::-1], boot_id='its own')
    assert conductor.device('02', 'a')
    assert host(conductor, 'a').machine == MACHINE[::-1]


def test_a_false_report_with_a_seldom_interval_does_not_lock_a_machine_out(conductor, agents):
    agents.report('a', machine=MACHINE[::-1], boot_id='forged', interval=3600)
    agents.report('a', pci('01'), start=True)
    assert conductor.device('01', 'a') is None
    with conductor.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(seconds=151)
        session.execute(sa.update(model.Host).values(seen_at=past))
    agents.report('a', pci('01'))
    assert conductor.device('01', 'a')


def test_a_machine_is_heard_where_the_last_report_of_the_host_is_of_the_future(conductor, agents):
    """The host counts as down: the clock of its report was wrong."""
    agents.report('a', pci('01'))
    with conductor.database.writer() as session:
        future = timeutils.utcnow() + datetime.timedelta(hours=1)
        session.execute(sa.update(model.Host).values(seen_at=future))
    conductor.heal()
    agents.report('a', pci('02'), start=True, machine=MACHINE[::-1], boot_id='its own')
    assert conductor.device('02', 'a')


@pytest.mark.parametrize('machine', [MACHINE[::-1], None])
def test_an_identity_that_is_read_otherwise_is_of_the_same_machine(conductor, agents, machine):
    """For example when the agent can read the mainboard's UUID from now on: its secret stays."""
    agents.report('a', pci('01'), secret='s-1')
    agents.report('a', pci('01'), pci('02'), start=True, machine=machine, secret='s-1')
    assert conductor.device('02', 'a')
    assert host(conductor, 'a').machine == (machine or MACHINE)


# The secret of an agent


@pytest.mark.parametrize('down', [False, True])
@pytest.mark.parametrize('secret', [None, 's-2'])
@pytest.mark.parametrize('machine', [MACHINE, None])
def test_a_secret_that_is_known_is_demanded(conductor, agents, caplog, machine, secret, down):
    """Also where the machine has no identity, and once the host is down."""
    agents.report('a', pci('01'), pci('02'), machine=machine, secret='s-1')
    if down:
        make_silent(conductor, 'a')
        conductor.heal()
    before = conductor.dump()
    for each in (machine and MACHINE[::-1], None, machine):
        agents.report('a', start=True, machine=each, secret=secret, sequence=2**40)
    assert conductor.dump() == before
    assert caplog.text.count('heard once that is deleted or renamed') == 1
    agents.report('a', pci('01'), start=True, machine=machine, secret='s-1')
    assert conductor.device('02', 'a').absences == 1


@pytest.mark.parametrize('secret', [None, 's-2'])
def test_a_heartbeat_needs_the_secret(conductor, agents, secret):
    """Its sequence would make the reports of the agent look late."""
    agents.report('a', pci('01'), secret='s-1')
    before = host(conductor, 'a')
    agents.report('a', pci('01'), secret=secret, sequence=2**62)
    after = host(conductor, 'a')
    assert (after.sequence, after.seen_at) == (before.sequence, before.seen_at)
    agents.report('a', secret='s-1')
    assert conductor.device('01', 'a').absences == 1


def test_statements_of_locks_are_made_once(conductor):
    """The cache would keep a statement for each lock for ever."""
    hosts._locking.cache_clear()
    for _ in range(3):
        with conductor.database.writer() as session:
            hosts.announce(session, 'a')
        with pytest.raises(exception.NotFound):
            conductor.delete_host(name='a')
    assert hosts._locking.cache_info().currsize == 1


def test_the_secret_itself_is_not_kept(conductor, agents):
    agents.report('a', pci('01'), secret='s-1')
    assert 's-1' not in repr(conductor.dump())


def test_a_secret_is_known_from_its_first_report_on(conductor, agents):
    """An agent of the previous release has no secret; after its upgrade it sends one."""
    for secret in (None, None, 's-1'):
        agents.report('a', pci('01'), start=True, machine=None, secret=secret)
    agents.report('a', start=True, machine=None)
    assert not conductor.device('01', 'a').absences


def test_who_knows_the_identity_of_a_machine_cannot_rename_it(conductor, agents):
    """Each user of the machine can read it, too, where it is that of the system."""
    agents.report('a', pci('01'), secret='s-1')
    for secret in (None, 's-2'):
        agents.report('b', pci('01'), start=True, secret=secret)
        assert host(conductor, 'a').renamed_to is None
    take(conductor, 'a')
    agents.report('c', pci('01'), secret='s-1')
    assert host(conductor, 'a').renamed_to == 'c'


def test_a_machine_that_has_lost_its_secret_keeps_what_is_held(conductor, agents):
    agents.report('a', pci('01'), pci('02'), secret='s-1')
    take(conductor, 'a')
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='old')
    agents.report('a', pci('01'), pci('02'), start=True, secret='s-2')
    conductor.rename_host(name='old', to='a')
    assert {row.name for row in conductor.rows(model.Host)} == {'a'}
    agents.report('a', pci('01'), pci('02'), start=True, secret='s-2')
    [arq] = conductor.rows(model.ARQ)
    assert (arq.state, arq.hostname) == ('Bound', 'a')
    take(conductor, 'a', '02')


@pytest.mark.parametrize('order', ['delete', 'rename'])
def test_a_host_that_is_deleted_or_renamed_takes_another_secret(conductor, agents, order):
    agents.report('a', pci('01'), machine=None, secret='s-1')
    make_silent(conductor, 'a')
    if order == 'delete':
        conductor.delete_host(name='a')
    else:
        conductor.rename_host(name='a', to='b')
    agents.report('a', pci('02'), start=True, machine=None, secret='s-2')
    assert conductor.device('02', 'a')
    if order == 'rename':
        agents.report('b', pci('02'), start=True, machine=None, secret='s-2')
        assert conductor.device('02', 'b') is None
        agents.report('b', pci('02'), start=True, machine=None, secret='s-1')
        assert conductor.device('02', 'b')


# A machine under another name


def test_renamed_host_does_not_offer_what_is_held(conductor, agents):
    agents.report('a', pci('01'), pci('02'))
    held = take(conductor, 'a', '01')
    agents.report('b', pci('01'), pci('02'))
    with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, a'):
        take(conductor, 'b', '01')
    take(conductor, 'b', '02')
    # Nothing is allocated under the old name.
    with pytest.raises(exception.ProviderUnfit, match='reports as b now'):
        take(conductor, 'a', '02')
    conductor.unbind(uuids=[held])
    agents.report('b', pci('01'), pci('02'))
    take(conductor, 'b', '01')


def test_renamed_host_is_known_by_the_serial_numbers_of_its_cards(conductor, agents):
    agents.report('a', pci('01', serial='A'), pci('02', serial='B'))
    take(conductor, 'a', '01')
    agents.report('b', pci('01', serial='B'), pci('02', serial='A'))
    with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, a'):
        take(conductor, 'b', '02')
    take(conductor, 'b', '01')


def test_host_that_gets_its_old_name_back(conductor, agents):
    agents.report('a', pci('01'), pci('02'))
    agents.report('b', pci('01'), pci('02'))
    take(conductor, 'b', '01')
    agents.report('a', pci('01'), pci('02'), start=True)
    with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, b'):
        take(conductor, 'a', '01')
    take(conductor, 'a', '02')


def test_other_machines_are_not_affected(conductor, agents):
    for name, machine in ('a', MACHINE), ('b', MACHINE[::-1]), ('c', None), ('d', None):
        agents.report(name, pci('01'), machine=machine)
    for name in 'abcd':
        take(conductor, name)


def test_clones_are_named_and_harm_nobody(conductor, agents, caplog):
    agents.report('a', pci('01'))
    take(conductor, 'a')
    agents.report('b', pci('01'))
    with caplog.at_level(logging.WARNING):
        agents.report('a', pci('01'))
    [line] = [each for each in caplog.messages if 'clones' in each]
    assert 'Hosts a, b' in line
    assert MACHINE in line
    take(conductor, 'b')
    # Also after one of them has gone, and for a third one.
    make_silent(conductor, 'a')
    agents.report('b', pci('01'), pci('02'), start=True)
    agents.report('c', pci('01'))
    take(conductor, 'c')
    take(conductor, 'b', '02')


def test_clone_with_an_identity_of_its_own_is_trusted_again(conductor, agents):
    for name in 'aba':
        agents.report(name, pci('01'), secret='of the image')
    assert [row.cloned for row in conductor.rows(model.Host)] == [True, True]
    agents.report('b', pci('01'), machine='another', start=True, secret='of the image')
    assert [row.cloned for row in conductor.rows(model.Host)] == [True, False]


# Two agents under one name


def test_two_agents_under_one_name_do_not_take_turns(conductor, agents, caplog):
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    agents.report('a', pci('01'), agent=first)
    agents.report('a', pci('02'), agent=second)
    before = conductor.dump()
    for _ in range(3):
        agents.report('a', pci('01'), agent=first)
    assert conductor.dump() == before
    assert sum('Two agents report as host a' in line for line in caplog.messages) == 1
    # After the other one was stopped, its reports are accepted again.
    with conductor.database.writer() as session:
        session.execute(sa.update(model.Host).values(silent=True))
    agents.report('a', pci('01'), agent=first)
    assert conductor.device('01', 'a').absences == 0


def test_restarted_agent_may_count_anew(conductor, agents):
    """In another time namespace the clock of its sequence has another start."""
    agents.report('a', pci('01'), sequence=2**40)
    agents.report('a', pci('01'), pci('02'), sequence=5, start=True)
    assert conductor.device('02', 'a') is not None
    agents.report('a', pci('01'), sequence=4)
    assert conductor.device('02', 'a').absences == 0


def test_silent_host_of_an_older_agent_may_count_anew(conductor):
    conductor.report(pci('01'), sequence=2**40)
    conductor.report(pci('01'), pci('02'), sequence=5)
    assert conductor.device('02') is None
    with conductor.database.writer() as session:
        session.execute(sa.update(model.Host).values(silent=True))
    conductor.report(pci('01'), pci('02'), sequence=5)
    assert conductor.device('02') is not None


# Calls of an administrator


def test_rename_to_a_new_name(conductor, agents):
    agents.report('a', pci('01'), pci('02'))
    arq = take(conductor, 'a', '01')
    device, provider = conductor.device('01', 'a'), direct.provider('01', 'a')
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='b')
    assert host(conductor, 'a') is None
    assert conductor.device('01', 'b').uuid == device.uuid
    bound = conductor.arq(arq)
    assert (bound.state, bound.hostname, bound.device_rp_uuid) == ('Bound', 'b', provider)
    names = {part.rp_uuid: part.name for part in conductor.rows(model.Deployable)}
    assert names[provider] == 'b_0000:01:00.0'
    agents.report('b', pci('01'), pci('02'))
    assert len(conductor.rows(model.Device)) == 2
    assert conductor.arq(arq).attach_handle.lost is False


def test_rename_to_the_name_under_which_it_reports(conductor, agents):
    agents.report('a', pci('01'), pci('02'), pci('03'))
    arq = take(conductor, 'a', '01')
    conductor.set_device_status(uuid=conductor.device('03', 'a').uuid, status='maintaining')
    agents.report('b', pci('01'), pci('02'), pci('03'), pci('04'))
    other = take(conductor, 'b', '02')
    kept = conductor.device('01', 'a').uuid, conductor.device('02', 'b').uuid
    conductor.rename_host(name='a', to='b')
    assert host(conductor, 'a') is None
    rows = {row.address: row for row in conductor.rows(model.Device)}
    assert len(rows) == len(conductor.rows(model.Device)) == 4
    assert (rows['0000:01:00.0'].uuid, rows['0000:02:00.0'].uuid) == kept
    assert rows['0000:03:00.0'].status == 'maintaining'
    assert [conductor.arq(each).state for each in (arq, other)] == ['Bound', 'Bound']
    agents.report('b', pci('01'), pci('02'), pci('03'), pci('04'))
    assert [row.absences for row in conductor.rows(model.Device)] == [0] * 4
    with pytest.raises(exception.CannotBind):
        conductor.take(
            *conductor.arqs(),
            hostname='b',
            device_rp_uuid=conductor.arq(arq).device_rp_uuid,
        )
    take(conductor, 'b', '04')


@pytest.mark.parametrize(('ordered', 'held'), [('a', 'b'), ('b', None)])
def test_order_goes_with_the_card_when_its_two_rows_become_one(conductor, agents, ordered, held):
    for name in ('a', 'b'):
        agents.report(name, pci('01'))
    if held:
        take(conductor, held)
    uuid_ = conductor.device('01', ordered).uuid
    conductor.set_device_status(uuid=uuid_, status='maintaining')
    conductor.rename_host(name='a', to='b')
    [device] = conductor.rows(model.Device)
    assert (device.hostname, device.status) == ('b', 'maintaining')


@pytest.mark.parametrize(('faulty', 'held'), [('a', 'b'), ('b', 'a')])
def test_fault_goes_with_the_card_when_its_two_rows_become_one(conductor, agents, faulty, held):
    """The row of which something is held stays."""
    for name in ('a', 'b'):
        agents.report(name, pci('01', health='ok'))
        if name == held:
            take(conductor, name)
    values = {'fault': 'critical: xid_79', 'withheld': True, 'alerted': True}
    with conductor.database.writer() as session:
        row = sa.update(model.Device).where(model.Device.hostname == faulty)
        session.execute(row.values(**values))
    conductor.rename_host(name='a', to='b')
    [device] = conductor.rows(model.Device)
    assert {name: getattr(device, name) for name in values} == values


def test_name_of_a_renamed_host_goes_to_another_machine(conductor, agents):
    """The UUIDs of its providers follow from the old name, and do not change."""
    agents.report('a', pci('01'))
    held = take(conductor, 'a')
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='b')
    agents.report('a', pci('01'), machine=MACHINE[::-1])
    assert conductor.device('01', 'a') is not None
    providers = {part.name[0]: part.rp_uuid for part in conductor.rows(model.Deployable)}
    assert providers['a'] != providers['b'] == direct.provider('01', 'a')
    assert conductor.arq(held).hostname == 'b'


def test_group_of_which_something_is_held_under_the_old_name(conductor, agents):
    cards = [pci('01'), pci('02')]
    for each in cards:
        each.deployables[0].attach_handles[0].iommu_group = '7'
    agents.report('a', *cards)
    take(conductor, 'a', '01')
    agents.report('b', *cards)
    with pytest.raises(exception.ProviderUnfit, match='IOMMU group 7'):
        take(conductor, 'b', '02')


def test_old_name_is_changed_for_a_third_one(conductor, agents):
    """The machine reports under the second name: the third is not its name either."""
    agents.report('a', pci('01'), pci('02'))
    take(conductor, 'a', '01')
    agents.report('b', pci('01'), pci('02'))
    conductor.rename_host(name='a', to='c')
    with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, c'):
        take(conductor, 'b', '01')
    with pytest.raises(exception.ProviderUnfit, match='reports as b now'):
        conductor.take(*conductor.arqs(), hostname='c', device_rp_uuid=direct.provider('02', 'a'))


@pytest.mark.parametrize(
    ('name', 'to', 'error', 'said'),
    [
        ('a', 'new', exception.Conflict, 'Host a is up'),
        ('gone', 'new', exception.NotFound, 'Host gone not found'),
        ('down', 'a', exception.Conflict, 'not known to be the same machine'),
    ],
)
def test_rename_that_is_refused(conductor, agents, name, to, error, said):
    agents.report('a', pci('01'))
    agents.report('down', pci('01'), machine=None)
    make_silent(conductor, 'down')
    before = conductor.dump()
    with pytest.raises(error, match=said):
        conductor.rename_host(name=name, to=to)
    assert conductor.dump() == before


def test_rename_of_a_clone_to_another(conductor, agents):
    for name in 'aba':
        agents.report(name, pci('01'))
    make_silent(conductor, 'a')
    with pytest.raises(exception.Conflict, match='not known to be the same machine'):
        conductor.rename_host(name='a', to='b')
    conductor.rename_host(name='a', to='c')
    assert [row.name for row in conductor.rows(model.Host)] == ['b', 'c']


def test_delete_a_host_that_is_down(conductor, agents):
    agents.report('a', pci('01', handles=3))
    agents.report('b', pci('01'), machine=None)
    with pytest.raises(exception.Conflict, match='is up'):
        conductor.delete_host(name='a')
    arq = take(conductor, 'a')
    make_silent(conductor, 'a')
    with pytest.raises(exception.Conflict, match='requests hold 1 of its accelerators'):
        conductor.delete_host(name='a')
    conductor.delete_arqs(uuids=[arq])
    conductor.delete_host(name='a')
    assert [row.name for row in conductor.rows(model.Host)] == ['b']
    assert [row.hostname for row in conductor.rows(model.Device)] == ['b']
    with pytest.raises(exception.NotFound):
        conductor.delete_host(name='a')
    agents.report('a', pci('01'))
    assert conductor.device('01', 'a') is not None


def test_delete_a_device_that_is_missing(conductor):
    conductor.report(pci('01'), pci('02'))
    device = conductor.device('01')
    [arq] = conductor.hold('01')
    with pytest.raises(exception.Conflict, match='its host host-1 reports it'):
        conductor.delete_device(uuid=device.uuid)
    conductor.set_device_status(uuid=device.uuid, status='maintaining')
    for _ in range(4):
        conductor.report(pci('02'))
    with pytest.raises(exception.Conflict, match='hold some of it'):
        conductor.delete_device(uuid=device.uuid)
    conductor.delete_arqs(uuids=[arq])
    conductor.report(pci('02'))
    assert conductor.device('01').uuid == device.uuid
    conductor.delete_device(uuid=device.uuid)
    assert conductor.device('01') is None
    with pytest.raises(exception.NotFound):
        conductor.delete_device(uuid=device.uuid)


# Cases that were allocated twice


def test_new_machine_under_a_name_that_was_another_machines(conductor, agents):
    agents.report('a', pci('01'))
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='b')
    agents.report('a', pci('01'), start=True, machine=MACHINE[::-1])
    parts = conductor.rows(model.Deployable)
    assert [part.name for part in parts] == ['b_0000:01:00.0', 'a_0000:01:00.0_0xABCD']
    assert len({part.rp_uuid for part in parts}) == 2


def test_report_that_arrives_twice_counts_once(conductor, agents):
    agents.report('a', pci('01'), pci('02'))
    twice = conductor.told(pci('01'), host='a', machine=MACHINE, agent=agents._started['a'])
    for _ in range(2):
        conductor.report(**twice)
    assert conductor.device('02', 'a').absences == 1


@pytest.mark.parametrize('deleted', [False, True])
def test_late_report_of_the_old_name_is_dropped(conductor, agents, deleted):
    agents.report('a', pci('01'))
    late = conductor.told(pci('01'), host='a', machine=MACHINE, agent=agents._started['a'])
    if deleted:
        make_silent(conductor, 'a')
        agents.report('b', pci('01'))
        conductor.delete_host(name='a')
        take(conductor, 'b')
    else:
        take(conductor, 'a')
        agents.report('b', pci('01'))
    conductor.report(**late)
    agents.report('b', pci('01'), pci('02'))
    if deleted:
        assert host(conductor, 'a') is None
    with pytest.raises(exception.CannotBind):
        take(conductor, 'b')
    assert not host(conductor, 'b').cloned


def test_machine_identity_that_cannot_be_read_for_now(conductor, agents):
    agents.report('a', pci('01'))
    take(conductor, 'a')
    agents.report('b', pci('01'), secret='s-b')
    agents.report('b', pci('01'), pci('02'), machine=None, start=True, secret='s-b')
    assert conductor.device('02', 'b')
    with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, a'):
        take(conductor, 'b')


def test_a_device_disabled_under_the_old_name_is_disabled(conductor, agents):
    agents.report('a', pci('01'), pci('02'))
    conductor.set_device_status(uuid=conductor.device('01', 'a').uuid, status='maintaining')
    agents.report('b', pci('01'), pci('02'))
    with pytest.raises(exception.ProviderUnfit, match='is maintaining'):
        take(conductor, 'b', '01')
    take(conductor, 'b', '02')


def test_rename_keeps_requests_held_under_an_earlier_name(conductor, agents):
    agents.report('c', pci('01'))
    take(conductor, 'c')
    agents.report('a', pci('01'))
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='b')
    assert host(conductor, 'c').renamed_to == 'b'
    agents.report('b', pci('01'))
    with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, c'):
        conductor.take(*conductor.arqs(), hostname='b', device_rp_uuid=direct.provider('01', 'a'))


def test_rename_to_a_long_name(conductor, agents):
    agents.report('a', pci('01'), pci('02'))
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='b' * 250)
    names = [part.name for part in conductor.rows(model.Deployable)]
    assert len(set(names)) == 2
    assert {len(name) for name in names} == {200}


def test_attributes_stay_with_their_part(conductor, agents):
    def split():
        device = pci('01')
        other = pci('01', handles=(1,)).deployables[0]
        other.name += '-vf'
        device.deployables.append(other)
        return device

    agents.report('a', split())
    agents.report('b', split())
    [part] = [p for p in conductor.rows(model.Deployable) if p.name == 'b_0000:01:00.0-vf']
    conductor.create_attribute(deployable=part.id, key='rack', value='12')
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='b')
    names = {p.id: p.name for p in conductor.rows(model.Deployable)}
    [added] = [a for a in conductor.rows(model.Attribute) if a.added]
    assert names[added.deployable_id] == 'b_0000:01:00.0-vf'


def test_traits_of_an_operator_survive_a_rename(conductor, agents):
    """A trait was added under each name, with a number that the other name uses."""

    def traits(name):
        [part] = [p for p in conductor.rows(model.Deployable) if p.name.startswith(f'{name}_')]
        rows = [a for a in conductor.rows(model.Attribute) if a.deployable_id == part.id]
        return part, {a.key: a.value for a in rows if a.is_trait}

    agents.report('a', pci('01', traits=['CUSTOM_A']))
    for key, value in {'trait1': 'CUSTOM_OLD', 'trait7': 'CUSTOM_SAME'}.items():
        conductor.create_attribute(deployable=traits('a')[0].id, key=key, value=value)
    make_silent(conductor, 'a')
    agents.report('b', pci('01', traits=['CUSTOM_A', 'CUSTOM_B']), start=True)
    added = {'trait2': 'CUSTOM_NEW', 'trait7': 'CUSTOM_SEVEN', 'trait8': 'CUSTOM_SAME'}
    for key, value in added.items():
        conductor.create_attribute(deployable=traits('b')[0].id, key=key, value=value)
    make_silent(conductor, 'a')
    conductor.rename_host(name='a', to='b')
    wanted = ['CUSTOM_NEW', 'CUSTOM_OLD', 'CUSTOM_SAME', 'CUSTOM_SEVEN']
    for reported in (['CUSTOM_A', 'CUSTOM_B'], ['CUSTOM_A', 'CUSTOM_B', 'CUSTOM_C']):
        agents.report('b', pci('01', traits=reported))
        assert sorted(traits('b')[1].values()) == sorted([*wanted, *reported])


# Late reports across a reboot, and clones


def first_boot(conductor, agents):
    """Host a with a held accelerator; returns a report of it that is still in transit."""
    agents.report('a', pci('01'), boot_id='b1')
    take(conductor, 'a')
    return late_report(conductor, agents)


def late_report(conductor, agents):
    about = {'host': 'a', 'machine': MACHINE, 'agent': agents._started['a'], 'boot_id': 'b1'}
    return conductor.told(pci('01'), **about)


def refuses(conductor, name):
    with pytest.raises(exception.ProviderUnfit):
        take(conductor, name)
    return True


@pytest.mark.parametrize('machine', [None, MACHINE[::-1]])
def test_machine_identity_that_is_known_later(conductor, agents, machine):
    first_boot(conductor, agents)
    agents.report('b', pci('01'), boot_id='b2', machine=machine, secret='s-b')
    agents.report('b', pci('01'), boot_id='b2', secret='s-b')
    with pytest.raises(exception.ProviderUnfit, match='held under the old name of its host, a'):
        take(conductor, 'b')
    assert host(conductor, 'a').renamed_to == 'b'


def test_late_reports_of_the_boot_before_make_no_clones(conductor, agents):
    late = [first_boot(conductor, agents), late_report(conductor, agents)]
    agents.report('b', pci('01'), boot_id='b2')
    for _ in range(2):
        for each in late:
            conductor.report(**each)
            assert refuses(conductor, 'b')
    for _ in range(3):
        agents.report('b', pci('01'), boot_id='b2')
        assert refuses(conductor, 'b')
    assert [row.cloned for row in conductor.rows(model.Host)] == [False, False]
    assert refuses(conductor, 'a')


def test_late_report_of_an_agent_that_was_not_known(conductor, agents):
    """The new name is overdue, so the old name is valid again."""
    first_boot(conductor, agents)
    agents.report('b', pci('01'), pci('02'), boot_id='b2')
    agents.report('a', pci('01'), pci('02'), boot_id='b1', start=True)
    agents.report('b', pci('01'), pci('02'), boot_id='b2')
    assert host(conductor, 'b').renamed_to == 'a'
    make_silent(conductor, 'a')
    agents.report('b', pci('01'), pci('02'), boot_id='b2')
    assert (host(conductor, 'a').renamed_to, host(conductor, 'b').renamed_to) == ('b', None)
    assert refuses(conductor, 'b')
    take(conductor, 'b', '02')


def make_clones(conductor, agents):
    """Two machines with two boots, which report alternately."""
    first_boot(conductor, agents)
    for _ in range(2):
        agents.report('b', pci('01'), boot_id='b2')
        assert refuses(conductor, 'b')
        agents.report('a', pci('01'), boot_id='b1')
    assert [row.cloned for row in conductor.rows(model.Host)] == [True, True]


def test_clones_report_in_turn(conductor, agents):
    make_clones(conductor, agents)
    for name, boot in ('a', 'b1'), ('b', 'b2'):
        agents.report(name, pci('01'), pci('02'), boot_id=boot)
        take(conductor, name, '02')
    take(conductor, 'b', '01')


def long_ago(conductor, name):
    with conductor.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(days=2)
        session.execute(sa.update(model.Host).where(model.Host.name == name).values(seen_at=past))
    conductor.heal()


def test_clone_that_is_silent_for_good_is_the_old_name(conductor, agents):
    make_clones(conductor, agents)
    long_ago(conductor, 'a')
    agents.report('b', pci('01'), boot_id='b3', start=True)
    assert (host(conductor, 'a').renamed_to, host(conductor, 'b').cloned) == ('b', False)
    assert refuses(conductor, 'b')


def test_clone_that_is_silent_for_good_can_be_renamed(conductor, agents):
    make_clones(conductor, agents)
    long_ago(conductor, 'a')
    conductor.rename_host(name='a', to='b')
    [row] = conductor.rows(model.Host)
    assert (row.name, row.cloned) == ('b', False)
    with pytest.raises(exception.NoFreeHandle):
        conductor.take(*conductor.arqs(), hostname='b', device_rp_uuid=direct.provider('01', 'a'))


def test_last_clone_is_none_when_the_other_is_deleted(conductor, agents):
    make_clones(conductor, agents)
    conductor.delete_arqs(uuids=[row.uuid for row in conductor.rows(model.ARQ)])
    make_silent(conductor, 'b')
    conductor.delete_host(name='b')
    [row] = conductor.rows(model.Host)
    assert (row.name, row.cloned) == ('a', False)


def test_host_has_its_name_again_when_the_new_one_is_deleted(conductor, agents):
    first_boot(conductor, agents)
    agents.report('b', pci('01'), pci('02'), boot_id='b2')
    make_silent(conductor, 'b')
    conductor.delete_host(name='b')
    agents.report('a', pci('01'), pci('02'), boot_id='b1')
    row = host(conductor, 'a')
    assert (row.state, row.cloned) == ('up', False)
    take(conductor, 'a', '02')


def test_clone_with_the_identity_of_a_third_host(conductor, agents):
    for name in 'aba':
        agents.report(name, pci('01'), secret='of the image')
    for name in 'cb':
        agents.report(name, pci('01'), machine='another', start=True, secret='of the image')
    assert host(conductor, 'b').cloned is False
    assert host(conductor, 'c').renamed_to == 'b'

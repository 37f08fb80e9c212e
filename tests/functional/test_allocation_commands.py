# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator allocation create, over the SDK."""

import json
import sys
import types

from osc_lib import exceptions
import pytest

from cyborg_lite import model
from cyborg_lite.osc import allocations
from tests import support
from tests.functional import test_quota_commands
from tests.functional import test_sdk

url, sdk, run = test_sdk.url, test_sdk.sdk, test_quota_commands.run


def test_links_are_required(run):
    with pytest.raises(exceptions.CommandError, match='in a ring of links'):
        run(allocations.CreateAllocation, '--resource', 'CUSTOM_NONE=2', '--linked')


@pytest.mark.parametrize('first', [('--profile', 'profile-1'), ('--resource', 'CUSTOM_NONE=1')])
def test_the_first_alternative_that_can_be_had_is_taken(run, service, first):
    service.report(support.card('3b', traits=['CUSTOM_A']), support.card('4c'))
    service.profile(CUSTOM_NONE=1)
    alternatives = 'CUSTOM_NONE=1,CUSTOM_A', 'FPGA=1,CUSTOM_A=forbidden', 'FPGA=2'
    words = [word for each in alternatives for word in ('--alternative', each)]
    run(allocations.CreateAllocation, *first, *words)
    [made] = service.rows(model.Allocation)
    traits = {'CUSTOM_A': 'forbidden'}
    assert made.groups == [{'resources': {'FPGA': 1}, 'traits': traits}]
    assert [each['address'] for each in made.accelerators] == ['0000:4c:00.0']


@pytest.mark.parametrize('text', ['', 'CUSTOM_A', 'FPGA=', 'FPGA=x', 'FPGA=1,', 'FPGA=1,=2', '=1'])
def test_an_alternative_that_is_none_is_refused(run, capsys, text):
    words = '--resource', 'CUSTOM_NONE=1', '--alternative', text
    with pytest.raises(SystemExit):
        run(allocations.CreateAllocation, *words)
    assert f'expected <class>=<amount>[,<trait>[=required|forbidden]], got {text!r}' in \
        capsys.readouterr().err  # fmt: skip


def test_an_allocation_has_a_claimed_name_and_a_note(run, service):
    service.report(support.card('3b'))
    labels = {'claimed_name': 'jane', 'note': 'ablation 3'}
    words = ['--claimed-name', 'jane', '--note', 'ablation 3']
    run(allocations.CreateAllocation, '--resource', 'FPGA=1', *words)
    for name, found in (('jane', 1), ('bob', 0)):
        rows = run(allocations.ListAllocations, '--long', '--claimed-name', name)
        shown = [
            dict(zip(allocations.COLUMNS + allocations.MORE, row, strict=True)) for row in rows
        ]
        assert [{field: row[field] for field in labels} for row in shown] == [labels] * found


def waiting(service, monkeypatch, act):
    """Hold the only accelerator; ``act(uuid)`` of the holder is called when a command waits."""
    service.report(support.card('3b'))
    group = {'resources': {'FPGA': 1}}
    held = service.api.post('/v2/allocations', {'groups': [group]}).json['uuid']
    plain, acted = allocations.CreateAllocation.ask, []

    def ask(command, path, **arguments):
        if not acted:
            acted.append(path)
            act(held)
        return plain(command, path, **arguments)

    monkeypatch.setattr(allocations.CreateAllocation, 'ask', ask)
    return '--resource', 'FPGA=1', '--queue', '--wait'


def test_a_wait_ends_when_the_allocation_is_served(run, service, monkeypatch):
    def release(held):
        assert service.api.delete(f'/v2/allocations/{held}').status_int == 204

    words = waiting(service, monkeypatch, release)
    shown = run(allocations.CreateAllocation, *words)
    [served] = [row for row in service.rows(model.Allocation) if row.state == 'active']
    assert served.uuid in shown
    assert 'active' in shown
    assert len(served.accelerators) == 1


def test_a_wait_for_what_is_given_up_fails(run, service, monkeypatch):
    def give_up(held):
        [queued] = [row for row in service.rows(model.Allocation) if row.uuid != held]
        assert service.api.delete(f'/v2/allocations/{queued.uuid}').status_int == 204

    words = waiting(service, monkeypatch, give_up)
    with pytest.raises(exceptions.CommandError, match='It was deleted'):
        run(allocations.CreateAllocation, *words)


def test_the_accelerators_of_an_allocation_are_lines(run, service):
    service.report(support.card('3b'), support.card('4c'))
    made = run(allocations.CreateAllocation, '--resource', 'FPGA=2', '--name', 'a')
    [accelerators] = [each for each in made if isinstance(each, allocations._Accelerators)]
    assert accelerators.human_readable() == 'host-1 0000:3b:00.0\nhost-1 0000:4c:00.0'
    assert [each['host'] for each in accelerators.machine_readable()] == ['host-1'] * 2


@pytest.mark.parametrize('traits', [(), ('--trait', 'CUSTOM_A')])
def test_the_groups_of_an_allocation_end_in_no_comma(run, service, traits):
    service.report(support.card('3b', traits=['CUSTOM_A']))
    made = run(allocations.CreateAllocation, '--resource', 'FPGA=1', *traits)
    [groups] = [each for each in made if isinstance(each, allocations._Groups)]
    wanted = ", traits.CUSTOM_A='required'" if traits else ''
    assert groups.human_readable() == f"resources.FPGA='1'{wanted}"
    assert groups.machine_readable()[0]['traits'] == ({'CUSTOM_A': 'required'} if traits else {})


def test_what_must_be_possible_is_refused(run, service):
    with pytest.raises(exceptions.CommandError, match='even if all were free'):
        run(allocations.CreateAllocation, '--resource', 'CUSTOM_NONE=1', '--queue', '--possible')
    assert not service.rows(model.Allocation)


@pytest.mark.parametrize(
    ('words', 'hint'),
    [(('--resource', 'FPGA=1', '--wait'), True), (('--resource', 'FPGA=99', '--wait'), False),
     (('--resource', 'FPGA=1'), False)],
)  # fmt: skip
def test_a_wait_without_the_queue_says_how_to_wait(run, service, words, hint):
    """Not if it would wait for ever."""
    service.report(support.card('3b'))
    run(allocations.CreateAllocation, '--resource', 'FPGA=1')
    with pytest.raises(exceptions.CommandError) as raised:
        run(allocations.CreateAllocation, *words)
    said = str(raised.value)
    assert said.startswith('Cannot allocate: needs ')
    assert said.endswith('. Give --queue with --wait to wait in the queue.') is hint


def test_a_dry_run_that_does_not_fit_is_shown_and_fails(sdk, service, capsys):
    service.report(support.card('3b'))
    connection = types.SimpleNamespace(accelerator=sdk)
    manager = types.SimpleNamespace(sdk_connection=connection)
    command = allocations.CreateAllocation(
        types.SimpleNamespace(client_manager=manager, stdout=sys.stdout), None
    )
    words = '--resource', 'FPGA=2', '--dry-run', '-f', 'json'
    with pytest.raises(exceptions.CommandError, match='Cannot allocate: needs 2 of FPGA'):
        command.run(command.get_parser('create').parse_args(words))
    shown = json.loads(capsys.readouterr().out)
    assert shown['fits'] is False
    assert shown['alternatives'][0]['reason'].startswith('needs 2 of FPGA')


def test_an_interrupted_wait_says_that_it_stays_queued(run, service, monkeypatch, capsys):
    def interrupted(_command, path, **_arguments):
        raise KeyboardInterrupt(path)

    monkeypatch.setattr(allocations.CreateAllocation, 'ask', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(allocations.CreateAllocation, '--resource', 'CUSTOM_NONE=1', '--queue', '--wait')
    [queued] = service.rows(model.Allocation)
    assert f'"openstack accelerator allocation delete {queued.uuid}"' in capsys.readouterr().err

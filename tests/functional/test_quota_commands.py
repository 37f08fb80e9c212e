# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator quota ..., over the SDK."""

import types

from osc_lib import exceptions
import pytest

from cyborg_lite.osc import quotas
from tests.functional import test_sdk

OWN = '00000000000000000000000000000001'
url, sdk = test_sdk.url, test_sdk.sdk


@pytest.fixture
def run(sdk):
    """``run(command, *words)``: the shown rows."""
    client = types.SimpleNamespace(sdk_connection=types.SimpleNamespace(accelerator=sdk))

    def run(kind, *words):
        command = kind(types.SimpleNamespace(client_manager=client), None)
        shown = command.take_action(command.get_parser('quota').parse_args([*words]))
        return shown and [tuple(each) if isinstance(each, list) else each for each in shown[1]]

    return run


#: The source of all limits.
HERE = 'database'


def test_limits_are_set_shown_and_listed(run):
    set_ = ('--limit', 'FPGA=4', '--limit', 'total=-1')
    assert run(quotas.SetQuota, OWN, *set_) == [('total', -1, 0, HERE), ('FPGA', 4, 0, HERE)]
    run(quotas.SetQuota, '--default', '--limit', 'total=8')
    assert run(quotas.ShowQuota) == run(quotas.ShowQuota, OWN)
    assert run(quotas.ShowQuota) == [('total', -1, 0, HERE), ('FPGA', 4, 0, HERE)]
    assert run(quotas.ShowQuota, 'other') == [('total', 8, 0, HERE)]
    listed = {project: limits.human_readable() for project, limits in run(quotas.ListQuotas)}
    assert listed == {OWN: "FPGA='4', total='-1'", 'defaults': "total='8'"}
    run(quotas.SetQuota, OWN, '--limit', 'total=default')
    assert run(quotas.ShowQuota) == [('total', 8, 0, HERE), ('FPGA', 4, 0, HERE)]
    run(quotas.DeleteQuota, OWN)
    assert run(quotas.ShowQuota) == [('total', 8, 0, HERE)]


def test_a_project_without_accelerators_may_be_a_mistake(run, service, capsys):
    run(quotas.SetQuota, '--default', '--limit', 'total=8')
    assert capsys.readouterr().err == ''
    run(quotas.SetQuota, 'vison', '--limit', 'total=8')
    said = 'Project vison has no accelerators now: if its id is wrong, "openstack accelerator '
    assert capsys.readouterr().err == f'{said}quota delete vison" takes the limits back.\n'
    run(quotas.DeleteQuota, 'vison')
    service.profile(FPGA=1)
    answer = service.api.post('/v2/accelerator_requests', {'device_profile_name': 'profile-1'})
    assert answer.status_int == 201
    run(quotas.SetQuota, OWN, '--limit', 'total=8')
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('words', [[], ['p'], ['p', '--limit', 'total'], ['--limit', 'total=x']])
def test_words_that_cannot_be_understood(run, words, capsys):
    with pytest.raises(SystemExit):
        run(quotas.SetQuota, *words)
    assert '--limit' in capsys.readouterr().err


def test_a_change_names_its_project(run):
    for command, words in ((quotas.SetQuota, ['--limit', 'total=1']), (quotas.DeleteQuota, [])):
        with pytest.raises(exceptions.CommandError, match='Expected <project> or --default'):
            run(command, *words)


def test_a_refusal_of_the_service_is_shown(run):
    said = """^Invalid limits: 'NPU' is not valid .expected "total" or a resource class: """
    with pytest.raises(exceptions.CommandError, match=said):
        run(quotas.SetQuota, 'p', '--limit', 'NPU=1')
    with pytest.raises(exceptions.CommandError, match='Quota of project p not found'):
        run(quotas.DeleteQuota, 'p')

# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator allocation create, over the SDK."""

from osc_lib import exceptions
import pytest

from cyborg_lite import model
from cyborg_lite.osc import allocations
from tests.functional import test_quota_commands
from tests.functional import test_sdk

url, sdk, run = test_sdk.url, test_sdk.sdk, test_quota_commands.run


def test_links_are_required(run):
    with pytest.raises(exceptions.CommandError, match='in a ring of links'):
        run(allocations.CreateAllocation, '--resource', 'CUSTOM_NONE=2', '--linked')


def test_an_interrupted_wait_says_that_it_stays_queued(run, service, monkeypatch, capsys):
    def interrupted(_command, path, **_arguments):
        raise KeyboardInterrupt(path)

    monkeypatch.setattr(allocations.CreateAllocation, 'ask', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(allocations.CreateAllocation, '--resource', 'CUSTOM_NONE=1', '--queue', '--wait')
    [queued] = service.rows(model.Allocation)
    assert f'"openstack accelerator allocation delete {queued.uuid}"' in capsys.readouterr().err

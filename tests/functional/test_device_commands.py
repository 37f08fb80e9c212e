# SPDX-License-Identifier: Apache-2.0
"""Commands that name devices, accelerators and requests, over the SDK."""

import re
import types

from osc_lib import exceptions
import pytest

from cyborg_lite import model
from cyborg_lite.osc import accelerators
from cyborg_lite.osc import allocations
from cyborg_lite.osc import devices
from tests import support
from tests.functional import test_quota_commands
from tests.functional import test_sdk

HOST = 'host-2'
NOTHING = '11111111-2222-4333-8444-555555555555'
url, sdk, run = test_sdk.url, test_sdk.sdk, test_quota_commands.run


@pytest.fixture
def card(service):
    """A card whose four accelerators are functions of their own, and its names."""
    service.report(support.card('3b', handles=range(1, 5)), host=HOST)
    device = service.rows(model.Device)[-1]
    handle = service.rows(model.AttachHandle)[-2]
    return {
        'device': [device.uuid],
        'accelerator': [handle.uuid],
        'card': [HOST, '0000:3b:00.0'],
        'function': [HOST, '0000:3B:00.3'],
    }


@pytest.mark.parametrize('way', ['device', 'accelerator', 'card', 'function'])
def test_each_name_of_a_device_is_understood(run, service, card, way):
    run(accelerators.DisableDevice, *card[way])
    device = service.rows(model.Device)[-1]
    assert device.status == 'maintaining'
    run(accelerators.EnableDevice, *card[way])
    assert service.rows(model.Device)[-1].status == 'enabled'
    with pytest.raises(exceptions.CommandError, match=f'{device.uuid} cannot be deleted'):
        run(devices.DeleteDevice, *card[way])


def test_enable_says_what_else_keeps_a_device_out(run, service, card, capsys):
    run(accelerators.EnableDevice, *card['device'])
    assert capsys.readouterr().err == ''
    faulty = support.card('3b', handles=range(1, 5), health='critical', health_reason='xid_79')
    for _ in range(3):
        service.report(faulty, host=HOST)
    run(accelerators.DisableDevice, *card['device'])
    run(accelerators.EnableDevice, *card['function'])
    said = 'is enabled, but cannot be allocated: its device is faulty (critical: xid_79)'
    # A logger of a test before may complain of its closed stream.
    assert capsys.readouterr().err.splitlines()[-1] == f'{card["device"][0]} {said}'


@pytest.mark.parametrize('name', ['nope', NOTHING, HOST])
def test_a_name_of_no_device_says_what_to_type(run, card, name):
    for kind in accelerators.DisableDevice, accelerators.EnableDevice, devices.DeleteDevice:
        with pytest.raises(exceptions.CommandError) as raised:
            run(kind, name)
        assert str(raised.value) == (
            f'Device {name} not found, and no accelerator has this UUID. Give the UUID of a '
            'device or of an accelerator, or HOST ADDRESS: "openstack accelerator list --long" '
            'shows them.'
        )
    with pytest.raises(exceptions.CommandError) as raised:
        run(accelerators.DisableDevice, name, '0000:99:00.0')
    assert str(raised.value) == (
        f'Host {name} has no accelerator at 0000:99:00.0: "openstack accelerator list --host '
        f'{name}" shows the addresses.'
    )


def test_an_accelerator_is_shown_at_its_own_address(run, card):
    shown = run(accelerators.ListAccelerators, '--host', HOST)
    assert [row[6] for row in shown] == [f'0000:3b:00.{n}' for n in range(1, 5)]
    with pytest.raises(exceptions.CommandError, match=f'list --device {card["device"][0]}"'):
        run(accelerators.ShowAccelerator, *card['device'])


def test_an_unknown_accelerator_or_request_says_where_they_are_shown(run, card):
    shows = '"openstack accelerator list" shows the UUIDs'
    with pytest.raises(exceptions.CommandError, match=f'Accelerator nope not found. {shows}'):
        run(accelerators.ShowAccelerator, 'nope')
    for kind in accelerators.ShowHistory, accelerators.UnbindAccelerators:
        with pytest.raises(exceptions.CommandError, match='not found.*shows the request of each'):
            run(kind, *card['accelerator'])


def test_a_dry_run_shows_counts_in_words(run, sdk, card):
    run(accelerators.DisableDevice, *card['device'])
    words = ['--resource', 'FPGA=1', '--trait', 'CUSTOM_FAKE_DEVICE', '--dry-run']
    client = types.SimpleNamespace(sdk_connection=types.SimpleNamespace(accelerator=sdk))
    command = allocations.CreateAllocation(types.SimpleNamespace(client_manager=client), None)
    names, values = command.take_action(command.get_parser('create').parse_args(words))
    shown = dict(zip(names, values, strict=True))
    said = shown['alternatives'].human_readable()
    assert re.fullmatch(r'1 of FPGA with CUSTOM_FAKE_DEVICE: \d of \d \(.*disabled: 4.*\)', said)
    [counted] = shown['alternatives'].machine_readable()
    assert counted['requests'][0]['removed']['disabled'] == 4

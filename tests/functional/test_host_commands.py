# SPDX-License-Identifier: Apache-2.0
"""openstack accelerator host rename | delete and device delete, over the SDK."""

from osc_lib import exceptions
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.osc import devices
from cyborg_lite.osc import hosts
from tests import support
from tests.functional import test_quota_commands
from tests.functional import test_sdk

url, sdk, run = test_sdk.url, test_sdk.sdk, test_quota_commands.run


def silence(service):
    """Make the host down."""
    with service.database.writer() as session:
        session.execute(sa.update(model.Host).values(silent=True))


def test_a_host_that_is_down_is_renamed(run, service):
    service.profile()
    [arq] = service.arqs()
    provider = service.rows(model.Deployable)[0].rp_uuid
    assert service.api.bind(arq, provider=provider).status_int == 202
    silence(service)
    run(hosts.RenameHost, support.HOST, 'host-2')
    assert [row[0] for row in run(hosts.ListHosts)] == ['host-2']
    assert {device.hostname for device in service.rows(model.Device)} == {'host-2'}
    bound = service.api.get(f'/v2/accelerator_requests/{arq}').json
    assert (bound['state'], bound['hostname']) == ('Bound', 'host-2')
    assert bound['device_rp_uuid'] == provider


def test_the_refusal_to_rename_says_how_it_can_be_done(run, service):
    """Described hosts have no machine identity, so two of them are never one machine."""
    service.profile()
    [arq] = service.arqs()
    provider = service.rows(model.Deployable)[0].rp_uuid
    assert service.api.bind(arq, provider=provider).status_int == 202
    service.report(support.card('3b'), host='host-2')
    with pytest.raises(exceptions.CommandError, match='"cyborg-lite up", start that without this'):
        run(hosts.RenameHost, support.HOST, 'host-2')
    silence(service)
    with pytest.raises(exceptions.CommandError, match='accelerator host delete host-2"'):
        run(hosts.RenameHost, support.HOST, 'host-2')
    run(hosts.DeleteHost, 'host-2')
    run(hosts.RenameHost, support.HOST, 'host-2')
    service.report(support.card('3b'), support.card('c1', vendor='19e5'), host='host-2')
    bound = service.api.get(f'/v2/accelerator_requests/{arq}').json
    assert (bound['state'], bound['hostname']) == ('Bound', 'host-2')
    assert [row[0] for row in run(hosts.ListHosts)] == ['host-2']


def test_a_host_that_lacks_expected_devices_is_degraded(run, service):
    """The agent says it: see tests/unit/agent/test_drivers.py."""
    reason = '1 device found, 2 expected'
    drivers = {'fake': {'state': 'degraded', 'reason': reason, 'devices': 1}}
    service.report(support.card('3b'), drivers=drivers, digest='0' * 64)
    [host] = run(hosts.ListHosts)
    assert 'fake' in host[-1].human_readable()
    assert service.api.get(f'/v2/hosts/{support.HOST}').json['drivers'] == drivers


def test_a_host_that_is_down_is_deleted(run, service):
    with pytest.raises(exceptions.CommandError, match=f'Host {support.HOST} is up'):
        run(hosts.DeleteHost, support.HOST)
    silence(service)
    run(hosts.DeleteHost, support.HOST)
    for kind in model.Host, model.Device, model.Deployable:
        assert service.rows(kind) == []
    assert run(hosts.ListHosts) == []


def test_a_device_that_is_missing_is_deleted(run, service):
    missing, other = (device.uuid for device in service.rows(model.Device))
    service.report(support.card('c1', vendor='19e5'))
    with pytest.raises(exceptions.CommandError, match=f'{other} cannot be deleted'):
        run(devices.DeleteDevice, other)
    run(devices.DeleteDevice, missing)
    assert [device.uuid for device in service.rows(model.Device)] == [other]

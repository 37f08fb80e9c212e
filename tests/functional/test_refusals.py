# SPDX-License-Identifier: Apache-2.0
"""The error of a refused bind names the holders, and the next command."""

import pytest
import sqlalchemy as sa

from cyborg_lite import model
from tests import support

OTHER = '11111111-2222-4333-8444-555555555555'


@pytest.fixture
def refused(service):
    """Bind a request to the only provider; returns the status and the reason of the refusal."""
    service.report(support.card('3b', handles=2))
    service.profile()

    def refused(**more):
        [part] = service.rows(model.Deployable)
        [arq] = service.arqs()
        answer = service.api.bind(arq, provider=part.rp_uuid, **more)
        assert answer.status_int >= 400
        moves = service.api.get(f'/v2/accelerator_requests/{arq}/history').json['history']
        if moves[-1]['state'] == 'BindFailed':
            assert moves[-1]['reason'] == support.fault(answer)
        return answer.status_int, support.fault(answer)

    return refused


def hold(service, instance):
    [part] = service.rows(model.Deployable)
    [arq] = service.arqs()
    assert service.api.bind(arq, provider=part.rp_uuid, instance=instance).status_int == 202
    return arq


def test_holders_are_named(service, refused):
    arq = hold(service, OTHER)
    groups = [{'resources': {'FPGA': 1}}]
    allocation = service.api.post('/v2/allocations', {'groups': groups}).json['uuid']
    [device], [part] = service.rows(model.Device), service.rows(model.Deployable)
    shows = f'"openstack accelerator list --device {device.uuid}" shows each.'
    few = f'Resource provider {part.rp_uuid} has 0 free attach handle(s), and 1 were asked for. '
    own = f'instance {OTHER} (ARQ {arq}), allocation {allocation}'
    assert refused() == (404, f'{few}Held by {own}. {shows}')
    with service.database.writer() as session:
        of_another = sa.update(model.ARQ).where(model.ARQ.uuid == arq)
        session.execute(of_another.values(project_id='another'))
    own = f'allocation {allocation}, other projects (1 of them)'
    assert refused() == (404, f'{few}Held by {own}. {shows}')


def test_the_next_command_is_named(service, refused):
    [device] = service.rows(model.Device)
    status, said = refused(instance=OTHER, host='another')
    assert (status, 'not of another' in said) == (400, True)
    service.api.post(f'/v2/devices/{device.uuid}/disable')
    status, said = refused()
    assert status == 409
    assert f'is maintaining. "openstack accelerator enable {device.uuid}" enables it' in said
    service.api.post(f'/v2/devices/{device.uuid}/enable')
    service.report()
    status, said = refused()
    assert status == 409
    assert f'"openstack accelerator list --long --device {device.uuid}" shows' in said


def test_a_request_or_an_instance_that_is_bound(service, refused):
    arq = hold(service, OTHER)
    [part] = service.rows(model.Deployable)
    said = support.fault(service.api.bind(arq, provider=part.rp_uuid))
    assert said.endswith(f'with "openstack accelerator unbind {arq}".')
    status, said = refused(instance=OTHER)
    assert (status, f'"openstack accelerator list --instance {OTHER}" shows' in said) == (400, True)


def test_a_class_that_the_provider_does_not_give(service, refused):
    service.profile('other', PGPU=1)
    [arq] = service.arqs('other')
    [part] = service.rows(model.Deployable)
    said = support.fault(service.api.bind(arq, provider=part.rp_uuid))
    assert '"openstack accelerator list --free --resource-class PGPU" shows' in said
    [arq] = service.arqs('other')
    said = support.fault(service.api.bind(arq, provider=OTHER))
    assert '"openstack accelerator list --long" shows' in said

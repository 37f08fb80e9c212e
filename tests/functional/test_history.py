# SPDX-License-Identifier: Apache-2.0
"""The history of a request: each move with its time and reason."""

import pytest

from cyborg_lite import model
from tests import support

ARQS = '/v2/accelerator_requests'


@pytest.fixture
def provider(service):
    service.report(support.card(handles=2))
    service.profile()
    return service.rows(model.Deployable)[0].rp_uuid


def history(service, arq):
    answer = service.api.get(f'{ARQS}/{arq}/history')
    assert answer.status_int == 200, answer
    return answer.json['history']


def test_a_request_tells_each_of_its_moves(service, provider):
    [arq] = service.arqs()
    [created] = history(service, arq)
    assert created['at'] == service.api.get(f'{ARQS}/{arq}').json['created_at']
    answer = service.api.bind(arq, provider=provider, instance=support.INSTANCE)
    held = service.api.get(f'{ARQS}/{arq}').json['attach_handle_uuid']
    service.api.unbind(arq)
    first, bound, unbound = history(service, arq)
    assert first == created
    assert [move['state'] for move in (first, bound, unbound)] == ['Initial', 'Bound', 'Unbound']
    assert bound == bound | {
        'reason': None, 'hostname': support.HOST, 'device_rp_uuid': provider,
        'instance_uuid': support.INSTANCE, 'accelerator_uuid': held,
        'request_id': answer.headers['X-Openstack-Request-Id'],
    }  # fmt: skip
    assert created['at'] <= bound['at'] <= unbound['at']
    assert unbound['hostname'] is None


def test_a_request_that_could_not_be_bound_says_why(service, provider):
    service.profile('three', FPGA=3)
    arqs = service.arqs('three')
    refused = service.api.bind(*arqs, provider=provider)
    assert refused.status_int == 404
    for arq in arqs:
        _, failed = history(service, arq)
        assert failed['state'] == 'BindFailed'
        assert failed['reason'] == support.fault(refused)
        assert failed['hostname'] == support.HOST


def test_requests_that_are_unbound_at_once_tell_of_themselves(service, provider):
    service.profile('two', FPGA=2)
    arqs = service.arqs('two')
    assert service.api.bind(*arqs, provider=provider).status_int == 202
    assert service.api.unbind(*arqs).status_int == 202
    held = [history(service, arq)[1]['accelerator_uuid'] for arq in arqs]
    assert sorted(held) == sorted(handle.uuid for handle in service.rows(model.AttachHandle))
    assert [len(history(service, arq)) for arq in arqs] == [3, 3]


def test_a_history_is_bounded(service, provider):
    [arq] = service.arqs()
    for _ in range(model.ARQ.REMEMBERED // 2 + 1):
        service.api.bind(arq, provider=provider)
        service.api.unbind(arq)
    moves = history(service, arq)
    assert len(moves) == model.ARQ.REMEMBERED + 1
    assert [moves[0]['state'], moves[-1]['state']] == ['Initial', 'Unbound']


@pytest.mark.parametrize(
    ('path', 'status'),
    [
        (f'{ARQS}/{support.INSTANCE}/history', 404),
        (f'{ARQS}/no-uuid/history', 400),
        (f'{ARQS}/{support.INSTANCE}/history?limit=1', 400),
    ],
)
def test_errors_have_our_form(service, path, status):
    answer = service.api.get(path)
    assert answer.status_int == status
    [error] = answer.json['errors']
    assert error['status'] == status


def test_a_list_does_not_read_histories(service, provider):
    service.arqs()
    with service.statements() as statements:
        service.api.get(ARQS)
    assert not [each for each in statements if 'moves' in each]

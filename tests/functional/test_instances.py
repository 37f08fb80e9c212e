# SPDX-License-Identifier: Apache-2.0
"""Free accelerators of deleted instances; a stand-in answers like the real Nova.

The answers of the real Nova are in tests/integration/test_nova_boot.py.
"""

import pytest
import requests
import requests_mock

from cyborg_lite import model
from tests import support

NOVA = 'http://nova.invalid/v2.1'
CONF = (
    f'[nova]\nauth_type = admin_token\ntoken = t\nendpoint = {NOVA}\nendpoint_override = {NOVA}\n'
)
SERVER = f'{NOVA}/servers/{support.INSTANCE}'
#: a list is only a proof if it is of all projects and of this instance
SERVERS = f'{NOVA}/servers?all_tenants=1&uuid={support.INSTANCE}'
PATH = f'/v2/instances/{support.INSTANCE}'
GONE = {'status_code': 404, 'json': {'itemNotFound': {'code': 404}}}
NONE = {'status_code': 200, 'json': {'servers': []}}


@pytest.fixture
def nova():
    with requests_mock.Mocker() as made:
        made.post(f'{NOVA}/os-server-external-events', json={})
        yield made


def site(database_url, *files):
    """A service with a card of two accelerators, one of which the instance holds."""
    made = support.Service(database_url, files=files)
    made.report(support.card(handles=2))
    made.profile()
    [arq] = made.arqs()
    provider = made.rows(model.Deployable)[0].rp_uuid
    assert made.api.bind(arq, provider=provider, instance=support.INSTANCE).status_int == 202
    return made


@pytest.fixture
def service(tmp_path, database_url, nova):
    file = tmp_path / 'nova.conf'
    file.write_text(CONF)
    made = site(database_url, str(file))
    yield made
    made.stop()


def held(service):
    return [arq.instance_uuid for arq in service.rows(model.ARQ)]


def questions(nova):
    return [request.path for request in nova.request_history if request.method == 'GET']


def test_requests_of_a_deleted_instance_are_freed(service, nova):
    nova.get(SERVER, **GONE)
    nova.get(SERVERS, **NONE)
    [other] = service.arqs()  # which no instance holds
    answer = service.api.delete(PATH)
    assert (answer.status_int, answer.body) == (204, b'')
    assert [arq.uuid for arq in service.rows(model.ARQ)] == [other]
    assert questions(nova) == [f'/v2.1/servers/{support.INSTANCE}', '/v2.1/servers']
    again = service.api.delete(PATH)
    assert again.status_int == 404
    assert support.INSTANCE in support.fault(again)


@pytest.mark.parametrize(
    ('shown', 'listed', 'status', 'reason'),
    [
        ({'json': {'server': {}}}, NONE, 409, 'Compute API'),
        # The user is not an administrator, or the list has the instance.
        (GONE, {'status_code': 403}, 409, 'admin role'),
        (GONE, {'json': {'servers': [{'id': support.INSTANCE}]}}, 409, 'Compute API'),
        (GONE, GONE, 503, '404'),
        (GONE, {'status_code': 500}, 503, '500'),
        (GONE, {'text': '<html>'}, 503, 'list of servers'),
        (GONE, {'json': []}, 503, 'list of servers'),
        (GONE, {'json': {'servers': None}}, 503, 'list of servers'),
        (GONE, {'exc': requests.ConnectTimeout}, 503, 'Nova'),
        ({'exc': requests.ConnectionError}, NONE, 503, 'Nova'),
        ({'status_code': 401}, NONE, 503, '401'),
        ({'status_code': 403}, NONE, 503, '403'),
        ({'status_code': 503}, NONE, 503, '503'),
        ({'status_code': 302, 'headers': {'Location': SERVER + 'a'}}, NONE, 503, '302'),
        ({'status_code': 300}, NONE, 503, '300'),
    ],
)
def test_without_proof_nothing_is_freed(service, nova, shown, listed, status, reason):
    nova.get(SERVER, **shown)
    nova.get(SERVERS, **listed)
    answer = service.api.delete(PATH)
    assert answer.status_int == status, answer.text
    assert reason in support.fault(answer)
    assert held(service) == [support.INSTANCE]


def test_a_request_that_was_bound_meanwhile_stays(service, nova):
    """A request that was bound after the check is not deleted."""
    [old] = [arq.uuid for arq in service.rows(model.ARQ)]
    [late] = service.arqs()
    provider = service.rows(model.Deployable)[0].rp_uuid

    def rebind(_request, _context):
        service.api.unbind(old)
        assert (
            service.api.bind(late, provider=provider, instance=support.INSTANCE).status_int == 202
        )
        return {'servers': []}

    nova.get(SERVER, **GONE)
    nova.get(SERVERS, json=rebind)
    assert service.api.delete(PATH).status_int == 204
    assert {arq.uuid: arq.instance_uuid for arq in service.rows(model.ARQ)} == {
        old: None,
        late: support.INSTANCE,
    }


def test_without_nova_nothing_is_freed(database_url):
    service = site(database_url)
    try:
        answer = service.api.delete(PATH)
        assert answer.status_int == 409
        assert '[nova]' in support.fault(answer)
        assert held(service) == [support.INSTANCE]
    finally:
        service.stop()


def test_an_instance_is_named_by_a_uuid(service, nova):
    answer = service.api.delete('/v2/instances/one')
    assert answer.status_int == 400
    assert not questions(nova)

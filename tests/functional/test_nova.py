# SPDX-License-Identifier: Apache-2.0
"""The events for Nova, with a stand-in that records them."""

import json

import pytest
import requests_mock

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import manager
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests import support

URL = 'http://nova.invalid/v2.1'
EVENTS = f'{URL}/os-server-external-events'
CALLER = context.RequestContext(project_id='p', is_admin=True, overwrite=False)


class Bound:
    """A conductor with two requests, a card for them, and a Nova."""

    def __init__(self, directory, database_url):
        file = directory / 'cyborg_lite.conf'
        file.write_text(
            f'[nova]\nauth_type = admin_token\ntoken = t\nendpoint = {URL}\n'
            f'endpoint_override = {URL}\n'
            f'[database]\nconnection = {database_url}\n'
        )
        conf = options.load(files=[str(file)])
        self.database = engine.Database(conf)
        migration.upgrade(self.database.engine)
        self.manager = manager.Manager(conf, self.database)
        self.manager.report(
            CALLER,
            host='host-1',
            boot_id='boot-1',
            sequence=1,
            interval=3600,
            digest='1',
            devices=[support.card(handles=2).facts()],
            drivers={},
        )
        profile = {'name': 'two', 'groups': [{'resources:FPGA': '2'}]}
        self.manager.create_device_profile(CALLER, profile=profile)
        self.arqs = self.manager.create_arqs(CALLER, profile='two')
        with self.database.reader() as session:
            self.provider = session.query(model.Deployable).one().rp_uuid

    def bind(self, provider=None):
        self.manager.bind(CALLER, wishes=self.wishes(provider))

    def wishes(self, provider=None):
        return [
            {
                'uuid': arq,
                'hostname': 'host-1',
                'device_rp_uuid': provider or self.provider,
                'instance_uuid': support.INSTANCE,
                'project_id': 'p',
            }
            for arq in self.arqs
        ]

    def states(self):
        with self.database.reader() as session:
            return [arq.state for arq in session.query(model.ARQ)]

    def waiting(self):
        with self.database.reader() as session:
            return session.query(model.Message).count()

    def hurry(self):
        with self.database.writer() as session:
            for row in session.query(model.Message):
                row.due_at = row.created_at


@pytest.fixture
def nova():
    with requests_mock.Mocker() as made:
        yield made


@pytest.fixture
def bound(tmp_path, database_url):
    made = Bound(tmp_path, database_url)
    yield made
    made.database.close()


def events(arqs, status):
    return [
        {
            'name': 'accelerator-request-bound',
            'server_uuid': support.INSTANCE,
            'tag': arq,
            'status': status,
        }
        for arq in arqs
    ]


def told(nova):
    return [json.loads(request.text)['events'] for request in nova.request_history]


def test_one_call_tells_of_all_requests_of_an_instance(nova, bound):
    nova.post(EVENTS, json={}, status_code=200)
    bound.bind()
    support.send(bound.manager.outbox)
    assert told(nova) == [events(bound.arqs, 'completed')]
    assert nova.last_request.headers['OpenStack-API-Version'] == 'compute 2.82'


def test_a_failed_bind_is_told_too(nova, bound):
    nova.post(EVENTS, json={}, status_code=200)
    with pytest.raises(Exception) as raised:
        bound.bind(provider=support.INSTANCE)
    assert isinstance(raised.value.exc_info[1], exception.ProviderNotFound)
    support.send(bound.manager.outbox)
    assert told(nova) == [events(bound.arqs, 'failed')]
    assert bound.states() == ['BindFailed', 'BindFailed']


@pytest.mark.parametrize('status', [200, 207, 404, 422])
def test_nova_accepts_these_statuses(nova, bound, status):
    nova.post(EVENTS, json={}, status_code=status)
    bound.bind()
    support.send(bound.manager.outbox)
    assert len(nova.request_history) == 1
    assert not bound.waiting()


@pytest.mark.parametrize('status', [400, 401, 403, 500, 503])
def test_nova_is_told_again_and_the_bind_stands(nova, bound, status):
    nova.post(EVENTS, [{'status_code': status}, {'status_code': 200, 'json': {}}])
    bound.bind()
    assert support.send(bound.manager.outbox)
    assert not support.send(bound.manager.outbox), 'it is not due yet'
    bound.hurry()
    assert support.send(bound.manager.outbox)
    assert len(nova.request_history) == 2
    assert bound.states() == ['Bound', 'Bound']
    assert not bound.waiting()


def test_nova_is_not_told_of_a_failure_where_another_call_has_bound(nova, bound):
    """Of two equal calls one found nothing free, but the other one was bound first."""
    nova.post(EVENTS, json={}, status_code=200)
    bound.bind()
    with bound.manager.outbox.session() as session:
        binding.fail(session, CALLER, bound.wishes())
    support.send(bound.manager.outbox)
    assert told(nova) == [events(bound.arqs, 'completed')]

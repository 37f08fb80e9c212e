# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-status audit``: what is held and should not be, found and mended.

Placement is real; a stand-in answers like the real Nova, see tests/integration/test_nova_boot.py.
"""

import functools
import json
import re
import sys
import threading
import uuid

from placement.tests.functional.fixtures import placement as fixtures
import pytest
import requests
import requests_mock
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.cmd import audit as command
from cyborg_lite.cmd import status
from cyborg_lite.conductor import auditing
from tests import support
from tests.functional import test_instances
from tests.functional import test_placement
from tests.functional.test_instances import GONE
from tests.functional.test_instances import NONE
from tests.functional.test_instances import NOVA

INSTANCE = support.INSTANCE
SERVER, SERVERS = test_instances.SERVER, test_instances.SERVERS


@pytest.fixture
def nova():
    # All else is Placement, which is real.
    with requests_mock.Mocker(real_http=True) as made:
        made.post(f'{NOVA}/os-server-external-events', json={})
        yield made


@pytest.fixture
def audit(tmp_path, database_url, monkeypatch, capsys):
    """``audit(*words, between=...)``: the exit status, and what the command prints as JSON.

    ``between`` is called between the two looks.
    """

    def run(*words, between=lambda: None, files=()):
        own = tmp_path / 'audit.conf'
        own.write_text(f'[database]\nconnection = {database_url}\n')
        waits = []

        def wait(seconds):
            waits.append(seconds)
            between()

        arguments = [word for file in (own, *files) for word in ('--config-file', str(file))]
        arguments += ['audit', '-f', 'json', *words]
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite-status', *arguments])
        with monkeypatch.context() as patch:
            patch.setattr(command, 'run', functools.partial(command.run, wait=wait))
            code = status.main()
        assert waits in ([], [60])
        said = capsys.readouterr()
        assert code in (0, 1, 2), said.out
        return code, json.loads(said.out)

    return run


@pytest.fixture
def alone(database_url):
    """A service without Nova and Placement: two accelerators of a card, and a profile."""
    made = support.Service(database_url)
    made.report(support.card(handles=2))
    made.profile()
    yield made
    made.stop()


@pytest.fixture
def service(tmp_path, database_url, nova):
    """A service that an instance holds one of two accelerators of; and the file of its Nova."""
    file = tmp_path / 'nova.conf'
    file.write_text(test_instances.CONF)
    made = test_instances.site(database_url, str(file))
    made.file = file
    yield made
    made.stop()


def change(service, kind, uuid_, **values):
    """Change a row behind the back of the service."""
    with service.database.writer() as session:
        session.execute(sa.update(kind).where(kind.uuid == uuid_).values(values))


def held(service):
    return service.api.get('/v2/accelerators?state=held').json['accelerators']


def bound(service):
    [arq] = service.arqs()
    provider = service.rows(model.Deployable)[0].rp_uuid
    assert service.api.bind(arq, provider=provider).status_int == 202
    return arq


def allocated(service, amount=2):
    group = {'resources': {'FPGA': amount}}
    answer = service.api.post('/v2/allocations', {'groups': [group]})
    assert answer.status_int == 201, answer.text
    return answer.json['uuid']


def outcomes(said):
    return [(each['kind'], each['id'], each['outcome']) for each in said['findings']]


def test_nothing_is_found_where_all_is_well(alone, audit):
    bound(alone)
    allocated(alone, 1)
    code, said = audit()
    assert (code, said['findings'], said['unchecked']) == (0, [], [])
    assert said['notes'] == ['Nova is not configured: instances are not checked.']


def test_what_a_gone_instance_holds_is_freed(service, nova, audit):
    nova.get(SERVER, **GONE)
    nova.get(SERVERS, **NONE)
    [arq], [handle] = service.rows(model.ARQ), held(service)
    code, said = audit(files=[service.file])
    assert code == 1
    [finding] = said['findings']
    assert finding | {'problem': ''} == {
        'kind': 'instance',
        'id': INSTANCE,
        'problem': '',
        'requests': [arq.uuid],
        'accelerators': [handle['uuid']],
        'placement': {},
        'outcome': 'found',
    }
    assert held(service) == [handle]
    code, said = audit('--fix', files=[service.file])
    assert (code, outcomes(said)) == (0, [('instance', INSTANCE, 'mended')])
    assert (held(service), service.rows(model.ARQ)) == ([], [])
    assert [row.arq_uuid for row in service.rows(model.Usage)] == [arq.uuid]
    assert audit('--fix', files=[service.file]) == (0, {'findings': [], 'unchecked': [], 'notes': [
        'Placement is not configured: its allocations are not checked.']})  # fmt: skip


@pytest.mark.parametrize(
    ('shown', 'listed', 'reason'),
    [
        ({'status_code': 503}, NONE, '503'),
        ({'exc': requests.ConnectTimeout}, NONE, 'Nova cannot be used'),
        (GONE, {'status_code': 403}, 'admin role'),
        (GONE, {'json': {}}, 'list of servers'),
    ],
)
def test_what_nova_does_not_say_is_left(service, nova, audit, shown, listed, reason):
    nova.get(SERVER, **shown)
    nova.get(SERVERS, **listed)
    code, said = audit('--fix', files=[service.file])
    assert (code, said['findings']) == (2, [])
    [unchecked] = said['unchecked']
    assert reason in unchecked
    assert len(held(service)) == 1


def test_a_few_are_asked_at_once_and_no_more_after_an_error():
    together, asked = threading.Barrier(auditing.ASKED), []

    def ask(key):
        asked.append(key)
        if key < auditing.ASKED:
            together.wait(timeout=20)
        if key == 0 and fails:
            raise exception.Conflict(reason='away')
        return -key

    keys, fails = range(auditing.ASKED * 1000), False
    assert list(auditing._answers(ask, keys)) == [(key, -key) for key in keys]
    fails = True
    asked.clear()
    with pytest.raises(exception.Conflict):
        list(auditing._answers(ask, keys))
    assert len(asked) < len(keys)


def test_an_instance_that_is_seen_again_keeps_what_it_holds(service, nova, audit):
    """Nova knows it again at the second look."""
    nova.get(SERVER, **GONE)
    nova.get(SERVERS, **NONE)
    again = functools.partial(nova.get, SERVER, json={'server': {}})
    code, said = audit('--fix', between=again, files=[service.file])
    assert (code, said['findings']) == (0, [])
    assert len(held(service)) == 1


def test_nova_is_asked_once_more_before_anything_is_freed(service, nova, audit):
    nova.get(SERVER, [GONE, GONE, {'json': {'server': {}}}])
    nova.get(SERVERS, **NONE)
    code, said = audit('--fix', files=[service.file])
    assert code == 1
    assert outcomes(said) == [('instance', INSTANCE, 'left: Nova knows the instance now')]
    assert len(held(service)) == 1


def test_what_was_bound_between_the_looks_is_left(service, nova, audit):
    """It is a finding of one look only."""
    nova.get(SERVER, **GONE)
    nova.get(SERVERS, **NONE)

    def rebind():
        [arq] = [row.uuid for row in service.rows(model.ARQ)]
        service.api.unbind(arq)
        provider = service.rows(model.Deployable)[0].rp_uuid
        assert service.api.bind(arq, provider=provider, instance=INSTANCE).status_int == 202

    code, said = audit('--fix', between=rebind, files=[service.file])
    assert (code, outcomes(said)) == (1, [('instance', INSTANCE, 'left: it was found once')])
    assert len(held(service)) == 1


def test_a_bound_request_without_an_accelerator_is_unbound(alone, audit):
    arq, other = bound(alone), bound(alone)
    change(alone, model.ARQ, arq, attach_handle_id=None)
    code, said = audit()
    assert (code, outcomes(said)) == (1, [('request', arq, 'found')])
    assert said['findings'][0]['problem'] == 'the request is Bound and holds no accelerator'
    code, said = audit('--fix')
    assert (code, outcomes(said)) == (0, [('request', arq, 'mended')])
    assert {row.uuid: row.state for row in alone.rows(model.ARQ)} == {
        arq: 'Unbound',
        other: 'Bound',
    }
    assert audit()[0] == 0


@pytest.mark.parametrize(('state', 'kind'), [('Initial', 'request'), ('Deleting', 'deletion')])
def test_what_a_request_holds_that_is_not_bound_is_freed(alone, audit, state, kind):
    arq = bound(alone)
    change(alone, model.ARQ, arq, state=state)
    [handle] = held(alone)
    code, said = audit('--fix')
    assert (code, outcomes(said)) == (0, [(kind, arq, 'mended')])
    assert said['findings'][0]['accelerators'] == [handle['uuid']]
    assert held(alone) == []
    assert [row.accelerator_uuid for row in alone.rows(model.Usage)] == [handle['uuid']]


def test_an_allocation_that_has_lost_some_is_released(alone, audit):
    uuid_ = allocated(alone)
    lost = alone.rows(model.ARQ)[0]
    with alone.database.writer() as session:
        session.execute(sa.delete(model.ARQ).where(model.ARQ.id == lost.id))
    code, said = audit()
    assert (code, outcomes(said)) == (1, [('allocation', uuid_, 'found')])
    assert said['findings'][0]['problem'].endswith('holds 1 of its 2 accelerators')
    code, said = audit('--fix')
    assert (code, outcomes(said)) == (0, [('allocation', uuid_, 'mended')])
    shown = alone.api.get(f'/v2/allocations/{uuid_}').json
    assert (shown['state'], shown['reason']) == (
        'released', 'It had lost accelerators: an audit released it.')  # fmt: skip
    assert (held(alone), alone.rows(model.ARQ)) == ([], [])


def test_what_is_left_of_a_released_allocation_is_freed(alone, audit):
    uuid_ = allocated(alone)
    change(alone, model.Allocation, uuid_, state='released', active_name=None)
    code, said = audit()
    assert (code, outcomes(said)) == (1, [('leftover', uuid_, 'found')])
    assert len(said['findings'][0]['requests']) == len(said['findings'][0]['accelerators']) == 2
    code, said = audit('--fix')
    assert (code, outcomes(said)) == (0, [('leftover', uuid_, 'mended')])
    assert (held(alone), alone.rows(model.ARQ)) == ([], [])
    # Its own profile, which only its requests had.
    assert [row.name for row in alone.rows(model.DeviceProfile)] == ['profile-1']


def test_an_allocation_that_is_whole_at_the_second_look_is_left(alone, audit):
    uuid_ = allocated(alone)
    [first, _] = alone.rows(model.ARQ)
    change(alone, model.ARQ, first.uuid, attach_handle_id=None)
    mend = functools.partial(
        change, alone, model.ARQ, first.uuid, attach_handle_id=first.attach_handle_id
    )
    code, said = audit('--fix', between=mend)
    assert (code, said['findings']) == (0, [])
    assert alone.api.get(f'/v2/allocations/{uuid_}').json['state'] == 'active'


@pytest.mark.parametrize('kind', [auditing.ALLOCATION, auditing.LEFTOVER])
def test_what_mends_an_allocation_looks_once_more(alone, kind):
    """In its own transaction: this one is whole by then."""
    uuid_ = allocated(alone)
    sender = alone.manager.outbox
    auditor = auditing.Auditor(alone.conf, alone.database, sender)
    auditor.mend(auditing.Finding(kind, uuid_, 'it was not whole'))
    assert alone.api.get(f'/v2/allocations/{uuid_}').json['state'] == 'active'
    assert len(held(alone)) == 2


def test_a_database_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    (tmp_path / 'a.conf').write_text('[database]\nconnection = nonsense\n')
    monkeypatch.setattr(sys, 'argv', ['', '--config-file', str(tmp_path / 'a.conf'), 'audit'])
    assert status.main() == 2
    assert '[database] connection' in capsys.readouterr().err


def test_a_database_that_does_not_exist_is_not_created(tmp_path, monkeypatch, capsys):
    file = tmp_path / 'a.sqlite'
    (tmp_path / 'a.conf').write_text(f'[database]\nconnection = sqlite:///{file}\n')
    monkeypatch.setattr(sys, 'argv', ['', '--config-file', str(tmp_path / 'a.conf'), 'audit'])
    assert status.main() == 2
    said = capsys.readouterr().err
    assert said == f'cyborg-lite-status: [database] connection: there is no file {file}\n'
    assert not file.exists()


@pytest.fixture
def cloud(tmp_path, database_url, nova):
    """A conductor with Nova and Placement, and a card of 16 accelerators."""
    with fixtures.PlacementFixture() as real:
        made = test_placement.Cloud(tmp_path, database_url, real.endpoint, test_instances.CONF)
        made.add_root()
        made.report(test_placement.CARD)
        made.send()
        made.file = tmp_path / 'cyborg_lite.conf'
        yield made
        made.database.close()


@pytest.fixture
def consumer(nova, cloud):
    """``consumer(type)``: a consumer without requests, that Nova does not know as an instance."""

    def make(type_):
        made = cloud.allocate('FPGA', type_)
        nova.get(f'{NOVA}/servers/{made}', **GONE)
        nova.get(f'{NOVA}/servers?all_tenants=1&uuid={made}', **NONE)
        return made

    return make


def test_what_a_gone_instance_without_requests_has_in_placement_is_given_back(
    cloud, nova, audit, consumer
):
    gone, living = consumer('INSTANCE'), cloud.allocate('FPGA')
    nova.get(f'{NOVA}/servers/{living}', json={'server': {}})
    code, said = audit(files=[cloud.file])
    assert (code, outcomes(said)) == (1, [('instance', gone, 'found')])
    assert allocations(cloud, gone)['allocations']
    code, said = audit('--fix', files=[cloud.file])
    assert (code, outcomes(said)) == (0, [('instance', gone, 'mended')])
    assert allocations(cloud, gone)['allocations'] == {}
    assert allocations(cloud, living)['allocations'].keys() == {test_placement.RP_UUID}


def test_an_instance_without_requests_that_nova_knows_by_then_keeps_what_it_has(
    cloud, nova, audit, consumer
):
    seen = consumer('INSTANCE')
    known = lambda: nova.get(f'{NOVA}/servers/{seen}', json={'server': {}})  # noqa: E731
    audit('--fix', files=[cloud.file], between=known)
    assert allocations(cloud, seen)['allocations']


@pytest.mark.parametrize('answer', [{'status_code': 500}, {'text': '[]'}, {'text': 'x'}])
def test_a_consumer_whose_type_placement_does_not_tell_is_left(
    cloud, nova, audit, consumer, answer
):
    gone = consumer('INSTANCE')
    nova.get(re.compile(f'/allocations/{gone}$'), **answer)
    code, said = audit('--fix', files=[cloud.file])
    [(_, _, outcome)] = outcomes(said)
    assert (code, outcome.startswith('left: Placement cannot be used: ')) == (1, True)


@pytest.mark.parametrize('type_', ['MIGRATION', None])
def test_an_allocation_in_placement_without_requests_is_shown_and_left(
    cloud, nova, audit, consumer, type_
):
    """A migration has allocations, too, and Nova does not know it as an instance."""
    living = cloud.allocate('FPGA')
    nova.get(f'{NOVA}/servers/{living}', json={'server': {}})
    consumer = consumer(type_)
    code, said = audit('--fix', files=[cloud.file])
    assert code == 1
    [finding] = said['findings']
    assert finding['id'] == consumer
    assert finding['placement'] == {test_placement.RP_UUID: {'FPGA': 1}}
    assert finding['requests'] == []
    assert 'not a migration' in finding['outcome']
    assert f'allocation unset --provider <provider> {consumer}"' in finding['outcome']
    assert cloud.client.get(f'/allocations/{consumer}').json()['allocations']


@pytest.fixture
def instance(cloud, nova):
    """An instance that is gone, has a request, and an allocation in Placement beside another."""
    consumer = cloud.allocate('FPGA')
    ctxt = context.RequestContext(project_id='p', is_admin=True, overwrite=False)
    groups = [{'resources:FPGA': '1'}]
    cloud.manager.create_device_profile(ctxt, profile={'name': 'one', 'groups': groups})
    [arq] = cloud.manager.create_arqs(ctxt, profile='one')
    wish = {'uuid': arq, 'hostname': 'host-1', 'device_rp_uuid': test_placement.RP_UUID}
    wish |= {'instance_uuid': consumer, 'project_id': 'p'}
    cloud.manager.bind(ctxt, wishes=[wish])
    nova.get(f'{NOVA}/servers/{consumer}', **GONE)
    nova.get(f'{NOVA}/servers?all_tenants=1&uuid={consumer}', **NONE)
    return consumer


def allocations(cloud, consumer):
    return cloud.client.get(f'/allocations/{consumer}').json()


def test_requests_and_allocations_of_a_gone_instance_are_mended_together(cloud, audit, instance):
    code, said = audit(files=[cloud.file])
    [finding] = said['findings']
    assert (code, len(finding['requests'])) == (1, 1)
    assert finding['placement'] == {test_placement.RP_UUID: {'FPGA': 1}}
    assert list(allocations(cloud, instance)['allocations']) == [test_placement.RP_UUID]
    code, said = audit('--fix', files=[cloud.file])
    assert (code, outcomes(said)) == (0, [('instance', instance, 'mended')])
    assert allocations(cloud, instance)['allocations'] == {}
    with cloud.database.reader() as session:
        assert session.query(model.ARQ).count() == 0
    assert audit('--fix', files=[cloud.file])[1]['findings'] == []


def test_what_it_has_of_other_providers_stays(cloud, audit, instance):
    """Another service made it, and removes it."""
    root = str(uuid.uuid4())
    cloud.client.post('/resource_providers', json={'uuid': root, 'name': 'other'})
    inventory = {'resource_provider_generation': 0, 'inventories': {'VCPU': {'total': 4}}}
    cloud.client.put(f'/resource_providers/{root}/inventories', json=inventory)
    both = allocations(cloud, instance)
    both['allocations'][root] = {'resources': {'VCPU': 2}}
    both |= {'consumer_type': 'INSTANCE'}
    assert cloud.client.put(f'/allocations/{instance}', json=both).status_code == 204
    code, said = audit('--fix', files=[cloud.file])
    assert (code, outcomes(said)) == (0, [('instance', instance, 'mended')])
    left = allocations(cloud, instance)
    assert {uuid: each['resources'] for uuid, each in left['allocations'].items()} == {
        root: {'VCPU': 2}
    }
    assert left['consumer_type'] == 'INSTANCE'


@pytest.mark.parametrize(
    'answer', [{'status_code': 503}, {'exc': requests.ConnectionError}, {'json': []}]
)
def test_allocations_that_cannot_be_removed_are_told(cloud, nova, audit, instance, answer):
    nova.register_uri(requests_mock.ANY, re.compile(f'/allocations/{instance}$'), **answer)
    code, said = audit('--fix', files=[cloud.file])
    assert code == 1
    [finding] = said['findings']
    assert finding['outcome'].startswith('mended, but its allocations in Placement are left: ')
    assert f'allocation unset --provider <provider> {instance}"' in finding['outcome']
    with cloud.database.reader() as session:
        assert session.query(model.ARQ).count() == 0


def test_allocations_that_changed_meanwhile_are_left(cloud, nova, audit, instance):
    """Somebody else uses the consumer."""
    nova.put(re.compile(f'/allocations/{instance}$'), status_code=409, text='concurrent')
    code, said = audit('--fix', files=[cloud.file])
    assert code == 1
    assert 'HTTP 409: concurrent' in said['findings'][0]['outcome']
    assert allocations(cloud, instance)['allocations']


@pytest.mark.parametrize(
    'answer',
    [{'status_code': 503}, {'exc': requests.ConnectionError}, {'json': []}, {'text': 'html'}],
)
def test_placement_that_is_away_is_told(cloud, nova, audit, answer):
    nova.get(requests_mock.ANY, **answer)
    code, said = audit('--fix', files=[cloud.file])
    assert (code, said['findings']) == (2, [])
    assert said['unchecked'][0].startswith('Placement cannot be used: ')


def test_a_provider_that_placement_does_not_have_holds_nothing(cloud, audit):
    cloud.client.delete(f'/resource_providers/{test_placement.RP_UUID}')
    code, said = audit(files=[cloud.file])
    assert (code, said['findings']) == (0, [])


def test_the_table_shows_what_the_json_says(alone, tmp_path, monkeypatch, capsys, database_url):
    uuid_ = allocated(alone)
    change(alone, model.Allocation, uuid_, state='released', active_name=None)
    (tmp_path / 'a.conf').write_text(f'[database]\nconnection = {database_url}\n')
    monkeypatch.setattr(sys, 'argv', ['', '--config-file', str(tmp_path / 'a.conf'), 'audit'])
    assert status.main() == 1
    said = capsys.readouterr().out
    assert uuid_ in said
    for row in alone.rows(model.ARQ):
        assert row.uuid in said
    assert said.rstrip().endswith('Nova is not configured: instances are not checked.')

# SPDX-License-Identifier: Apache-2.0
"""The SQL statements and RPC calls of requests; and long lists are complete."""

import collections
import contextlib
import functools
import inspect
import unittest.mock

from oslo_middleware import base
from oslo_utils import uuidutils
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite.api import app
from cyborg_lite.conductor import taking
from cyborg_lite.db import accelerators
from cyborg_lite.db import candidates
from cyborg_lite.db import engine
from tests import support

MANY = 1000
ARQS = '/v2/accelerator_requests'


@contextlib.contextmanager
def calls():
    """The RPC calls of a block, by method names; the agent reports on its own."""
    seen = []
    plain = rpc.Peer.__getattr__

    def see(peer, method):
        if method != 'report':
            seen.append(method)
        return plain(peer, method)

    with unittest.mock.patch.object(rpc.Peer, '__getattr__', see):
        yield seen


@contextlib.contextmanager
def loaded():
    """The objects that SQLAlchemy makes in a block."""
    seen = []

    def see(row, _context):
        seen.append(row)

    event.listen(model.Base, 'load', see, propagate=True)
    try:
        yield seen
    finally:
        event.remove(model.Base, 'load', see)


@pytest.fixture(scope='module')
def crowded(databases):
    """A service with many rows of each kind; tests only read it."""
    with databases.empty() as url:
        made = support.Service(url)
        _crowd(made)
        yield made
        made.stop()


def _crowd(made):
    devices = [
        support.card(f'{n:03x}', handles=1, vendor=f'{n % 7:04x}', numa_node=(None, 0, 1)[n % 3])
        for n in range(MANY)
    ]
    made.report(*devices)
    groups = [{'resources:FPGA': '1'}]
    with made.database.writer() as session:
        session.add_all(
            model.DeviceProfile(name=f'p{n}', groups=groups, description=None if n % 3 else 'third')
            for n in range(MANY - 1)
        )
    made.profile(FPGA=MANY)
    made.arqs()
    [part] = made.api.get('/v2/deployables?limit=1').json['deployables']
    [arq] = made.api.get(f'{ARQS}?limit=1').json['arqs']
    common = {'project_id': 'p', 'groups': [], 'accelerators': [], 'digest': ''}
    with made.database.writer() as session:
        session.add_all(
            model.Allocation(name=None if n % 3 else f'a{n}', **common) for n in range(MANY)
        )
    assert made.api.bind(arq['uuid'], provider=part['rp_uuid']).status_int == 202


LISTS = {
    'devices': 'devices',
    'deployables': 'deployables',
    'attributes': 'attributes',
    'device_profiles': 'device_profiles',
    'accelerator_requests': 'arqs',
    'accelerators': 'accelerators',
    'allocations': 'allocations',
}


def walk(api, path, key):
    """The uuids of a list, page by page."""
    pages, seen = [], set()
    while path:
        answer = api.get(path)
        assert answer.status_int == 200
        page = [row['uuid'] for row in answer.json[key]]
        assert not seen.intersection(page), 'a row came twice'
        pages.append(page)
        seen.update(page)
        [path] = [link['href'] for link in answer.json.get(f'{key}_links', ())] or [None]
    return pages


@pytest.mark.parametrize('version', ['2.0', '2.3'])
@pytest.mark.parametrize(('name', 'key'), LISTS.items())
def test_a_list_of_many_takes_three_statements(crowded, name, key, version):
    api = crowded.api.at(version)
    with crowded.statements(but='outbox') as statements, calls() as made:
        answer = api.get(f'/v2/{name}').json
    assert len(answer[key]) == MANY
    assert len(statements) <= 3, statements
    assert made == []


@pytest.mark.parametrize(('name', 'key'), (LISTS | {'hosts': 'hosts'}).items())
def test_neither_a_list_nor_a_row_of_it_makes_an_object_of_a_row(crowded, name, key):
    with loaded() as objects:
        [row, *_] = crowded.api.get(f'/v2/{name}').json[key]
        assert (
            crowded.api.get(f'/v2/{name}/{row["name" if name == "hosts" else "uuid"]}').status_int
            == 200
        )
    assert objects == []


def test_a_list_looks_once_for_what_excludes_accelerators(crowded):
    with crowded.statements(but='outbox') as statements:
        crowded.api.get('/v2/accelerators')
    [listed] = [each for each in statements if 'reason' in each]
    assert 'state' not in listed.partition('FROM')[0]


@pytest.mark.parametrize(('name', 'key'), LISTS.items())
def test_each_page_takes_three_statements(crowded, name, key):
    first = crowded.api.get(f'/v2/{name}?limit=500').json
    [link] = first[f'{key}_links']
    with crowded.statements(but='outbox') as statements:
        second = crowded.api.get(link['href']).json
    assert len(second[key]) == 500
    assert len(statements) <= 3, statements
    # The database sends no more rows than are shown, whatever the size of the table.
    assert any('LIMIT' in each for each in statements)


@pytest.mark.parametrize(
    'query',
    ['devices?vendor=0001&hostname=host-1', 'attributes?key=rc', 'accelerator_requests?bind_state='
     'resolved', 'device_profiles?name=p1,p2,p3', 'accelerators?free=true&trait=CUSTOM_FAKE_DEVICE',
     'accelerators/summary'],
)  # fmt: skip
def test_a_filter_takes_no_statement_more(crowded, query):
    with crowded.statements(but='outbox') as statements:
        assert crowded.api.get(f'/v2/{query}').status_int == 200
    assert len(statements) <= 3, statements


@pytest.mark.parametrize('direction', ['asc', 'desc'])
@pytest.mark.parametrize(
    ('name', 'sort_key'),
    [
        ('devices', 'id'),
        ('devices', 'uuid'),
        ('devices', 'vendor'),
        ('devices', 'hostname'),
        ('devices', 'created_at'),
        ('devices', 'updated_at'),
        ('devices', 'status'),
        ('deployables', 'name'),
        ('deployables', 'bitstream_id'),
        ('attributes', 'key'),
        ('device_profiles', 'name'),
        ('device_profiles', 'description'),
        ('accelerators', 'state'),
        ('accelerators', 'reason'),
        ('accelerators', 'vendor'),
        ('accelerators', 'numa_node'),
        ('accelerators', 'held_since'),
        ('accelerators', 'idle_since'),
        ('allocations', 'name'),
        ('accelerator_requests', 'state'),
        ('accelerator_requests', 'instance_uuid'),
        ('accelerator_requests', 'updated_at'),
    ],
)
def test_a_walk_over_all_pages_loses_and_doubles_nothing(crowded, name, sort_key, direction):
    api = crowded.api.at('2.3')
    path = f'/v2/{name}?sort_key={sort_key}&sort_dir={direction}&limit='
    pages = walk(api, f'{path}137', LISTS[name])
    uuids = [uuid for page in pages for uuid in page]
    kind = {
        'allocations': model.Allocation,
        'attributes': model.Attribute,
        'accelerator_requests': model.ARQ,
    }.get(name)
    kind = kind or {'devices': model.Device, 'deployables': model.Deployable}.get(name)
    kind = accelerators.Accelerator if name == 'accelerators' else kind
    rows = crowded.rows(kind or model.DeviceProfile)
    assert collections.Counter(uuids) == collections.Counter(row.uuid for row in rows)
    assert [len(page) for page in pages[:-1]] == [137] * (len(pages) - 1)
    # The order does not depend on the size of pages.
    assert [uuid for page in walk(api, f'{path}1000', LISTS[name]) for uuid in page] == uuids
    known = {row.uuid: getattr(row, sort_key) for row in rows}
    values = [known[uuid] for uuid in uuids if known[uuid] is not None]
    assert values == sorted(values, reverse=direction == 'desc')
    assert [known[uuid] for uuid in uuids[: len(values)]] == values, 'nulls come last'


@pytest.mark.parametrize('limit', [1, 2, 999, 1000, 1001])
def test_pages_of_any_size_hold_all(crowded, limit):
    pages = walk(crowded.api, f'/v2/devices?vendor=0001&limit={limit}', 'devices')
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert len({uuid for page in pages for uuid in page}) == len(range(1, MANY, 7))


@pytest.mark.parametrize('count', [1, 10, 100])
def test_creating_requests_takes_eight_statements_and_one_call(service, count):
    service.profile(FPGA=count)
    with service.statements() as statements, calls() as made:
        assert len(service.arqs()) == count
    assert len(statements) <= 8, statements
    assert made == ['create_arqs']


def test_creating_requests_of_many_groups_takes_no_more(service):
    groups = [{'resources:FPGA': '2', 'resources:CUSTOM_NPU': '3'} for _ in range(10)]
    service.api.post('/v2/device_profiles', [{'name': 'groups', 'groups': groups}])
    with service.statements() as statements, calls() as made:
        assert len(service.arqs('groups')) == 50
    assert len(statements) <= 8, statements
    assert made == ['create_arqs']


@pytest.mark.parametrize('count', [1, 4, 16])
def test_binding_takes_five_statements_and_one_for_each(service, count):
    service.report(support.card(handles=16))
    service.profile(FPGA=count)
    arqs = service.arqs()
    provider = service.rows(model.Deployable)[0].rp_uuid
    with service.statements() as statements, calls() as made:
        answer = service.api.bind(*arqs, provider=provider, instance=support.INSTANCE)
    assert answer.status_int == 202
    assert {arq.state for arq in service.rows(model.ARQ)} == {'Bound'}
    # Only SQLite needs a BEGIN statement.
    sent = [each for each in statements if not each.startswith('BEGIN')]
    assert len(sent) <= 5 + count, sent
    assert made == ['bind']


def test_binding_costs_the_same_however_many_others_are_bound(service):
    service.report(support.card(handles=16))
    service.profile()
    provider = service.rows(model.Deployable)[0].rp_uuid
    costs = set()
    for _ in range(16):
        [arq] = service.arqs()
        with service.statements() as statements:
            assert service.api.bind(arq, provider=provider).status_int == 202
        costs.add(len(statements))
    assert len(costs) == 1


@pytest.mark.parametrize('count', [1, 4])
def test_the_whole_cycle_takes_25_statements_and_four_calls(service, count):
    """Nova's calls for an instance: create, bind, show, delete."""
    service.report(support.card(handles=16))
    service.profile(FPGA=count)
    provider = service.rows(model.Deployable)[0].rp_uuid
    with service.statements() as statements, calls() as made:
        arqs = service.arqs()
        bound = service.api.bind(*arqs, provider=provider, instance=support.INSTANCE)
        shown = service.api.get(f'{ARQS}?instance={support.INSTANCE}').json['arqs']
        gone = service.api.delete(f'{ARQS}?instance={support.INSTANCE}')
    assert [bound.status_int, gone.status_int] == [202, 204]
    assert [arq['state'] for arq in shown] == ['Bound'] * count
    assert service.rows(model.ARQ) == []
    assert len(statements) <= 25, statements
    assert len(made) <= 4, made


@pytest.mark.parametrize('count', [1, 100])
def test_deleting_requests_costs_the_same_for_any_number(service, count):
    service.profile(FPGA=count)
    arqs = service.arqs()
    with service.statements() as statements, calls() as made:
        assert service.api.delete(f'{ARQS}?arqs={",".join(arqs)}').status_int == 204
    assert service.rows(model.ARQ) == []
    assert len(statements) <= 4, statements
    assert made == ['delete_arqs']


@pytest.mark.parametrize('path', ['/v2/device_profiles', '/v2/hosts', '/v2'])
def test_a_request_inspects_no_signature(service, monkeypatch, path):
    """Libraries inspected signatures 18 times in each request."""
    assert service.api.get(path).status_int == 200
    inspected = []
    for name in ('getfullargspec', 'signature'):
        look = getattr(inspect, name)
        seen = functools.partial(_see, inspected, look)
        monkeypatch.setattr(inspect, name, seen)
        monkeypatch.setattr(base, name, seen, raising=False)
    assert service.api.get(path).status_int == 200
    assert inspected == []


def _see(seen, look, *args, **kwargs):
    seen.append(args)
    return look(*args, **kwargs)


@pytest.mark.parametrize('name', ['devices', 'deployables', 'attributes', 'hosts', 'accelerators'])
def test_a_row_is_read_by_the_same_statement_each_time(crowded, name):
    """A new statement costs twice as much, even if SQLAlchemy has compiled an equal one."""
    [row] = crowded.api.get(f'/v2/{name}?limit=1').json[name]
    executed = []

    def see(_connection, statement, *_):
        executed.append(statement)

    event.listen(crowded.database.engine, 'before_execute', see)
    try:
        for _ in range(2):
            path = f'/v2/{name}/{row["name" if name == "hosts" else "uuid"]}'
            assert crowded.api.get(path).status_int == 200
    finally:
        event.remove(crowded.database.engine, 'before_execute', see)
    reads = [each for each in executed if isinstance(each, sa.Select)]
    assert len(reads) >= 2
    assert reads[0] is reads[len(reads) // 2]


def test_a_request_opens_no_connection(service):
    service.api.get('/v2/devices')
    connected = []
    event.listen(service.database.engine, 'connect', lambda *_: connected.append(1))
    for _ in range(3):
        assert service.api.get('/v2/devices').status_int == 200
    assert connected == []


def hosts_of_eight(service, number):
    for n in range(number):
        cards = [support.card(f'{bus:02x}', numa_node=bus // 4) for bus in range(8)]
        service.report(*cards, host=f'host-{n}')


def sent(statements):
    """Without BEGIN, which only SQLite needs."""
    return [each for each in statements if not each.startswith('BEGIN')]


#: by how they are set, the project of limits
LIMITS = {'own': app.ALONE['X-Project-Id'], 'default': 'defaults'}


def limit(service, by):
    """Set limits that are far off, of the project itself or of all; or none."""
    if by in LIMITS:
        path, body = f'/v2/quotas/{LIMITS[by]}', {'limits': {'FPGA': 90, 'total': 90}}
        assert service.api.patch(path, body).status_int == 200
    # The first request of a project makes the row that is locked for all others.
    service.profile('first', FPGA=1)
    assert len(service.arqs('first')) == 1


def wait(service):
    """Have two requests wait for a whole host of which some is held."""
    for amount in (1, 8, 8):
        body = {'groups': [{'resources': {'FPGA': amount}}], 'hosts': ['host-0'], 'queue': True}
        assert service.api.post('/v2/allocations', body).status_int == 201
    service.settle()


@pytest.mark.parametrize('count', [1, 2, 8])
@pytest.mark.parametrize('by', ['profile', 'groups'])
@pytest.mark.parametrize('limits', ['none', *LIMITS])
@pytest.mark.parametrize('waits', ['', app.ALONE['X-Project-Id'], 'other'])
def test_an_allocation_takes_ten_statements_and_two_for_each_and_one_call(
    service, member, count, by, limits, waits
):
    """
    :param waits: the project of those that wait before it, if any do.
    """
    hosts_of_eight(service, 3)
    limit(service, limits)
    if waits:
        own = app.ALONE['X-Project-Id']
        member(waits, 'admin,member,reader')
        wait(service)
        member(own, 'admin,member,reader')
    service.profile(FPGA=count)
    body = {'profile': 'profile-1'} if by == 'profile' else {
        'groups': [{'resources': {'FPGA': count}}]
    }  # fmt: skip
    body |= {'name': 'a', 'lease': 60}
    key = {'Idempotency-Key': 'b'}
    with service.statements(but='outbox') as statements, calls() as made:
        answer = service.api.post('/v2/allocations', body, **key)
    assert answer.status_int == 201
    assert made == ['create_allocation']
    most = 10 + 2 * count
    if waits and limits != 'none' and not engine.has_one_writer(service.database.engine):
        # A server locks hosts, and counts once more under the lock of the project.
        most += 2 if waits == 'other' else 1
    assert len(sent(statements)) <= most, sent(statements)
    with service.statements(but='outbox') as statements, calls() as made:
        assert service.api.delete(f'/v2/allocations/{answer.json["uuid"]}').status_int == 204
    assert made == ['release_allocation']
    # It tells those that wait.
    assert len(sent(statements)) <= (10 if waits else 8), sent(statements)


@pytest.mark.parametrize('limits', ['none', *LIMITS])
@pytest.mark.parametrize('waits', [False, True])
@pytest.mark.parametrize('more', [{}, {'queue': True, 'possible': True}], ids=['', 'possible'])
def test_a_refused_allocation_takes_six_statements_and_one_call(service, limits, waits, more):
    hosts_of_eight(service, 40)
    limit(service, limits)
    if waits:
        wait(service)
    body = {'groups': [{'resources': {'FPGA': 9}}], 'name': 'a'} | more
    body['alternatives'] = [[{'resources': {'FPGA': n}}] for n in range(10, 18)]
    with service.statements(but='outbox') as statements, calls() as made:
        assert service.api.post('/v2/allocations', body).status_int == 409
    assert made == ['create_allocation']
    assert len(sent(statements)) <= 6, sent(statements)


@pytest.mark.parametrize('limits', LIMITS)
@pytest.mark.parametrize('by', ['profile', 'groups'])
def test_a_refusal_by_a_quota_takes_six_statements_and_one_call(service, limits, by):
    hosts_of_eight(service, 40)
    limit(service, limits)
    service.profile(FPGA=90)
    more = {'same_host': False, 'name': 'a'}
    wanted = {'groups': [{'resources': {'FPGA': 90}}]} if by == 'groups' else {
        'profile': 'profile-1'
    }  # fmt: skip
    with service.statements(but='outbox') as statements, calls() as made:
        assert service.api.post('/v2/allocations', wanted | more).status_int == 403
    assert made == ['create_allocation']
    assert len(sent(statements)) <= 6, sent(statements)


@pytest.mark.parametrize('by', ['profile', 'groups'])
@pytest.mark.parametrize('waits', [False, True])
@pytest.mark.parametrize('amount', [91, 1000])
def test_more_than_a_limit_is_not_queued_and_takes_six_statements(service, by, waits, amount):
    """Of 91 it is known that they are free: then the limits were read before."""
    hosts_of_eight(service, 14)
    limit(service, 'own')
    if waits:
        wait(service)
    service.profile(FPGA=amount)
    wanted = {'groups': [{'resources': {'FPGA': amount}}]} if by == 'groups' else {
        'profile': 'profile-1'
    }  # fmt: skip
    wanted |= {'same_host': False, 'name': 'a', 'queue': True}
    with service.statements(but='outbox') as statements, calls() as made:
        answer = service.api.post('/v2/allocations', wanted)
    assert answer.status_int == 403
    [told] = answer.json['errors'][0]['explanation']['alternatives']
    [asked] = told['requests']
    assert (asked['amount'], asked['left'], told['fits']) == (amount, 0, False)
    assert 'the limit is 90' in told['reason']
    assert made == ['create_allocation']
    assert len(sent(statements)) <= 6, sent(statements)


def test_an_allocation_reads_a_bounded_number_of_accelerators(service):
    """The statement that chooses among all hosts has a limit; that under their locks needs none."""
    hosts_of_eight(service, 2)
    with service.statements() as statements:
        body = {'groups': [{'resources': {'FPGA': 1}}]}
        assert service.api.post('/v2/allocations', body).status_int == 201
    first, second = [each for each in statements if 'kind0' in each]
    assert 'LIMIT' in first
    assert 'LIMIT' not in second


@pytest.mark.parametrize(('number', 'kept'), [(2, 1), (20, 0)])
def test_statements_of_few_terms_are_kept(service, number, kept):
    """Users choose the traits: those of many would fill the memory."""
    hosts_of_eight(service, 1)
    traits = {f'CUSTOM_{n}': 'forbidden' for n in range(number)}
    body = {'groups': [{'resources': {'FPGA': 1}, 'traits': traits}]}
    candidates._free.cache_clear()
    assert service.api.post('/v2/allocations?dry_run=true', body).status_int == 200
    assert candidates._free.cache_info().currsize == kept


def test_an_allocation_costs_the_same_however_many_others_there_are(service):
    hosts_of_eight(service, 2)
    costs = set()
    for _ in range(16):
        with service.statements() as statements:
            body = {'groups': [{'resources': {'FPGA': 1}}]}
            assert service.api.post('/v2/allocations', body).status_int == 201
        costs.add(len(statements))
    assert len(costs) == 1


HOSTS = 40
FREE = 10_000


@pytest.fixture
def vast(service):
    """A service with FREE free accelerators, on HOSTS hosts of two cards.

    ``vast(*numbers)`` links the cards of the hosts of these numbers.
    """
    cards = [support.card(f'{bus:02x}') for bus in range(2)]
    for n in range(HOSTS):
        service.report(*cards, host=f'host-{n:02}')
    parts = [row.id for row in service.rows(model.Deployable)]
    columns = {'attach_type': 'TEST_PCI', 'form': 'whole', 'lost': False}
    rows = [
        {
            'uuid': uuidutils.generate_uuid(),
            'deployable_id': part,
            'attach_info': {'n': n},
            **columns,
        }
        for part in parts
        for n in range(FREE // len(parts) - 1)
    ]
    linked = sa.update(model.Device)
    with service.database.writer() as session:
        session.execute(sa.insert(model.AttachHandle), rows)

    def link(*numbers):
        names = [f'host-{n:02}' for n in numbers]
        links = {'links': {card.address: 1 for card in cards}}
        with service.database.writer() as session:
            session.execute(linked.where(model.Device.hostname.in_(names)).values(topology=links))

    return link


@contextlib.contextmanager
def read():
    """The candidates that are read in a block."""
    made, plain = [], taking.candidate

    def see(*args):
        made.append(plain(*args))
        return made[-1]

    with unittest.mock.patch.object(taking, 'candidate', see):
        yield made


PAIR = {'groups': [{'resources': {'FPGA': 2}}], 'link': 'require'}
OTHER = {'resources': {'FPGA': 1}, 'traits': {'CUSTOM_OTHER': 'required'}}
#: what is asked for, the host whose cards have links, and how many of the free are read
VAST = {
    'links on the first host': (PAIR, 0, 272),
    'links on a later host': (PAIR, 14, 272 + 4112),
    'links on the last host': (PAIR, HOSTS - 1, 272 + 4112 + FREE),
    'an alternative that nothing fits': (
        {'groups': [OTHER], 'alternatives': [[{'resources': {'FPGA': 1}}]]}, 0, 264,
    ),
}  # fmt: skip


@pytest.mark.parametrize('waits', [False, True])
@pytest.mark.parametrize(('body', 'linked', 'most'), VAST.values(), ids=VAST)
def test_a_choice_among_many_reads_few(service, vast, body, linked, most, waits):
    """No more are read, and in three statements at most, if the first ones do."""
    vast(linked)
    if waits:
        # It waits for what is not there now, and keeps nothing of the rest.
        held = {'groups': [OTHER], 'queue': True}
        assert service.api.post('/v2/allocations', held).json['state'] == 'queued'
    with service.statements(but='outbox') as statements, read() as made:
        answer = service.api.post('/v2/allocations', body)
    assert answer.status_int == 201, answer.text
    if body is PAIR:
        assert {each['host'] for each in answer.json['accelerators']} == {f'host-{linked:02}'}
    choices = [each for each in statements if 'kind0' in each and 'hostname IN' not in each]
    of_host = FREE // HOSTS
    assert len(made) <= most * (2 if waits else 1) + of_host
    assert len(choices) <= (3 if not waits else 6), choices

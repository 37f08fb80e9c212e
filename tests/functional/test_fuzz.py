# SPDX-License-Identifier: Apache-2.0
"""Many generated requests, valid and invalid, by two personas.

Every answer is declared in /v2/openapi.json, and no answer shows data of another project.
FUZZ_SEED=N asks for other requests than those of every run, and FUZZ_REQUESTS=20000 for more of
them.
"""

import collections
import os
import uuid

from hypothesis import strategies as st
from oslo_middleware import request_id
import pytest
import schemathesis
from schemathesis.specs.openapi import checks

from cyborg_lite import model
from cyborg_lite.api import app
from cyborg_lite.api import openapi
from cyborg_lite.api import version
from tests import support

SEED = int(os.environ.get('FUZZ_SEED', '1'))
#: the minimum number of requests of both personas
REQUESTS = int(os.environ.get('FUZZ_REQUESTS', '1000'))
#: the minimum number of requests of each persona for each operation
LEAST = REQUESTS // (2 * len(openapi.ROUTES)) + 1
#: the requests that are generated for each operation, beside those at the boundaries
EXAMPLES = LEAST

VERSIONS = [version.text(each) for each in version.VERSIONS]
ARQS = '/v2/accelerator_requests'
ADMINS, MEMBERS = app.ALONE['X-Project-Id'], 'f' * 32
#: The projects whose limits are changed; no persona is in them.
QUOTAS = {'p', 'q'}
#: Operations that need a driver that programs, or Nova: this service has neither.
NEVER = {
    'DELETE /v2/instances/{uuid}',
    'PATCH /v2/deployables/{uuid}/program',
    'PATCH /v2/deployables/{uuid}/program/{again}',
}
IDENTITY = {
    'HTTP_X_USER_ID': 'member',
    'HTTP_X_PROJECT_ID': MEMBERS,
    'HTTP_X_ROLES': 'member,reader',
}


def member_of(service):
    """The API for a member of another project, with the headers of keystonemiddleware."""
    front = app.Front(service.conf, service.database, service.embedded.bus)

    def identified(environ, start_response):
        return front(environ | IDENTITY, start_response)

    limit = service.conf.api.max_request_body_size
    return request_id.RequestId(app.with_errors_in_one_form(app.SizeLimit(identified, limit)))


#: The environ of a local request in a web server.
LOCAL = {'REMOTE_ADDR': '127.0.0.1', 'HTTP_HOST': 'localhost'}


class World:
    """A service with rows of two projects; deleted rows are created again."""

    def __init__(self, database_url):
        self.service = support.Service(database_url)
        self.apps = {'admin': self.service.embedded.application, 'member': member_of(self.service)}
        self.apis = [support.Api(support.local(each)) for each in self.apps.values()]
        self._changed = set()
        self.seen = collections.defaultdict(collections.Counter)
        self.secrets = set()
        self.refill()

    def refill(self):
        rows, [admin, _] = self.service.rows, self.apis
        if len(rows(model.Attribute)) < 4:
            cards = [support.card(bus, handles=8) for bus in ('3b', '3c')]
            self.service.report(*cards, host='host-1.example.com', digest=str(uuid.uuid4()))
        self._lose()
        for device in rows(model.Device):
            if device.status != 'enabled':
                admin.post(f'/v2/devices/{device.uuid}/enable')
        for name in {'one', 'three'} - {profile.name for profile in rows(model.DeviceProfile)}:
            groups = [{'resources:FPGA': {'one': 1, 'three': 3}[name]}]
            admin.post('/v2/device_profiles', [{'name': name, 'groups': groups}])
        if len(rows(model.ARQ)) > 100:
            with self.service.database.writer() as session:
                session.query(model.ARQ).filter_by(allocation_uuid=None).delete()
        self._limit(admin)
        self._add(admin)
        self._release(admin)
        self._hold(admin)
        self._spare(admin)
        for api, project in zip(self.apis, (ADMINS, MEMBERS), strict=True):
            if sum(arq.project_id == project for arq in rows(model.ARQ)) < 4:
                made = api.post(ARQS, {'device_profile_name': 'three'}).json['arqs']
                api.bind(made[0]['uuid'], provider=rows(model.Deployable)[0].rp_uuid)
        self._learn()

    def _limit(self, admin):
        """Ensure that projects have limits."""
        for project in QUOTAS - {quota.project_id for quota in self.service.rows(model.Quota)}:
            admin.patch(f'/v2/quotas/{project}', {'limits': {'total': 1}})

    def _add(self, admin):
        """Ensure that an attribute exists that can be deleted: those of drivers cannot."""
        attributes = self.service.rows(model.Attribute)
        if not any(each.added for each in attributes):
            sound = {'deployable_id': attributes[0].deployable_id, 'value': 'v'}
            admin.post('/v2/attributes', sound | {'key': f'key-{uuid.uuid4()}'})

    def _spare(self, admin):
        """Ensure that an unused profile exists: only such can be deleted."""
        used = {arq.device_profile_id for arq in self.service.rows(model.ARQ)}
        if all(profile.id in used for profile in self.service.rows(model.DeviceProfile)):
            sound = {'name': f'spare-{uuid.uuid4()}', 'groups': [{'resources:FPGA': 1}]}
            admin.post('/v2/device_profiles', [sound])

    def _release(self, admin):
        """Ensure that an accelerator is free."""
        if len(self.service.rows(model.Allocation)) > 4:
            for each in self.service.rows(model.Allocation):
                admin.delete(f'/v2/allocations/{each.uuid}')
            with self.service.database.writer() as session:
                session.query(model.Allocation).delete()

    def _hold(self, admin):
        """Ensure that an allocation is active."""
        if not any(each.state == 'active' for each in self.service.rows(model.Allocation)):
            admin.post('/v2/allocations', {'profile': 'one'})

    def _lose(self):
        """Ensure that a missing device and hosts that are down exist."""
        rows, report = self.service.rows, self.service.report
        if not any(device.absences for device in rows(model.Device)):
            for cards in ([support.card('4b'), support.card('4c')], [support.card('4b')]):
                report(*cards, host='host-2', digest=str(uuid.uuid4()))
        while sum(host.state == 'down' for host in rows(model.Host)) < 2:
            name = f'host-{uuid.uuid4()}'
            report(support.card('5b'), host=name)
            with self.service.database.writer() as session:
                session.query(model.Host).filter_by(name=name).update({'silent': True})

    def _learn(self):
        arqs = self.service.rows(model.ARQ)
        profiles = self.service.rows(model.DeviceProfile)
        self.known = {
            'accelerator_requests': [arq.uuid for arq in arqs],
            'instance': [arq.instance_uuid for arq in arqs if arq.instance_uuid],
            'instances': [arq.instance_uuid for arq in arqs if arq.instance_uuid],
            'device_profiles': [x for row in profiles for x in (row.uuid, row.name)],
            'accelerators': [row.uuid for row in self.service.rows(model.AttachHandle)],
            'allocations': [row.uuid for row in self.service.rows(model.Allocation)],
            'hosts': [host.name for host in self.service.rows(model.Host)],
            'quotas': sorted(QUOTAS),
            'rp': [part.rp_uuid for part in self.service.rows(model.Deployable)],
        }
        for kind in (model.Device, model.Deployable, model.Attribute):
            self.known[kind.__tablename__] = [row.uuid for row in self.service.rows(kind)]
        # Few devices can be deleted: they are drawn as often as the others.
        missing = [row.uuid for row in self.service.rows(model.Device) if row.absences]
        self.known['devices'] += missing * len(self.known['devices'])
        active = [row.uuid for row in self.service.rows(model.Allocation) if row.state == 'active']
        self.known['allocations'] += active * len(self.known['allocations'])
        # Requests of an allocation can only be changed through it.
        alone = [arq.uuid for arq in arqs if arq.allocation_uuid is None]
        self.known['accelerator_requests'] += alone * 3
        added = [row.uuid for row in self.service.rows(model.Attribute) if row.added]
        self.known['attributes'] += added * len(self.known['attributes'])
        theirs = [arq for arq in arqs if arq.project_id != MEMBERS]
        self.secrets = {ADMINS, *(x for arq in theirs for x in (arq.uuid, arq.instance_uuid) if x)}

    def some(self, kind, number):
        rows = self.known.get(kind) or [str(uuid.UUID(int=number))]
        return rows[number % len(rows)]

    def about_what_is(self, case, number):
        """The case unchanged, or with existing rows, at any version."""
        number, chosen = divmod(number, 2)
        if not chosen:
            return case
        case.headers[version.HEADER] = f'accelerator {VERSIONS[number % len(VERSIONS)]}'
        return self._about(case, number)

    def _about(self, case, number):
        """The case with existing rows."""
        self._changed.add(case.id)
        kind = case.path.split('/')[2]
        for name in case.path_parameters:
            case.path_parameters[name] = self.some(kind, number)
        lists = {'arqs': 'accelerator_requests', 'value': 'device_profiles', 'marker': kind}
        for name in set(case.query) & {'instance', *lists}:
            case.query[name] = self.some(lists.get(name, name), number)
        if case.path == ARQS and case.method == 'POST':
            case.body = {'device_profile_name': self.some('device_profiles', number)}
        if case.path.startswith(ARQS) and case.method == 'PATCH':
            uuid_ = case.path_parameters.get('uuid') or self.some(kind, number)
            case.body = {uuid_: self._patch(number // 8)}
        case.body = self._body(case, kind, number)
        return case

    def _body(self, case, kind, number):
        """A valid body, if there is one for this kind of request."""
        return {
            ('PATCH', 'hosts'): {'name': f'host-{number}'},
            ('POST', 'attributes'): {'deployable_id': 1, 'key': f'key{number}', 'value': ''},
            ('POST', 'allocations'): {'profile': self.some('device_profiles', number)},
            ('PATCH', 'allocations'): {'lease': 3600},
            ('PATCH', 'quotas'): {'limits': {'total': number}},
        }.get((case.method, kind), case.body)

    def _patch(self, number):
        if number % 3 == 0:
            return [{'path': '/hostname', 'op': 'remove'}]
        taken = self.some('instance', number)
        instance = taken if number % 3 == 1 else str(uuid.UUID(int=number))
        return support.wish(self.some('rp', number), 'host-1', instance)

    def insist(self, label):
        """Try an operation with one existing row after the other, until it succeeds."""
        method, path = label.split()
        operation = ADMIN.schema[path][method]
        names = [each.name for each in operation.query] if operation.method == 'delete' else []
        for number in range(500):
            query = {name: '' for name in names[number % (len(names) or 1) :][:1]}
            parts = dict.fromkeys((each.name for each in operation.path_parameters), '')
            body = {'body': {}, 'media_type': 'application/json'} if operation.body else {}
            case = self._about(operation.Case(path_parameters=parts, query=query, **body), number)
            if label == 'POST /v2/device_profiles':
                case.body = [{'name': f'new-{number}', 'groups': [{'resources:FPGA': 1}]}]
            self.ask(case, 'admin')
            if self.granted('admin', label):
                return True
        return False

    def granted(self, persona, label):
        return {200, 201, 202, 204} & set(self.seen[persona, label])

    def ask(self, case, persona, *more):
        if case.id not in self._changed and is_strict(case):
            more += (checks.negative_data_rejection,)
        answer = case.call_and_validate(checks=[*CHECKS, *more])
        seen = answer.status_code if case.method == case.operation.method.upper() else 'undeclared'
        self.seen[persona, case.operation.label][seen] += 1
        if case.method != 'GET' and answer.status_code < 300:
            self.refill()


def is_strict(case):
    """Whether all input that the document does not allow is refused."""
    # Versions of other services are not for us to refuse.
    known = [None, *(f'accelerator {each}' for each in (*VERSIONS, 'latest'))]
    return case.headers.get(version.HEADER) in known


def no_server_error(context, answer, case):
    """Fail on 500, except the answers that Tempest asserts."""
    wart = answer.status_code == 500 and case.operation.label == 'POST /v2/device_profiles'
    assert answer.status_code < 500 or wart, answer.text


CHECKS = [
    no_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


class Persona:
    """The document and its requests; the application comes when the tests run."""

    def __init__(self, name):
        self._name = name
        self.world = None
        config = schemathesis.Config(seed=SEED)
        config.projects.default.generation.update(max_examples=EXAMPLES, database='none')
        document = schemathesis.openapi.from_dict(openapi.document(), config=config)
        document.app = self
        self.schema = document.exclude(path=list(openapi.DOCUMENTS))

        @self.schema.hook
        def before_generate_case(context, strategy):
            numbered = st.tuples(strategy, st.integers(0, 1000))
            return numbered.map(lambda drawn: self.world.about_what_is(*drawn))

    def __call__(self, environ, start_response):
        # The client is on this machine.
        return self.world.apps[self._name](environ | LOCAL, start_response)


ADMIN, MEMBER = Persona('admin'), Persona('member')


@pytest.fixture(scope='module')
def world(databases):
    with databases.empty() as url:
        made = World(url)
        ADMIN.world = MEMBER.world = made
        yield made
        print(f'FUZZ_SEED={SEED}', *made.seen.items(), sep='\n')
        for (persona, label), seen in list(made.seen.items()):
            assert sum(seen.values()) >= LEAST, label
            # All random requests may have been refused.
            if persona == 'admin' and not made.granted(persona, label):
                assert label in NEVER or made.insist(label), label
        made.service.stop()


@ADMIN.schema.parametrize()
def test_an_admin_gets_what_is_declared(case, world):
    world.ask(case, 'admin')


@MEMBER.schema.parametrize()
def test_a_member_is_shown_nothing_of_another_project(case, world):
    def no_secret(context, answer, case):
        shown = {secret for secret in world.secrets if secret in answer.text}
        sent = f'{answer.request.url} {answer.request.body}'
        assert not {secret for secret in shown if secret not in sent}

    world.ask(case, 'member', no_secret)

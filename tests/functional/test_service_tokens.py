# SPDX-License-Identifier: Apache-2.0
"""Only Nova may change requests of an instance; all parts except Keystone are real.

keystonemiddleware's own fixture validates tokens.
"""

import uuid

from keystonemiddleware import fixture
import pytest
import sqlalchemy as sa

from cyborg_lite import model
from tests import support

ARQS = '/v2/accelerator_requests'
PROJECTS = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name).hex for name in 'ab'}
PERSONAS = {
    'admin': ['admin', 'manager', 'member', 'reader'],
    'member': ['member', 'reader'],
    'reader': ['reader'],
    'service': ['service'],
}
NONE = str(uuid.UUID(int=910))


@pytest.fixture
def authtoken():
    """The options of keystonemiddleware: a test may replace them."""
    return ''


@pytest.fixture
def site(database_url, tmp_path, authtoken):
    """A service behind Keystone, with a card of eight accelerators."""
    (tmp_path / 'conf').write_text(f'[keystone_authtoken]\n{authtoken}\n')
    with fixture.AuthTokenFixture() as keystone:
        for project, id in PROJECTS.items():
            for persona, roles in PERSONAS.items():
                keystone.add_token_data(
                    token_id=f'{persona}-{project}', project_id=id, role_list=roles
                )
        files = [str(tmp_path / 'conf')]
        made = support.Service(database_url, files=files, api__auth_strategy='keystone')
        made.report(support.card(handles=8))
        made.provider = made.rows(model.Deployable)[0].rp_uuid
        admin = ask(made, 'admin')
        groups = [{'resources:FPGA': '1'}]
        assert admin.post('/v2/device_profiles', [{'name': 'one', 'groups': groups}]).status_int
        yield made
        made.stop()


def ask(site, persona, project='a', service=None, **more):
    """The API for a persona.

    :param service: the persona of project b whose service token is sent.
    """
    headers = {'X-Auth-Token': f'{persona}-{project}'} | more
    if service:
        headers['X-Service-Token'] = f'{service}-b'
    return support.Api(site.api._app, **headers)


def nova(site, persona='member', project='a'):
    """The API for Nova with the token of a persona."""
    return ask(site, persona, project, service='service')


def create(site, persona='member', project='a'):
    answer = nova(site, persona, project).post(ARQS, {'device_profile_name': 'one'})
    [arq] = answer.json['arqs']
    return arq['uuid']


def bind(site, arq, *who, instance=support.INSTANCE):
    answer = nova(site, *who).bind(arq, provider=site.provider, instance=instance)
    assert answer.status_int == 202, answer.text


def hold(site, *who, instance=support.INSTANCE):
    """A request that the instance holds."""
    arq = create(site, *who)
    bind(site, arq, *who, instance=instance)
    return arq


def of_instance(api, instance=support.INSTANCE):
    return [arq['uuid'] for arq in api.get(f'{ARQS}?instance={instance}').json['arqs']]


def evacuate(site):
    """Evacuate the instance, like Nova with an administrator of another project."""
    assert nova(site, 'admin', 'b').delete(f'{ARQS}?instance={support.INSTANCE}').status_int == 204
    return hold(site, 'admin', 'b')


def project(site, arq):
    [row] = [row for row in site.rows(model.ARQ) if row.uuid == arq]
    return {id: name for name, id in PROJECTS.items()}[row.project_id]


def gone(site):
    """Whether no request and no held accelerator is left."""
    return site.rows(model.ARQ) == []


# An evacuated instance


def test_the_requests_of_an_evacuated_instance_stay_its_projects(site):
    hold(site)
    arq = evacuate(site)
    assert project(site, arq) == 'a'
    assert of_instance(ask(site, 'reader')) == [arq]
    assert of_instance(nova(site)) == [arq]


def test_an_evacuated_instance_is_deleted_as_its_owner(site):
    hold(site)
    evacuate(site)
    assert nova(site).delete(f'{ARQS}?instance={support.INSTANCE}').status_int == 204
    assert gone(site)


def test_an_instance_is_evacuated_many_times(site):
    hold(site)
    for _ in range(3):
        arq = evacuate(site)
    assert project(site, arq) == 'a'


@pytest.mark.parametrize('way', ['?arqs={}', '/{}', 'unbind'])
def test_an_instance_keeps_its_owner_after_any_release(site, way):
    arq = hold(site)
    if way == 'unbind':
        assert nova(site, 'admin', 'b').unbind(arq).status_int == 202
    else:
        assert nova(site, 'admin', 'b').delete(ARQS + way.format(arq)).status_int == 204
    assert project(site, hold(site, 'admin', 'b')) == 'a'


def test_an_administrator_can_name_the_owner(site):
    hold(site)
    assert nova(site).delete(f'{ARQS}?instance={support.INSTANCE}').status_int == 204
    arq = create(site, 'admin', 'b')
    patch = support.wish(site.provider, support.HOST, support.INSTANCE)
    patch.append({'path': '/project_id', 'op': 'add', 'value': PROJECTS['b']})
    assert nova(site, 'admin', 'b').at('2.1').patch(ARQS, {arq: patch}).status_int == 202
    assert project(site, arq) == 'b'


def test_a_new_instance_belongs_to_the_caller(site):
    """There is no other information: Nova boots with the owner's token."""
    assert project(site, hold(site, 'admin', 'b')) == 'b'


def test_other_instances_are_others(site):
    hold(site)
    evacuate(site)
    assert project(site, hold(site, 'admin', 'b', instance=NONE)) == 'b'


# Nova finds all requests of an instance, with any user token


@pytest.fixture
def foreign(site):
    """A request of project b that an instance holds."""
    return hold(site, 'admin', 'b')


def test_nova_sees_the_requests_of_an_instance(site, foreign):
    assert of_instance(nova(site)) == [foreign]
    assert nova(site).get(f'{ARQS}/{foreign}').status_int == 200
    resolved = f'{ARQS}?instance={support.INSTANCE}&bind_state=resolved'
    assert len(nova(site).get(resolved).json['arqs']) == 1


@pytest.mark.parametrize('way', ['?arqs={arq}', '/{arq}', '?instance={instance}'])
def test_nova_deletes_the_requests_of_an_instance(site, foreign, way):
    path = ARQS + way.format(arq=foreign, instance=support.INSTANCE)
    assert nova(site).delete(path).status_int == 204
    assert gone(site)


def test_nova_unbinds_the_requests_of_an_instance(site, foreign):
    assert nova(site).unbind(foreign).status_int == 202
    [row] = site.rows(model.ARQ)
    assert (row.state, row.attach_handle_id, row.project_id) == ('Unbound', None, PROJECTS['b'])


def test_nova_sees_nothing_else_of_another_project(site):
    """The same holds for a tenant that makes Nova call the API."""
    arq = create(site, 'member', 'b')
    for answer in (
        nova(site).get(f'{ARQS}/{arq}'),
        nova(site).delete(f'{ARQS}/{arq}'),
        nova(site).delete(f'{ARQS}?arqs={arq}'),
        nova(site).unbind(arq),
        nova(site).bind(arq, provider=site.provider),
    ):
        assert answer.status_int == 404
    [row] = site.rows(model.ARQ)
    assert (row.state, row.revision) == ('Initial', 0)


def test_nova_lists_the_projects_own(site, foreign):
    mine = create(site)
    assert [arq['uuid'] for arq in nova(site).get(ARQS).json['arqs']] == [mine]


# Without a service token


def test_requests_of_a_foreign_instance_are_not_found(site, foreign):
    api = ask(site, 'member')
    assert of_instance(api) == []
    for path in (f'{ARQS}/{{}}', f'{ARQS}?arqs={{}}'):
        mine, none = (api.delete(path.format(arq)) for arq in (foreign, NONE))
        assert (mine.status_int, mine.text) == (404, none.text.replace(NONE, foreign))
    mine, none = (api.get(f'{ARQS}/{arq}') for arq in (foreign, NONE))
    assert (mine.status_int, mine.text) == (404, none.text.replace(NONE, foreign))
    [row] = site.rows(model.ARQ)
    assert row.state == 'Bound'


@pytest.mark.parametrize('header', ['X-Service-Roles', 'X-Roles', 'X-Project-Id'])
def test_identity_headers_of_a_caller_are_ignored(site, foreign, header):
    value = {'X-Project-Id': PROJECTS['b']}.get(header, 'service,admin')
    api = ask(site, 'member', **{header: value})
    assert of_instance(api) == []
    assert api.unbind(foreign).status_int == 403
    assert api.delete(f'{ARQS}?instance={support.INSTANCE}').status_int == 403
    assert api.delete(f'{ARQS}/{foreign}').status_int == 404


@pytest.mark.parametrize('persona', ['admin', 'member', 'service'])
def test_requests_of_an_instance_need_a_service_token(site, persona):
    arq = hold(site)
    api = ask(site, persona)
    answers = [api.unbind(arq), api.delete(f'{ARQS}?instance={support.INSTANCE}')]
    answers += [api.bind(create(site), provider=site.provider)]
    assert [answer.status_int for answer in answers] == [403] * 3
    assert all('requires a service token' in support.fault(answer) for answer in answers)
    for path in (f'{ARQS}/{arq}', f'{ARQS}?arqs={arq}'):
        answer = api.delete(path)
        assert answer.status_int == 403
        assert support.fault(answer).startswith(f'ARQ {arq} is bound to instance')
    [row] = [row for row in site.rows(model.ARQ) if row.uuid == arq]
    assert row.state == 'Bound'


@pytest.mark.parametrize('role', ['member', 'admin'])
@pytest.mark.parametrize('authtoken', ['service_token_roles_required = false'])
def test_a_service_token_of_another_role_does_not_vouch(site, role):
    """The middleware accepts such tokens if it is configured so."""
    arq = hold(site)
    api = ask(site, 'member', service=role)
    answers = [api.unbind(arq), api.delete(f'{ARQS}?instance={support.INSTANCE}')]
    assert [answer.status_int for answer in answers] == [403] * 2
    assert all('requires a service token' in support.fault(answer) for answer in answers)
    [row] = site.rows(model.ARQ)
    assert row.state == 'Bound'


def test_the_owner_deletes_requests_without_an_instance(site):
    assert ask(site, 'member').delete(f'{ARQS}/{create(site)}').status_int == 204
    assert gone(site)


def test_the_history_of_another_project_s_request_looks_like_none(site):
    arq = hold(site)
    path = f'{ARQS}/{arq}/history'
    states = [move['state'] for move in ask(site, 'reader').get(path).json['history']]
    assert states == ['Initial', 'Bound']
    assert ask(site, 'admin', 'b').get(path).status_int == 200
    other = ask(site, 'member', 'b').get(path)
    assert other.status_int == 404
    assert other.json['errors'][0]['detail'] == f'ARQ {arq} not found.'


def test_a_member_names_no_owner(site):
    arq = create(site)
    patch = support.wish(site.provider, support.HOST, support.INSTANCE)
    patch.append({'path': '/project_id', 'op': 'add', 'value': PROJECTS['b']})
    answer = nova(site).at('2.1').patch(ARQS, {arq: patch})
    assert answer.status_int == 403, answer.text
    assert project(site, arq) == 'a'
    assert [row.state for row in site.rows(model.ARQ)] == ['Initial']


def test_states_of_foreign_requests_are_not_revealed(site, foreign):
    with site.database.writer() as session:
        session.execute(sa.update(model.ARQ).values(state='Unbound'))
    resolved = f'{ARQS}?instance={support.INSTANCE}&bind_state=resolved'
    answer = ask(site, 'member').get(resolved)
    assert (answer.status_int, answer.json['arqs']) == (200, [])
    assert nova(site).get(resolved).status_int == 423


def test_freeing_an_instance_of_another_project_is_refused(database_url, tmp_path, site, foreign):
    """Also if a policy allows members to free instances of their projects."""
    conf = '[oslo_policy]\npolicy_file = ' + str(tmp_path / 'policy.yaml')
    (tmp_path / 'policy.yaml').write_text('"cyborg:instance:free": "role:member"\n')
    (tmp_path / 'more').write_text(conf)
    files = [str(tmp_path / 'conf'), str(tmp_path / 'more')]
    other = support.Service(database_url, files=files, api__auth_strategy='keystone')
    try:
        path = f'/v2/instances/{support.INSTANCE}'
        # Without Nova there is no proof: the error shows that the policy allowed the call.
        answers = [ask(other, 'member', project).delete(path) for project in 'ab']
        assert [answer.status_int for answer in answers] == [404, 409]
    finally:
        other.stop()

# SPDX-License-Identifier: Apache-2.0
"""Every rule for every persona: the matrix is CONTRACT.md 1.6, new defaults."""

import itertools
import os
import threading

from oslo_config import cfg
import pytest

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import policy

#: With the roles that Keystone implies.
PERSONAS = {
    'none': [],
    'reader': ['reader'],
    'member': ['member', 'reader'],
    'manager': ['manager', 'member', 'reader'],
    'admin': ['admin', 'manager', 'member', 'reader'],
    'service': ['service'],
}

#: Who may, in the own project and in another's.
ADMIN = ({'admin'}, {'admin'})
READER = ({'reader', 'member', 'manager', 'admin'}, {'admin'})
MANAGER = ({'manager', 'admin'}, {'admin'})
MEMBER_OR_SERVICE = ({'member', 'manager', 'admin', 'service'}, {'service'})

EXPECTED = {
    'device_profile:get_all': READER,
    'device_profile:get_one': READER,
    'device_profile:create': ADMIN,
    'device_profile:delete': ADMIN,
    'arq:get_all': READER,
    'arq:get_one': READER,
    'arq:create': MEMBER_OR_SERVICE,
    'arq:delete': MEMBER_OR_SERVICE,
    'arq:update': MEMBER_OR_SERVICE,
    'device:get_all': MANAGER,
    'device:get_one': MANAGER,
    'device:enable': ADMIN,
    'device:disable': ADMIN,
    'device:delete': ADMIN,
    'deployable:get_all': MANAGER,
    'deployable:get_one': MANAGER,
    'deployable:program': ADMIN,
    'attribute:get_all': MANAGER,
    'attribute:get_one': MANAGER,
    'attribute:create': ADMIN,
    'attribute:delete': ADMIN,
    # Ours, as all that shows the cloud from within.
    'accelerator:get_all': MANAGER,
    'accelerator:get_one': MANAGER,
    'accelerator:summary': READER,
    'host:get_all': MANAGER,
    'host:get_one': MANAGER,
    'host:update': ADMIN,
    'host:delete': ADMIN,
    'instance:free': ADMIN,
    'quota:get_all': ADMIN,
    'quota:get_one': READER,
    'quota:update': ADMIN,
    'quota:delete': ADMIN,
    'allocation:get_all': READER,
    'allocation:get_one': READER,
    'allocation:create': MEMBER_OR_SERVICE,
    'allocation:priority': ADMIN,
    'allocation:update': MEMBER_OR_SERVICE,
    'allocation:delete': MEMBER_OR_SERVICE,
    'device_profile:check': READER,
    'usage:get_all': READER,
}
BASE = {
    'project_reader_or_admin': READER,
    'project_manager_or_admin': MANAGER,
    'project_member_or_service': MEMBER_OR_SERVICE,
}
RULES = {rule.name: rule for rule in policy.list_rules()}
MATRIX = list(
    itertools.product(
        [*(f'cyborg:{name}' for name in EXPECTED), *BASE], PERSONAS, ['own', 'another']
    )
)


@pytest.fixture(scope='module')
def enforcer():
    return policy.enforcer(options.load(files=[]))


def test_the_matrix_has_every_rule():
    assert set(RULES) == {f'cyborg:{name}' for name in EXPECTED} | set(BASE)


@pytest.mark.parametrize(('rule', 'persona', 'project'), MATRIX)
def test_rule(enforcer, rule, persona, project):
    caller = context.RequestContext(
        enforcer, roles=PERSONAS[persona], project_id='p1', user_id='u1', overwrite=False
    )
    target = {'project_id': 'p1' if project == 'own' else 'p2'}
    own, others = (EXPECTED | BASE)[rule.removeprefix('cyborg:')]
    assert caller.allows(rule, target) == (persona in (own if project == 'own' else others))


@pytest.mark.parametrize('rule', RULES)
def test_no_rule_holds_for_empty_credentials(enforcer, rule):
    """CVE-2026-40213: one rule held for everybody."""
    for target in ({}, {'project_id': None}, {'project_id': 'p1'}, None):
        assert not context.RequestContext(enforcer, overwrite=False).allows(rule, target)
    assert not enforcer.authorize(rule, {'project_id': None}, {})


@pytest.mark.parametrize('rule', [f'cyborg:{name}' for name in EXPECTED])
@pytest.mark.parametrize('scope', [{'system_scope': 'all'}, {'domain_id': 'd1'}, {}])
def test_only_a_project_is_a_scope(enforcer, rule, scope):
    """Not even an administrator's token of the system counts.

    Beside a service token keystonemiddleware says nothing of the system: there is no scope then.
    """
    caller = context.RequestContext(enforcer, roles=PERSONAS['admin'], **scope, overwrite=False)
    assert not caller.allows(rule)


@pytest.mark.parametrize(
    ('rule', 'needed'),
    [
        ('cyborg:arq:create', 'the role service or member'),
        ('cyborg:device:get_all', 'the role admin or manager'),
        ('cyborg:host:delete', 'the role admin'),
    ],
)
def test_refusal_names_the_rule_and_the_roles(enforcer, rule, needed):
    caller = context.RequestContext(enforcer, roles=['reader'], project_id='p1', overwrite=False)
    caller.can('cyborg:arq:get_all')
    with pytest.raises(exception.NotAuthorized) as refused:
        caller.can(rule)
    assert refused.value.code == 403
    said = f'Access was denied to the following resource: {rule}. It needs {needed}.'
    assert str(refused.value) == said


def test_refusal_of_another_project_names_it(enforcer):
    caller = context.RequestContext(enforcer, roles=['reader'], project_id='p1', overwrite=False)
    with pytest.raises(exception.NotAuthorized, match=r'needs a caller of project p2, not of p1\.'):
        caller.can('cyborg:quota:get_one', {'project_id': 'p2'})
    caller = context.RequestContext(enforcer, roles=[], project_id='p1', overwrite=False)
    with pytest.raises(exception.NotAuthorized, match='It needs the role admin or reader'):
        caller.can('cyborg:quota:get_one', {'project_id': 'p2'})


def test_refusal_of_a_token_without_a_project(enforcer):
    caller = context.RequestContext(enforcer, roles=['admin'], system_scope='all', overwrite=False)
    with pytest.raises(exception.NotAuthorized, match=r'It needs a token of a project\.'):
        caller.can('cyborg:arq:create')


@pytest.mark.parametrize(
    ('rule', 'roles'),
    [
        ('role:auditor and not role:guest', ['auditor']),
        ('rule:project_manager_or_admin or role:admin', ['admin', 'manager']),
        ('user_id:%(user_id)s', []),
        ('!', []),
    ],
)
def test_roles_of_an_operators_rule(tmp_path, rule, roles):
    """Nothing but roles is told: other checks may name users."""
    (tmp_path / 'policy.yaml').write_text(f'"cyborg:arq:get_all": "{rule}"\n')
    (tmp_path / 'a.conf').write_text(f'[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n')
    enforcer = policy.enforcer(options.load(files=[str(tmp_path / 'a.conf')]))
    assert enforcer.roles('cyborg:arq:get_all') == roles
    caller = context.RequestContext(enforcer, roles=[], project_id='p1', overwrite=False)
    with pytest.raises(exception.NotAuthorized) as refused:
        caller.can('cyborg:arq:get_all')
    assert 'user_id' not in str(refused.value)


@pytest.mark.parametrize('name', [f'cyborg:{name}' for name in EXPECTED])
def test_rule_is_documented(name):
    rule = RULES[name]
    assert rule.description[0].isupper()
    assert rule.description.endswith('.')
    assert rule.scope_types == ['project']
    for operation in rule.operations:
        assert operation['method'] in ('GET', 'POST', 'PATCH', 'DELETE')
        assert operation['path'].startswith('/v2/')


def test_operators_rules_go_before_ours(tmp_path):
    (tmp_path / 'policy.yaml').write_text('"cyborg:arq:get_all": "role:auditor"\n')
    (tmp_path / 'a.conf').write_text(f'[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n')
    enforcer = policy.enforcer(options.load(files=[str(tmp_path / 'a.conf')]))
    for role, allowed in (('auditor', True), ('reader', False)):
        caller = context.RequestContext(enforcer, roles=[role], project_id='p1', overwrite=False)
        assert caller.allows('cyborg:arq:get_all') == allowed


# Files that change while the service runs


class Files:
    """Policy files of operators, and the roles that may list requests by them."""

    def __init__(self, place):
        self.file = place / 'policy.yaml'
        self.directory = place / 'policy.d'
        self.directory.mkdir()
        self.write('role:auditor')
        (place / 'conf').write_text(
            f'[oslo_policy]\npolicy_file = {self.file}\npolicy_dirs = {self.directory}\n'
        )
        self.enforcer = policy.enforcer(options.load(files=[str(place / 'conf')]))

    def write(self, rule, file=None):
        (file or self.file).write_text(f'"cyborg:arq:get_all": "{rule}"\n')

    @property
    def roles(self):
        return [role for role in ('auditor', 'reader', 'other') if self.allows(role)]

    def allows(self, *roles):
        caller = context.RequestContext(
            self.enforcer, roles=list(roles), project_id='p1', overwrite=False
        )
        return caller.allows('cyborg:arq:get_all')


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def vanish(file):
    file.unlink()


def become_directory(file):
    file.unlink()
    file.mkdir()


BREAKS = {
    'YAML': lambda file: file.write_text('"cyborg:arq:get_all": "role:oth'),
    'text': lambda file: file.write_text('nothing'),
    'list': lambda file: file.write_text('["cyborg:arq:get_all"]'),
    'number': lambda file: file.write_text('"cyborg:arq:get_all": 7'),
    'bytes': lambda file: file.write_bytes(b'\xff\xfe\x00'),
    'parse': lambda file: file.write_text('"cyborg:arq:get_all": "role:other and"'),
    'undefined': lambda file: file.write_text('"cyborg:arq:get_all": "rule:none"'),
    'cycle': lambda file: file.write_text('"a": "rule:b"\n"b": "rule:a"'),
    'vanished': vanish,
    'directory': become_directory,
    'loop': lambda file: (file.unlink(), file.symlink_to(file)),
}


@pytest.mark.parametrize('break_', BREAKS.values(), ids=BREAKS)
def test_the_last_good_rules_stay(files, caplog, break_):
    assert files.roles == ['auditor']
    break_(files.file)
    for _ in range(3):
        assert files.roles == ['auditor']
    errors = [record for record in caplog.records if record.levelname == 'ERROR']
    assert len([each for each in errors if str(files.file) in each.getMessage()]) == 1
    if files.file.is_dir():
        files.file.rmdir()
    files.file.unlink(missing_ok=True)
    files.write('role:reader')
    assert files.roles == ['reader']


def test_a_file_of_a_directory_that_breaks(files, caplog):
    more = files.directory / 'more.yaml'
    files.write('role:reader', more)
    assert files.roles == ['reader']
    more.write_text('{')
    assert files.roles == ['reader']
    assert str(more) in caplog.text
    # It is taken away on purpose: what is left holds.
    more.unlink()
    assert files.roles == ['auditor']
    files.directory.rmdir()
    assert files.roles == ['auditor']


def test_a_file_that_is_older_is_taken(files):
    other = files.file.with_name('backup')
    files.write('role:reader', other)
    os.utime(other, (1, 1))
    other.rename(files.file)
    assert files.roles == ['reader']


@pytest.mark.parametrize('break_', [BREAKS['YAML'], BREAKS['parse'], become_directory])
def test_a_file_that_is_broken_at_the_start_is_named(tmp_path, files, break_):
    break_(files.file)
    with pytest.raises(cfg.ConfigFileValueError, match=str(files.file)):
        policy.enforcer(options.load(files=[str(tmp_path / 'conf')]))


def test_a_file_that_is_named_and_was_never_there(tmp_path, files):
    files.file.unlink()
    with pytest.raises(cfg.ConfigFileValueError, match=f'{files.file} does not exist'):
        policy.enforcer(options.load(files=[str(tmp_path / 'conf')]))


def test_an_unknown_rule_is_a_warning(files, caplog):
    files.file.write_text(
        '"cyborg:arq:get_al": "role:other"\n'
        '"helper": "role:auditor"\n'
        '"cyborg:arq:get_all": "not (not rule:helper)"\n'
    )
    for _ in range(3):
        assert files.roles == ['auditor']
    [warning] = [record for record in caplog.records if record.levelname == 'WARNING']
    assert 'cyborg:arq:get_al:' in warning.getMessage()
    assert str(files.file) in warning.getMessage()


def test_nobody_is_without_rules_while_they_change(files):
    ended, wrong = threading.Event(), []

    def ask():
        while not ended.is_set():
            # Whichever rule holds now, it is one of the two.
            if not files.allows('auditor', 'reader'):
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(50):
        files.write(('role:reader', 'role:auditor')[number % 2])
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong

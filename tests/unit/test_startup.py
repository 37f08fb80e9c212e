# SPDX-License-Identifier: Apache-2.0
"""What is refused before a service starts, and what is said then."""

import pathlib
import sqlite3
import subprocess
import sys

import amqp
import kombu
from oslo_config import cfg
import pytest
import sqlalchemy as sa

from cyborg_lite import clients
from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import startup
from cyborg_lite.db import migration

KEYSTONE = {
    'auth_type': 'password',
    'auth_url': 'http://identity.example/v3',
    'username': 'cyborg',
    'password': 'secret',
    'user_domain_name': 'Default',
    'project_name': 'service',
    'project_domain_name': 'Default',
}
BIN = pathlib.Path(sys.executable).parent


@pytest.fixture
def conf(tmp_path):
    """Options from a file of this text."""

    def read(text):
        file = tmp_path / 'service.conf'
        file.write_text(text)
        return options.load(files=[str(file)])

    return read


@pytest.fixture
def refused(conf):
    """What is said of a configuration."""

    def ask(text, check):
        with pytest.raises(exception.Refused) as raised:
            startup.check(conf(text), check)
        said = str(raised.value)
        assert '\n' not in said
        return said

    return ask


def test_limits_of_keystone_without_oslo_limit(refused, conf, monkeypatch):
    monkeypatch.setitem(sys.modules, 'oslo_limit', None)
    said = refused('[quota]\ndriver = keystone\n', startup.quota)
    assert said.endswith("run pip install 'cyborg-lite[limits]'")
    startup.check(conf('[quota]\ndriver = database\n'), startup.quota)


def test_a_policy_of_placing_that_is_not_installed(refused, conf):
    said = refused('[conductor]\nplacing = worst\n', startup.placing)
    assert said == "[conductor] placing is 'worst': expected one of binpack, spread"
    for name in ('binpack', 'spread'):
        startup.check(conf(f'[conductor]\nplacing = {name}\n'), startup.placing)


SOCKET = '[agent]\ndevice_access = acl\nsocket = /run/agent.sock\n'


@pytest.mark.parametrize(
    ('uid', 'text', 'said'),
    [
        (1000, SOCKET, 'only root can close device nodes'),
        (0, '[agent]\ndevice_access = acl\n', '[agent] socket is not set'),
    ],
)
def test_access_that_the_agent_cannot_enforce(refused, monkeypatch, uid, text, said):
    monkeypatch.setattr('os.geteuid', lambda: uid)
    assert said in refused(text, startup.access)


def test_access_that_the_agent_can_enforce(conf, monkeypatch):
    monkeypatch.setattr('os.geteuid', lambda: 0)
    startup.check(conf(SOCKET), startup.access)
    monkeypatch.setattr('os.geteuid', lambda: 1000)
    startup.check(conf('[agent]\n'), startup.access)


def test_no_database_is_named(refused, tmp_path):
    said = refused('[api]\n', startup.database)
    assert said == f'[database] connection is not set (read: {tmp_path}/service.conf)'


def test_no_file_is_found():
    with pytest.raises(exception.Refused, match='no configuration file was found'):
        startup.database(options.load(files=[]))


@pytest.mark.parametrize('url', ['nonsense', 'nonsense://:SECRET@host/name', 'sqlite+no:///a'])
def test_an_invalid_database_url(refused, url):
    said = refused(f'[database]\nconnection = {url}\n', startup.database)
    assert 'expected a URL' in said
    assert 'SECRET' not in said


def test_a_driver_that_is_not_installed(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, 'psycopg', None)
    said = refused('[database]\nconnection = postgresql+psycopg://a@b/c\n', startup.database)
    assert "run pip install 'cyborg-lite[postgresql]'" in said


def in_file(path):
    return f'[database]\nconnection = sqlite:///{path}\n'


def stamp(path, revision, *tables, more=None):
    engine = sa.create_engine(f'sqlite:///{path}')
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE alembic_version (version_num VARCHAR(32))'))
        row = sa.text('INSERT INTO alembic_version VALUES (:revision)')
        for each in filter(None, (revision, more)):
            connection.execute(row, {'revision': each})
        for table in tables:
            connection.execute(sa.text(f'CREATE TABLE {table} (id INTEGER)'))
    engine.dispose()


def test_a_database_without_tables(refused, tmp_path):
    said = refused(in_file(tmp_path / 'a'), startup.database)
    assert said == 'the database has no tables: run cyborg-lite-dbsync upgrade'


def test_a_database_of_an_older_release(refused, tmp_path):
    stamp(tmp_path / 'a', 'b754f9f71354')
    said = refused(in_file(tmp_path / 'a'), startup.database)
    assert 'run cyborg-lite-dbsync upgrade' in said
    assert migration.head() in said


@pytest.mark.parametrize('revision', [migration.head(), 'ffffffffffff'])
def test_a_database_of_this_or_a_newer_release(conf, tmp_path, caplog, revision):
    """A service of the release before goes on while others are upgraded."""
    stamp(tmp_path / 'a', revision, *migration.OURS)
    startup.check(conf(in_file(tmp_path / 'a')), startup.database)
    newer = f'The database is of a newer release (revision {revision})'
    assert (newer in caplog.text) == (revision != migration.head())


@pytest.mark.parametrize('table', ['attach_handles', 'messages'])
def test_a_database_of_another_program(refused, tmp_path, table):
    stamp(tmp_path / 'a', 'ffffffffffff', table)
    said = refused(in_file(tmp_path / 'a'), startup.database)
    assert 'has tables of another program (revision ffffffffffff)' in said


def test_a_database_whose_revision_cannot_be_read(refused, tmp_path):
    """It is there: to wait for it would not help."""
    with sqlite3.connect(tmp_path / 'a') as made:
        made.execute('CREATE TABLE alembic_version (version INT)')
    said = refused(in_file(tmp_path / 'a'), startup.database)
    assert said.startswith('the revision of the database cannot be read: ')


def test_a_database_of_two_revisions(refused, tmp_path):
    stamp(tmp_path / 'a', migration.head(), *migration.OURS, more='b754f9f71354')
    assert 'alembic_version has 2 rows' in refused(in_file(tmp_path / 'a'), startup.database)


def test_a_database_that_is_away_is_waited_for(conf, caplog):
    startup.check(conf(in_file('/nowhere/a')), startup.database)
    assert 'cannot be reached yet' in caplog.text


def section(group='keystone_authtoken', **changes):
    """A section for Keystone; None leaves an option out."""
    given = [f'{name} = {value}' for name, value in (KEYSTONE | changes).items() if value]
    return '\n'.join([f'[{group}]', *given, ''])


def test_keystone_that_is_not_configured(refused, conf, monkeypatch):
    assert 'no section [keystone_authtoken]' in refused('', startup.identity)
    startup.check(conf(section()), startup.identity)
    startup.check(conf('[api]\nauth_strategy = noauth\n'), startup.identity)
    for name, value in KEYSTONE.items():
        monkeypatch.setenv(f'OS_KEYSTONE_AUTHTOKEN__{name.upper()}', value)
    startup.check(conf(''), startup.identity)


@pytest.mark.parametrize(
    ('changes', 'lack'),
    [
        ({'auth_type': None}, 'auth_type is not set: expected one such as password'),
        ({'auth_type': 'passwort'}, 'The plugin passwort could not be found'),
        ({'auth_url': None}, 'Auth plugin requires parameters which were not given: auth_url'),
        ({'username': None, 'password': None}, 'it has no username or user_id, no password'),
        ({'user_domain_name': None}, 'it has no user_domain_name or user_domain_id'),
        ({'project_name': None}, 'it has no project_name or project_id'),
        ({'project_domain_name': None}, 'it has no project_domain_name or project_domain_id'),
        ({'auth_type': 'v3applicationcredential'}, 'You must provide either an application '
         'credential ID or an application credential name and user.'),
    ],
)  # fmt: skip
def test_keystone_that_is_half_configured(refused, tmp_path, changes, lack):
    said = refused(section(**changes), startup.identity)
    assert said == f'[keystone_authtoken] cannot be used (read: {tmp_path}/service.conf): {lack}'


@pytest.mark.parametrize(
    'changes',
    [
        {'project_name': None, 'project_domain_name': None, 'system_scope': 'all'},
        {'username': None, 'user_domain_name': None, 'user_id': 'u1'},
        {'project_name': None, 'project_domain_name': None, 'project_id': 'p1'},
        {'user_domain_name': None, 'project_domain_name': None, 'default_domain_id': 'default'},
        {'auth_type': 'v3token', 'token': 't', 'username': None, 'password': None},
    ],
)
def test_keystone_that_is_configured_otherwise(conf, changes):
    startup.check(conf(section(**changes)), startup.identity)


def test_keystone_in_a_section_of_another_name(refused, conf):
    here, there = '[keystone_authtoken]\nauth_section = other\n', section()
    startup.check(conf(here + there.replace('[keystone_authtoken]', '[other]')), startup.identity)
    assert 'auth_type is not set' in refused(here, startup.identity)


@pytest.mark.parametrize('group', ['placement', 'nova'])
@pytest.mark.parametrize(
    ('changes', 'lack'),
    [
        ({'auth_type': None}, 'auth_type is not set: expected one such as password'),
        ({'username': None, 'password': None}, 'it has no username or user_id, no password'),
        ({'auth_url': None}, 'Auth plugin requires parameters which were not given: auth_url'),
    ],
)
def test_a_peer_that_is_half_configured(refused, tmp_path, group, changes, lack):
    said = refused(section(group, **changes), startup.peers)
    assert said == f'[{group}] cannot be used (read: {tmp_path}/service.conf): {lack}'


def test_only_the_name_of_a_user_is_given(refused):
    said = refused('[nova]\nusername = cyborg\n', startup.peers)
    assert said.endswith('auth_type is not set: expected one such as password')


@pytest.mark.parametrize('text', ['', '[placement]\n', '[nova]\ntimeout = 5\n'])
def test_peers_that_are_not_configured_are_not_called(conf, text):
    startup.check(conf(text), startup.peers)


@pytest.mark.parametrize('text', ['', '[placement]\ntimeout = 5\n'])
def test_a_configuration_is_read_again_after_the_checks(conf, text):
    """The options of a plugin for credentials are required, and SIGHUP changed nothing."""
    made = conf(text)
    startup.check(made, startup.peers)
    made.mutate_config_files()


@pytest.mark.parametrize('plugin', ['v3applicationcredential', 'v3token', 'v3password'])
def test_a_peer_with_another_plugin(conf, plugin):
    """Options of plugins have the names of others, and differ: each is registered once."""
    changes = {'auth_type': plugin, 'application_credential_id': 'a', 'token': 't'}
    changes |= {'application_credential_secret': 's'}
    startup.check(conf(section('placement', **changes)), startup.peers)


def test_a_peer_in_a_section_of_another_name_is_called(conf):
    made = conf('[nova]\nauth_section = other\n' + section('other'))
    startup.check(made, startup.peers)
    assert clients.configured(made, 'nova')


def test_peers_that_are_configured(conf):
    startup.check(conf(section('placement') + section('nova')), startup.peers)


def test_an_option_that_does_not_exist_is_a_warning(conf, caplog):
    text = '[api]\nauth_strategi = noauth\nzzz = 1\nmax_limit = 5\n[other]\nany = 1\n'
    startup.check(conf(text))
    [first, second] = [record.getMessage() for record in caplog.records]
    assert '[api] has no option auth_strategi. Did you mean auth_strategy?' in first
    assert second.endswith('[api] has no option zzz.')


def test_a_section_that_is_nearly_one_of_ours_is_a_warning(conf, caplog):
    startup.check(conf('[apii]\nmax_limit = 5\n[cors]\nany = 1\n'))
    [said] = [record.getMessage() for record in caplog.records]
    assert said.endswith('there is no section [apii]. Did you mean [api]?')


@pytest.mark.parametrize(
    'text',
    [
        '[api]\nhttp_basic_project_file = a\n',
        '[apii]\nhttp_basic_auth_project_file = a\n',
    ],
)
def test_projects_that_are_not_read_make_nobody_administrator(refused, text):
    assert 'Did you mean' in refused(text, startup.connection)


@pytest.mark.parametrize('default', ['noauth', 'keystone'])
@pytest.mark.parametrize(
    'text', ['[api]\nauth_strategyy = http_basic\n', '[apii]\nauth_strategy = a\n']
)
def test_a_misspelt_strategy_opens_the_service_to_nobody(tmp_path, default, text):
    (tmp_path / 'a.conf').write_text(text)
    conf = options.load(files=[str(tmp_path / 'a.conf')], api__auth_strategy=default)
    if default == 'noauth':
        with pytest.raises(exception.Refused, match='Did you mean'):
            startup.check(conf)
    else:
        [warning] = startup.check(conf)
        assert 'Did you mean' in warning


@pytest.mark.parametrize(
    ('section', 'option', 'value', 'expected'),
    [
        ('database', 'max_pool_size', 'many', "expected a whole number, not 'many'"),
        ('placement', 'timeout', 'x', "expected a number, not 'x'"),
        ('oslo_messaging_rabbit', 'ssl', 'perhaps', "expected true or false, not 'perhaps'"),
    ],
)
def test_a_value_of_a_library_is_told_with_its_section(conf, section, option, value, expected):
    with pytest.raises(cfg.Error) as raised:
        startup.check(conf(f'[{section}]\n{option} = {value}\n'))
    assert str(raised.value).endswith(f'service.conf: [{section}] {option}: {expected}')


class Broker:
    """In place of a connection to a broker, which answers with an error or not at all."""

    def __init__(self, monkeypatch, *answers):
        self._answers = list(answers)
        self.asked = []
        monkeypatch.setattr(kombu, 'Connection', self._connection)

    def _connection(self, **asked):
        self.asked.append(asked)
        return self

    def connect(self):
        answer = self._answers.pop(0)
        if answer is not None:
            raise answer

    def release(self):
        pass


URL = '[DEFAULT]\ntransport_url = rabbit://ann:secret@one:5671,ann:secret@two:5672/things\n'
DENIED = amqp.AccessRefused('ACCESS_REFUSED')
NO_HOST = amqp.NotAllowed('vhost things not found')


@pytest.mark.parametrize(
    ('error', 'hint'),
    [
        (DENIED, 'rabbitmqctl authenticate_user ann'),
        (NO_HOST, "rabbitmqctl set_permissions -p things ann '.*' '.*' '.*'"),
    ],
)
def test_a_broker_that_refuses_the_service(refused, monkeypatch, error, hint):
    Broker(monkeypatch, error)
    said = refused(URL, startup.bus)
    assert said.startswith('the broker at one:5671 refuses user ann for virtual host things')
    assert hint in said
    assert 'secret' not in said


@pytest.mark.parametrize('text', ['[DEFAULT]\n', '[DEFAULT]\ntransport_url =\n'])
def test_a_bus_that_is_not_set_is_not_waited_for(refused, monkeypatch, text):
    broker = Broker(monkeypatch, ConnectionRefusedError(111, 'Connection refused'))
    said = refused(text, startup.bus)
    assert said.startswith('[DEFAULT] transport_url is not set (read: ')
    assert broker.asked == []


def test_a_broker_that_is_away_is_waited_for(conf, monkeypatch, caplog):
    broker = Broker(monkeypatch, ConnectionRefusedError(111, 'Connection refused'), None)
    startup.check(conf(URL), startup.bus)
    assert 'The broker at one:5671 (user ann, virtual host things) cannot be reached' in caplog.text
    assert [each['hostname'] for each in broker.asked] == ['one', 'two']
    assert [each['ssl'] for each in broker.asked] == [False, False]
    startup.check(conf('[DEFAULT]\ntransport_url = fake:/\n'), startup.bus)
    assert len(broker.asked) == 2


def test_the_broker_is_asked_over_tls(conf, monkeypatch):
    broker = Broker(monkeypatch, None, None)
    text = 'ssl = true\nssl_ca_file = /a.pem\nrabbit_login_method = PLAIN\n'
    startup.check(conf(f'{URL}[oslo_messaging_rabbit]\n{text}'), startup.bus)
    assert broker.asked[0]['ssl']['ca_certs'] == '/a.pem'
    assert broker.asked[0]['login_method'] == 'PLAIN'


FORM = 'expected a URL such as rabbit://USER:PASSWORD@HOST:5672/VHOST, with %2F in place of a slash'


@pytest.mark.parametrize('section', ['DEFAULT', 'oslo_messaging_notifications'])
@pytest.mark.parametrize(
    ('url', 'said'),
    [
        ('secret', FORM),
        ('foo://ann:secret@one', FORM),
        ('rabbit://ann:se/cret@one/things', FORM),
        ('rabbit://ann:secret@[::1/', FORM),
        ('rabbit://ann:secret@one:0x1628', FORM),
        ('kafka://ann:secret@one', 'the driver kafka is not installed (import of confluent_kafka'),
    ],
)
def test_an_invalid_url_of_a_transport(refused, monkeypatch, section, url, said):
    monkeypatch.setitem(sys.modules, 'confluent_kafka', None)
    monkeypatch.delitem(sys.modules, 'oslo_messaging._drivers.impl_kafka', raising=False)
    check = startup.bus if section == 'DEFAULT' else startup.notifications
    found = refused(f'[{section}]\ntransport_url = {url}\n', check)
    assert found.startswith(f'[{section}] transport_url: {said}')
    assert not [each for each in ('ann', 'cret', 'se/') if each in found]


def test_a_driver_of_notifications_that_does_not_exist(refused, conf):
    found = refused('[oslo_messaging_notifications]\ndriver = email\n', startup.notifications)
    said = "expected one of log, messaging, messagingv2, noop, routing, test, not 'email'"
    assert found == f'[oslo_messaging_notifications] driver: {said}'
    for text in ('', 'driver =\n', 'driver = noop\ndriver = messagingv2\n'):
        startup.check(conf(f'[oslo_messaging_notifications]\n{text}'), startup.notifications)


def test_a_broker_of_notifications_that_refuses_the_conductor(refused, monkeypatch):
    Broker(monkeypatch, DENIED)
    text = URL.replace('DEFAULT', 'oslo_messaging_notifications')
    said = refused(text, startup.notifications)
    assert 'the password in [oslo_messaging_notifications] transport_url with rabbitmqctl' in said
    assert 'secret' not in said


def run(command, *words, file=None):
    more = ['--config-file', str(file)] if file else []
    return subprocess.run(
        [BIN / command, *more, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_conductor_ends_with_one_line(tmp_path):
    file = tmp_path / 'service.conf'
    file.write_text(in_file(tmp_path / 'a'))
    done = run('cyborg-lite-conductor', file=file)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith('the database has no tables: run cyborg-lite-dbsync upgrade')
    assert 'Traceback' not in done.stderr


def test_a_conductor_with_half_a_peer_ends_with_one_line(tmp_path):
    stamp(tmp_path / 'a', migration.head())
    file = tmp_path / 'service.conf'
    file.write_text(
        f'[DEFAULT]\ntransport_url = fake:/\n{in_file(tmp_path / "a")}[nova]\nusername = ann\n'
    )
    done = run('cyborg-lite-conductor', file=file)
    assert done.returncode == 1
    assert '[nova] cannot be used' in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


def test_a_conductor_with_a_wrong_url_of_notifications_ends_with_one_line(tmp_path):
    stamp(tmp_path / 'a', migration.head())
    file = tmp_path / 'service.conf'
    file.write_text(
        f'[DEFAULT]\ntransport_url = fake:/\n{in_file(tmp_path / "a")}'
        '[oslo_messaging_notifications]\ndriver = messagingv2\ntransport_url = nonsense\n'
    )
    done = run('cyborg-lite-conductor', file=file)
    assert done.returncode == 1
    said = '[oslo_messaging_notifications] transport_url: expected a URL'
    assert said in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


def test_an_api_ends_with_one_line(tmp_path):
    file = tmp_path / 'service.conf'
    file.write_text(in_file(tmp_path / 'a'))
    done = subprocess.run(
        [sys.executable, '-c', 'import cyborg_lite.wsgi.api'],
        capture_output=True, text=True, timeout=60, check=False,
        env={'CYBORG_LITE_CONFIG_FILE': str(file)},
    )  # fmt: skip
    assert done.returncode == 3
    assert 'no section [keystone_authtoken]' in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'command',
    [
        'cyborg-lite', 'cyborg-lite-agent', 'cyborg-lite-conductor', 'cyborg-lite-dbsync',
        'cyborg-lite-discover', 'cyborg-lite-status',
    ],
)  # fmt: skip
def test_each_command_tells_its_version(command):
    done = run(command, '--version')
    assert (done.returncode, done.stdout.strip()) == (0, options.VERSION), done.stderr


@pytest.mark.parametrize('command', ['cyborg-lite-agent', 'cyborg-lite-conductor'])
def test_each_daemon_tells_its_options(command):
    found = subprocess.run([BIN / command, '--help'], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, '')
    assert {'--config-file', '--config-dir', '--debug'} <= {*found.stdout.replace(',', ' ').split()}

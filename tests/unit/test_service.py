# SPDX-License-Identifier: Apache-2.0
import gc
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import types
from unittest import mock

from keystonemiddleware import auth_token
import oslo_messaging as messaging
from oslo_messaging.rpc import dispatcher
from oslo_reports import guru_meditation_report
import pytest

from cyborg_lite import clients
from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import driver
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite import service
from cyborg_lite.cmd import up
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from cyborg_lite.db import query
from tests import support


@pytest.fixture
def conf(tmp_path):
    return options.load(
        files=[],
        api__auth_strategy='noauth',
        database__connection=service.database_url(tmp_path),
        agent__enabled_drivers=['fake'],
    )


def test_embedded_with_agents(conf, tmp_path):
    """Hosts report by themselves, each as itself, and at once when they are asked."""
    hosts = [driver.Host(name, tmp_path / name) for name in ('host-1', 'host-2')]
    embedded = service.Embedded(conf, hosts)
    embedded.start()
    for agent in embedded.agents:
        assert agent.manager.reported.wait(20)
    with embedded.database.reader() as session:
        found = {d.hostname: d.type for d in query.find(session, model.Device)}
    assert found == {'host-1': 'FPGA', 'host-2': 'FPGA'}
    told = embedded.bus.agent(context.service(), 'host-2').report()
    assert told == {'fake': {'state': 'ok', 'reason': '', 'devices': 1}}
    embedded.stop()


@pytest.mark.parametrize('topic', [rpc.CONDUCTOR, rpc.REPORTS, rpc.AGENT])
def test_only_what_is_named_can_be_called(conf, tmp_path, topic):
    """Every attribute of a manager was a method once: ``conf`` reset all options."""
    embedded = service.Embedded(conf, [driver.Host('host-1', tmp_path)])
    with mock.patch.object(embedded.bus, 'serve', wraps=embedded.bus.serve) as serve:
        embedded.start()
    served = {call.args[0]: call.args[2:] for call in serve.call_args_list}
    named = {
        rpc.CONDUCTOR: {
            'bind', 'check_allocation', 'create_allocation', 'create_arqs', 'create_attribute',
            'create_device_profile', 'create_reservation', 'delete_arqs', 'delete_arqs_of',
            'delete_attribute', 'delete_device', 'delete_device_profile', 'delete_host',
            'delete_quota', 'explain_waiting', 'free_instance', 'probe', 'release_allocation',
            'rename_host', 'renew_allocation', 'report', 'set_device_status', 'show_limits',
            'unbind', 'update_quota',
        },
        rpc.REPORTS: {'contain', 'end_lease', 'holders', 'lease', 'leases', 'report'},
        rpc.AGENT: {'look', 'report'},
    }  # fmt: skip
    managers = served[topic]
    dispatch = dispatcher.RPCDispatcher(managers, None, messaging.ExplicitRPCAccessPolicy).dispatch
    told = {'ctxt': {}, 'client_timeout': None}
    reached = set()
    for name in {name for manager in managers for name in dir(manager)} - {'__class__'}:
        message = {'method': name, 'args': {'no': 'such argument'}, 'version': rpc.VERSION}
        try:
            dispatch(types.SimpleNamespace(message=message, **told))
        except messaging.NoSuchMethod:
            continue
        except Exception:
            reached.add(name)
        else:
            reached.add(name)
    assert reached == named[topic]
    versions = [manager.target.version for manager in managers]
    assert versions == [rpc.VERSION, rpc.CLOSED][: len(managers)]
    embedded.stop()


def test_two_in_one_process_do_not_hear_each_other(databases):
    """The transport in memory is one for the process."""
    with databases.empty() as one_url, databases.empty() as other_url:
        one, other = support.Service(one_url), support.Service(other_url)
        one.report(*[support.card(f'{number}a') for number in range(4)])
        assert (len(one.rows(model.Device)), len(other.rows(model.Device))) == (4, 0)
        one.stop()
        other.stop()


def test_one_process_has_no_transport(databases, monkeypatch):
    """The transport in memory polls: it sleeps 50 ms for each call."""
    monkeypatch.setattr(rpc.messaging, 'get_rpc_transport', None)
    with databases.empty() as url:
        service_ = support.Service(url)
        service_.report(support.card('1a'))
        service_.profile()
        [arq] = service_.arqs()
        assert service_.api.get(f'/v2/accelerator_requests/{arq}').status_int == 200
        service_.stop()


def test_embedded_that_never_began_can_be_stopped(conf, tmp_path):
    """Ctrl-C may come at any moment: ``cyborg-lite up`` stops whatever there is."""
    service.Embedded(conf, [driver.Host('host-1', tmp_path)]).stop()


def test_a_daemon_is_told_to_end_while_it_waits_for_its_database():
    started = []

    def make():
        daemon.stop()
        return types.SimpleNamespace(start=lambda: started.append(1), stop=lambda: None)

    daemon = service.Daemon(make)
    daemon.start()
    daemon.wait()
    assert not started


@pytest.mark.parametrize('command', ['agent', 'conductor'])
def test_a_service_says_at_its_start_what_is_wrong_with_its_options(command, tmp_path, monkeypatch):
    """A launcher would start it again and again."""
    (tmp_path / 'a.conf').write_text('[DEFAULT]\nhost = a_b\n')
    monkeypatch.setattr(sys, 'argv', [command, '--config-file', str(tmp_path / 'a.conf')])
    main = importlib.import_module(f'cyborg_lite.cmd.{command}').main
    with pytest.raises(SystemExit, match=f'(?s)cyborg-lite-{command}: .*host.*a_b'):
        main()


def test_listen_on_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(OSError, match=r'in use'):
            service.listen(lambda environ, start: [], '127.0.0.1', taken.getsockname()[1])


def test_listen_takes_a_port_and_serves_later():
    server = service.listen(lambda environ, start: [], '127.0.0.1', 0)
    assert server.bind_addr[1] > 0
    server.stop()


def test_version_is_known():
    assert options.VERSION
    report = service._Version()
    assert report.version_string_with_package() == options.VERSION
    assert report.product_string() == report.vendor_string() == 'cyborg_lite'


#: Where operators write passwords.
SECRETS = """
[DEFAULT]
transport_url = rabbit://cyborg:SECRET-bus@127.0.0.1/
[database]
connection = mysql+pymysql://cyborg:SECRET-database@127.0.0.1/cyborg
slave_connection = mysql+pymysql://cyborg:SECRET-slave@127.0.0.1/cyborg
[placement]
auth_type = password
auth_url = http://127.0.0.1:1/
password = SECRET-placement
[nova]
auth_type = v3applicationcredential
auth_url = http://127.0.0.1:1/
application_credential_id = 1
application_credential_secret = SECRET-nova
[keystone_authtoken]
auth_type = password
auth_url = http://127.0.0.1:1/
password = SECRET-keystone
memcache_secret_key = SECRET-cache
"""


@pytest.fixture
def secrets(tmp_path):
    """A configuration with passwords."""
    (tmp_path / 'a.conf').write_text(SECRETS)
    conf = options.load(files=[str(tmp_path / 'a.conf')])
    # As the services do when they start: these options are known from then on.
    rpc.Bus(conf, 'fake://')
    clients.connect(conf, 'placement', '1.39')
    clients.connect(conf, 'nova', '2.82')
    auth_token.AuthProtocol(None, {'oslo_config_config': conf})
    return conf


def test_log_of_the_configuration_keeps_secrets(secrets, caplog):
    secrets.log_opt_values(logging.getLogger('test'), logging.WARNING)
    for name in ('transport_url', 'database.connection', 'placement.password',
                 'nova.application_credential_secret', 'keystone_authtoken.password'):  # fmt: skip
        assert any(name in line and '****' in line for line in caplog.messages), name
    assert 'SECRET' not in caplog.text


def test_report_of_a_process_keeps_secrets(secrets, monkeypatch):
    """What SIGUSR2 writes to the log: it tells of our options, but for these."""
    report = guru_meditation_report.TextGuruMeditation
    monkeypatch.setattr(report, 'persistent_sections', [], raising=False)
    monkeypatch.setattr(service.log, 'setup', lambda *_, **__: None)
    handler = signal.getsignal(signal.SIGUSR2)
    service.prepare(secrets)
    signal.signal(signal.SIGUSR2, handler)
    # It looks at all objects there are, and those of other tests raise at that.
    gc.freeze()
    try:
        text = report(service._Version()).run()
    finally:
        gc.unfreeze()
    assert 'report_interval = 20' in text
    for name in ('transport_url', 'connection', 'password', 'application_credential_secret'):
        assert f'{name} = ***' in text, name
    assert 'SECRET' not in text


@pytest.fixture
def log_file(tmp_path, monkeypatch):
    """The log of a service, in a directory of its own."""
    monkeypatch.setattr(guru_meditation_report.TextGuruMeditation, 'setup_autorun', mock.Mock())
    monkeypatch.setattr(logging.Handler, 'handle', logging.Handler.handle)
    monkeypatch.setattr(logging.Handler, 'handleError', logging.Handler.handleError)
    monkeypatch.setattr(logging.getLogger(), 'handlers', [])
    file = tmp_path / 'logs' / 'service.log'
    file.parent.mkdir()
    service.prepare(options.load(files=[], log_file=str(file)))
    yield file
    for handler in logging.getLogger().handlers:
        handler.close()


def test_log_that_cannot_be_written_fails_nobody(log_file, tmp_path, capsys):
    """It was renamed, and its directory is away: a request would fail, and a thread end."""
    logger = logging.getLogger('cyborg_lite')
    logger.warning('before')
    log_file.rename(log_file.with_suffix('.1'))
    log_file.parent.rename(tmp_path / 'elsewhere')
    logger.warning('meanwhile')
    logger.warning('still')
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('The log cannot be written: ')
    assert str(log_file) in line
    (tmp_path / 'elsewhere').rename(log_file.parent)
    logger.warning('after')
    assert 'before' in log_file.with_suffix('.1').read_text()
    assert 'after' in log_file.read_text()


def test_log_of_the_api_has_its_name_under_any_web_server(tmp_path):
    """uWSGI imports it from no file."""
    file = tmp_path / 'cyborg_lite.conf'
    file.write_text(
        f'[DEFAULT]\ntransport_url = fake://\nlog_dir = {tmp_path}/logs\n'
        f'[database]\nconnection = sqlite:///{tmp_path}/database\n[api]\nauth_strategy = noauth\n'
    )
    (tmp_path / 'logs').mkdir()
    database = engine.Database(options.load(files=[str(file)]))
    migration.upgrade(database.engine)
    database.close()
    told = subprocess.run(
        [sys.executable, '-W', 'ignore', '-'],
        input='import gc; from cyborg_lite.wsgi import api; print(gc.get_freeze_count())',
        env=os.environ | {'CYBORG_LITE_CONFIG_FILE': str(file)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [each.name for each in (tmp_path / 'logs').iterdir()] == ['cyborg-lite-api.log']
    # What is there from the beginning is no garbage.
    assert int(told.stdout) > 10_000


def test_a_file_that_the_api_cannot_use_is_said_in_one_line(tmp_path):
    file, policy = tmp_path / 'cyborg_lite.conf', tmp_path / 'policy.yaml'
    file.write_text(
        f'[DEFAULT]\ntransport_url = fake://\n[oslo_policy]\npolicy_file = {policy}\n'
        f'[database]\nconnection = sqlite:///{tmp_path}/database\n[api]\nauth_strategy = noauth\n'
    )
    database = engine.Database(options.load(files=[str(file)]))
    migration.upgrade(database.engine)
    database.close()
    told = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', 'from cyborg_lite.wsgi import api'],
        env=os.environ | {'CYBORG_LITE_CONFIG_FILE': str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 3
    assert told.stderr.splitlines()[-1].startswith('cyborg-lite-api: Policy file')
    assert 'Traceback' not in told.stderr


def test_a_daemon_that_has_started_looks_for_garbage_less_often(monkeypatch):
    spared = []
    monkeypatch.setattr(service, 'spare_garbage_collection', lambda: spared.append(started[:]))
    started = []
    made = types.SimpleNamespace(start=lambda: started.append(1), stop=lambda: None)
    service.Daemon(lambda: made).start()
    assert spared == [[1]]


def test_up_looks_for_garbage_less_often_once_it_has_started(monkeypatch):
    started, spared = [], []
    monkeypatch.setattr(service, 'spare_garbage_collection', lambda: spared.append(started[:]))
    embedded = types.SimpleNamespace(
        agents=[], end_others=lambda: None, start=lambda: started.append(1)
    )
    up._start(embedded, types.SimpleNamespace(stopped=False))
    assert spared == [[1]]


def test_objects_of_the_start_are_not_collected():
    before = gc.get_threshold()
    try:
        service.spare_garbage_collection()
        assert gc.get_freeze_count() > 10_000
        # Python's own are 700, 10 and 10 up to 3.13: a list of 1,000 rows has more objects.
        young, *older = gc.get_threshold()
        assert young >= 50_000
        assert min(older) >= 10
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)

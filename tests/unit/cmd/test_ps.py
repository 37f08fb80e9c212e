# SPDX-License-Identifier: Apache-2.0
import csv
import datetime
import getpass
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
from unittest import mock
import wsgiref.simple_server

import pytest
import trustme

from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite import remote
from cyborg_lite import rpc
from cyborg_lite import service as services
from cyborg_lite import unix
from cyborg_lite.cmd import leasing
from cyborg_lite.cmd import main
from cyborg_lite.cmd import ps
from tests import support
from tests.unit import test_server
from tests.unit.cmd import process


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served():
    """Serve an application on a free port; returns the URL."""
    servers = []

    def serve(application):
        server = wsgiref.simple_server.make_server('127.0.0.1', 0, application, handler_class=Quiet)
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_port}'

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def service(database_url):
    made = support.Service(database_url, api__max_limit=3)
    made.report(support.card('3b', handles=4, vendor='10de', model='A100-SXM4-80GB-of-long-name'))
    made.report(support.card('5e'), host='a-host-with-a-long-name.example.org')
    made.profile()
    [arq] = made.arqs()
    provider = made.rows(model.Deployable)[0].rp_uuid
    made.api.bind(arq, provider=provider, instance=support.INSTANCE)
    yield made
    made.stop()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite', 'ps', *arguments])
        status = main.main()
        return (status, *capsys.readouterr())

    return run


def test_table_fits_80_columns(service, served, run):
    status, out, _ = run('--url', served(service.embedded.application) + '/')
    assert status == 0
    heading, *rows = out.splitlines()
    assert heading.split() == list(ps.WIDTHS)
    assert len(rows) == 5
    assert all(len(line) <= 80 for line in out.splitlines())
    assert rows[0].split() == ['a-host-with-a…', 'miss', 'model', '…', '0000:5e:00.0', 'free']
    held = [row.split()[:5] for row in rows if 'held' in row]
    assert held == [['host-1', 'A100-SXM4-8…', '0000:3b:00.0', 'held', f'{support.INSTANCE[:11]}…']]
    assert {row.split()[2] for row in rows[1:]} == {f'0000:3b:00.{n}' for n in range(4)}


@pytest.fixture
def at_socket(service, tmp_path):
    """The socket of the service, where a state directory has it."""
    path = tmp_path / 'cyborg-lite' / client.API_SOCKET
    path.parent.mkdir()
    listener = unix.listen(str(path), None, services.BACKLOG)
    server = services.server.Server(service.embedded.application, listener)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield path
    server.stop()
    thread.join()


def test_a_unix_socket_is_asked(at_socket, run):
    status, out, err = run('--url', f'unix://{at_socket}')
    assert (status, err) == (0, '')
    assert len(out.splitlines()) == 6


def test_a_socket_is_preferred_to_the_port(at_socket, tmp_path, run, monkeypatch):
    """Where credentials are given, the port is meant."""
    monkeypatch.setattr(remote, 'LOCAL', 'http://127.0.0.1:1')
    monkeypatch.setattr(client, 'SYSTEM', tmp_path / 'nowhere')
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    assert run()[0] == 0
    monkeypatch.setenv('OS_TOKEN', 'token')
    assert 'no service answers at http://127.0.0.1:1/' in run()[2]
    monkeypatch.delenv('OS_TOKEN')
    monkeypatch.setenv('CYBORG_LITE_PASSWORD', 'secret')
    assert 'no service answers at http://127.0.0.1:1/' in run('--user', 'ann')[2]
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'nowhere'))
    assert 'no service answers at http://127.0.0.1:1/' in run()[2]
    # A service that starts later may be the first of the system.
    monkeypatch.setattr(client, 'SYSTEM', at_socket.parent)
    assert run()[0] == 0


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--url', 'unix://a.sock'], 'expected unix:// and an absolute path'),
        (['--url', 'unix:///nowhere/a.sock'], 'no service answers at unix:///nowhere/a.sock/v2/'),
        (['--url', 'unix:///a', '--user', 'ann'], '--user is for http and https'),
    ],
)
def test_a_unix_socket_that_cannot_be_asked(run, arguments, said):
    status, out, err = run(*arguments)
    assert (status, out, err.count('\n')) == (1, '', 1)
    assert said in err


def test_a_socket_that_this_user_may_not_use(at_socket, tmp_path, run, monkeypatch):
    """Also if it is looked for: nothing answers at the port, and the socket is named."""
    user = accounts.name(os.getuid())
    said = f'it is there, and only user {user} may use it: ask them to set socket_group\n'
    monkeypatch.setattr(client, 'SYSTEM', tmp_path / 'nowhere')
    monkeypatch.setattr(remote, 'LOCAL', 'http://127.0.0.1:1')
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    monkeypatch.setattr(os, 'access', lambda _, mode: mode == os.F_OK)
    found = run()[2]
    assert 'no service answers at http://127.0.0.1:1/' in found
    assert found.endswith(f', and of {at_socket} this user may make no use: {said}')
    monkeypatch.setattr(client, 'connect', refuse)
    assert run('--url', f'unix://{at_socket}')[2] == f'cyborg-lite: unix://{at_socket}: {said}'


def refuse(*_):
    raise PermissionError(13, 'Permission denied')


def test_scenario_15_a_pipe(at_socket, tmp_path, run, monkeypatch):
    """Lines of 80 columns, no control characters, the same fields in each row; nobody blocks it."""
    url = f'unix://{at_socket}'
    with socket.socket(socket.AF_UNIX) as hung:
        # An agent that does not answer.
        hung.bind(str(tmp_path / 'agent.sock'))
        hung.listen()
        monkeypatch.setenv(client.VARIABLE, str(tmp_path / 'agent.sock'))
        monkeypatch.setattr(leasing, 'PATIENCE', 0.05)
        status, out, err = run('--url', url)
        rows = json.loads(run('--url', url, '-f', 'json')[1])
    assert (status, err, '\x1b' in out) == (0, '', False)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert len({tuple(each) for each in rows}) == 1
    assert {each['state'] for each in rows} == {'free', 'held'}


@pytest.mark.parametrize('form', ['json', 'csv'])
def test_formats_for_programs(service, served, run, form):
    status, out, _ = run('--url', served(service.embedded.application), '-f', form)
    assert status == 0
    rows = json.loads(out) if form == 'json' else list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 5
    [held] = [row for row in rows if row['state'] == 'held']
    assert held['instance_uuid'] == support.INSTANCE
    assert held['host'] == 'host-1'


@pytest.mark.parametrize(('form', 'said'), [('table', True), ('json', False), ('csv', False)])
def test_devices_without_accelerators_are_mentioned(database_url, served, run, form, said):
    made = support.Service(database_url)
    try:
        made.report(support.card('3b', handles=0), support.card('5e', handles=0))
        status, out, _ = run('--url', served(made.embedded.application), '-f', form)
    finally:
        made.stop()
    assert status == 0
    assert 'No accelerator was found' not in out
    assert (out == 'Devices were found, and nothing of them is given out.\n') == said


@pytest.mark.parametrize(
    ('access', 'said'),
    [
        ({'h1': 'acl'}, ['Access is enforced.']),
        ({'h1': 'advisory'}, ['Access is advisory.']),
        ({'h1': None}, []),
        ({'h1': 'of a later release'}, []),
        ({'h1': None, 'h2': None}, []),
        ({'h1': 'acl', 'h2': 'acl'}, ['Access is enforced on 2 hosts.']),
        (
            {'h1': 'acl', 'h2': 'advisory', 'h3': None},
            ['Access is enforced on 1 host, advisory on 1 host.'],
        ),
    ],
)
def test_it_is_said_what_the_kernel_enforces(access, said):
    assert ps._access([{'host': host, 'access': each} for host, each in access.items()]) == said


@pytest.mark.parametrize(
    ('row', 'said'),
    [
        ({}, 'idle 31 min'),
        ({'idle_since': None}, 'held'),
        ({'health': 'warning'}, 'warning'),
        ({'states': ['missing', 'held']}, 'missing'),
    ],
)
def test_an_idle_holder_is_told(row, said):
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=31, seconds=7)
    idle = {'state': 'held', 'states': ['held'], 'idle_since': since.isoformat()}
    assert ps._states(idle | row) == said
    assert ps._cut('STATE', said) == said


def test_a_service_of_the_release_before_tells_of_no_idle_holder():
    assert ps._states({'state': 'held', 'states': ['held']}) == 'held'


@pytest.mark.parametrize(
    ('columns', 'more'), [(80, 0), (87, 1), (101, 2), (118, 3), (132, 4), (None, 4)]
)
def test_a_process_is_a_holder(database_url, served, run, monkeypatch, columns, more):
    if columns:
        monkeypatch.setattr('sys.stdout.isatty', lambda: True)
        monkeypatch.setattr('shutil.get_terminal_size', lambda: mock.Mock(columns=columns))
    made = support.Service(database_url)
    process = {
        'boot_id': 'b', 'pid': 4711, 'started': 1, 'uid': 7, 'user': 'jane', 'command': 'sh',
    }  # fmt: skip
    try:
        made.report(support.card('3b'), agent='agent-1')
        agent = made.embedded.bus.leases(context.service())
        about = {'host': support.HOST, 'agent': 'agent-1'}
        row = agent.lease(process=process, request={'seconds': 10000, 'name': 'job'}, **about)
        agent = made.embedded.bus.leases(context.service(), version=rpc.CONTAINERS)
        agent.contain(containers={row['uuid']: '0123456789ab'}, **about)
        url = served(made.embedded.application)
        status, out, _ = run('--url', url)
        [row] = csv.DictReader(io.StringIO(run('--url', url, '-f', 'csv')[1]))
        [told] = json.loads(run('--url', url, '-f', 'json')[1])
    finally:
        made.stop()
    assert status == 0
    assert ' held   jane 4711  ' in out
    assert all(len(line) <= (columns or 999) for line in out.splitlines())
    heading, shown, *_ = out.splitlines()
    assert heading.split()[6:] == ['LEFT', 'NAME', 'COMMAND', 'CONTAINER'][:more]
    assert re.split('  +', shown)[6:] == ['2 h', 'job', 'sh', '0123456789ab'][:more]
    fields = 'pid', 'process', 'command', 'allocation_name', 'user_name'
    assert [told[name] for name in fields] == [4711, 'jane 4711', 'sh', 'job', 'jane']
    assert told['lease_ends_at']
    assert row['container'] == '0123456789ab'


def test_a_user_is_a_holder(database_url, served, run, monkeypatch):
    made = support.Service(database_url)
    caller = {'HTTP_X_USER_ID': 'f00d', 'HTTP_X_USER_NAME': 'ann'}
    ann = context.RequestContext.from_environ(caller, project_id='vision')
    request = {'profile': None, 'alternatives': [[{'resources:FPGA': '1'}]], 'same_host': True}
    request |= {'same_numa': 'prefer', 'hosts': None}
    try:
        made.report(support.card('3b'))
        made.embedded.bus.conductor(ann).create_allocation(request=request)
        url = served(made.embedded.application)
        _, anonymous, _ = run('--url', url)
        monkeypatch.setenv('OS_TOKEN', 'ignored')
        _, out, _ = run('--url', url)
        [row] = csv.DictReader(io.StringIO(run('--url', url, '-f', 'csv')[1]))
    finally:
        made.stop()
    assert ' held   ann  ' in out
    # Without authentication the name would be that of all allocations.
    assert ' ann ' not in anonymous
    assert (row['project_id'], row['user_name']) == ('vision', 'ann')


@pytest.mark.parametrize(
    ('row', 'shown'),
    [
        ({'process': 'lab 4711', 'claimed_name': 'jane'}, 'lab (jane)'),
        ({'process': 'l 7', 'claimed_name': 'jane'}, 'l 7 (jane)'),
        ({'process': 'lab', 'claimed_name': 'jane'}, 'lab (jane)'),
        ({'process': 'lab 4711', 'claimed_name': None}, 'lab 4711'),
        ({'user_name': 'lab', 'claimed_name': '简'}, 'lab (简)'),
        ({'allocation_uuid': 'a-1', 'claimed_name': 'jane'}, '(jane)'),
        ({'process': 'lab 4711'}, 'lab 4711'),
    ],
)
def test_who_shares_a_login_is_told_apart(row, shown):
    assert ps._holder(row) == shown


@pytest.mark.parametrize(
    ('columns', 'shown'),
    [(70, 'lab (jane)'), (80, 'lab (jane)'), (84, 'lab 4711 (jane)'), (300, 'lab 4711 (jane)')],
)
def test_a_wide_terminal_shows_the_pid_beside_a_claimed_name(monkeypatch, columns, shown):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    monkeypatch.setattr('shutil.get_terminal_size', lambda: mock.Mock(columns=columns))
    row = {'pid': 4711, 'process': 'lab 4711', 'claimed_name': 'jane'}
    assert ps._holder(row, ps._widths([row])['HOLDER']) == shown


def test_a_long_claimed_name_leaves_room_for_other_columns():
    row = {'pid': 4711, 'process': 'lab 4711', 'claimed_name': 'j' * 64}
    assert ps._widths([row])['HOLDER'] == ps.HOLDER


@pytest.mark.parametrize(
    ('columns', 'note'), [(80, None), (100, 'ablation 3, the th…'), (None, 'all')]
)
def test_a_note_is_shown_where_there_is_room(monkeypatch, service, served, run, columns, note):
    words = 'ablation 3, the third of the ninth week'
    groups = [{'resources': {'FPGA': 1}}]
    body = {'groups': groups, 'note': words, 'claimed_name': 'jane'}
    assert service.api.post('/v2/allocations', body).status_int == 201
    if columns:
        monkeypatch.setattr('sys.stdout.isatty', lambda: True)
        monkeypatch.setattr('shutil.get_terminal_size', lambda: mock.Mock(columns=columns))
    _, out, _ = run('--url', served(service.embedded.application))
    heading, *rows = out.splitlines()
    assert heading.endswith('  NOTE') == bool(note)
    [row] = [each for each in rows if '(jane)' in each]
    assert all(len(line) <= (columns or 999) for line in out.splitlines())
    assert note is None or row.endswith(words if note == 'all' else note)


def test_a_rogue_is_shown_in_place_of_a_holder(database_url, served, run):
    made = support.Service(database_url)
    try:
        made.report(support.card('3b', rogue='4711 bob (python) since 2026-11-27T09:00Z'))
        status, out, _ = run('--url', served(made.embedded.application))
    finally:
        made.stop()
    assert status == 0
    assert ' rogue  bob 4711 (p…' in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_an_allocation_is_a_holder(service, served, run):
    groups = [{'resources': {'FPGA': 1}}]
    made = service.api.post('/v2/allocations', {'groups': groups}).json
    consumer = {'type': 'process', 'id': 'host/boot/1/2/0/root/init'}
    body = {'groups': groups, 'name': 'train-7', 'consumer': consumer}
    named = service.api.post('/v2/allocations', body).json
    _, out, _ = run('--url', served(service.embedded.application))
    assert made['uuid'][:8] in out
    assert named['uuid'][:8] not in out
    assert ' train-7 ' in out


def test_the_process_of_another_user_is_told_by_the_agent(at_socket, service, run, monkeypatch):
    """The API tells it nobody of another project; what has no process has its user."""
    [row] = service.api.get('/v2/accelerators?state=held').json['accelerators']
    lease = {'state': 'active', 'user': 'bob', 'command': 'train', 'accelerators': [row]}
    leases = [lease | {'pid': 4711}, lease | {'pid': 0}]
    monkeypatch.setattr(client, 'find', lambda: 'agent.sock')
    monkeypatch.setattr(leasing, 'listed', lambda *_: leases)
    status, out, _ = run('--url', f'unix://{at_socket}')
    assert (status, ' held   bob 4711  ' in out, ' train' in out) == (0, True, True), out
    rows = json.loads(run('--url', f'unix://{at_socket}', '-f', 'json')[1])
    assert [each['pid'] for each in rows if each['state'] == 'held'] == [4711]
    monkeypatch.setattr(leasing, 'listed', lambda *_: [])
    assert '4711' not in run('--url', f'unix://{at_socket}')[1]


@pytest.mark.parametrize(
    ('health', 'state'), [('ok', 'held'), ('warning', 'warning'), ('critical', 'critical')]
)
def test_a_holder_sees_that_a_card_is_not_well(service, served, run, health, state):
    with service.database.writer() as session:
        session.query(model.Device).update({'health': health, 'health_reason': 'pcie_width'})
    url = served(service.embedded.application)
    [held] = [row for row in run('--url', url)[1].splitlines() if support.INSTANCE[:11] in row]
    assert f' {state} ' in held
    rows = csv.DictReader(io.StringIO(run('--url', url, '-f', 'csv')[1]))
    assert {(row['health'], row['health_reason']) for row in rows} == {(health, 'pcie_width')}


def test_a_certificate_is_trusted_if_its_authority_is_named(run, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('127.0.0.1').configure_cert(context)
    file = tmp_path / 'ca.pem'
    authority.cert_pem.write_to_path(file)

    def application(environ, start_response):
        start_response('200 OK', [('Content-Type', 'application/json')])
        return [b'{"accelerators": [], "devices": []}']

    with test_server.serving(application, tls=context) as made:
        url = f'https://127.0.0.1:{made.bind_addr[1]}'
        status, _, errors = run('--url', url)
        assert status == 1
        assert 'name its authority with --cacert' in errors
        assert run('--url', url, '--cacert', str(file)) == (0, 'No accelerator was found.\n', '')


@pytest.mark.parametrize('text', [None, 'no certificate'])
def test_an_authority_that_cannot_be_read(run, tmp_path, text):
    file = tmp_path / 'ca.pem'
    if text is not None:
        file.write_text(text)
    status, _, errors = run('--url', 'https://127.0.0.1:1', '--cacert', str(file))
    assert (status, errors.count('\n')) == (1, 1)
    assert f'--cacert {file}: expected a certificate in PEM form' in errors


def test_credentials_are_not_sent_where_a_redirect_leads(served, run, monkeypatch):
    monkeypatch.setenv('OS_TOKEN', 'secret')
    asked = []

    def other(environ, start_response):
        asked.append(environ.get('HTTP_X_AUTH_TOKEN'))
        start_response('200 OK', [('Content-Type', 'application/json')])
        return [b'{"accelerators": [], "devices": []}']

    elsewhere = served(other)

    def application(environ, start_response):
        start_response('302 Found', [('Location', f'{elsewhere}/v2/accelerators')])
        return [b'']

    status, _, errors = run('--url', served(application))
    assert (status, asked) == (1, [])
    assert f"leads to '{elsewhere}/v2/accelerators'" in errors


@pytest.mark.parametrize('answer', [b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{', b'\x15\x03'])
def test_an_answer_that_is_cut_off(run, answer):
    with socket.create_server(('127.0.0.1', 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        status, _, errors = run('--url', f'http://127.0.0.1:{listener.getsockname()[1]}')
        thread.join()
    assert (status, errors.count('\n')) == (1, 1)


def test_it_is_listed_again_until_it_is_interrupted(service, served):
    url = served(service.embedded.application)
    command = [process.COMMAND, 'ps', '--url', url, '-f', 'json', '--watch', '0.01']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        lists = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=process.BOUND)
    assert watching.returncode == 0
    assert b'Traceback' not in errors
    assert [len(rows) for rows in lists] == [5] * 3


def test_a_pipe_gets_no_control_characters(service, served):
    """Control characters clear the terminal between two tables."""
    url = served(service.embedded.application)
    command = [process.COMMAND, 'ps', '--url', url, '--watch', '0.01']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        lines = [watching.stdout.readline() for _ in range(12)]
        watching.kill()
    assert lines[0] == lines[6]
    assert all(line.rstrip('\n').isprintable() for line in lines)


def test_credentials_are_sent(served, run, monkeypatch):
    asked = []

    def application(environ, start_response):
        asked.append((environ.get('HTTP_AUTHORIZATION'), environ.get('HTTP_X_AUTH_TOKEN')))
        start_response('200 OK', [('Content-Type', 'application/json')])
        return [b'{"accelerators": [], "devices": []}']

    url = served(application)
    assert run('--url', url)[1] == 'No accelerator was found.\n'
    monkeypatch.setenv('OS_TOKEN', 'secret')
    run('--url', url)
    monkeypatch.setenv('CYBORG_LITE_PASSWORD', 'secret')
    run('--url', url, '--user', 'ann')
    # Without accelerators it reads devices.
    assert asked[::2] == asked[1::2]
    assert asked[::2] == [(None, None), (None, 'secret'), ('Basic YW5uOnNlY3JldA==', None)]


def test_a_new_token_is_sent_once_it_is_there(served, monkeypatch):
    """A program that renews a lease runs longer than a token lasts."""
    asked = []

    def application(environ, start_response):
        asked.append(environ.get('HTTP_X_AUTH_TOKEN'))
        start_response('200 OK', [('Content-Type', 'application/json')])
        return [b'{}']

    monkeypatch.setenv('OS_TOKEN', 'first')
    service = remote.Service(served(application))
    service.ask('GET', 'allocations')
    monkeypatch.setenv('OS_TOKEN', 'second')
    service.ask('GET', 'allocations')
    assert asked == ['first', 'second']


NO_PASSWORD = (
    'cyborg-lite: the password cannot be read from the terminal: put it into CYBORG_LITE_PASSWORD\n'
)


@pytest.mark.parametrize(
    'error',
    [EOFError(), termios.error(25, 'Inappropriate ioctl for device'), getpass.GetPassWarning('a')],
    ids=repr,
)
def test_a_password_that_cannot_be_read(run, monkeypatch, error):
    monkeypatch.setattr(getpass, 'getpass', mock.Mock(side_effect=error))
    assert run('--user', 'ann') == (1, '', NO_PASSWORD)


@pytest.mark.parametrize('stdin', ['', 'secret\n'])
def test_a_password_is_read_from_the_environment_without_a_terminal(stdin):
    command = [sys.executable, '-c', 'from cyborg_lite.cmd import entry; exit(entry.main())']
    done = subprocess.run(
        [*command, 'ps', '--user', 'ann'],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,  # has no terminal
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, '', NO_PASSWORD)


@pytest.mark.parametrize(
    ('status', 'body', 'said'),
    [
        ('403 F', b'{"errors": [{"detail": "Not you."}]}', 'answers 403: Not you.'),
        ('200 OK', b'<html>', 'is not answered as by this service'),
        ('200 OK', b'[]', 'is not answered as by this service'),
        ('404 N', b'{"errors": []}', 'is not answered as by this service'),
        ('200 OK', b'[' * 200_000, 'is not answered as by this service'),
        ('403 F', b'{"errors": [{"detail": "a\\u001b[2J\\nb"}]}', 'answers 403: a?[2J?b'),
    ],
)
def test_refusals_are_told_in_a_line(served, run, status, body, said):
    def application(environ, start_response):
        start_response(status, [('Content-Type', 'application/json')])
        return [body]

    url = served(application)
    assert run('--url', url) == (1, '', f'cyborg-lite: {url}/v2/accelerators {said}\n')


@pytest.mark.parametrize(
    ('scheme', 'user', 'said'),
    [
        ('Basic realm="a"', [], 'not known. Give the name of a user with --user.'),
        ('Basic realm="a"', ['--user', 'ann'], 'not known. The name or the password is wrong.\n'),
        ('Keystone uri="a"', [], 'not known. Put a token into OS_TOKEN: "openstack token issue'),
    ],
)
def test_a_service_that_requires_authentication(served, run, monkeypatch, scheme, user, said):
    monkeypatch.setenv('CYBORG_LITE_PASSWORD', 'secret')

    def application(environ, start_response):
        headers = [('Content-Type', 'application/json'), ('WWW-Authenticate', scheme)]
        start_response('401 Unauthorized', headers)
        return [b'{"errors": [{"detail": "You are not known."}]}']

    status, _, error = run('--url', served(application), *user)
    assert (status, error.count('\n')) == (1, 1)
    assert said in error


def test_http_and_https_are_told_apart(served, run):
    issued = trustme.CA().issue_cert('127.0.0.1')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    with test_server.serving(tls=context) as made:
        port = made.bind_addr[1]
        _, _, error = run('--url', f'http://127.0.0.1:{port}/v2/')
        assert error.endswith(f'if it is a service with TLS, give --url https://127.0.0.1:{port}\n')
    url = served(lambda environ, start_response: [])
    _, _, error = run('--url', url.replace('http', 'https'))
    assert error.endswith(f'has no TLS: give --url {url}\n')


def test_no_service(run):
    status, out, error = run('--url', 'http://127.0.0.1:1')
    assert (status, out, error.count('\n')) == (1, '', 1)
    assert 'http://127.0.0.1:1' in error


@pytest.mark.parametrize('url', ['ftp://127.0.0.1', 'nothing', 'http:/a', '127.0.0.1:6666'])
def test_a_url_of_another_form(run, url):
    said = f'cyborg-lite: --url {url}: expected http://, https:// or unix:// at its beginning\n'
    assert run('--url', url) == (1, '', said)


@pytest.mark.parametrize('seconds', ['0', '-1', 'x', 'nan', 'inf'])
def test_watch_needs_a_time(run, seconds):
    with pytest.raises(SystemExit) as exit_:
        run(f'--watch={seconds}')
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ('seconds', 'shown'), [(0, '0 s'), (59, '59 s'), (61, '1 min'), (7200, '2 h'), (10**6, '11 d')]
)
def test_since(seconds, shown, monkeypatch):
    now = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
    monkeypatch.setattr(time, 'time', now.timestamp)
    moment = now - datetime.timedelta(seconds=seconds)
    assert ps._since(moment.isoformat()) == shown


def test_text_that_would_move_the_cursor():
    assert ps._cut('HOST', 'a\x1b[2J\n') == 'a?[2J?'
    assert ps._cut('ADDRESS', '10000:00:02.0') == '…000:00:02.0'
    row = dict.fromkeys(ps.CSV) | {'model': 'a\x1b[2J', 'uuid': 'u'}
    assert ps._csv([row]).splitlines()[1].split(',')[:7] == ['u', '', '', '', '', '', 'a?[2J']


@pytest.mark.parametrize(
    ('column', 'shown'),
    [('MODEL', '昇腾昇腾昇…'), ('HOLDER', '昇腾昇腾昇…'), ('ADDRESS', '…腾昇腾昇腾')],
)
def test_wide_characters_take_two_columns(column, shown):
    assert ps._cut(column, '昇腾' * 4) == shown
    assert ps._cut(column, '昇腾') == '昇腾'


@pytest.mark.parametrize(
    ('holder', 'shown'),
    [
        ('root (averyv)', 'root (avery…'),
        ('root (王小明)', 'root (王小…'),
        ('root (王小)', 'root (王小)'),
    ],
)
def test_a_holder_that_is_cut_says_so(holder, shown):
    assert ps._cut('HOLDER', holder) == shown


ODD = dict.fromkeys(ps.CSV, 7) | {'allocation_uuid': None}


@pytest.mark.parametrize(
    ('form', 'row'),
    [
        ('csv', {}),
        ('csv', 'a'),
        ('table', {'uuid': 'a'}),
        ('table', 'a'),
        ('table', ODD | {'attach_info': 'x'}),
        ('table', ODD | {'attach_info': {}, 'held_since': 'x'}),
    ],
)
def test_rows_of_another_service(served, run, form, row):
    def application(environ, start_response):
        start_response('200 OK', [('Content-Type', 'application/json')])
        return [json.dumps({'accelerators': [row], 'accelerators_links': []}).encode()]

    url = served(application)
    said = f'cyborg-lite: {url} does not answer as this service\n'
    assert run('--url', url, '-f', form) == (1, '', said)

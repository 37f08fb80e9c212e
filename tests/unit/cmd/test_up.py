# SPDX-License-Identifier: Apache-2.0
import contextlib
import datetime
import grp
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import sqlite3
import stat
import sys
import time

import bcrypt
from cryptography.hazmat.primitives import serialization
import pytest
import trustme

from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite import model
from cyborg_lite import service
from cyborg_lite.cmd import introduction
from cyborg_lite.cmd import main
from cyborg_lite.driver import host
from tests import support
from tests.unit import test_startup
from tests.unit.cmd import process

URL = 'http://127.0.0.1:6666'
DOOR = introduction.Door(f'{URL}/', URL, 'curl -s', open=True)


@pytest.fixture
def up(tmp_path, monkeypatch, capsys):
    """Run the command in this process: its status and output."""
    monkeypatch.setattr(service, 'prepare', lambda conf: None)
    # The command changes the umask of this process.
    umask = os.umask(0o022)

    def run(*arguments):
        state = ['--state-dir', str(tmp_path / 'state')]
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite', 'up', *state, *arguments])
        # This process must keep its signal handlers.
        monkeypatch.setattr(signal, 'signal', lambda *_: None)
        status = main.main()
        return status, capsys.readouterr().err

    yield run
    os.umask(umask)


@pytest.mark.parametrize(
    'address', ['0.0.0.0', '::', '192.0.2.1', 'fe80::1', 'example.com', 'localhost.example.com', '']
)
def test_open_to_everybody_without_authentication(up, address):
    status, said = up('--bind', address)
    assert status == 1
    assert said == (
        f'cyborg-lite: refusing to listen on {address} without authentication: everyone who '
        'reaches it would be administrator. Listen on 127.0.0.1, or set auth_strategy = '
        'http_basic in the [api] section of a --config-file.\n'
    )


def test_systemd_is_told_once_the_sockets_are_there(tmp_path):
    """As sd_notify(3) describes it."""
    socket_ = tmp_path / 'agent.sock'
    (tmp_path / 'up.conf').write_text(f'[agent]\nsocket = {socket_}\n')
    arguments = '--host', 'hgx-8gpu', '--config-file', str(tmp_path / 'up.conf')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / 'notify'))
        told.settimeout(process.BOUND)
        with process.Up(tmp_path, *arguments, NOTIFY_SOCKET=str(tmp_path / 'notify')):
            assert told.recv(100) == b'READY=1'
            assert socket_.is_socket()


@pytest.mark.parametrize('address', ['127.0.0.1', '127.8.9.1', '::1', 'localhost'])
def test_loopback_is_let_through(up, address, monkeypatch):
    reached = []
    monkeypatch.setattr(
        service, 'listen', lambda app, address, *_: reached.append(address) or taken()
    )
    assert up('--bind', address)[0] == 1
    assert reached == [address]


def taken():
    raise OSError('enough')


@pytest.fixture
def http_basic(tmp_path):
    """The arguments that ask for names and passwords: ann's is "secret"."""
    users = tmp_path / 'htpasswd'
    users.write_text(f'ann:{bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}\n')
    file = tmp_path / 'a.conf'
    file.write_text(f'[api]\nauth_strategy = http_basic\nhttp_basic_auth_user_file = {users}\n')
    return ['--config-file', str(file)]


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """The files of a certificate for 127.0.0.1 and its key."""
    place = tmp_path_factory.mktemp('tls')
    issued = trustme.CA().issue_cert('127.0.0.1')
    issued.cert_chain_pems[0].write_to_path(place / 'cert.pem')
    issued.private_key_pem.write_to_path(place / 'key.pem')
    return place


def tls(place):
    return ['--tls-cert', str(place / 'cert.pem'), '--tls-key', str(place / 'key.pem')]


def test_passwords_do_not_cross_the_network_in_plain_text(up, http_basic, monkeypatch):
    monkeypatch.setattr(service, 'listen', lambda *_: taken())
    assert up('--bind', '0.0.0.0', *http_basic) == (
        1,
        'cyborg-lite: refusing to listen on 0.0.0.0 with http_basic and without TLS: passwords '
        'would cross the network in plain text. Give --tls-cert and --tls-key, or accept the '
        'risk with --insecure.\n',
    )


KEYSTONE = '[api]\nauth_strategy = keystone\n'


@pytest.mark.parametrize('section', ['', test_startup.section()])
def test_tokens_do_not_cross_the_network_in_plain_text(up, tmp_path, monkeypatch, section):
    monkeypatch.setattr(service, 'listen', lambda *_: taken())
    file = tmp_path / 'a.conf'
    file.write_text(KEYSTONE + section)
    status, said = up('--bind', '0.0.0.0', '--config-file', str(file))
    assert status == 1
    if section:
        assert said.startswith(
            'cyborg-lite: refusing to listen on 0.0.0.0 with keystone and without TLS: tokens '
            'would cross the network in plain text.'
        )
    else:
        assert 'there is no section [keystone_authtoken]' in said
    assert said.count('\n') == 1


def test_a_missing_section_of_keystone_is_said_at_the_start(up, tmp_path, monkeypatch):
    monkeypatch.setattr(service, 'listen', lambda *_: taken())
    file = tmp_path / 'a.conf'
    file.write_text(KEYSTONE)
    status, said = up('--config-file', str(file))
    assert status == 1
    assert said.startswith('cyborg-lite: [api] auth_strategy is keystone and there is no section ')
    assert said.count('\n') == 1


@pytest.mark.parametrize(
    ('address', 'projects', 'warned'),
    [('0.0.0.0', False, True), ('0.0.0.0', True, False), ('127.0.0.1', False, False)],
)
def test_that_every_user_is_an_administrator_is_said(
    up, http_basic, tmp_path, monkeypatch, address, projects, warned
):
    monkeypatch.setattr(service, 'listen', lambda *_: taken())
    if projects:
        file = tmp_path / 'projects'
        file.write_text('ann:vision:member\n')
        with open(http_basic[1], 'a') as conf:
            conf.write(f'http_basic_auth_project_file = {file}\n')
    _, said = up('--bind', address, '--insecure', *http_basic)
    assert 'enough' in said
    assert (f'every user of {tmp_path}/htpasswd is an administrator' in said) == warned


@pytest.mark.parametrize('way', ['tls', 'insecure', 'loopback'])
def test_authentication_opens_an_address(up, http_basic, certificate, monkeypatch, way):
    monkeypatch.setattr(service, 'listen', lambda *_: taken())
    more = {
        'tls': ['--bind', '0.0.0.0', *tls(certificate)],
        'insecure': ['--bind', '0.0.0.0', '--insecure'],
        'loopback': ['--bind', '::ffff:127.0.0.1'],
    }
    status, said = up(*more[way], *http_basic)
    assert status == 1
    assert 'enough' in said


@pytest.mark.parametrize('more', [['--insecure'], 'tls'])
def test_nothing_opens_an_address_without_authentication(up, certificate, more):
    more = tls(certificate) if more == 'tls' else more
    status, said = up('--bind', '0.0.0.0', *more)
    assert status == 1
    assert 'without authentication' in said


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'--tls-key': None}, '--tls-cert and --tls-key need each other'),
        ({'--tls-cert': None}, '--tls-cert and --tls-key need each other'),
        ({'--tls-cert': 'none.pem'}, '--tls-cert {}/none.pem: No such file or directory'),
        ({'--tls-key': 'none.pem'}, '--tls-key {}/none.pem: No such file or directory'),
        ({'--tls-cert': 'text'}, '--tls-cert {}/text: expected a certificate in PEM form'),
        ({'--tls-cert': 'key.pem'}, '--tls-cert {}/key.pem: expected a certificate in PEM form'),
        ({'--tls-key': 'text'}, '--tls-key {}/text: expected a private key in PEM form'),
        ({'--tls-key': 'cert.pem'}, '--tls-key {}/cert.pem: expected a private key in PEM form'),
        ({'--tls-key': 'locked.pem'}, '--tls-key {}/locked.pem: expected a private key in PEM'),
        ({'--tls-key': 'other.pem'}, '--tls-key {0}/other.pem: not the key of the certificate {0}'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tls_files_that_cannot_be_used_are_named(up, certificate, change, said):
    (certificate / 'text').write_text('text')
    other = trustme.CA().issue_cert('127.0.0.1').private_key_pem
    other.write_to_path(certificate / 'other.pem')
    locked = serialization.load_pem_private_key(other.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b'secret'),
    )
    (certificate / 'locked.pem').write_bytes(locked)
    files = {'--tls-cert': 'cert.pem', '--tls-key': 'key.pem'} | change
    words = [
        word for option, file in files.items() if file for word in (option, str(certificate / file))
    ]
    status, error = up(*words)
    assert status == 1
    assert error.startswith(f'cyborg-lite: {said.format(certificate)}')
    assert error.count('\n') == 1


def test_https(tmp_path, certificate, http_basic):
    with process.Up(tmp_path, '--host', 'atlas-800t-a2', *tls(certificate), *http_basic) as up:
        assert up.url.startswith('https://127.0.0.1:')
        ask = f'curl -s --cacert {certificate}/cert.pem -u ann:secret {up.url}/v2/devices'
        assert len(json.loads(process.shell(ask))['devices']) == 8
        old = process.shell(f'{ask} --tls-max 1.1 || echo refused')
        assert old == 'refused\n'
        assert up.interrupt() == 0
        assert 'Traceback' not in up.errors()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_for_no_client(tmp_path, number):
    (tmp_path / 'bare' / 'sys').mkdir(parents=True)
    with process.Up(tmp_path, '--host', str(tmp_path / 'bare')) as up, contextlib.ExitStack() as s:
        _, _, port = up.url.rpartition(':')
        for head in [b'', b'GET / HTTP/1.1\r\n', b'POST / HTTP/1.1\r\nContent-Length: 9\r\n'] * 40:
            s.enter_context(socket.create_connection(('127.0.0.1', int(port)))).sendall(head)
        assert up.get('/')['versions']
        began = time.monotonic()
        # A second signal changes nothing.
        up.send(number)
        assert up.interrupt(number) == 0
        assert time.monotonic() - began < 5
        assert 'Traceback' not in up.errors()


def test_a_stop_waits_for_no_lock(tmp_path):
    """A request waits for SQLite's lock for 30 s."""
    (tmp_path / 'bare' / 'sys').mkdir(parents=True)
    with process.Up(tmp_path, '--host', str(tmp_path / 'bare')) as up:
        _, _, port = up.url.rpartition(':')
        file = tmp_path / 'state' / 'cyborg_lite.described.sqlite'
        holder = sqlite3.connect(file, isolation_level=None, timeout=process.BOUND)
        client = http.client.HTTPConnection('127.0.0.1', int(port))
        with contextlib.closing(holder), contextlib.closing(client):
            holder.execute('BEGIN IMMEDIATE')
            profile = json.dumps([{'name': 'a', 'groups': [{'resources:FPGA': '1'}]}])
            headers = {'Content-Type': 'application/json'}
            client.request('POST', '/v2/device_profiles', profile, headers)
            # A later request is answered.
            assert up.get('/')['versions']
            began = time.monotonic()
            assert up.interrupt(signal.SIGTERM) == 0
            # 15 s on a busy machine; 5 s otherwise.
            assert time.monotonic() - began < 15
        assert 'Traceback' not in up.errors()
        log = (tmp_path / 'state' / 'cyborg-lite.log').read_text()
        assert 'The process ends while threads are busy: http_' in log


def test_files_are_of_the_user_alone(tmp_path):
    """Also in a directory that other users may enter, and for files of an older release."""
    state = tmp_path / 'state'
    state.mkdir()
    state.chmod(0o755)
    for name in ('cyborg_lite.sqlite', 'cyborg-lite.log', 'cyborg-lite.log.1'):
        (state / name).touch()
        (state / name).chmod(0o644)
    (tmp_path / 'another').touch(0o644)
    (tmp_path / 'another').chmod(0o644)
    (state / 'cyborg-lite.log.2').symlink_to(tmp_path / 'another')
    with process.Up(tmp_path, '--host', 'hgx-8gpu'):
        files = [path for path in state.iterdir() if path.is_file() and not path.is_symlink()]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    made = {'cyborg_lite.described.sqlite', 'cyborg_lite.described.sqlite-wal'}
    assert made | {'cyborg_lite.sqlite', 'cyborg-lite.log'} <= modes.keys()
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / 'another').stat().st_mode) == 0o644


@pytest.mark.parametrize('mode', [0o777, 0o770, 0o1777])
def test_state_directory_that_others_may_write_is_refused(up, tmp_path, mode):
    state = tmp_path / 'state'
    state.mkdir()
    state.chmod(mode)
    victim = tmp_path / 'victim'
    victim.write_text('precious')
    (state / 'lock').symlink_to(victim)
    status, said = up()
    assert (status, said.count('\n')) == (1, 1)
    assert f'the state directory {state} belongs to another user, or others may write it' in said
    assert victim.read_text() == 'precious'
    # Its own user may have made the link.
    state.chmod(0o700)
    status, said = up()
    assert (status, said.count('\n')) == (1, 1)
    assert victim.read_text() == 'precious'


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a directory away')
def test_state_directory_of_another_user_is_refused(up, tmp_path):
    state = tmp_path / 'state'
    state.mkdir(0o755)
    os.chown(state, 65534, 65534)
    status, said = up()
    assert status == 1
    assert 'belongs to another user' in said


def test_two_hosts_of_one_name(up):
    status, said = up('--host', 'hgx-8gpu', '--host', 'hgx-8gpu')
    assert status == 1
    assert said == 'cyborg-lite: two hosts have the name hgx-8gpu: each needs its own\n'


def sockets(tmp_path):
    return [each.name for each in (tmp_path / 'state').iterdir() if each.is_socket()]


def test_port_that_is_taken(up, tmp_path):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        status, said = up('--port', str(other.getsockname()[1]))
    assert status == 1
    assert re.fullmatch(r'cyborg-lite: .*in use.*--port.*\n', said)
    assert sockets(tmp_path) == []


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--host', 'nobody'], "cyborg-lite: no host 'nobody': expected one that comes with us ("),
        (['--host', 'atlas800t'], 'a recorded sys/. Did you mean atlas-800t-a2?\n'),
        (['--config-file', '/nowhere/a.conf'], 'cyborg-lite: Failed to find some config files'),
    ],
)
def test_mistakes_are_told_in_a_line(up, arguments, said):
    status, error = up(*arguments)
    assert status == 1
    assert said in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('port', ['-1', '65536', '99999'])
def test_invalid_port(up, port):
    with pytest.raises(SystemExit) as exit_:
        up('--port', port)
    assert exit_.value.code == 2


def test_from_a_host_to_a_bound_accelerator(tmp_path):
    """The first part of the README."""
    with process.Up(tmp_path, '--host', 'atlas-800t-a2', '--long') as up:
        rows = up.rows()
        assert len(rows) == 8
        assert {(r['Host'], r['Type'], r['Driver'], r['Free']) for r in rows} == {
            ('atlas-800t-a2', 'AICHIP', 'huawei_ascend', '1/1')
        }
        assert {row['NUMA'] for row in rows} == {'0', '2', '4', '6'}
        assert {row['Device'] for row in rows} == {
            d['uuid'] for d in up.get('/v2/devices')['devices']
        }
        # Run the printed text in a shell, and once more.
        requests = up.requests()
        bound = []
        for _ in range(2):
            shown = process.shell(requests).strip()
            arq, _ = json.JSONDecoder().raw_decode(shown[shown.rindex('{"uuid"') :])
            assert (arq['state'], arq['hostname']) == ('Bound', 'atlas-800t-a2')
            bound.append(arq['attach_handle_info']['bus'])
        assert 'already exists' not in shown
        assert len({*bound} & {row['Address'][5:7] for row in rows}) == 2
        assert up.interrupt() == 0
        assert 'Stopping.' in up.errors()
        assert 'Traceback' not in up.errors()
    # A second start finds its state again, and offers the rest.
    with process.Up(tmp_path, '--host', 'atlas-800t-a2', '--long') as up:
        again = up.get(f'/v2/accelerator_requests/{arq["uuid"]}')
        assert {**again, 'links': None} == {**arq, 'links': None}
        assert sorted((row['Free'], row['State']) for row in up.rows()) == [
            *[('0/1', 'held')] * 2,
            *[('1/1', 'free')] * 6,
        ]
        assert {row['Device'] for row in up.rows()} == {row['Device'] for row in rows}
        assert up.interrupt(signal.SIGTERM) == 0
    # A run without that host marks it as down at once, and shows nothing of it as free.
    (tmp_path / 'bare' / 'sys').mkdir(parents=True)
    with process.Up(tmp_path, '--host', str(tmp_path / 'bare')) as up:
        assert {(row['Free'], row['State']) for row in up.rows()} == {('0/1', 'not of this run')}
        assert 'down' in {host['state'] for host in up.get('/v2/hosts')['hosts']}
        found = up.get('/v2/accelerators')['accelerators']
        assert [each['states'][0] for each in found] == ['host down'] * 8
        assert up.get('/v2/accelerators?free=true')['accelerators'] == []
    # This machine has a database of its own.
    conf = tmp_path / 'fake.conf'
    conf.write_text('[agent]\nenabled_drivers = fake\n')
    with process.Up(tmp_path, '--config-file', str(conf)) as up:
        assert {(row['Type'], row['Free']) for row in up.rows()} == {('FPGA', '16/16')}
        assert {each['type'] for each in up.get('/v2/accelerators')['accelerators']} == {'FPGA'}
        assert 'Ask for one' not in up.text
        assert up.interrupt() == 0


def test_many_hosts(tmp_path):
    arguments = [word for name in sorted(host.shipped()) for word in ('--host', name)]
    with process.Up(tmp_path, *arguments) as up:
        assert {row['Host'] for row in up.rows()} == set(host.shipped())
        assert up.interrupt() == 0


def test_nothing_found(tmp_path):
    (tmp_path / 'bare' / 'sys').mkdir(parents=True)
    with process.Up(tmp_path, '--host', str(tmp_path / 'bare')) as up:
        assert up.rows() == []
        assert 'No accelerator was found.' in up.text
        for name in ('huawei_ascend', 'nvidia_gpu', 'amd_gpu', 'intel_gaudi', 'pci'):
            assert f'bare: {name} looked in {tmp_path}/bare and found nothing' in up.text
        assert 'cyborg-lite up --host atlas-300i-duo --host atlas-800t-a2' in up.text
        assert up.get('/v2/devices')['devices'] == []
        assert up.interrupt() == 0


def test_driver_that_cannot_look_is_named(tmp_path):
    (tmp_path / 'a.conf').write_text('[agent]\nenabled_drivers = huawei_ascend, no_such\n')
    arguments = ['--host', 'atlas-800t-a2', '--config-file', str(tmp_path / 'a.conf')]
    with process.Up(tmp_path, *arguments) as up:
        assert len(up.rows()) == 8
        assert 'atlas-800t-a2: no_such is degraded: no entry point of that name' in up.text
        assert up.interrupt() == 0


CONF = """
[DEFAULT]
debug = true
log_file = {log}
[agent]
enabled_drivers = fake
report_interval = 1
[conductor]
healing_interval = 1
outbox_interval = 1
[placement]
auth_type = none
endpoint_override = http://127.0.0.1:1
"""


#: Those of the agent, its leases, the healer, and the senders of four kinds of messages.
WORKERS = 7


@pytest.mark.parametrize('place', ['logs', 'state'])
def test_log_whose_directory_is_away_for_a_while_ends_nothing(tmp_path, place):
    """The directory ``state`` also has the database."""
    log, conf = tmp_path / place / 'up.log', tmp_path / 'up.conf'
    log.parent.mkdir()
    conf.write_text(CONF.format(log=log))
    with process.Up(tmp_path, '--host', 'hgx-8gpu', '--config-file', str(conf)) as up:
        up.until(lambda: up.workers() == WORKERS)
        log.rename(log.with_suffix('.1'))
        log.parent.rename(tmp_path / 'elsewhere')
        end = time.monotonic() + 6
        while time.monotonic() < end:
            status, body = up.ask('/v2/hosts')
            assert body
            assert status == 200 or place == 'state'
            time.sleep(0.1)
        (tmp_path / 'elsewhere').rename(log.parent)
        back = datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat()
        up.until(lambda: up.ask('/v2/hosts')[0] == 200)
        up.until(lambda: up.get('/v2/hosts')['hosts'][0]['seen_at'] > back)
        assert up.get('/v2/hosts')['hosts'][0]['state'] == 'up'
        up.until(lambda: up.workers() == WORKERS)
        up.until(lambda: log.exists() and 'cyborg_lite' in log.read_text())
        assert up.interrupt() == 0


SLOW = """
import pathlib, time
from cyborg_lite import driver
from cyborg_lite.drivers import fake

class Slow(fake.FakeDriver):
    name, scans = 'slow', 0

    def discover(self):
        self.scans += 1
        if self.scans == 1:
            time.sleep(3)
        while self.scans > 1 and not pathlib.Path({go_on!r}).exists():
            time.sleep(0.1)
        return super().discover()
"""


def test_driver_that_is_slow_first_and_hangs_then(tmp_path):
    """Its findings are shown, though a report is due earlier; then its host stays up."""
    go_on = tmp_path / 'go on'
    (tmp_path / 'slow.py').write_text(SLOW.format(go_on=str(go_on)))
    package = tmp_path / 'slow-1.dist-info'
    package.mkdir()
    (package / 'METADATA').write_text('Metadata-Version: 2.1\nName: slow\nVersion: 1\n')
    (package / 'entry_points.txt').write_text('[cyborg_lite.drivers]\nslow = slow:Slow\n')
    (tmp_path / 'a.conf').write_text('[agent]\nenabled_drivers = slow\nreport_interval = 1\n')
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])
    arguments = ['--host', 'hgx-8gpu', '--long', '--config-file', str(tmp_path / 'a.conf')]
    with process.Up(tmp_path, *arguments, PYTHONPATH=path) as up:
        assert [row['Driver'] for row in up.rows()] == ['slow']

        def state():
            [host] = up.get('/v2/hosts')['hosts']
            assert host['state'] == 'up'
            assert len(host['devices']) == 1
            return host['drivers']['slow']['state']

        up.until(lambda: state() == 'degraded')
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert state() == 'degraded'
        go_on.touch()
        up.until(lambda: state() == 'ok')
        assert up.interrupt() == 0


def test_two_on_one_state_directory(tmp_path, up):
    """The second is refused with the pid; a third may start when the first has ended."""
    (tmp_path / 'bare' / 'sys').mkdir(parents=True)
    bare = ['--host', str(tmp_path / 'bare')]
    with process.Up(tmp_path, *bare) as first:
        assert up('--port', '0', *bare) == (
            1,
            f'cyborg-lite: {tmp_path}/state is in use by process {first.pid}: end that first, or '
            'give another --state-dir\n',
        )
        # It continues when its terminal is closed.
        first.send(signal.SIGHUP)
        assert first.get('/')['versions']
        assert first.interrupt() == 0
    with process.Up(tmp_path, *bare) as next_:
        assert next_.get('/')['versions']


def test_host_without_a_name(up, capsys):
    with pytest.raises(SystemExit) as exit_:
        up('--host', '')
    assert exit_.value.code == 2


@pytest.mark.parametrize('name', ['qu?e', 'st%20x', 'a$host'])
def test_state_directory_that_cannot_be_in_a_url(up, tmp_path, name):
    status, said = up('--state-dir', str(tmp_path / name))
    assert status == 1
    expected = 'expected a path without "?", "%" and "$"'
    assert said == f'cyborg-lite: --state-dir {tmp_path}/{name}: {expected}\n'


def test_state_directory_that_is_a_file(up, tmp_path):
    (tmp_path / 'file').write_text('')
    status, said = up('--state-dir', str(tmp_path / 'file'))
    assert status == 1
    assert f'{tmp_path}/file cannot be made: File exists. Name another one with --state-dir' in said
    assert said.count('\n') == 1


@pytest.mark.parametrize('damage', ['text', 'revision'])
def test_database_that_cannot_be_used(up, tmp_path, damage):
    state = tmp_path / 'state'
    state.mkdir()
    if damage == 'text':
        (state / 'cyborg_lite.sqlite').write_text('no database' * 1000)
    else:
        with contextlib.closing(sqlite3.connect(state / 'cyborg_lite.sqlite')) as made:
            made.execute('CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)')
            made.execute("INSERT INTO alembic_version VALUES ('fedcba987654')")
            made.commit()
    status, said = up('--port', '0')
    assert status == 1
    assert said.startswith(f'cyborg-lite: the database sqlite:///{state}/cyborg_lite.sqlite cannot')
    assert said.count('\n') == 1


@pytest.mark.parametrize(
    ('connection', 'reason'),
    [
        ('no url', 'expected a URL such as'),
        ('nosuch://localhost/a', 'expected a URL such as'),
        ('mssql+pyodbc://localhost/a', 'the driver of the database is not installed'),
    ],
)
def test_invalid_database_connection(up, tmp_path, connection, reason):
    file = tmp_path / 'up.conf'
    file.write_text(f'[database]\nconnection = {connection}\n')
    status, said = up('--port', '0', '--config-file', str(file))
    assert status == 1
    assert said.startswith('cyborg-lite: ')
    assert reason in said
    assert said.count('\n') == 1


def test_all_addresses(tmp_path, http_basic):
    """The printed URL and commands work unchanged, except for the password."""
    with process.Up(
        tmp_path, '--host', 'atlas-800t-a2', '--bind', '0.0.0.0', '--insecure', *http_basic
    ) as up:
        assert up.url.startswith('http://127.0.0.1:')
        shown = json.loads(process.shell(up.requests().replace('NAME:PASSWORD', 'ann:secret')))
        assert (shown['state'], len(shown['accelerators'])) == ('active', 1)
        assert up.interrupt() == 0


def test_the_printed_requests_work_for_members(tmp_path, http_basic):
    projects = tmp_path / 'projects'
    projects.write_text('ann:vision:member\n')
    with open(http_basic[1], 'a') as conf:
        conf.write(f'http_basic_auth_project_file = {projects}\n')
    with process.Up(tmp_path, '--host', 'atlas-800t-a2', *http_basic) as up:
        requests = up.requests().replace('NAME:PASSWORD', 'ann:secret')
        # Pasted again.
        for _ in range(2):
            shown = json.loads(process.shell(requests))
            assert (shown['state'], shown['project_id']) == ('active', 'vision')
        [*_, last] = requests.strip().splitlines()
        assert '-X DELETE' in last
        assert up.interrupt() == 0


@pytest.mark.parametrize('text', ['', '[api]\nauth_strategy = keystone\n'])
def test_no_port_is_served(tmp_path, text):
    """The printed requests work, whatever the strategy is at a port."""
    conf = tmp_path / 'a.conf'
    conf.write_text(text and text + test_startup.section())
    arguments = ['--host', 'atlas-800t-a2', '--socket-only', '--config-file', str(conf)]
    path = tmp_path / 'state' / 'api.sock'
    with process.Up(tmp_path, *arguments) as up:
        assert up.url == f'unix://{path}'
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        shown = json.loads(process.shell(up.requests()))
        assert (shown['state'], len(shown['accelerators'])) == ('active', 1)
        descriptors = [os.readlink(each) for each in pathlib.Path(f'/proc/{up.pid}/fd').iterdir()]
        sockets = {each[8:-1] for each in descriptors if each.startswith('socket:[')}
        # Source: proc_net(5): the state of a socket that listens is 0A, and the inode is the tenth.
        rows = [row.split() for row in pathlib.Path('/proc/net/tcp').read_text().splitlines()[1:]]
        assert not [row for row in rows if row[3] == '0A' and row[9] in sockets]
        assert up.interrupt() == 0
    assert not path.exists()


def test_the_socket_is_served_beside_the_port(tmp_path):
    path = tmp_path / 'state' / 'api.sock'
    with process.Up(tmp_path, '--host', 'atlas-800t-a2') as up:
        project = accounts.project(os.getuid(), accounts.name(os.getuid()), {})
        wish = json.dumps({'groups': [{'resources': {'CUSTOM_NPU': 1}}]})
        post = f"curl -s {introduction.JSON} -d '{wish}'"
        at_socket = f'{post} --unix-socket {path} http://localhost/v2/allocations'
        assert json.loads(process.shell(at_socket))['project_id'] == project
        at_port = f'{post} {up.url}/v2/allocations'
        assert json.loads(process.shell(at_port))['project_id'] == '0' * 31 + '1'
        assert up.interrupt() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ('text', 'more', 'said'),
    [
        ('socket =', ['--socket-only'], '--socket-only: [api] socket is not set'),
        ('socket_group = nobodies', [], '[api] socket: there is no group nobodies: see'),
        ('socket = {}/file', [], 'file is in the way: expected a socket, or nothing'),
        ('socket = {}/none/a', [], '[api] socket: '),
        ('socket = {}/' + 's' * 81, [], 'expected a file name of at most 80 bytes'),
    ],
)
def test_a_socket_that_cannot_be_served(up, tmp_path, text, more, said):
    (tmp_path / 'file').touch()
    conf = tmp_path / 'a.conf'
    conf.write_text(f'[api]\n{text.format(tmp_path)}\n')
    status, error = up('--host', 'atlas-800t-a2', '--config-file', str(conf), *more)
    assert status == 1
    assert said in error
    assert sockets(tmp_path) == []


def test_tls_without_a_port(up, certificate):
    assert up('--socket-only', *tls(certificate)) == (
        1,
        'cyborg-lite: --socket-only: a Unix socket has no TLS: leave out --tls-cert\n',
    )


def test_that_a_group_is_let_in_while_all_are_administrators_is_said(up, tmp_path, monkeypatch):
    monkeypatch.setattr(service, 'listen', lambda *_: taken())
    conf = tmp_path / 'a.conf'
    conf.write_text(f'[api]\nsocket_group = {grp.getgrgid(os.getgid()).gr_name}\n')
    warning = 'every user of this machine is an administrator at 127.0.0.1: give --socket-only'
    assert warning in up('--config-file', str(conf))[1]
    assert warning not in up()[1]


def test_the_reason_of_a_card_is_below_the_table(database_url, tmp_path, capsys):
    made = support.Service(database_url, [host.find('hgx-8gpu', tmp_path)])
    try:
        [agent] = made.embedded.agents
        assert agent.manager.reported.wait(process.BOUND)
        device = made.rows(model.Device)[0]
        made.api.post(f'/v2/devices/{device.uuid}/disable')
        for long, lines in (False, 1), (True, 0):
            introduction.show(made.embedded, DOOR, long)
            said = capsys.readouterr().out
            line = f'hgx-8gpu: {device.address} is disabled: its device is maintaining\n'
            assert said.count(line) == lines
            [row] = [each for each in said.splitlines() if f'| {device.address} ' in each]
            assert [cell.strip() for cell in row.split('|')][7:9] == ['0/1', 'disabled']
    finally:
        made.stop()


@pytest.mark.parametrize('name', sorted(host.shipped()))
def test_a_table_fits_100_columns(database_url, tmp_path, capsys, name):
    made = support.Service(database_url, [host.find(name, tmp_path)])
    try:
        [agent] = made.embedded.agents
        assert agent.manager.reported.wait(process.BOUND)
        introduction.show(made.embedded, DOOR, long=False)
        table = [line for line in capsys.readouterr().out.splitlines() if line[:1] in ('|', '+')]
        assert len(table) > 4
        assert max(map(len, table)) <= 100
    finally:
        made.stop()


CONSOLE = """
functions:
- id: 10de:2684
  class: 030000
  files: {boot_vga: 1}
  at: {0: [0000:01:00.0]}
"""
MEDIATED = """
functions:
- id: 10de:1eb8
  class: 030200
  files: {mdev_supported_types/nvidia-222/devices/0: ''}
  at: {0: [0000:01:00.0]}
"""
UNTYPED = """
functions:
- id: 10de:2335
  class: 030200
  at: {0: [0000:01:00.0]}
  virtual: {id: 10de:2335, total: 16, enabled: 2, offset: 4, stride: 1,
            files: {0: {nvidia/current_vgpu_type: 0}, 1: {nvidia/current_vgpu_type: 0}}}
"""
GOLDEN = """
functions:
- id: 10ee:d00c
  class: 120000
  at: {0: [0000:01:00.0]}
"""
SPLIT = """
functions:
- id: 19e5:d802
  class: 120000
  at: {0: [0000:01:00.0]}
dev: [davinci0, vdavinci100]
"""
FREE = """
- id: 8086:37c8
  class: 0b4000
  at: {0: [0000:02:00.0]}
"""


@pytest.fixture
def introduce(database_url, tmp_path, capsys):
    """Run the service on a described host in this process; returns the output of up."""
    made = []

    def introduce(text):
        (tmp_path / 'a.yaml').write_text(text)
        made.append(
            support.Service(database_url, [host.find(str(tmp_path / 'a.yaml'), tmp_path / 'hosts')])
        )
        [agent] = made[0].embedded.agents
        assert agent.manager.reported.wait(process.BOUND)
        introduction.show(made[0].embedded, DOOR, long=False)
        return capsys.readouterr().out

    yield introduce
    for service_ in made:
        service_.stop()


def test_a_driver_that_is_not_enabled_is_named(introduce, monkeypatch):
    monkeypatch.setattr(introduction.agent_drivers, 'idle', lambda conf: ['acme_npu'])
    said = introduce(f'functions:{FREE}')
    assert 'acme_npu is installed but not enabled: see [agent] enabled_drivers\n' in said


@pytest.mark.parametrize(
    ('text', 'free', 'reason', 'others'),
    [
        (CONSOLE, '0/1', 'it shows the console of the host (boot_vga)', False),
        (MEDIATED, '0/0', 'its mediated devices are in use', False),
        (MEDIATED, '0/0', 'its mediated devices are in use', True),
        (UNTYPED, '0/0', 'none of its virtual functions has a vGPU type', False),
        (GOLDEN, '0/0', 'it has no function for users', False),
        (SPLIT, '0/1', 'it is split into vNPUs (/dev/vdavinci100)', False),
    ],
    ids=['console', 'mediated', 'mediated and another', 'untyped', 'golden', 'split'],
)
def test_a_card_without_usable_accelerators_is_shown(introduce, text, free, reason, others):
    said = introduce(text.replace('functions:', f'functions:{FREE}') if others else text)
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in said.splitlines()
        if line.startswith('|')
    ]
    states = {row[4]: tuple(row[-2:]) for row in rows[1:]}
    free_ = {'0000:02:00.0': ('1/1', 'free')} if others else {}
    assert states == {'0000:01:00.0': (free, 'unusable')} | free_
    assert f'a: 0000:01:00.0 is unusable: its device cannot be used: {reason}' in said
    assert 'No accelerator was found' not in said
    assert 'found nothing' not in said
    assert 'Try hosts' not in said


@pytest.mark.parametrize('parts', [0, 1])
def test_a_card_whose_driver_gives_no_reason_is_shown(database_url, parts):
    made = support.Service(database_url)
    try:
        card = support.card('3b', handles=0)
        card.deployables = card.deployables[:parts]
        made.report(card, support.card('5e'))
        [device, _] = made.rows(model.Device)
        for state, reason in [
            ('unusable', 'its driver reports no accelerators of it'),
            ('disabled', 'its device is maintaining'),
        ]:
            with made.database.reader() as session:
                rows = introduction._rows(session, [support.HOST])
                others = introduction._rows(session, ['another'])
            # A device without a deployable comes last.
            shown, other = rows if parts else reversed(rows)
            assert shown == [
                *(support.HOST, 'FPGA', '0xABCD', 'miss model info', '0000:3b:00.0', '', '0/0'),
                *(state, 'fake' if parts else '', device.uuid, reason),
            ]
            assert other[6:8] == ['1/1', 'free']
            assert {row[4]: row[6:8] for row in others} == {
                '0000:3b:00.0': ['0/0', 'not of this run'],
                '0000:5e:00.0': ['0/1', 'not of this run'],
            }
            made.api.post(f'/v2/devices/{device.uuid}/disable')
    finally:
        made.stop()


def test_hosts_of_earlier_runs_are_told_once():
    def row(host, state, reason):
        return [host, 'GPU', 'x', 'y', '0000:01:00.0', '0', '0/1', state, 'd', 'u', reason]

    rows = [row('a', 'held', ''), row('a', 'disabled', 'its device is maintaining')]
    rows += [row('b', introduction.ABSENT, 'its device is in b, which is down')] * 3
    assert list(introduction._reasons(rows)) == [
        'a: 0000:01:00.0 is disabled: its device is maintaining',
        'b: 3 devices of an earlier run. Name it with --host, or forget it: openstack accelerator '
        'host delete b',
    ]


def test_a_socket_elsewhere_is_exported(monkeypatch, tmp_path):
    """The commands look in the state directory, and in that of the system."""
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    for place in client.places(client.SOCKET):
        assert introduction._local(str(place)).endswith(f' ask at {place}.')
    path = f'/srv/a b/{client.SOCKET}'
    said = introduction._local(path)
    assert said.endswith(f" ask at {path} after:\n  export CYBORG_LITE_SOCKET='{path}'")


def test_long_names_are_wrapped(service, monkeypatch, capsys):
    """The table is at most 100 characters wide."""
    name, model_ = f'{"gpu-" * 15}.example.org', 'A model of a long name ' * 3
    service.report(support.card(model=model_.strip()), host=name)
    monkeypatch.setattr(service.embedded, 'agents', [])
    door = introduction.Door('http://a', 'http://a', 'curl', True)
    introduction.show(service.embedded, door, long=False)
    table = [line for line in capsys.readouterr().out.splitlines() if line[:1] in ('+', '|')]
    [width] = {len(line) for line in table}
    assert 80 < width <= 100

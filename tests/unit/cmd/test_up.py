# SPDX-License-Identifier: Apache-2.0
import json
import re
import signal
import socket
import sys

import pytest

from cyborg_lite import service
from cyborg_lite.cmd import main
from cyborg_lite.driver import host
from tests.unit.cmd import process


@pytest.fixture
def up(tmp_path, monkeypatch, capsys):
    """Run the command in this process, as far as it goes: status and what it says."""
    monkeypatch.setattr(service, 'prepare', lambda conf: None)

    def run(*arguments):
        state = ['--state-dir', str(tmp_path / 'state')]
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite', 'up', *state, *arguments])
        status = main.main()
        return status, capsys.readouterr().err

    return run


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


@pytest.mark.parametrize('address', ['127.0.0.1', '127.8.9.1', '::1', 'localhost'])
def test_loopback_is_let_through(up, address, monkeypatch):
    reached = []
    monkeypatch.setattr(
        service, 'listen', lambda app, address, port: reached.append(address) or taken()
    )
    assert up('--bind', address)[0] == 1
    assert reached == [address]


def taken():
    raise OSError('enough')


def test_authentication_opens_any_address(up, tmp_path, monkeypatch):
    monkeypatch.setattr(service, 'listen', lambda app, address, port: taken())
    (tmp_path / 'htpasswd').write_text('')
    (tmp_path / 'a.conf').write_text(
        f'[api]\nauth_strategy = http_basic\nhttp_basic_auth_user_file = {tmp_path}/htpasswd\n'
    )
    status, said = up('--bind', '0.0.0.0', '--config-file', str(tmp_path / 'a.conf'))
    assert (status, said) == (1, 'cyborg-lite: enough\n')


def test_two_hosts_of_one_name(up):
    status, said = up('--host', 'hgx-8gpu', '--host', 'hgx-8gpu')
    assert status == 1
    assert said == 'cyborg-lite: two hosts have the name hgx-8gpu: each needs its own\n'


def test_port_that_is_taken(up):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        status, said = up('--port', str(other.getsockname()[1]))
    assert status == 1
    assert re.fullmatch(r'cyborg-lite: .*in use.*\n', said)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--host', 'nobody'], "cyborg-lite: no host 'nobody': expected one that comes with us ("),
        (['--config-file', '/nowhere/a.conf'], 'cyborg-lite: Failed to find some config files'),
    ],
)
def test_mistakes_are_told_in_a_line(up, arguments, said):
    status, error = up(*arguments)
    assert status == 1
    assert error.startswith(said)
    assert error.count('\n') == 1


@pytest.mark.parametrize('port', ['-1', '65536', '99999'])
def test_port_that_is_none(up, port):
    with pytest.raises(SystemExit) as exit_:
        up('--port', port)
    assert exit_.value.code == 2


def test_from_a_host_to_a_bound_accelerator(tmp_path):
    """The first screen of the README, done."""
    with process.Up(tmp_path, '--host', 'atlas-800t-a2') as up:
        rows = up.rows()
        assert len(rows) == 8
        assert {(r['Host'], r['Type'], r['Driver'], r['Free/total']) for r in rows} == {
            ('atlas-800t-a2', 'AICHIP', 'huawei_ascend', '1/1')
        }
        assert {row['NUMA node'] for row in rows} == {'0', '2', '4', '6'}
        assert {row['Device'] for row in rows} == {
            d['uuid'] for d in up.get('/v2/devices')['devices']
        }
        # As they stand, pasted into a shell.
        shown = process.shell(up.requests()).strip()
        arq, _ = json.JSONDecoder().raw_decode(shown[shown.rindex('{"uuid"') :])
        assert arq['state'] == 'Bound'
        assert arq['hostname'] == 'atlas-800t-a2'
        assert arq['attach_handle_info']['bus'] in {row['Address'][5:7] for row in rows}
        assert up.interrupt() == 0
        assert 'Stopping.' in up.errors()
        assert 'Traceback' not in up.errors()
    # A second start finds its state again, and offers what is left.
    with process.Up(tmp_path, '--host', 'atlas-800t-a2') as up:
        again = up.get(f'/v2/accelerator_requests/{arq["uuid"]}')
        assert {**again, 'links': None} == {**arq, 'links': None}
        assert sorted(row['Free/total'] for row in up.rows()) == ['0/1'] + ['1/1'] * 7
        assert {row['Device'] for row in up.rows()} == {row['Device'] for row in rows}
        assert arq['device_rp_uuid'] not in up.requests()
        assert up.interrupt(signal.SIGTERM) == 0


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
        for name in ('huawei_ascend', 'nvidia_gpu', 'intel_qat', 'xilinx_fpga', 'pci'):
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

# SPDX-License-Identifier: Apache-2.0
"""The API under another web server."""

import json
import time

import bcrypt
import pytest
import requests

from tests.integration import process

APPLICATION = 'cyborg_lite.wsgi.api:application'


@pytest.fixture(params=['noauth', 'http_basic'])
def conf(request, tmp_path):
    users = tmp_path / 'htpasswd'
    users.write_text(f'admin:{bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}\n')
    file = tmp_path / 'conf'
    file.write_text(
        f'[DEFAULT]\ntransport_url = fake://\n'
        f'[api]\nauth_strategy = {request.param}\nhttp_basic_auth_user_file = {users}\n'
        f'[database]\nconnection = sqlite:///{tmp_path}/database\n'
    )
    process.run('cyborg-lite-dbsync', '--config-file', file, 'upgrade')
    return request.param, file


def test_gunicorn(conf, tmp_path):
    strategy, file = conf
    server = process.serving(
        *('gunicorn', '--bind', '127.0.0.1:0', '--workers', '2', '--threads', '2'),
        APPLICATION,
        ready=r'Listening at: (http://127.0.0.1:\d+)',
        log=tmp_path / 'log',
        CYBORG_LITE_CONFIG_FILE=str(file),
        HOME=str(tmp_path),  # where gunicorn has a socket of its own
    )
    with server as gunicorn:
        url = f'{gunicorn.ready[1]}/v2'
        assert requests.get(url, timeout=60).json()['id'] == 'v2.0'
        auth = ('admin', 'secret') if strategy == 'http_basic' else None
        for path in ('devices', 'accelerator_requests', 'device_profiles'):
            answer = requests.get(f'{url}/{path}', auth=auth, timeout=60)
            assert answer.status_code == 200, answer.text
        if auth:
            answer = requests.get(f'{url}/devices', timeout=60)
            assert answer.status_code == 401
            assert json.loads(answer.json()['error_message'])['code'] == 401
            assert answer.headers['WWW-Authenticate'].startswith('Basic')
        assert gunicorn.stop() == 0
    log = (tmp_path / 'log').read_text()
    assert 'Traceback' not in log, log


def test_gunicorn_reads_options_anew(tmp_path):
    """SIGHUP: workers are replaced, and requests are still answered."""
    file = tmp_path / 'conf'
    text = (
        '[DEFAULT]\ntransport_url = fake://\n[api]\nauth_strategy = noauth\n'
        'public_endpoint = http://before.example\n'
        f'[database]\nconnection = sqlite:///{tmp_path}/database\n'
    )
    file.write_text(text)
    process.run('cyborg-lite-dbsync', '--config-file', file, 'upgrade')
    server = process.serving(
        *('gunicorn', '--bind', '127.0.0.1:0', '--workers', '2', APPLICATION),
        ready=r'Listening at: (http://127.0.0.1:\d+)',
        log=tmp_path / 'log',
        CYBORG_LITE_CONFIG_FILE=str(file),
        HOME=str(tmp_path),
    )

    def link():
        return requests.get(gunicorn.ready[1], timeout=60).json()['versions'][0]['links'][0]['href']

    with server as gunicorn:
        assert link().startswith('http://before.example')
        file.write_text(text.replace('before', 'after'))
        gunicorn.reload()
        end = time.monotonic() + process.PATIENCE
        while not link().startswith('http://after.example'):
            assert time.monotonic() < end
        assert gunicorn.stop() == 0

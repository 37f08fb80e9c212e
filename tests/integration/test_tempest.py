# SPDX-License-Identifier: Apache-2.0
"""Tempest's API tests of Cyborg, by ``tempest run``."""

import configparser
import re
import subprocess

import pytest

from tests.integration import cloud as cloud_
from tests.integration import process

TESTS = r'^cyborg_tempest_plugin\.tests\.api\.'
#: The timeout of all tests together, in seconds.
LIMIT = 600


@pytest.fixture
def workspace(tmp_path, cloud, service):
    """Tempest's directory: it creates projects and users of its own, and there is no Nova."""
    process.run('tempest', 'init', tmp_path / 'tempest', HOME=str(tmp_path))
    conf = configparser.RawConfigParser()
    conf.read_dict(
        {
            'DEFAULT': {'log_dir': str(tmp_path)},
            'oslo_concurrency': {'lock_path': str(tmp_path / 'lock')},
            'auth': {
                'use_dynamic_credentials': 'true',
                'create_isolated_networks': 'false',
                'admin_username': 'admin',
                'admin_password': cloud_.PASSWORD,
                'admin_project_name': 'admin',
                'admin_domain_name': 'Default',
                'admin_user_domain_name': 'Default',
                'admin_project_domain_name': 'Default',
            },
            'identity': {'uri_v3': cloud.url, 'auth_version': 'v3', 'region': cloud_.REGION},
            'service_available': dict.fromkeys(
                ('cinder', 'glance', 'horizon', 'neutron', 'nova', 'swift'), 'false'
            ),
            'cyborg_policy': {'enforce_new_defaults': 'true'},
        }
    )
    with (tmp_path / 'tempest' / 'etc' / 'tempest.conf').open('w') as file:
        conf.write(file)
    return tmp_path / 'tempest'


def test_tempest(workspace, tmp_path):
    done = subprocess.run(
        [process.BIN / 'tempest', 'run', '--concurrency', '2', '--regex', TESTS],
        cwd=workspace,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        env=process.clean(HOME=str(tmp_path)),
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20000:]
    results = dict(re.findall(r'^ - ([\w ]+): (\d+)$', done.stdout, re.M))
    assert int(results['Passed']) >= 33, results
    assert (results['Failed'], results['Skipped'], results['Unexpected Success']) == ('0',) * 3

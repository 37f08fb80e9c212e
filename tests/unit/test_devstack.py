# SPDX-License-Identifier: Apache-2.0
"""The devstack plugin in a devstack that only writes down what it is asked for."""

import os
import pathlib
import shlex
import subprocess

import pytest

from cyborg_lite import conf as options

PLUGIN = pathlib.Path(__file__).parents[2] / 'devstack'
ALL = 'key,placement-api,tempest,cyborg-lite-api,cyborg-lite-conductor,cyborg-lite-agent'
PHASES = (
    'stack pre-install', 'stack install', 'stack post-config', 'stack extra', 'stack test-config',
)  # fmt: skip
#: devstack's and grenade's functions, as far as the plugin knows them.
STUBS = """
set -o errexit -o nounset -o pipefail
function record { printf '%q ' "$@" >> "$PLACE/calls"; echo >> "$PLACE/calls"; }
for name in configure_keystone_authtoken_middleware create_service_user define_plugin \
    devstack_localrc enable_apache_site enable_service ensure_services_started \
    ensure_services_stopped get_or_create_endpoint get_or_create_service iniset_rpc_backend \
    recreate_database register_db_to_save register_project_for_upgrade remove_uwsgi_config \
    restart_apache_server run_process setup_develop setup_logging stop_process upgrade_project \
    wait_for_service write_uwsgi_config; do
    eval "function $name { record $name \\"\\$@\\"; }"
done
function database_connection_url { echo "mysql+pymysql://root:secret@127.0.0.1/$1"; }
function die { echo "died: $2"; exit 1; }
function echo_summary { :; }
function get_python_exec_prefix { echo "$PLACE/bin"; }
function iniset { printf '[%s]\\n%s = %s\\n' "$2" "$3" "$4" >> "$1"; }
function is_service_enabled { [[ ",$ENABLED_SERVICES," == *",$1,"* ]]; }
function sudo { "$@"; }
function which { echo "/venv/bin/$1"; }
"""


class Devstack:
    def __init__(self, place):
        self.place = place
        self.conf = place / 'etc' / 'cyborg_lite.conf'
        (place / 'bin').mkdir()
        for command in ('cyborg-lite-dbsync', 'cyborg-lite-status'):
            self.command(command, 0)
        for file in ('functions', 'grenaderc', 'stackrc', 'lib/tls', 'lib/apache'):
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).write_text(STUBS if file == 'functions' else '')

    def command(self, name, status):
        """A command of ours that notes how it is called."""
        file = self.place / 'bin' / name
        file.write_text(f'#!/bin/bash\necho {name} "$@" >> {self.place}/calls\nexit {status}\n')
        file.chmod(0o755)

    def run(self, script, services=ALL, check=True):
        """What the functions of devstack are called with meanwhile."""
        (self.place / 'calls').write_text('')
        done = subprocess.run(
            ['bash', '-c', STUBS + script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                'PATH': os.environ['PATH'],
                'PLACE': str(self.place),
                'CYBORG_LITE_CONF_DIR': str(self.place / 'etc'),
                'TEMPEST_CONFIG': str(self.place / 'tempest.conf'),
                **dict.fromkeys(
                    ('GRENADE_DIR', 'BASE_DEVSTACK_DIR', 'TARGET_DEVSTACK_DIR', 'SAVE_DIR'),
                    str(self.place),
                ),
                'BASE_DEVSTACK_BRANCH': 'stable/old',
                'TARGET_DEVSTACK_BRANCH': 'master',
                'DEST': '/opt/stack',
                'DEVSTACK_VENV': '/venv',
                'ENABLED_SERVICES': services,
                'ENABLE_DEBUG_LOG_LEVEL': 'True',
                'KEYSTONE_SERVICE_URI': 'http://198.51.100.1/identity',
                'REGION_NAME': 'RegionOne',
                'SERVICE_DOMAIN_NAME': 'Default',
                'SERVICE_HOST': '198.51.100.1',
                'SERVICE_PASSWORD': 'secret',
                'SERVICE_PROJECT_NAME': 'service',
                'SERVICE_PROTOCOL': 'http',
                'SERVICE_TIMEOUT': '60',
                'SSL_BUNDLE_FILE': '/ca.pem',
                'STACK_USER': str(os.getuid()),
            },
        )
        if check:
            assert (done.returncode, done.stderr) == (0, ''), done.stdout + done.stderr
        self.said = done.stdout
        return [shlex.split(line) for line in (self.place / 'calls').read_text().splitlines()]

    def phase(self, *phases, **more):
        return self.run('\n'.join(f'source {PLUGIN}/plugin.sh {each}' for each in phases), **more)

    def files(self):
        return {
            str(file.relative_to(self.place)): file.read_text()
            for file in (*self.place.glob('etc/*'), self.place / 'tempest.conf')
        }


@pytest.fixture
def devstack(tmp_path):
    return Devstack(tmp_path)


def names(calls):
    return [call[0] for call in calls]


def test_settings(devstack):
    assert devstack.run(f'source {PLUGIN}/settings') == [
        ['define_plugin', 'cyborg_lite'],
        ['enable_service', 'cyborg-lite-api', 'cyborg-lite-conductor', 'cyborg-lite-agent'],
    ]


def test_stack(devstack):
    calls = devstack.phase(*PHASES)
    root = str(PLUGIN.parent)
    assert ['setup_develop', root, 'client,mysql,postgresql'] in calls
    assert ['create_service_user', 'cyborg', 'service'] in calls
    assert ['get_or_create_service', 'cyborg', 'accelerator'] in [call[:3] for call in calls]
    endpoint = 'http://198.51.100.1/accelerator/v2'
    assert ['get_or_create_endpoint', 'accelerator', 'RegionOne', endpoint] in calls
    application = 'cyborg_lite.wsgi.api:application'
    uwsgi = f'{devstack.place}/etc/cyborg-lite-api-uwsgi.ini'
    assert [
        'write_uwsgi_config', uwsgi, application, '/accelerator', '', 'cyborg-lite-api',
    ] in calls  # fmt: skip
    started = {call[1]: call[2] for call in calls if call[0] == 'run_process'}
    bin_ = devstack.place / 'bin'
    assert started == {
        'cyborg-lite-conductor': f'{bin_}/cyborg-lite-conductor --config-file {devstack.conf}',
        'cyborg-lite-agent': f'{bin_}/cyborg-lite-agent --config-file {devstack.conf}',
        'cyborg-lite-api': '/venv/bin/uwsgi --procname-prefix cyborg-lite-api '
        f'--ini {uwsgi} --venv /venv',
    }
    order = names(calls)
    assert order.index('recreate_database') < order.index('cyborg-lite-dbsync')
    assert order.index('cyborg-lite-dbsync') < order.index('run_process')
    assert ['wait_for_service', '60', 'http://198.51.100.1/accelerator/'] in calls
    assert 'service_available]\ncyborg = True' in (devstack.place / 'tempest.conf').read_text()


def test_configuration_is_read(devstack):
    devstack.phase(*PHASES)
    conf = options.load(files=[str(devstack.conf)])
    assert conf.database.connection == 'mysql+pymysql://root:secret@127.0.0.1/cyborg_lite'
    assert conf.agent.enabled_drivers == ['fake']
    assert conf.api.auth_strategy == 'keystone'
    assert conf.oslo_policy.policy_file == str(devstack.place / 'etc' / 'policy.yaml')
    for group in ('placement', 'nova'):
        assert conf[group].auth_type == 'password'
        assert conf[group].cafile == '/ca.pem'
        assert conf[group].region_name == 'RegionOne'


def test_again(devstack):
    """Each phase may be run again, alone or with the others, and leaves the same."""
    calls = devstack.phase(*PHASES)
    files = devstack.files()
    assert devstack.phase(*PHASES) == calls
    (devstack.place / 'tempest.conf').unlink()
    for phase in PHASES:
        assert devstack.phase(phase) == devstack.phase(phase)
    (devstack.place / 'tempest.conf').unlink()
    devstack.phase('stack test-config')
    assert devstack.files() == files
    for phase in ('unstack', 'clean'):
        assert devstack.phase(f'{phase} ""') == devstack.phase(f'{phase} ""') != []


def test_host_that_has_an_agent_alone(devstack):
    calls = devstack.phase(*PHASES, services='n-cpu,cyborg-lite-agent')
    assert not {'recreate_database', 'create_service_user', 'write_uwsgi_config'} & {*names(calls)}
    text = devstack.conf.read_text()
    assert '[agent]' in text
    # It reaches no database, and speaks to no other service.
    assert 'secret' not in text


@pytest.mark.parametrize('missing', ['key', 'placement-api'])
def test_service_that_is_missing(devstack, missing):
    services = ','.join(name for name in ALL.split(',') if name != missing)
    devstack.phase('stack pre-install', services=services, check=False)
    assert devstack.said == f'died: cyborg_lite needs {missing}\n'


def test_unstack_and_clean(devstack):
    devstack.phase(*PHASES)
    calls = devstack.phase('unstack ""')
    assert {call[1] for call in calls if call[0] == 'stop_process'} == {
        'cyborg-lite-api', 'cyborg-lite-conductor', 'cyborg-lite-agent',
    }  # fmt: skip
    assert devstack.conf.exists()
    assert names(devstack.phase('clean ""')) == ['remove_uwsgi_config']
    assert not devstack.conf.exists()


def test_application_is_there():
    """uWSGI is told a module, which setup.cfg does not name."""
    text = (PLUGIN / 'lib' / 'cyborg_lite').read_text()
    [line] = [line for line in text.splitlines() if line.startswith('CYBORG_LITE_UWSGI=')]
    module, _, name = line.partition('=')[2].partition(':')
    file = PLUGIN.parent.joinpath(*module.split('.')).with_suffix('.py')
    assert f'\n{name} = ' in file.read_text()


def test_grenade(devstack):
    devstack.phase(*PHASES)
    assert names(devstack.run(f'source {PLUGIN}/upgrade/settings'))[:2] == [
        'register_project_for_upgrade',
        'register_db_to_save',
    ]
    calls = devstack.run(f'source {PLUGIN}/upgrade/shutdown.sh 2>/dev/null')
    assert names(calls) == ['stop_process'] * 3 + ['ensure_services_stopped']
    for _ in range(2):
        calls = devstack.run(f'source {PLUGIN}/upgrade/upgrade.sh 2>/dev/null')
        ours = [call[-1] for call in calls if call[0].startswith('cyborg-lite-')]
        assert ours == ['upgrade', 'online_data_migrations', 'check']
        order = names(calls)
        assert order[0] == 'setup_develop'
        assert order.index('cyborg-lite-status') < order.index('run_process')
        assert order[-1] == 'ensure_services_started'
        assert (devstack.place / 'etc.cyborg_lite' / 'cyborg_lite.conf').exists()


@pytest.mark.parametrize(('status', 'starts'), [(1, True), (2, False)])
def test_grenade_where_something_has_to_be_mended(devstack, status, starts):
    devstack.phase(*PHASES)
    devstack.command('cyborg-lite-status', status)
    calls = devstack.run(f'source {PLUGIN}/upgrade/upgrade.sh 2>/dev/null', check=False)
    assert ('run_process' in names(calls)) == starts


def test_extras_are_there():
    text = (PLUGIN.parent / 'setup.cfg').read_text()
    assert all(f'\n{extra} =' in text for extra in ('client', 'mysql', 'postgresql'))

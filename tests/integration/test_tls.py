# SPDX-License-Identifier: Apache-2.0
"""TLS with the settings of the documentation, and refused connections."""

import contextlib
import dataclasses
import json
import pathlib
import re
import textwrap
import typing

import bcrypt
import pytest
import requests
import sqlalchemy as sa
import trustme

from tests import support
from tests.integration import cloud
from tests.integration import deployment as deployment_
from tests.integration import install
from tests.integration import process
from tests.integration import servers

PAGE = (deployment_.ROOT / 'doc/source/admin/security.rst').read_text()
#: The name in the servers' certificate, and another name of the same servers.
NAME, OTHER = 'localhost', '127.0.0.1'
CONF = """
[api]
auth_strategy = noauth
[agent]
enabled_drivers = fake
report_interval = 1
[database]
retry_interval = 1
"""
#: The log text for an untrusted certificate, or one with another name.
REASONS = {
    'authority': r'certificate verify failed: unable to get|SSL error: certificate verify failed',
    'name': f'not valid for \'{OTHER}\'|does not match host name "{OTHER}"',
}


class Trust(typing.NamedTuple):
    """The trusted authority, and the called name."""

    authority: pathlib.Path
    name: str

    def said(self, pattern: str) -> str:
        """The settings of the page, with our authority instead of the system's."""
        said = re.search(pattern, PAGE)[1]
        return said.replace('/etc/ssl/certs/ca-certificates.crt', str(self.authority))


@dataclasses.dataclass
class Town:
    """Servers that accept only TLS."""

    tls: servers.Tls
    bus: str
    databases: dict[str, str]
    right: Trust
    wrong: dict[str, Trust]

    def settings(self, engine: str, bus: Trust, database: Trust) -> dict[str, str]:
        url = self.databases[engine].partition('?')[0].replace(OTHER, database.name)
        scheme = re.escape(url.partition(':')[0])
        section = bus.said(r'\n( +\[oslo_messaging_rabbit\]\n(?: +\S.*\n)+)')
        return {
            'bus': self.bus.replace(OTHER, bus.name),
            'database': url + database.said(rf'connection = {scheme}://\S+?([?]\S+)'),
            'conf': CONF + textwrap.dedent(section),
        }


@pytest.fixture(scope='module')
def town(tmp_path_factory):
    place = tmp_path_factory.mktemp('tls')
    ours, theirs = place / 'ours', place / 'theirs'
    tls = servers.Tls(place / 'certificate', place / 'key')
    authority = trustme.CA()
    own = authority.issue_cert(NAME)
    authority.cert_pem.write_to_path(ours)
    trustme.CA().cert_pem.write_to_path(theirs)
    own.cert_chain_pems[0].write_to_path(tls.certificate)
    own.private_key_pem.write_to_path(tls.key)
    with contextlib.ExitStack() as stack:
        bus, *urls = process.enter(
            stack,
            servers.rabbitmq(place / 'bus', tls),
            *(start(place / engine, tls) for engine, start in servers.DATABASES.items()),
        )
        wrong = {'authority': Trust(theirs, NAME), 'name': Trust(ours, OTHER)}
        databases = dict(zip(servers.DATABASES, urls, strict=True))
        yield Town(tls, bus, databases, Trust(ours, NAME), wrong)


@pytest.mark.parametrize('engine', servers.DATABASES)
def test_a_request_is_bound(town, engine, tmp_path):
    settings = town.settings(engine, bus=town.right, database=town.right)
    place = tmp_path / engine  # a part of the host's name
    place.mkdir()
    with contextlib.ExitStack() as stack:
        deployment = deployment_.Deployment(stack, place, **settings)
        daemons = [deployment.conductor(), deployment.agent()]
        url = deployment.api(town.tls)[0].replace(OTHER, NAME)
        authority = town.right.authority

        def ask(method, path, status, body=None):
            answer = requests.request(
                method, f'{url}{path}', json=body, verify=authority, timeout=60
            )
            assert answer.status_code == status, answer.text
            return answer.json() if answer.content else None

        assert ask('GET', '', 200)['links'][0]['href'].startswith('https://')
        process.until(lambda: ask('GET', '/deployables', 200)['deployables'])
        [part] = ask('GET', '/deployables', 200)['deployables']
        ask('POST', '/device_profiles', 201, [{'name': 'one', 'groups': [{'resources:FPGA': '1'}]}])
        [arq] = ask('POST', '/accelerator_requests', 201, {'device_profile_name': 'one'})['arqs']
        bind = {arq['uuid']: support.wish(part['rp_uuid'], f'host-{engine}', support.INSTANCE)}
        ask('PATCH', '/accelerator_requests', 202, bind)
        assert ask('GET', f'/accelerator_requests/{arq["uuid"]}', 200)['state'] == 'Bound'
        ask('DELETE', f'/accelerator_requests?arqs={arq["uuid"]}', 204)
        for daemon in daemons:
            deployment_.kill(daemon)  # a normal stop takes seconds


def test_three_machines_by_their_guide(town, tmp_path, openstack):
    """The head, another machine, and the commands of a user, as on the page."""
    port = servers.free_port()
    authority = str(town.right.authority)
    users = tmp_path / 'users'
    database = sa.make_url(town.databases['postgresql']).set(host=NAME)
    guide = install.Guide(
        'install/alone.rst',
        {
            '@head:5671/': f'@{NAME}:{sa.make_url(town.bus).port}/',
            '@head/': f'@{NAME}:{database.port}/',
            '/etc/ssl/certs/ca-certificates.crt': authority,
            '/etc/cyborg_lite/users': str(users),
            '/etc/cyborg_lite/cert.pem': str(town.tls.certificate),
            '/etc/cyborg_lite/key.pem': str(town.tls.key),
            'https://head:6666': f'https://{NAME}:{port}',
            'allowed_hosts = head': f'allowed_hosts = {NAME}',
            'SECRET': cloud.PASSWORD,
            # The minimum of processes.
            '0.0.0.0:6666 --workers 2': f'127.0.0.1:{port} --workers 1',
            # No card is here.
            'PGPU': 'FPGA',
        },
    )
    tls = {'sslmode': 'verify-full', 'sslrootcert': authority}
    install.create_database(database.update_query_dict(tls), guide.text('The head', 'sql'))
    servers.administer(town.bus, guide.text('The head', 'shell'))
    # htpasswd asks a terminal: the file that it writes is ours.
    [[*_, file, name]] = guide.commands('The head', 'htpasswd')
    assert file == str(users)
    salted = bcrypt.hashpw(cloud.PASSWORD.encode(), bcrypt.gensalt(4))
    users.write_text(f'{name}:{salted.decode()}\n')
    head = install.Machine(tmp_path / 'head', guide.text('The head', 'ini'), '')
    for words in guide.commands('The head', 'cyborg-lite-dbsync'):
        head.run('cyborg-lite-dbsync', words)
    fake = '[agent]\nenabled_drivers = fake\n'
    other = install.Machine(tmp_path / 'gpu-1', guide.text('The others', 'ini'), fake)
    with contextlib.ExitStack() as stack:
        api = head.api(guide.text('The head', 'ini', 1))
        daemons = process.enter(stack, api, head.daemon('conductor'))
        daemons.append(stack.enter_context(other.daemon('agent')))
        trust = {'SSL_CERT_FILE': authority, 'CYBORG_LITE_PASSWORD': cloud.PASSWORD}
        [ps] = guide.commands('Ask for one', 'cyborg-lite')

        def free():
            rows = json.loads(process.run('cyborg-lite', *ps, '-f', 'json', **trust).stdout)
            return [row['state'] for row in rows].count('free')

        process.until(lambda: free() == 16)
        exports = guide.commands('Ask for one', 'export')
        environ = dict(word.split('=', 1) for words in exports for word in words)
        create, delete = guide.commands('Ask for one', 'openstack')
        openstack(*create, OS_CACERT=authority, **environ)
        assert free() == 15
        openstack(*delete, OS_CACERT=authority, **environ)
        assert free() == 16
        for daemon in daemons:
            deployment_.kill(daemon)


@pytest.mark.parametrize('wrong', REASONS)
def test_a_server_that_cannot_prove_itself_is_refused(town, wrong, tmp_path):
    """The log repeats the reason."""
    trust, right = town.wrong[wrong], town.right
    cases = {'agent': town.settings('mariadb', bus=trust, database=right)}
    for engine in servers.DATABASES:
        cases[f'conductor-{engine}'] = town.settings(engine, bus=right, database=trust)

    def start(name, settings):
        file = tmp_path / f'{name}.conf'
        file.write_text(deployment_.CONF.format(host='host', **settings) + settings['conf'])
        words = [f'cyborg-lite-{name.partition("-")[0]}', '--config-file', file]
        return process.serving(*words, ready=REASONS[wrong], log=tmp_path / name)

    logs = [tmp_path / name for name in cases]

    def said_again():
        return all(len(re.findall(f'({REASONS[wrong]}).*\n', log.read_text())) > 1 for log in logs)

    with contextlib.ExitStack() as stack:
        process.enter(stack, *(start(*case) for case in cases.items()))
        process.until(said_again)
        assert not [log for log in logs if 'Traceback' in log.read_text()]

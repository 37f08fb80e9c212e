# SPDX-License-Identifier: Apache-2.0
"""The README, block by block: what it says to type is typed, and what it shows is what comes."""

import json
import os
import pathlib
import re

import bcrypt
from openstackclient import shell
from openstackclient.accelerator import client as openstack_client
from openstackclient.common import clientmanager
import pytest

from cyborg_lite import accounts
from cyborg_lite import client
from cyborg_lite.cmd import main
from cyborg_lite.driver import host
from tests import pages
from tests import support
from tests.functional import test_sdk
from tests.unit.cmd import process

URL = 'http://127.0.0.1:6666'
#: By what each block is known, in order: all are run, here or where it says.
BLOCKS = [
    'cyborg-lite up --host atlas-800t-a2\n',
    '+----',
    '/v2/device_profiles -H',
    'ARQ=$(curl',
    'RP=$(curl',
    '/v2/accelerator_requests/$ARQ\n',
    '/v2/allocations',
    'cyborg-lite reserve',
    '--name busy',
    'waiting at place 1',
    'accelerator host list',
    'htpasswd',
    '--tls-cert',
    'cyborg-lite up\n',
    'cyborg-lite record node-1.tar.gz\n',
    'tox\n',  # tests/unit/test_ci.py
    'cyborg_lite/\n',
]


@pytest.fixture(scope='module')
def blocks():
    return dict(zip(BLOCKS, pages.blocks(pages.README), strict=True))


@pytest.fixture
def openstack(capsys, monkeypatch):
    """Run an ``openstack`` command in this process; returns what it prints."""
    # A process has one command, and so one client, by itself.
    own = {openstack_client.API_NAME: property(openstack_client.make_client)}
    manager = type('Manager', (clientmanager.ClientManager,), own)
    monkeypatch.setattr(clientmanager, 'ClientManager', manager)

    def run(words, url):
        words = [word.replace(URL, url) for word in words[1:]]
        assert shell.OpenStackShell().run(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_the_blocks_are_those_that_are_known(blocks):
    assert [name for name, block in blocks.items() if name not in block.text] == []


def test_from_the_first_command_to_a_bound_accelerator(blocks, tmp_path, openstack):
    [*_, up] = blocks['cyborg-lite up --host atlas-800t-a2\n'].commands
    with process.Up(tmp_path, *up[2:]) as service:
        assert blocks['+----'].text in service.text
        # In one shell, as they follow each other: a variable is that of the block before.
        requests = '\n'.join(blocks[name].text for name in BLOCKS[2:6])
        shown = process.shell(requests.replace(URL, service.url))
        arq = json.loads(shown[shown.rindex('{"uuid"') :])
        assert (arq['state'], arq['attach_handle_type']) == ('Bound', 'PCI')
        shown = process.shell(blocks['/v2/allocations'].text.replace(URL, service.url))
        assert len(json.loads(shown)['accelerators']) == 2
        [_, devices, hosts] = blocks['accelerator host list'].commands
        assert openstack(devices, service.url).count('AICHIP') == 8
        assert 'atlas-800t-a2' in openstack(hosts, service.url)


def test_a_program_that_waits_in_line(blocks, tmp_path):
    """What another person holds is not released meanwhile: the wait ends, after less time."""
    with process.Up(tmp_path, '--host', 'atlas-800t-a2') as service:
        environ = {
            'TZ': 'UTC',
            'PATH': f'{process.COMMAND.parent}:{os.environ["PATH"]}',
            client.VARIABLE: str(tmp_path / 'state' / client.SOCKET),
            client.URL: service.url,
        }
        shown = process.shell(blocks['cyborg-lite reserve'].text, **environ)
        assert re.search(r'^\d,\d\n', shown)
        assert shown.count('Ascend 910B3') == 8
        text = blocks['--name busy'].text.replace('--wait 1m', '--wait 0.5s')
        shown = process.shell(f'set +e; exec 2>&1; {text}', **environ)
    user, moment = accounts.name(os.getuid()), r'\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?'
    said = re.escape(blocks['waiting at place 1'].text).replace('ann', re.escape(user))
    said, changed = re.subn('2026.*(?=\\\\ UTC)', lambda _: moment, said)
    assert changed
    assert re.search(f'^{said}', shown, flags=re.M)
    assert shown.endswith('is released\n')


def test_names_and_passwords(blocks, tmp_path, database_url, monkeypatch, openstack):
    """``htpasswd`` is not installed everywhere: the file that it writes is ours."""
    [htpasswd, _, up, devices] = blocks['htpasswd'].commands
    monkeypatch.chdir(tmp_path)
    *_, file, name = htpasswd
    pathlib.Path(file).write_text(f'{name}:{bcrypt.hashpw(b"SECRET", bcrypt.gensalt(4)).decode()}')
    process.shell(re.search('printf.*\n', blocks['htpasswd'].text)[0])
    found = main.parser().parse_args(up[1:])
    hosts = [host.find(name, tmp_path) for name in found.host]
    service = support.Service(database_url, hosts, found.config_file, api__auth_strategy='keystone')
    try:
        [agent] = service.embedded.agents
        assert agent.manager.reported.wait(60)
        with test_sdk.served(service.embedded.application) as url:
            assert openstack(devices, url).count('AICHIP') == 8
    finally:
        service.stop()


def test_other_starts_are_understood(blocks):
    for name in ('--tls-cert', 'cyborg-lite up\n', 'cyborg-lite record node-1.tar.gz\n'):
        for command, *words in blocks[name].commands:
            assert command == 'cyborg-lite'
            main.parser().parse_args(words)


def test_the_tree_in_the_readme_exists(blocks):
    """Each name of the tree is there: the first of its line, those above it further out."""
    names, above = [], {}
    for line in blocks['cyborg_lite/\n'].text.splitlines():
        depth = len(line) - len(line.lstrip())
        if depth <= len('  '):
            name, *others = re.match('\\S+(?: \\S+/)*', line.strip())[0].split()
            above[depth] = pathlib.Path(above[0] if depth else '') / name
            names += [above[depth], *others]
    assert len(names) > 15
    assert [name for name in names if not (pages.ROOT / name).exists()] == []


def links(page):
    return set(re.findall(r'<([\w./]+)>`_', page.read_text()))


def test_files_that_are_linked_to():
    found = links(pages.README)
    assert found
    assert [link for link in found if not (pages.ROOT / link).exists()] == []


def test_the_chinese_readme_links_to_the_same_files():
    chinese = pages.README.with_name('README.zh.rst')
    assert links(chinese) - {'README.rst'} == links(pages.README) - {'README.zh.rst'}

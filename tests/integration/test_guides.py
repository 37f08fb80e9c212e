# SPDX-License-Identifier: Apache-2.0
"""The commands of the install guides that change the machine: their arguments are valid."""

import glob
import grp
import os
import re
import shutil
import stat
import subprocess

import amqp
import kombu
import pytest

from cyborg_lite import rpc
from tests import pages
from tests.integration import servers

INSTALL = pages.ROOT / 'doc/source/install'
PAGES = sorted(INSTALL.glob('*.rst'))
UNITS = {unit.name for unit in (pages.ROOT / 'etc/systemd').glob('*.service')}


def commands(name):
    """The arguments of each call of a command in the guides."""
    found = [
        words[1:]
        for page in PAGES
        for block in pages.blocks(page)
        if block.language in ('', 'shell')
        for words in block.commands
        if words[0] == name
    ]
    inline = [
        each.split()[1:]
        for page in PAGES
        for each in re.findall(rf'``({name} [^`]*)``', page.read_text())
    ]
    assert found
    return [*found, *inline]


def packages():
    """The packages that the guides install, by apt."""
    calls = commands('apt-get')
    assert all(words[:2] == ['install', '-y'] for words in calls)
    return sorted({name for words in calls for name in words[2:]})


def run(command, *words):
    path = shutil.which(command, path=f'{os.environ["PATH"]}:/usr/sbin:/sbin')
    assert path, f'{command} is not installed'
    return subprocess.run([path, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def distribution():
    """The lists of packages of Debian or Ubuntu."""
    if not shutil.which('apt-cache'):
        pytest.skip('not Debian or Ubuntu')
    if 'Candidate' not in run('apt-cache', 'policy', 'apache2-utils').stdout:
        pytest.skip('there are no lists of packages: run apt-get update')


@pytest.mark.parametrize('name', packages())
def test_a_package_exists(distribution, name):
    done = run('apt-get', '-s', 'install', name)
    assert done.returncode == 0, done.stderr


def test_a_package_that_does_not_exist_is_found(distribution):
    """This shows that the test above can fail."""
    done = run('apt-get', '-s', 'install', 'no-such-package')
    assert 'Unable to locate package no-such-package' in done.stderr


@pytest.fixture
def root(tmp_path):
    """A directory with the files that useradd changes."""
    etc = tmp_path / 'etc'
    etc.mkdir()
    for name in ('passwd', 'group', 'shadow', 'gshadow'):
        (etc / name).touch()
    return tmp_path


@pytest.mark.parametrize('words', {tuple(each) for each in commands('useradd')}, ids=' '.join)
@pytest.mark.skipif(os.geteuid() != 0, reason='only root may run useradd')
def test_the_user_is_created(root, words):
    done = run('useradd', '--prefix', str(root), *words)
    assert done.returncode == 0, done.stderr
    [user] = (root / 'etc/passwd').read_text().splitlines()
    name, *_, home, shell = user.split(':')
    assert (name, home, shell) == ('cyborg-lite', '/var/lib/cyborg_lite', '/usr/sbin/nologin')
    # The commands that follow give files to a group of this name.
    assert (root / 'etc/group').read_text().startswith('cyborg-lite:')


#: A group that every Debian has, in place of that of useradd.
GROUP = 'nogroup'


def moved(word, root):
    """A word of a command as it is below another root; a pattern becomes its files."""
    if word in ('cyborg-lite', 'root:cyborg-lite'):
        return [word.replace('cyborg-lite', GROUP)]
    word = re.sub('^(/opt/cyborg_lite-source/)?etc/', f'{pages.ROOT}/etc/', word)
    word = word.replace('/opt/cyborg_lite-source', str(pages.ROOT))
    if word.startswith('/') and not word.startswith(str(pages.ROOT)):
        word = f'{root}{word}'
    return sorted(glob.glob(word)) if '*' in word else [word]


@pytest.mark.parametrize('page', ['alone', 'openstack', 'systemd'])
@pytest.mark.skipif(os.geteuid() != 0, reason='only root may give files to others')
def test_files_are_installed(tmp_path, monkeypatch, page):
    root, secrets = tmp_path / 'root', ('cyborg_lite.conf', 'users')
    (root / 'etc/systemd/system').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / secrets[0]).touch()
    blocks = [b for b in pages.blocks(INSTALL / f'{page}.rst') if b.language in ('', 'shell')]
    for words in [words for block in blocks for words in block.commands]:
        if words[0] in ('chown', 'chmod') and not (written := root / words[-1][1:]).exists():
            # An editor has written it.
            written.touch()
        if words[0] in ('install', 'chown', 'chmod'):
            arguments = [each for word in words[1:] for each in moved(word, root)]
            done = run(words[0], *arguments)
            assert done.returncode == 0, done.stderr
    place = root / 'etc/cyborg_lite'
    group = grp.getgrnam(GROUP).gr_gid
    found = {each.name: each.stat() for each in (place, *place.iterdir())}
    assert {name for name in found if name in secrets}
    for name, each in found.items():
        assert (each.st_uid, each.st_gid) == (0, group), name
        assert stat.S_IMODE(each.st_mode) == (0o640 if name in secrets else 0o750), name
    units = {each.name: each.stat() for each in (root / 'etc/systemd/system').iterdir()}
    assert units.keys() == UNITS
    assert {stat.S_IMODE(each.st_mode) for each in units.values()} == {0o644}


def declare(url, kind):
    """Declare the queue of conductors as one of a kind, as the services do."""
    arguments = {'x-queue-type': kind}
    with kombu.Connection(url, connect_timeout=20) as connection:
        channel = connection.default_channel
        channel.queue_declare(rpc.CONDUCTOR, durable=True, auto_delete=False, arguments=arguments)


def test_queues_of_another_kind_are_replaced(tmp_path):
    """The commands of the OpenStack guide for a virtual host with classic queues."""
    found = pages.blocks(INSTALL / 'openstack.rst')
    create, replace = (block.text for block in found if block.section == 'The bus')
    with servers.rabbitmq(tmp_path / 'bus') as bus:
        servers.administer(bus, create)
        url = re.sub(r'//.*@(.*)/$', r'//cyborg_lite:SECRET@\1/cyborg_lite', bus)
        url = url.replace('rabbit:', 'amqp:')
        declare(url, 'classic')
        with pytest.raises(amqp.PreconditionFailed, match='PRECONDITION_FAILED'):
            declare(url, 'quorum')
        servers.administer(bus, replace)
        declare(url, 'quorum')


def test_units_that_are_started_are_shipped():
    named = {
        word for words in commands('systemctl') for word in words if word.startswith('cyborg-lite-')
    }
    assert named
    assert {f'{name}.service' for name in named} <= UNITS

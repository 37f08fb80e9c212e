# SPDX-License-Identifier: Apache-2.0
"""The commands of the install guides that change the machine: their arguments are valid."""

import os
import re
import shutil
import subprocess

import pytest

from tests import pages

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


def test_units_that_are_started_are_shipped():
    named = {
        word for words in commands('systemctl') for word in words if word.startswith('cyborg-lite-')
    }
    assert named
    assert {f'{name}.service' for name in named} <= UNITS

# SPDX-License-Identifier: Apache-2.0
"""A machine: Debian, started by systemd in namespaces of its own, without a network."""

import collections.abc
import contextlib
import os
import pathlib
import platform
import shlex
import shutil
import signal
import subprocess
import time
import typing

import pytest

from tests import devices
from tests import pages

#: The release whose Python is that of these tests; and what it has beside its base.
RELEASES = {'3.11': 'bookworm', '3.13': 'trixie'}
PACKAGES = (
    'acl',
    'curl',
    'dbus',
    'git',
    'libpam-systemd',
    'python3',
    'python3-venv',
    'systemd-sysv',
)
#: The users of the guide; and one who was not let in.
USERS = ('jane', 'bob', 'chen', 'lab', 'eve')
#: The timeout of each step, in seconds; none comes near it.
BOUND = 300
#: As root, at a terminal that is told nothing of the shell of the tests.
ENVIRONMENT = {
    'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    'HOME': '/root',
    'PIP_NO_INDEX': '1',
    'PIP_FIND_LINKS': '/wheels',
}


class Begun(typing.NamedTuple):
    """A command in a machine that has begun."""

    #: what has entered the machine, as the parent of the command
    process: subprocess.Popen[str]

    def until(self, word: str) -> str:
        """What it prints until a line has this word."""
        said = ''
        for line in self.process.stdout:
            said += line
            if word in line:
                return said
        raise AssertionError(said)

    def interrupted(self) -> tuple[str, int]:
        """What it prints after Ctrl-C, and its status."""
        os.kill(child(self.process), signal.SIGINT)
        return self.process.stdout.read(), self.process.wait(BOUND)


def child(process: subprocess.Popen[typing.Any]) -> int:
    """The first process that another one has started; 0 for none yet."""
    found = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return int(found[0]) if found else 0


class Machine:
    """A machine with a directory as its root."""

    def __init__(self, root: pathlib.Path, wheels: pathlib.Path) -> None:
        self.root = root
        self._command = [
            'systemd-nspawn', f'--directory={root}', '--machine=cyborg-lite-test', '--register=no',
            '--keep-unit', '--private-network', '--capability=CAP_MKNOD', '--console=pipe',
            f'--bind-ro={wheels}:/wheels',
            '/lib/systemd/systemd', '--log-target=console',
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0

    def start(self) -> None:
        """Start it, and wait until it has started all that it starts at boot."""
        with (self.root.parent / 'console').open('ab') as console:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        self._first = until(lambda: child(self._process), self._console)
        # Its nodes, like those of a kernel, are new after each boot.
        until(lambda: self._does('test -S /run/systemd/private'), self._console)
        for number, device in enumerate(devices.NUMBERS):
            major, minor = os.major(device), os.minor(device)
            self.says(f'mknod -m 666 /dev/lab{number} c {major} {minor}')
        self._does('systemctl is-system-running --wait')

    def stop(self) -> None:
        if self._process:
            # It asks the systemd inside to power off.
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(60)

    def words(self, text: str, user: str = 'root') -> list[str]:
        """The command that has the login shell of a user read a text."""
        inside = ['bash', '-c', f'cd /root/cyborg_lite; {text}']
        if user != 'root':
            inside = ['su', '-', user, '-c', text]
        variables = [f'{name}={value}' for name, value in ENVIRONMENT.items()]
        entered = 'nsenter', f'--target={self._first}', '--all'
        return [*entered, '--', 'env', '-i', *variables, *inside]

    def run(self, text: str, user: str = 'root') -> subprocess.CompletedProcess[str]:
        """What comes of a text that a user types."""
        return subprocess.run(
            self.words(text, user), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=BOUND,
        )  # fmt: skip

    def says(self, text: str, user: str = 'root') -> str:
        """What a shell prints for a text, which succeeds."""
        done = self.run(text if user != 'root' else f'set -e\n{text}', user)
        assert done.returncode == 0, f'{text}\n{done.stdout}'
        return done.stdout

    @contextlib.contextmanager
    def begun(self, text: str, user: str) -> collections.abc.Iterator[Begun]:
        """A command that has not ended: it ends with its input."""
        words = self.words(f'exec {text}', user)
        with subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as made:
            try:
                yield Begun(made)
            finally:
                made.stdin.close()
                made.kill()

    def _does(self, text: str) -> bool:
        return self.run(text).returncode == 0

    def _console(self) -> str:
        return (self.root.parent / 'console').read_text(errors='replace')


def until(found, otherwise=lambda: ''):
    """Wait until a function finds something, and return that."""
    end = time.monotonic() + BOUND
    while not (answer := found()):
        assert time.monotonic() < end, otherwise()
        time.sleep(0.1)
    return answer


@pytest.fixture(scope='session')
def machine(tmp_path_factory):
    """A machine on which the users of the guide have a login, and nothing is installed."""
    assert os.geteuid() == 0, 'only root can start a machine'
    for command in ('debootstrap', 'systemd-nspawn'):
        assert shutil.which(command), f'{command} is not installed: see machine in bindep.txt'
    version = '.'.join(platform.python_version_tuple()[:2])
    assert version in RELEASES, f'no release of Debian has Python {version}: run it by 3.11'
    place = tmp_path_factory.mktemp('machine')
    root, wheels, source = place / 'root', place / 'wheels', place / 'root/root/cyborg_lite'
    included = f'--include={",".join(PACKAGES)}'
    call('debootstrap', '--variant=minbase', included, RELEASES[version], root)
    copy_source(source)
    # It has no network: what pip needs lies in a directory.
    built = ('setuptools', 'wheel', 'pbr')
    call('python3', '-m', 'venv', place / 'venv')
    call(place / 'venv/bin/pip', 'wheel', '-q', '-w', wheels, f'{source}[client]', *built)
    made = Machine(root, wheels)
    try:
        made.start()
        for user in USERS:
            made.says(f'useradd --create-home --shell /bin/bash {user}')
        yield made
    finally:
        made.stop()


def copy_source(to: pathlib.Path) -> None:
    """Clone the repository, with what is changed and not committed: its version is in its tags."""
    call('git', 'clone', '--quiet', pages.ROOT, to)
    listed = [
        'git',
        '-C',
        pages.ROOT,
        'ls-files',
        '-z',
        '--cached',
        '--others',
        '--exclude-standard',
    ]
    for name in subprocess.check_output(listed, text=True).split('\0'):
        if (pages.ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pages.ROOT / name, to / name)


def call(*words):
    done = subprocess.run(
        [*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, timeout=2 * BOUND,
    )  # fmt: skip
    assert done.returncode == 0, f'{shlex.join(map(str, words))}\n{done.stdout[-4000:]}'

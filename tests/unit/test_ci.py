# SPDX-License-Identifier: Apache-2.0
"""``.ci/run`` runs the README's test command, and that command works with and without sudo."""

import pathlib
import shutil
import stat
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CLOSING = '===== 3 passed in 0.01s ====='
#: What .ci/run and the command use of the system.
TOOLS = ('awk', 'bash', 'cat', 'chmod', 'cp', 'dirname', 'env', 'grep', 'mkdir', 'mktemp', 'rm',
         'sh', 'tee', 'xargs')  # fmt: skip
#: Stand-ins for what would install and test: each notes how it was called.
NOTE = '#!/bin/sh\necho "${0##*/} $*" >> "$CALLS"\n'
SUDO = NOTE + 'exec "$@"\n'
BINDEP = NOTE + 'printf "%s" "$MISSING"\n[ -z "$MISSING" ]\n'
TOX = NOTE + 'printf "%s\\n" "$CLOSING"\necho "  evaluation failed"\nexit "$STATUS"\n'
PYTHON = '#!/bin/sh\nmkdir -p "$3/bin"\ncp "$STANDINS"/* "$3/bin"\n'
INSTALL = [
    'apt-get update',
    'apt-get install -y --no-install-recommends rabbitmq-server postgresql',
]


def write(place, **scripts):
    place.mkdir(exist_ok=True)
    for name, text in scripts.items():
        file = place / name.replace('_', '-')
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def clone(tmp_path):
    """A clone of the source, on a machine with nothing but what is listed above."""
    write(tmp_path / 'bin', python3=PYTHON, apt_get=NOTE)
    for tool in TOOLS:
        (tmp_path / 'bin' / tool).symlink_to(shutil.which(tool))
    write(tmp_path / 'standins', pip=NOTE, bindep=BINDEP, tox=TOX)
    (tmp_path / 'clone' / '.ci').mkdir(parents=True)
    for name in ('README.rst', '.ci/run'):
        shutil.copy(ROOT / name, tmp_path / 'clone' / name)
    return tmp_path / 'clone'


def run(clone, missing='', status=0, closing=CLOSING):
    """Run it; returns its exit status, what it printed, and what it called."""
    place = clone.parent
    (place / 'calls').write_text('')
    done = subprocess.run(
        [shutil.which('bash'), '.ci/run'],
        cwd=clone,
        env={
            'PATH': str(place / 'bin'),
            'CALLS': str(place / 'calls'),
            'STANDINS': str(place / 'standins'),
            'MISSING': missing,
            'STATUS': str(status),
            'CLOSING': closing,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, (place / 'calls').read_text().splitlines()


def test_nothing_is_missing(clone):
    status, output, calls = run(clone)
    assert (status, calls) == (0, ['pip install bindep tox', 'bindep --brief test', 'tox '])
    assert output.splitlines()[-1] == CLOSING


@pytest.mark.parametrize('sudo', [False, True])
def test_what_is_missing_is_installed(clone, sudo):
    """Root in a bare container has no sudo, and apt has no lists there."""
    if sudo:
        write(clone.parent / 'bin', sudo=SUDO)
    status, _, calls = run(clone, missing='rabbitmq-server\npostgresql\n')
    assert status == 0
    assert [call for call in calls if call.startswith('apt-get')] == INSTALL
    assert any(call.startswith('sudo sh -c') for call in calls) == sudo
    assert calls[-1] == 'tox '


def test_the_status_is_that_of_the_tests(clone):
    status, output, _ = run(clone, status=3, closing='===== 1 failed, 2 passed in 0.01s =====')
    assert status == 3
    assert output.splitlines()[-1] == '===== 1 failed, 2 passed in 0.01s ====='


def test_what_cannot_be_installed_ends_it(clone):
    write(clone.parent / 'bin', apt_get=NOTE + 'exit 100\n')
    status, _, calls = run(clone, missing='rabbitmq-server\n')
    assert status != 0
    assert 'tox ' not in calls


def test_no_test_is_a_failure(clone):
    assert run(clone, closing='nothing ran')[0] == 1


def test_the_command_is_that_of_the_readme(clone):
    readme = clone / 'README.rst'
    readme.write_text(readme.read_text().replace('pip install bindep tox &&', 'pip other &&'))
    assert run(clone)[2][0] == 'pip other'
    readme.write_text('Test it\n=======\n\nSomehow.\n')
    assert run(clone)[::2] == (1, [])

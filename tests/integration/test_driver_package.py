# SPDX-License-Identifier: Apache-2.0
"""The package of ``cyborg-lite driver new``, installed in an environment of its own."""

import pathlib
import re
import subprocess
import sys
import sysconfig

import pytest

from tests import pages

#: The command, as its entry point runs it.
COMMAND = ['-c', 'import sys; from cyborg_lite.cmd import entry; sys.exit(entry.main())']
#: The timeout of each step, in seconds; none comes near it.
BOUND = 300


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """The Python of a new environment, which finds cyborg_lite and its libraries here."""
    home = tmp_path_factory.mktemp('environment')
    subprocess.run([sys.executable, '-m', 'venv', home], check=True, timeout=BOUND)
    python = home / 'bin/python'
    code = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    [place] = run(python, '-c', code, cwd=home).stdout.split()
    found = [pages.ROOT, sysconfig.get_path('purelib')]
    (pathlib.Path(place) / 'cyborg_lite.pth').write_text('\n'.join(map(str, found)))
    return python


def run(*command, cwd):
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=BOUND
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_new_driver_is_installed_and_finds_its_card(python, tmp_path):
    run(python, *COMMAND, 'driver', 'new', 'acme_npu', cwd=tmp_path)
    package = tmp_path / 'acme_npu'
    run(python, '-m', 'pip', 'install', '--quiet', '--no-deps', '.', cwd=package)
    up = [*COMMAND, 'up', '--port', '0', '--state-dir', tmp_path / 'state']
    up += ['--host', 'acme_npu.yaml', '--config-file', 'up.conf']
    process = subprocess.Popen([python, *up], cwd=package, stdout=subprocess.PIPE, text=True)
    with process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith('The API answers at'):
                break
        process.kill()
    [row] = [line for line in lines if '0000:3b:00.0' in line]
    assert re.search(r'\| *AcmeNpu One *\|', row), lines
    tests = ['-p', 'no:cacheprovider', '--basetemp', tmp_path / 'tests']
    done = run(python, '-m', 'pytest', *tests, cwd=package)
    assert re.search('[1-9] passed', done.stdout) and 'failed' not in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite ray-args``, and ``{ray}`` in a command: Ray uses only leased accelerators."""

import json
import shlex
import subprocess
import sys

import pytest

import cyborg_lite
from cyborg_lite import client
from cyborg_lite.cmd import main
from tests.functional import test_leases

machine, shared = test_leases.machine, test_leases.shared
ARGUMENTS = ['--num-gpus=0', '--resources={"NPU":2}']
OVERRIDE = {'RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO': '1'}


@pytest.fixture
def lease(machine, monkeypatch):
    """Two devices of this process."""
    monkeypatch.setenv(client.VARIABLE, machine.socket)
    with cyborg_lite.allocate('npu', 2, name='mine') as made:
        yield made


@pytest.fixture
def said(monkeypatch, capsys):
    """The status, the output and the errors of the command."""

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite', 'ray-args', *words])
        return (main.main(), *capsys.readouterr())

    return run


def test_arguments(lease, said, monkeypatch):
    """In $( ) a shell does not remove quotes; for pasted text it does."""
    status, words, err = said('mine')
    assert (status, words.split()) == (0, ARGUMENTS)
    assert 'eval "$(cyborg-lite ray-args -f env)"' in err
    for name, value in (lease.env | OVERRIDE).items():
        monkeypatch.setenv(name, value)
    assert said() == (0, words, '')
    status, pasted, _ = said('-f', 'shell')
    shell = ['sh', '-c', f'printf "%s\\n" {pasted}']
    assert subprocess.check_output(shell, text=True).split() == ARGUMENTS
    assert shlex.split(pasted) == ARGUMENTS
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert said() == (0, pasted, '')


def test_variables(lease, said):
    _, text, _ = said(lease.uuid, '-f', 'env')
    shell = ['sh', '-euc', f'{text}env']
    found = subprocess.check_output(shell, text=True).splitlines()
    wanted = lease.views['process']['env'] | OVERRIDE
    assert {f'{name}={value}' for name, value in wanted.items()} <= {*found}
    assert json.loads(said(lease.uuid, '-f', 'json')[1]) == {'arguments': ARGUMENTS, 'env': wanted}


def test_no_lease(lease, said, monkeypatch):
    monkeypatch.delenv(client.ALLOCATION, raising=False)
    assert said() == (
        1, '', 'cyborg-lite: expected a lease: begin with "cyborg-lite run -n 2 -- bash"\n',
    )  # fmt: skip
    told = f'cyborg-lite: no lease of yours is active: other. {test_leases.NOTHING}\n'
    assert said('other') == (1, '', told)


def test_a_command_that_run_starts(machine):
    script = 'printf "%s\\n" "$@" "$RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"'
    _, out, _ = machine.run('run', '-n', 2, '--', 'sh', '-c', script, 'sh', '{ray}')
    assert out.splitlines() == [*ARGUMENTS, '1']
    _, out, _ = machine.run('run', '--', 'sh', '-c', script, 'sh', 'x')
    assert out.splitlines() == ['x', '']

# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from cyborg_lite.cmd import dbsync
from cyborg_lite.db import migration


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run_(*arguments, connection=f'sqlite:///{tmp_path}/a.sqlite'):
        (tmp_path / 'a.conf').write_text(
            f'[database]\nconnection = {connection}\nmax_retries = 0\n'
        )
        file = ['--config-file', str(tmp_path / 'a.conf')]
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite-dbsync', *file, *arguments])
        status = dbsync.main()
        said = capsys.readouterr()
        return status, said.out.strip(), said.err

    return run_


def test_upgrade_and_version(run):
    assert run('version')[:2] == (0, 'empty')
    assert run('upgrade')[:2] == (0, migration.head())
    assert run('upgrade')[:2] == (0, migration.head())
    assert run('version')[:2] == (0, migration.head())


def test_database_that_cannot_be_reached(run):
    status, said, error = run('upgrade', connection='sqlite:////nowhere/at/all.sqlite')
    assert (status, said) == (1, '')
    assert error.startswith('cyborg-lite-dbsync: ')
    assert 'Traceback' not in error


@pytest.mark.parametrize('arguments', [[], ['downgrade'], ['revision']])
def test_misuse(run, arguments):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2

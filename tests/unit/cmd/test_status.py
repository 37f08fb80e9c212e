# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from cyborg_lite import conf as options
from cyborg_lite.cmd import status
from cyborg_lite.db import engine
from cyborg_lite.db import migration


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run_(connection=f'sqlite:///{tmp_path}/a.sqlite'):
        (tmp_path / 'a.conf').write_text(
            f'[database]\nconnection = {connection}\nmax_retries = 0\n'
        )
        arguments = ['--config-file', str(tmp_path / 'a.conf'), 'upgrade', 'check']
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite-status', *arguments])
        return status.main(), capsys.readouterr().out

    return run_


def test_database_of_this_release(run, tmp_path):
    url = f'sqlite:///{tmp_path}/a.sqlite'
    database = engine.Database(options.load(files=[], database__connection=url))
    migration.upgrade(database.engine)
    database.close()
    code, said = run()
    assert code == 0
    assert said.count('Result: Success') == 2


def test_database_that_is_older(run):
    code, said = run()
    assert code == 1
    assert 'Result: Warning' in said
    assert 'dbsync upgrade' in ' '.join(said.replace('|', ' ').split())


def test_database_that_cannot_be_read(run):
    code, said = run('sqlite:////nowhere/at/all.sqlite')
    assert code == 2
    assert 'Result: Failure' in said

# SPDX-License-Identifier: Apache-2.0
"""Make each fault of mutants.yaml in a copy, and see that its tests fail.

``python -m tests.mutants [WORD]``: of those whose names have the word in them, or of all.

Most of the time goes into imports. So this process imports what has no faults, and a child of it
runs the tests of one fault: two hundred imports are paid for once.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import shutil
import sys
import tempfile
import typing

import pytest

from tests import mutants

ROOT = pathlib.Path(__file__).parents[2]
#: what tests need
COPIED = ('api-ref', 'cyborg_lite', 'etc', 'tests', 'pyproject.toml', 'setup.cfg')
#: Libraries that take long to import. One that is not named here only costs time.
PRELOADED = (
    'alembic.command',
    'h11',
    'hypothesis.stateful',
    'jsonschema',
    'keystoneauth1.loading',
    'keystonemiddleware.auth_token',
    'openapi_spec_validator',
    'openstack',
    'oslo_db.sqlalchemy.enginefacade',
    'oslo_log.log',
    'oslo_messaging.rpc',
    'oslo_messaging._drivers.impl_rabbit',
    'oslo_policy.policy',
    'oslo_reports.guru_meditation_report',
    'oslo_utils.timeutils',
    'pecan',
    'placement.deploy',
    'requests_mock',
    'sqlalchemy.orm',
    'sqlalchemy.dialects.sqlite.pysqlite',
    'webtest',
    'wsme.rest.args',
    'yaml',
)
#: pytest's status when tests ran, and some failed
KILLED = 1
#: How many faults are tried at the same time.
JOBS = 2


def main(word: str = '') -> int:
    for name in PRELOADED:
        importlib.import_module(name)
    chosen = [mutant for mutant in mutants.load() if word in mutant.name]
    alive: list[str] = []
    running: dict[int, tuple[mutants.Mutant, pathlib.Path]] = {}
    with tempfile.TemporaryDirectory() as place:
        for number, mutant in enumerate(chosen):
            if len(running) == JOBS:
                alive += _finish(running)
            copy = pathlib.Path(place, str(number))
            _make(mutant, copy)
            child = os.fork()
            if not child:
                _run(copy, mutant.tests)
            running[child] = mutant, copy
        while running:
            alive += _finish(running)
    print(f'{len(chosen) - len(alive)} of {len(chosen)} are killed.')
    return len(alive) or not chosen


def _make(mutant: mutants.Mutant, copy: pathlib.Path) -> None:
    """A copy of what tests need, with the fault."""
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    file = copy / 'cyborg_lite' / mutant.file
    file.write_text(mutant.apply(file.read_text()))


def _finish(running: dict[int, tuple[mutants.Mutant, pathlib.Path]]) -> list[str]:
    """Wait for one child; returns the name of its fault if that lives."""
    child, status = os.wait()
    mutant, copy = running.pop(child)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, KILLED):
        said = (copy / 'output').read_text(errors='replace')
        raise SystemExit(f'{mutant.name}: no test ran\n{said}')
    shutil.rmtree(copy)
    print(f'{"killed" if code == KILLED else "LIVES "}: {mutant.name}', flush=True)
    return [] if code == KILLED else [mutant.name]


def _run(copy: pathlib.Path, arguments: list[str]) -> typing.NoReturn:
    """Run tests of the copy, in a process that ends with them."""
    status: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        with (copy / 'output').open('w') as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(copy)
        # Of the copy, in programs that the tests start, too.
        os.environ['PYTHONPATH'] = sys.path[0] = str(copy)
        # None of the plugins is used, and all of them together take two seconds to load.
        os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'
        for name in list(sys.modules):
            if name.partition('.')[0] in ('cyborg_lite', 'tests'):
                del sys.modules[name]
        status = pytest.main(['-q', '-x', f'--basetemp={copy / "tmp"}', *arguments])
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

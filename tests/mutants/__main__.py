# SPDX-License-Identifier: Apache-2.0
"""Make each fault of mutants.yaml in a copy; its tests must fail with it, and pass without it.

``python -m tests.mutants [WORD]`` tries the faults with a word in their names, or all. Most of the
time is needed for imports. So this process imports unchanged libraries once, and a child runs the
tests of one fault.
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
#: the files that tests need
COPIED = ('api-ref', 'cyborg_lite', 'etc', 'tests', 'pyproject.toml', 'setup.cfg')
#: Libraries that take long to import. A missing one only costs time.
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
#: The number of concurrent trials.
JOBS = 2


class Trial(typing.NamedTuple):
    """Tests that run in a copy, with a fault that they must find, or without one."""

    tests: list[str]
    mutant: mutants.Mutant | None
    copy: pathlib.Path


def main(word: str = '') -> int:
    for name in PRELOADED:
        importlib.import_module(name)
    chosen = [mutant for mutant in mutants.load() if word in mutant.name]
    # Tests that always fail would find every fault.
    distinct = {tuple(mutant.tests): None for mutant in chosen}
    trials = [*distinct.items(), *((mutant.tests, mutant) for mutant in chosen)]
    alive: list[str] = []
    running: dict[int, Trial] = {}
    with tempfile.TemporaryDirectory() as place:
        for number, (tests, mutant) in enumerate(trials):
            if len(running) == JOBS:
                alive += _finish(running)
            trial = Trial(list(tests), mutant, pathlib.Path(place, str(number)))
            _make(trial)
            child = os.fork()
            if not child:
                _run(trial.copy, trial.tests)
            running[child] = trial
        while running:
            alive += _finish(running)
    print(f'{len(chosen) - len(alive)} of {len(chosen)} are killed.')
    return len(alive) or not chosen


def _make(trial: Trial) -> None:
    """Make a copy of the needed files, with the fault if there is one."""
    trial.copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, trial.copy / name)
    if trial.mutant:
        file = trial.copy / 'cyborg_lite' / trial.mutant.file
        file.write_text(trial.mutant.apply(file.read_text()))


def _finish(running: dict[int, Trial]) -> list[str]:
    """Wait for one child; returns the name of its fault if no test found it.

    :raises SystemExit: when no test ran, or one fails without a fault.
    """
    child, status = os.wait()
    tests, mutant, copy = running.pop(child)
    code = os.waitstatus_to_exitcode(status)
    if code not in ((0, KILLED) if mutant else (0,)):
        said = (copy / 'output').read_text(errors='replace')
        what = f'{mutant.name}: no test ran' if mutant else f'{tests}: fail without a fault'
        raise SystemExit(f'{what}\n{said}')
    shutil.rmtree(copy)
    if mutant is None:
        return []
    print(f'{"killed" if code == KILLED else "LIVES "}: {mutant.name}', flush=True)
    return [] if code == KILLED else [mutant.name]


def _run(copy: pathlib.Path, arguments: list[str]) -> typing.NoReturn:
    """Run tests of the copy in this process, and exit."""
    status: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        with (copy / 'output').open('w') as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(copy)
        # The modules of the copy, also in programs that the tests start.
        os.environ['PYTHONPATH'] = sys.path[0] = str(copy)
        # The plugins are not used, and take two seconds to load.
        os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'
        os.environ['CYBORG_LITE_HYPOTHESIS'] = 'mutants'
        for name in list(sys.modules):
            if name.partition('.')[0] in ('cyborg_lite', 'tests'):
                del sys.modules[name]
        # Beside the copy: what is below it counts as code.
        place = copy.with_suffix('.tmp')
        status = pytest.main(['-q', '-x', f'--basetemp={place}', *arguments])
        shutil.rmtree(place, ignore_errors=True)
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

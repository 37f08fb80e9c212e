# SPDX-License-Identifier: Apache-2.0
"""Make each fault of mutants.yaml in a copy, and see that its tests fail.

``python -m tests.mutants [WORD]``: of those whose names have the word in them, or of all.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests import mutants

ROOT = pathlib.Path(__file__).parents[2]
#: what tests need
COPIED = ('api-ref', 'cyborg_lite', 'etc', 'tests', 'pyproject.toml', 'setup.cfg')
#: pytest's status when tests ran, and some failed
KILLED = 1


def main(word: str = '') -> int:
    alive = []
    for mutant in mutants.load():
        if word in mutant.name:
            killed = _is_killed(mutant)
            print(f'{"killed" if killed else "LIVES "}: {mutant.name}', flush=True)
            alive += [] if killed else [mutant.name]
    return len(alive)


def _is_killed(mutant: mutants.Mutant) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        file = copy / 'cyborg_lite' / mutant.file
        file.write_text(mutant.apply(file.read_text()))
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-x', *mutant.tests],
            cwd=copy,
            env=os.environ | {'PYTHONPATH': directory},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, KILLED):
            raise SystemExit(f'{mutant.name}: no test ran\n{done.stdout}{done.stderr}')
        return done.returncode == KILLED


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))

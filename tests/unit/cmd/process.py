# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite up`` as a process, as a user runs it."""

from __future__ import annotations

import collections.abc
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

COMMAND = pathlib.Path(sys.executable).with_name('cyborg-lite')
#: The timeout of each step, in seconds; none comes near it.
BOUND = 60
#: Modules that take long to load, which simple commands do without.
HEAVY = {
    'sqlalchemy', 'oslo_config', 'oslo_messaging', 'oslo_utils', 'webob', 'requests', 'logging',
}  # fmt: skip
#: The environment without the machine's proxy.
ENVIRONMENT = os.environ | {'no_proxy': '127.0.0.1', 'NO_PROXY': '127.0.0.1'}


class Up:
    """``with Up(directory, '--host', 'a') as up:`` starts it, and waits for its table."""

    def __init__(self, directory: pathlib.Path, *arguments: str, **environ: str) -> None:
        self._errors = (directory / 'errors').open('w+')
        # Each uses a free port, and only configuration files of the directory.
        argv = [COMMAND, 'up', '--port', '0', '--state-dir', directory / 'state', *arguments]
        self._process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=ENVIRONMENT | environ,
        )

    def __enter__(self) -> Up:
        guard = threading.Timer(BOUND, self._process.kill)
        guard.start()
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if line.startswith('The API answers at'):
                break
        self.url = re.search(r'(https?|unix)://[\w.:/-]*\w', lines[-1])[0] if lines else None
        self.lines = lines
        guard.cancel()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    @property
    def text(self) -> str:
        return ''.join(self.lines)

    def rows(self) -> list[dict[str, str]]:
        """The table."""
        cells = [
            [cell.strip() for cell in line.strip().strip('|').split('|')]
            for line in self.lines
            if line.startswith('|')
        ]
        return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]

    def requests(self) -> str:
        """The printed requests, unchanged."""
        found = []
        for line in self._process.stdout:
            if line.startswith('  '):
                found.append(line)
            if re.search(r'/\$ARQ$|DELETE .*/\$ALLOCATION$', line):
                break
        return ''.join(found)

    def get(self, path: str) -> dict:
        return json.loads(shell(f'curl -s {self.url}{path}'))

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body."""
        answer = shell(f'curl -s -w "\\n%{{http_code}}" {self.url}{path}')
        body, _, status = answer.rpartition('\n')
        return int(status), body

    def workers(self) -> int:
        """The number of worker threads, in the process's state report.

        One may be missed, as its stack is read while it runs.
        """
        end = 'Options'
        before = self.errors().count(end)
        self.send(signal.SIGUSR2)
        self.until(lambda: self.errors().count(end) > before)
        report = self.errors().rpartition('Guru Meditation')[2]
        return report.count('cyborg_lite/worker.py')

    def until(self, condition: collections.abc.Callable[[], object]) -> None:
        end = time.monotonic() + BOUND
        while not condition():
            assert time.monotonic() < end, condition
            time.sleep(0.1)

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Ctrl-C; returns the exit status."""
        self.send(number)
        return self._process.wait(timeout=BOUND)

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()


def shell(text: str, **environ: str) -> str:
    """The output of bash for this standard input."""
    return subprocess.run(
        ['bash', '-e'],
        input=text,
        check=True,
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=ENVIRONMENT | environ,
    ).stdout

# SPDX-License-Identifier: Apache-2.0
"""Processes that tests start and end."""

from __future__ import annotations

import collections.abc
from concurrent import futures
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import typing

Said = typing.TypeVar('Said')

#: The directory of the commands of this environment.
BIN = pathlib.Path(sys.executable).parent
#: The timeout of the start and the end of a process, in seconds.
PATIENCE = 180
#: A WSGI application on a port of its own.
SERVE = """
from cheroot import wsgi
from {module} import application
server = wsgi.Server(('127.0.0.1', 0), application, numthreads={threads})
server.prepare()
print(f'Listening at http://127.0.0.1:{{server.bind_addr[1]}}', flush=True)
server.serve()
"""


class Server:
    """A server process: ``ready`` is its output that matched at the start."""

    process: subprocess.Popen[str]
    ready: re.Match[str]
    _drain: threading.Thread

    def __init__(
        self,
        *command: str | pathlib.Path,
        ready: str,
        log: pathlib.Path,
        environ: dict[str, str],
    ) -> None:
        self._command = [BIN / command[0], *command[1:]]
        self._ready = ready
        self._log = log
        self._environ = environ

    def start(self) -> None:
        """Start it, and wait until it can serve."""
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean(**self._environ),
            start_new_session=True,
        )
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        output = self._log.open('a', buffering=1)
        found = None
        for line in self.process.stdout:
            output.write(line)
            if found := re.search(self._ready, line):
                break
        watchdog.cancel()
        if found is None:
            self.process.wait()
            output.close()
            said = self._log.read_text()[-5000:]
            raise AssertionError(f'{self._command[0]} did not start:\n{said}')
        self.ready = found
        self._drain = threading.Thread(target=self._keep, args=(output,))
        self._drain.start()

    def _keep(self, output: typing.TextIO) -> None:
        with output:
            output.writelines(self.process.stdout)

    def reload(self) -> None:
        """Make it read its configuration again."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """Stop it; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        self.process.terminate()
        self._bury()

    def restart(self, how: signal.Signals) -> None:
        """Stop it and all of its workers by a signal, and start it again."""
        self.halt(how)
        self.start()

    def halt(self, how: signal.Signals) -> None:
        """Stop it and all of its workers by a signal; ``start()`` starts it again."""
        self._signal(how)
        self._bury()

    def _bury(self) -> None:
        try:
            self.process.wait(PATIENCE)
        finally:
            # Also workers that it may leave behind.
            self._signal(signal.SIGKILL)
            self._drain.join()

    def _signal(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)


@contextlib.contextmanager
def serving(
    *command: str | pathlib.Path, ready: str, log: pathlib.Path, **environ: str
) -> collections.abc.Iterator[Server]:
    """A server, once its output matches ``ready``; its output is in ``log``."""
    server = Server(*command, ready=ready, log=log, environ=environ)
    server.start()
    try:
        yield server
    finally:
        server.end()


def application(module: str, *, threads: int, log: pathlib.Path, **environ: str):
    """The API of another service: ``ready[1]`` is its URL."""
    return serving(
        *('python', '-c', SERVE.format(module=module, threads=threads)),
        ready=r'Listening at (http://127.0.0.1:\d+)',
        log=log,
        **environ,
    )


def enter(stack: contextlib.ExitStack, *managers: contextlib.AbstractContextManager):
    """Enter these at the same time; returns what each gives."""
    with futures.ThreadPoolExecutor(len(managers)) as pool:
        return list(pool.map(stack.enter_context, managers))


def until(condition: collections.abc.Callable[[], Said], patience: float = PATIENCE) -> Said:
    """Wait for a condition, with a timeout; returns its value."""
    end = time.monotonic() + patience
    while not (said := condition()):
        assert time.monotonic() < end, f'it did not come to pass: {condition}'
        time.sleep(0.05)
    return said


Run = collections.abc.Callable[..., subprocess.CompletedProcess[str]]


def run(*command: str | pathlib.Path, check: bool = True, timeout: int = PATIENCE, **environ: str):
    """Run a command of this environment to its end."""
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean(**environ),
        check=False,
    )
    return _checked(done) if check else done


def _checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if done.returncode:
        words = ' '.join(map(str, done.args))
        raise AssertionError(f'{words}: status {done.returncode}\n{done.stdout}{done.stderr}')
    return done


@contextlib.contextmanager
def forking(command: pathlib.Path, place: pathlib.Path) -> collections.abc.Iterator[Run]:
    """Run one Python command often: a function like run(), for that command.

    Only the first runs import what the command needs: see forks.py.
    """
    place.mkdir()
    path = place / 'socket'

    def fork(*words: str, check: bool = True, **environ: str):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            with client.makefile('rw') as stream:
                stream.write(json.dumps([words, clean(**environ)]) + '\n')
                stream.flush()
                done = subprocess.CompletedProcess([command, *words], *json.loads(stream.read()))
        return _checked(done) if check else done

    server = [command.parent / 'python', '-P', pathlib.Path(__file__).with_name('forks.py')]
    with serving(*server, command, path, ready='Ready', log=place / 'log'):
        yield fork


def environment(name: str, *packages: str) -> pathlib.Path:
    """The directory of commands of a nested virtual environment, which is made once."""
    home = pathlib.Path(sys.prefix) / name
    if not (home / 'complete').exists():
        run('python', '-m', 'venv', '--clear', home)
        run(home / 'bin' / 'pip', 'install', '-q', *packages, timeout=600)
        (home / 'complete').touch()
    return home / 'bin'


def clean(**environ: str) -> dict[str, str]:
    """Our environment, without the user's cloud and proxy."""
    kept = {k: v for k, v in os.environ.items() if not re.match(r'OS_|.*_proxy$', k, re.I)}
    return kept | {'OS_CLIENT_CONFIG_FILE': os.devnull} | environ

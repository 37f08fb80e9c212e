# SPDX-License-Identifier: Apache-2.0
"""Runs a Python command repeatedly, and imports its modules once.

``python -P forks.py COMMAND SOCKET`` runs with the Python of the command's environment, and knows
nothing but the standard library.  Each connection to the socket asks for one run: it sends
``[arguments, environment]`` as a line of JSON and gets ``[exit status, stdout, stderr]``.

A run is a fork, which executes the file of the command.  The server itself never does: it only
imports what the last run has imported, so that the next one finds it there.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
from importlib import metadata
import json
import os
import runpy
import socket
import sys
import tempfile
import typing

Files = list[typing.IO[str]]


def serve(command: str, listener: socket.socket) -> None:
    """Serve requests; returns only in a fork, which executes the command."""
    while True:
        connection, _ = listener.accept()
        stream = connection.makefile('rw')
        arguments, environ = json.loads(stream.readline())
        # They have no names: a fork that ends deletes none of them.
        files = [tempfile.TemporaryFile('w+') for _ in range(3)]  # noqa: SIM115
        pid = os.fork()
        if not pid:
            return become([command, *arguments], environ, files)
        _, status = os.waitpid(pid, 0)
        stdout, stderr, modules = map(read, files)
        json.dump([os.waitstatus_to_exitcode(status), stdout, stderr], stream)
        stream.close()
        connection.close()
        learn(modules.splitlines())


def become(words: list[str], environ: dict[str, str], files: Files) -> None:
    """Make this process look like a new one."""
    stdout, stderr, modules = files
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    sys.argv[:] = words
    os.environ.clear()
    os.environ.update(environ)
    atexit.register(lambda: print(*sys.modules, sep='\n', file=modules, flush=True))


def read(file: typing.IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read()


def learn(modules: list[str]) -> None:
    """Import the modules of a run, in the same order."""
    for name in modules:
        # Some modules are made by others, and cannot be imported by their names.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # A garbage collection in a fork would copy all of this memory.
    gc.freeze()


def main() -> None:
    command, path = sys.argv[1:]
    # cliff calls it in each run, and it reads the metadata of all packages.
    metadata.packages_distributions = functools.cache(metadata.packages_distributions)
    metadata.packages_distributions()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print('Ready', flush=True)
    serve(command, listener)
    runpy.run_path(command, run_name='__main__')


if __name__ == '__main__':
    main()

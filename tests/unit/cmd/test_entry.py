# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at each step of ``cyborg-lite up``: no traceback, and a directory for the next run."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from tests import pages
from tests.unit.cmd import process

#: A server of runs: each line of its input asks for one, with the places, the arguments, and the
#: files of the output; the answer is the exit status. A run is a fork, which sends SIGINT to itself
#: when a module is imported, or when a function is called for the first time.
PROGRAM = """
import functools, importlib, json, operator, os, signal, sys
from cyborg_lite.cmd import entry

class Finder:
    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path, target=None):
        if name == self.name:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

def interrupting(module, name):
    owner, _, last = name.rpartition('.')
    module = importlib.import_module(module)
    owner = operator.attrgetter(owner)(module) if owner else module
    called, reached = getattr(owner, last), []

    @functools.wraps(called)
    def instead(*args, **kwargs):
        if not reached:
            reached.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return called(*args, **kwargs)

    setattr(owner, last, instead)

for module in sys.argv[1:]:
    importlib.import_module(module)
for line in sys.stdin:
    places, sys.argv, files = json.loads(line)
    if (pid := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    os._exit(0)
signal.alarm(60)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for number, file in enumerate(files, 1):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
for place in places:
    module, _, name = place.partition(':')
    if name:
        interrupting(module, name)
    else:
        sys.meta_path.insert(0, Finder(module))
sys.exit(entry.main())
"""
LOADING = [
    'cyborg_lite.cmd.main',
    'cyborg_lite.cmd.main:parser',
    'cyborg_lite.cmd.up',
    'sqlalchemy',
    'oslo_config.cfg',
    'cyborg_lite.db.migration',
    'cyborg_lite.cmd.up:add_arguments',
]
STARTING = [
    'cyborg_lite.cmd.up:_tls',
    'cyborg_lite.conf:load',
    'cyborg_lite.service:prepare',
    'cyborg_lite.startup:check',
    'cyborg_lite.driver.host:find',
    'cyborg_lite.cmd.up:_embedded',
    'cyborg_lite.db.migration:_upgrade',
    'cyborg_lite.api.app:application',
    'cyborg_lite.agent.local:Server',
    'cyborg_lite.unix:listen',
    'cyborg_lite.service:listen',
    'cyborg_lite.server:Server',
    'cyborg_lite.cmd.up:_start',
    'cyborg_lite.service:Embedded.end_others',
    'cyborg_lite.service:Conductor.start',
    'cyborg_lite.service:Agent.start',
    'cyborg_lite.agent.drivers:Drivers.discover',
    'cyborg_lite.conductor.reports:Reports.report',
    'cyborg_lite.service:spare_garbage_collection',
    'cyborg_lite.cmd.introduction:show',
    'cyborg_lite.cmd.introduction:_explain',
    'cyborg_lite.server:Server.serve',
    'cyborg_lite.server:Server._serve',
    'cyborg_lite.server:Server._accept',
]
STOPPING = [
    'cyborg_lite.server:Server.stop',
    'cyborg_lite.server:Server._close',
    'cyborg_lite.cmd.up:_stop',
    'cyborg_lite.service:Embedded.stop',
    'cyborg_lite.agent.local:Server.stop',
    'cyborg_lite.service:Agent.stop',
    'cyborg_lite.service:Conductor.stop',
    'cyborg_lite.unix:remove',
    'cyborg_lite.cmd.entry:_end_threads',
    'logging:shutdown',
]


@contextlib.contextmanager
def runs(*modules):
    """``run(directory, *places)``: the exit status, and the output.

    :param modules: what is loaded before.
    """
    server = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=process.ENVIRONMENT,
    )

    def run(directory, *places):
        state, files = directory / 'state', [directory / name for name in ('out', 'err')]
        argv = ['cyborg-lite', 'up', '--host', 'atlas-800t-a2', '--port', '0']
        asked = places, [*argv, '--state-dir', str(state)], [str(file) for file in files]
        print(json.dumps(asked), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        out, errors = (file.read_text() for file in files)
        for text in (out, errors, *(file.read_text() for file in state.glob('*.log'))):
            assert 'Traceback' not in text
            assert 'KeyboardInterrupt' not in text
        # A client would take the socket of a service that has ended for that of another.
        assert list(state.glob('*.sock')) == []
        return status, out, errors

    with server:
        yield run
        server.stdin.close()


@pytest.fixture(scope='module')
def bare():
    with runs() as run:
        yield run


@pytest.fixture(scope='module')
def loaded():
    with runs('cyborg_lite.cmd.up', 'cyborg_lite.api.app', 'cyborg_lite.conductor.manager') as run:
        yield run


@pytest.mark.parametrize('place', LOADING)
def test_while_it_loads(place, bare, tmp_path):
    assert bare(tmp_path, place) == (130, '', '')


def test_again_while_python_ends(bare, tmp_path):
    assert bare(tmp_path, 'cyborg_lite.cmd.up', 'threading:_shutdown') == (130, '', '')


@pytest.mark.parametrize('place', STARTING)
def test_while_it_starts_and_serves(place, loaded, tmp_path):
    status, _, errors = loaded(tmp_path, place)
    assert (status, errors.splitlines()[-1:]) == (0, ['Stopping.'])


@pytest.mark.parametrize('place', STOPPING)
def test_again_while_it_stops(place, loaded, tmp_path):
    status, _, errors = loaded(tmp_path, 'cyborg_lite.server:Server.serve', place)
    assert (status, errors.splitlines()[-1:]) == (0, ['Stopping.'])


def test_the_reader_of_its_errors_has_ended(tmp_path):
    """Ctrl-C ends a whole pipeline."""
    reader, writer = os.pipe()
    argv = [
        process.COMMAND,
        'up',
        '--host',
        'atlas-800t-a2',
        '--port',
        '0',
        '--state-dir',
        tmp_path,
    ]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=writer, text=True, env=process.ENVIRONMENT
    ) as up:
        os.close(writer)
        assert any(line.startswith('The API answers at') for line in up.stdout)
        os.close(reader)
        up.send_signal(signal.SIGINT)
        assert up.wait(process.BOUND) == 0
    assert list(tmp_path.glob('*.sock')) == []


def test_hardly_any_module_is_loaded_before_ctrl_c_ends_the_command():
    """What Python itself loads before, no program can end without a traceback."""
    program = (
        'import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); '
        'import cyborg_lite.cmd.entry; print(*sorted(set(sys.modules) - before))'
    )
    words = [sys.executable, '-I', '-S', '-c', program, str(pages.ROOT)]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    ours = {'cyborg_lite', 'cyborg_lite.cmd', 'cyborg_lite.cmd.entry'}
    small = {'__future__', 'importlib', 'warnings'}
    assert {each for each in loaded if not each.startswith('importlib.')} <= ours | small

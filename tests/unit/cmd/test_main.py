# SPDX-License-Identifier: Apache-2.0
import gc
import io
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import tarfile
import threading

import pytest

from cyborg_lite import driver
from cyborg_lite.cmd import entry
from cyborg_lite.cmd import main
from cyborg_lite.cmd import output
from cyborg_lite.driver import description
from tests.unit.cmd import process


@pytest.fixture
def run(monkeypatch):
    def run_(*arguments):
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite', *arguments])
        return main.main()

    return run_


def test_record(run, tmp_path, capsys):
    """Record this machine, and show the recording by ``up``."""
    file = tmp_path / 'mine.tar.gz'
    assert run('record', str(file)) == 0
    said = capsys.readouterr()
    assert f'Wrote {file}. Look at it with: cyborg-lite up --host {file}' in said.out
    for name in ('huawei_ascend', 'nvidia_gpu', 'amd_gpu', 'intel_gaudi', 'pci'):
        assert f'\n{name}: ' in f'\n{said.out}'
    with tarfile.open(file) as tar:
        assert 'sys/bus/pci/devices' in tar.getnames()
    with process.Up(tmp_path, '--host', str(file)) as up:
        assert 'mine: ' in up.text or up.rows()
        assert up.interrupt() == 0


@pytest.mark.parametrize('busy', [True, False])
def test_threads_do_not_keep_the_process(monkeypatch, busy):
    go, ended = threading.Event(), []
    if not busy:
        go.set()

    def command():
        threading.Thread(target=go.wait, name='slow').start()
        return 3

    monkeypatch.setattr(main, 'main', command)
    monkeypatch.setattr(entry, 'PATIENCE', 0.1 if busy else process.BOUND)
    monkeypatch.setattr(os, '_exit', ended.append)
    monkeypatch.setattr(logging, 'shutdown', lambda: None)
    assert entry.main() == 3
    go.set()
    assert ended == ([3] if busy else [])


@pytest.mark.parametrize('words', [[], ['--with-serials']])
def test_serial_numbers_are_recorded_if_asked_for(run, tmp_path, monkeypatch, words):
    root = tmp_path / 'host'
    description.write(description.parse('functions: []'), root)
    host = driver.Host('host', root)
    host.outputs['npu-smi', 'info'] = 'Serial Number : 2102312NVF10L8000123'
    monkeypatch.setattr(driver.Host, 'local', lambda _name: host)
    assert run('record', *words, str(tmp_path / 'a.tar.gz')) == 0
    with tarfile.open(tmp_path / 'a.tar.gz') as tar:
        text = tar.extractfile('tools/npu-smi/info.txt').read().decode()
    assert ('2102312NVF10L8000123' in text) == bool(words)


def test_record_to_a_place_that_is_not_there(run, tmp_path, capsys):
    assert run('record', str(tmp_path / 'no' / 'a.tar.gz')) == 1
    said = f'cyborg-lite: {tmp_path}/no/a.tar.gz: there is no directory {tmp_path}/no\n'
    assert capsys.readouterr().err.endswith(said)


def test_garbage_is_collected_once_modules_are_loaded():
    main.parser().parse_args(['ps'])
    assert gc.isenabled()


def test_a_closed_pipe_is_no_error(run, tmp_path, monkeypatch, capsys):
    """For example ``cyborg-lite ps | head``."""
    reading, writing = os.pipe()
    os.close(reading)
    output = os.fdopen(writing, 'w')
    monkeypatch.setattr(sys, 'stdout', output)
    assert run('record', str(tmp_path / 'a.tar.gz')) == 128 + signal.SIGPIPE
    # The rest of the buffer is written at the exit, so the output must be valid.
    output.close()
    assert 'roken pipe' not in capsys.readouterr().err


@pytest.mark.parametrize(
    'command',
    ['cyborg-lite --version', 'cyborg-lite-status --help', 'cyborg-lite-dbsync --version'],
)
def test_an_output_that_is_not_there(command):
    directory = pathlib.Path(sys.executable).parent
    for redirection in ('>&-', '>&- 2>&-', '| true'):
        found = subprocess.run(
            ['bash', '-c', f'{directory}/{command} {redirection}; exit ${{PIPESTATUS[0]}}'],
            capture_output=True,
            text=True,
        )
        assert found.stderr == ''
        assert found.returncode in (0, output.PIPED)


def test_a_character_that_the_output_does_not_have(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, encoding='latin-1'))
    assert output.prepared(lambda: print('é昇\ud800…') or 0)() == 0
    assert written.getvalue() == 'é???\n'.encode('latin-1')


@pytest.mark.parametrize('arguments', [[], ['nothing'], ['up', '--port', 'x'], ['up', 'x']])
def test_misuse(run, arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert 'usage: cyborg-lite' in capsys.readouterr().err


@pytest.mark.parametrize('command', main.COMMANDS)
def test_misuse_of_a_command_shows_its_usage(run, command, capsys):
    with pytest.raises(SystemExit):
        run(command, '--odd')
    said = capsys.readouterr().err
    assert said.startswith(f'usage: cyborg-lite {command} [')
    assert 'unrecognized arguments: --odd' in said


@pytest.mark.parametrize('arguments', [['--help'], ['up', '--help'], ['record', '--help']])
def test_help(run, arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 0
    assert 'usage: cyborg-lite' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [['--help'], ['ps', '--url', 'http://127.0.0.1:9']])
def test_simple_commands_load_no_service(arguments):
    """Loading it took a second before a line of help."""
    code = (
        'import sys; from cyborg_lite.cmd import entry\n'
        'try: entry.main()\n'
        'except SystemExit: pass\n'
        f'print("loaded:", *{process.HEAVY} & set(sys.modules))'
    )
    run = [sys.executable, '-c', code, *arguments]
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == 'loaded:', found.stdout
    assert ('usage:' in found.stdout) or ('no service answers' in found.stderr)


def test_help_of_up_leads_to_formats_and_options(capsys):
    with pytest.raises(SystemExit):
        main.parser().parse_args(['up', '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    [place] = re.findall(r'shipped host descriptions are in (\S+):', said)
    assert any(pathlib.Path(place).glob('*.yaml'))
    assert 'pydoc cyborg_lite.driver.description' in said
    assert 'oslo-config-generator --namespace cyborg_lite' in said

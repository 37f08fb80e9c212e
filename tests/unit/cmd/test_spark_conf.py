# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest

from cyborg_lite import client
from cyborg_lite.cmd import main


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The discovery script, installed beside the command."""
    file = tmp_path / 'cyborg-lite-discover'
    file.touch(0o755)
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
    return str(file)


@pytest.fixture
def said(monkeypatch, capsys):
    """The output of the command; its errors if it fails."""
    monkeypatch.delenv(client.VARIABLE, raising=False)

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite', 'spark-conf', *words])
        try:
            status = main.main()
        except SystemExit as ended:
            status = ended.code
        shown = capsys.readouterr()
        assert bool(status) == (not shown.out), shown
        return shown.err if status else shown.out

    return run


def words(text):
    """The words of the text in $( )."""
    shell = ['sh', '-c', 'printf "%s\\n" $(cat)']
    return subprocess.run(shell, input=text, check=True, capture_output=True, text=True).stdout


def test_each_executor_has_one(said, script):
    text = said('--class', 'npu')
    assert text.splitlines() == [
        '--conf spark.executor.resource.npu.amount=1',
        f'--conf spark.executor.resource.npu.discoveryScript={script}',
        '--conf spark.task.resource.npu.amount=1',
        '--conf spark.executorEnv.CYBORG_RESOURCE=npu',
        '--conf spark.executorEnv.CYBORG_LEASE=1',
    ]
    assert words(text).split() == text.split()


def test_as_json(said, script, monkeypatch):
    monkeypatch.setenv(client.VARIABLE, '/elsewhere/agent.sock')
    shown = json.loads(
        said('--class', 'CUSTOM_NPU', '-n', '2', '--task', '0.25', '--script', '/b/c', '-f', 'json')
    )
    assert shown == {
        'spark.executor.resource.npu.amount': '2',
        'spark.executor.resource.npu.discoveryScript': '/b/c',
        'spark.task.resource.npu.amount': '0.25',
        'spark.executorEnv.CYBORG_RESOURCE': 'npu',
        'spark.executorEnv.CYBORG_LEASE': '2',
        'spark.executorEnv.CYBORG_LITE_SOCKET': '/elsewhere/agent.sock',
    }


def test_a_profile(said, script):
    shown = json.loads(said('--class', 'npu', '--profile', 'big', '-n', '2', '-f', 'json'))
    assert shown['spark.executor.resource.npu.amount'] == '2'
    assert shown['spark.executorEnv.CYBORG_PROFILE'] == 'big'
    assert 'spark.executorEnv.CYBORG_LEASE' not in shown


def test_a_worker_has_variables(said, script):
    """Existing variables are kept."""
    asked = '--class', 'npu', '-n', '4', '--worker', '--socket', '/s'
    command = f'{said(*asked)}env'
    done = subprocess.run(
        ['sh', '-euc', command],
        env={'PATH': '/usr/bin:/bin', 'SPARK_WORKER_OPTS': '-Da=b'},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = dict(line.split('=', 1) for line in done.stdout.splitlines())
    options = (
        f'-Dspark.worker.resource.npu.amount=4 -Dspark.worker.resource.npu.discoveryScript={script}'
    )
    wanted = {'CYBORG_RESOURCE': 'npu', 'CYBORG_LEASE': '4', 'CYBORG_LITE_SOCKET': '/s'}
    assert found.items() >= (wanted | {'SPARK_WORKER_OPTS': f'{options} -Da=b'}).items()
    shown = json.loads(said(*asked, '-f', 'json'))
    assert shown == wanted | {'SPARK_WORKER_OPTS': options}


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (['--socket', '/nowhere/agent.sock'], 'start one with "cyborg-lite up"'),
        (['--class', 'n/p'], "expected a name such as npu, not 'n/p'"),
        (['--class', 'npu', '-n', '0'], 'expected a number from 1 to 1000'),
        (['--class', 'npu', '--task', '0.7'], 'or a share of at most 0.5'),
        (['--class', 'npu', '--task', '0.0'], 'or a share of at most 0.5'),
        (['--class', 'npu', '--task', '1.5'], 'or a share of at most 0.5'),
        (['--class', 'npu', '--script', '/my files/x'], 'expected no blanks'),
        (['--class', 'npu', '--script', '$(id)'], 'expected no blanks'),
    ],
)
def test_misuse(said, script, arguments, error):
    assert error in said(*arguments)


def test_an_agent_of_the_release_before(said, script, monkeypatch):
    monkeypatch.setattr(client, 'find', lambda socket: '/run/agent.sock')
    monkeypatch.setattr(client, 'ask', lambda *_: {'leases': []})
    assert 'name the class with --class' in said()


def test_a_script_whose_path_has_blanks(said, tmp_path, monkeypatch):
    place = tmp_path / 'my files'
    place.mkdir()
    (place / 'cyborg-lite-discover').touch(0o755)
    monkeypatch.setattr(sys, 'executable', str(place / 'python'))
    assert 'name its place with --script' in said('--class', 'npu')


def test_a_script_that_is_nowhere(said, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
    monkeypatch.setenv('PATH', str(tmp_path))
    assert 'cyborg-lite-discover is not installed here' in said('--class', 'npu')

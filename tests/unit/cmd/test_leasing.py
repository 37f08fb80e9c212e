# SPDX-License-Identifier: Apache-2.0
"""The commands that lease accelerators, without an agent."""

import socket
import threading

import pytest

from cyborg_lite import client
from cyborg_lite.cmd import main

COMMANDS = [
    ['run', '--', 'true'],
    ['alloc'],
    ['reserve', '--list'],
    ['reserve', '--at', '09:00', '--for', '3h'],
    ['release', 'mine'],
    ['ray-args', 'mine'],
    ['spark-conf'],
]


@pytest.mark.parametrize('words', COMMANDS, ids=' '.join)
def test_a_command_for_another_machine_says_where_to_type_it(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr(client, 'SYSTEM', tmp_path / 'run')
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    monkeypatch.delenv(client.VARIABLE, raising=False)
    monkeypatch.setenv(client.URL, 'http://head:6666')
    arguments = main.parser().parse_args(words)
    assert arguments.run(arguments) == 1
    said = capsys.readouterr().err
    assert (said.count('\n'), f'names head, but {client.OWN}\n' in said) == (1, True), said


@pytest.mark.parametrize('words', [['-n', '0'], ['--bogus'], ['--pid', '1', '--for', '1m']])
def test_a_shell_that_evaluates_a_wrong_command_fails(capsys, words):
    """Otherwise a program would start that sees all devices."""
    with pytest.raises(SystemExit) as ended:
        main.parser().parse_args(['alloc', *words])
    assert (ended.value.code, capsys.readouterr().out) == (2, 'false\n')


def test_other_commands_print_nothing_for_a_shell(capsys):
    with pytest.raises(SystemExit):
        main.parser().parse_args(['run', '-n', '0', '--', 'true'])
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('answer', [b'HTTP/1.1 400 Bad Request\r\n\r\n', b'[]\n', b'\xff\n'])
def test_a_socket_of_something_else_is_named(tmp_path, capsys, answer):
    path = str(tmp_path / 'api.sock')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        arguments = main.parser().parse_args(['release', '--socket', path, 'mine'])
        status = arguments.run(arguments)
        thread.join()
    said = capsys.readouterr().err
    assert (status, f'{path} is no socket of an agent: that is agent.sock' in said) == (1, True)

# SPDX-License-Identifier: Apache-2.0
"""The commands that lease accelerators, without an agent."""

import socket
import threading
from unittest import mock

import pytest

from cyborg_lite import client
from cyborg_lite.cmd import leasing
from cyborg_lite.cmd import main
from cyborg_lite.conductor import requesting

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


@pytest.mark.parametrize('words', [['run', '--', 'true'], ['alloc']], ids=' '.join)
@pytest.mark.parametrize('named', [None, 'variable', 'option'])
def test_that_another_machine_is_not_asked_is_said(tmp_path, monkeypatch, capsys, words, named):
    """Unless somebody has named the socket of the agent."""
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    monkeypatch.delenv(client.VARIABLE, raising=False)
    monkeypatch.setenv(client.URL, 'http://head:6666')
    path = tmp_path / 'cyborg-lite' / client.SOCKET
    path.parent.mkdir()
    if named == 'variable':
        monkeypatch.setenv(client.VARIABLE, str(path))
    elif named == 'option':
        words = [words[0], '--socket', str(path), *words[1:]]
    monkeypatch.setattr(client, 'lease', mock.Mock(side_effect=client.Error('asked')))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        arguments = main.parser().parse_args(words)
        assert arguments.run(arguments) == 1
    assert client.lease.call_args.args[0] == str(path)
    far = '' if named else f'cyborg-lite: {client.URL} names head, but {client.OWN}\n'
    assert capsys.readouterr().err == f'{far}cyborg-lite: asked\n'


@pytest.mark.parametrize('words', [['reserve', '--list'], ['release']], ids=' '.join)
def test_an_agent_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch, capsys, words):
    path = str(tmp_path / 'agent.sock')
    monkeypatch.setenv(client.VARIABLE, path)
    monkeypatch.setenv(client.ALLOCATION, 'lease')
    monkeypatch.setattr(leasing, 'PATIENCE', 0.05)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(path)
        hung.listen()
        arguments = main.parser().parse_args(words)
        assert arguments.run(arguments) == 1
    assert capsys.readouterr().err == f'cyborg-lite: the agent at {path} does not answer\n'


@pytest.mark.parametrize('words', [['-n', '0'], ['--bogus'], ['--pid', '1', '--for', '1m']])
def test_a_shell_that_evaluates_a_wrong_command_fails(capsys, words):
    """Otherwise a program would start that sees all devices."""
    with pytest.raises(SystemExit) as ended:
        main.parser().parse_args(['alloc', *words])
    assert (ended.value.code, capsys.readouterr().out) == (2, 'false\n')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['run', '--name', ''], 'argument --name: expected up to 255 letters, digits, "_", '),
        (['run', '--name', 'a b'], 'argument --name: expected up to 255 letters'),
        (['alloc', '--class', ''], 'argument --class: expected a resource class, such as npu, not'),
        (['run', '--profile', ''], 'argument --profile: expected the name of a device profile'),
        (['run', '--reservation', ''], 'argument --reservation: expected the uuid or name of a'),
        (['run', '--trait', 'fast'], 'argument --trait: expected capital letters, digits and "_"'),
        (['run', '--as', ' li'], 'argument --as: expected 1 to 64 printable characters, with no'),
        (['release', '--as', 'x' * 65], 'argument --as: expected 1 to 64 printable characters'),
        (['reserve', '--note', 'a\nb'], 'argument --note: expected 1 to 255 printable characters'),
        (['alloc', '--for', '1000000h'], 'argument --for: expected at most 366d'),
        (['reserve', '--for', '1000000h'], 'argument --for: expected at most 366d'),
        (['ps', '--watch', '99999999'], 'argument --watch: expected a number of seconds above 0, '),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_its_option(capsys, words, said):
    """The API knows neither the options nor what was typed."""
    with pytest.raises(SystemExit):
        main.parser().parse_args(words)
    assert f'cyborg-lite {words[0]}: error: {said}' in capsys.readouterr().err


def test_words_are_checked_as_the_service_checks_them():
    fields = requesting.REQUEST['properties']
    for name, (pattern, _) in leasing.WORDS.items():
        if name == 'traits':
            served, pattern = fields[name]['propertyNames'], pattern.removeprefix('!?')
        else:
            served = fields[name]
        assert served['pattern'] == f'^{pattern}\\Z'


@pytest.mark.parametrize(
    ('text', 'advice'),
    [
        ('process 7 belongs to another user', 'Name a process of your own: "ps -u $USER" lists'),
        ('Card 0000:3b:00.0 of host h cannot be leased: it is held', '"cyborg-lite ps" shows the'),
        (
            'Active allocation with name job already exists.',
            'Choose another --name, or release that first with "cyborg-lite release"',
        ),
        (
            'Invalid resource_class: a reservation has its accelerators already; expected at most',
            'Give no --class, --profile, --trait, --same-numa or --linked with --reservation.',
        ),
        ("no lease of 'job'", '"cyborg-lite ps" shows who holds what, and "cyborg-lite reserve '),
    ],
)
def test_a_refusal_says_what_to_type(text, advice):
    assert leasing.advised(text).startswith(f'{text.rstrip(".")}. {advice}')


@pytest.mark.parametrize('nonblock', [False, True])
@pytest.mark.parametrize(
    ('text', 'waits', 'advice'),
    [
        ('Cannot allocate: no npu is free.', True, '"cyborg-lite ps" shows all cards'),
        ('It was, and some are kept for reservation x.', True, 'Take them for a time that ends be'),
        ('Reservation x holds nothing yet: It starts.', True, '"cyborg-lite reserve --list" lists'),
        ('1 are left: expected at least 2.', True, 'Ask for fewer with -n; "cyborg-lite ps" shows'),
        ('Cannot allocate: even if all were free no.', False, 'Change -n, --trait, --same-numa '),
        ('Reservation x not found.', False, '"cyborg-lite reserve --list" lists them'),
    ],
)
def test_only_after_nonblock_a_refusal_says_to_wait(text, waits, advice, nonblock):
    wait = f'{leasing.QUEUE}; ' if waits and nonblock else ''
    assert leasing.advised(text, '', nonblock).startswith(f'{text} {wait}{advice}')


def test_an_empty_command(capsys):
    arguments = main.parser().parse_args(['run', '--', ''])
    assert arguments.run(arguments) == 2
    assert 'expected a command after "--": cyborg-lite run' in capsys.readouterr().err


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

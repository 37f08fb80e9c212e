# SPDX-License-Identifier: Apache-2.0
"""The commands that lease accelerators, without an agent."""

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

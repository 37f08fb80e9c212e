# SPDX-License-Identifier: Apache-2.0
import os
import stat
import types

import pytest

from cyborg_lite import exception
from cyborg_lite.agent import secret


def load(path=None):
    return secret.load(types.SimpleNamespace(agent=types.SimpleNamespace(secret_file=path)))


def test_a_secret_is_made_once_and_is_for_its_user_alone(tmp_path):
    path = tmp_path / 'agent.secret'
    before = os.umask(0)
    try:
        first = load(str(path))
    finally:
        os.umask(before)
    assert len(first) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(str(path)) == first
    # No draft is left.
    assert [each.name for each in tmp_path.iterdir()] == ['agent.secret']


def test_of_two_that_start_at_once_both_have_the_secret_of_the_first(tmp_path, monkeypatch):
    path, plain = tmp_path / 'agent.secret', os.link
    monkeypatch.setattr('os.link', lambda *args: [path.write_text('1' * 64), plain(*args)])
    assert load(str(path)) == '1' * 64


def test_where_the_secret_is_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv('STATE_DIRECTORY', raising=False)
    assert load() is None
    monkeypatch.setenv('STATE_DIRECTORY', f'{tmp_path}:/elsewhere')
    assert load() == (tmp_path / 'agent.secret').read_text().strip()


@pytest.mark.parametrize('content', ['', 'g' * 64, 'ÿ', '1' * 65])
def test_a_file_that_is_no_secret(tmp_path, content):
    path = tmp_path / 'agent.secret'
    path.write_text(content, encoding='latin-1')
    with pytest.raises(exception.Refused, match=r'^\[agent\] secret_file: '):
        load(str(path))
    assert path.read_text(encoding='latin-1') == content


def test_a_file_that_cannot_be_made(tmp_path):
    with pytest.raises(exception.Refused, match=r'^\[agent\] secret_file: .*No such file'):
        load(str(tmp_path / 'nowhere' / 'agent.secret'))

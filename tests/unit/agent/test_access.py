# SPDX-License-Identifier: Apache-2.0
import os
import stat
import types

import pytest

from cyborg_lite import exception
from cyborg_lite.agent import access
from tests import devices

pytestmark = devices.needs_root
JANE, BOB, NUMBERS = devices.JANE, devices.BOB, devices.NUMBERS


@pytest.fixture
def place():
    with devices.directory() as place:
        yield place


@pytest.fixture
def node(place):
    return devices.make(place / 'npu0', NUMBERS[0])


@pytest.fixture
def file(tmp_path):
    return tmp_path / 'agent.access'


def load(file, device_access='acl'):
    options = {'device_access': device_access, 'access_file': file and str(file)}
    return access.load(types.SimpleNamespace(agent=types.SimpleNamespace(**options)))


def who(node):
    return {uid for uid in (JANE, BOB) if devices.may_open(uid, node)}


def test_a_node_is_open_for_its_users_alone(node, file):
    kept = load(file)
    assert who(node) == {JANE, BOB}
    for users in (set(), {JANE}, {BOB}, {JANE, BOB}, {0}, set()):
        kept.enforce({node: users})
        assert who(node) == users - {0}
    assert kept.enforced


def test_the_owner_and_the_group_of_a_node_are_users(place, file):
    """The vendor's software gives nodes to a user and a group of its own."""
    node = devices.make(place / 'npu0', NUMBERS[0], 0o660, (JANE, BOB))
    kept = load(file)
    kept.enforce({node: []})
    assert who(node) == set()
    assert devices.mode(node) == (0o600, 0, 0)


@pytest.mark.parametrize(
    ('mode', 'owner'), [(0o666, (0, 0)), (0o660, (JANE, BOB)), (0o600, (0, 0)), (0o444, (JANE, 0))]
)
def test_a_node_is_put_back_as_it_was_found(place, file, mode, owner):
    node = devices.make(place / 'npu0', NUMBERS[0], mode, owner)
    load(file).enforce({node: [BOB]})
    # Another start of the agent.
    load(file).enforce({node: []})
    assert load(file, 'advisory') is None
    assert devices.mode(node) == (mode, *owner)
    assert not file.exists()


def test_a_list_is_put_back_as_it_was_found(node, file):
    """Such as that of a login manager, which opens nodes for the user at the console."""
    before = access._packed(6, 4, 0, [BOB])
    os.setxattr(node, access.ATTRIBUTE, before)
    load(file).enforce({node: [JANE]})
    assert who(node) == {JANE}
    load(file, 'advisory')
    assert os.getxattr(node, access.ATTRIBUTE) == before
    assert who(node) == {BOB}


def test_a_node_that_is_made_anew_is_closed_again(node, file, place):
    kept = load(file)
    kept.enforce({node: [JANE]})
    devices.make(place / 'npu0', NUMBERS[0], 0o660, (0, BOB))
    assert who(node) == {BOB}
    kept.enforce({node: [JANE]})
    assert who(node) == {JANE}
    load(file, 'advisory')
    assert devices.mode(node) == (0o660, 0, BOB)


def test_a_mode_that_another_program_changes_is_corrected(node, file):
    """chmod changes the permissions of all users of the list."""
    kept = load(file)
    for users, mode in (([JANE], 0o600), ([JANE], 0o666), ([], 0o666)):
        kept.enforce({node: users})
        os.chmod(node, mode)
        kept.enforce({node: users})
        assert who(node) == {*users}
    os.chown(node, BOB, BOB)
    kept.enforce({node: [JANE]})
    assert who(node) == {JANE}


def test_a_node_that_is_not_named_stays_closed(node, file, place):
    """A driver may be late."""
    other = devices.make(place / 'npu1', NUMBERS[1])
    kept = load(file)
    kept.enforce({node: [JANE], other: [JANE]})
    kept.enforce({other: [JANE]})
    assert (who(node), who(other)) == (set(), {JANE})


def test_shared_nodes_stay_open(place, node, file):
    """Also by another name of the device."""
    shared = devices.make(place / 'manager', devices.SHARED)
    twin = devices.make(place / 'npu1', devices.SHARED)
    kept = load(file)
    kept.enforce({node: [], twin: []}, [shared])
    assert (who(node), who(shared), who(twin)) == (set(), {JANE, BOB}, {JANE, BOB})
    # A release of the vendor's software may share what was a card's own.
    kept.enforce({node: []}, [shared, node])
    assert who(node) == {JANE, BOB}


def test_what_is_no_device_node_is_left_alone(place, node, file):
    (place / 'file').write_text('')
    (place / 'link').symlink_to(node)
    os.mkfifo(place / 'pipe')
    os.mknod(place / 'block', stat.S_IFBLK, NUMBERS[0])
    others = [str(place / name) for name in ('file', 'link', 'pipe', 'block')]
    before = {path: devices.mode(path) for path in others}
    kept = load(file)
    kept.enforce({path: [JANE] for path in [*others, f'{node}/x', str(place / 'nothing')]})
    assert {path: devices.mode(path) for path in others} == before
    assert who(node) == {JANE, BOB}
    assert kept.enforced


def test_another_device_at_the_path_is_not_put_back(node, file, place):
    """Its number differs, or it is another node of the same number."""
    load(file).enforce({node: []})
    for number in NUMBERS[:2]:
        devices.make(place / 'npu0', number, 0o640, (JANE, JANE))
        load(file, 'advisory')
        assert devices.mode(node) == (0o640, JANE, JANE)


def test_a_node_is_noted_before_it_is_closed(node, file, monkeypatch):
    """An agent that ends in between puts it back."""

    def fail(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(access.files, 'write', fail)
    kept = load(file)
    kept.enforce({node: []})
    assert not kept.enforced
    assert who(node) == {JANE, BOB}
    monkeypatch.undo()
    kept.enforce({node: []})
    assert kept.enforced
    assert who(node) == set()


def test_a_node_that_cannot_be_closed_is_said(node, file, place, monkeypatch):
    """Other nodes are closed."""
    other = devices.make(place / 'npu1', NUMBERS[1])
    plain = os.setxattr

    def set_(path, *more):
        if os.stat(path).st_rdev == NUMBERS[0]:
            raise OSError(95, 'Operation not supported')
        plain(path, *more)

    monkeypatch.setattr(os, 'setxattr', set_)
    kept = load(file)
    kept.enforce({node: [], other: []})
    assert who(other) == set()
    assert access.shown(kept) == 'advisory'
    monkeypatch.undo()
    kept.enforce({node: [], other: []})
    assert access.shown(kept) == 'acl'


def test_the_file_is_for_the_agent_alone(node, file):
    load(file).enforce({node: []})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    'text',
    ['', '[]', '{"a": 1}', '{"a": {}}', '{"/dev/a": {"device": 1}}', '[' * 9999, 'ÿ',
     '{"a": {"device": 1, "inode": 1, "number": 1, "uid": -1, "gid": 0, "mode": 1, "acl": ""}}',
     '{"a": {"device": 1, "inode": 1, "number": 1, "uid": 1, "gid": 0, "mode": 1, "acl": "x"}}',
     '{"a": {"device": 1, "inode": 1, "number": 1, "uid": 1, "gid": 0, "mode": 1, "acl": 7}}'],
)  # fmt: skip
def test_a_file_of_something_else(file, text):
    file.write_text(text, encoding='latin-1')
    with pytest.raises(exception.Refused, match='access_file: .*device nodes that an agent'):
        load(file)


def test_there_has_to_be_a_file(monkeypatch, tmp_path):
    monkeypatch.delenv('STATE_DIRECTORY', raising=False)
    with pytest.raises(exception.Refused, match='access_file: expected a path'):
        load(None)
    assert load(None, 'advisory') is None
    with pytest.raises(exception.Refused, match='access_file: .*Is a directory'):
        load(tmp_path)

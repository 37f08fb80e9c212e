# SPDX-License-Identifier: Apache-2.0
"""What files of Docker and Podman say of a container, and what they may say."""

import json
import os

import pytest

from cyborg_lite.agent import launching
from cyborg_lite.agent import processes
from cyborg_lite.agent import runtimes

ID = '888235fd9dfe375854226ee3eefa381c39a1d792b7878ac078e8648b1203405c'
OTHER = '0123456789abcdef' * 4


def told(container):
    return [each for each in runtimes.names(container) if each]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The directories of Podman and of Docker."""
    monkeypatch.setattr(runtimes, 'PODMAN', (tmp_path / 'lib', tmp_path / 'run'))
    monkeypatch.setattr(runtimes, 'DOCKER', tmp_path / 'docker')
    return tmp_path


def write(path, told):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return path


def podman(identity=ID, metadata=None, **more):
    """A row of containers.json, as Podman 4.3.1 writes it."""
    about = {'image-name': 'localhost/team/jane:1', 'image-id': 'x', 'name': 'jane-train'}
    text = json.dumps(about if metadata is None else metadata)
    return {'id': identity, 'names': ['jane-train'], 'image': 'x', 'metadata': text} | more


def docker(places, told):
    return write(places / 'docker' / ID / 'config.v2.json', told)


@pytest.mark.parametrize(
    'file',
    ['lib/overlay-containers/containers.json', 'run/vfs-containers/volatile-containers.json'],
)
def test_a_container_of_podman(places, file):
    write(places / file, [podman(OTHER, {'name': 'other'}), podman()])
    assert told(ID[:12]) == ['jane-train', 'jane:1']
    assert told('f' * 12) == []


def test_a_container_of_docker(places):
    docker(
        places, {'ID': ID, 'Name': '/bob', 'Config': {'Image': 'nvcr.io/nvidia/pytorch:25.01-py3'}}
    )
    assert told(ID[:12]) == ['bob', 'pytorch:25.01-py3']


def test_files_of_podman_that_cannot_be_read_hide_no_container_of_docker(places, monkeypatch):
    monkeypatch.setattr(runtimes, 'PODMAN', (places / ('x' * 300),))
    docker(places, {'Name': '/bob'})
    assert told(ID[:12]) == ['bob']


def test_without_a_runtime_nothing_is_known(places):
    assert told(ID[:12]) == []


def test_texts_are_plain_and_short(places):
    docker(places, {'Name': '/a\x1b[2J\u202e', 'Config': {'Image': 'x' * 5000}})
    assert told(ID[:12]) == ['a?[2J?', 'x' * 32]


@pytest.mark.parametrize(
    ('file', 'content', 'names'),
    [
        ('lib/overlay-containers/containers.json', told, names)
        for told, names in (
            ('', []),
            ('[' * 100000, []),
            ('9' * 5000, []),
            ('"\\ud800', []),
            ({'id': ID}, []),
            ([None, 7, [], {}, {'id': 7}, {'id': None}, podman()], ['jane-train', 'jane:1']),
            ([podman(metadata=[])], []),
            ([podman() | {'metadata': None}], []),
            ([podman() | {'metadata': {'name': 'x'}}], []),
            ([podman(metadata={'name': 7, 'image-name': 'a/b:1'})], ['b:1']),
            ([podman(metadata={'name': '', 'image-name': None})], []),
            (json.dumps([podman()]) + ' ' * runtimes.SIZE, []),
        )
    ] + [
        (f'docker/{ID}/config.v2.json', told, names)
        for told, names in (
            ('[]', []),
            ('{}', []),
            ({'Name': ['x'], 'Config': 'y'}, []),
            ({'Name': 'bob', 'Config': None}, ['bob']),
            ({'Name': None, 'Config': {'Image': {}}}, []),
        )
    ],
)  # fmt: skip
def test_what_a_file_may_say(places, file, content, names):
    write(places / file, content)
    assert told(ID[:12]) == names


@pytest.mark.skipif(os.geteuid() != 0, reason='it needs two users')
def test_a_file_of_another_user_is_not_believed(places):
    os.chown(docker(places, {'Name': 'root-job'}), 4202, -1)
    assert told(ID[:12]) == []


@pytest.mark.parametrize('kind', ['link', 'pipe', 'directory'])
def test_what_is_no_file_is_not_read(places, kind):
    path = docker(places, {'Name': 'bob'})
    moved = path.rename(path.with_name('elsewhere'))
    if kind == 'link':
        path.symlink_to(moved)
    elif kind == 'pipe':
        os.mkfifo(path)
    else:
        path.mkdir()
    assert told(ID[:12]) == []


def test_a_use_in_a_container_has_its_names(places, monkeypatch):
    """As much of them as a report has room for."""
    monkeypatch.setattr(launching, 'launcher', lambda *_: None)
    process = processes.find(os.getpid())
    use = processes.Use(process, frozenset(), None, ID[:12])
    assert str(use).endswith(f' in container {ID[:12]}')
    docker(places, {'Name': '/n' + 'x' * 30, 'Config': {'Image': 'i' * 40}})
    # Its user may have chosen the id of another's container.
    claimed = processes.Use(process, frozenset(), None, ID[:12], claimed=True)
    assert str(claimed).endswith(f' in container {ID[:12]} (as its user says)')
    inside = f' in container {ID[:12]} (n{"x" * 30}, {"i" * 32})'
    assert str(use).endswith(inside)
    assert processes.listed([use]).endswith(inside)
    assert [len(processes.listed([use] * number)) <= 255 for number in (1, 2, 3, 10)] == [True] * 4

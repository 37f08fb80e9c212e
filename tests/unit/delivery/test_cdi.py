# SPDX-License-Identifier: Apache-2.0
"""CDI specifications in the directory of a host."""

from __future__ import annotations

import json
import os
import stat

import pytest

from cyborg_lite import delivery
from cyborg_lite.delivery import cdi
from tests.unit.delivery import cards

OTHER = '7c2e4a10-0000-4000-8000-000000000002'


@pytest.fixture
def umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


def document(*numbers: int, allocation: str = cards.ALLOCATION):
    return delivery.document(allocation, cards.HOST, cards.ascend(*numbers))


def nodes(directory) -> list[str]:
    [file] = directory.iterdir()
    [device] = json.loads(file.read_text())['devices']
    return [node['path'] for node in device['containerEdits']['deviceNodes']]


def test_the_file_is_readable_for_all_users(tmp_path, umask):
    directory = tmp_path / 'run' / 'cdi'
    name = cdi.write(directory, document(3), exists=lambda path: path == '/dev/devmm_svm')
    assert name == f'cyborg-lite.local/allocation={cards.ALLOCATION}'
    assert nodes(directory) == ['/dev/davinci3', '/dev/devmm_svm']
    [file] = directory.iterdir()
    assert file.suffix == '.json'
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_an_existing_file_is_replaced_atomically(tmp_path, monkeypatch):
    cdi.write(tmp_path, document(3), exists=lambda _: False)
    with monkeypatch.context() as patched:

        def full(*_):
            raise OSError('the disk is full')

        patched.setattr(json, 'dump', full)
        with pytest.raises(OSError, match='full'):
            cdi.write(tmp_path, document(5), exists=lambda _: False)
    assert [file.name for file in tmp_path.glob('*.json')]
    assert cdi.known(tmp_path) == {cards.ALLOCATION}
    cdi.write(tmp_path, document(5), exists=lambda _: False)
    assert nodes(tmp_path) == ['/dev/davinci5']


def test_no_link_is_followed(tmp_path):
    target = tmp_path / 'target'
    target.write_text('mine')
    directory = tmp_path / 'cdi'
    directory.mkdir()
    (directory / cdi.NAME.format(cards.ALLOCATION)).with_suffix('.tmp').symlink_to(target)
    cdi.write(directory, document(3))
    assert target.read_text() == 'mine'
    [file] = directory.iterdir()
    assert not file.is_symlink()


def test_each_allocation_has_its_own_file(tmp_path):
    assert cdi.known(tmp_path / 'none') == set()
    (tmp_path / 'vendor.json').touch()
    for number, allocation in enumerate((cards.ALLOCATION, OTHER)):
        cdi.write(tmp_path, document(number, allocation=allocation))
    assert cdi.known(tmp_path) == {cards.ALLOCATION, OTHER}
    cdi.remove(tmp_path, OTHER)
    cdi.remove(tmp_path, OTHER)
    assert cdi.known(tmp_path) == {cards.ALLOCATION}
    assert (tmp_path / 'vendor.json').exists()


@pytest.mark.parametrize('allocation', ['', '../x', f'{OTHER}/../x', OTHER.upper()])
def test_only_an_allocation_is_removed(tmp_path, allocation):
    with pytest.raises(ValueError, match='UUID'):
        cdi.remove(tmp_path, allocation)

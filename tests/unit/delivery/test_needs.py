# SPDX-License-Identifier: Apache-2.0
"""The data files of drivers: the needs of their cards."""

from __future__ import annotations

import pathlib
import sys
import tomllib
import types

import pytest

from cyborg_lite import delivery
from cyborg_lite.delivery import needs
from tests.unit.delivery import cards


@pytest.fixture(autouse=True)
def fresh():
    needs._read.cache_clear()
    yield
    needs._read.cache_clear()


@pytest.mark.parametrize('file', sorted(needs.OURS.glob('*.toml')), ids=lambda file: file.stem)
def test_ours_are_of_drivers_and_complete(file):
    assert file.with_suffix('.py').is_file()
    told = needs.of_driver(file.stem)
    assert {*told} == {*needs.FIELDS, 'forms'}
    assert told['forms']
    assert all({*form} == {*needs.FORM} for form in told['forms'].values())


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('colour = "red"', 'colour'),
        ('variable = "LD_PRELOAD x"', 'variable'),
        ('variable = 1', 'variable'),
        ('shared = "/dev/a"', 'shared'),
        ('shared = ["/etc/shadow"]', 'shared'),
        ('shared = ["/dev/../etc/shadow"]', 'shared'),
        ('shared = ["/dev/a{index}"]', 'shared'),
        ('mounts = ["/usr/lib,rw"]', 'mounts'),
        ('mounts = ["relative"]', 'mounts'),
        ('env = 1', 'env'),
        ('[env]\nA = "a b"', 'env'),
        ('[env]\n"A=B" = "a"', 'env'),
        ('forms = 1', 'forms'),
        ('[forms]\nwhole = 1', 'whole'),
        ('[forms.whole]\nnodes = ["/sys/a{index}"]', 'whole: nodes'),
        ('[forms.whole]\nname = "all"', 'whole: name'),
        ('[forms.whole]\nsize = 1', 'size'),
    ],
)
def test_a_file_that_is_not_as_described_names_the_key(text, said):
    with pytest.raises(ValueError, match=said):
        needs.parse(tomllib.loads(text), 'acme.toml')


def package(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Install a driver of another package, with this file beside it."""
    (directory / 'acme').mkdir()
    for name in ('__init__.py', 'npu.py'):
        (directory / 'acme' / name).touch()
    (directory / 'acme' / 'acme_npu.toml').write_text(text)
    monkeypatch.syspath_prepend(directory)
    info = directory / 'acme-1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: acme\nVersion: 1\n')
    (info / 'entry_points.txt').write_text(f'[{needs.DRIVERS}]\nacme_npu = acme.npu:AcmeNpu\n')
    for name in ('acme', 'acme.npu'):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_driver_of_others_brings_its_own(tmp_path, monkeypatch):
    text = 'variable = "ACME"\n[forms.whole]\nname = "{index}"\nnodes = ["/dev/acme{index}"]\n'
    package(tmp_path, monkeypatch, text)
    card = cards.accelerator(driver='acme_npu', ids={'index': 3})
    found = delivery.document(cards.ALLOCATION, cards.HOST, [card])
    view = delivery.render(found, 'process')
    assert (view['env']['ACME'], view['nodes']) == ('3', ['/dev/acme3'])
    # The driver itself may need libraries of hosts with such cards.
    assert 'acme.npu' not in sys.modules


@pytest.mark.parametrize('text', ['not TOML', 'a = 1', '#' * (needs.SIZE + 1)], ids=range(3))
def test_a_bad_file_of_another_package_affects_only_its_cards(tmp_path, monkeypatch, text):
    package(tmp_path, monkeypatch, text)
    card = cards.accelerator(driver='acme_npu', ids={'index': 3})
    found = delivery.document(cards.ALLOCATION, cards.HOST, [card, *cards.ascend(1)])
    assert 'acme_npu.toml' in found['accelerators'][0]['reason']
    assert found['accelerators'][1]['reason'] is None


def test_a_package_that_does_not_load_is_ignored(monkeypatch):
    broken = types.SimpleNamespace(module='acme_that_is_not_there.npu')
    monkeypatch.setattr('importlib.metadata.entry_points', lambda **_: [broken])
    assert needs.of_driver('acme_other') is None

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite driver new``; tests/integration/test_driver_package.py installs what it writes."""

import sys

import pytest

from cyborg_lite.cmd import main


@pytest.fixture
def new(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def new_(*words):
        monkeypatch.setattr(sys, 'argv', ['cyborg-lite', 'driver', *words])
        return main.main()

    return new_


def test_it_writes_a_package_and_says_how_to_go_on(new, tmp_path, capsys):
    assert new('new', 'acme_npu2') == 0
    package = tmp_path / 'acme_npu2'
    assert sorted(str(file.relative_to(package)) for file in package.rglob('*')) == [
        'acme_npu2',
        'acme_npu2.yaml',
        'acme_npu2/__init__.py',
        'pyproject.toml',
        'test_acme_npu2.py',
        'up.conf',
    ]
    assert 'acme_npu2 = "acme_npu2:AcmeNpu2"' in (package / 'pyproject.toml').read_text()
    assert 'class AcmeNpu2(pci.PciDriver)' in (package / 'acme_npu2/__init__.py').read_text()
    said = capsys.readouterr().out
    assert '  pip install --editable . pytest\n' in said
    assert '--host acme_npu2.yaml' in said


@pytest.mark.parametrize(
    'name',
    [
        *('', 'Acme', 'acme-npu', 'acme npu', '1acme', '_acme', 'acme_', 'acme__npu', 'acme.npu'),
        *('../acme', '/tmp/acme', 'a/b', 'acme\n', 'npü', 'a' * 41),
    ],
)
def test_a_bad_name(new, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as exit_:
        new('new', name)
    assert exit_.value.code == 2
    assert 'new NAME: expected up to 40 of a-z, 0-9 and single _, not' in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize('name', ['json', 'cyborg_lite', 'yaml', 'class'])
def test_a_name_that_another_module_has(new, tmp_path, capsys, name):
    with pytest.raises(SystemExit):
        new('new', name)
    assert f'{name} is a word or a module of this Python already' in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize('words', [[], ['new'], ['old', 'acme'], ['new', 'acme', 'more']])
def test_misuse(new, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as exit_:
        new(*words)
    assert exit_.value.code == 2
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize('make', ['mkdir', 'touch', 'symlink'])
def test_nothing_is_overwritten(new, tmp_path, capsys, make):
    place = tmp_path / 'acme'
    place.symlink_to('nowhere') if make == 'symlink' else getattr(place, make)()
    assert new('new', 'acme') == 1
    said = 'cyborg-lite: acme exists here already, and nothing is overwritten: choose another '
    assert capsys.readouterr().err == f'{said}name, or remove it\n'
    assert [*tmp_path.iterdir()] == [place]
    assert not place.is_dir() or [*place.iterdir()] == []

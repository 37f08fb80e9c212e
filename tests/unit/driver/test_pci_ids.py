# SPDX-License-Identifier: Apache-2.0
"""Names from the pci.ids of a host."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import pci_ids

#: As pciutils has it: devices after one tab, subsystems after two, comments between.
TEXT = """\
# a comment
10dd  Other vendor
\t2331  Not this
10de  NVIDIA Corporation
\t2230  GA102GL [RTX A6000]
# about the next one
\t2331  GH100 [H100 PCIe]
\t\t10de 2331  of a subsystem
\t2322  GH100
10df  Next vendor
\t2399  Not this either
C 03  Display controller
\t00  VGA compatible controller
"""


def host(tmp_path, content, place=pci_ids.PLACES[0]):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return hosts.Host('a', tmp_path, recorded=False)


@pytest.mark.parametrize('place', pci_ids.PLACES)
@pytest.mark.parametrize(
    ('ids', 'name'),
    [
        (('10de', '2331'), 'H100 PCIe'),
        (('10de', '2230'), 'RTX A6000'),
        (('10de', '2322'), 'GH100'),
        (('10de', '2399'), None),
        (('10df', '2331'), None),
        (('ffff', '2331'), None),
        (('', ''), None),
        (('10de', '.*'), None),
    ],
)
def test_names(tmp_path, place, ids, name):
    assert pci_ids.product(host(tmp_path, TEXT, place), ids) == name


def test_a_recording_answers_without_the_file(tmp_path):
    """What it answers is not trusted."""
    (tmp_path / 'one').mkdir()
    asked = host(tmp_path / 'one', TEXT)
    assert pci_ids.product(asked, ('10de', '2230')) == 'RTX A6000'
    [(command, text)] = asked.outputs.items()
    for told, name in ((text, 'RTX A6000'), ('"\\u0000"', None), ('[]', None), ('"x', None)):
        recorded = hosts.Host('a', tmp_path / 'two')
        place = recorded.root / description.output(command[0], command[1:])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(told)
        assert pci_ids.product(recorded, ('10de', '2230')) == name


def test_a_host_without_the_file(tmp_path):
    assert pci_ids.product(hosts.Host('a', tmp_path), ('10de', '2331')) is None


@pytest.mark.parametrize(
    'name', [b'\xff\xfe', b'x' * 129, b'\x00', b'\x1b[31mred', b'   ', b'GH100 [ ]']
)
def test_a_name_that_cannot_be_shown(tmp_path, name):
    found = pci_ids.product(
        host(tmp_path, b'10de  NVIDIA\n\t2331  ' + name + b'\n'), ('10de', '2331')
    )
    assert found is None or found.isprintable()
    assert not found or len(found) <= pci_ids.LONGEST


def test_a_file_as_long_as_can_be_is_read_at_once(tmp_path):
    text = '10de  NVIDIA\n' + '\t0000  x\n\n#\n' * 400_000
    assert pci_ids.product(host(tmp_path, text), ('10de', '2331')) is None


@hypothesis.given(st.text(st.sampled_from('\t\n 10de2331[]#x') | st.characters()))
def test_any_file_has_a_name_that_can_be_shown_or_none(text):
    found = pci_ids._find(f'10de  NVIDIA\n\t2331  {text}\n', '10de', '2331')
    assert found is None or found.isprintable() and 0 < len(found) <= pci_ids.LONGEST
    pci_ids._find(text, '10de', '2331')

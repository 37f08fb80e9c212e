# SPDX-License-Identifier: Apache-2.0
"""Names from the pci.ids of a host."""

from __future__ import annotations

import pytest

from cyborg_lite.driver import pci_ids
from cyborg_lite.driver import sysfs

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


def tree(tmp_path, content, place=pci_ids.PLACES[0]):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return sysfs.Tree(tmp_path)


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
    assert pci_ids.product(tree(tmp_path, TEXT, place), ids) == name


def test_a_host_without_the_file(tmp_path):
    assert pci_ids.product(sysfs.Tree(tmp_path), ('10de', '2331')) is None


@pytest.mark.parametrize(
    'name', [b'\xff\xfe', b'x' * 129, b'\x00', b'\x1b[31mred', b'   ', b'GH100 [ ]']
)
def test_a_name_that_cannot_be_shown(tmp_path, name):
    found = pci_ids.product(
        tree(tmp_path, b'10de  NVIDIA\n\t2331  ' + name + b'\n'), ('10de', '2331')
    )
    assert found is None or found.isprintable()
    assert not found or len(found) <= pci_ids.LONGEST


def test_a_file_as_long_as_can_be_is_read_at_once(tmp_path):
    text = '10de  NVIDIA\n' + '\t0000  x\n\n#\n' * 400_000
    assert pci_ids.product(tree(tmp_path, text), ('10de', '2331')) is None

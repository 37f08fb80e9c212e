# SPDX-License-Identifier: Apache-2.0
"""The support matrix: the page on what each driver was tested with, from the marks of tests.

``python -m tests.unit.drivers.support`` writes it.  A test with data of a real card is marked with
``evidence``: the driver, the kind of the data, a description, and the models by the names of the
driver's table.
"""

from __future__ import annotations

import ast
import collections
import collections.abc
import importlib
import pathlib
import pkgutil
import textwrap
import typing

from cyborg_lite.driver import pci
from tests.unit import drivers

ROOT = pathlib.Path(__file__).parents[3]
PAGE = ROOT / 'doc/source/admin/support.rst'
#: The kinds of data, the closest to a card first.
HOW = ('real card', 'real kernel', 'real capture', 'excerpt', 'vendor sample')
HEAD = """\
.. This page is generated from the tests' marks: python -m tests.unit.drivers.support

==============
Support matrix
==============

This page shows what each driver was tested with. Each line is from the mark of a passing test, or
of ``tools/prove_nvidia.py``, which ran on the card.

real card
  A run on a machine with the card, with the vendor's driver.
real kernel
  Files of a kernel, for a simulated card.
real capture
  Files, or the output of a tool, of a real machine.
excerpt
  Parts of the output of a real machine.
vendor sample
  Data in the vendor's documentation or in another project.

If a capture is the output of a tool, the test makes the functions of the host from its ids and
addresses. All else is *described* only: the ids are from the source that the driver names, and the
tests use written host descriptions. If you have such a card, ``cyborg-lite record`` makes a
capture of it, without serial numbers, and a capture is welcome.
"""


#: What a family lacks, by its driver.
LACKS = {
    'amd_gpu': 'Errors of blocks, utilization and processes are tested with written files.',
    'huawei_ascend': 'The two dies of an Ascend 910_93 (Atlas A3) are two devices: see '
    ':doc:`index`.',
    'intel_gaudi': 'HLML is tested with a written library that has its documented calls.',
    'intel_gpu': 'There is no captured tree of the kernel drivers xe or i915: the other ids are '
    'from pci.ids, and the files are written as the sources of the kernel have them.',
    'intel_qat': 'Where a host hides its PCI bus, no QAT device is found.',
    'nvidia_gpu': 'No card in MIG mode was used: NVML is tested with a written library that has '
    'the data of the captures. nvidia-smi -q -x prints neither the names nor the UUIDs of MIG '
    'instances: those of the A100 are made from the sizes that it prints. No capture has the '
    'directory mdev_supported_types: mediated devices are tested with files as in the guide of '
    'NVIDIA, on the functions of the A2.',
    'xilinx_fpga': 'The ids are compared with the table of XRT: 42 of its 43 functions that '
    'manage a card are found with their function for users. The table has none for 6a9f, which is '
    'not found, nor are the boards of Advantech (vendor 13fe). Where a host hides its PCI bus, no '
    'card is found.',
}


class Evidence(typing.NamedTuple):
    """The content of one mark."""

    driver: str
    how: str
    what: str
    models: tuple[str, ...]


def _marks(function: typing.Any) -> collections.abc.Iterator[typing.Any]:
    """The marks of a test, and those of its parameters."""
    for mark in getattr(function, 'pytestmark', ()):
        yield mark
        if mark.name == 'parametrize':
            for values in mark.args[1]:
                yield from getattr(values, 'marks', ())


def collect() -> set[Evidence]:
    """The evidence of all tests of drivers, and of tools."""
    found = set()
    for each in pkgutil.iter_modules(drivers.__path__, f'{drivers.__name__}.'):
        if each.name.rpartition('.')[2].startswith('test_'):
            module = importlib.import_module(each.name)
            for mark in (m for f in vars(module).values() for m in _marks(f)):
                if mark.name == 'evidence':
                    driver, how, what, *models = mark.args
                    found.add(Evidence(driver, how, what, tuple(models)))
    return found | proved(ROOT / 'tools/prove_nvidia.py')


def proved(tool: pathlib.Path) -> set[Evidence]:
    """The evidence of a tool, which runs on a machine with the card."""
    for node in ast.parse(tool.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'PROVED':
            return {Evidence(*each[:3], each[3:]) for each in ast.literal_eval(node.value)}
    raise ValueError(f'{tool}: expected PROVED')


def page(kinds: collections.abc.Iterable[type], found: set[Evidence]) -> str:
    """The page for these drivers."""
    text = HEAD
    for kind in kinds:
        text += f'\n``{kind.name}``\n{"=" * (len(kind.name) + 4)}\n\n'
        mine = sorted((e for e in found if e.driver == kind.name), key=_nearest)
        named = bool(getattr(kind, 'models', {}))
        text += _table(mine, named) if mine else 'Not tested with anything of a real card.\n'
        if issubclass(kind, pci.PciDriver):
            shown = {model for each in mine for model in each.models}
            text += _rest(sorted({*kind.models.values()} - shown))
        if kind.name in LACKS:
            text += '\n' + textwrap.fill(LACKS[kind.name], 96) + '\n'
    return text


def _nearest(each: Evidence) -> tuple[int, Evidence]:
    return HOW.index(each.how), each


def _table(rows: list[Evidence], named: bool) -> str:
    """The table of one driver.

    :param named: whether the driver has a table of models: else each card names itself.
    """
    text = '.. list-table::\n   :header-rows: 1\n   :widths: 20 45 35\n\n'
    rows = [Evidence('', 'Tested with', 'What', ('Models',)), *rows]
    for each in rows:
        if named and not each.models:
            raise ValueError(f'{each.driver}: {each.what}: expected models of its table')
        models = ', '.join(each.models) or 'no table of models'
        text += f'   * - {each.how}\n     - {each.what}\n     - {models}\n'
    return text


def _rest(models: list[str]) -> str:
    if not models:
        return ''
    text = f'Not tested, described only: {", ".join(models)}.'
    return '\n' + textwrap.fill(text, 96) + '\n'


def shipped() -> list[type]:
    """The drivers that ship, but the fake one."""
    from tests.unit.drivers import test_every_driver

    return [kind for kind in test_every_driver.DRIVERS if kind.name != 'fake']


if __name__ == '__main__':
    PAGE.write_text(page(shipped(), collect()))

# SPDX-License-Identifier: Apache-2.0
"""The page that says what each driver was tested with, made of the marks of tests.

``python -m tests.unit.drivers.support`` writes it.  A test that shows a driver something of a real
card is marked with ``evidence``: the driver, how near to the card it is, what it is in words, and
the models by the names of the driver's table.
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
#: How near to the card it is, nearest first.
HOW = ('real card', 'real kernel', 'real capture', 'excerpt', 'vendor sample')
HEAD = """\
.. This page is made of the tests' marks: python -m tests.unit.drivers.support

==============
Support matrix
==============

What each driver was tested with. No line of this page is an opinion: each is the mark of a test
that passes, or of ``tools/prove_nvidia.py``, which ran on the card.

real card
  It ran on a machine with the card, with the vendor's driver.
real kernel
  A kernel made the files, for a card that was simulated.
real capture
  Files, or the output of a tool, as a real machine had them.
excerpt
  What a real machine printed, copied in parts.
vendor sample
  What the vendor's documentation or another project shows.

Where a capture is the output of a tool, the functions of its host are laid out by the ids and
addresses that it shows. All else is *described* only: the ids are those of the source that the
driver names, and the tests use hosts that were written for them. If you have such a card,
``cyborg-lite record`` makes a capture of it, without serial numbers, and a capture is welcome.
"""


class Evidence(typing.NamedTuple):
    """What one mark says."""

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
    """What all tests of drivers have shown them, and what tools have proved."""
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
    """What a tool says that it proved: it runs where the card is, and not here."""
    for node in ast.parse(tool.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'PROVED':
            return {Evidence(*each, models=()) for each in ast.literal_eval(node.value)}
    raise ValueError(f'{tool}: expected PROVED')


def page(kinds: collections.abc.Iterable[type], found: set[Evidence]) -> str:
    """The page, of these drivers."""
    text = HEAD
    for kind in kinds:
        text += f'\n``{kind.name}``\n{"=" * (len(kind.name) + 4)}\n\n'
        mine = sorted((e for e in found if e.driver == kind.name), key=_nearest)
        text += _table(mine) if mine else 'Not tested with anything of a real card.\n'
        if issubclass(kind, pci.PciDriver):
            shown = {model for each in mine for model in each.models}
            text += _rest(sorted({*kind.models.values()} - shown))
    return text


def _nearest(each: Evidence) -> tuple[int, Evidence]:
    return HOW.index(each.how), each


def _table(rows: list[Evidence]) -> str:
    text = '.. list-table::\n   :header-rows: 1\n   :widths: 20 45 35\n\n'
    rows = [Evidence('', 'Tested with', 'What', ('Models',)), *rows]
    for each in rows:
        models = ', '.join(each.models)
        text += f'   * - {each.how}\n     - {each.what}\n     -{f" {models}" if models else ""}\n'
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

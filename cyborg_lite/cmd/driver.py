# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite driver new NAME``: begin the package of a driver."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import keyword
import pathlib
import re
import sys

from cyborg_lite import exception

DESCRIPTION = 'Writes a package with a driver, a host and a test into a new directory.'
NAME = re.compile('(?=.{1,40}$)[a-z][a-z0-9]*(_[a-z0-9]+)*')
#: The files of the package, with NAME and CLASS in them.
FILES = {
    'pyproject.toml': """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "NAME"
version = "0.1"

[project.entry-points."cyborg_lite.drivers"]
NAME = "NAME:CLASS"

[tool.setuptools]
packages = ["NAME"]

[tool.setuptools.package-data]
NAME = ["*.toml"]
""",
    'NAME/__init__.py': '''\
"""Cards of NAME.

Source of the ids: (write it here)
"""

from cyborg_lite.driver import pci


class CLASS(pci.PciDriver):
    """Replace the ids, the name of the model, and the type and resource class."""

    name, type, resource_class = 'NAME', 'AICHIP', 'CUSTOM_NPU'
    models = {('abcd', '0001'): 'CLASS One'}
''',
    'NAME.yaml': """\
name: NAME
functions:
  - id: abcd:0001
    class: 120000
    at: {0: [0000:3b:00.0]}
""",
    'up.conf': '[agent]\nenabled_drivers = NAME\n',
    'test_NAME.py': """\
from cyborg_lite.driver import testing
class TestContract(testing.Contract):
    drivers, hosts = ['NAME'], ['*.yaml']
""",
}
NEXT = """\
Wrote NAME. In this directory, and in the environment of cyborg-lite:
  pip install --editable . pytest
  cyborg-lite up --host NAME.yaml --config-file up.conf
  pytest"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('action', nargs='?', choices=['new'], help='new: begin a package')
    parser.add_argument('name', nargs='?', help='the name of package and driver: acme_npu')
    parser.set_defaults(run=functools.partial(run, parser))


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    name = arguments.name or ''
    if not NAME.fullmatch(name):
        parser.error(f'new NAME: expected up to 40 of a-z, 0-9 and single _, not {name[:64]!r}')
    if keyword.iskeyword(name) or name in sys.stdlib_module_names or importlib.util.find_spec(name):
        parser.error(f'new NAME: {name} is a word or a module of this Python already')
    try:
        pathlib.Path(name).mkdir()
    except FileExistsError:
        raise exception.Refused(
            f'{name} exists here already, and nothing is overwritten: choose another name, or '
            'remove it'
        ) from None
    title = ''.join(word.capitalize() for word in name.split('_'))
    for place, text in FILES.items():
        file = pathlib.Path(name, place.replace('NAME', name))
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.replace('NAME', name).replace('CLASS', title))
    print(NEXT.replace('NAME', name))

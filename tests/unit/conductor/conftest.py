# SPDX-License-Identifier: Apache-2.0
import pathlib
import tempfile

import pytest

from tests.unit.conductor import direct


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(dir=direct.MEMORY) as path:
        yield pathlib.Path(path)


@pytest.fixture
def conductor(directory):
    made = direct.Conductor(directory)
    yield made
    made.close()


@pytest.fixture
def twins(directory):
    """Two conductors on one database, as in two processes."""
    made = [direct.Conductor(directory), direct.Conductor(directory)]
    yield made
    for each in made:
        each.close()

# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.unit.conductor import direct


@pytest.fixture
def conductor(database_url):
    made = direct.Conductor(database_url)
    yield made
    made.close()


@pytest.fixture
def twins(database_url):
    """Two conductors on one database, as in two processes."""
    made = [direct.Conductor(database_url), direct.Conductor(database_url)]
    yield made
    for each in made:
        each.close()

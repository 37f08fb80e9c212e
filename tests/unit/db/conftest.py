# SPDX-License-Identifier: Apache-2.0
import pytest

from cyborg_lite import conf as options
from cyborg_lite.db import engine
from cyborg_lite.db import migration


@pytest.fixture
def conf(databases):
    with databases.new() as url:
        yield options.load(files=[], database__connection=url)


@pytest.fixture
def empty(conf):
    made = engine.Database(conf)
    yield made
    made.close()


@pytest.fixture
def database(empty):
    migration.upgrade(empty.engine)
    return empty

# SPDX-License-Identifier: Apache-2.0
import pytest

from cyborg_lite import conf as options
from cyborg_lite import service
from cyborg_lite.db import engine
from cyborg_lite.db import migration


@pytest.fixture
def conf(tmp_path):
    return options.load(files=[], database__connection=service.database_url(tmp_path))


@pytest.fixture
def empty(conf):
    made = engine.Database(conf)
    yield made
    made.close()


@pytest.fixture
def database(empty):
    migration.upgrade(empty.engine)
    return empty

# SPDX-License-Identifier: Apache-2.0
import signal

import hypothesis
import pytest

from tests import databases as databases_
from tests import support

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a machine that does other things as well.
hypothesis.settings.register_profile('project', deadline=None)
hypothesis.settings.load_profile('project')


def pytest_addoption(parser):
    parser.addoption(
        '--database',
        choices=databases_.ENGINES,
        default='sqlite',
        help='keep rows in this database, and run only what keeps any: %(choices)s',
    )


def pytest_collection_modifyitems(config, items):
    """With a server, what keeps no rows is left out; without one, what needs it."""
    plain = config.option.database == 'sqlite'

    def fits(item):
        return 'server' not in item.fixturenames if plain else 'databases' in item.fixturenames

    config.hook.pytest_deselected(items=[item for item in items if not fits(item)])
    items[:] = filter(fits, items)


@pytest.fixture(scope='session')
def databases(pytestconfig):
    """Where empty databases are to be had, of the engine that was asked for."""
    with databases_.of(pytestconfig.option.database) as made:
        yield made


@pytest.fixture
def database_url(databases):
    with databases.empty() as url:
        yield url


@pytest.fixture
def server(databases):
    """For tests of what only a server does: let many write at the same time."""


@pytest.fixture
def service(database_url):
    made = support.Service(database_url)
    yield made
    made.stop()

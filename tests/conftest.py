# SPDX-License-Identifier: Apache-2.0
import os
import signal

import hypothesis
import pytest

from tests import databases as databases_
from tests import support

# A shell that runs the tests in the background makes them and their children ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The time of an example has no meaning on a busy machine.
EXAMPLES = {'gate': 100, 'mutants': 100, 'nightly': 2000}[
    os.environ.get('CYBORG_LITE_HYPOTHESIS', 'gate')
]
hypothesis.settings.register_profile('project', deadline=None, max_examples=EXAMPLES)
hypothesis.settings.load_profile('project')


def pytest_addoption(parser):
    parser.addoption(
        '--database',
        choices=databases_.ENGINES,
        default='sqlite',
        help='use this database, and run only tests that use one: %(choices)s',
    )


def pytest_collection_modifyitems(config, items):
    """Deselect tests without a database if a server is chosen, and tests of servers if not."""
    plain = config.option.database == 'sqlite'

    def fits(item):
        return 'server' not in item.fixturenames if plain else 'databases' in item.fixturenames

    config.hook.pytest_deselected(items=[item for item in items if not fits(item)])
    items[:] = filter(fits, items)


@pytest.fixture(scope='session')
def databases(pytestconfig):
    """A factory of empty databases of the chosen engine."""
    with databases_.of(pytestconfig.option.database) as made:
        yield made


@pytest.fixture
def database_url(databases):
    with databases.empty() as url:
        yield url


@pytest.fixture
def server(databases):
    """For tests that need a server: concurrent writes."""


@pytest.fixture
def service(database_url):
    made = support.Service(database_url)
    yield made
    made.stop()

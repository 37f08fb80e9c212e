# SPDX-License-Identifier: Apache-2.0
import concurrent.futures
import threading
import unittest.mock

from futurist import _thread
import pytest

from cyborg_lite.api import app
from tests import support


@pytest.fixture(scope='session', autouse=True)
def quick_stop():
    """Shorten the poll of oslo.messaging's idle workers, which check for a stop once a second."""
    with unittest.mock.patch.object(_thread.ThreadWorker, 'MAX_IDLE_FOR', 0.05):
        yield


@pytest.fixture
def member(monkeypatch):
    """A function that makes the caller a member of a project."""

    def become(project, roles='member,reader'):
        monkeypatch.setitem(app.ALONE, 'X-Project-Id', project)
        monkeypatch.setitem(app.ALONE, 'X-Roles', roles)

    return become


@pytest.fixture
def race(service):
    """Run all callables at once, each with an API of its own; returns their results."""

    def run(*runners):
        ready = threading.Barrier(len(runners), timeout=60)

        def start(runner):
            api = support.Api(support.local(service.embedded.application))
            ready.wait()
            return runner(api)

        with concurrent.futures.ThreadPoolExecutor(len(runners)) as pool:
            return list(pool.map(start, runners))

    return run

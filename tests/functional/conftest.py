# SPDX-License-Identifier: Apache-2.0
import unittest.mock

from futurist import _thread
import pytest

from cyborg_lite.api import app


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

# SPDX-License-Identifier: Apache-2.0
import unittest.mock

from futurist import _thread
import pytest

from cyborg_lite.api import app


@pytest.fixture(scope='session', autouse=True)
def quick_stop():
    """Idle workers of oslo.messaging's servers look once a second whether they are to stop."""
    with unittest.mock.patch.object(_thread.ThreadWorker, 'MAX_IDLE_FOR', 0.05):
        yield


@pytest.fixture
def member(monkeypatch):
    """Become a member of a project, as often as you like."""

    def become(project, roles='member,reader'):
        monkeypatch.setitem(app.ALONE, 'X-Project-Id', project)
        monkeypatch.setitem(app.ALONE, 'X-Roles', roles)

    return become

# SPDX-License-Identifier: Apache-2.0
import unittest.mock

from futurist import _thread
import pytest


@pytest.fixture(scope='session', autouse=True)
def quick_stop():
    """Idle workers of oslo.messaging's servers look once a second whether they are to stop."""
    with unittest.mock.patch.object(_thread.ThreadWorker, 'MAX_IDLE_FOR', 0.05):
        yield

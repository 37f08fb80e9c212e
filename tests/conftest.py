# SPDX-License-Identifier: Apache-2.0
import pytest

from tests import support


@pytest.fixture
def service(tmp_path):
    made = support.Service(tmp_path)
    yield made
    made.stop()

# SPDX-License-Identifier: Apache-2.0
import hypothesis
import pytest

from tests import support

# How long an example takes says nothing on a machine that does other things as well.
hypothesis.settings.register_profile('project', deadline=None)
hypothesis.settings.load_profile('project')


@pytest.fixture
def service(tmp_path):
    made = support.Service(tmp_path)
    yield made
    made.stop()

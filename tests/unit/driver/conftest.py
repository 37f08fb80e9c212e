# SPDX-License-Identifier: Apache-2.0
from cyborg_lite.driver.testing import lay_out  # noqa: F401 - a fixture

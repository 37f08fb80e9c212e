# SPDX-License-Identifier: Apache-2.0
"""QAT devices; tests/unit/drivers/test_captures.py has real ones."""

from __future__ import annotations

import pytest

from cyborg_lite.driver import testing
from cyborg_lite.drivers import intel_qat
from tests.unit.drivers import captures


@pytest.mark.parametrize(
    ('id', 'model'),
    [('0434', 'DH89xxCC'), ('18a0', 'C4xxx'), ('18ee', '200xx'), ('4948', '6xxx')],
)
def test_models_without_a_capture(tmp_path, id, model):
    card = captures.function('0000:6b:00.0', f'8086:{id}', '0b4000')
    [found] = testing.discover(intel_qat.IntelQat, captures.host(tmp_path, [card]))
    assert model in found.model


@pytest.mark.parametrize(
    ('files', 'expected'),
    [
        ({}, ('unknown', None)),
        ({'qat_ras/errors_fatal': '0', 'qat_ras/errors_nonfatal': '7'}, ('ok', None)),
        ({'qat_ras/errors_fatal': '1'}, ('critical', 'qat_fatal')),
        ({'qat_ras/errors_fatal': '-1'}, ('unknown', None)),
    ],
)
def test_health_by_the_kernel(tmp_path, files, expected):
    link = {'current_link_width': '16', 'max_link_width': '16'} if files else {}
    card = captures.function('0000:6b:00.0', '8086:4940', '0b4000', files=files | link)
    [found] = testing.discover(intel_qat.IntelQat, captures.host(tmp_path, [card]))
    assert (found.health, found.health_reason) == expected

# SPDX-License-Identifier: Apache-2.0
import pytest

from cyborg_lite.model import health
from cyborg_lite.model.health import Health


@pytest.mark.parametrize(
    ('said', 'worst'),
    [
        ([], None),
        ([None, None], None),
        ([None, Health('ok')], Health('ok')),
        ([Health('ok'), Health()], Health()),
        ([Health('warning', 'a'), Health()], Health()),
        ([Health('warning', 'a'), Health('critical', 'b')], Health('critical', 'b')),
        ([Health('warning', 'a'), Health('warning', 'b')], Health('warning', 'a')),
    ],
)
def test_the_worst_counts(said, worst):
    assert health.worst(*said) == worst


@pytest.mark.parametrize(
    ('text', 'sound'),
    [
        ('xid_79', True),
        ('ascend_alarm_80e01801', True),
        ('a' * 64, True),
        ('a' * 65, False),
        ('', False),
        ('Xid', False),
        ('a__b', False),
        ('a-b', False),
        ('a\n', False),
        ('\u0661', False),
        (79, False),
        (None, False),
    ],
)
def test_the_form_of_a_reason(text, sound):
    assert health.is_code(text) is sound

# SPDX-License-Identifier: Apache-2.0
import logging

import oslo_messaging as messaging
import pytest

from cyborg_lite import exception
from cyborg_lite.conductor import journal

#: What is bound where, and by what names things go: all that an order needs.
WISH = dict.fromkeys(('instance_uuid', 'hostname', 'device_rp_uuid', 'uuid'), 'x')
ORDERS = {
    journal.bind: {'wishes': [WISH]},
    journal.unbind: {'uuids': ['x']},
    journal.delete: {'uuids': ['x']},
    journal.allocate: {'request': {'profile': 'x', 'alternatives': [['x']], 'name': 'x'}},
    journal.lease: {'host': 'x', 'process': {'pid': 'x', 'user': 'x'}, 'request': {'a': 'x'}},
    journal.set_status: {'uuid': 'x', 'status': 'x'},
    'End lease {uuid} on host {host}: {cause}': {'uuid': 'x', 'host': 'x', 'cause': 'x'},
    'Create device profile {profile[name]}': {'profile': {'name': 'x'}},
}
RUBBISH = [None, 7, [], {}, [7], [None], [{}], {'a': 7}, [[]], 'text']


def carry_out(caplog, order, arguments, error=None):
    """The one line that is logged of an order."""

    @messaging.expected_exceptions(exception.CyborgError)
    def method(_manager, _ctxt, **_):
        if error:
            raise error
        return 'done'

    caplog.clear()
    with caplog.at_level(logging.INFO):
        if error:
            with pytest.raises(messaging.ExpectedException):
                journal.logged(order)(method)(None, None, **arguments)
        else:
            assert journal.logged(order)(method)(None, None, **arguments) == 'done'
    [line] = caplog.messages
    return line


def long(value):
    """The same, with texts and lists that are as long as a message may be."""
    if isinstance(value, dict):
        return {name: long(each) for name, each in value.items()}
    return [long(each) for each in value] * 20 if isinstance(value, list) else value * 20_000


@pytest.mark.parametrize('order', ORDERS)
def test_a_line_is_short_whatever_is_ordered(caplog, order):
    line = carry_out(caplog, order, long(ORDERS[order]))
    assert line.endswith(': done')
    assert 'cannot be read' not in line
    assert len(line) < 5000


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('value', RUBBISH, ids=repr)
def test_an_order_is_carried_out_whatever_its_arguments_are(caplog, order, value):
    """They are checked by what carries it out, not by the log."""
    for name in ORDERS[order]:
        assert carry_out(caplog, order, ORDERS[order] | {name: value}).endswith(': done')


def test_a_refusal_is_short(caplog):
    error = exception.Conflict(reason='why\n' * 20_000)
    line = carry_out(caplog, journal.unbind, {'uuids': ['x']}, error)
    assert line.startswith('Unbind ARQ x: refused: ')
    assert '\n' not in line
    assert len(line) < 5000

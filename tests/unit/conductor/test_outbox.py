# SPDX-License-Identifier: Apache-2.0
"""Messages to other services."""

import datetime
import threading

from oslo_utils import timeutils
import pytest

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.conductor import outbox
from tests.unit.conductor import direct

NEIGHBOUR = """
[{name}]
auth_type = none
endpoint_override = http://127.0.0.1:1
"""


@pytest.fixture
def sender(database_url, tmp_path):
    """With two services to tell, which are not there."""
    file = tmp_path / 'cyborg_lite.conf'
    file.write_text(''.join(NEIGHBOUR.format(name=name) for name in ('placement', 'nova')))
    conductor = direct.Conductor(database_url)
    conf = options.load(files=[str(file)], conductor__outbox_interval=1)
    made = outbox.Sender(conf, conductor.database)
    yield made
    made.stop()
    conductor.close()


def test_a_service_that_hangs_keeps_no_other_waiting(sender):
    back, told = threading.Event(), threading.Event()
    sender._send[outbox.EVENT] = lambda key, payload: back.wait()
    sender._send[outbox.PROVIDER] = lambda key, payload: told.set()
    sender.start()
    try:
        with sender.session() as session:
            outbox.put(session, outbox.EVENT, {'instance': {}})
        with sender.session() as session:
            outbox.put(session, outbox.PROVIDER, {'provider': {}})
        assert told.wait(10)
    finally:
        back.set()


def test_each_is_told_of_its_own(sender):
    told = {kind: [] for kind in (outbox.EVENT, outbox.PROVIDER)}
    done = threading.Event()

    def note(kind, key):
        told[kind].append(key)
        if all(told.values()):
            done.set()

    for kind in told:
        sender._send[kind] = lambda key, payload, kind=kind: note(kind, key)
    sender.start()
    with sender.session() as session:
        for kind in told:
            outbox.put(session, kind, {f'{kind}-1': {}})
    assert done.wait(10)
    sender.stop()
    assert told == {kind: [f'{kind}-1'] for kind in told}
    with sender.session() as session:
        assert not session.query(model.Message).count()


@pytest.mark.parametrize(('attempts', 'wait'), [(0, 2), (3, 16), (4, 32), (5, 45), (5000, 45)])
def test_what_fails_again_and_again_is_tried_again(sender, attempts, wait):
    """A host may be without nova-compute for days."""

    def fail(key, payload):
        raise RuntimeError('no root provider')

    sender._send[outbox.PROVIDER] = fail
    with sender.session() as session:
        outbox.put(session, outbox.PROVIDER, {'one': {}})
        session.query(model.Message).one().attempts = attempts
    before = timeutils.utcnow()
    assert sender.send_one()
    with sender.session() as session:
        [message] = session.query(model.Message)
    assert (message.due_at - before).total_seconds() == pytest.approx(wait, abs=5)
    assert message.lease is None


def test_what_waits_for_too_long_is_sent(sender):
    """Who has written it had a clock that was fast."""
    told = []
    sender._send[outbox.PROVIDER] = lambda key, payload: told.append(key)
    with sender.session() as session:
        outbox.put(session, outbox.PROVIDER, {'now': {}, 'soon': {}, 'in a day': {}})
        waits = {'now': 0, 'soon': 40, 'in a day': 86400}
        for message in session.query(model.Message):
            message.due_at += datetime.timedelta(seconds=waits[message.key])
    while sender.send_one():
        pass
    assert told == ['now', 'in a day']

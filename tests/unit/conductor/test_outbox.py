# SPDX-License-Identifier: Apache-2.0
"""Messages to other services."""

import contextlib
import datetime
import threading
import time

from oslo_db import exception as db_exception
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from tests import pages
from tests import support
from tests.unit.conductor import direct

#: How many messages of a kind, and how many providers, are to be sent at once at least.
AT_ONCE = 8
NEIGHBOUR = """
[{name}]
auth_type = none
endpoint_override = http://127.0.0.1:1
"""


@pytest.fixture
def make_sender(database_url, tmp_path):
    """With two services to tell, which are not there."""
    file = tmp_path / 'cyborg_lite.conf'
    file.write_text(''.join(NEIGHBOUR.format(name=name) for name in ('placement', 'nova')))
    conductor = direct.Conductor(database_url)
    made = []

    def make(outbox_interval):
        conf = options.load(files=[str(file)], conductor__outbox_interval=outbox_interval)
        others = [lambda _: None] * 3
        made.append(outbox.Sender(conf, conductor.database, hosts.announce, *others))
        return made[-1]

    yield make
    for sender in made:
        sender.stop()
    conductor.close()


@pytest.fixture
def sender(make_sender):
    return make_sender(outbox_interval=1)


def test_a_hung_service_does_not_delay_the_other(sender):
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


def test_each_service_gets_its_own_messages(sender):
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
def test_a_message_that_fails_is_tried_again(sender, attempts, wait):
    """A host may be without nova-compute for days."""

    def fail(key, payload):
        raise RuntimeError('no root provider')

    sender._send[outbox.PROVIDER] = fail
    with sender.session() as session:
        outbox.put(session, outbox.PROVIDER, {'one': {}})
        session.query(model.Message).one().attempts = attempts
    before = timeutils.utcnow()
    assert support.send(sender)
    with sender.session() as session:
        [message] = session.query(model.Message)
    assert (message.due_at - before).total_seconds() == pytest.approx(wait, abs=5)
    assert message.lease is None


def test_a_message_postponed_by_a_fast_clock_is_sent(sender):
    """The conductor that wrote it had a fast clock."""
    told = []
    sender._send[outbox.PROVIDER] = lambda key, payload: told.append(key)
    with sender.session() as session:
        waits = {'now': 0, 'soon': 40, 'a clock that is right': 54, 'a wrong one': 60}
        waits['in a day'] = 86400
        outbox.put(session, outbox.PROVIDER, {key: {} for key in waits})
        for message in session.query(model.Message):
            message.due_at += datetime.timedelta(seconds=waits[message.key])
    support.send(sender)
    assert sorted(told) == ['a wrong one', 'in a day', 'now']


def test_due_messages_are_found_during_a_query_for_another_kind(sender, server):
    """On MariaDB a lock that another kind's query held for a moment hid it."""
    sender._send = dict.fromkeys(sender._send, lambda key, payload: None)
    over = threading.Event()

    def look():
        while not over.is_set():
            sender._work(outbox.EVENT)

    other = threading.Thread(target=look)
    other.start()
    try:
        for number in range(100):
            with sender.session() as session:
                outbox.put(session, outbox.PROVIDER, {f'provider-{number}': {}})
            assert support.take(sender, outbox.PROVIDER), number
    finally:
        over.set()
        other.join()


def test_only_the_kinds_that_were_put_are_woken_and_only_after_the_commit(sender):
    def woken():
        return {kind for kind, each in sender._workers.items() if each._woken.is_set()}

    with sender.session() as session:
        session.add(model.Host(name='host-1', boot_id='boot-1'))
    assert woken() == set()
    with pytest.raises(RuntimeError), sender.session() as session:
        outbox.put(session, outbox.EVENT, {'instance': {}})
        raise RuntimeError
    assert woken() == set()
    with sender.session() as session:
        outbox.put(session, outbox.EVENT, {'instance': {}})
        assert woken() == set()
    assert woken() == {outbox.EVENT}


def test_senders_are_woken_after_a_commit_that_was_not_answered(sender):
    """It may be done: a retry then changes nothing, and puts no message."""

    def lose(_):
        raise RuntimeError('lost')

    with pytest.raises(RuntimeError, match='lost'), sender.session() as session:
        outbox.put(session, outbox.EVENT, {'instance': {}})
        event.listen(session, 'before_commit', lose)
    assert sender._workers[outbox.EVENT]._woken.is_set()


def test_a_failed_message_is_tried_again_when_it_is_due(make_sender):
    """Not when the next look is due."""
    sender = make_sender(outbox_interval=15)
    tries, again = iter([RuntimeError('no root provider')]), threading.Event()

    def send(key, payload):
        for error in tries:
            raise error
        again.set()

    sender._send[outbox.PROVIDER] = send
    sender.start()
    with sender.session() as session:
        outbox.put(session, outbox.PROVIDER, {'one': {}})
    assert again.wait(10)


def test_a_sent_message_is_recorded_after_a_deadlock(sender, monkeypatch):
    """Otherwise it would be leased to nobody for 45 seconds, and what replaced it too."""
    sender._send[outbox.PROVIDER] = lambda key, payload: None
    with sender.session() as session:
        outbox.put(session, outbox.PROVIDER, {'one': {}})
    writer, errors = sender._database.writer, iter([db_exception.DBDeadlock()])

    @contextlib.contextmanager
    def deadlock():
        with writer() as session:
            yield session
            for error in errors:
                raise error

    sender._send[outbox.PROVIDER] = lambda key, payload: monkeypatch.setattr(
        sender._database, 'writer', deadlock
    )
    assert support.send(sender)
    with sender.session() as session:
        assert not session.query(model.Message).count()


def test_messages_of_different_requests_are_not_replaced(sender):
    told = []
    sender._send[outbox.EVENT] = lambda key, payload: told.append(payload)
    for events in ({'a': 'completed', 'b': 'failed'}, {'b': 'completed'}, {'c': 'failed'}):
        with sender.session() as session:
            outbox.put(session, outbox.EVENT, {'instance': events})
    support.send(sender)
    assert told == [{'a': 'completed', 'b': 'completed', 'c': 'failed'}]


def put(sender, *keys):
    with sender.session() as session:
        outbox.put(session, outbox.PROVIDER, {key: {} for key in keys})


@contextlib.contextmanager
def statements(sender):
    """The SQL statements that are sent meanwhile, but for those that begin transactions."""
    seen = []

    def see(_connection, _cursor, statement, *_):
        if not statement.startswith('BEGIN'):
            seen.append(statement)

    sa.event.listen(sender._database.engine, 'before_cursor_execute', see)
    yield seen
    sa.event.remove(sender._database.engine, 'before_cursor_execute', see)


def test_messages_are_sent_side_by_side(sender):
    together = threading.Barrier(AT_ONCE)
    sender._send[outbox.PROVIDER] = lambda key, payload: together.wait(20)
    put(sender, *(f'provider-{number}' for number in range(AT_ONCE)))
    assert support.send(sender)
    assert not support.send(sender)
    assert not together.broken


@pytest.mark.parametrize(
    ('most', 'threads', 'work'),
    [
        (AT_ONCE, 'outbox-send-provider', lambda sender, _: sender._work(outbox.PROVIDER)),
        (AT_ONCE, 'outbox-tell', lambda sender, names: sender.tell(names)),
    ],
)
def test_placement_is_told_by_a_few_threads(sender, most, threads, work, monkeypatch):
    """It is one service for all: a restart of the cloud must not overrun it."""
    submitted, busy, wait = threading.Event(), [], outbox.futures.wait
    # Threads of other tests may not have ended yet.
    before = {*threading.enumerate()}

    def count(*args, **kwargs):
        names = [thread.name for thread in {*threading.enumerate()} - before]
        busy.append(sum(name.startswith(threads) for name in names))
        submitted.set()
        return wait(*args, **kwargs)

    monkeypatch.setattr(outbox.futures, 'wait', count)
    sender._send[outbox.PROVIDER] = lambda *_: submitted.wait(20)
    names = [f'provider-{number}' for number in range(3 * most)]
    put(sender, *names)
    work(sender, names)
    assert not rows(sender)
    # No thread was free while these were submitted.
    assert busy[0] == most


def test_an_idle_outbox_takes_one_statement(sender):
    with statements(sender) as seen:
        assert sender._work(outbox.PROVIDER) == 1
    assert len(seen) == 1, seen


def test_a_message_takes_three_statements(sender):
    """It is found, taken, and forgotten; nothing is looked for after that."""
    sender._send[outbox.PROVIDER] = lambda *_: None
    put(sender, 'provider')
    with statements(sender) as seen:
        assert 0 < sender._work(outbox.PROVIDER) <= 1
    assert len(seen) == 3, seen
    assert not rows(sender)


def test_a_message_that_is_due_soon_is_waited_for(sender):
    sender._send[outbox.PROVIDER] = lambda *_: None
    put(sender, 'now', 'soon')
    soon = timeutils.utcnow() + datetime.timedelta(seconds=0.9)
    later = sa.update(model.Message).where(model.Message.key == 'soon').values(due_at=soon)
    with sender.session() as session:
        session.execute(later)
    assert 0 < sender._work(outbox.PROVIDER) <= 0.9
    assert rows(sender).keys() == {'soon'}


def test_the_time_of_a_delivery_counts(sender, monkeypatch):
    """A lease of a conductor that died ends meanwhile."""
    seconds = iter((0.0, 0.75))
    monkeypatch.setattr(outbox.time, 'monotonic', lambda: next(seconds))
    sender._send[outbox.PROVIDER] = lambda *_: None
    put(sender, 'provider')
    assert sender._work(outbox.PROVIDER) == 0.25


def test_what_is_replaced_while_it_is_sent_is_sent_again(sender):
    sent = []

    def send(key, payload):
        if not sent:
            with sender.session() as session:
                outbox.put(session, outbox.PROVIDER, {key: {'trait': 'retired'}})
        sent.append(payload)

    sender._send[outbox.PROVIDER] = send
    put(sender, 'provider')
    assert 0 < sender._work(outbox.PROVIDER) <= 1
    assert len(sent) == 2
    assert not rows(sender)


def test_what_is_put_again_unchanged_while_it_is_sent_is_sent_again(sender):
    """What it says of the present state may have been read before the change."""
    sent = []

    def send(key, payload):
        if not sent:
            with sender.session() as session:
                # As the first put has left it: nobody has tried it.
                session.execute(sa.update(model.Message).values(attempts=0))
                outbox.put(session, outbox.PROVIDER, {key: {}})
        sent.append(key)

    sender._send[outbox.PROVIDER] = send
    put(sender, 'provider')
    assert 0 < sender._work(outbox.PROVIDER) <= 1
    assert len(sent) == 2


def test_a_commit_that_is_not_answered_leaves_its_lease(sender, monkeypatch):
    """The connection is lost after it: the next try finds its own lease."""
    put(sender, 'provider')
    [message], writer, lost = _found(sender), sender._database.writer, []

    @contextlib.contextmanager
    def losing():
        with writer() as session:
            yield session
        if not lost:
            lost.append(1)
            raise db_exception.DBConnectionError

    monkeypatch.setattr(sender._database, 'writer', losing)
    [claimed] = sender._claim([message])
    assert claimed.lease == rows(sender)['provider'].lease
    lost.clear()
    assert sender._settle([(claimed, None)]) == 0
    assert not rows(sender)


def _found(sender):
    return sender._read(sa.select(model.Message))


def test_the_connections_of_its_threads_are_documented(sender):
    """Each thread may use one, the healer too."""
    text = (pages.ROOT / 'doc/source/admin/index.rst').read_text()
    senders = len(sender._senders) * (outbox.BATCH + 1)
    assert f'and up to {senders + outbox.TELLERS + 1} for its own tasks' in ' '.join(text.split())


@pytest.mark.parametrize('count', [1, AT_ONCE])
def test_a_batch_costs_what_a_message_costs(sender, count, monkeypatch):
    """They are found, taken, and when they are sent forgotten, in one statement each."""
    together = threading.Barrier(count)
    sender._send[outbox.PROVIDER] = lambda key, payload: together.wait(20)
    settle, outcomes = sender._settle, []
    monkeypatch.setattr(sender, '_settle', lambda found: outcomes.extend(found) or len(found))
    put(sender, *(f'provider-{number}' for number in range(count)))
    with statements(sender) as seen:
        assert support.send_batch(sender, outbox.PROVIDER)
        settle(outcomes)
        assert not support.send_batch(sender, outbox.PROVIDER)
    assert len(seen) == 4, seen


def test_a_failed_message_delays_nothing_else(sender):
    """A message is refused, another is replaced while it is sent, and a third hangs meanwhile."""
    hangs = threading.Event()

    def send(key, payload):
        if key == 'refused':
            raise RuntimeError('no root provider')
        if key == 'replaced' and not payload:
            with sender.session() as session:
                outbox.put(session, outbox.PROVIDER, {'replaced': {'trait': 'retired'}})
        if key == 'hangs':
            assert hangs.wait(20)

    sender._send[outbox.PROVIDER] = send
    put(sender, 'refused', 'replaced', 'hangs', 'sent')
    thread = threading.Thread(target=support.send_batch, args=[sender, outbox.PROVIDER])
    thread.start()
    try:
        end = time.monotonic() + 20
        while 'sent' in (waiting := rows(sender)) and time.monotonic() < end:
            pass
        assert 'sent' not in waiting
        assert waiting['hangs'].lease is not None
    finally:
        hangs.set()
        thread.join()
    waiting = rows(sender)
    assert waiting.keys() == {'refused', 'replaced'}
    assert [each.lease for each in waiting.values()] == [None, None]
    now = timeutils.utcnow()
    assert waiting['refused'].due_at > now >= waiting['replaced'].due_at
    assert support.send(sender)
    assert rows(sender).keys() == {'refused'}


def rows(sender):
    with sender.session() as session:
        found = {each.key: each for each in session.query(model.Message)}
        session.expunge_all()
    return found


def test_a_message_that_another_has_taken_costs_only_itself(sender, monkeypatch):
    told = []
    sender._send[outbox.PROVIDER] = lambda key, payload: told.append(key)
    put(sender, 'one', 'two', 'three')
    claim = sender._claim

    def late(found):
        monkeypatch.undo()
        [taken] = claim([each for each in found if each.key == 'two'])
        # What it had read is older than that.
        taken.attempts -= 1
        return claim(found)

    monkeypatch.setattr(sender, '_claim', late)
    assert support.send(sender)
    assert sorted(told) == ['one', 'three']
    assert rows(sender).keys() == {'two'}

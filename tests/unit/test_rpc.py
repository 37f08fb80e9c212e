# SPDX-License-Identifier: Apache-2.0
import datetime
import errno
import json
import logging
import sys
import threading
import types
from unittest import mock
import uuid

import amqp.exceptions
import kombu.exceptions
from oslo_context import context as current
import oslo_messaging as messaging
from oslo_messaging._drivers import common
from oslo_messaging.rpc import dispatcher
import pytest

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import rpc

CALLER = context.RequestContext(
    auth_token='secret-1',
    service_token='secret-2',
    user_id='u1',
    project_id='p1',
    roles=['member'],
    request_id='req-1',
    overwrite=False,
)


class Manager:
    target = messaging.Target(version=rpc.VERSION)

    def __init__(self):
        self.contexts = []
        self.conf = lambda ctxt, **kwargs: 'called'

    def start(self, ctxt):
        return 'started'

    @messaging.expose
    def echo(self, ctxt, **kwargs):
        self.contexts.append(ctxt)
        return kwargs

    @messaging.expose
    @messaging.expected_exceptions(exception.CyborgError)
    def refuse(self, ctxt, kind, **kwargs):
        raise getattr(exception, kind)(**kwargs)

    @messaging.expose
    def keep(self, ctxt):
        return self.kept

    def _hidden(self, ctxt):
        return 'seen'

    @messaging.expose
    def fail(self, ctxt, kind):
        raise {'builtin': KeyError('a'), 'other': uuid.uuid1, 'database': DatabaseError('b')}[kind]


class DatabaseError(Exception):
    """An error that is not ours."""


@pytest.fixture(scope='module')
def manager():
    return Manager()


@pytest.fixture(scope='module')
def bus(manager):
    """A shared bus: to stop a server takes a second."""
    made = rpc.Bus(options.load(files=[]), 'fake://', exchange=str(uuid.uuid4()))
    servers = [
        made.serve(rpc.CONDUCTOR, 'host-1', manager),
        made.serve(rpc.REPORTS, 'host-1', manager),
        made.serve(rpc.AGENT, 'host-1', manager),
    ]
    yield made
    for server in servers:
        server.stop()
        server.wait()
    made.close()


def test_method_is_called_by_its_name(bus):
    wishes = [{'uuid': 'a', 'hostname': None, 'n': 1}]
    assert bus.conductor(CALLER).echo(wishes=wishes) == {'wishes': wishes}
    assert bus.agent(CALLER, 'host-1').echo(a=1) == {'a': 1}


def test_caller_goes_along(bus, manager):
    bus.conductor(CALLER).echo()
    there = manager.contexts[-1]
    assert isinstance(there, context.RequestContext)
    assert (there.user_id, there.project_id, there.roles) == ('u1', 'p1', ['member'])
    assert (there.request_id, there.is_admin) == ('req-1', False)
    assert there.scope == 'p1'
    bus.conductor(context.service()).echo()
    assert manager.contexts[-1].is_admin


def test_token_stays(bus, manager, monkeypatch):
    sent = []
    transport = type(bus._transport)
    send = transport._send

    def spy(self, target, ctxt, message, **kwargs):
        sent.append(json.dumps([ctxt, message]))
        return send(self, target, ctxt, message, **kwargs)

    monkeypatch.setattr(transport, '_send', spy)
    bus.conductor(CALLER).echo(a=1)
    [text] = sent
    assert 'u1' in text
    assert 'secret' not in text
    assert manager.contexts[-1].auth_token is None


ERRORS = [
    exception.NotFound(what='ARQ', id='a'),
    exception.NoFreeHandle(provider='a', free=0, wanted=2),
    exception.Duplicate(what='Device profile', field='name', value='a'),
    exception.Conflict(reason='no {blank} here'),
    exception.Invalid(reason='a\nb'),
    exception.ServiceTokenRequired(),
]


def wired(error):
    """The error as it is after a real transport: the one in memory hands it over as it is."""
    try:
        raise error
    except Exception:
        text = common.serialize_remote_exception(sys.exc_info())
    return common.deserialize_remote_exception(text, [exception.__name__])


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_error_of_ours_is_rebuilt(error):
    rebuilt = wired(error)
    assert isinstance(rebuilt, type(error))
    assert (rebuilt.code, rebuilt.kwargs) == (error.code, error.kwargs)
    # What a client is told: str() of a rebuilt one has the traceback.
    assert rebuilt.message == error.message
    # Rebuilt again: a conductor may ask another.
    assert wired(rebuilt).message == error.message


def test_error_of_others_is_not_rebuilt(bus):
    class Unknown(Exception):
        pass

    assert isinstance(wired(Unknown('no')), messaging.RemoteError)
    assert exception.__name__ in bus._transport._driver._allowed_remote_exmods


def test_error_of_ours_reaches_the_caller(bus):
    with pytest.raises(exception.NotFound) as raised:
        bus.conductor(CALLER).refuse(kind='NotFound', what='ARQ', id='a')
    assert raised.value.message == 'ARQ a not found.'


@pytest.mark.parametrize('method', ['_hidden', 'nothing', '__init__', 'conf', 'start', 'contexts'])
def test_unmarked_methods_cannot_be_called(bus, method):
    with pytest.raises(dispatcher.NoSuchMethod):
        bus.conductor(CALLER)._client.call(CALLER, method)


def test_a_call_that_is_refused_is_not_logged_as_of_the_caller_before(bus):
    logged = []

    class Handler(logging.Handler):
        def emit(self, record):
            logged.append(current.get_current().user_id)

    logger, handler = logging.getLogger('oslo_messaging.rpc.server'), Handler(logging.ERROR)
    logger.addHandler(handler)
    try:
        bus.conductor(CALLER).echo()
        with pytest.raises(dispatcher.NoSuchMethod):
            bus.conductor(context.service())._client.call(context.service(), 'nothing')
    finally:
        logger.removeHandler(handler)
    assert logged == [None]


def test_a_call_without_a_server_times_out(bus):
    with pytest.raises(messaging.MessagingTimeout):
        bus.agent(CALLER, 'host-2', timeout=0)._client.call(CALLER, 'echo')


def test_exchanges_keep_apart(bus):
    other = rpc.Bus(options.load(files=[]), 'fake://', exchange='another')
    with pytest.raises(messaging.MessagingTimeout):
        other.conductor(CALLER, timeout=0)._client.call(CALLER, 'echo')
    other.close()


def test_a_call_that_waits_for_others_ends_within_its_timeout(bus, monkeypatch):
    clock, waited = [0.0], []

    class Slots:
        def acquire(self, timeout):
            clock[0] += timeout
            return True

        def release(self):
            pass

    monkeypatch.setattr(rpc, 'time', types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(bus, '_slots', Slots())
    monkeypatch.setattr(rpc.futures.Future, 'result', lambda _, timeout: waited.append(timeout))
    bus.conductor(CALLER, timeout=20).echo()
    assert 0 < clock[0] + waited[0] < 20


@pytest.mark.parametrize(('service', 'pin'), [('conductor', '0.9'), ('agent', '0.9')])
def test_nothing_newer_than_the_pin_is_sent(service, pin):
    """While services of an older release run, they are not sent what they cannot read."""
    conf = options.load(files=[], **{f'upgrade_levels__{service}': pin})
    made = rpc.Bus(conf, 'fake://', exchange=str(uuid.uuid4()))
    peers = {'conductor': made.conductor(CALLER), 'agent': made.agent(CALLER, 'host-1')}
    with pytest.raises(messaging.RPCVersionCapError, match=pin):
        peers[service].echo()
    made.close()


@pytest.mark.parametrize(
    ('pin', 'topic'), [(None, rpc.REPORTS), ('1.1', rpc.REPORTS), ('1.0', rpc.CONDUCTOR)]
)
def test_agents_have_a_topic_of_their_own(bus, pin, topic):
    """Conductors of the release before serve them among the others."""
    conf = options.load(files=[], **({'upgrade_levels__conductor': pin} if pin else {}))
    made = rpc.Bus(conf, 'fake://', exchange=bus._exchange)
    peer = made.receiver(CALLER)
    assert peer._client.target.topic == topic
    assert peer.echo(a=1) == {'a': 1}
    made.close()


def test_calls_within_the_pin_are_sent(bus):
    conf = options.load(files=[], upgrade_levels__conductor=rpc.VERSION)
    pinned = rpc.Bus(conf, 'fake://', exchange=bus._exchange)
    assert pinned.conductor(CALLER).echo(a=1) == {'a': 1}
    pinned.close()


@pytest.mark.parametrize(
    'error',
    [
        ConnectionResetError(errno.ECONNRESET, 'reset'),
        TimeoutError('timed out'),
        amqp.exceptions.ConnectionForced('the broker ends'),
        kombu.exceptions.OperationalError('refused'),
    ],
    ids=repr,
)
def test_a_connection_that_is_lost_while_it_is_opened(bus, monkeypatch, error):
    """oslo.messaging lets these through."""
    peer = bus.conductor(CALLER)
    monkeypatch.setattr(peer, '_client', types.SimpleNamespace(call=mock.Mock(side_effect=error)))
    with pytest.raises(rpc.BusAway, match='the broker is away'):
        peer.echo(a=1)


def test_a_file_that_cannot_be_read_is_no_lost_connection(bus, monkeypatch):
    peer = bus.conductor(CALLER)
    error = OSError(errno.ENOSPC, 'no space')
    monkeypatch.setattr(peer, '_client', types.SimpleNamespace(call=mock.Mock(side_effect=error)))
    with pytest.raises(OSError, match='no space'):
        peer.echo(a=1)


@pytest.fixture(scope='module')
def paths():
    """The same manager over RabbitMQ's driver, whose broker is in memory, and called directly."""
    made = {
        'bus': rpc.Bus(options.load(files=[]), 'kombu+memory://', exchange=str(uuid.uuid4())),
        'local': rpc.Local(),
    }
    managers = {name: Manager() for name in made}
    served = [
        made[name].serve(topic, 'host-1', manager)
        for name, manager in managers.items()
        for topic in (rpc.CONDUCTOR, rpc.REPORTS, rpc.AGENT)
    ]
    yield made, managers
    rpc.stop(*served)
    for each in made.values():
        each.close()


def outcome(peer, method, arguments):
    """What a caller gets: an answer, or all by which one error is told from another."""
    try:
        return getattr(peer, method)(**arguments)
    except Exception as error:
        kinds = [(kind.__module__, kind.__name__) for kind in type(error).__mro__]
        told = {name: getattr(error, name, None) for name in ('code', 'kwargs', 'message')}
        # The last line of the text, where it is there: before it stands where it was raised.
        return kinds, told, getattr(error, 'exc_type', None), getattr(error, 'value', None)


@pytest.mark.parametrize(
    ('method', 'arguments'),
    [
        ('echo', {}),
        ('echo', {'a': [1, 2.5, None, True, 'é\0'], 'b': {'c': {'d': []}}}),
        # What JSON has not becomes what it has.
        ('echo', {'a': (1, 2), 'b': {1: 2, None: 3}, 'c': datetime.datetime(2026, 1, 2, 3, 4, 5)}),
        ('echo', {'a': uuid.UUID(int=1), 'b': {'x'}, 'c': 1e999}),
        ('refuse', {'kind': 'NotFound', 'what': 'ARQ', 'id': 'a'}),
        ('refuse', {'kind': 'TraitsMissing', 'provider': 'a', 'traits': ['b'], 'arq': 'c'}),
        ('refuse', {'kind': 'Conflict', 'reason': 'no {blank} here'}),
        ('refuse', {'kind': 'ServiceTokenRequired'}),
        ('fail', {'kind': 'builtin'}),
        ('fail', {'kind': 'other'}),
        ('fail', {'kind': 'database'}),
        ('fail', {'kind': 'unknown'}),
        ('fail', {'no such': 'argument'}),
        ('start', {}),
        ('_hidden', {}),
        ('conf', {}),
        ('nothing', {}),
    ],
)
@pytest.mark.parametrize('topic', ['conductor', 'receiver', 'agent'])
def test_a_direct_call_is_as_one_over_a_bus(paths, topic, method, arguments):
    made, _ = paths
    server = ('host-1',) if topic == 'agent' else ()
    outcomes = [
        outcome(getattr(each, topic)(CALLER, *server, timeout=20), method, arguments)
        for each in made.values()
    ]
    assert outcomes[0] == outcomes[1]


def test_a_context_is_rebuilt_as_over_a_bus(paths):
    made, managers = paths
    known = []
    for name, each in made.items():
        each.conductor(CALLER, timeout=20).echo()
        known.append(managers[name].contexts[-1].to_dict())
        assert managers[name].contexts[-1] is not CALLER
    calls = [each.pop('call') for each in known]
    assert known[0] == known[1]
    assert known[0]['auth_token'] is None
    assert calls[0] != calls[1]


def test_a_direct_call_shares_nothing(paths):
    local, managers = paths[0]['local'], paths[1]['local']
    sent = {'a': [1]}
    got = local.conductor(CALLER).echo(sent=sent)
    assert got == {'sent': sent}
    assert got['sent'] is not sent
    assert got['sent']['a'] is not sent['a']
    assert managers.contexts[-1].roles is not CALLER.roles
    managers.kept = got
    assert local.conductor(CALLER).keep() is not managers.kept


@pytest.mark.parametrize('caller', [CALLER, None])
def test_a_direct_call_leaves_the_caller_of_its_thread(paths, monkeypatch, caller):
    """Lines of the log after the call have the request of this thread, as over a bus."""
    local, other = paths[0]['local'], context.RequestContext(user_id='u2', overwrite=False)
    context.forget()
    if caller:
        caller.update_store()
    local.conductor(other).echo()
    with pytest.raises(exception.NotFound):
        local.conductor(other).refuse(kind='NotFound', what='a', id='b')
    assert current.get_current().user_id == (caller and caller.user_id)


def test_arguments_that_json_cannot_encode_are_refused(paths):
    loop = []
    loop.append(loop)
    for each in paths[0].values():
        with pytest.raises(ValueError, match='Circular'):
            each.conductor(CALLER, timeout=20).echo(a=loop)


class Slow:
    """A manager whose call ends when it is told so."""

    target = messaging.Target(version=rpc.VERSION)

    def __init__(self):
        self.begun, self.end = threading.Event(), threading.Event()

    @messaging.expose
    def work(self, ctxt):
        self.begun.set()
        self.end.wait(20)
        return 'done'


def test_a_stopped_server_finishes_its_calls_and_accepts_no_more():
    local, slow = rpc.Local(), Slow()
    served = local.serve(rpc.CONDUCTOR, 'host-1', slow)
    answers = []
    peer = local.conductor(CALLER)
    caller = threading.Thread(target=lambda: answers.append(peer.work()))
    caller.start()
    assert slow.begun.wait(20)
    served.stop()
    with pytest.raises(messaging.MessageUndeliverable):
        peer.work()
    stopper = threading.Thread(target=served.wait)
    stopper.start()
    assert stopper.is_alive()
    slow.end.set()
    stopper.join(20)
    caller.join(20)
    assert answers == ['done']


def test_a_direct_call_has_its_time():
    local, slow = rpc.Local(), Slow()
    local.serve(rpc.CONDUCTOR, 'host-1', slow)
    with pytest.raises(messaging.MessagingTimeout):
        local.conductor(CALLER, timeout=0.1).work()
    slow.end.set()


@pytest.mark.parametrize('server', ['host-2', None])
def test_nobody_serves_in_this_process(paths, server):
    local = paths[0]['local'] if server else rpc.Local()
    peer = local.agent(CALLER, server) if server else local.conductor(CALLER)
    with pytest.raises(messaging.MessageUndeliverable):
        peer.echo()


def test_another_takes_the_call_of_one_that_stops_meanwhile(monkeypatch):
    local, managers = rpc.Local(), [Manager(), Manager()]
    served = [local.serve(rpc.CONDUCTOR, f'host-{n}', each) for n, each in enumerate(managers)]
    peer = local.conductor(CALLER)
    accepted = served[0].answer

    def stops_first(*call):
        served[0].stop()
        return accepted(*call)

    monkeypatch.setattr(served[0], 'answer', stops_first)
    peer.echo()
    assert [len(each.contexts) for each in managers] == [0, 1]


def test_another_takes_the_calls_of_one_that_has_stopped():
    local, managers = rpc.Local(), [Manager(), Manager()]
    served = [local.serve(rpc.CONDUCTOR, f'host-{n}', each) for n, each in enumerate(managers)]
    rpc.stop(served[0])
    local.conductor(CALLER).echo()
    assert [len(each.contexts) for each in managers] == [0, 1]

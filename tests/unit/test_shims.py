# SPDX-License-Identifier: Apache-2.0
"""Each shim does what it is for, with the releases that are installed."""

from importlib import metadata
import importlib.util
import inspect
import os
import ssl
import sys
import tempfile
import uuid

from oslo_log import handlers
from oslo_log import log
import oslo_messaging as messaging
from oslo_messaging import server as messaging_server
from oslo_messaging._drivers import impl_rabbit
from oslo_policy import _checks
from oslo_policy import policy
from packaging import requirements
import pecan
import pytest
import sqlalchemy as sa
from sqlalchemy import event
import webtest

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import shims
from cyborg_lite.db import engine


def check_register_messaging_options(monkeypatch):
    """A client and a server need no options that are not registered."""
    conf = options.load(files=[])
    shims.register_messaging_options(conf)
    assert conf.oslo_messaging_metrics.metrics_enabled is False
    assert conf.oslo_messaging_tracing.tracing_enabled is False
    server, client = _serve(conf, 'fake://')
    try:
        assert client.call({}, 'echo', said='a') == 'a'
    finally:
        _stop(server)


def check_disconnect(monkeypatch):
    """What the transport of RabbitMQ has of a connection is closed and forgotten."""
    conf = options.load(files=[])
    shims.register_messaging_options(conf)
    server, client = _serve(conf, 'kombu+memory:////')
    try:
        assert client.call({}, 'echo', said='a') == 'a'
        connection = server.listener._poll_style_listener.conn.connection
        broker, beats = connection.connection, []
        stop = type(connection)._heartbeat_stop
        monkeypatch.setattr(connection, '_heartbeat_stop', lambda: beats.append(stop(connection)))
        assert broker.connected
        server.stop()
        shims.disconnect(server)
        assert beats == [None]
        assert not broker.connected
    finally:
        _stop(server)
    assert connection.connection is None


def check_rebuild(monkeypatch):
    """Errors of a module that is known are rebuilt, and others are told of."""
    for modules, kind in (([exception.__name__], exception.NotFound), ([], messaging.RemoteError)):
        try:
            raise exception.NotFound(what='ARQ', id='a')
        except exception.NotFound:
            rebuilt = shims.rebuild(sys.exc_info(), modules)
        assert isinstance(rebuilt, kind)
        assert 'ARQ a not found.' in str(rebuilt)


def check_threads(monkeypatch):
    """It is known before there is a server."""
    assert shims.threads(options.load(files=[])) == 64


def check_name_log(monkeypatch):
    monkeypatch.setattr(handlers, '_get_binary_name', handlers._get_binary_name)
    shims.name_log('service-1')
    conf = options.load(files=[])
    conf.set_override('log_dir', '/var/log')
    assert log._get_log_file_path(conf) == '/var/log/service-1.log'


def check_cache_signatures(monkeypatch):
    """After the first request of a kind no signature is inspected."""
    plain = pecan.util.getargspec
    for module in (pecan.core, pecan.routing):
        monkeypatch.setattr(module, 'getargspec', plain)

    class Root:
        @pecan.expose()
        def _route(self, path, request):
            return self.answer, []

        @pecan.expose(content_type='text/plain')
        def answer(self, request, response):
            return request.path

    shims.cache_signatures()
    application = webtest.TestApp(pecan.core.ExplicitPecan(Root()))
    assert application.get('/a').text == '/a'
    inspected = []
    look = inspect.getfullargspec
    monkeypatch.setattr(inspect, 'getfullargspec', lambda f: inspected.append(f) or look(f))
    assert application.get('/b').text == '/b'
    assert inspected == []


def check_cache_check_signatures(monkeypatch):
    """After the first check of a kind no signature is inspected."""
    monkeypatch.setattr(_checks, 'inspect', inspect)
    rules = policy.Rules.from_dict({'a': 'rule:b', 'b': 'role:c or role:d'})
    enforcer = policy.Enforcer(options.load(files=[]), rules=rules, use_conf=False)
    shims.cache_check_signatures()
    assert enforcer.enforce('a', {}, {'roles': ['d']})
    inspected = []
    look = inspect.getfullargspec
    monkeypatch.setattr(inspect, 'getfullargspec', lambda f: inspected.append(f) or look(f))
    assert not enforcer.enforce('a', {}, {'roles': ['e']})
    assert inspected == []


def check_pool_sqlite(monkeypatch):
    """Consecutive transactions share one connection."""
    with tempfile.TemporaryDirectory() as place:
        engine = sa.create_engine(f'sqlite:///{place}/a', poolclass=sa.NullPool)
        connected = []
        event.listen(engine, 'connect', lambda *_: connected.append(1))
        shims.pool_sqlite(engine, 2)
        for _ in range(3):
            with engine.begin() as connection:
                connection.exec_driver_sql('SELECT 1')
        engine.dispose()
    assert connected == [1]


CHECKS = {
    shims.register_messaging_options: ('oslo.messaging', check_register_messaging_options),
    shims.disconnect: ('oslo.messaging', check_disconnect),
    shims.rebuild: ('oslo.messaging', check_rebuild),
    shims.threads: ('oslo.messaging', check_threads),
    shims.name_log: ('oslo.log', check_name_log),
    shims.cache_signatures: ('pecan', check_cache_signatures),
    shims.cache_check_signatures: ('oslo.policy', check_cache_check_signatures),
    shims.pool_sqlite: ('SQLAlchemy', check_pool_sqlite),
}


class _Echo:
    @messaging.expose
    def echo(self, ctxt, said):
        return said


def _serve(conf, url):
    transport = messaging.get_rpc_transport(conf, url=url)
    exchange = str(uuid.uuid4())
    server = messaging.get_rpc_server(
        transport,
        messaging.Target(exchange=exchange, topic='echo', server='here'),
        [_Echo()],
        access_policy=messaging.ExplicitRPCAccessPolicy,
    )
    server.start()
    target = messaging.Target(exchange=exchange, topic='echo')
    return server, messaging.get_rpc_client(transport, target, timeout=30)


def _stop(server):
    server.stop()
    server.wait()
    server.transport.cleanup()


def hold(shim, monkeypatch):
    """Check a shim; whatever goes wrong with it, say which release of which library is at fault."""
    library, check = CHECKS[shim]
    try:
        check(monkeypatch)
    except Exception as error:
        release = f'{library} {metadata.version(library)}'
        pytest.fail(f'{release} breaks cyborg_lite.shims.{shim.__name__}: {error!r}')


@pytest.mark.parametrize('shim', CHECKS, ids=lambda shim: shim.__name__)
def test_shim_fits_the_installed_release(shim, monkeypatch):
    hold(shim, monkeypatch)


BREAKS = {
    shims.register_messaging_options: (shims.metrics, 'oslo_messaging_metrics'),
    shims.disconnect: (impl_rabbit.Connection, '_heartbeat_stop'),
    shims.rebuild: (shims.common, 'serialize_remote_exception'),
    shims.threads: (messaging_server, '_pool_opts'),
    shims.name_log: (handlers, '_get_binary_name'),
    shims.cache_signatures: (pecan.util, 'getargspec'),
    shims.cache_check_signatures: (_checks, 'inspect'),
    shims.pool_sqlite: (sa.Pool, '_creator'),
}


@pytest.mark.parametrize('shim', CHECKS, ids=lambda shim: shim.__name__)
def test_the_release_at_fault_is_named(shim, monkeypatch):
    """A release is no longer to have the private name that a shim uses."""
    owner, name = BREAKS[shim]
    monkeypatch.delattr(owner, name)
    library = CHECKS[shim][0]
    with pytest.raises(pytest.fail.Exception) as caught:
        hold(shim, monkeypatch)
    assert f'{library} {metadata.version(library)} breaks' in str(caught.value)
    assert name in str(caught.value)


def test_every_shim_is_checked():
    own = {
        each
        for name, each in vars(shims).items()
        if inspect.isroutine(each) or inspect.isclass(each)
        if each.__module__ == shims.__name__ and not name.startswith('_')
    }
    assert own == {*CHECKS, shims.SharedTls}
    assert set(CHECKS) == set(BREAKS)


MODULES = {
    'oslo_log.handlers': 'oslo.log',
    'oslo_messaging._drivers.common': 'oslo.messaging',
    'oslo_messaging._metrics.client': 'oslo.messaging',
    'oslo_messaging._tracing.client': 'oslo.messaging',
    'oslo_messaging.server': 'oslo.messaging',
}
NAMES = [
    ('oslo.log', handlers, '_get_binary_name'),
    ('oslo.messaging', messaging_server, '_pool_opts'),
    ('oslo.policy', _checks, '_check'),
    ('pecan', pecan.core, 'getargspec'),
    ('SQLAlchemy', sa.Pool, '_creator'),
]


def said():
    """How an API ends that imports the shims; the other services do not use pecan."""
    spec = importlib.util.spec_from_file_location('fresh', shims.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError) as caught:
        spec.loader.exec_module(module)
        module.cache_signatures()
    return str(caught.value)


@pytest.mark.parametrize('module', MODULES)
def test_a_release_without_a_private_module_is_named_with_those_that_have_it(module, monkeypatch):
    library = MODULES[module]
    monkeypatch.setitem(sys.modules, module, None)
    text = said()
    assert f'{library} {metadata.version(library)} lacks' in text
    assert module in text
    assert f'{library} {shims.KNOWN[library]}.' in text


@pytest.mark.parametrize(('library', 'owner', 'name'), NAMES)
def test_a_release_without_a_private_name_is_named(library, owner, name, monkeypatch):
    monkeypatch.delattr(owner, name)
    text = said()
    assert f'{library} {metadata.version(library)} lacks' in text
    assert name in text


def test_known_releases_start_with_the_lowest_of_setup_cfg():
    wanted = [requirements.Requirement(each) for each in metadata.requires('cyborg-lite')]
    lowest = {each.name: str(each.specifier).removeprefix('>=') for each in wanted}
    for library, releases in shims.KNOWN.items():
        assert releases.startswith(f'{lowest[library]} to ')


def test_shared_tls_fits_the_installed_release(server, databases, monkeypatch):
    """Two connections of PyMySQL read the certificate authorities once."""
    with databases.new() as url:
        if sa.make_url(url).get_backend_name() != 'mysql':
            pytest.skip('this is about PyMySQL alone')
        made = []
        create = ssl.create_default_context
        look = lambda *args, **named: made.append(args) or create(*args, **named)  # noqa: E731
        monkeypatch.setattr(ssl, 'create_default_context', look)
        monkeypatch.setattr(shims.SharedTls, '_contexts', {})
        database = engine.Database(options.load(files=[], database__connection=url))
        made.clear()  # what oslo.db tried first knows nothing of this
        try:
            with database.engine.connect(), database.engine.connect():
                release = f'PyMySQL {metadata.version("PyMySQL")}'
                assert len(made) == 1, f'{release} breaks cyborg_lite.shims.SharedTls'
                assert len(shims.SharedTls._contexts) == 1
        finally:
            database.close()


def test_connections_share_a_tls_context_until_its_files_are_renewed(tmp_path):
    class Connection:
        def _create_ssl_ctx(self, sslp):
            return object()

    class Shared(shims.SharedTls, Connection):
        _contexts = {}  # noqa: RUF012

    file = tmp_path / 'ca.pem'
    file.touch()
    plain, verified = Shared()._create_ssl_ctx({}), Shared()._create_ssl_ctx({'ca': str(file)})
    assert plain is Shared()._create_ssl_ctx({})
    assert verified is Shared()._create_ssl_ctx({'ca': str(file)})
    assert verified is not plain
    os.utime(file, (1, 1))
    assert verified is not Shared()._create_ssl_ctx({'ca': str(file)})

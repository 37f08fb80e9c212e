# SPDX-License-Identifier: Apache-2.0
"""All private names of libraries that we use.

A release of a library may break any of these. ``tests/unit/test_shims.py`` then fails with its
name, and a service that is started with such a release names it.
"""

from __future__ import annotations

import functools
import importlib
from importlib import metadata
import inspect
import operator
import os
import ssl
import types
import typing

from oslo_config import cfg
import oslo_messaging as messaging
import sqlalchemy as sa

#: The releases of each library that are known to have these names: from the lowest of setup.cfg to
#: the last that was tested.
KNOWN = {
    'oslo.log': '7.0.0 to 8.3.2',
    'oslo.messaging': '18.3.0 to 18.3.1',
    'oslo.policy': '4.5.0 to 6.0.1',
    'pecan': '1.5.1 to 1.8.0',
    'SQLAlchemy': '2.0.41 to 2.1.9',
}


def _of(library: str, module: str, *names: str) -> typing.Any:
    """A module of a library, which must have these names.

    :raises ImportError: when it lacks one; the error names the releases that have it.
    """
    try:
        found = importlib.import_module(module)
        for name in names:
            operator.attrgetter(name)(found)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f'{library} {metadata.version(library)} lacks a private name that cyborg_lite uses '
            f'({error}). Install a release that is known to have it: {library} {KNOWN[library]}.'
        ) from error
    return found


handlers = _of('oslo.log', 'oslo_log.handlers', '_get_binary_name')
messaging_server = _of('oslo.messaging', 'oslo_messaging.server', '_pool_opts')
common = _of(
    'oslo.messaging',
    'oslo_messaging._drivers.common',
    'serialize_remote_exception',
    'deserialize_remote_exception',
)
metrics = _of('oslo.messaging', 'oslo_messaging._metrics.client', 'oslo_messaging_metrics')
tracing = _of('oslo.messaging', 'oslo_messaging._tracing.client', 'oslo_messaging_tracing')
_checks = _of('oslo.policy', 'oslo_policy._checks', 'inspect', '_check')
_of('SQLAlchemy', 'sqlalchemy.pool', 'Pool._creator')


def register_messaging_options(conf: cfg.ConfigOpts) -> None:
    """Register options that oslo.messaging reads but only registers with the global ones.

    ``oslo_messaging.opts.list_opts()`` returns neither group.
    """
    conf.register_opts(metrics.oslo_messaging_metrics, group='oslo_messaging_metrics')
    conf.register_opts(tracing.oslo_messaging_tracing, group='oslo_messaging_tracing')


def disconnect(server: messaging.MessageHandlingServer) -> None:
    """Close a stopped server's connection to the broker at once, without a handshake.

    The broker then redelivers unacknowledged messages to other servers. By default oslo.messaging
    stays connected until the last call in progress has finished: new messages would wait for that.
    During the closing handshake it would also acknowledge arriving messages, and drop them.

    An in-memory transport has no connection.
    """
    pooled = getattr(server.listener._poll_style_listener, 'conn', None)
    if pooled is not None:
        connection = pooled.connection
        connection._heartbeat_stop()
        connection.connection.collect()
        connection.connection = None


def rebuild(failure: typing.Any, modules: list[str]) -> Exception:
    """The error of ``sys.exc_info()`` as after a transport.

    An error whose class is neither built in nor of these modules becomes a RemoteError.
    """
    text = common.serialize_remote_exception(failure)
    return typing.cast('Exception', common.deserialize_remote_exception(text, modules))


def threads(conf: cfg.ConfigOpts) -> int:
    """The number of calls that a server of oslo.messaging handles at once."""
    conf.register_opts(messaging_server._pool_opts)
    return int(conf.executor_thread_pool_size)


class SharedTls:
    """A mixin that lets connections of PyMySQL share the TLS context.

    By default each connection reads all certificate authorities of the machine, which takes 25 ms
    of CPU.
    """

    _contexts: typing.ClassVar[dict[object, ssl.SSLContext]] = {}

    def _create_ssl_ctx(self, sslp: typing.Any) -> ssl.SSLContext:
        # Renewed files are read again.
        files = [sslp[name] for name in ('ca', 'capath', 'cert', 'key') if sslp.get(name)]
        key = str(sorted(sslp.items())), *(os.stat(file).st_mtime_ns for file in files)
        if key not in self._contexts:
            self._contexts[key] = super()._create_ssl_ctx(sslp)  # type: ignore[misc]
        return self._contexts[key]


def name_log(name: str) -> None:
    """Name the log of this process: its file in ``log_dir``, and its name in syslog.

    By default oslo.log uses the name of the outermost Python file, which under uWSGI is ``<frozen
    importlib._bootstrap>``.
    """
    handlers._get_binary_name = lambda: name


def cache_signatures() -> None:
    """Make pecan inspect each method's signature once, not several times in each request."""
    # Only the API needs pecan.
    core = _of('pecan', 'pecan.core', 'getargspec', 'ExplicitPecan')
    routing = _of('pecan', 'pecan.routing', 'getargspec')
    util = _of('pecan', 'pecan.util', 'getargspec')
    cached = functools.cache(util.getargspec)

    def look(method: typing.Any) -> typing.Any:
        # The cache must not keep the bound object alive.
        return cached(getattr(method, '__func__', method))

    for module in (core, routing):
        module.getargspec = look


def cache_check_signatures() -> None:
    """Make oslo.policy inspect the signature of each check class once.

    By default it inspects one for each check of a rule, in each request.
    """
    cached = functools.cache(inspect.getfullargspec)

    def look(method: typing.Any) -> inspect.FullArgSpec:
        # The cache must not keep the check alive.
        return cached(getattr(method, '__func__', method))

    _checks.inspect = types.SimpleNamespace(getfullargspec=look)


def pool_sqlite(engine: sa.Engine, size: int) -> None:
    """Keep connections to SQLite open between transactions.

    By default oslo.db opens one for each, which costs as much as the rest of a request.
    """
    plain = engine.pool
    if not isinstance(plain, sa.NullPool):
        return  # it is in memory, and has one connection
    engine.pool = sa.QueuePool(
        plain._creator,
        pool_size=size,
        max_overflow=-1,
        # Fewer connections in use need less memory for caches.
        use_lifo=True,
        dialect=engine.dialect,
        _dispatch=plain.dispatch,
    )

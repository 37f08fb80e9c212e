# SPDX-License-Identifier: Apache-2.0
"""All that we use of libraries and that they do not promise to keep: their private names.

A release of theirs may break any of these. ``tests/unit/test_shims.py`` then says which did, and a
service that is started with such a release names it.
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

#: The releases of each library that are known to have these names: from the lowest that setup.cfg
#: admits to the last that was tried.
KNOWN = {
    'oslo.log': '7.0.0 to 8.3.2',
    'oslo.messaging': '18.3.0 to 18.3.1',
    'oslo.policy': '4.5.0 to 6.0.1',
    'pecan': '1.5.1 to 1.8.0',
    'SQLAlchemy': '2.0.41 to 2.1.9',
}


def _of(library: str, module: str, *names: str) -> typing.Any:
    """A module of a library, which has these names.

    :raises ImportError: when it does not; the error says which releases do.
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
    """Register what oslo.messaging reads of our options, but registers with the global ones only.

    Neither group is among what ``oslo_messaging.opts.list_opts()`` returns.
    """
    conf.register_opts(metrics.oslo_messaging_metrics, group='oslo_messaging_metrics')
    conf.register_opts(tracing.oslo_messaging_tracing, group='oslo_messaging_tracing')


def disconnect(server: messaging.MessageHandlingServer) -> None:
    """Close a stopped server's connection to the broker at once, and without a goodbye.

    The broker then gives to others what it has sent us and we have not taken. By itself
    oslo.messaging stays connected until the last call in hand is finished: what the broker still
    sends would wait for that. And it says goodbye: while it waits for the answer it takes what
    comes, acknowledges it, and forgets it.

    A transport in memory has no connection.
    """
    pooled = getattr(server.listener._poll_style_listener, 'conn', None)
    if pooled is not None:
        connection = pooled.connection
        connection._heartbeat_stop()
        connection.connection.collect()
        connection.connection = None


def rebuild(failure: typing.Any, modules: list[str]) -> Exception:
    """The error of ``sys.exc_info()`` as it is when a transport has carried it.

    One whose class is not built in, or of these modules, is a RemoteError then.
    """
    text = common.serialize_remote_exception(failure)
    return typing.cast('Exception', common.deserialize_remote_exception(text, modules))


def threads(conf: cfg.ConfigOpts) -> int:
    """How many calls a server of oslo.messaging answers at once."""
    conf.register_opts(messaging_server._pool_opts)
    return int(conf.executor_thread_pool_size)


class SharedTls:
    """Lets connections of PyMySQL share what they need for TLS: a base before theirs.

    By itself each one reads all certificate authorities of the machine, which takes 25 ms of CPU.
    """

    _contexts: typing.ClassVar[dict[object, ssl.SSLContext]] = {}

    def _create_ssl_ctx(self, sslp: typing.Any) -> ssl.SSLContext:
        # Files that were renewed are read again.
        files = [sslp[name] for name in ('ca', 'capath', 'cert', 'key') if sslp.get(name)]
        key = str(sorted(sslp.items())), *(os.stat(file).st_mtime_ns for file in files)
        if key not in self._contexts:
            self._contexts[key] = super()._create_ssl_ctx(sslp)  # type: ignore[misc]
        return self._contexts[key]


def name_log(name: str) -> None:
    """Call the log of this process so: its file in ``log_dir``, and what syslog shows.

    By itself oslo.log takes the name of the outermost Python file, which under uWSGI is
    ``<frozen importlib._bootstrap>``.
    """
    handlers._get_binary_name = lambda: name


def cache_signatures() -> None:
    """Have pecan look at the signature of each method once, not several times in each request."""
    # Only the API needs pecan.
    core = _of('pecan', 'pecan.core', 'getargspec', 'ExplicitPecan')
    routing = _of('pecan', 'pecan.routing', 'getargspec')
    util = _of('pecan', 'pecan.util', 'getargspec')
    cached = functools.cache(util.getargspec)

    def look(method: typing.Any) -> typing.Any:
        # What a method is bound to is not kept alive.
        return cached(getattr(method, '__func__', method))

    for module in (core, routing):
        module.getargspec = look


def cache_check_signatures() -> None:
    """Have oslo.policy look at the signature of each class of checks once.

    By itself it inspects one for each check of a rule, in each request.
    """
    cached = functools.cache(inspect.getfullargspec)

    def look(method: typing.Any) -> inspect.FullArgSpec:
        # A check is not kept alive by its method.
        return cached(getattr(method, '__func__', method))

    _checks.inspect = types.SimpleNamespace(getfullargspec=look)


def pool_sqlite(engine: sa.Engine, size: int) -> None:
    """Keep connections to SQLite open between transactions.

    By itself oslo.db opens one for each, which costs as much as a request takes besides.
    """
    plain = engine.pool
    if not isinstance(plain, sa.NullPool):
        return  # it is in memory, and has one connection
    engine.pool = sa.QueuePool(
        plain._creator,
        pool_size=size,
        max_overflow=-1,
        # The fewer are used, the less memory their caches take.
        use_lifo=True,
        dialect=engine.dialect,
        _dispatch=plain.dispatch,
    )

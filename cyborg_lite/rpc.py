# SPDX-License-Identifier: Apache-2.0
"""RPC between the services: a manager's method is called by its name.

Arguments and results are plain data.  Our errors are rebuilt on the other side.
"""

from __future__ import annotations

import collections.abc
from concurrent import futures
import functools
import sys
import threading
import time
import types
import typing
import uuid

import kombu.exceptions
from kombu.transport import pyamqp
from oslo_config import cfg
from oslo_log import log
import oslo_messaging as messaging
from oslo_messaging import opts as messaging_options
from oslo_serialization import jsonutils
from oslo_utils import versionutils

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import shims

CONDUCTOR = 'cyborg_lite.conductor'
#: The topic of conductors for agents: it takes only reports and news of leases.
REPORTS = 'cyborg_lite.reports'
AGENT = 'cyborg_lite.agent'
#: The RPC version of the servers of this release: each has it in its ``target``.
VERSION = '1.1'
#: The version that introduced the methods of a topic. Callers ask for no higher version, so that a
#: server of the previous release understands them.
NEEDED = {CONDUCTOR: '1.0', REPORTS: '1.1', AGENT: '1.0'}
#: The version of the calls for leases of processes, on the topic of reports. Since 1.3 the agent
#: makes the uuid of a lease.
LEASES = '1.3'
#: The version in which agents tell the containers of leases: only conductors are asked that show
#: these.
CONTAINERS = '1.4'
#: The version in which agents tell whether the cards of a lease that ends are closed: only
#: conductors are told that ask for it.
CLOSED = '1.5'
#: The number of retries while the broker is unreachable before the caller gets an error: 9 seconds
#: with the defaults of ``[oslo_messaging_rabbit]``.
RETRIES = 3
#: The maximum number of concurrent calls with a timeout in a process. A call that the broker does
#: not accept continues for a while after its caller has timed out.
CALLS = 64
#: The modules whose errors are rebuilt at the caller.
ERRORS = [exception.__name__]

LOG = log.getLogger(__name__)


class Server(typing.Protocol):
    """A server of managers."""

    def stop(self) -> None:
        """Take no more calls."""

    def wait(self) -> None:
        """Wait until the calls in progress have finished."""


class Peers(typing.Protocol):
    """Serves and calls managers, over a bus or in this process."""

    def serve(self, topic: str, server: str, *managers: object) -> Server: ...

    def conductor(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer: ...

    def receiver(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer: ...

    def leases(
        self, ctxt: context.RequestContext, timeout: int | None = None, version: str = LEASES
    ) -> Peer: ...

    def agent(
        self, ctxt: context.RequestContext, hostname: str, timeout: int | None = None
    ) -> Peer: ...

    def notifier(self) -> messaging.Notifier | None: ...

    def close(self) -> None: ...


class _Serializer(messaging.NoOpSerializer):
    """Adds the caller and a uuid of the call to each message."""

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, typing.Any]:
        # The token is not sent: the services do not need it. The uuid is made once per call: it
        # identifies a message that is delivered twice.
        return ctxt.to_dict() | {'auth_token': None, 'call': str(uuid.uuid4())}  # nosec B105

    def deserialize_context(self, ctxt: dict[str, typing.Any]) -> context.RequestContext:
        return context.RequestContext.from_dict(ctxt)


class Bus:
    """A transport, with the servers and clients on it."""

    def __init__(
        self, conf: cfg.ConfigOpts, url: str | None = None, exchange: str = 'cyborg_lite'
    ) -> None:
        """A bus.

        :param url: the URL of the transport; ``transport_url`` by default.
        :param exchange: separates its messages from others on the transport.
        """
        self._exchange = exchange
        self._slots = threading.BoundedSemaphore(CALLS)
        pins = conf.upgrade_levels
        self._newest = {CONDUCTOR: pins.conductor, REPORTS: pins.conductor, AGENT: pins.agent}
        shims.register_messaging_options(conf)
        self._transport = messaging.get_rpc_transport(conf, url=url, allowed_remote_exmods=ERRORS)
        self._conf, self._url = conf, url
        self._transports: list[typing.Any] = [self._transport]

    def serve(self, topic: str, server: str, *managers: object) -> Server:
        """Serve, in threads, the methods that are marked with ``oslo_messaging.expose``."""
        serializer, policy = _Serializer(), messaging.ExplicitRPCAccessPolicy
        target = messaging.Target(server=server, **self._place(topic))
        made = messaging.get_rpc_server(
            self._transport, target, managers, serializer=serializer, access_policy=policy
        )
        # get_rpc_server() accepts no dispatcher.
        made.dispatcher = _Dispatcher(managers, serializer, policy)
        made.start()
        return made

    def conductor(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        """Any one conductor."""
        return self._peer(ctxt, timeout, topic=CONDUCTOR)

    def receiver(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        """Any one conductor, on the topic for agents.

        Conductors of the previous release take reports on the topic of other calls.
        """
        pin = self._newest[CONDUCTOR]
        old = pin is not None and not versionutils.is_compatible(NEEDED[REPORTS], pin)
        return self._peer(ctxt, timeout, topic=CONDUCTOR if old else REPORTS)

    def leases(
        self, ctxt: context.RequestContext, timeout: int | None = None, version: str = LEASES
    ) -> Peer:
        """Any one conductor, for the leases of processes."""
        return self._peer(ctxt, timeout, topic=REPORTS, version=version)

    def agent(
        self, ctxt: context.RequestContext, hostname: str, timeout: int | None = None
    ) -> Peer:
        """The agent of this host."""
        return self._peer(ctxt, timeout, topic=AGENT, server=hostname)

    def _peer(
        self,
        ctxt: context.RequestContext,
        timeout: int | None,
        topic: str,
        version: str | None = None,
        **target: str,
    ) -> Peer:
        client = messaging.get_rpc_client(
            self._transport,
            messaging.Target(version=version or NEEDED[topic], **self._place(topic), **target),
            # Shorter than the caller's timeout, also on a busy machine: otherwise a late answer of
            # a conductor would look like a broker that does not accept messages.
            timeout=None if timeout is None else timeout * 0.8,
            retry=RETRIES,
            version_cap=self._newest[topic],
            serializer=_Serializer(),
            # Fail at once while the queue does not exist: no server would answer.
            transport_options=messaging.TransportOptions(at_least_once=True),
        )
        late = BusAway('the broker takes no messages')
        return Peer(client, ctxt, self._slots, timeout, late)

    def _place(self, topic: str) -> dict[str, str]:
        """The topic and its exchange.

        The topics of agents have an exchange of their own, so their user of the broker needs no
        permission on the exchange through which requests are bound.
        """
        own = self._exchange if topic == CONDUCTOR else f'{self._exchange}.agents'
        return {'exchange': own, 'topic': topic}

    def notifier(self) -> messaging.Notifier | None:
        """Sends notifications to other services; None if no driver is set for them.

        Where the retries have no end by default, there are a few: a conductor must be able to stop.
        """
        for group, opts in messaging_options.list_opts():
            self._conf.register_opts(opts, group=group)
        options = self._conf.oslo_messaging_notifications
        if not set(options.driver) - {'', 'noop'}:
            return None
        transport = messaging.get_notification_transport(self._conf, url=self._url)
        self._transports.append(transport)
        retry = RETRIES if options.retry < 0 else None
        return messaging.Notifier(transport, f'accelerator.{self._conf.host}', retry=retry)

    def close(self) -> None:
        for each in self._transports:
            each.cleanup()


class _Dispatcher(messaging.RPCDispatcher):
    """Handles each call without the caller of the one before.

    The context of a call is set only once its method and its version are known.
    """

    def dispatch(self, incoming: typing.Any) -> typing.Any:
        context.forget()
        return super().dispatch(incoming)


class Local:
    """Managers in this process, which are called directly.

    As over a bus, they receive and return copies of plain data, a context, and errors that are
    rebuilt from text; nothing is shared with the caller.
    """

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(CALLS)
        #: the servers, by topic and name
        self._served: dict[tuple[str, str], _Served] = {}

    def serve(self, topic: str, server: str, *managers: object) -> Server:
        """Serve the methods that are marked with ``oslo_messaging.expose``."""
        made = _Served(managers)
        self._served[topic, server] = made
        return made

    def conductor(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        return self._peer(ctxt, timeout, CONDUCTOR)

    def receiver(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        return self._peer(ctxt, timeout, REPORTS)

    def leases(
        self, ctxt: context.RequestContext, timeout: int | None = None, version: str = LEASES
    ) -> Peer:
        return self._peer(ctxt, timeout, REPORTS, version=version)

    def agent(
        self, ctxt: context.RequestContext, hostname: str, timeout: int | None = None
    ) -> Peer:
        return self._peer(ctxt, timeout, AGENT, hostname)

    def _peer(
        self,
        ctxt: context.RequestContext,
        timeout: int | None,
        topic: str,
        server: str | None = None,
        version: str | None = None,
    ) -> Peer:
        late = messaging.MessagingTimeout('no answer in time')
        direct = _Direct(self._find, topic, server, version or NEEDED[topic])
        return Peer(direct, ctxt, self._slots, timeout, late)

    def _find(self, topic: str, server: str | None) -> _Served | None:
        """A server of the topic, with this name if one is given."""
        for (of, at), served in [*self._served.items()]:
            if of == topic and server in (None, at) and not served.stopped:
                return served
        return None

    def notifier(self) -> None:
        """None: there is no bus on which others could listen."""

    def close(self) -> None:
        """Remove all servers."""
        self._served.clear()


class _Served:
    """Managers of this process, which accept calls until they are stopped."""

    def __init__(self, managers: collections.abc.Sequence[object]) -> None:
        self._dispatcher = messaging.RPCDispatcher(
            managers, _Serializer(), messaging.ExplicitRPCAccessPolicy
        )
        self._changed = threading.Condition()
        self._calls = 0
        self.stopped = False

    def answer(self, ctxt: dict[str, typing.Any], message: dict[str, typing.Any]) -> typing.Any:
        """The result of the method, or the error that it raises, for the caller.

        :raises _Stopped: when no more calls are accepted.
        """
        with self._changed:
            if self.stopped:
                raise _Stopped
            self._calls += 1
        try:
            incoming = types.SimpleNamespace(ctxt=ctxt, message=message, client_timeout=None)
            return self._dispatcher.dispatch(incoming)
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self.stopped = True

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._calls)


class _Stopped(Exception):
    """The manager accepts no more calls."""


class _Direct:
    """Calls a manager of this process, in place of messaging.RPCClient."""

    def __init__(
        self,
        find: collections.abc.Callable[[str, str | None], _Served | None],
        topic: str,
        server: str | None,
        version: str,
    ) -> None:
        self._find = find
        self._topic = topic
        self._server = server
        self._version = version
        self._serializer = _Serializer()

    def call(self, ctxt: context.RequestContext, method: str, **kwargs: typing.Any) -> typing.Any:
        message = {'method': method, 'args': kwargs, 'version': self._version}
        sent = _copy([self._serializer.serialize_context(ctxt), message])
        while served := self._find(self._topic, self._server):
            try:
                with context.kept():
                    return _copy(served.answer(*sent))
            except _Stopped:
                continue
            except messaging.ExpectedException as expected:
                raise shims.rebuild(expected.exc_info, ERRORS) from None
            except Exception:
                LOG.exception('The call of %s failed', method)
                raise shims.rebuild(sys.exc_info(), ERRORS) from None
        raise messaging.MessageUndeliverable(None, None, self._topic, message)


def _copy(data: typing.Any) -> typing.Any:
    """A copy of data as after a transport."""
    return jsonutils.loads(jsonutils.dumps(data))


def stop(*servers: Server) -> None:
    """Accept no more calls, and finish those in progress."""
    for server in servers:
        server.stop()
        if isinstance(server, messaging.MessageHandlingServer):
            shims.disconnect(server)
    for server in servers:
        server.wait()


#: Errors of a connection to the broker that cannot be opened, or that is lost: oslo.messaging does
#: not wrap them. OSError is not here: it may be about a file, and may come from the other side.
LOST = (
    kombu.exceptions.OperationalError,
    ConnectionError,
    TimeoutError,
    *(kind for kind in pyamqp.Transport.connection_errors if kind is not OSError),
)


class BusAway(messaging.MessageDeliveryFailure):
    """The broker cannot be reached, or accepts no messages."""


class Peer:
    """A manager, maybe on another host: ``peer.bind(requests=...)`` calls its method and waits."""

    def __init__(
        self,
        client: messaging.RPCClient | _Direct,
        ctxt: context.RequestContext,
        slots: threading.BoundedSemaphore,
        timeout: float | None,
        late: Exception,
    ) -> None:
        """:param late: raised when the call itself has not ended in time."""
        self._client = client
        self._context = ctxt
        self._slots = slots
        self._timeout = timeout
        self._late = late

    def __getattr__(self, method: str) -> collections.abc.Callable[..., typing.Any]:
        return functools.partial(self._call, method)

    def _call(self, method: str, **kwargs: typing.Any) -> typing.Any:
        """
        :raises oslo_messaging.MessagingException: when no server answers, or the bus is
            unavailable.
        """
        if self._timeout is None:
            return self._send(method, kwargs)
        # The timeout of oslo.messaging applies to the answer, and to each attempt to send: when
        # the broker had blocked its publishers (memory or disk full), a call took 43 s at a
        # timeout of 10 s.
        end = time.monotonic() + self._timeout * 0.95
        if not self._slots.acquire(timeout=self._timeout / 2):
            raise BusAway(f'{CALLS} calls are under way')
        answer: futures.Future[typing.Any] = futures.Future()
        threading.Thread(
            target=self._fulfil, args=(answer, method, kwargs), name=f'call-{method}', daemon=True
        ).start()
        try:
            return answer.result(end - time.monotonic())
        except futures.TimeoutError:
            raise self._late from None

    def _fulfil(
        self, answer: futures.Future[typing.Any], method: str, kwargs: dict[str, typing.Any]
    ) -> None:
        try:
            answer.set_result(self._send(method, kwargs))
        except Exception as error:
            answer.set_exception(error)
        finally:
            self._slots.release()

    def _send(self, method: str, kwargs: dict[str, typing.Any]) -> typing.Any:
        try:
            return self._client.call(self._context, method, **kwargs)
        except LOST as error:
            raise BusAway(f'the broker is away: {error}') from error

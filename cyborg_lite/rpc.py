# SPDX-License-Identifier: Apache-2.0
"""How the services reach each other: a manager's method is called by its name.

What crosses the wire is plain data.  Errors of ours are rebuilt on the other side.
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
from oslo_serialization import jsonutils
from oslo_utils import versionutils

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import shims

CONDUCTOR = 'cyborg_lite.conductor'
#: Conductors serve this topic to agents: it takes reports and news of leases, and nothing else.
REPORTS = 'cyborg_lite.reports'
AGENT = 'cyborg_lite.agent'
#: What the servers of this release understand: each says so in its ``target``.
VERSION = '1.1'
#: The version that brought what is called on a topic.  A caller asks for no more than that, so that
#: a server of the release before understands it.
NEEDED = {CONDUCTOR: '1.0', REPORTS: '1.1', AGENT: '1.0'}
#: The version that brought leases of processes to the topic of reports.
LEASES = '1.2'
#: How often a broker that is away is looked for before a caller is told so: with what
#: ``[oslo_messaging_rabbit]`` says by default, for 9 seconds.
RETRIES = 3
#: The most calls with a timeout that a process has under way. One that the broker does not take
#: goes on for a while after its caller has given up.
CALLS = 64
#: The modules whose errors are rebuilt where they are raised again.
ERRORS = [exception.__name__]

LOG = log.getLogger(__name__)


class Server(typing.Protocol):
    """A manager that is served."""

    def stop(self) -> None:
        """Take no more calls."""

    def wait(self) -> None:
        """Return once the calls in hand are finished."""


class Peers(typing.Protocol):
    """How managers are served and called: over a bus, or in this process."""

    def serve(self, topic: str, server: str, *managers: object) -> Server: ...

    def conductor(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer: ...

    def receiver(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer: ...

    def leases(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer: ...

    def agent(
        self, ctxt: context.RequestContext, hostname: str, timeout: int | None = None
    ) -> Peer: ...

    def close(self) -> None: ...


class _Serializer(messaging.NoOpSerializer):
    """Carries the caller along, and a uuid of the call."""

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, typing.Any]:
        # The token stays here: the services speak for themselves. The uuid is made once per call,
        # so that a message that is delivered twice is known by it.
        return ctxt.to_dict() | {'auth_token': None, 'call': str(uuid.uuid4())}  # nosec B105

    def deserialize_context(self, ctxt: dict[str, typing.Any]) -> context.RequestContext:
        return context.RequestContext.from_dict(ctxt)


class Bus:
    """A transport, with the servers and clients on it."""

    def __init__(
        self, conf: cfg.ConfigOpts, url: str | None = None, exchange: str = 'cyborg_lite'
    ) -> None:
        """A bus.

        :param url: of the transport; that of ``transport_url`` by default.
        :param exchange: what keeps its messages apart from those of others on the transport.
        """
        self._exchange = exchange
        self._slots = threading.BoundedSemaphore(CALLS)
        pins = conf.upgrade_levels
        self._newest = {CONDUCTOR: pins.conductor, REPORTS: pins.conductor, AGENT: pins.agent}
        shims.register_messaging_options(conf)
        self._transport = messaging.get_rpc_transport(conf, url=url, allowed_remote_exmods=ERRORS)

    def serve(self, topic: str, server: str, *managers: object) -> Server:
        """Start to answer calls, in threads, of those methods of the managers that are marked with
        ``oslo_messaging.expose``, and of nothing else that they have.
        """
        made = messaging.get_rpc_server(
            self._transport,
            messaging.Target(server=server, **self._place(topic)),
            managers,
            serializer=_Serializer(),
            access_policy=messaging.ExplicitRPCAccessPolicy,
        )
        made.start()
        return made

    def conductor(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        """Any one conductor."""
        return self._peer(ctxt, timeout, topic=CONDUCTOR)

    def receiver(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        """Any one conductor, as agents reach it.

        Conductors of the release before take reports among all other calls.
        """
        pin = self._newest[CONDUCTOR]
        old = pin is not None and not versionutils.is_compatible(NEEDED[REPORTS], pin)
        return self._peer(ctxt, timeout, topic=CONDUCTOR if old else REPORTS)

    def leases(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        """Any one conductor, as agents reach it for the leases of processes."""
        return self._peer(ctxt, timeout, topic=REPORTS, version=LEASES)

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
            # Less than the caller waits, also on a busy machine: a call that a conductor has not
            # answered in time must not be taken for one that the broker has not taken.
            timeout=None if timeout is None else timeout * 0.8,
            retry=RETRIES,
            version_cap=self._newest[topic],
            serializer=_Serializer(),
            # While there is no queue yet, be told so at once: nobody would ever answer.
            transport_options=messaging.TransportOptions(at_least_once=True),
        )
        late = BusAway('the broker takes no messages')
        return Peer(client, ctxt, self._slots, timeout, late)

    def _place(self, topic: str) -> dict[str, str]:
        """The topic and its exchange.

        What agents use has an exchange of its own: the broker then needs to give their user no
        permission on the one through which requests are bound.
        """
        own = self._exchange if topic == CONDUCTOR else f'{self._exchange}.agents'
        return {'exchange': own, 'topic': topic}

    def close(self) -> None:
        self._transport.cleanup()


class Local:
    """Managers in this process: they are called directly.

    They get and give what they would over a bus: plain data, a context and errors that are rebuilt
    from text, and nothing that is shared with the caller.
    """

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(CALLS)
        #: by topic and server
        self._served: dict[tuple[str, str], _Served] = {}

    def serve(self, topic: str, server: str, *managers: object) -> Server:
        """Answer calls of those methods that are marked with ``oslo_messaging.expose``."""
        made = _Served(managers)
        self._served[topic, server] = made
        return made

    def conductor(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        return self._peer(ctxt, timeout, CONDUCTOR)

    def receiver(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        return self._peer(ctxt, timeout, REPORTS)

    def leases(self, ctxt: context.RequestContext, timeout: int | None = None) -> Peer:
        return self._peer(ctxt, timeout, REPORTS, version=LEASES)

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
        """One that serves the topic, on this server if one is named."""
        for (of, at), served in [*self._served.items()]:
            if of == topic and server in (None, at) and not served.stopped:
                return served
        return None

    def close(self) -> None:
        """Forget whoever was served."""
        self._served.clear()


class _Served:
    """Managers of this process, which take calls until they are stopped."""

    def __init__(self, managers: collections.abc.Sequence[object]) -> None:
        self._dispatcher = messaging.RPCDispatcher(
            managers, _Serializer(), messaging.ExplicitRPCAccessPolicy
        )
        self._changed = threading.Condition()
        self._calls = 0
        self.stopped = False

    def answer(self, ctxt: dict[str, typing.Any], message: dict[str, typing.Any]) -> typing.Any:
        """What the method answers, or raises, and the caller is to know of it.

        :raises _Stopped: when no more calls are taken.
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
    """A manager takes no more calls."""


class _Direct:
    """Calls a manager of this process, as messaging.RPCClient calls one over a bus."""

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
    """Data as it is after a transport."""
    return jsonutils.loads(jsonutils.dumps(data))


def stop(*servers: Server) -> None:
    """Take no more calls, and finish those in hand."""
    for server in servers:
        server.stop()
        if isinstance(server, messaging.MessageHandlingServer):
            shims.disconnect(server)
    for server in servers:
        server.wait()


#: What is raised where a connection to the broker cannot be opened, or is lost just then:
#: oslo.messaging lets that through. An OSError may be of a file, and may come from the other side.
LOST = (
    kombu.exceptions.OperationalError,
    ConnectionError,
    TimeoutError,
    *(kind for kind in pyamqp.Transport.connection_errors if kind is not OSError),
)


class BusAway(messaging.MessageDeliveryFailure):
    """The broker cannot be reached, or takes no messages."""


class Peer:
    """A manager, perhaps elsewhere: ``peer.bind(requests=...)`` calls its method and waits."""

    def __init__(
        self,
        client: messaging.RPCClient | _Direct,
        ctxt: context.RequestContext,
        slots: threading.BoundedSemaphore,
        timeout: float | None,
        late: Exception,
    ) -> None:
        """:param late: is raised when the call itself has not ended in time."""
        self._client = client
        self._context = ctxt
        self._slots = slots
        self._timeout = timeout
        self._late = late

    def __getattr__(self, method: str) -> collections.abc.Callable[..., typing.Any]:
        return functools.partial(self._call, method)

    def _call(self, method: str, **kwargs: typing.Any) -> typing.Any:
        """
        :raises oslo_messaging.MessagingException: when nobody answers, or the bus is away.
        """
        if self._timeout is None:
            return self._send(method, kwargs)
        # oslo.messaging's timeout is that of the answer, and of each attempt to send: where the
        # broker has blocked its publishers (its memory or its disk is full) a call took 43 s at
        # a timeout of 10 s.
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

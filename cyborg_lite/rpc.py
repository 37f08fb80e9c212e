# SPDX-License-Identifier: Apache-2.0
"""How the services reach each other: a manager's method is called by its name.

What crosses the wire is plain data.  Errors of ours are rebuilt on the other side.
"""

from __future__ import annotations

import collections.abc
from concurrent import futures
import functools
import threading
import typing
import uuid

import kombu.exceptions
from oslo_config import cfg
import oslo_messaging as messaging
from oslo_utils import versionutils

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import shims

CONDUCTOR = 'cyborg_lite.conductor'
#: Conductors serve this topic to agents: it takes reports and nothing else.
REPORTS = 'cyborg_lite.reports'
AGENT = 'cyborg_lite.agent'
#: What the servers of this release understand: each says so in its ``target``.
VERSION = '1.1'
#: The version that brought what is called on a topic.  A caller asks for no more than that, so that
#: a server of the release before understands it.
NEEDED = {CONDUCTOR: '1.0', REPORTS: '1.1', AGENT: '1.0'}
#: How often a broker that is away is looked for before a caller is told so: with what
#: ``[oslo_messaging_rabbit]`` says by default, for 9 seconds.
RETRIES = 3
#: The most calls with a timeout that a process has under way. One that the broker does not take
#: goes on for a while after its caller has given up.
CALLS = 64

Server: typing.TypeAlias = messaging.MessageHandlingServer


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
        self._transport = messaging.get_rpc_transport(
            conf, url=url, allowed_remote_exmods=[exception.__name__]
        )

    def serve(self, topic: str, server: str, manager: object) -> Server:
        """Start to answer calls, in threads, of those methods of the manager that are marked with
        ``oslo_messaging.expose``, and of nothing else that it has.
        """
        made = messaging.get_rpc_server(
            self._transport,
            messaging.Target(server=server, **self._place(topic)),
            [manager],
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

    def agent(
        self, ctxt: context.RequestContext, hostname: str, timeout: int | None = None
    ) -> Peer:
        """The agent of this host."""
        return self._peer(ctxt, timeout, topic=AGENT, server=hostname)

    def _peer(
        self, ctxt: context.RequestContext, timeout: int | None, topic: str, **target: str
    ) -> Peer:
        client = messaging.get_rpc_client(
            self._transport,
            messaging.Target(version=NEEDED[topic], **self._place(topic), **target),
            # Less than the caller waits: what is not answered then is not even sent.
            timeout=None if timeout is None else timeout * 0.85,
            retry=RETRIES,
            version_cap=self._newest[topic],
            serializer=_Serializer(),
            # While there is no queue yet, be told so at once: nobody would ever answer.
            transport_options=messaging.TransportOptions(at_least_once=True),
        )
        return Peer(client, ctxt, self._slots, timeout)

    def _place(self, topic: str) -> dict[str, str]:
        """The topic and its exchange.

        What agents use has an exchange of its own: the broker then needs to give their user no
        permission on the one through which requests are bound.
        """
        own = self._exchange if topic == CONDUCTOR else f'{self._exchange}.agents'
        return {'exchange': own, 'topic': topic}

    def close(self) -> None:
        self._transport.cleanup()


def stop(*servers: Server) -> None:
    """Take no more calls, and finish those in hand."""
    for server in servers:
        server.stop()
        shims.disconnect(server)
    for server in servers:
        server.wait()


class BusAway(messaging.MessageDeliveryFailure):
    """The broker cannot be reached, or takes no messages."""


class Peer:
    """A manager elsewhere: ``peer.bind(requests=...)`` calls its method and waits."""

    def __init__(
        self,
        client: messaging.RPCClient,
        ctxt: context.RequestContext,
        slots: threading.BoundedSemaphore,
        timeout: float | None,
    ) -> None:
        self._client = client
        self._context = ctxt
        self._slots = slots
        self._timeout = timeout

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
        if not self._slots.acquire(timeout=self._timeout * 0.9):
            raise BusAway(f'{CALLS} calls are under way')
        answer: futures.Future[typing.Any] = futures.Future()
        threading.Thread(
            target=self._fulfil, args=(answer, method, kwargs), name=f'call-{method}', daemon=True
        ).start()
        try:
            return answer.result(self._timeout * 0.9)
        except futures.TimeoutError:
            raise BusAway('the broker takes no messages') from None

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
        except kombu.exceptions.OperationalError as error:
            # oslo.messaging lets it through where it has to open one more connection.
            raise BusAway(f'the broker is away: {error}') from error

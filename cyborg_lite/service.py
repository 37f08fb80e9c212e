# SPDX-License-Identifier: Apache-2.0
"""The services, and how processes combine them."""

from __future__ import annotations

import collections.abc
import contextlib
import gc
import logging
import pathlib
import socket
import sys
import threading
import time
import typing

from oslo_config import cfg
from oslo_log import log
import oslo_messaging as messaging
from oslo_reports import guru_meditation_report
from oslo_reports.generators import conf as generator
from oslo_service import service

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import driver
from cyborg_lite import exception
from cyborg_lite import rpc
from cyborg_lite import server
from cyborg_lite import shims
from cyborg_lite import unix
from cyborg_lite.agent import leases
from cyborg_lite.agent import local
from cyborg_lite.agent import manager as agent_manager
from cyborg_lite.api import origin

# A process imports only what it runs: the libraries of the API take 10 MB, and alembic as much.
if typing.TYPE_CHECKING:
    from cyborg_lite.api import app
    from cyborg_lite.db import engine

LOG = log.getLogger(__name__)

#: The maximum number of clients that wait to be accepted.
BACKLOG = 512
#: The timeout of a call of an agent, in seconds.
TIMEOUT = 10
#: The thresholds of the garbage collector, see gc.set_threshold().
GARBAGE = (50_000, 20, 20)
is_loopback = origin.is_loopback


class Running(typing.Protocol):
    """A service that is started and stopped once; a stop finishes the work in progress."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Conductor:
    """Answers calls, in threads."""

    def __init__(self, conf: cfg.ConfigOpts, database: engine.Database, bus: rpc.Peers) -> None:
        from cyborg_lite.conductor import manager

        self._conf = conf
        self._bus = bus
        self._servers: list[rpc.Server] = []
        self.manager = manager.Manager(conf, database, bus.notifier(), self._look)

    def start(self) -> None:
        LOG.info('Conductor %s starts on host %s', options.VERSION, self._conf.host)
        manager = self.manager
        served: dict[str, list[object]] = {
            rpc.CONDUCTOR: [manager],
            rpc.REPORTS: [manager.reports, manager.leases],
        }
        for topic, endpoints in served.items():
            self._servers.append(self._bus.serve(topic, self._conf.host, *endpoints))
        self.manager.outbox.start()
        self.manager.healer.start()

    def stop(self) -> None:
        rpc.stop(*self._servers)
        self.manager.healer.stop()
        self.manager.outbox.stop()

    def _look(self, message: dict[str, typing.Any]) -> None:
        """Have the agent of a host look at its processes; its next reports tell the same."""
        name = message['name']
        try:
            self._bus.agent(context.service(), name, timeout=TIMEOUT).look()
        except (messaging.MessagingException, exception.CyborgError) as error:
            LOG.info('The agent of host %s looks with its next reports: %s', name, error)


class Agent:
    """Reports a host, and answers calls for it."""

    def __init__(self, conf: cfg.ConfigOpts, bus: rpc.Peers, host: driver.Host) -> None:
        self._conf = conf
        self._bus = bus
        self._servers: list[rpc.Server] = []
        self.manager = agent_manager.Manager(conf, bus, host)

    def start(self) -> None:
        LOG.info(
            'Agent %s of host %s starts with the drivers %s',
            *(options.VERSION, self.manager.host.name, ', '.join(self._conf.agent.enabled_drivers)),
        )
        self._servers.append(self._bus.serve(rpc.AGENT, self.manager.host.name, self.manager))
        self.manager.start()

    def stop(self) -> None:
        self.manager.stop()
        rpc.stop(*self._servers)


class Agents:
    """The agents of some hosts, and the socket for processes of this machine."""

    def __init__(
        self, conf: cfg.ConfigOpts, bus: rpc.Peers, hosts: collections.abc.Iterable[driver.Host]
    ) -> None:
        """
        :raises cyborg_lite.exception.Refused: when the socket cannot be made, or the secret not
            be kept.
        """
        self.each = [Agent(conf, bus, host) for host in hosts]
        self._local: local.Server | None = None
        if conf.agent.socket and self.each:
            served = [_leases(bus, agent.manager) for agent in self.each]
            try:
                self._local = local.Server(conf.agent.socket, conf.agent.socket_group, served)
            except OSError as error:
                raise exception.Refused(f'[agent] socket: {exception.line(error)}') from None

    def start(self) -> None:
        for agent in self.each:
            agent.start()
        if self._local is not None:
            self._local.start()

    def stop(self) -> None:
        if self._local is not None:
            self._local.stop()
        for agent in reversed(self.each):
            agent.stop()


def _leases(bus: rpc.Peers, agent: agent_manager.Manager) -> leases.Leases:
    made = leases.Leases(
        *(bus, agent.host, agent.id, agent.reported, lambda: agent.finding),
        *(agent.access, agent.specifications),
    )
    agent.rogues, agent.leases, agent.held = made.rogues, made.all, made.held_by_others
    agent.compared, agent.compare = lambda: made.compared, made.look_again
    agent.observes, made.left = not agent.host.recorded, agent.look_soon
    return made


class Embedded:
    """API, conductor and the agents of some hosts in one process, as threads.

    The code is the same as in separate processes: the database is SQLite, and there is no bus.
    """

    def __init__(
        self, conf: cfg.ConfigOpts, hosts: collections.abc.Iterable[driver.Host] = ()
    ) -> None:
        from cyborg_lite.api import app
        from cyborg_lite.db import engine
        from cyborg_lite.db import migration

        self.conf = conf
        self.database = engine.Database(conf)
        migration.upgrade(self.database.engine)
        self.bus = rpc.Local()
        self.application = app.application(conf, self.database, self.bus)
        agents = Agents(conf, self.bus, hosts)
        self.agents = agents.each
        self._services: list[Running] = [Conductor(conf, self.database, self.bus), agents]

    def end_others(self) -> None:
        """Mark other hosts as down: the agents of an earlier run ended with its process."""
        from cyborg_lite.conductor import healing

        names = [agent.manager.host.name for agent in self.agents]
        healing.end_others(self.database, names)

    def start(self) -> None:
        for each in self._services:
            each.start()

    def stop(self) -> None:
        for each in reversed(self._services):
            each.stop()
        self.bus.close()
        self.database.close()


class Daemon(service.ServiceBase):
    """Runs one of the above in a process of its own, until SIGTERM.

    Upon SIGHUP the launcher reads the options again, and starts another process in its place.
    """

    def __init__(self, make: collections.abc.Callable[[], Running]) -> None:
        """:param make: called in the child process, after the fork."""
        self._make = make
        self._running: Running | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        running = self._make()
        # A stop may have come during the wait for the database.
        if not self._ended.is_set():
            self._running = running
            running.start()
            spare_garbage_collection()

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
        self._ended.set()

    def wait(self) -> None:
        self._ended.wait()

    def reset(self) -> None:
        """Required by the base class; never called where services run in threads."""


def run(conf: cfg.ConfigOpts, make: collections.abc.Callable[[], Running]) -> int:
    """Run a service until it is stopped; returns the exit status."""
    launcher = service.launch(conf, Daemon(make), restart_method='mutate')
    return int(launcher.wait() or 0)


def prepare(conf: cfg.ConfigOpts, name: str | None = None) -> None:
    """Set up the log of a process, and the report of its state on SIGUSR2.

    :param name: the name of the log, if the process runs under a command that is not ours.
    """
    if name:
        shims.name_log(name)
    log.setup(conf, 'cyborg_lite', version=options.VERSION)
    logging.Handler.handle = _handle  # type: ignore[method-assign]
    logging.Handler.handleError = _complain  # type: ignore[method-assign]
    report = guru_meditation_report.TextGuruMeditation
    # By default it shows the global options, of which none is ours.
    report.register_section('Options', generator.ConfigReportGenerator(conf))
    report.setup_autorun(_Version(), conf=conf)


def spare_garbage_collection() -> None:
    """Collect garbage less often, and not among the objects of the start.

    With Python's defaults this took a fifth of the CPU of a list of 1,000; nearly all objects of a
    request are freed without it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    gc.enable()


_HANDLE = logging.Handler.handle


def _handle(self: logging.Handler, record: logging.LogRecord) -> typing.Any:
    """Handle a record, and raise nothing: an error would end a request, or a library's thread.

    The logging module raises if a log file was renamed and cannot be opened again.  It is set on
    the class: a reloaded configuration brings new handlers.
    """
    try:
        return _HANDLE(self, record)
    except Exception:
        self.handleError(record)
        return False


_HANDLE_ERROR = logging.Handler.handleError
#: The interval of messages to the terminal that a log cannot be written, in seconds.
COMPLAINT = 60.0


def _complain(self: logging.Handler, record: logging.LogRecord) -> None:
    """Print one line, once a minute, that the log cannot be written.

    By default the logging module prints a traceback for each record.
    """
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        _HANDLE_ERROR(self, record)
        return
    now, said = time.monotonic(), getattr(self, 'complained', -COMPLAINT)
    if now - said >= COMPLAINT and sys.stderr is not None:
        self.complained = now  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            print(f'The log cannot be written: {error}', file=sys.stderr)


class _Version:
    """The version for the Guru Meditation Report."""

    @staticmethod
    def vendor_string() -> str:
        return 'cyborg_lite'

    @staticmethod
    def product_string() -> str:
        return 'cyborg_lite'

    @staticmethod
    def version_string_with_package() -> str:
        return options.VERSION


def listen(application: app.Wsgi, address: str, port: int, *more: socket.socket) -> server.Server:
    """A web server, bound to its address and not yet serving.

    :param more: further sockets that it serves.
    :raises OSError: when the address cannot be bound.
    """
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    for family, *_, name in found:
        try:
            # The IPv6 wildcard address also accepts IPv4.
            both = family == socket.AF_INET6 and name[0] == '::'
            listener = socket.create_server(
                name[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both
            )
        except OSError as error:
            failed = error
        else:
            return server.Server(application, listener, *more)
    raise failed


@contextlib.contextmanager
def listen_locally(conf: cfg.ConfigOpts) -> collections.abc.Iterator[list[socket.socket]]:
    """The Unix socket of the API, if it has one; its file is removed at the end.

    :raises cyborg_lite.exception.Refused: when it cannot be made.
    """
    if not conf.api.socket:
        yield []
        return
    try:
        listener = unix.listen(conf.api.socket, conf.api.socket_group, BACKLOG)
    except OSError as error:
        raise exception.Refused(f'[api] socket: {exception.line(error)}') from None
    try:
        with listener:
            yield [listener]
    finally:
        unix.remove(listener)


def database_url(state_dir: pathlib.Path, described: bool = False) -> str:
    """The SQLite database in a state directory.

    :param described: whether the hosts come from descriptions: they have a database of their
        own, apart from that of real cards.
    """
    name = 'cyborg_lite.described.sqlite' if described else 'cyborg_lite.sqlite'
    return f'sqlite:///{state_dir / name}'

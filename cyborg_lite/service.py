# SPDX-License-Identifier: Apache-2.0
"""The services, as one process or another puts them together."""

from __future__ import annotations

import collections.abc
from importlib import metadata
import pathlib
import typing
import uuid

from cheroot import wsgi
from oslo_config import cfg
from oslo_log import log
from oslo_reports import guru_meditation_report

from cyborg_lite import driver
from cyborg_lite import rpc
from cyborg_lite.agent import manager as agent_manager
from cyborg_lite.api import app
from cyborg_lite.conductor import manager as conductor_manager
from cyborg_lite.db import engine
from cyborg_lite.db import migration

VERSION = metadata.version('cyborg-lite')


class Embedded:
    """API, conductor and the agents of some hosts in one process, as threads.

    The same code as in many processes: the database is SQLite, the bus hands messages over in
    memory.
    """

    def __init__(
        self, conf: cfg.ConfigOpts, hosts: collections.abc.Iterable[driver.Host] = ()
    ) -> None:
        self.conf = conf
        self.database = engine.Database(conf)
        migration.upgrade(self.database.engine)
        # The transport is one in the whole process, whoever else is in it.
        self.bus = rpc.Bus(conf, 'fake://', exchange=str(uuid.uuid4()))
        self.application = app.application(conf, self.database, self.bus)
        self.conductor = conductor_manager.Manager(conf, self.database)
        self.agents = [agent_manager.Manager(conf, self.bus, host) for host in hosts]
        self._servers: list[typing.Any] = []

    def start(self) -> None:
        self._servers.append(self.bus.serve(rpc.CONDUCTOR, self.conf.host, self.conductor))
        for agent in self.agents:
            self._servers.append(self.bus.serve(rpc.AGENT, agent.host.name, agent))
            agent.start()

    def stop(self) -> None:
        """Finish what is in hand, and take no more."""
        for agent in self.agents:
            agent.stop()
        for server in reversed(self._servers):
            server.stop()
            server.wait()
        self.bus.close()
        self.database.close()


def prepare(conf: cfg.ConfigOpts) -> None:
    """What every process does first: set up its log, and a report of its state for SIGUSR2."""
    log.setup(conf, 'cyborg_lite', version=VERSION)
    guru_meditation_report.TextGuruMeditation.setup_autorun(_Version(), conf=conf)


class _Version:
    """The version as the Guru Meditation Report asks for it."""

    @staticmethod
    def vendor_string() -> str:
        return 'cyborg_lite'

    @staticmethod
    def product_string() -> str:
        return 'cyborg_lite'

    @staticmethod
    def version_string_with_package() -> str:
        return VERSION


def listen(application: app.Wsgi, address: str, port: int) -> wsgi.Server:
    """A web server, bound to its address and not yet serving.

    :raises OSError: when the address cannot be had.
    """
    server = wsgi.Server((address, port), application, numthreads=16, server_name='cyborg-lite')
    server.prepare()
    return server


def database_url(state_dir: pathlib.Path) -> str:
    return f'sqlite:///{state_dir / "cyborg_lite.sqlite"}'

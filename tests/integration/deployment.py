# SPDX-License-Identifier: Apache-2.0
"""The service as separate processes over one database and one bus, for tests that stop them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import typing

import oslo_messaging as messaging

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite.db import engine
from tests.integration import process
from tests.integration import servers

CALLER = context.RequestContext(project_id='p', is_admin=True, overwrite=False)
ROOT = pathlib.Path(__file__).parents[2]
CONF = """
[DEFAULT]
host = {host}
debug = true
transport_url = {bus}
[database]
connection = {database}
[oslo_messaging_rabbit]
rabbit_quorum_queue = true
rabbit_transient_quorum_queue = true
"""


class Deployment:
    """Processes of the service, with access to their database and bus."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        place: pathlib.Path,
        bus: str,
        database: str,
        conf: str,
        failpoints: pathlib.Path | None = None,
    ) -> None:
        """:param failpoints: the directory with the points at which processes die, if any."""
        self._stack = stack
        self._place = place
        self._failpoints = failpoints
        self.file = place / 'cyborg-lite.conf'
        # The name of a temporary directory may have underscores, that of a host may not.
        host = f'host-{place.name}'.replace('_', '')
        text = CONF.format(bus=bus, database=database, host=host)
        self.file.write_text(text + conf)
        process.run('cyborg-lite-dbsync', '--config-file', self.file, 'upgrade')
        self.conf = options.load(files=[str(self.file)])
        self.database = engine.Database(self.conf)
        stack.callback(self.database.close)
        self.bus = rpc.Bus(self.conf)
        stack.callback(self.bus.close)

    def start(self, command: str, *arguments: str, number: int = 0) -> process.Server:
        words = [command, *arguments]
        if self._failpoints:
            words = ['python', '-m', 'tests.integration.failpoints', *words]
        return self._stack.enter_context(
            process.serving(
                *words,
                ready='Selected multiprocessing start method|Booting worker',
                log=self._place / f'{command}-{number}',
                FAILPOINTS=str(self._failpoints),
                CYBORG_LITE_CONFIG_FILE=str(self.file),
                PYTHONPATH=str(ROOT),
            )
        )

    def conductor(self, number: int = 0) -> process.Server:
        """One of several conductors, each with a host name of its own."""
        own = self._place / f'conductor-{number}.conf'
        own.write_text(f'[DEFAULT]\nhost = conductor-{number}\n')
        files = ['--config-file', str(self.file), '--config-file', str(own)]
        return self.start('cyborg-lite-conductor', *files, number=number)

    def answers(self, number: int) -> bool:
        """Whether this conductor answers calls."""
        peer = self.bus._peer(CALLER, 5, topic=rpc.CONDUCTOR, server=f'conductor-{number}')
        try:
            peer.unbind(uuids=[])
        except (messaging.MessagingException, messaging.MessageUndeliverable):
            return False
        return True

    def agent(self) -> process.Server:
        return self.start('cyborg-lite-agent', '--config-file', str(self.file))

    def api(self, tls: servers.Tls | None = None) -> tuple[str, process.Server]:
        """An API with one worker, and its URL."""
        address = f'127.0.0.1:{servers.free_port()}'
        words = ['cyborg_lite.wsgi.api:application', '--bind', address, '--threads', '8']
        if tls:
            words += ['--certfile', str(tls.certificate), '--keyfile', str(tls.key)]
        server = self.start('gunicorn', *words)
        return f'http{"s" if tls else ""}://{address}/v2', server

    def call(self, method: str, timeout: int = 60, **kwargs: typing.Any) -> typing.Any:
        """The answer of a conductor."""
        return getattr(self.bus.conductor(CALLER, timeout), method)(**kwargs)

    def rows(self, kind: type[model.Base]) -> list[typing.Any]:
        with self.database.reader() as session:
            rows = session.query(kind).order_by(kind.id).all()
            session.expunge_all()
            return rows


def workers(server: process.Server) -> list[int]:
    """The worker processes of a service: the command itself only supervises them."""
    tasks = pathlib.Path(f'/proc/{server.process.pid}/task').glob('*/children')
    return [int(pid) for children in tasks for pid in children.read_text().split()]


def kill(server: process.Server) -> None:
    """Kill a service with its supervisor, like a power cut."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(process.PATIENCE)

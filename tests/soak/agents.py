# SPDX-License-Identifier: Apache-2.0
"""The agents of many machines in one process, each like ``cyborg-lite-agent`` on one host."""

from __future__ import annotations

import pathlib
import sys

from oslo_config import cfg

from cyborg_lite import conf as options
from cyborg_lite import rpc
from cyborg_lite import service
from cyborg_lite import worker
from tests.soak import machines

#: How often the names of machines are checked, in seconds.
LOOK = 0.5


class Agents:
    """Starts and stops the agents; the agent of a renamed machine is restarted."""

    def __init__(self, conf: cfg.ConfigOpts, place: pathlib.Path) -> None:
        self._conf = conf
        self._bus = rpc.Bus(conf)
        self._machines = [machines.Machine(path) for path in sorted((place / 'hosts').iterdir())]
        self._running: dict[str, tuple[str, service.Agent]] = {}
        self._worker = worker.Worker('rename', self._follow)

    def start(self) -> None:
        self._follow()
        self._worker.start()

    def _follow(self) -> float:
        """Run an agent of each machine under its present name."""
        for machine in self._machines:
            name, agent = self._running.get(machine.id, ('', None))
            host = machine.host
            if host.name == name:
                continue
            if agent is not None:
                agent.stop()
                del self._running[machine.id]
            if host.name:
                started = service.Agent(self._conf, self._bus, host)
                self._running[machine.id] = host.name, started
                started.start()
        return LOOK

    def stop(self) -> None:
        self._worker.stop()
        self._worker.join()
        for _, agent in self._running.values():
            agent.stop()


def main() -> int:
    """``agents PLACE --config-file FILE``: the agents of the machines in that directory."""
    _, place, *arguments = sys.argv
    conf = options.load(arguments)
    service.prepare(conf)
    return service.run(conf, lambda: Agents(conf, pathlib.Path(place)))

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-conductor``: stores the reports of agents, and decides; any number can run."""

from __future__ import annotations

from oslo_config import cfg

from cyborg_lite import rpc
from cyborg_lite import service
from cyborg_lite import startup
from cyborg_lite.cmd import daemon
from cyborg_lite.db import engine


def main() -> int:
    return daemon.run(
        'cyborg-lite-conductor',
        _make,
        *(startup.database, startup.bus, startup.notifications),
        *(startup.placing, startup.quota, startup.peers),
    )


def _make(conf: cfg.ConfigOpts) -> service.Running:
    return service.Conductor(conf, engine.Database(conf), rpc.Bus(conf))

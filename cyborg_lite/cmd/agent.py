# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-agent``: reports the accelerators of its host; one runs on each host."""

from __future__ import annotations

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite import rpc
from cyborg_lite import service
from cyborg_lite import startup
from cyborg_lite.cmd import daemon


def main() -> int:
    return daemon.run('cyborg-lite-agent', _make, startup.bus, startup.socket, startup.access)


def _make(conf: cfg.ConfigOpts) -> service.Running:
    return service.Agents(conf, rpc.Bus(conf), [driver.Host.local(conf.host)])

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-agent``: reports the accelerators of its host; one runs on each host."""

from __future__ import annotations

import functools
import sys

from oslo_config import cfg

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite import rpc
from cyborg_lite import service


def main() -> int:
    try:
        conf = options.load(sys.argv[1:])
    except cfg.Error as error:
        # Before the launcher is there, which would start it again and again.
        sys.exit(f'cyborg-lite-agent: {error}')
    return service.run(conf, functools.partial(_make, conf))


def _make(conf: cfg.ConfigOpts) -> service.Running:
    return service.Agent(conf, rpc.Bus(conf), driver.Host.local(conf.host))

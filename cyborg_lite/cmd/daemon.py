# SPDX-License-Identifier: Apache-2.0
"""The start of a service in a process of its own."""

from __future__ import annotations

import collections.abc
import functools
import sys

from oslo_config import cfg

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import service
from cyborg_lite import startup


def run(
    name: str,
    make: collections.abc.Callable[[cfg.ConfigOpts], service.Running],
    *checks: collections.abc.Callable[[cfg.ConfigOpts], None],
) -> int:
    """Run a service until it is stopped; returns the exit status.

    :param checks: the checks of the service: see cyborg_lite.startup.
    """
    try:
        conf = options.load(sys.argv[1:])
        service.prepare(conf)
        startup.check(conf, *checks)
    except (cfg.Error, exception.Refused) as error:
        # Exit before the launcher runs, which would restart the service again and again.
        sys.exit(f'{name}: {error}')
    return service.run(conf, functools.partial(make, conf))

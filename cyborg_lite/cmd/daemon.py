# SPDX-License-Identifier: Apache-2.0
"""How a service starts in a process of its own."""

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
    """Run the service that is made of the configuration, until it is told to stop; returns the exit
    status.

    :param checks: of what the service needs: see cyborg_lite.startup.
    """
    try:
        conf = options.load(sys.argv[1:])
        service.prepare(conf)
        startup.check(conf, *checks)
    except (cfg.Error, exception.Refused) as error:
        # Before the launcher is there, which would start it again and again.
        sys.exit(f'{name}: {error}')
    return service.run(conf, functools.partial(make, conf))

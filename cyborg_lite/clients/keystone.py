# SPDX-License-Identifier: Apache-2.0
"""The client of Keystone: it reads unified limits, by oslo.limit.

Only usage is ours: oslo.limit reads the limits, and the conductor counts under its own lock.
"""

from __future__ import annotations

import collections.abc
import threading
import typing

from keystoneauth1 import loading
from oslo_config import cfg

from cyborg_lite import exception

#: The group of its options, as other services have it.
GROUP = 'oslo_limit'
#: The defaults of some, by name: our type in the catalogue, and in seconds what is without a bound.
_DEFAULTS = {'endpoint_service_type': 'accelerator', 'timeout': 20}


class Limits:
    """The unified limits of this service."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._enforcer: typing.Any = None
        self._making = threading.Lock()

    def defaults(self) -> dict[str, int]:
        """The registered limits: of projects without limits of their own, by resource.

        :raises cyborg_lite.exception.LimitsAway: when Keystone does not say them.
        """
        return self._ask(lambda enforcer: enforcer.get_registered_limits(None))

    def of(self, project: str) -> dict[str, int]:
        """The limits of a project of its own, by resource.

        :raises cyborg_lite.exception.LimitsAway: when Keystone does not say them.
        """
        return self._ask(lambda enforcer: enforcer.get_project_limits(project, None))

    def _ask(self, question: collections.abc.Callable[[typing.Any], typing.Any]) -> dict[str, int]:
        try:
            return {str(name): int(limit) for name, limit in question(self._connect())}
        except Exception as error:  # of keystoneauth, openstacksdk, oslo.limit, or a strange answer
            raise exception.LimitsAway(reason=exception.line(error)[:500]) from error

    def _connect(self) -> typing.Any:
        with self._making:
            if self._enforcer is None:
                self._enforcer = _enforcer(self._conf)
            return self._enforcer


def register(conf: cfg.ConfigOpts) -> None:
    """Register the options of oslo.limit.

    :raises ImportError: when it is not installed.
    """
    from oslo_limit import opts

    loading.register_auth_conf_options(conf, GROUP)
    loading.register_session_conf_options(conf, GROUP)
    loading.register_adapter_conf_options(conf, GROUP, include_deprecated=False)
    [(_, listed)] = opts.list_opts()
    endpoint = [opt for opt in listed if opt.dest.startswith('endpoint_')]
    conf.register_opts([opt for opt in endpoint if opt.dest not in conf[GROUP]], group=GROUP)
    for name, value in _DEFAULTS.items():
        conf.set_default(name, value, group=GROUP)


def is_of_system(conf: cfg.ConfigOpts) -> bool:
    """Whether the user of the options has a token of the whole system.

    To others Keystone shows no limits of projects, and answers as if there were none.
    """
    loading.load_auth_from_conf_options(conf, GROUP)
    section = conf[conf[GROUP].auth_section or GROUP]
    return bool(getattr(section, 'system_scope', None) == 'all')


def _enforcer(conf: cfg.ConfigOpts) -> typing.Any:
    # It loads openstacksdk, which takes a second.
    from oslo_limit import limit

    register(conf)
    # It reads the options of the process, of which none is ours.
    limit.CONF = conf
    return limit.Enforcer(lambda project, names: dict.fromkeys(names, 0), cache=False)

# SPDX-License-Identifier: Apache-2.0
"""The options; an example of a read is ``conf.agent.report_interval``.

:func:`load` makes a ConfigOpts, which is passed as an argument.  Our code never reads a global
one, so that tests and several services in one process have their own.
"""

from __future__ import annotations

import collections.abc
from importlib import metadata
import os
import re
import socket
import typing

from keystoneauth1 import loading
from oslo_config import cfg
from oslo_config import types
from oslo_db import options as db_options
from oslo_log import log
from oslo_middleware import cors
from oslo_policy import opts as policy_options
from oslo_reports import opts as report_options

from cyborg_lite.conf import agent
from cyborg_lite.conf import api
from cyborg_lite.conf import conductor

VERSION = metadata.version('cyborg-lite')

DEFAULT_OPTS = [
    cfg.HostAddressOpt(
        'host',
        default=socket.gethostname(),
        sample_default='<the host name of this machine>',
        help='The name of this host in reports. It is the first part of the name of each '
        'resource provider, so a change makes new providers. Any name works without Placement. '
        "With Placement it must be the name of nova-compute's compute node "
        '(``hypervisor_hostname``), below which the providers are made.',
    ),
]

PCI_OPTS = [
    cfg.MultiStrOpt(
        'device_spec',
        default=[],
        help='PCI devices that the pci driver reports, each a JSON object: ``vendor_id`` and '
        '``product_id`` (four hexadecimal digits), ``class_id`` (two to six), ``address`` (a '
        'pattern such as 0000:3b:*.*), and the reported values: ``resource_class`` (a standard '
        'one such as PGPU, or any name, which is normalised as in Nova: dsa becomes CUSTOM_DSA; '
        'CUSTOM_PCI by default), ``traits`` (a list), ``type`` (PCI by default) and ``model`` '
        '(any text). Can be given many times; a device that matches any of them is reported. An '
        'invalid value does not affect the others: the driver is degraded and names it. If '
        'another driver also finds a device, the first of them in ``[agent] enabled_drivers`` '
        'owns it.',
    ),
]

QUOTA_OPTS = [
    cfg.StrOpt(
        'driver',
        default='database',
        choices=[
            ('database', 'Administrators set limits through the API: ``/v2/quotas``'),
            (
                'keystone',
                'Keystone keeps them as unified limits of this service. Needs the section '
                '[oslo_limit], whose user has the role reader on the system',
            ),
        ],
        help='Who keeps the limits of projects: set the same for the API and all conductors. '
        'Either way usage is counted here.',
    ),
    cfg.IntOpt(
        'cache_time',
        default=30,
        min=1,
        max=3600,
        help='With ``driver = keystone``: how long a conductor uses limits that it has read, in '
        'seconds. A changed limit holds at the latest after this time.',
    ),
]

UPGRADE_OPTS = [
    cfg.StrOpt(
        service,
        help=f'The maximum version of the RPC API for calls to {service}s. Pin it to that of '
        'the old release, such as 1.0, before the first service is upgraded, and remove the pin '
        'after the last. The default is the version of this release.',
    )
    for service in ('conductor', 'agent')
]

_GROUPS: dict[str | None, collections.abc.Sequence[cfg.Opt]] = {
    None: DEFAULT_OPTS,
    'api': api.OPTS,
    'agent': agent.OPTS,
    'conductor': conductor.OPTS,
    'pci': PCI_OPTS,
    'quota': QUOTA_OPTS,
    'upgrade_levels': UPGRADE_OPTS,
}


#: The services that we call; a service without auth_type in its group is not used.
_CLIENTS = {
    'placement': {'service_type': 'placement', 'valid_interfaces': ['internal', 'public']},
    'nova': {'service_type': 'compute', 'valid_interfaces': ['internal', 'public']},
}
#: The timeout of calls to them, in seconds; keystoneauth has none by default.
_CLIENT_TIMEOUT = 20


def new(**defaults: typing.Any) -> cfg.ConfigOpts:
    """All options, without values.

    :param defaults: new defaults, by ``group__option``.
    """
    conf = cfg.ConfigOpts()
    for group, opts in _GROUPS.items():
        conf.register_opts(opts, group=group)
    conf.register_opts(db_options.database_opts, group='database')
    for group, defaults_ in _CLIENTS.items():
        loading.register_auth_conf_options(conf, group)
        loading.register_session_conf_options(conf, group)
        loading.register_adapter_conf_options(conf, group)
        conf.set_default('timeout', _CLIENT_TIMEOUT, group=group)
        for option, value in defaults_.items():
            conf.set_default(option, value, group=group)
    cors.set_defaults(
        allow_headers=['Content-Type', 'OpenStack-API-Version', 'X-Auth-Token'],
        expose_headers=['OpenStack-API-Version', 'X-OpenStack-Request-ID'],
        allow_methods=['GET', 'POST', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS'],
    )
    log.register_options(conf)
    policy_options.set_defaults(conf)
    report_options.set_defaults(conf)
    for name, value in defaults.items():
        group, _, option = name.rpartition('__')
        conf.set_default(option, value, group=group or None)
    return conf


def read(conf: cfg.ConfigOpts, args: collections.abc.Sequence[str], **more: typing.Any) -> None:
    """Read files and arguments into options.

    :param more: of oslo.config's call.
    :raises oslo_config.cfg.Error: when one cannot be read.
    """
    try:
        conf(args, project='cyborg_lite', **more)
    except OSError as error:
        raise cfg.Error(f'{error.filename}: {error.strerror}') from None
    except UnicodeDecodeError as error:
        # The value is not shown: it may be a password.
        before = error.object[: error.start].decode().split('\n')
        name = before[-1].partition('=')[0].strip()[:80]
        raise cfg.Error(
            f'line {len(before)} of a configuration file ({name!r}) is not UTF-8: byte '
            f'0x{error.object[error.start]:02x}'
        ) from None


def load(
    args: collections.abc.Sequence[str] = (),
    files: list[str] | None = None,
    **defaults: typing.Any,
) -> cfg.ConfigOpts:
    """The configuration: defaults, then files, then command line arguments.

    :param files: configuration files; None to search the usual places.
    :raises oslo_config.cfg.Error: when a file or argument cannot be read, or a value is
        invalid.
    """
    conf = new(**defaults)
    read(conf, args, version=VERSION, default_config_files=files)
    # oslo.config checks a value when it is first read.
    for group, opts in _GROUPS.items():
        for opt in opts:
            _read(conf[group] if group else conf, group or 'DEFAULT', opt.dest)
    return conf


def check_values(conf: cfg.ConfigOpts) -> None:
    """Also read the values of libraries' options, which takes most of the time of a start.

    :raises oslo_config.cfg.Error: when one is invalid; the error is one line with the section.
    """
    for name in conf:
        section = _read(conf, 'DEFAULT', name)
        if isinstance(section, cfg.ConfigOpts.GroupAttr):
            for option in section:
                _read(section, name, option)


def _read(values: typing.Any, group: str, name: str) -> typing.Any:
    try:
        return values[name]
    except ValueError as error:
        source = re.search("detail='([^']+)'", str(error))
        where = f'{source[1]}: ' if source else ''
        opts = _GROUPS.get(None if group == 'DEFAULT' else group, ())
        expected = [_expected(opt) for opt in opts if opt.dest == name]
        reason = str(error).rpartition(' is not valid: ')[2]
        for python, plain in _PLAIN.items():
            reason = reason.replace(python, plain)
        wanted = f'expected {expected[0]}' if expected else reason
        given = f', not {_given(source[1], group, name)!r}' if source and expected else ''
        raise cfg.ConfigFileValueError(f'{where}[{group}] {name}: {wanted}{given}') from None


#: Python's errors of values, and our texts for them.
_PLAIN = {
    'invalid literal for int() with base 10:': 'expected a whole number, not',
    'could not convert string to float:': 'expected a number, not',
    'Unexpected boolean value': 'expected true or false, not',
    'Invalid Boolean value:': 'expected true or false, not',
}


def _expected(opt: cfg.Opt) -> str:
    """A description of the values of an option."""
    kind: typing.Any = opt.type
    if isinstance(kind, types.Integer):
        least = '' if kind.min is None else f' from {kind.min}'
        return f'a whole number{least}' + ('' if kind.max is None else f' to {kind.max}')
    if getattr(kind, 'choices', None):
        return f'one of {", ".join(kind.choices)}'
    if isinstance(kind, types.URI):
        return f'a URL that begins with {" or ".join(f"{each}://" for each in kind.schemes or ())}'
    words: dict[typing.Any, str] = {
        types.Boolean: 'true or false',
        types.HostAddress: 'a host name or address',
    }
    return words.get(type(kind), 'another value')


def _given(source: str, group: str, name: str) -> str:
    """The value of an option as text, from a file or a variable of the environment."""
    if source in os.environ:
        return os.environ[source]
    sections: dict[str, dict[str, list[str]]] = {}
    cfg.ConfigParser(source, sections).parse()
    return next(
        (values[-1] for key, values in sections.get(group, {}).items()
         if key.replace('-', '_') == name),
        '',
    )  # fmt: skip


def names() -> dict[str, set[str]]:
    """The names of our options by group, except DEFAULT, which also has options of libraries."""
    return {group: {opt.dest for opt in opts} for group, opts in _GROUPS.items() if group}


def list_opts() -> list[tuple[str | None, collections.abc.Sequence[cfg.Opt]]]:
    """Our options by group, for oslo-config-generator."""
    return list(_GROUPS.items())


def list_client_opts() -> list[tuple[cfg.OptGroup, collections.abc.Sequence[cfg.Opt]]]:
    """The options of keystoneauth for each service that we call, for oslo-config-generator.

    It also has the options that Nova needs to call us: without them no server gets an accelerator.
    """
    return [
        *((_described(name), _client_opts(name)) for name in _CLIENTS),
        (cfg.OptGroup('service_user', help=_SERVICE_USER), _service_user_opts()),
    ]


_SERVICE_USER = (
    'For nova.conf: Nova reads this section, and cyborg_lite does not. With it Nova sends the '
    'service token that it needs to bind. The user needs the role service.'
)


def _service_user_opts() -> list[cfg.Opt]:
    """The options of keystonemiddleware and keystoneauth in Nova, with the required value."""
    return [
        cfg.BoolOpt(
            'send_service_user_token',
            default=True,
            help="Whether Nova sends a service token along with the user's token.",
        ),
        *loading.get_auth_common_conf_options(),
        *loading.get_auth_plugin_conf_options('password'),
    ]


def _described(client: str) -> cfg.OptGroup:
    nova = (
        ' Nova binds and unbinds with a service token only: [service_user] of nova.conf has '
        'send_service_user_token = true.'
    )
    about = f'The client of {client.capitalize()}; without auth_type it is not used.'
    return cfg.OptGroup(client, help=about + (nova if client == 'nova' else ''))


def _client_opts(client: str) -> list[cfg.Opt]:
    """The options of keystoneauth for a client, with our defaults, and those of a password."""
    defaults = _CLIENTS[client] | {'timeout': _CLIENT_TIMEOUT}
    opts = [
        *loading.get_auth_common_conf_options(),
        *loading.get_auth_plugin_conf_options('password'),
        *loading.get_session_conf_options(),
        *loading.get_adapter_conf_options(include_deprecated=False),
    ]
    for opt in opts:
        opt.default = defaults.get(opt.dest, opt.default)
    return opts

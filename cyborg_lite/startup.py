# SPDX-License-Identifier: Apache-2.0
"""Checks before a service starts.  Each failure is one line that says what to do."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import grp
from importlib import metadata
import logging
import os
import pathlib
import ssl
import typing

import amqp
import kombu
from oslo_config import cfg
from oslo_log import log
import oslo_messaging as messaging
from oslo_messaging import opts as messaging_options
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import exception

if typing.TYPE_CHECKING:
    from cyborg_lite.db import engine

LOG = log.getLogger(__name__)

#: Without the first everybody may be an administrator, and without the second each user is: a
#: misspelt name must not cause that.
GUARDS = ('auth_strategy', 'http_basic_auth_project_file')
#: The timeout of connections to the database and the broker, in seconds.
PATIENCE = 5
#: The package of each database driver, by the extra of ours that installs it.
EXTRAS = {'mysql': 'mysql', 'mariadb': 'mysql', 'postgresql': 'postgresql'}


def check(
    conf: cfg.ConfigOpts, *checks: collections.abc.Callable[[cfg.ConfigOpts], None]
) -> list[str]:
    """Run the checks of a service, and warn of options that do not exist.

    :returns: the warnings, which are logged.
    :raises cyborg_lite.exception.Refused: when the service would not work, or might be open to
        all.
    """
    # Otherwise the forked process reads an invalid value, exits, and is restarted endlessly.
    for group, opts in messaging_options.list_opts():
        conf.register_opts(opts, group=group)
    options.check_values(conf)
    unknown = list(unknown_options(conf))
    for text, meant in unknown:
        if meant == GUARDS[1] or (meant == GUARDS[0] and conf.api.auth_strategy == 'noauth'):
            raise exception.Refused(text)
    warnings = [text for text, _ in unknown]
    for text in warnings:
        LOG.warning(text)
    for each in checks:
        each(conf)
    return warnings


def connection(conf: cfg.ConfigOpts) -> sa.URL:
    """The URL of the database, whose driver is installed."""
    if not conf.database.connection:
        raise exception.Refused(f'[database] connection is not set ({_sources(conf)})')
    try:
        url = sa.make_url(conf.database.connection)
        url.get_dialect().import_dbapi()
    except (sa.exc.SQLAlchemyError, ValueError):
        # The value is not shown: it may have a password.
        raise exception.Refused(
            '[database] connection: expected a URL such as postgresql+psycopg://USER@HOST/NAME'
        ) from None
    except ImportError as error:
        extra = EXTRAS.get(url.get_backend_name())
        hint = f": run pip install 'cyborg-lite[{extra}]'" if extra else ''
        raise exception.Refused(
            f'the driver of the database is not installed ({error}){hint}'
        ) from None
    return url


@contextlib.contextmanager
def _arguments() -> collections.abc.Iterator[None]:
    """Refuse a URL whose arguments its driver does not take: each driver says so in its way."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        raise exception.Refused(
            f'[database] connection cannot be used: its driver says {type(error).__name__}: '
            f'{exception.line(error)}'
        ) from None


def silence_database() -> None:
    """Have oslo.db log no errors, for a command that prints each of them in one line itself."""
    logging.getLogger('oslo_db').setLevel(logging.CRITICAL + 1)


def opened(conf: cfg.ConfigOpts, *, create: bool = True) -> engine.Database:
    """The database, for a command.

    :param create: whether SQLite may create its file.
    :raises cyborg_lite.exception.Refused: when its URL cannot be used.
    """
    from cyborg_lite.db import engine

    url = connection(conf)
    if not create:
        _refuse_no_file(url)
    with _arguments():
        database = engine.Database(conf)
        database.engine.connect().close()
        return database


def _refuse_no_file(url: sa.URL) -> None:
    """Refuse a file of SQLite that does not exist: to open it would create it."""
    file = url.database if url.get_backend_name() == 'sqlite' else None
    # What is in memory, and what is named by a URI, has no path here.
    if file and file != ':memory:' and not file.startswith('file:') and not os.path.exists(file):
        raise exception.Refused(f'[database] connection: there is no file {file}')


def placing(conf: cfg.ConfigOpts) -> None:
    """Check that the placing policy of allocations is installed."""
    name = conf.conductor.placing
    known = sorted({each.name for each in metadata.entry_points(group='cyborg_lite.placing')})
    if name not in known:
        raise exception.Refused(
            f'[conductor] placing is {name!r}: expected one of {", ".join(known)}'
        )


def quota(conf: cfg.ConfigOpts) -> None:
    """Check that limits can be read from Keystone, if they are kept there."""
    if conf.quota.driver != 'keystone':
        return
    # A service that keeps limits itself needs neither.
    from cyborg_lite.clients import keystone

    try:
        keystone.register(conf)
    except ImportError as error:
        raise exception.Refused(
            f'[quota] driver is keystone, and oslo.limit is not installed ({error}): run pip '
            "install 'cyborg-lite[limits]'"
        ) from None
    # With a section of another name, keystoneauth registers no auth_type in this one.
    if not (conf[keystone.GROUP].auth_section or conf[keystone.GROUP].auth_type):
        raise exception.Refused(
            '[quota] driver is keystone, and [oslo_limit] auth_type is not set: set it and the '
            'credentials of a user with the role reader on the system'
        )
    _complete(conf, keystone.GROUP)
    if not keystone.is_of_system(conf):
        raise exception.Refused(
            '[oslo_limit] system_scope is not all: Keystone would not show the limits of projects'
        )


def database(conf: cfg.ConfigOpts) -> None:
    """Check that the database has the tables of this release, or of a later one.

    An unreachable database is not an error: the service waits for it.
    """
    # An agent has no database.
    from cyborg_lite.db import migration

    url = connection(conf)
    try:
        revision = _revision(url)
    except sa.exc.SQLAlchemyError as error:
        reason = exception.line(error)
        LOG.warning('The database cannot be reached yet, it is tried again: %s', reason)
        return
    if revision is None:
        raise exception.Refused('the database has no tables: run cyborg-lite-dbsync upgrade')
    if migration.is_older(revision):
        raise exception.Refused(
            f'the database is of an older release (revision {revision}, this one needs '
            f'{migration.head()}): run cyborg-lite-dbsync upgrade'
        )
    if revision != migration.head():
        LOG.warning('The database is of a newer release (revision %s)', revision)


def socket(conf: cfg.ConfigOpts) -> None:
    """Check that the socket of the agent can be made, if one is configured."""
    if not conf.agent.socket:
        return
    place = pathlib.Path(conf.agent.socket).parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise exception.Refused(
            f'[agent] socket: {place} is no directory that this user may write: make it, or let '
            f'systemd make it by RuntimeDirectory={place.name}'
        )
    if conf.agent.socket_group:
        try:
            grp.getgrnam(conf.agent.socket_group)
        except KeyError:
            raise exception.Refused(
                f'[agent] socket_group: there is no group {conf.agent.socket_group}: make it with '
                f'groupadd {conf.agent.socket_group}'
            ) from None


def access(conf: cfg.ConfigOpts) -> None:
    """Check that the agent can change the access to device nodes, if it is configured to."""
    if conf.agent.device_access == 'advisory':
        return
    if os.geteuid() != 0:
        raise exception.Refused(
            '[agent] device_access is acl: only root can close device nodes. Run the agent as '
            'root, or set it to advisory'
        )
    if not conf.agent.socket:
        raise exception.Refused(
            '[agent] device_access is acl, and [agent] socket is not set: nobody could open a '
            'device'
        )


def bus(conf: cfg.ConfigOpts) -> None:
    """Check that a broker is configured, and that it accepts this service's credentials.

    An unreachable broker is not an error: the service waits for it.
    """
    where = conf.get_location('transport_url')
    # oslo.messaging would wait for a broker on this host.
    if not conf.transport_url or (where and where.location is cfg.Locations.opt_default):
        raise exception.Refused(f'[DEFAULT] transport_url is not set ({_sources(conf)})')
    _broker(conf, '[DEFAULT] transport_url', conf.transport_url)


def notifications(conf: cfg.ConfigOpts) -> None:
    """Check the drivers of notifications, and their broker if they have one of their own.

    oslo.messaging ignores a driver that does not exist.
    """
    given = conf.oslo_messaging_notifications
    known = metadata.entry_points(group='oslo.messaging.notify.drivers').names
    for name in filter(None, given.driver):
        if name not in known:
            raise exception.Refused(
                f'[oslo_messaging_notifications] driver: expected one of '
                f'{", ".join(sorted(known))}, not {name!r}'
            )
    if given.transport_url:
        _broker(conf, '[oslo_messaging_notifications] transport_url', given.transport_url)


def _transport(conf: cfg.ConfigOpts, option: str, text: str) -> messaging.TransportURL:
    """The URL of a transport, whose driver is installed."""
    try:
        url = messaging.TransportURL.parse(conf, text)
        drivers = metadata.entry_points(group='oslo.messaging.drivers')
        if url.transport not in drivers.names:
            raise ValueError
        drivers[url.transport].load()
    except (messaging.InvalidTransportURL, ValueError):
        # The value is not shown: it has a password.
        raise exception.Refused(
            f'{option}: expected a URL such as rabbit://USER:PASSWORD@HOST:5672/VHOST, with %2F in '
            'place of a slash in the password'
        ) from None
    except ImportError as error:
        raise exception.Refused(
            f'{option}: the driver {url.transport} is not installed ({error})'
        ) from None
    return url


def _broker(conf: cfg.ConfigOpts, option: str, text: str) -> None:
    """Check that a broker accepts this service's credentials."""
    url = _transport(conf, option, text)
    for host in url.hosts if url.transport in ('rabbit', 'kombu') else ():
        place = f'{host.hostname}:{host.port or 5672}'
        name, vhost = host.username or 'guest', url.virtual_host or '/'
        try:
            _connect(conf, host, vhost)
        except amqp.AccessRefused as error:
            raise exception.Refused(
                f'the broker at {place} refuses user {name} for virtual host {vhost} '
                f'({exception.line(error)}): check the password in {option} with '
                f'rabbitmqctl authenticate_user {name}'
            ) from None
        except amqp.NotAllowed as error:
            raise exception.Refused(
                f'the broker at {place} refuses user {name} for virtual host {vhost} '
                f'({exception.line(error)}): run rabbitmqctl add_vhost {vhost}, if it does not '
                f"exist, and rabbitmqctl set_permissions -p {vhost} {name} '.*' '.*' '.*'"
            ) from None
        except (OSError, amqp.AMQPError) as error:
            LOG.warning(
                'The broker at %s (user %s, virtual host %s) cannot be reached yet, it is tried '
                'again: %s',
                *(place, name, vhost, exception.line(error)),
            )


def _connect(conf: cfg.ConfigOpts, host: messaging.TransportHost, vhost: str) -> None:
    """Open a connection like oslo.messaging, and close it."""
    rabbit = conf.oslo_messaging_rabbit
    files = {
        'ca_certs': rabbit.ssl_ca_file,
        'certfile': rabbit.ssl_cert_file,
        'keyfile': rabbit.ssl_key_file,
    }
    given = {name: file for name, file in files.items() if file}
    verified = {'cert_reqs': ssl.CERT_REQUIRED} if rabbit.ssl_ca_file else {}
    connection: typing.Any = kombu.Connection(  # type: ignore[attr-defined,no-untyped-call]
        hostname=host.hostname,
        port=host.port or 5672,
        userid=host.username,
        password=host.password,
        virtual_host=vhost,
        login_method=rabbit.rabbit_login_method,
        ssl=(given | verified or True) if rabbit.ssl else False,
        connect_timeout=PATIENCE,
    )
    try:
        connection.connect()
    finally:
        connection.release()


def identity(conf: cfg.ConfigOpts) -> None:
    """Check that Keystone is configured, if the API uses it."""
    if conf.api.auth_strategy != 'keystone':
        return
    given = 'keystone_authtoken' in conf.list_all_sections() or any(
        name.startswith('OS_KEYSTONE_AUTHTOKEN__') for name in os.environ
    )
    if not given:
        raise exception.Refused(
            f'[api] auth_strategy is keystone and there is no section [keystone_authtoken] '
            f'({_sources(conf)}): add it, or set auth_strategy to http_basic or noauth'
        )
    _complete(conf, 'keystone_authtoken')


def peers(conf: cfg.ConfigOpts) -> None:
    """Check that the sections of Placement and Nova are complete, or have no credentials.

    Both are optional: a service without credentials is not called.
    """
    for group in ('placement', 'nova'):
        if _has_credentials(conf, group):
            _complete(conf, group)


def _has_credentials(conf: cfg.ConfigOpts, group: str) -> bool:
    # Only a conductor has clients.
    from keystoneauth1 import loading

    loading.register_auth_conf_options(conf, group)
    if conf[group].auth_type or conf[group].auth_section:
        return True
    # Some are required: with them in the configuration itself it could not be read again.
    found = cfg.ConfigOpts()
    found([], default_config_files=_files(conf), default_config_dirs=[])
    opts = loading.get_auth_plugin_conf_options('password')
    found.register_opts(opts, group)
    return any(found[group][opt.dest] for opt in opts)


def _complete(conf: cfg.ConfigOpts, group: str) -> None:
    """Refuse a section for Keystone that lacks something."""
    if lack := _lack(conf, group):
        raise exception.Refused(f'[{group}] cannot be used ({_sources(conf)}): {lack}')


def _lack(conf: cfg.ConfigOpts, group: str) -> str | None:
    """What is missing in a section for Keystone, in words; None if it is complete."""
    # Only an API with Keystone needs it.
    from keystoneauth1 import exceptions
    from keystoneauth1 import loading

    loading.register_auth_conf_options(conf, group)
    try:
        if loading.load_auth_from_conf_options(conf, group) is None:
            return 'auth_type is not set: expected one such as password'
    except exceptions.AuthPluginException as error:
        return exception.line(error)
    section = conf[conf[group].auth_section or group]
    if section.auth_type not in ('password', 'v3password'):
        return None
    # keystoneauth would ask Keystone with what there is, and say that it found no token.
    missing = [
        ' or '.join(names[:2])
        for names in _password_options(section)
        if not any(section.get(name) for name in names)
    ]
    return f'it has no {", no ".join(missing)}' if missing else None


def _password_options(section: typing.Any) -> collections.abc.Iterator[tuple[str, ...]]:
    """The options of a section with a password: it needs one of each tuple.

    The first two of a tuple are the usual ones.
    """
    yield 'username', 'user_id'
    yield ('password',)
    if not section.user_id:
        yield 'user_domain_name', 'user_domain_id', 'default_domain_name', 'default_domain_id'
    yield 'project_name', 'project_id', 'domain_name', 'domain_id', 'trust_id', 'system_scope'
    if section.project_name and not section.project_id:
        yield 'project_domain_name', 'project_domain_id', 'default_domain_name', 'default_domain_id'


#: The checks of a process that has all services, and makes its database itself.
ALONE = placing, quota, identity, access, peers


def unknown_options(conf: cfg.ConfigOpts) -> collections.abc.Iterator[tuple[str, str | None]]:
    """The unknown options in our groups of the files, each with the nearest known one."""
    for file in _files(conf):
        sections: dict[str, dict[str, list[str]]] = {}
        try:
            cfg.ConfigParser(file, sections).parse()
        except (cfg.Error, OSError):
            continue  # the file has changed since the options were read
        ours = options.names()
        for section, given in sections.items():
            if section in ours:
                for name in given:
                    yield from _unknown(file, section, name, ours[section])
            elif group := _nearest(section, ours):
                meant = next((name for name in GUARDS if name in given), None)
                yield f'{file}: there is no section [{section}]. Did you mean [{group}]?', meant


def _unknown(
    file: str, group: str, name: str, names: collections.abc.Collection[str]
) -> collections.abc.Iterator[tuple[str, str | None]]:
    if name.replace('-', '_') not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f' Did you mean {near[0]}?' if near else ''
        yield f'{file}: [{group}] has no option {name}.{hint}', near[0] if near else None


def _nearest(section: str, groups: collections.abc.Iterable[str]) -> str | None:
    """The group of ours whose name a section misspells, if any."""
    return next(iter(difflib.get_close_matches(section, groups, 1, cutoff=0.8)), None)


def _files(conf: cfg.ConfigOpts) -> list[str]:
    directories = [pathlib.Path(each) for each in conf.config_dir or ()]
    more = [str(file) for each in directories for file in sorted(each.glob('*.conf'))]
    return [*(conf.config_file or ()), *more]


def _sources(conf: cfg.ConfigOpts) -> str:
    files = ', '.join(_files(conf))
    return f'read: {files}' if files else 'no configuration file was found: see --config-file'


def _revision(url: sa.URL) -> str | None:
    from cyborg_lite.db import migration

    # SQLite has no server to wait for.
    patience = {} if url.get_backend_name() == 'sqlite' else {'connect_timeout': PATIENCE}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=patience)
    with _arguments():
        connection = engine.connect()
    with connection:
        try:
            revision = migration.version_of(connection)
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            # It is there: to wait would not help.
            raise exception.Refused(
                f'the revision of the database cannot be read: {exception.line(error)}'
            ) from None
        if revision and migration.is_foreign(connection, revision):
            raise exception.Refused(
                f'the database has tables of another program (revision {revision}): name one of '
                'its own in [database] connection'
            )
        return revision

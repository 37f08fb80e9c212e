# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite up``: API, conductor and agents in one process."""

from __future__ import annotations

import argparse
import collections.abc
import contextlib
import fcntl
import gc
import os
import pathlib
import shlex
import signal
import socket
import ssl
import stat
import sys
import threading
import typing

from oslo_config import cfg
from oslo_db import exception as db_exception
from oslo_service import systemd
import sqlalchemy as sa

from cyborg_lite import client
from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite import exception
from cyborg_lite import server
from cyborg_lite import service
from cyborg_lite import startup
from cyborg_lite import unix
from cyborg_lite.agent import access
from cyborg_lite.agent import secret
from cyborg_lite.cmd import introduction
from cyborg_lite.db import migration
from cyborg_lite.driver import host as hosts

#: How long a stop waits for the services, in seconds. Together with the grace period of the web
#: server and the wait of cmd.entry for threads, it stays below the 5 s that a stop may take.
PATIENCE = 1.0


DESCRIPTION = (
    'Finds the accelerators of this machine, or of hosts that were described or recorded, and '
    'gives them out over a REST API until it is interrupted.'
)
EPILOG = (
    f'The shipped host descriptions are in {pathlib.Path(__file__).parents[1] / "hosts"}: copy one '
    'and change it. "python -m pydoc cyborg_lite.driver.description" prints their format, and '
    '"oslo-config-generator --namespace cyborg_lite" prints the options of a configuration file. '
    'The documentation is in doc/source of the source tree.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--host',
        action='append',
        default=[],
        type=_host,
        help=f'a host in place of this machine: one of {", ".join(sorted(hosts.shipped()))}, a '
        'host description (.yaml), or a directory or tarball that holds a recorded sys/; can be '
        'given many times; such hosts have a database of their own',
    )
    parser.add_argument(
        '--socket-only',
        action='store_true',
        help='listen on no port: the API is only served at the Unix socket of [api] socket, '
        'where the kernel names the user of each client',
    )
    parser.add_argument('--port', type=_port, default=6666, help='the port to listen on (6666)')
    parser.add_argument(
        '--bind',
        default='127.0.0.1',
        metavar='ADDRESS',
        help='the address to listen on (127.0.0.1); any other than a loopback address needs '
        'http_basic or keystone as [api] auth_strategy, and TLS',
    )
    parser.add_argument(
        '--tls-cert',
        type=pathlib.Path,
        metavar='FILE',
        help='serve HTTPS with this certificate, and the chain up to its authority (PEM)',
    )
    parser.add_argument(
        '--tls-key',
        type=pathlib.Path,
        metavar='FILE',
        help='the private key of the certificate (PEM, without a passphrase)',
    )
    parser.add_argument(
        '--insecure',
        action='store_true',
        help='let clients send passwords and tokens in plain text over the network',
    )
    parser.add_argument(
        '--state-dir',
        type=pathlib.Path,
        default=pathlib.Path(client.state_dir()),
        help='where the database and the log are kept (%(default)s)',
    )
    parser.add_argument(
        '--long', action='store_true', help='show drivers, UUIDs of devices and reasons, too'
    )
    parser.add_argument('--config-file', action='append', default=[], help='a configuration file')
    parser.set_defaults(run=run)


def _host(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError('expected the name of a host or a file, not nothing')
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f'expected a number from 0 to 65535, not {text!r}')
    return int(text)


def run(arguments: argparse.Namespace) -> None:
    # Until the service runs; what is made before stays.
    gc.disable()
    # The service continues when its terminal is closed.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Nothing needs a stop yet, and an exception would be raised at an arbitrary place.
    _on_signal(_leave)
    tls = _tls(arguments.tls_cert, arguments.tls_key)
    conf = _configure(arguments)
    if arguments.socket_only:
        _refuse_no_socket(conf, tls)
    else:
        _refuse_open_noauth(conf, arguments.bind)
        _refuse_plain_secrets(conf, arguments, tls)
        _warn_of_administrators(conf, arguments.bind)
    found = [hosts.find(spec, arguments.state_dir / 'hosts') for spec in arguments.host]
    _refuse_twins(found)
    with _holding(arguments.state_dir), contextlib.ExitStack() as stack:
        # The agent has its socket before the API: what is refused then must not leave it.
        stack.callback(unix.remove_all)
        embedded = _embedded(conf, found or [driver.Host.local(conf.host)])
        # Listen before anything starts: a used port ends the command here.
        with service.listen_locally(conf) as local:
            web = _listen(embedded, arguments, local)
            _on_signal(lambda *_: web.stop())
            try:
                _start(embedded, web)
                if not web.stopped:
                    introduction.show(embedded, _door(conf, arguments, web), arguments.long)
                web.serve(server.Limits(body=conf.api.max_request_body_size), tls)
            finally:
                _say_stopping()
                web.stop()
                _stop(embedded)


@contextlib.contextmanager
def _holding(state_dir: pathlib.Path) -> collections.abc.Iterator[None]:
    """Lock a state directory: two services with one directory would report the same hosts."""
    descriptor = os.open(state_dir / 'lock', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, 'r+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise exception.Refused(
                f'{state_dir} is in use by process {file.read(20).strip()}: end that first, or '
                'give another --state-dir'
            ) from None
        file.truncate()
        file.write(f'{os.getpid()}\n')
        file.flush()
        yield


def _embedded(conf: cfg.ConfigOpts, found: list[driver.Host]) -> service.Embedded:
    database = startup.connection(conf)
    is_file = database.get_backend_name() == 'sqlite'
    try:
        if not is_file:
            # Its URL may have arguments that its driver does not take.
            startup.opened(conf).close()
        return service.Embedded(conf, found)
    except (sa.exc.SQLAlchemyError, db_exception.DBError, migration.Impossible) as error:
        hint = '. Move the file away to begin anew: what it says of leases is lost then'
        raise exception.Refused(
            f'the database {database} cannot be used: {exception.line(error)}'
            f'{hint if is_file else ""}'
        ) from None


def _listen(
    embedded: service.Embedded, arguments: argparse.Namespace, local: list[socket.socket]
) -> server.Server:
    if arguments.socket_only:
        return server.Server(embedded.application, *local)
    try:
        return service.listen(embedded.application, arguments.bind, arguments.port, *local)
    except OSError as error:
        raise exception.Refused(
            f'cannot listen on {arguments.bind}, port {arguments.port}: '
            f'{error.strerror or error}. Choose others with --bind and --port.'
        ) from None


def _on_signal(handler: typing.Any) -> None:
    """Set the handler of Ctrl-C and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _leave(_number: int, _frame: object) -> None:
    unix.remove_all()
    _say_stopping()
    os._exit(0)


def _say_stopping() -> None:
    # Ctrl-C also ends a program that reads it.
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), b'\nStopping.\n')


def _tls(cert: pathlib.Path | None, key: pathlib.Path | None) -> ssl.SSLContext | None:
    """The TLS context, if HTTPS is requested."""
    if not cert and not key:
        return None
    if not cert or not key:
        raise exception.Refused('--tls-cert and --tls-key need each other')
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for option, file in (('--tls-cert', cert), ('--tls-key', key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise exception.Refused(f'{option} {file}: {error.strerror}') from None
    try:
        # This tells an invalid certificate from an invalid key.
        ssl.create_default_context(cafile=str(cert))
    except ssl.SSLError:
        raise exception.Refused(f'--tls-cert {cert}: expected a certificate in PEM form') from None
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password='')  # nosec B106
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, 'reason', None) == 'KEY_VALUES_MISMATCH':
            raise exception.Refused(
                f'--tls-key {key}: not the key of the certificate {cert}'
            ) from None
        raise exception.Refused(
            f'--tls-key {key}: expected a private key in PEM form, without a passphrase'
        ) from None
    return context


def _configure(arguments: argparse.Namespace) -> cfg.ConfigOpts:
    if set('?%$') & set(str(arguments.state_dir.absolute())):
        # These characters have a meaning in the URL of a database, or in a value of an option.
        raise exception.Refused(
            f'--state-dir {arguments.state_dir}: expected a path without "?", "%" and "$"'
        )
    _keep_private(arguments.state_dir)
    conf = options.load(
        files=arguments.config_file,
        api__auth_strategy='noauth',
        database__connection=service.database_url(
            arguments.state_dir.absolute(), described=bool(arguments.host)
        ),
        log_file=str(arguments.state_dir / 'cyborg-lite.log'),
        api__socket=str(arguments.state_dir.absolute() / client.API_SOCKET),
        agent__socket=str(arguments.state_dir.absolute() / client.SOCKET),
        agent__secret_file=str(arguments.state_dir.absolute() / secret.FILE),
        agent__access_file=str(arguments.state_dir.absolute() / access.FILE),
    )
    conf.set_override('allowed_hosts', [*conf.api.allowed_hosts, arguments.bind], group='api')
    service.prepare(conf)
    for text in startup.check(conf, *startup.ALONE):
        print(f'cyborg-lite: {text}', file=sys.stderr)
    return conf


def _keep_private(directory: pathlib.Path) -> None:
    """Make the database and the log readable for this user only, whatever the directory's mode."""
    # The umask also covers later files: the journal of the database, rotated logs.
    os.umask(0o077)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise exception.Refused(
            f'the state directory {directory} cannot be made: {error.strerror}. Name another one '
            'with --state-dir'
        ) from None
    found = directory.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # A user who may write it could replace the database, the socket or the lock.
        raise exception.Refused(
            f'the state directory {directory} belongs to another user, or others may write it: '
            'name one of your own with --state-dir, or take the right away with "chmod go-w"'
        )
    for file in directory.glob('cyborg[-_]lite.*'):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o600)


def _refuse_open_noauth(conf: cfg.ConfigOpts, address: str) -> None:
    """Refuse an open address without authentication: every client would be administrator."""
    if conf.api.auth_strategy == 'noauth' and not _is_loopback(address):
        raise exception.Refused(
            f'refusing to listen on {address} without authentication: everyone who reaches it '
            'would be administrator. Listen on 127.0.0.1, or set auth_strategy = http_basic in '
            'the [api] section of a --config-file.'
        )


def _refuse_plain_secrets(
    conf: cfg.ConfigOpts, arguments: argparse.Namespace, tls: ssl.SSLContext | None
) -> None:
    """Refuse an open address without TLS: the network could read passwords and tokens."""
    strategy = conf.api.auth_strategy
    if tls or arguments.insecure or _is_loopback(arguments.bind):
        return
    secrets = 'tokens' if strategy == 'keystone' else 'passwords'
    raise exception.Refused(
        f'refusing to listen on {arguments.bind} with {strategy} and without TLS: {secrets} '
        'would cross the network in plain text. Give --tls-cert and --tls-key, or accept the '
        'risk with --insecure.'
    )


def _refuse_no_socket(conf: cfg.ConfigOpts, tls: ssl.SSLContext | None) -> None:
    """Refuse to listen nowhere, and TLS where nothing has it."""
    if not conf.api.socket:
        raise exception.Refused('--socket-only: [api] socket is not set')
    if tls:
        raise exception.Refused('--socket-only: a Unix socket has no TLS: leave out --tls-cert')


def _warn_of_administrators(conf: cfg.ConfigOpts, address: str) -> None:
    api = conf.api
    if api.auth_strategy == 'noauth' and api.socket and api.socket_group:
        print(
            f'cyborg-lite: every user of this machine is an administrator at {address}: give '
            '--socket-only, or set auth_strategy = http_basic in [api]',
            file=sys.stderr,
        )
    if api.auth_strategy != 'http_basic' or api.http_basic_auth_project_file:
        return
    if not _is_loopback(address):
        print(
            f'cyborg-lite: every user of {api.http_basic_auth_user_file} is an administrator: '
            'name a file with their projects and roles in [api] http_basic_auth_project_file',
            file=sys.stderr,
        )


def _is_loopback(address: str) -> bool:
    return address == 'localhost' or service.is_loopback(address)


def _refuse_twins(found: list[driver.Host]) -> None:
    names = [host.name for host in found]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise exception.Refused(f'two hosts have the name {", ".join(twins)}: each needs its own')


def _in_url(address: str) -> str:
    """The address in a URL for clients on this machine."""
    address = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(address, address)  # nosec B104 # noqa: S104
    return f'[{address}]' if ':' in address else address


def _door(
    conf: cfg.ConfigOpts, arguments: argparse.Namespace, web: server.Server
) -> introduction.Door:
    """How a client reaches the API."""
    if arguments.socket_only:
        path = conf.api.socket
        curl = f'curl -s --unix-socket {shlex.quote(path)}'
        return introduction.Door(f'unix://{path}', 'http://localhost', curl, open=False)
    scheme = 'https' if arguments.tls_cert else 'http'
    url = f'{scheme}://{_in_url(arguments.bind)}:{web.bind_addr[1]}'
    noauth = conf.api.auth_strategy == 'noauth'
    return introduction.Door(f'{url}/', url, _curl(conf, arguments), open=noauth)


def _curl(conf: cfg.ConfigOpts, arguments: argparse.Namespace) -> str:
    """The shell command that sends a request."""
    words = {'http_basic': ' -u NAME:PASSWORD', 'keystone': ' -H "X-Auth-Token: $TOKEN"'}
    trusted = f' --cacert {shlex.quote(str(arguments.tls_cert))}' if arguments.tls_cert else ''
    return 'curl -s' + trusted + words.get(conf.api.auth_strategy, '')


def _start(embedded: service.Embedded, web: server.Server) -> None:
    """Start, and wait for the first report of each host, unless a stop comes first."""
    names = ', '.join(agent.manager.host.name for agent in embedded.agents)
    print(f'Looking for accelerators on {names}...', file=sys.stderr)
    embedded.end_others()
    embedded.start()
    # Its sockets are there, and who connects is served once the first report is known.
    systemd.notify_once()
    for agent in embedded.agents:
        while not (agent.manager.reported.wait(0.1) or web.stopped):
            pass
    service.spare_garbage_collection()


def _stop(embedded: service.Embedded) -> None:
    """Stop, with a short wait for work in progress: it may be waiting for a lock."""
    stopping = threading.Thread(target=embedded.stop, name='stop', daemon=True)
    stopping.start()
    stopping.join(PATIENCE)

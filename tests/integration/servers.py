# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ, PostgreSQL and MariaDB for the tests, on loopback ports.

They are Debian's packages: see bindep.txt.  One that is not installed fails the tests.  Each can
be started to take nothing but TLS.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import glob
import os
import pathlib
import shutil
import socket
import tempfile

from tests.integration import process


class Address(str):
    """The URL of a server, and its process."""

    server: process.Server
    #: the variables with which its commands find it
    environ: dict[str, str]

    @classmethod
    def of(cls, server: process.Server, url: str) -> Address:
        made = cls(url)
        made.server = server
        return made


Url = collections.abc.Iterator[Address]


@dataclasses.dataclass(frozen=True)
class Tls:
    """The certificate and key of a server."""

    certificate: pathlib.Path
    key: pathlib.Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _find(*patterns: str) -> str:
    for pattern in patterns:
        for path in sorted(glob.glob(pattern), reverse=True):
            return path
    raise AssertionError(f'{patterns[0]} is not installed: see bindep.txt')


@contextlib.contextmanager
def rabbitmq(place: pathlib.Path, tls: Tls | None = None) -> Url:
    place.mkdir()
    port, distribution, mapper = free_port(), free_port(), free_port()
    environ = {
        'HOME': str(place),  # its cookie
        'RABBITMQ_NODENAME': f'cyborg-lite-{port}@localhost',
        'RABBITMQ_CONFIG_FILE': str(place / 'rabbitmq.conf'),
        'RABBITMQ_DIST_PORT': str(distribution),
        'RABBITMQ_MNESIA_BASE': str(place / 'data'),
        'RABBITMQ_LOG_BASE': str(place / 'log'),
        'RABBITMQ_ENABLED_PLUGINS_FILE': str(place / 'plugins'),
        'ERL_EPMD_ADDRESS': '127.0.0.1',
        'ERL_EPMD_PORT': str(mapper),
    }
    listener = f'listeners.tcp.1 = 127.0.0.1:{port}\n'
    if tls:
        listener = f'listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\n'
        listener += f'ssl_options.certfile = {tls.certificate}\nssl_options.keyfile = {tls.key}\n'
    (place / 'rabbitmq.conf').write_text(listener)
    command = _find('/usr/lib/rabbitmq/bin/rabbitmq-server')
    running = process.serving(
        command, ready='Starting broker.*completed', log=place / 'output', **environ
    )
    try:
        with running as server:
            address = Address.of(server, f'rabbit://guest:guest@127.0.0.1:{port}/')
            address.environ = environ
            yield address
    finally:
        # Erlang's port mapper outlives the broker.
        process.run(shutil.which('epmd'), '-port', str(mapper), '-kill', check=False, **environ)


def administer(broker: Address, text: str) -> None:
    """Run the commands of a page, such as rabbitmqctl, at this broker."""
    path = f'/usr/lib/rabbitmq/bin:{os.environ["PATH"]}'
    process.run(shutil.which('bash'), '-ec', text, **broker.environ | {'PATH': path})


@contextlib.contextmanager
def mariadb(place: pathlib.Path, tls: Tls | None = None) -> Url:
    place.mkdir()
    data, port = place / 'data', free_port()
    # At its start it deletes files that look like its own temporary tables.
    environ = {'TMPDIR': str(place)}
    secure = []
    if tls:
        secure = [f'--ssl-cert={tls.certificate}', f'--ssl-key={tls.key}']
        secure += ['--require-secure-transport']
    process.run(
        _find('/usr/bin/mariadb-install-db'),
        '--no-defaults',
        '--user=root',
        '--auth-root-authentication-method=normal',
        '--skip-test-db',
        f'--datadir={data}',
        **environ,
    )
    running = process.serving(
        _find('/usr/sbin/mariadbd'),
        '--no-defaults',
        '--user=root',
        '--bind-address=127.0.0.1',
        f'--datadir={data}',
        f'--port={port}',
        f'--socket={place}/socket',
        *secure,
        '--max-connections=200',
        # A commit does not wait for the disk: the data are not needed after a crash of the
        # machine.
        *('--innodb-flush-log-at-trx-commit=2', '--innodb-doublewrite=0', '--sync-binlog=0'),
        ready='ready for connections',
        log=place / 'output',
        **environ,
    )
    with running as server:
        client = _find('/usr/bin/mariadb')
        process.run(
            client, '--no-defaults', f'--socket={place}/socket', '-e', 'CREATE DATABASE cyborg'
        )
        url = f'mysql+pymysql://root@127.0.0.1:{port}/cyborg?charset=utf8mb4'
        yield Address.of(server, url)


@contextlib.contextmanager
def postgresql(place: pathlib.Path, tls: Tls | None = None) -> Url:
    place.mkdir()
    port = free_port()
    bin_ = pathlib.Path(_find('/usr/lib/postgresql/*/bin/initdb')).parent
    # It refuses to run as root, and only the owner can read pytest's directories.
    as_user = [_find('/usr/sbin/runuser'), '-u', 'postgres', '--'] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as data:
        if as_user:
            shutil.chown(data, 'postgres')
        process.run(
            *as_user,
            bin_ / 'initdb',
            *('-D', data, '-A', 'trust', '-U', 'cyborg', '-E', 'UTF8', '--locale', 'C.UTF-8'),
        )
        running = process.serving(
            *as_user,
            bin_ / 'postgres',
            *('-D', data, '-p', str(port), '-k', '', '-c', 'listen_addresses=127.0.0.1'),
            *('-c', 'max_connections=200', '-c', 'fsync=off'),
            *(_require_tls(pathlib.Path(data), tls) if tls else ()),
            ready='ready to accept connections',
            log=place / 'output',
        )
        with running as server:
            environ = {'PGHOST': '127.0.0.1', 'PGPORT': str(port), 'PGUSER': 'cyborg'}
            process.run(bin_ / 'createdb', 'cyborg', **environ)
            url = f'postgresql+psycopg://cyborg@127.0.0.1:{port}/cyborg'
            yield Address.of(server, url)


def _require_tls(data: pathlib.Path, tls: Tls) -> list[str]:
    """Make PostgreSQL accept only TLS; it only reads a key that it owns."""
    owner = data.stat().st_uid
    for source, name in ((tls.certificate, 'server.crt'), (tls.key, 'server.key')):
        shutil.copyfile(source, data / name)
        shutil.chown(data / name, owner)
        (data / name).chmod(0o600)
    (data / 'pg_hba.conf').write_text('hostssl all all 127.0.0.1/32 trust\n')
    return ['-c', 'ssl=on']


DATABASES = {'mariadb': mariadb, 'postgresql': postgresql}

# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-dbsync``: upgrade a database to this release, or import one."""

from __future__ import annotations

import argparse
import sys

from oslo_config import cfg
from oslo_db import exception as db_exception
from oslo_log import log
import prettytable
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import startup
from cyborg_lite.cmd import output
from cyborg_lite.db import data_migration
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from cyborg_lite.db import upstream


@output.prepared
def main() -> int:
    try:
        arguments = parser().parse_args()
    except UnicodeDecodeError:
        parser().error('a file of arguments is not UTF-8')
    try:
        return int(arguments.run(arguments, _database(arguments)) or 0)
    except (
        cfg.Error,
        db_exception.DBError,
        exception.CyborgError,
        sa.exc.SQLAlchemyError,
        exception.Refused,
        ImportError,  # the driver of the imported database is absent
    ) as error:
        if arguments.debug:
            raise
        print(f'cyborg-lite-dbsync: {exception.line(error)}', file=sys.stderr)
        return 1


def _database(arguments: argparse.Namespace) -> engine.Database:
    more = ['--config-dir', arguments.config_dir] if arguments.config_dir else []
    conf = options.load([*more, *(['--debug'] if arguments.debug else [])], arguments.config_file)
    if arguments.debug:
        log.setup(conf, 'cyborg_lite')
    else:
        startup.silence_database()
    return startup.opened(conf, create=arguments.run is not _version)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='cyborg-lite-dbsync',
        description=__doc__.replace('`', ''),
        # Secrets can be in a file: other users see the arguments of processes.
        fromfile_prefix_chars='@',
    )
    parser.add_argument('--version', action='version', version=options.VERSION)
    parser.add_argument('--config-file', action='append', help='a configuration file')
    parser.add_argument('--config-dir', help='a directory of configuration files')
    parser.add_argument('--debug', action='store_true', help='show each step, and tracebacks')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    upgrade = commands.add_parser('upgrade', help='apply the migrations that are missing')
    upgrade.set_defaults(run=_upgrade)
    version = commands.add_parser('version', help='print the revision of the database')
    version.set_defaults(run=_version)
    revision = commands.add_parser('revision', help='write a migration to the current models')
    revision.add_argument('-m', '--message', required=True, help='what the migration does')
    revision.set_defaults(run=_revision)
    online = commands.add_parser(
        'online_data_migrations',
        help='bring rows of an older release to this one, while the service runs',
        description='Exits with 0 when nothing remains, with 1 when more does, with 2 for errors.',
    )
    online.add_argument(
        '--max-count', type=_count, default=sys.maxsize, help='how many rows at most (all)'
    )
    online.set_defaults(run=_migrate)
    import_ = commands.add_parser(
        'import',
        help='fill an empty database from one of OpenStack Cyborg',
        description='Reads a database of OpenStack Cyborg, 2024.1 to 2026.2, whose services are '
        'stopped. All is written in one transaction, or nothing.',
    )
    import_.add_argument(
        '--from', dest='source', required=True, metavar='URL', help='of the database to read'
    )
    import_.add_argument('--project', help='the project of requests that have none')
    import_.set_defaults(run=_import)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f'expected a number from 1 on, not {text!r}')
    return int(text)


def _upgrade(arguments: argparse.Namespace, database: engine.Database) -> None:
    migration.upgrade(database.engine)
    _version(arguments, database)


def _revision(arguments: argparse.Namespace, database: engine.Database) -> None:
    migration.revision(database.engine, arguments.message)
    _version(arguments, database)


def _version(_arguments: argparse.Namespace, database: engine.Database) -> None:
    print(migration.version(database.engine) or 'empty')


def _migrate(arguments: argparse.Namespace, database: engine.Database) -> int:
    progress = data_migration.run(database, arguments.max_count)
    table = prettytable.PrettyTable(('Migration', 'Found', 'Done'), align='l')
    table.add_rows([[name, now.found, now.done] for name, now in progress.items()])
    print(table)
    errors = [f'{name}: {now.error}' for name, now in progress.items() if now.error]
    for error in errors:
        print(f'cyborg-lite-dbsync: {error}', file=sys.stderr)
    if errors:
        return 2
    return int(any(now.done < now.found for now in progress.values()))


def _import(arguments: argparse.Namespace, database: engine.Database) -> None:
    outcome = upstream.take_over(database, arguments.source, arguments.project)
    table = prettytable.PrettyTable(('Table', 'Rows', 'Imported'), align='l')
    table.add_rows([[name, *counts] for name, counts in outcome.counts.items()])
    print(table)
    for note in outcome.notes:
        print(note)

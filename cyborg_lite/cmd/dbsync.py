# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-dbsync``: bring a database to the schema of this release."""

from __future__ import annotations

import argparse
import sys

from oslo_config import cfg
from oslo_db import exception as db_exception

from cyborg_lite import conf as options
from cyborg_lite.db import engine
from cyborg_lite.db import migration


def main() -> int:
    parser = argparse.ArgumentParser(prog='cyborg-lite-dbsync', description=__doc__)
    parser.add_argument('--config-file', action='append', help='a configuration file')
    commands = parser.add_subparsers(required=True, dest='command', metavar='COMMAND')
    commands.add_parser('upgrade', help='apply the migrations that are missing')
    commands.add_parser('version', help='print the revision of the database')
    revision = commands.add_parser('revision', help='write a migration to what the models say')
    revision.add_argument('-m', '--message', required=True, help='what the migration does')
    arguments = parser.parse_args()
    try:
        database = engine.Database(options.load(files=arguments.config_file))
        _run(arguments, database)
    except (cfg.Error, db_exception.DBError) as error:
        print(f'cyborg-lite-dbsync: {error}', file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace, database: engine.Database) -> None:
    if arguments.command == 'upgrade':
        migration.upgrade(database.engine)
    elif arguments.command == 'revision':
        migration.revision(database.engine, arguments.message)
    print(migration.version(database.engine) or 'empty')

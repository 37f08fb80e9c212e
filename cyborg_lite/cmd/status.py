# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-status``: check before an upgrade whether it can succeed, and audit."""

from __future__ import annotations

import functools
import sys
import typing

from oslo_config import cfg
from oslo_db import exception as db_exception
from oslo_upgradecheck import common_checks
from oslo_upgradecheck import upgradecheck
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import startup
from cyborg_lite.cmd import audit
from cyborg_lite.cmd import output
from cyborg_lite.db import data_migration
from cyborg_lite.db import migration

#: The errors of a database that cannot be read.
UNUSABLE = db_exception.DBError, sa.exc.SQLAlchemyError, exception.Refused, cfg.Error


class Checks(upgradecheck.UpgradeCommands):
    """``upgrade check``: 0 without findings, 1 for warnings, 2 for failures."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__()
        self.conf = conf

    def _check_database(self) -> upgradecheck.Result:
        try:
            database = startup.opened(self.conf, create=False)
            version, head = migration.version(database.engine), migration.head()
        except UNUSABLE as error:
            return upgradecheck.Result(
                upgradecheck.Code.FAILURE, f'The database cannot be read: {exception.line(error)}'
            )
        if version != head:
            return upgradecheck.Result(
                upgradecheck.Code.WARNING,
                f'The database is at {version or "no revision"}, this release needs '
                f'{head}: run cyborg-lite-dbsync upgrade.',
            )
        return upgradecheck.Result(upgradecheck.Code.SUCCESS)

    def _check_data_migrations(self) -> upgradecheck.Result:
        try:
            with startup.opened(self.conf, create=False).reader() as session:
                remaining = data_migration.remaining(session)
        except UNUSABLE:
            # The schema is not of this release: the first check reports it.
            return upgradecheck.Result(
                upgradecheck.Code.WARNING, 'What remains to be migrated cannot be read.'
            )
        if remaining:
            rows = ', '.join(f'{name}: {count}' for name, count in remaining.items())
            return upgradecheck.Result(
                upgradecheck.Code.WARNING,
                f'Rows of an older release remain ({rows}): run cyborg-lite-dbsync '
                'online_data_migrations.',
            )
        return upgradecheck.Result(upgradecheck.Code.SUCCESS)

    def _check_policy_json(self) -> upgradecheck.Result:
        return common_checks.check_policy_json(self, self.conf)

    _upgrade_checks = (
        ('Database schema', _check_database),
        ('Online data migrations', _check_data_migrations),
        ('Policy file JSON to YAML migration', (_check_policy_json, {})),
    )


@output.prepared
def main() -> int:
    if sys.argv[1:] == ['--version']:
        print(options.VERSION)
        return 0
    conf = options.new()
    commands = cfg.SubCommandOpt('command', handler=functools.partial(add_commands, conf))
    conf.register_cli_opt(commands)
    try:
        options.read(conf, sys.argv[1:])
    except cfg.Error as error:
        print(f'cyborg-lite-status: {exception.line(error)}', file=sys.stderr)
        return upgradecheck.Code.FAILURE
    startup.silence_database()
    # It reads --json from there.
    upgradecheck.CONF = conf
    return int(upgradecheck.run(conf))


def add_commands(conf: cfg.ConfigOpts, subparsers: typing.Any) -> None:
    """Add the commands to a parser: upgradecheck.main would add its own alone."""
    upgrade = subparsers.add_parser('upgrade', help='say what stands in the way of an upgrade')
    upgrade.add_argument('check', choices=['check'])
    upgrade.add_argument('--json', action='store_true', help='print JSON, not a table')
    upgrade.set_defaults(action_fn=Checks(conf).check)
    audit.add_to(subparsers).set_defaults(action_fn=lambda: audit.run(conf))

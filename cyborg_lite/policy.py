# SPDX-License-Identifier: Apache-2.0
"""Authorization: the table of rules, and the enforcer that reads it.

The personas are OpenStack's: reader, member and manager of the project, admin, and service for
calls between services.  No rule allows a caller without credentials.
"""

from __future__ import annotations

import collections.abc
import os
import pathlib
import threading
import time
import typing

from oslo_config import cfg
from oslo_log import log
from oslo_policy import policy

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import shims

LOG = log.getLogger(__name__)

ADMIN = 'role:admin'
READER = 'rule:project_reader_or_admin'
MANAGER = 'rule:project_manager_or_admin'
MEMBER_OR_SERVICE = 'rule:project_member_or_service'

#: How often the directories of configuration files are searched for a file of rules, in seconds.
#: A found file is checked for changes in each request.
SEARCH = 1.0

_PROJECT = 'project_id:%(project_id)s'

_BASE = [
    policy.RuleDefault(name, check, description=description)
    for name, check, description in (
        (
            'project_reader_or_admin',
            f'{ADMIN} or (role:reader and {_PROJECT})',
            'Readers of the project, and administrators.',
        ),
        (
            'project_manager_or_admin',
            f'{ADMIN} or (role:manager and {_PROJECT})',
            'Managers of the project, and administrators.',
        ),
        # Keystone's implied roles make an administrator a member.
        (
            'project_member_or_service',
            f'role:service or (role:member and {_PROJECT})',
            'Members of the project, and services that act for their users.',
        ),
    )
]

#: The rules: name, default, the requests that the rule guards, description.
_TABLE = (
    ('device_profile:get_all', READER, ('GET /v2/device_profiles',), 'List device profiles.'),
    ('device_profile:get_one', READER, ('GET /v2/device_profiles/{id}',), 'Show a device profile.'),
    ('device_profile:create', ADMIN, ('POST /v2/device_profiles',), 'Create a device profile.'),
    ('device_profile:delete', ADMIN,
     ('DELETE /v2/device_profiles', 'DELETE /v2/device_profiles/{id}'),
     'Delete device profiles.'),
    ('device_profile:check', READER, ('POST /v2/device_profiles/{id}/check',),
     'Check whether a device profile could be allocated now.'),
    ('arq:get_all', READER, ('GET /v2/accelerator_requests',), 'List accelerator requests.'),
    ('arq:get_one', READER,
     ('GET /v2/accelerator_requests/{uuid}', 'GET /v2/accelerator_requests/{uuid}/history'),
     'Show an accelerator request, and its history.'),
    ('arq:create', MEMBER_OR_SERVICE, ('POST /v2/accelerator_requests',),
     'Create the accelerator requests of a device profile.'),
    ('arq:delete', MEMBER_OR_SERVICE,
     ('DELETE /v2/accelerator_requests', 'DELETE /v2/accelerator_requests/{uuid}'),
     'Delete accelerator requests.'),
    ('arq:update', MEMBER_OR_SERVICE,
     ('PATCH /v2/accelerator_requests', 'PATCH /v2/accelerator_requests/{uuid}'),
     'Bind or unbind accelerator requests.'),
    ('device:get_all', MANAGER, ('GET /v2/devices',), 'List devices.'),
    ('device:get_one', MANAGER, ('GET /v2/devices/{uuid}', 'GET /v2/devices/{uuid}/health'),
     'Show a device, and the history of its health.'),
    ('device:enable', ADMIN, ('POST /v2/devices/{uuid}/enable',), 'Enable a device.'),
    ('device:disable', ADMIN, ('POST /v2/devices/{uuid}/disable',), 'Disable a device.'),
    ('device:delete', ADMIN, ('DELETE /v2/devices/{uuid}',),
     'Delete a device that is missing from its host.'),
    ('deployable:get_all', MANAGER, ('GET /v2/deployables',), 'List deployables.'),
    ('deployable:get_one', MANAGER, ('GET /v2/deployables/{uuid}',), 'Show a deployable.'),
    ('deployable:program', ADMIN,
     ('PATCH /v2/deployables/{uuid}/program', 'PATCH /v2/deployables/{uuid}/program/{again}'),
     'Program a deployable.'),
    ('accelerator:get_all', MANAGER, ('GET /v2/accelerators',),
     'List accelerators, with their hosts and holders.'),
    ('accelerator:get_one', MANAGER, ('GET /v2/accelerators/{uuid}',), 'Show an accelerator.'),
    ('accelerator:summary', READER, ('GET /v2/accelerators/summary',),
     'Count all and free accelerators by class, model and traits.'),
    ('host:get_all', MANAGER, ('GET /v2/hosts',), 'List hosts.'),
    ('host:get_one', MANAGER, ('GET /v2/hosts/{name}',), 'Show a host.'),
    ('host:update', ADMIN, ('PATCH /v2/hosts/{name}',), 'Rename a host that is down.'),
    ('host:delete', ADMIN, ('DELETE /v2/hosts/{name}',), 'Delete a host that is down.'),
    ('instance:free', ADMIN, ('DELETE /v2/instances/{uuid}',),
     'Free the accelerators of an instance that does not exist any more.'),
    ('quota:get_all', ADMIN, ('GET /v2/quotas',), 'List the limits of all projects.'),
    ('quota:get_one', READER, ('GET /v2/quotas/{project_id}',),
     'Show the limits and the usage of a project.'),
    ('quota:update', ADMIN, ('PATCH /v2/quotas/{project_id}',), 'Set limits of a project.'),
    ('quota:delete', ADMIN, ('DELETE /v2/quotas/{project_id}',),
     'Delete the limits of a project.'),
    ('usage:get_all', READER, ('GET /v2/usages',),
     'Show usage: of the own project, or of all for callers who may list accelerators.'),
    ('allocation:get_all', READER, ('GET /v2/allocations',), 'List allocations.'),
    ('allocation:get_one', READER,
     ('GET /v2/allocations/{id}', 'GET /v2/allocations/{id}/deliveries'),
     'Show an allocation, and how a workload uses its accelerators.'),
    ('allocation:create', MEMBER_OR_SERVICE, ('POST /v2/allocations',),
     'Allocate accelerators, or check whether this is possible.'),
    ('allocation:priority', ADMIN, ('POST /v2/allocations',),
     'Set a priority above 0 in the queue, before other projects.'),
    ('allocation:update', MEMBER_OR_SERVICE, ('PATCH /v2/allocations/{id}',),
     'Renew the lease of an allocation.'),
    ('allocation:delete', MEMBER_OR_SERVICE, ('DELETE /v2/allocations/{id}',),
     'Release an allocation.'),
    ('attribute:get_all', MANAGER, ('GET /v2/attributes',), 'List attributes.'),
    ('attribute:get_one', MANAGER, ('GET /v2/attributes/{uuid}',), 'Show an attribute.'),
    ('attribute:create', ADMIN, ('POST /v2/attributes',), 'Add an attribute to a deployable.'),
    ('attribute:delete', ADMIN, ('DELETE /v2/attributes/{uuid}',), 'Delete an attribute.'),
)  # fmt: skip


def list_rules() -> list[policy.RuleDefault]:
    """Every rule with its default, for the enforcer and for oslopolicy-sample-generator."""
    documented = [
        policy.DocumentedRuleDefault(
            name=f'cyborg:{name}',
            check_str=check,
            scope_types=['project'],
            description=description,
            operations=[
                {'method': method, 'path': path}
                for method, path in (request.split() for request in requests)
            ],
        )
        for name, check, requests, description in _TABLE
    ]
    return _BASE + documented


class Broken(Exception):
    """The operator's rules are invalid: the message names the file and the reason."""


class Enforcer(policy.Enforcer):
    """Rules that operators can change while the service runs, atomically.

    The reload of oslo.policy has three faults: it refuses every request while a file is broken, it
    falls back to our defaults for a file that was deleted, and other threads see no rules for a
    moment.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__(conf)
        shims.cache_check_signatures()
        self._loading = threading.Lock()
        self._stamps: object = None
        self._searched = -SEARCH
        self._known: dict[str, pathlib.Path] = {}
        self.register_defaults(list_rules())

    def roles(self, rule: str) -> list[str]:
        """The roles that a rule names, in its order; each may need the project of the target."""
        found = _roles(self.rules.get(rule), self.rules)
        return list(dict.fromkeys(found))

    def load_rules(self, force_reload: bool = False) -> None:
        """Load the rules of the files if a file has changed and all are valid.

        :raises Broken: when they are invalid, and no earlier rules are loaded.
        """
        with self._loading:
            self._find()
            files = self._files()
            stamps = [(file, _stamp(file)) for file in files]
            if stamps == self._stamps and not force_reload:
                return
            try:
                self._replace(files)
            except Broken as error:
                if not self.rules:
                    raise
                LOG.error('%s. The rules from before stay in force.', error)
            self._stamps = stamps

    def _find(self) -> None:
        """Find the file and the directories; a deleted one keeps its path.

        :raises Broken: when the configured file never existed.
        """
        now = time.monotonic()
        if now - self._searched < SEARCH:
            return
        self._searched = now
        for path in (self.conf.oslo_policy.policy_file, *self.conf.oslo_policy.policy_dirs):
            if found := self.conf.find_file(path):
                self._known[path] = pathlib.Path(found)
        name = self.conf.oslo_policy.policy_file
        said = self.conf.get_location('policy_file', 'oslo_policy')
        if name not in self._known and said is not None and said.location.is_user_controlled:
            raise Broken(f'Policy file {name} does not exist: see [oslo_policy] policy_file')

    def _files(self) -> list[pathlib.Path]:
        """The files, in the order of precedence."""
        main = self._known.get(self.conf.oslo_policy.policy_file)
        files = [main] if main else []
        for path in self.conf.oslo_policy.policy_dirs:
            if path in self._known:
                files += _listed(self._known[path])
        return files

    def _replace(self, files: list[pathlib.Path]) -> None:
        said: dict[str, str] = {}
        where: dict[str, pathlib.Path] = {}
        for file in files:
            rules = _read(file)
            said |= rules
            where |= dict.fromkeys(rules, file)
        checks = policy.Rules.from_dict(said, self.default_rule)
        for name, check in checks.items():
            # oslo.policy turns a rule that it cannot parse into "!", which means nobody.
            if str(check) == '!' and said[name] != '!':
                raise Broken(f'Policy file {where[name]} is broken: rule {name} cannot be parsed')
        for default in self.registered_rules.values():
            checks.setdefault(default.name, default.check)
        self._refuse_loose_ends(checks, where)
        self.file_rules = {name: policy.RuleDefault(name, rule) for name, rule in said.items()}
        self.set_rules(checks, overwrite=True, use_conf=True)
        self._warn_of_unknown(where)

    def _refuse_loose_ends(self, checks: policy.Rules, where: dict[str, pathlib.Path]) -> None:
        """Refuse a rule that refers to an unknown rule, or to itself: it could never allow."""
        other = policy.Enforcer(self.conf, rules=checks, use_conf=False)
        try:
            other.check_rules(raise_on_violation=True)
        except policy.InvalidDefinitionError as error:
            files = ', '.join(sorted({str(file) for file in where.values()}))
            raise Broken(f'Policy file {files} is broken: {exception.line(error)}') from None

    def _warn_of_unknown(self, where: dict[str, pathlib.Path]) -> None:
        """Warn of unknown rules: a misspelt rule has no effect."""
        used = {name for check in self.rules.values() for name in _references(check)}
        for name in sorted(set(where) - set(self.registered_rules) - used - {self.default_rule}):
            LOG.warning(
                'Policy file %s has the unknown rule %s: it has no effect', where[name], name
            )


def _listed(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files of a directory; the directory itself if it cannot be listed: reading it fails."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return [directory]
    files = [directory / name for name in names if not name.startswith('.')]
    return [file for file in files if not file.is_dir()]


def _stamp(file: pathlib.Path) -> tuple[int, ...] | str:
    """A stamp that differs after any change of a file, even to an older one."""
    try:
        found = file.stat()
    except OSError as error:
        return type(error).__name__
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: pathlib.Path) -> dict[str, str]:
    try:
        said = policy.parse_file_contents(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Broken(f'Policy file {file} cannot be read: {exception.line(error)}') from None
    if not isinstance(said, dict):
        raise Broken(f'Policy file {file} is broken: expected lines of NAME: RULE')
    for name, rule in said.items():
        if not isinstance(name, str) or not isinstance(rule, str):
            raise Broken(f'Policy file {file} is broken: expected text as the rule {name}')
    return said


def _roles(check: typing.Any, rules: policy.Rules) -> collections.abc.Iterator[str]:
    """The roles that a check names, also by other rules; those of a "not" are left out."""
    if isinstance(check, policy.RuleCheck):
        yield from _roles(rules.get(check.match), rules)
    elif getattr(check, 'kind', None) == 'role':
        yield check.match
    for part in getattr(check, 'rules', ()):
        yield from _roles(part, rules)


def _references(check: typing.Any) -> collections.abc.Iterator[str]:
    """The names of other rules that a rule refers to."""
    if isinstance(check, policy.RuleCheck):
        yield check.match
    for part in getattr(check, 'rules', ()):
        yield from _references(part)
    if inner := getattr(check, 'rule', None):
        yield from _references(inner)


def enforcer(conf: cfg.ConfigOpts | None = None) -> Enforcer:
    """An enforcer with our rules; operators override them in ``[oslo_policy] policy_file``.

    :raises oslo_config.cfg.Error: when the operator's rules are invalid.
    """
    made = Enforcer(conf or options.load())
    try:
        made.load_rules()
    except Broken as error:
        raise cfg.ConfigFileValueError(str(error)) from None
    return made

# SPDX-License-Identifier: Apache-2.0
"""Who may do what: one table of rules, and the enforcer that reads it.

The personas are OpenStack's: reader, member and manager of the project, admin, and service
for calls from one service to another.  No rule holds for a caller without credentials.
"""

from __future__ import annotations

from oslo_config import cfg
from oslo_policy import policy

from cyborg_lite import conf as options

ADMIN = 'role:admin'
READER = 'rule:project_reader_or_admin'
MANAGER = 'rule:project_manager_or_admin'
MEMBER_OR_SERVICE = 'rule:project_member_or_service'

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
        # An administrator is a member by Keystone's implied roles.
        (
            'project_member_or_service',
            f'role:service or (role:member and {_PROJECT})',
            'Members of the project, and services that act for their users.',
        ),
    )
]

#: Rules: name, who may by default, the requests that it guards, what they do.
_TABLE = (
    ('device_profile:get_all', READER, ('GET /v2/device_profiles',), 'List device profiles.'),
    ('device_profile:get_one', READER, ('GET /v2/device_profiles/{id}',), 'Show a device profile.'),
    ('device_profile:create', ADMIN, ('POST /v2/device_profiles',), 'Create a device profile.'),
    ('device_profile:delete', ADMIN,
     ('DELETE /v2/device_profiles', 'DELETE /v2/device_profiles/{id}'),
     'Delete device profiles.'),
    ('arq:get_all', READER, ('GET /v2/accelerator_requests',), 'List accelerator requests.'),
    ('arq:get_one', READER, ('GET /v2/accelerator_requests/{uuid}',),
     'Show an accelerator request.'),
    ('arq:create', MEMBER_OR_SERVICE, ('POST /v2/accelerator_requests',),
     'Create the accelerator requests of a device profile.'),
    ('arq:delete', MEMBER_OR_SERVICE,
     ('DELETE /v2/accelerator_requests', 'DELETE /v2/accelerator_requests/{uuid}'),
     'Delete accelerator requests.'),
    ('arq:update', MEMBER_OR_SERVICE,
     ('PATCH /v2/accelerator_requests', 'PATCH /v2/accelerator_requests/{uuid}'),
     'Bind or unbind accelerator requests.'),
    ('device:get_all', MANAGER, ('GET /v2/devices',), 'List devices.'),
    ('device:get_one', MANAGER, ('GET /v2/devices/{uuid}',), 'Show a device.'),
    ('device:enable', ADMIN, ('POST /v2/devices/{uuid}/enable',), 'Enable a device.'),
    ('device:disable', ADMIN, ('POST /v2/devices/{uuid}/disable',), 'Disable a device.'),
    ('deployable:get_all', MANAGER, ('GET /v2/deployables',), 'List deployables.'),
    ('deployable:get_one', MANAGER, ('GET /v2/deployables/{uuid}',), 'Show a deployable.'),
    ('deployable:program', ADMIN,
     ('PATCH /v2/deployables/{uuid}/program', 'PATCH /v2/deployables/{uuid}/program/{again}'),
     'Program a deployable.'),
    ('host:get_all', MANAGER, ('GET /v2/hosts',), 'List hosts.'),
    ('host:get_one', MANAGER, ('GET /v2/hosts/{name}',), 'Show a host.'),
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


def enforcer(conf: cfg.ConfigOpts | None = None) -> policy.Enforcer:
    """An enforcer with our rules; operators override them in ``[oslo_policy] policy_file``."""
    made = policy.Enforcer(conf or options.load())
    made.register_defaults(list_rules())
    return made

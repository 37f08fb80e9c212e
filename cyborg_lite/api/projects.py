# SPDX-License-Identifier: Apache-2.0
"""Whether a project exists that a client names."""

from __future__ import annotations

from keystoneauth1 import adapter
from keystoneauth1 import exceptions
from keystoneauth1 import session
from oslo_log import log

from cyborg_lite import accounts
from cyborg_lite import exception
from cyborg_lite.api import members
from cyborg_lite.api import rest
from cyborg_lite.api import userfiles

LOG = log.getLogger(__name__)

#: The timeout of a request to Keystone, in seconds.
TIMEOUT = 10


def check(project: str) -> None:
    """Refuse a project that does not exist, if that can be known.

    With Keystone the token of the caller asks for it, as in Nova and Cinder: if the token may not
    see projects, or Keystone does not answer, the project is accepted.

    :raises cyborg_lite.exception.Invalid: when it does not exist.
    """
    conf = rest.call().conf
    file = conf.api.http_basic_auth_project_file
    if conf.api.auth_strategy == 'keystone':
        known, where = _is_in_keystone(project), 'in Keystone: expected the id of a project'
    elif conf.api.auth_strategy == 'http_basic' and file:
        try:
            found = members.Members(file).projects()
        except userfiles.Broken as error:
            LOG.warning('Project %s is not checked: %s', project, error)
            return
        where = f'in {file}: expected one of {", ".join(sorted(found))}'
        # Users of this machine have projects, too, where the API has a Unix socket.
        users = conf.conductor.user_projects if conf.api.socket else None
        known = project in found or (users is not None and accounts.is_of_user(project, users))
    else:
        return
    if not known:
        raise exception.Invalid(
            reason=f'Invalid project_id: there is no project {project} {where[:500]}.'
        )


def _is_in_keystone(project: str) -> bool:
    """Whether Keystone has a project, or does not say that it has none."""
    if not project.strip('.'):
        # In a URL these are steps of the path.
        return False
    call = rest.call()
    if call.token is None:
        # At the Unix socket no caller has one.
        return True
    tokens = call.conf.keystone_authtoken
    connection = session.Session(
        verify=False if tokens.insecure else tokens.cafile or True,
        cert=(tokens.certfile, tokens.keyfile) if tokens.certfile and tokens.keyfile else None,
        timeout=TIMEOUT,
        redirect=False,
    )
    identity = adapter.Adapter(
        connection, service_type='identity', min_version='3.0', max_version='3.latest',
        interface=['internal', 'public'], region_name=tokens.region_name, auth=call.token,
    )  # fmt: skip
    try:
        status = identity.get(f'/projects/{project}', raise_exc=False).status_code
    except exceptions.ClientException as error:
        LOG.warning('Project %s is not checked: %s', project, exception.line(error))
        return True
    if status not in (200, 404):
        LOG.warning('Project %s is not checked: Keystone answers %s', project, status)
    return bool(status != 404)

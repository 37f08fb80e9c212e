# SPDX-License-Identifier: Apache-2.0
"""A Keystone for the tests, with the personas of two projects."""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import textwrap
import typing
import warnings

from keystoneauth1 import adapter
from keystoneauth1 import service_token
from keystoneauth1 import session
from keystoneauth1.identity import v3
from openstack import connection

from tests.integration import process

PASSWORD = 'not-to-be-found-in-a-log'
REGION = 'RegionOne'
PERSONAS = ('admin', 'manager', 'member', 'reader', 'service')
PROJECTS = ('a', 'b')
#: The timeout of a request, in seconds.
TIMEOUT = 60


class Cloud:
    """The catalogue and the users, which are named by persona and project."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._sessions: dict[tuple[str, str | None], session.Session] = {}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.identity = connection.Connection(session=self.session('admin', 'admin')).identity
        self.projects: dict[str, str] = {}
        self._populate()

    def _populate(self) -> None:
        roles = {role.name: role.id for role in self.identity.roles()}
        for project in PROJECTS:
            made = self.identity.create_project(name=project, domain_id='default')
            self.projects[project] = made.id
            for persona in PERSONAS:
                user = self._user(f'{persona}-{project}')
                self.identity.assign_project_role_to_user(made.id, user, roles[persona])
        self.identity.assign_system_role_to_user(self._user('system-admin'), roles['admin'], 'all')

    def _user(self, name: str) -> str:
        made = self.identity.create_user(name=name, password=PASSWORD, domain_id='default')
        return str(made.id)

    def hire(self, name: str) -> None:
        """Make a user of another service: with the role service in the project service."""
        [role] = [role.id for role in self.identity.roles() if role.name == 'service']
        project = self.identity.find_project('service') or self.identity.create_project(
            name='service', domain_id='default'
        )
        self.identity.assign_project_role_to_user(project, self._user(name), role)

    def register(self, service_type: str, url: str) -> None:
        """Put a service in the catalogue, and replace an older one of its type."""
        for old in self.identity.services(type=service_type):
            self.identity.delete_service(old)
        service = self.identity.create_service(name=service_type, type=service_type)
        self.identity.create_endpoint(
            service_id=service.id, interface='public', region_id=REGION, url=url
        )
        # Older tokens have a catalogue without it.
        self._sessions.clear()

    def session(self, user: str, project: str | None) -> session.Session:
        """A session of a user in a project; in the whole system if there is none."""
        if (user, project) not in self._sessions:
            auth = v3.Password(self.url, **self.credentials(user, project))
            self._sessions[user, project] = session.Session(auth=auth, timeout=TIMEOUT)
        return self._sessions[user, project]

    @staticmethod
    def credentials(user: str, project: str | None) -> dict[str, typing.Any]:
        who = {'username': user, 'password': PASSWORD, 'user_domain_id': 'default'}
        if project is None:
            return who | {'system_scope': 'all'}
        return who | {'project_name': project, 'project_domain_id': 'default'}

    def token(self, persona: str, project: str = 'a') -> str:
        return str(self._persona(persona, project).get_token())

    def api(self, persona: str, project: str = 'a', service: str | None = None) -> adapter.Adapter:
        """The accelerator service for a persona.

        :param service: the persona of project b whose service token is sent.
        """
        found = self._persona(persona, project)
        if service:
            vouching = service_token.ServiceTokenAuthWrapper(
                user_auth=found.auth, service_auth=self._persona(service, 'b').auth
            )
            found = session.Session(auth=vouching, timeout=TIMEOUT)
        return adapter.Adapter(found, service_type='accelerator', raise_exc=False)

    def _persona(self, persona: str, project: str) -> session.Session:
        if persona == 'system-admin':
            return self.session(persona, None)
        return self.session(f'{persona}-{project}', project)

    def environ(self, persona: str, project: str = 'a') -> dict[str, str]:
        """The environment of a command line client."""
        given = self.credentials(f'{persona}-{project}', project) | {
            'auth_url': self.url,
            'identity_api_version': '3',
            'region_name': REGION,
        }
        return {f'OS_{name.upper()}': value for name, value in given.items()}

    def section(self, name: str, **more: str) -> str:
        """A section of a configuration file for this Keystone."""
        given = self.credentials('service-b', 'b')
        given |= {'auth_type': 'password', 'auth_url': self.url, 'region_name': REGION}
        lines = [f'{key} = {value}' for key, value in (given | more).items()]
        return '\n'.join([f'[{name}]', *lines, ''])


@contextlib.contextmanager
def cloud(place: pathlib.Path) -> collections.abc.Iterator[Cloud]:
    """A Keystone with its own database, served as it is installed anywhere."""
    place.mkdir()
    file = place / 'keystone.conf'
    file.write_text(
        textwrap.dedent(f"""
        [database]
        connection = sqlite:///{place}/keystone.sqlite
        [fernet_tokens]
        key_repository = {place}/tokens
        [fernet_receipts]
        key_repository = {place}/receipts
        [identity]
        password_hash_rounds = 4
        """)
    )

    def manage(*words: str) -> None:
        process.run('keystone-manage', '--config-file', file, *words)

    manage('db_sync')
    keys = pathlib.Path(place, 'tokens')
    owner = [keys.parent.owner(), keys.parent.group()]
    manage('fernet_setup', '--keystone-user', owner[0], '--keystone-group', owner[1])
    server = process.application(
        'keystone.wsgi.api',
        threads=1,  # SQLite allows one writer at a time
        log=place / 'keystone.log',
        OS_KEYSTONE_CONFIG_FILES=str(file),
    )
    with server as keystone:
        url = f'{keystone.ready[1]}/v3'
        manage(
            'bootstrap',
            *('--bootstrap-password', PASSWORD),
            *('--bootstrap-public-url', url),
            *('--bootstrap-internal-url', url),
            *('--bootstrap-region-id', REGION),
        )
        yield Cloud(url)

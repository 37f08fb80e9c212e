# SPDX-License-Identifier: Apache-2.0
"""Tell Nova that the accelerator requests of an instance are resolved; ask it for instances."""

from __future__ import annotations

import collections.abc
import typing

from keystoneauth1 import adapter
from keystoneauth1 import exceptions
from oslo_log import log

from cyborg_lite import exception

LOG = log.getLogger(__name__)

#: the first that knows accelerator-request-bound
MICROVERSION = '2.82'


class Refused(Exception):
    """Nova could not listen: it is to be told again later."""


class Nova:
    """As much of Nova's API as we need."""

    def __init__(self, client: adapter.Adapter) -> None:
        self._client = client

    def notify(self, instance: str, arqs: collections.abc.Mapping[str, str]) -> None:
        """Say of each request of an instance whether it was bound, in one call.

        :param arqs: by the uuid of a request ``completed`` or ``failed``.
        :raises Refused: when the call is to be made again.
        """
        events = [
            {
                'name': 'accelerator-request-bound',
                'server_uuid': instance,
                'tag': arq,
                'status': status,
            }
            for arq, status in arqs.items()
        ]
        answer: typing.Any = self._client.post(
            '/os-server-external-events', json={'events': events}, raise_exc=False
        )
        # 422 is what an instance gets that has no host yet: Nova looks at the requests itself when
        # it has got that far. 404 is an instance that is gone. 207 tells of each event.
        if answer.status_code in (200, 207, 404, 422):
            LOG.debug('Nova answered %s to events of %s', answer.status_code, instance)
            return
        raise Refused(f'HTTP {answer.status_code}: {answer.text[:500]}')

    def knows(self, instance: str) -> bool:
        """Whether there is an instance.

        :raises cyborg_lite.exception.Conflict: when our user may not see all instances.
        :raises cyborg_lite.exception.ComputeAway: when Nova does not say.
        """
        shown = self._get(f'/servers/{instance}')
        if shown.status_code == 200:
            return True
        if shown.status_code != 404:
            raise _away(shown)
        # To a user who is no administrator Nova answers 404 for servers of other projects, too: an
        # empty list of all projects is the proof, as such a user does not get one.
        listed = self._get('/servers', params={'all_tenants': '1', 'uuid': instance})
        if listed.status_code == 403:
            raise exception.Conflict(
                reason=f'Nova does not say whether instance {instance} is gone: the user of [nova] '
                'may not list the servers of all projects. Give this user the admin role.'
            )
        if listed.status_code != 200:
            raise _away(listed)
        return _servers(listed) != []

    def _get(self, path: str, **more: typing.Any) -> typing.Any:
        try:
            return self._client.get(path, raise_exc=False, **more)
        except exceptions.ClientException as error:
            raise exception.ComputeAway(reason=str(error)[:500]) from error


def _servers(answer: typing.Any) -> list[typing.Any]:
    """The list in an answer, which may come from anything that calls itself Nova."""
    try:
        servers = answer.json()['servers']
    except (ValueError, KeyError, TypeError):
        servers = None
    if not isinstance(servers, list):
        raise exception.ComputeAway(reason='the answer is not a list of servers')
    return servers


def _away(answer: typing.Any) -> exception.ComputeAway:
    return exception.ComputeAway(reason=f'HTTP {answer.status_code}: {answer.text[:200]}')

# SPDX-License-Identifier: Apache-2.0
"""The client of Nova: it sends events of accelerator requests, and looks up instances."""

from __future__ import annotations

import collections.abc
import typing

from keystoneauth1 import adapter
from keystoneauth1 import exceptions
from oslo_log import log

from cyborg_lite import exception

LOG = log.getLogger(__name__)

#: the first with the event accelerator-request-bound
MICROVERSION = '2.82'


class Refused(Exception):
    """Nova did not accept the events: the call must be retried."""


class Nova:
    """The part of Nova's API that we use."""

    def __init__(self, client: adapter.Adapter) -> None:
        self._client = client

    def notify(self, instance: str, arqs: collections.abc.Mapping[str, str]) -> None:
        """Send one event for each request of an instance, in one call.

        :param arqs: ``completed`` or ``failed`` by the uuid of a request.
        :raises Refused: when the call must be retried.
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
        # 422: the instance has no host yet, and Nova reads the requests itself later. 404: the
        # instance does not exist. 207: each event has a status of its own.
        if answer.status_code in (200, 207, 404, 422):
            LOG.debug('Nova answered %s to events of %s', answer.status_code, instance)
            return
        raise Refused(f'HTTP {answer.status_code}: {answer.text[:500]}')

    def knows(self, instance: str) -> bool:
        """Whether an instance exists.

        :raises cyborg_lite.exception.Conflict: when our user may not see all instances.
        :raises cyborg_lite.exception.ComputeAway: when Nova gives no answer.
        """
        shown = self._get(f'/servers/{instance}')
        if shown.status_code == 200:
            return True
        if shown.status_code != 404:
            raise _away(shown)
        # Nova also answers 404 if the user is not an administrator and the server is of another
        # project. Only an administrator can list the servers of all projects: an empty list is the
        # proof.
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
    """The list in an answer, which is checked: another service may answer as Nova."""
    try:
        servers = answer.json()['servers']
    except (ValueError, KeyError, TypeError):
        servers = None
    if not isinstance(servers, list):
        raise exception.ComputeAway(reason='the answer is not a list of servers')
    return servers


def _away(answer: typing.Any) -> exception.ComputeAway:
    return exception.ComputeAway(reason=f'HTTP {answer.status_code}: {answer.text[:200]}')

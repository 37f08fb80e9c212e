# SPDX-License-Identifier: Apache-2.0
"""Tell Nova that the accelerator requests of an instance are resolved."""

from __future__ import annotations

import collections.abc
import typing

from keystoneauth1 import adapter
from oslo_log import log

LOG = log.getLogger(__name__)

#: the first that knows accelerator-request-bound
MICROVERSION = '2.82'


class Refused(Exception):
    """Nova could not listen: it is to be told again later."""


class Nova:
    """Nova's os-server-external-events."""

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

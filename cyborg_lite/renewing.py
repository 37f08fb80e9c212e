# SPDX-License-Identifier: Apache-2.0
"""Leases that a service gives over HTTP for a time, and that a thread of their holder renews.

If the holder ends without a release, nobody renews its lease, and it ends soon.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import math
import re
import threading
import time
import uuid as uuidlib
import warnings

from cyborg_lite import client
from cyborg_lite import remote

#: The time of a lease, and between two renewals, in seconds: a restart of the service is shorter.
LEASE, EVERY = 120, 30.0
#: The longest wait for one answer, and the least time between two questions, in seconds.
TURN, PAUSE = 20, 1.0
#: The timeout of a request about what is given up, in seconds.
SOON = 3.0
#: The statuses of a renewal if the lease has ended, or is not to be renewed.
ENDED = 404, 409
#: The statuses beside those of the service's own errors that say nothing of the request itself.
PASSING = 408, 429
#: The views of a delivery that a lease has.
VIEWS = ('process', 'container', 'spark', 'ray', 'json')
#: The resource classes whose names do not begin with CUSTOM_.
STANDARD = ('FPGA', 'GPU', 'VGPU', 'PGPU')
#: What a request to an agent and one to the API have in common.
SAME = ('profile', 'same_numa', 'link', 'name', 'claimed_name', 'note', 'queue')


@dataclasses.dataclass(frozen=True)
class Lease(client.Lease):
    """Accelerators that this process holds until it ends, or until the lease is released."""

    service: remote.Service = dataclasses.field(kw_only=True)
    over: threading.Event = dataclasses.field(kw_only=True, default_factory=threading.Event)

    def release(self) -> None:
        """Release the accelerators before the process ends.

        :raises cyborg_lite.client.Error: when the service does not answer: the lease ends soon.
        """
        self.over.set()
        self.service.ask('DELETE', f'allocations/{self.uuid}')

    def renew(self) -> None:
        """Renew the lease until it is over; what fails is tried again while it lasts."""
        pause, end = EVERY, time.monotonic() + LEASE
        while not self.over.wait(pause):
            asked = time.monotonic()
            try:
                self.service.ask('PATCH', f'allocations/{self.uuid}', {'lease': LEASE})
            except client.Error as error:
                if error.code not in ENDED and time.monotonic() < end:
                    pause = PAUSE
                elif not self.over.is_set():
                    warnings.warn(f'The lease of accelerators ends: {error}', stacklevel=2)
                    return
            else:
                pause, end = EVERY, asked + LEASE


def lease(
    service: remote.Service, request: client.Words, host: str, end: float | None = None
) -> client.Lease:
    """Ask a service for a lease.

    :param request: as an agent takes it.
    :param end: the end of the wait in the queue, by the monotonic clock.
    :raises cyborg_lite.client.Error: when it is refused, or when no variable could name what was
        given.
    :raises cyborg_lite.client.TimedOut: when too few were free until the end.
    """
    uuid = _created(service, _body(request, host))['uuid']
    try:
        found = _lease(service, _active(service, uuid, end), host)
    except BaseException:
        _give_up(service, lambda: uuid)
        raise
    client.refuse_unnamed(found)
    threading.Thread(target=found.renew, name=f'renew-{uuid}', daemon=True).start()
    return found


def _body(request: client.Words, host: str) -> client.Words:
    """The request as the API takes it.

    :raises cyborg_lite.client.Error: when it names both a profile and something else, or nothing.
    """
    body = {name: request[name] for name in SAME if name in request}
    wanted = request.get('resource_class')
    if ('profile' in request) == bool(wanted) or ('profile' in request and 'traits' in request):
        raise client.Error('expected a profile, or a resource class and traits', 400)
    if wanted:
        name = re.sub('[^A-Z0-9_]', '_', wanted.upper())
        name = name if name in STANDARD or name.startswith('CUSTOM_') else f'CUSTOM_{name}'
        group = {'resources': {name: request['count']}, 'traits': request.get('traits', {})}
        body['groups'] = [group]
    return body | {'hosts': [host], 'lease': LEASE, 'possible': True}


def _created(service: remote.Service, body: client.Words) -> client.Words:
    """The allocation; if there was no answer, the same request is sent again.

    By its key the service answers the same request with the same allocation: if that is given up,
    it is found so, and deleted.
    """
    key = str(uuidlib.uuid4())
    post = functools.partial(service.ask, 'POST', 'allocations', body, Idempotency_Key=key)
    try:
        try:
            return post()
        except client.Error as error:
            if not _is_passing(error):
                raise
        time.sleep(PAUSE)
        return post()
    except BaseException as error:
        if not isinstance(error, client.Error) or _is_passing(error):
            _give_up(service, lambda: post(timeout=SOON)['uuid'])
        raise


def _give_up(service: remote.Service, uuid: collections.abc.Callable[[], str]) -> None:
    """Delete an allocation; if that fails, its lease ends soon after it is served.

    What the caller is told is why it is given up, and nobody waits long for it.
    """
    with contextlib.suppress(Exception):
        service.ask('DELETE', f'allocations/{uuid()}', timeout=SOON)


def _is_passing(error: client.Error) -> bool:
    """Whether an error says nothing of the request itself, which may be sent again."""
    return error.code >= 500 or error.code in PASSING


def _active(service: remote.Service, uuid: str, end: float | None) -> client.Words:
    """The allocation, once it holds what it asks for; an outage ends no wait."""
    seconds = 0
    cause: str | None = None
    while True:
        asked = time.monotonic()
        try:
            found = service.ask('GET', f'allocations/{uuid}?wait={seconds}')
            if found['state'] == 'active':
                return found
            if found['state'] != 'queued':
                raise client.Error(f'allocation {uuid} is {found["state"]}', 409)
            cause = found.get('reason')
        except client.Error as error:
            if not _is_passing(error):
                raise
        left = math.inf if end is None else end - time.monotonic()
        if left <= 0:
            raise client.late(cause)
        if seconds:
            # Where too many wait, a service answers at once.
            time.sleep(max(0.0, min(left, PAUSE - (time.monotonic() - asked))))
        seconds = math.ceil(min(TURN, left))


def _lease(service: remote.Service, found: client.Words, host: str) -> Lease:
    views = {}
    for view in VIEWS:
        path = f'allocations/{found["uuid"]}/deliveries?view={view}'
        [each] = service.ask('GET', path)['deliveries']
        views[view] = each['delivery']
    accelerators = found['accelerators']
    return Lease(found['uuid'], found['name'], host, accelerators, views, '', service=service)

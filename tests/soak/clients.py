# SPDX-License-Identifier: Apache-2.0
"""The clients of a cloud, of two projects; each records its answers."""

from __future__ import annotations

import collections
import random
import threading
import time
import typing
import uuid

import requests

from tests import support
from tests.soak import cloud as cloud_
from tests.soak import history
from tests.soak import hooks
from tests.soak import watch

PROJECTS = ('a', 'b')
#: The timeouts of a connection and of an answer, in seconds.
TIMEOUT = (3, 10)
#: Conflicts that an earlier try of the same client may have caused.
MOVED = ('changed meanwhile', 'unbind it before')
#: The maximum number of accelerators of a request.
MOST = 4
#: How long an accelerator is held, in seconds, with weights: some long holds exhaust the
#: accelerators, and some last until the card has changed and the host is renamed.
HOLDS, SHARES = ((0, 0.2), (0.5, 3), (8, 25)), (85, 10, 5)
REMOVE = [{'path': '/hostname', 'op': 'remove'}]
#: The number of retries of a request with an unknown result.
TRIES = 6


class Answer(typing.NamedTuple):
    """The result of a request."""

    #: 0 without an answer
    status: int
    body: typing.Any
    #: False if the connection was refused
    sent: bool = True

    def outcome(self, method: str) -> str:
        if 200 <= self.status < 300:
            return 'ok'
        if not 400 <= self.status < 500:
            return 'unknown' if self.sent else 'fail'
        # A delete cannot cause its own conflict.
        moved = method == 'PATCH' and any(each in str(self.body) for each in MOVED)
        return 'unknown' if moved else 'fail'


class Client(threading.Thread):
    """A caller of the APIs that works until it is stopped."""

    def __init__(self, cloud: cloud_.Cloud, seed: str, number: int) -> None:
        super().__init__(name=f'client-{number}', daemon=True)
        self.number = number
        self.history: list[history.Operation] = []
        self.statuses: collections.Counter[str] = collections.Counter()
        self.error: BaseException | None = None
        self._cloud = cloud
        self._draw = random.Random(f'client {number} {seed}')
        self._project = PROJECTS[number % len(PROJECTS)]
        self._headers = {hooks.PROJECT: self._project, hooks.ROLES: 'member,reader'}
        self._session = requests.Session()
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.cycle()
        except BaseException as error:
            self.error = error
            raise

    def cycle(self) -> None:
        raise NotImplementedError

    def pause(self, least: float, most: float) -> None:
        self._stopped.wait(self._draw.uniform(least, most))

    def ask(self, method: str, path: str, body: typing.Any = None) -> Answer:
        url = self._draw.choice(self._cloud.urls)
        try:
            answer = self._session.request(
                method, url + path, json=body, headers=self._headers, timeout=TIMEOUT
            )
            # A stopped service, or a cut connection, may leave half an answer.
            found = Answer(answer.status_code, answer.json() if answer.content else None)
        except (requests.RequestException, ValueError) as error:
            found = Answer(0, None, sent='NewConnectionError' not in repr(error))
        self.statuses[f'{method} {found.status}'] += 1
        return found

    def note(
        self, kind: str, method: str, path: str, body: typing.Any = None, **more: typing.Any
    ) -> tuple[history.Operation, Answer]:
        """Make a request, and record it before it is sent, in case it never returns."""
        noted = history.Operation(
            self.number, kind, invoked=time.monotonic(), project=self._project, **more
        )
        self.history.append(noted)
        answer = self.ask(method, path, body)
        noted.outcome, noted.status = answer.outcome(method), answer.status
        noted.returned = time.monotonic()
        return noted, answer


class Workload(Client):
    """Binds accelerators, holds them, and releases them."""

    def __init__(
        self,
        cloud: cloud_.Cloud,
        seed: str,
        number: int,
        seen: watch.Watch,
        others: list[Workload],
    ) -> None:
        """A client.

        :param seen: its view of the providers.
        :param others: all clients: requests of the other project are tried at times.
        """
        super().__init__(cloud, seed, number)
        self._seen, self._others = seen, others
        self.arqs: tuple[str, ...] = ()
        self._instance = ''
        #: whether the result of an unbind is unknown
        self._loose = False

    def cycle(self) -> None:
        resource_class = self._draw.choice(sorted(self._seen.by_class))
        number = self._draw.randint(1, MOST)
        if not self._create(f'{resource_class}-{number}'):
            self.pause(0.1, 0.5)
            return
        for _ in range(self._draw.randint(1, 4)):
            if not self._use(resource_class):
                break
        if self._draw.random() < 0.05:
            self._trespass()
        self._discard()

    def _create(self, profile: str) -> bool:
        noted, answer = self.note(
            'create', 'POST', '/accelerator_requests', {'device_profile_name': profile}
        )
        if noted.outcome != 'ok':
            return False
        self.arqs = noted.arqs = tuple(arq['uuid'] for arq in answer.body['arqs'])
        self._loose = False
        return True

    def _use(self, resource_class: str) -> bool:
        """Bind, hold, unbind; False if the client should start a new cycle."""
        if not self._bind(self._choose(resource_class)):
            return self._draw.random() < 0.5
        self._read(self._draw.random() < 0.5)
        self.pause(*self._draw.choices(HOLDS, SHARES)[0])
        if self._draw.random() < 0.3:
            self._read(True)
        if self._stopped.is_set() or self._draw.random() < 0.4:
            return False
        return self._unbind()

    def _choose(self, resource_class: str) -> list[cloud_.Provider]:
        """Providers that a stale view of Placement could offer."""
        known = self._seen.by_class[resource_class]
        # Some providers have contention.
        known = known[:8] if self._draw.random() < 0.3 else known
        if self._draw.random() < 0.5:
            return [self._draw.choice(known)] * len(self.arqs)
        return [self._draw.choice(known) for _ in self.arqs]

    def _bind(self, providers: list[cloud_.Provider]) -> bool:
        self._instance = str(uuid.UUID(int=self._draw.getrandbits(128), version=4))
        body = {
            arq: support.wish(provider.uuid, provider.host, self._instance)
            for arq, provider in zip(self.arqs, providers, strict=True)
        }
        noted, answer = self.note(
            'bind',
            'PATCH',
            '/accelerator_requests',
            body,
            arqs=self.arqs,
            instance=self._instance,
            providers=tuple(provider.uuid for provider in providers),
        )
        if noted.outcome == 'unknown':
            # Without an answer the client reads; the bind may still happen.
            for _ in range(self._draw.randint(0, 3)):
                self._read(False)
        return noted.outcome == 'ok'

    def _read(self, together: bool) -> None:
        """Read each request, or the list of the instance."""
        if together:
            query = f'?instance={self._instance}'
            noted, answer = self.note(
                'list',
                'GET',
                f'/accelerator_requests{query}',
                arqs=self.arqs,
                instance=self._instance,
            )
            if noted.outcome == 'ok':
                noted.seen = {row['uuid']: show(row) for row in answer.body['arqs']}
            return
        arq = self._draw.choice(self.arqs)
        noted, answer = self.note('read', 'GET', f'/accelerator_requests/{arq}', arqs=(arq,))
        if noted.outcome == 'ok':
            noted.seen = {arq: show(answer.body)}

    def _unbind(self) -> bool:
        body = {arq: REMOVE for arq in self.arqs}
        noted, _ = self.note('unbind', 'PATCH', '/accelerator_requests', body, arqs=self.arqs)
        self._loose |= noted.outcome == 'unknown'
        if noted.outcome == 'unknown' and self._draw.random() < 0.5:
            return self._unbind()  # as the answer says: retry
        if self._draw.random() < 0.5:
            self._read(self._draw.random() < 0.5)
        return noted.outcome == 'ok'

    # A thread has a _delete() of its own.
    def _discard(self) -> None:
        """Delete until an answer confirms it."""
        arqs, self.arqs = self.arqs, ()
        for _ in range(TRIES):
            path = f'/accelerator_requests?arqs={",".join(arqs)}'
            if self._holds() and self._draw.random() < 0.5:
                path = f'/accelerator_requests?instance={self._instance}'
            noted, answer = self.note('delete', 'DELETE', path, arqs=arqs)
            # They are deleted: the checker verifies that a delete without an answer explains a
            # 404.
            if noted.outcome == 'ok' or answer.status == 404 or self._stopped.is_set():
                return
            self.pause(0.1, 1)

    def _holds(self) -> bool:
        """Whether the instance certainly holds them, by the last answer."""
        changes = ('create', 'bind', 'unbind', 'delete')
        last = next(each for each in reversed(self.history) if each.kind in changes)
        return not self._loose and last.kind == 'bind' and last.outcome == 'ok'

    def _trespass(self) -> None:
        """Try requests of another project."""
        other = self._draw.choice(self._others)
        if other.number % len(PROJECTS) == self.number % len(PROJECTS) or not other.arqs:
            return
        arq = other.arqs[0]
        method, path, body = self._draw.choice(
            [
                ('GET', f'/accelerator_requests/{arq}', None),
                ('DELETE', f'/accelerator_requests?arqs={arq}', None),
                ('PATCH', '/accelerator_requests', {arq: REMOVE}),
            ]
        )
        self.note('trespass', method, path, body, arqs=(arq,))


def show(row: dict[str, typing.Any]) -> history.Seen:
    """A request in an answer of the API."""
    info = row['attach_handle_info']
    handle = '{} {device}.{function}'.format(row['device_rp_uuid'], **info) if info else ''
    return history.Seen(
        row['state'],
        handle,
        row['device_rp_uuid'] or '',
        row['instance_uuid'] or '',
        row['project_id'],
    )

# SPDX-License-Identifier: Apache-2.0
"""Clients that create allocations, and the check of their answers."""

from __future__ import annotations

import collections.abc
import itertools
import math
import typing

from tests.soak import clients
from tests.soak import history as history_
from tests.soak import hooks
from tests.soak import watch

#: The header that makes a request idempotent.
KEY = 'Idempotency-Key'
#: The project of all consumers, and the maximum number of its accelerators: fewer than they want.
PROJECT, LIMIT = 'limited', 10
#: The maximum number of accelerators of an allocation.
MOST = 4
#: Longer than any run, even with clock jumps, in seconds.
LEASE = 300 * 24 * 3600
#: How long an allocation is held, in seconds, with weights.
HOLDS, SHARES = ((0, 0.2), (0.5, 3), (8, 20)), (80, 15, 5)


class Consumer(clients.Client):
    """Allocates accelerators that the service chooses, holds them, and releases them."""

    def __init__(self, *common: typing.Any, seen: watch.Watch) -> None:
        super().__init__(*common)
        self._project = PROJECT
        self._headers = self._headers | {hooks.PROJECT: PROJECT}
        self._seen = seen
        self._numbers = itertools.count(1)

    def cycle(self) -> None:
        name = f'client-{self.number}-{next(self._numbers)}'
        self._headers = self._headers | {KEY: name}
        if self._allocate(name, self._draw.randint(1, MOST)):
            self.pause(*self._draw.choices(HOLDS, SHARES)[0])
            if self._draw.random() < 0.3:
                self._ask('renew', 'PATCH', f'/allocations/{name}', {'lease': LEASE}, name=name)
            if self._draw.random() < 0.5:
                self._look(name, 0)
        self._release(name)
        self.pause(0.05, 0.5)

    def _allocate(self, name: str, wanted: int) -> bool:
        """Retry until there is an answer; returns whether the accelerators are held."""
        body = {
            'groups': [{'resources': {self._draw.choice(sorted(self._seen.by_class)): wanted}}],
            'name': name,
            'lease': LEASE,
            'same_host': self._draw.random() < 0.5,
            'queue': self._draw.random() < 0.7,
        }
        path = f'/allocations?wait={self._draw.choice([0, 2])}'
        for _ in range(clients.TRIES):
            noted = self._ask('allocate', 'POST', path, body, name=name, wanted=wanted)
            if noted.outcome != 'unknown' or self._stopped.is_set():
                break
            self.pause(0.1, 1)
        if noted.outcome != 'ok':
            return False
        while noted.state == 'queued' and not self._stopped.is_set() and self._draw.random() < 0.9:
            noted = self._look(name, 3)
        return noted.state == 'active'

    def _look(self, name: str, wait: int) -> history_.Operation:
        return self._ask('look', 'GET', f'/allocations/{name}?wait={wait}', name=name)

    def _release(self, name: str) -> None:
        for _ in range(clients.TRIES):
            noted = self._ask('release', 'DELETE', f'/allocations/{name}', name=name)
            if noted.outcome == 'ok' or noted.status == history_.NOT_FOUND:
                return
            if self._stopped.is_set():
                return
            self.pause(0.1, 1)

    def _ask(
        self, kind: str, method: str, *what: typing.Any, **more: typing.Any
    ) -> history_.Operation:
        noted, answer = self.note(kind, method, *what, **more)
        if noted.outcome == 'ok' and answer.body:
            noted.state = answer.body['state']
            noted.accelerators = tuple(each['uuid'] for each in answer.body['accelerators'])
        return noted


class Story:
    """The certain facts of one allocation, updated by each of its operations."""

    def __init__(self, name: str) -> None:
        self.name = name
        #: the accelerators in its answers, and since when
        self.accelerators: tuple[str, ...] = ()
        self.since = math.inf
        #: the time of the first release request
        self.until = math.inf
        #: whether it certainly exists, or is certainly released
        self.there = self.gone = False
        self._wanted = 0
        #: whether a create or a release with an unknown result may still take effect
        self._may_come = self._may_go = False
        #: whether it is a reservation that does not start in the run, or lapses if nobody uses it
        self._is_far = self._may_lapse = False

    def tell(self, operation: history_.Operation) -> history_.Wrong:
        yield from getattr(self, f'_{operation.kind}')(operation)

    def _allocate(self, operation: history_.Operation) -> history_.Wrong:
        self._wanted = operation.wanted
        self._may_come |= operation.outcome == 'unknown'
        if operation.outcome == 'ok':
            self.there = True
            yield from self._compare(operation)

    def _reserve(self, operation: history_.Operation) -> history_.Wrong:
        self._is_far, self._may_lapse = not operation.near, operation.near
        yield from self._allocate(operation)

    def _draw(self, operation: history_.Operation) -> history_.Wrong:
        """A process leases from the reservation, which is kept for it from then on."""
        if operation.outcome != 'ok':
            return
        self._may_lapse = False
        if self.gone:
            yield f'I6: {operation} got something of {self.name}, and it was released'
        if self.accelerators and not {*operation.accelerators} <= {*self.accelerators}:
            yield f'I2: {operation} got something that is not of {self.name}'

    def _look(self, operation: history_.Operation) -> history_.Wrong:
        if operation.outcome == 'ok':
            yield from self._compare(operation)
        elif operation.outcome == 'fail' and operation.status and self.there:
            yield f'I6: {operation} found no {self.name}: {operation.status}'

    def _renew(self, operation: history_.Operation) -> history_.Wrong:
        if operation.outcome == 'ok':
            yield from self._compare(operation)
        elif operation.outcome == 'fail' and operation.status and self._is_active():
            yield f'I6: {operation} of {self.name} was refused: {operation.status}'

    def _is_active(self) -> bool:
        """Whether it certainly holds its accelerators."""
        return bool(self.accelerators) and not (self.gone or self._may_go)

    def _release(self, operation: history_.Operation) -> history_.Wrong:
        if operation.outcome != 'fail':
            self.until = min(self.until, operation.invoked)
        if operation.outcome == 'unknown':
            self._may_go = True
        elif operation.outcome == 'ok':
            self.gone = True
        elif not operation.status:
            # The request was not sent.
            return
        elif operation.status != history_.NOT_FOUND:
            yield f'I6: {operation} of {self.name} was refused: {operation.status}'
        elif self.there:
            yield f'I6: {operation} found no {self.name}'
        else:
            self.gone = not self._may_come

    def _compare(self, operation: history_.Operation) -> history_.Wrong:
        told = f'{operation} found {self.name} {operation.state}'
        if why := self._impossible(operation.state):
            yield f'I6: {told}, {why}'
        if operation.state == 'released':
            return
        wanted = self._wanted if operation.state == 'active' else 0
        if len(set(operation.accelerators)) != wanted:
            yield f'I2: {told} with {len(operation.accelerators)} accelerators of {wanted}'
        if self.accelerators not in ((), operation.accelerators):
            yield f'I2: {told} with other accelerators than before'
        if operation.state == 'active' and not (self._may_go or self._may_lapse):
            self.accelerators = operation.accelerators
            self.since = min(self.since, operation.returned)

    def _impossible(self, state: str) -> str:
        """Why it cannot be in a state; empty if it can."""
        if state == 'released':
            possible = self.gone or self._may_go or self._may_lapse
            return '' if possible else 'and nobody had released it'
        if self.gone:
            return 'and it was released'
        if state == 'active':
            return 'long before its start' if self._is_far else ''
        return 'and it was active' if self.accelerators else ''


def stories(history: history_.History) -> tuple[dict[str, Story], list[str]]:
    """The allocations by name, and the violations."""
    found: dict[str, Story] = {}
    wrong: list[str] = []
    for operation in sorted(history, key=lambda each: each.invoked):
        if operation.name:
            story = found.setdefault(operation.name, Story(operation.name))
            wrong += story.tell(operation)
    return found, wrong


def check(
    found: collections.abc.Mapping[str, Story], final: collections.abc.Iterable[tuple[str, str]]
) -> history_.Wrong:
    """The violations at the end.

    :param final: names and states of the allocations that are not released.
    """
    for name, state in final:
        if name not in found:
            yield f'I6: allocation {name} is {state} in the end, and nobody knows of it'
        elif found[name].gone:
            yield f'I6: allocation {name} is {state} in the end, and it was released'


def holds(
    found: collections.abc.Mapping[str, Story], handles: collections.abc.Mapping[str, str]
) -> list[history_.Hold]:
    """The intervals in which accelerators were certainly held.

    :param handles: the provider, device and function of each accelerator, by uuid.
    """
    return [
        history_.Hold(handles[accelerator], story.since, story.until, name)
        for name, story in found.items()
        if story.since < story.until
        for accelerator in story.accelerators
        if accelerator in handles
    ]

# SPDX-License-Identifier: Apache-2.0
"""Clients that reserve accelerators, and use, forget or cancel what they have reserved."""

from __future__ import annotations

import datetime
import itertools
import time
import typing
import uuid

from oslo_db import exception as db_exception
import oslo_messaging as messaging
import sqlalchemy as sa

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from tests.soak import allocations
from tests.soak import clients
from tests.soak import history as history_
from tests.soak import hooks

#: The project of these clients: that of a local user with this name.
PROJECT = 'ahead'
#: The maximum number of accelerators of a reservation.
MOST = 2
DAY = 24 * 3600
#: How far away the starts of reservations are, in seconds: of those that start in a run, and of
#: those that do not. Allocations of others have leases that end later: see allocations.LEASE.
NEAR, FAR = (3, 6), (100 * DAY, 200 * DAY)
#: The lengths of reservations, in seconds: none ends in a run.
LENGTHS = (DAY, 20 * DAY)
#: How long a client waits for the start of a reservation, or for its end, in seconds.
PATIENCE = 20
#: The timeout of a call, in seconds.
TIMEOUT = 10


class Booker(allocations.Consumer):
    """Reserves accelerators that the service chooses; processes lease from what has started."""

    def __init__(self, *common: typing.Any, **more: typing.Any) -> None:
        super().__init__(*common, **more)
        self._project = PROJECT
        self._headers = self._headers | {hooks.PROJECT: PROJECT}
        self._starts = itertools.count(1)

    def cycle(self) -> None:
        name = f'client-{self.number}-{next(self._numbers)}'
        self._headers = self._headers | {allocations.KEY: name}
        near = self._draw.random() < 0.6
        if self._reserve(name, near):
            if near:
                self._use(name)
            else:
                self.pause(0.5, 5)
                self._look(name, 0)
        self._release(name)
        self.pause(0.2, 2)

    def _reserve(self, name: str, near: bool) -> bool:
        """Retry until there is an answer; returns whether it is reserved."""
        wanted = self._draw.randint(1, MOST)
        away = datetime.timedelta(seconds=self._draw.uniform(*(NEAR if near else FAR)))
        starts = datetime.datetime.now(datetime.UTC) + away
        body = {
            'groups': [{'resources': {self._draw.choice(sorted(self._seen.by_class)): wanted}}],
            'name': name,
            'lease': round(self._draw.uniform(*LENGTHS)),
            'same_host': True,
            'starts_at': starts.isoformat(timespec='seconds'),
        }
        told = {'name': name, 'wanted': wanted, 'near': near}
        for _ in range(clients.TRIES):
            noted = self._ask('reserve', 'POST', '/allocations', body, **told)
            if noted.outcome != 'unknown' or self._stopped.is_set():
                break
            self.pause(0.1, 1)
        return noted.outcome == 'ok'

    def _use(self, name: str) -> None:
        """Lease from a reservation when it has started, or let it lapse."""
        if not self._wait(name, 'active') or self._draw.random() < 0.3:
            self._wait(name, 'released')
            return
        for _ in range(self._draw.randint(1, MOST)):
            self._lease(name)
        self.pause(0.2, 5)
        if self._draw.random() < 0.5:
            self._look(name, 0)

    def _wait(self, name: str, state: str) -> bool:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not self._stopped.is_set():
            if self._look(name, 0).state in (state, 'released'):
                break
            self.pause(0.3, 1)
        return self.history[-1].state == state

    def _lease(self, name: str) -> None:
        """Lease for a process of its host, as the agent of the host asks for one, and end it."""
        [host, agent] = self._agent() or ['', '']
        if not agent:
            return
        about = {'host': host, 'agent': agent}
        process = {
            'boot_id': 'b', 'pid': self.number, 'started': next(self._starts), 'uid': 7,
            'user': PROJECT, 'command': 'soak',
        }  # fmt: skip
        made = str(uuid.UUID(int=self._draw.getrandbits(128), version=4))
        noted = history_.Operation(self.number, 'draw', invoked=time.monotonic(), name=name)
        noted.project = self._project
        self.history.append(noted)
        peer = self._cloud.bus.leases(context.service(), timeout=TIMEOUT)
        request = {'reservation': name, 'count': 1}
        try:
            row = peer.lease(process=process, request=request, uuid=made, **about)
            noted.accelerators = tuple(each['uuid'] for each in row['accelerators'])
            noted.outcome, noted.status = 'ok', 200
        except exception.CyborgError as error:
            noted.outcome = 'fail' if error.code < 500 else 'unknown'
            noted.status = error.code
        except messaging.MessagingException:
            # It may be carried out, or may be later.
            pass
        noted.returned = time.monotonic()
        if noted.outcome == 'ok' and self._draw.random() < 0.5:
            self._end(peer, made, about)

    def _end(self, peer: typing.Any, made: str, about: dict[str, str]) -> None:
        """What is not ended so ends with the reservation."""
        try:
            peer.end_lease(uuid=made, cause='Its process ended.', **about)
        except (exception.CyborgError, messaging.MessagingException):
            self.statuses['end_lease fails'] += 1

    def _agent(self) -> tuple[str, str] | None:
        """The host of what was last shown, and the id of its agent."""
        shown = self.history[-1].accelerators
        host = (
            sa.select(model.Host.name, model.Host.agent)
            .join(model.Device, model.Device.hostname == model.Host.name)
            .join(model.Deployable)
            .join(model.AttachHandle)
            .where(model.AttachHandle.uuid.in_(shown))
        )
        try:
            with self._cloud.database.reader() as session:
                found = session.execute(host).first()
        except (db_exception.DBError, sa.exc.SQLAlchemyError):
            # The database is down: this is an injected fault.
            return None
        return found and (found.name, found.agent or '')

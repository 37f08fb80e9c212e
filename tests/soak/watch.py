# SPDX-License-Identifier: Apache-2.0
"""Repeated checks of the rows during a run: clients see only a part of them."""

from __future__ import annotations

import collections
import itertools
import threading
import typing

from oslo_db import exception as db_exception
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from tests.integration import invariants
from tests.soak import cloud as cloud_

#: The interval of checks, in seconds.
LOOK = 1.0
#: The maximum number of reported violations: a lasting one is found in each check.
TOLD = 20
HELD = (
    sa.select(model.ARQ.uuid, model.ARQ.instance_uuid, model.Host.machine, model.Device.serial)
    .join(model.AttachHandle, model.ARQ.attach_handle_id == model.AttachHandle.id)
    .join(model.AttachHandle.deployable)
    .join(model.Deployable.device)
    .join(model.Device.host)
)
HANDLES = sa.select(
    model.AttachHandle.uuid, model.Deployable.rp_uuid, model.AttachHandle.attach_info
).join(model.AttachHandle.deployable)

_HOLDER = model.ARQ.uuid, model.ARQ.instance_uuid, model.ARQ.attach_handle_id
HOLDERS = sa.select(*_HOLDER).where(model.ARQ.attach_handle_id.is_not(None))
#: By promise, whoever else holds what it keeps, and may do so for ever.
TAKEN = invariants.concerned(model.Promise.id, model.Promise.allocation_uuid, *_HOLDER).where(
    model.Allocation.lease_ends_at.is_(None)
)


class Held(typing.NamedTuple):
    """The machine and the card that a request holds."""

    machine: str | None
    serial: str | None


class Watch(threading.Thread):
    """Checks until it is stopped; each query reads a consistent snapshot."""

    def __init__(self, cloud: cloud_.Cloud) -> None:
        super().__init__(name='watch', daemon=True)
        self._cloud = cloud
        self._stopped = threading.Event()
        self._cards: dict[str, set[str]] = collections.defaultdict(set)
        #: the promises that were made before, and what was held after them: of each ARQ its
        #: instance and its accelerator
        self._promises: set[int] = set()
        self._holders: set[tuple[typing.Any, ...]] = set()
        self._held: dict[tuple[str, str | None], Held] = {}
        #: the provider, device and function of each accelerator, by uuid
        self.handles: dict[str, str] = {}
        self.wrong: dict[str, None] = {}
        self.looks = 0
        self.look()

    def run(self) -> None:
        while not self._stopped.wait(LOOK):
            try:
                self.look()
            except (db_exception.DBError, sa.exc.SQLAlchemyError):
                # The database is down: this is an injected fault.
                continue
            except Exception as error:
                self._tell(f'The watch ends: {error!r}')
                raise

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def look(self) -> None:
        self.providers = self._cloud.providers()
        by_class = collections.defaultdict(list)
        for provider in self.providers:
            by_class[provider.resource_class].append(provider)
            self._cards[provider.uuid].add(provider.card)
        #: the view of clients
        self.by_class: dict[str, list[cloud_.Provider]] = by_class
        with self._cloud.database.reader() as session:
            found = (invariants.forms, invariants.quotas, invariants.reservations)
            for each in itertools.chain.from_iterable(check(session) for check in found):
                self._tell(each)
            self._look_for_thieves(session)
            for arq, instance, *card in session.execute(HELD):
                self._compare((arq, instance), Held(*card))
            for uuid, provider, info in session.execute(HANDLES):
                self.handles[uuid] = '{} {device}.{function}'.format(provider, **info)
        self.looks += 1

    def _look_for_thieves(self, session: orm.Session) -> None:
        """Whoever may hold something for ever gets nothing that has been promised before.

        Promises are read before holders here, and a row of a promise never changes.
        """
        for promise, kept_for, *holder in session.execute(TAKEN):
            if promise in self._promises and tuple(holder) not in self._holders:
                self._tell(f'I1: kept for {kept_for}, and given to ARQ {holder[0]} for ever')
        self._promises = set(session.scalars(sa.select(model.Promise.id)))
        self._holders = {tuple(row) for row in session.execute(HOLDERS)}

    def _compare(self, bound: tuple[str, str | None], now: Held) -> None:
        before = self._held.setdefault(bound, now)
        for name, was, is_ in zip(Held._fields, before, now, strict=True):
            if was is not None and is_ != was:
                self._tell(
                    f'I14: ARQ {bound[0]} holds another card: {name} {is_}, and it was {was}'
                )
        self._held[bound] = now

    def _tell(self, wrong: str) -> None:
        if len(self.wrong) < TOLD:
            self.wrong[wrong] = None

    def cards(self) -> dict[str, str]:
        """The card of each provider, if it was of only one."""
        return {uuid: min(cards) for uuid, cards in self._cards.items() if len(cards) == 1}

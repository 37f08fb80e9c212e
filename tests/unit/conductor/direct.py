# SPDX-License-Identifier: Apache-2.0
"""A conductor without a bus: its methods are called directly, on a database of its own."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import typing
import uuid

import oslo_messaging as messaging
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite.conductor import healing
from cyborg_lite.conductor import manager
from cyborg_lite.db import engine
from cyborg_lite.db import migration
from tests import support

ADMIN = context.RequestContext(is_admin=True, project_id='p1', overwrite=False)
OK = {'fake': {'state': 'ok', 'reason': '', 'devices': 0}}
DEGRADED = {'fake': {'state': 'degraded', 'reason': 'it raised', 'devices': 0}}

Rows = dict[str, list[tuple[typing.Any, ...]]]


def member(project: str = 'p1') -> context.RequestContext:
    return context.RequestContext(project_id=project, roles=['member'], overwrite=False)


class Conductor:
    """``conductor.bind(wishes=[...])`` calls the manager's method; our errors are not wrapped."""

    rows = support.Service.rows
    statements = support.Service.statements

    def __init__(self, database_url: str, **defaults: typing.Any) -> None:
        self.conf = options.load(files=[], database__connection=database_url, **defaults)
        self.database = engine.Database(self.conf)
        migration.upgrade(self.database.engine)
        self._manager = manager.Manager(self.conf, self.database)
        self._sequence = itertools.count(1)

    def close(self) -> None:
        self.database.close()

    def __getattr__(self, method: str) -> typing.Any:
        return functools.partial(self._call, method)

    def _call(self, method: str, ctxt: context.RequestContext = ADMIN, **kwargs) -> typing.Any:
        try:
            return getattr(self._manager, method)(ctxt, **kwargs)
        except messaging.ExpectedException as expected:
            raise expected.exc_info[1] from None

    def report(self, *devices: model.Device, **more: typing.Any) -> None:
        """Store a report; ``more`` replaces fields of it."""
        self._call('report', **(self.told(*devices) | more))

    def told(self, *devices: model.Device, **more: typing.Any) -> dict[str, typing.Any]:
        """The next report, with these devices."""
        content = {'devices': [device.facts() for device in devices], 'drivers': OK} | more
        text = json.dumps(content, sort_keys=True).encode()
        about = {
            'host': support.HOST,
            'boot_id': 'boot-1',
            'sequence': next(self._sequence),
            'interval': 20,
            'digest': hashlib.sha256(text).hexdigest(),
        }
        return about | content

    def heal(self) -> None:
        """Mark silent hosts, like the healer."""
        with self._manager.outbox.session() as session:
            healing.notice_silence(session)

    def arqs(self, count: int = 1, ctxt=ADMIN, **resources: int) -> list[str]:
        """Create this many requests of a new profile; returns their uuids."""
        group = {f'resources:{k}': str(v) for k, v in (resources or {'FPGA': count}).items()}
        name = f'profile-{uuid.uuid4()}'
        self.create_device_profile(profile={'name': name, 'groups': [group]})
        return self.create_arqs(ctxt, profile=name)

    def take(self, *uuids: str, bus: str = '3b', ctxt=ADMIN, **more: str) -> None:
        """Bind requests to the card on this bus, for a new instance."""
        more = {'instance_uuid': str(uuid.uuid4())} | more
        self.bind(ctxt, wishes=[self.wish(each, bus, **more) for each in uuids])

    def hold(self, bus: str = '3b', count: int = 1) -> list[str]:
        """Requests that hold accelerators of the card on this bus."""
        made = self.arqs(count)
        self.take(*made, bus=bus)
        return made

    @staticmethod
    def wish(arq: str, bus: str = '3b', host: str = support.HOST, **more: str) -> dict[str, str]:
        values = {
            'hostname': host,
            'device_rp_uuid': provider(bus, host),
            'instance_uuid': str(uuid.uuid4()),
            'project_id': 'p1',
        }
        return {'uuid': arq, **values, **more}

    def arq(self, uuid: str) -> model.ARQ:
        return next(row for row in self.rows(model.ARQ) if row.uuid == uuid)

    def device(self, bus: str = '3b', host: str = support.HOST) -> model.Device | None:
        rows = self.rows(model.Device)
        return next((r for r in rows if (r.address, r.hostname) == (address(bus), host)), None)

    def handles(self) -> list[str]:
        """The functions of all handles."""
        return [row.attach_info['function'] for row in self.rows(model.AttachHandle)]

    def dump(self, *without: str) -> Rows:
        """Every row of every table, except some and the journal of calls."""
        without += ('calls',)
        tables = [t for t in model.Base.metadata.sorted_tables if t.name not in without]
        with self.database.reader() as session:
            return {t.name: [tuple(row) for row in session.execute(sa.select(t))] for t in tables}


def address(bus: str) -> str:
    return f'0000:{bus}:00.0'


def provider(bus: str = '3b', host: str = support.HOST) -> str:
    """The uuid of the provider of a card on this bus, by Cyborg's rule."""
    return str(uuid.uuid3(uuid.NAMESPACE_DNS, f'{host}_{address(bus)}'))

# SPDX-License-Identifier: Apache-2.0
"""The service in one process, for tests: the real parts, a database of its own, no web server."""

from __future__ import annotations

import collections.abc
import contextlib
import hashlib
import itertools
import json
import select
import threading
import time
import typing
import unittest.mock
import uuid

import sqlalchemy as sa
from sqlalchemy import event
import webtest

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite import service
from cyborg_lite.conductor import group_commit
from cyborg_lite.conductor import taking

HOST = 'host-1'
INSTANCE = '5c2fd2f1-ecf0-4a1d-9d0a-0f3c7d7a1b01'


class _Piece(group_commit._Piece):
    """A piece of work that tells whose it is, whichever thread carries it out."""

    _now = threading.local()

    def __init__(self, work):
        super().__init__(work)
        self._thread = threading.current_thread().name

    @classmethod
    def thread(cls):
        """The name of the thread for which this one works now."""
        return getattr(cls._now, 'name', threading.current_thread().name)

    def carry_out(self, session):
        self._now.name = self._thread
        try:
            super().carry_out(session)
        finally:
            del self._now.name


class Service:
    """API and conductor over a database; agents only if hosts are given."""

    def __init__(self, database_url: str, hosts=(), files=(), **defaults: typing.Any) -> None:
        settings = {'api__auth_strategy': 'noauth', 'database__connection': database_url}
        # Periodic work would be counted among the statements of a test.
        settings |= {'conductor__healing_interval': 3600} | defaults
        self.conf = options.load(files=[*files], **settings)
        self.embedded = service.Embedded(self.conf, hosts)
        self.database = self.embedded.database
        self.api = Api(local(self.embedded.application))
        self._sequence = itertools.count(1)
        self.embedded.start()

    def stop(self) -> None:
        self.embedded.stop()

    @property
    def conductor(self):
        return self.embedded.bus.conductor(context.service())

    def report(self, *devices: model.Device, host: str = HOST, **more: typing.Any) -> None:
        """Report like an agent; ``more`` replaces fields of the report."""
        facts = [device.facts() for device in devices]
        report = {
            'host': host,
            'boot_id': 'boot-1',
            'interval': 3600,
            'sequence': next(self._sequence),
            'digest': hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
            'devices': facts,
            'drivers': {'fake': {'state': 'ok', 'reason': '', 'devices': len(facts)}},
        }
        self.conductor.report(**(report | more))

    @property
    def manager(self) -> typing.Any:
        """The manager of the conductor."""
        return self.embedded._services[0].manager

    def settle(self) -> None:
        """Wait until all messages were sent."""
        send(self.manager.outbox)
        end = time.monotonic() + 30
        while self.rows(model.Message):
            assert time.monotonic() < end, self.rows(model.Message)
            time.sleep(0.01)

    def rows(self, kind: type[model.Base]) -> list[typing.Any]:
        with self.database.reader() as session:
            rows = session.query(kind).order_by(kind.id).all()
            session.expunge_all()
            return rows

    @contextlib.contextmanager
    def statements(self, but: str | None = None) -> collections.abc.Iterator[list[str]]:
        """The SQL statements of a block, including those that begin transactions.

        :param but: a prefix of names of threads that are not counted: they poll periodically.
        """
        seen: list[str] = []

        def see(_connection, _cursor, statement, *_):
            if but is None or not _Piece.thread().startswith(but):
                seen.append(statement)

        event.listen(self.database.engine, 'before_cursor_execute', see)
        try:
            with unittest.mock.patch.object(group_commit, '_Piece', _Piece):
                yield seen
        finally:
            event.remove(self.database.engine, 'before_cursor_execute', see)

    def profile(self, name: str = 'profile-1', **resources: int) -> dict[str, typing.Any]:
        """Create a device profile of one group; one FPGA by default."""
        group = {f'resources:{k}': str(v) for k, v in (resources or {'FPGA': 1}).items()}
        return self.api.post('/v2/device_profiles', [{'name': name, 'groups': [group]}]).json

    def arqs(self, profile: str = 'profile-1') -> list[str]:
        """Create the requests of a profile; returns their uuids."""
        answer = self.api.post('/v2/accelerator_requests', {'device_profile_name': profile})
        return [arq['uuid'] for arq in answer.json['arqs']]


def take(sender, kind: str) -> list[model.Message]:
    """Lease the due messages, like a thread of a conductor before it sends them."""
    due, _ = sender._look(kind)
    return sender._claim(due) if due else []


def send_batch(sender, kind: str) -> bool:
    """Send one batch of due messages; False if there are none."""
    batch = take(sender, kind)
    sender._deliver(batch)
    return bool(batch)


def send(sender) -> int:
    """Send all due messages, like the threads of a conductor; returns their number."""
    plain, tries = sender._try, itertools.count(1)

    def try_(*args):
        # A limit: a message that is always due would be sent for ever.
        assert next(tries) <= 2000
        return plain(*args)

    with unittest.mock.patch.object(sender, '_try', try_):
        for kind in sender._send:
            sender._work(kind)
    return next(tries) - 1


def ready(descriptor: int, timeout: float, event: int = select.POLLIN) -> bool:
    """Whether a descriptor is ready within that many seconds, whatever its number."""
    polling = select.poll()
    polling.register(descriptor, event)
    return bool(polling.poll(timeout * 1000))


@contextlib.contextmanager
def losing_chosen(times: int) -> collections.abc.Iterator[list[int]]:
    """Disable the first accelerator that is chosen, before its host is locked.

    :returns: the handles of what was chosen, each time.
    """
    plain, chosen = taking.lock, []

    def lock(session, found):
        chosen.append(found[0].handle)
        if len(chosen) <= times:
            lost = sa.update(model.Device).where(model.Device.id == found[0].device)
            session.execute(lost.values(status='disabled'))
        return plain(session, found)

    with unittest.mock.patch.object(taking, 'lock', lock):
        yield chosen


def local(application) -> webtest.TestApp:
    """The application for a client on this machine."""
    return webtest.TestApp(application, extra_environ={'REMOTE_ADDR': '127.0.0.1'})


class Api:
    """Requests to the API: ``api.get(path)`` returns the answer with any status."""

    def __init__(self, app: webtest.TestApp, **headers: str) -> None:
        self._app = app
        self._headers = headers

    def at(self, version: str) -> Api:
        """The same API at a microversion."""
        header = {'OpenStack-API-Version': f'accelerator {version}'}
        return Api(self._app, **(self._headers | header))

    def request(self, method: str, path: str, body: typing.Any = None, **headers: str):
        content = {} if body is None else {'Content-Type': 'application/json'}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self._app.request(
            path,
            method=method,
            body=body or b'',
            headers=self._headers | content | headers,
            expect_errors=True,
        )

    def get(self, path: str, **headers: str):
        return self.request('GET', path, **headers)

    def post(self, path: str, body: typing.Any = None, **headers: str):
        return self.request('POST', path, body, **headers)

    def patch(self, path: str, body: typing.Any = None, **headers: str):
        return self.request('PATCH', path, body, **headers)

    def delete(self, path: str, **headers: str):
        return self.request('DELETE', path, **headers)

    def bind(self, *arqs: str, provider: str, host: str = HOST, instance: str | None = None):
        return self.patch(
            '/v2/accelerator_requests',
            {arq: wish(provider, host, instance or str(uuid.uuid4())) for arq in arqs},
        )

    def unbind(self, *arqs: str):
        remove = [{'path': '/hostname', 'op': 'remove'}]
        return self.patch('/v2/accelerator_requests', {arq: remove for arq in arqs})


def wish(provider: str, host: str, instance: str) -> list[dict[str, str]]:
    """The patch that binds a request."""
    values = {'hostname': host, 'device_rp_uuid': provider, 'instance_uuid': instance}
    return [{'path': f'/{k}', 'op': 'add', 'value': v} for k, v in values.items()]


def fault(answer) -> str:
    """The text of an error, in our form or in Cyborg's two layers of JSON."""
    if 'errors' in answer.json:
        return answer.json['errors'][0]['detail']
    inner = json.loads(answer.json['error_message'])
    return inner.get('faultstring') or inner['description']


def card(
    bus: str = '3b', handles: int | collections.abc.Iterable[int] = 1, **more: typing.Any
) -> model.Device:
    """A device from a driver, with a handle for each function."""
    functions = range(handles) if isinstance(handles, int) else handles
    address = f'0000:{bus}:00.0'
    resource_class = more.pop('resource_class', 'FPGA')
    part = model.Deployable(
        name=address,
        driver_name='fake',
        resource_class=resource_class,
        traits=more.pop('traits', ['CUSTOM_FAKE_DEVICE']),
        attach_handles=[
            model.AttachHandle(
                attach_type='TEST_PCI',
                attach_info={'domain': '0000', 'bus': bus, 'device': '00', 'function': f'{n:x}'},
            )
            for n in functions
        ],
    )
    facts = {'type': 'FPGA', 'vendor': '0xABCD', 'model': 'miss model info', 'address': address}
    return model.Device(**(facts | more), deployables=[part])

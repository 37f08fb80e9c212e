# SPDX-License-Identifier: Apache-2.0
"""/healthcheck, and the answers while the database or the conductors are unavailable."""

import contextlib
import re
import threading
import unittest.mock

from oslo_db import api as db_api
from oslo_db import exception as db_exception
import oslo_messaging as messaging
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite.api import health
from cyborg_lite.conductor import manager
from tests import support

PROFILES = '/v2/device_profiles'


def body(name):
    return [{'name': name, 'groups': [{'resources:FPGA': '1', 'accel:x': 'y' * 200}] * 30}]


@pytest.fixture
def sqlite(tmp_path):
    (tmp_path / 'state').mkdir()
    made = support.Service(f'sqlite:///{tmp_path / "state" / "db.sqlite"}')
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    """Disable the cache of probes."""
    monkeypatch.setattr(health, 'FRESH', 0)
    monkeypatch.setattr(manager, 'FRESH', 0)


@contextlib.contextmanager
def full(service):
    """Make the database full."""

    def connect(connection, _record):
        # SQLite limits the size to the present pages.
        connection.execute('PRAGMA max_page_count = 1')

    event.listen(service.database.engine, 'connect', connect)
    # Open connections are replaced.
    service.database.engine.dispose()
    try:
        yield
    finally:
        event.remove(service.database.engine, 'connect', connect)
        service.database.engine.dispose()


def test_ready(service):
    before = service.rows(model.DeviceProfile)
    answer = service.api.get('/healthcheck')
    assert (answer.status_int, answer.text) == (200, 'OK')
    assert service.api.get('/healthcheck/live').status_int == 200
    assert service.rows(model.DeviceProfile) == before


def test_a_disk_that_is_full(sqlite):
    sqlite.profile('before')
    with full(sqlite):
        answers = [sqlite.api.post(PROFILES, body(f'p{n}')) for n in range(20)]
        refused = [answer for answer in answers if answer.status_int != 201]
        assert refused
        for answer in refused:
            assert answer.status_int == 503
            assert 'database or disk is full' in support.fault(answer)
        assert sqlite.api.get(PROFILES).status_int == 200
    assert sqlite.api.post(PROFILES, body('after')).status_int == 201


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (exception.DatabaseAway(reason='it says "disk I/O error"'), 'disk I/O error'),
        (db_exception.DBConnectionError('secret'), 'The database cannot be'),
        (db_exception.CantStartEngineError('secret'), 'The database cannot be'),
        (sa.exc.ResourceClosedError('secret'), 'The database cannot be'),
    ],
)
def test_a_database_that_cannot_be_written(service, monkeypatch, error, text):
    monkeypatch.setattr(db_api, 'time', unittest.mock.Mock())  # no wait between the retries
    with unittest.mock.patch.object(type(service.database), 'writer', side_effect=error):
        answers = [
            service.api.get('/healthcheck'),
            service.api.get('/healthcheck', Accept='application/json'),
            service.api.post(PROFILES, body('a')),
        ]
    for answer in answers:
        assert answer.status_int == 503
        assert text in answer.text.replace('\\', '')
        assert 'secret' not in answer.text
    assert answers[1].json['reasons']
    assert service.api.get('/healthcheck').status_int == 200


def test_a_database_that_cannot_be_read(service):
    error = db_exception.DBConnectionError('secret')
    with unittest.mock.patch.object(type(service.database), 'reader', side_effect=error):
        answer = service.api.get('/healthcheck')
        alive = service.api.get('/healthcheck/live')
        read = service.api.get('/v2/devices')
    assert (answer.status_int, answer.text) == (503, 'The database cannot be reached. Try again.')
    assert alive.status_int == 200
    assert read.status_int == 503
    assert 'database' in support.fault(read)


def test_a_directory_that_is_gone(sqlite, tmp_path):
    (tmp_path / 'state').rename(tmp_path / 'elsewhere')
    answer = sqlite.api.get('/healthcheck')
    assert answer.status_int == 503
    # A connection may be at hand that had opened it.
    assert re.search('The database cannot be (opened|used: its file is gone)', answer.text)
    assert str(tmp_path) not in answer.text
    (tmp_path / 'elsewhere').rename(tmp_path / 'state')
    assert sqlite.api.get('/healthcheck').status_int == 200


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (messaging.MessagingTimeout(), 'No conductor answered'),
        (messaging.MessageUndeliverable('basic.return', '', '', {}), 'No conductor is running'),
        (rpc.BusAway('guest:guest@host'), 'message bus'),
        (messaging.MessageDeliveryFailure('guest:guest@host'), 'message bus'),
    ],
)
def test_an_unavailable_bus_or_conductor_is_named(service, error, text):
    with unittest.mock.patch.object(rpc.Peer, '_send', side_effect=error):
        answers = [service.api.get('/healthcheck'), service.api.post(PROFILES, body('a'))]
    for answer in answers:
        assert answer.status_int == 503
        assert text in answer.text
        assert 'guest' not in answer.text


def test_a_conductor_that_waits_for_the_database_is_told_apart(service):
    timeout = messaging.MessagingTimeout()
    away = db_exception.DBConnectionError('secret')
    with (
        unittest.mock.patch.object(rpc.Peer, '_send', side_effect=timeout),
        unittest.mock.patch.object(type(service.database), 'reader', side_effect=away),
    ):
        answer = service.api.post(PROFILES, body('a'))
    assert support.fault(answer) == 'The database cannot be reached. Try again.'


def test_repeated_probes_use_the_cached_result(service, monkeypatch):
    monkeypatch.setattr(health, 'FRESH', 3600)
    with service.statements(but='outbox-') as seen:
        for _ in range(50):
            assert service.api.get('/healthcheck').status_int == 200
    # One SELECT, one INSERT and one DELETE, with their transactions.
    assert len(seen) <= 6


def test_a_probe_that_hangs_is_asked_once(monkeypatch):
    monkeypatch.setattr(health, 'PATIENCE', 0.05)
    hanging, asked = threading.Event(), []

    def check():
        asked.append(1)
        hanging.wait(60)

    probe = health.Probe(check)
    for _ in range(3):
        assert 'does not answer' in probe.reason()
    assert len(asked) == 1
    hanging.set()


def test_a_plugin_of_oslo_is_asked_first(tmp_path, database_url):
    conf = tmp_path / 'conf'
    off = tmp_path / 'off'
    conf.write_text(f'[healthcheck]\nbackends = disable_by_file\ndisable_by_file_path = {off}\n')
    made = support.Service(database_url, files=[str(conf)])
    assert made.api.get('/healthcheck').status_int == 200
    off.touch()
    answer = made.api.get('/healthcheck')
    assert (answer.status_int, answer.text) == (503, 'DISABLED BY FILE')
    # It must get no more requests, but must not be restarted.
    assert made.api.get('/healthcheck/live').status_int == 200
    made.stop()

# SPDX-License-Identifier: Apache-2.0
from importlib import metadata
import types

import pytest
from stevedore import extension

from cyborg_lite import driver
from cyborg_lite.agent import drivers
from tests.unit.agent import cards


@pytest.fixture
def host(tmp_path):
    return driver.Host('host-1', tmp_path)


@pytest.fixture
def entry_points(monkeypatch):
    """Set the entry points of both groups for stevedore: name and target."""

    def set_(ours, theirs=()):
        for group, points in ((drivers.NAMESPACE, ours), (drivers.UPSTREAM_NAMESPACE, theirs)):
            found = [metadata.EntryPoint(n, t, group) for n, t in dict(points).items()]
            monkeypatch.setitem(extension.ExtensionManager.ENTRY_POINT_CACHE, group, found)

    return set_


@pytest.fixture
def load(entry_points, host):
    """Load drivers of ``cards``, by name and class."""

    def make(*kinds, woken=lambda: None, **options):
        entry_points({kind.name: f'{kind.__module__}:{kind.__qualname__}' for kind in kinds})
        return drivers.Drivers(conf(*[kind.name for kind in kinds], **options), host, woken)

    yield make
    cards.RELEASED.set()
    cards.RELEASED.clear()


def conf(*names, timeout=30.0, interval=3600, expected=(), secret_file=None, **more):
    options = {
        'enabled_drivers': list(names),
        'driver_timeout': timeout,
        'report_interval': interval,
        'expected_devices': dict(expected),
        'secret_file': secret_file,
        'device_access': 'advisory',
        'access_file': None,
        'cdi_directory': None,
        'withhold_rogues': True,
        'tell_rogues': True,
        'idle_after': 1800,
    } | more
    return types.SimpleNamespace(agent=types.SimpleNamespace(**options))

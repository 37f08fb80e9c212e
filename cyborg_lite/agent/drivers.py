# SPDX-License-Identifier: Apache-2.0
"""The drivers of one host: loaded once, asked together, each failing alone."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import typing

from oslo_config import cfg
from oslo_log import log
from stevedore import named

from cyborg_lite import driver
from cyborg_lite import model
from cyborg_lite.driver import contract

LOG = log.getLogger(__name__)

NAMESPACE = 'cyborg_lite.drivers'
#: Upstream's group. Its drivers return versioned objects and read the host's own files.
UPSTREAM_NAMESPACE = 'cyborg.accelerator.driver'


@dataclasses.dataclass
class State:
    """How a driver is: ``ok``, or ``degraded`` and why."""

    state: str = 'ok'
    reason: str = ''
    devices: int = 0


@dataclasses.dataclass
class Findings:
    """What all drivers of a host found at one moment."""

    devices: list[model.Device]
    drivers: dict[str, State]


class Drivers:
    """The enabled drivers of a host."""

    def __init__(self, conf: cfg.ConfigOpts, host: driver.Host) -> None:
        self._conf = conf
        self._states: dict[str, State] = {}
        self._asked: dict[str, concurrent.futures.Future[list[model.Device]]] = {}
        self._drivers: dict[str, driver.Driver] = {}
        self._load(host)

    def _load(self, host: driver.Host) -> None:
        names = self._conf.agent.enabled_drivers
        missing: list[str] = []
        for namespace in (NAMESPACE, UPSTREAM_NAMESPACE):
            wanted = [name for name in names if name not in self._drivers | self._states]
            manager: typing.Any = named.NamedExtensionManager(
                namespace,
                wanted,
                on_load_failure_callback=self._refuse,
                on_missing_entrypoints_callback=missing.extend,
                warn_on_missing_entrypoint=False,
            )
            for extension in manager:
                self._start(extension.name, extension.plugin, host)
        for name in names:
            if name not in self._drivers | self._states:
                self._degrade(name, f'no entry point of that name in the group {NAMESPACE}')

    def _start(self, name: str, plugin: typing.Any, host: driver.Host) -> None:
        """Make the driver, if it is one: the contract is a class, not a group's name."""
        if not (isinstance(plugin, type) and issubclass(plugin, driver.Driver)):
            self._degrade(
                name,
                f'{plugin.__module__} does not derive from cyborg_lite.driver.Driver: what its '
                'discover() returns cannot be reported',
            )
            return
        try:
            self._drivers[name] = plugin(host, self._conf)
        except Exception as error:
            self._degrade(name, f'it does not start: {_tell(error)}')

    def _refuse(self, _manager: object, entry_point: typing.Any, error: BaseException) -> None:
        self._degrade(entry_point.name, f'it does not load: {_tell(error)}')

    def _degrade(self, name: str, reason: str) -> None:
        self._set(name, State('degraded', reason))

    def _set(self, name: str, state: State) -> None:
        if state.reason and self._states.get(name, State()).reason != state.reason:
            LOG.warning('Driver %s is %s: %s', name, state.state, state.reason)
        self._states[name] = state

    def discover(self) -> Findings:
        """Ask every driver, at the same time; one that raises or is late harms no other.

        A driver that is still at the question before is not asked again until it answers: a
        hung one costs one thread, however often the host is scanned.
        """
        for name, each in self._drivers.items():
            if name not in self._asked:
                self._asked[name] = _ask(name, each)
        concurrent.futures.wait(self._asked.values(), self._conf.agent.driver_timeout)
        devices: list[model.Device] = []
        seen: contract.Seen = set()
        names = self._conf.agent.enabled_drivers
        # Their order decides whose a device is that two of them found.
        for name in names:
            if name in self._drivers:
                devices += self._answer(name, seen)
        return Findings(devices, {name: self._states[name] for name in names})

    def _answer(self, name: str, seen: contract.Seen) -> list[model.Device]:
        future = self._asked[name]
        if not future.done():
            self._degrade(name, f'no answer within {self._conf.agent.driver_timeout} s')
            return []
        del self._asked[name]
        if error := future.exception():
            self._degrade(name, f'discover() failed: {_tell(error)}')
            return []
        found = future.result()
        devices, complaints = contract.check(found, seen)
        for device in devices:
            for deployable in device.deployables:
                deployable.driver_name = name
        # A trait that was dropped costs itself; a device that was left out may be there for all
        # we know, and must not count as gone.
        whole = isinstance(found, list | tuple) and len(devices) == len(found)
        reason = '; '.join(complaints)[:1000]
        self._set(name, State('ok' if whole else 'degraded', reason, len(devices)))
        return devices


def _ask(name: str, each: driver.Driver) -> concurrent.futures.Future[list[model.Device]]:
    """Run discover() in a daemon thread: a pool would wait for a hung one at exit."""
    future: concurrent.futures.Future[list[model.Device]] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(each.discover())
        except BaseException as error:  # SystemExit, too, ends the driver's thread only
            future.set_exception(error)

    threading.Thread(target=run, name=f'discover-{name}', daemon=True).start()
    return future


def _tell(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'[:500]

# SPDX-License-Identifier: Apache-2.0
"""The drivers of one host: they are loaded once, run in parallel, and fail independently."""

from __future__ import annotations

import collections.abc
import concurrent.futures
import dataclasses
import difflib
from importlib import metadata
import math
import time
import typing

from oslo_config import cfg
from oslo_log import log
from stevedore import named

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite import model
from cyborg_lite.driver import threads

LOG = log.getLogger(__name__)

NAMESPACE = 'cyborg_lite.drivers'
#: The group of upstream's drivers, which return versioned objects and read the host's own files.
UPSTREAM_NAMESPACE = 'cyborg.accelerator.driver'


@dataclasses.dataclass
class State:
    """The state of a driver: ``ok``, or ``degraded`` with a reason."""

    state: str = 'ok'
    reason: str = ''
    devices: int = 0
    #: whether a degraded driver looked at all cards, so that a card it did not report is absent
    complete: bool = False
    #: how long it was waited for without an answer, in seconds; 0 if it answered
    waited: int = 0

    @property
    def words(self) -> str:
        """The state in a sentence; the number of devices is left out if it says nothing."""
        found = f', {self.devices} device{"" if self.devices == 1 else "s"}'
        count = found if self.devices or self.state == 'ok' else ''
        return f'{self.state}{count}' + (f': {self.reason}' if self.reason else '')

    def facts(self) -> dict[str, typing.Any]:
        """The state in a report; an ``ok`` driver has always looked at all cards."""
        facts = dataclasses.asdict(self)
        return {k: v for k, v in facts.items() if v or k not in ('complete', 'waited')}


@dataclasses.dataclass
class Findings:
    """What all drivers of a host found in one scan."""

    devices: list[model.Device]
    drivers: dict[str, State]
    #: how many scans each driver has made
    looks: dict[str, int]
    #: and how many of these are samples of health: see Scanner.take
    samples: dict[str, int]
    #: the moment that was given when the last of these scans was started
    after: dict[str, int]


#: The devices of a driver, its errors, and whether it looked at all cards.
Answer = tuple[list[model.Device], list[str], bool]


class Scanner:
    """One driver with its last answer.  It runs one scan at a time, in a thread."""

    def __init__(
        self, name: str, asked: driver.Driver, woken: collections.abc.Callable[[], None]
    ) -> None:
        """A scanner without an answer yet.

        :param woken: called when a late answer arrives.
        """
        self.name = name
        self.answered = False
        self.looks = self.samples = 0
        #: the moments given when the running scan was started, and the one that answered
        self._asked_after = self.after = 0
        self.devices: list[model.Device] = []
        #: the devices of this driver's last complete scan: other drivers do not report them
        self.claims: contract.Seen = set()
        self.state = State()
        self.begun = 0.0
        self._sampled = -math.inf
        self._driver = asked
        self._woken = woken
        self._future: concurrent.futures.Future[Answer] | None = None
        self._late = False
        self._paused_until = 0.0

    @property
    def pending(self) -> bool:
        return self._future is not None and not self._future.done()

    @property
    def awaited(self) -> concurrent.futures.Future[Answer] | None:
        """The running scan, unless a report was sent without its answer already."""
        return None if self._late else self._future

    def ask(self, moment: int) -> None:
        """Start a scan, unless one is running or the driver pauses: a hang costs one thread."""
        if self._future is None and time.monotonic() >= self._paused_until:
            self.begun, self._asked_after = time.monotonic(), moment
            self._future = threads.call(f'discover-{self.name}', self._look)

    def _look(self) -> Answer:
        return (*self._driver.look(), self._driver.complete)

    def leave(self) -> None:
        """Mark the scan as late: the answer then causes a report of its own."""
        if self._future is not None and not self._late:
            self._late = True
            self._future.add_done_callback(lambda _: self._woken())

    def take(self, pause: float) -> None:
        """Store the answer, if there is one.

        A scan that was asked for soon after the last one is no further sample of health: several
        in a row have to show a fault that lasts.

        :param pause: the pause of the driver after a late answer, in seconds: an interval.
        """
        future = self._future
        if future is None or not future.done():
            return
        if self._late:
            self._paused_until = time.monotonic() + pause
        self._future, self._late, self.answered = None, False, True
        self.looks, self.after = self.looks + 1, self._asked_after
        if self.begun - self._sampled >= pause / 2:
            self.samples, self._sampled = self.samples + 1, self.begun
        if error := future.exception():
            self.devices = []
            self.state = State('degraded', f'discover() failed: {_tell(error)}')
            return
        found, notes, complete = future.result()
        self.devices, complaints = contract.check(found)
        for device in self.devices:
            for deployable in device.deployables:
                deployable.driver_name = self.name
        # Dropping a trait loses only the trait. A dropped device may be present, and must not be
        # reported as missing.
        whole = isinstance(found, list | tuple) and len(self.devices) == len(found)
        state = 'ok' if whole and not notes else 'degraded'
        reason = '; '.join([*notes, *complaints])
        self.state = State(state, reason, complete=whole and complete and state != 'ok')


def idle(conf: cfg.ConfigOpts) -> list[str]:
    """The names of drivers that other packages installed and that are not enabled."""
    installed = metadata.entry_points(group=NAMESPACE)
    own = metadata.distribution('cyborg-lite').entry_points
    shipped = {point.name for point in own if point.group == NAMESPACE}
    return sorted({point.name for point in installed} - shipped - {*conf.agent.enabled_drivers})


class Drivers:
    """The enabled drivers of a host."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        host: driver.Host,
        woken: collections.abc.Callable[[], None] = lambda: None,
    ) -> None:
        """Load the enabled drivers.

        :param woken: called when a driver answers after a report was sent without its answer.
        """
        self._conf = conf
        self._host = host
        self._woken = woken
        self._states: dict[str, State] = {}
        self._scanners: dict[str, Scanner] = {}
        self._load()

    def _load(self) -> None:
        names = self._conf.agent.enabled_drivers
        for name in sorted(self._conf.agent.expected_devices.keys() - {*names}):
            LOG.warning(
                '[agent] expected_devices names %s, which [agent] enabled_drivers lacks: nothing '
                'is expected of it', name,
            )  # fmt: skip
        missing: list[str] = []
        for namespace in (NAMESPACE, UPSTREAM_NAMESPACE):
            wanted = [name for name in names if name not in self._scanners | self._states]
            manager: typing.Any = named.NamedExtensionManager(
                namespace,
                wanted,
                on_load_failure_callback=self._refuse,
                on_missing_entrypoints_callback=missing.extend,
                warn_on_missing_entrypoint=False,
            )
            for extension in manager:
                self._start(extension.name, extension.plugin)
        for name in names:
            if name not in self._scanners | self._states:
                installed = sorted({point.name for point in metadata.entry_points(group=NAMESPACE)})
                near = difflib.get_close_matches(name, installed, 1)
                hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(installed)}'
                self._degrade(name, f'no entry point of that name in the group {NAMESPACE}: {hint}')

    def _start(self, name: str, plugin: typing.Any) -> None:
        """Make the driver, if the class fits: any package can use the entry point group."""
        if not (isinstance(plugin, type) and issubclass(plugin, driver.Driver)):
            self._degrade(
                name,
                f'{plugin.__module__} does not derive from cyborg_lite.driver.Driver: what its '
                'discover() returns cannot be reported',
            )
            return
        try:
            self._scanners[name] = Scanner(name, plugin(self._host, self._conf), self._woken)
        except Exception as error:
            self._degrade(name, f'it does not start: {_tell(error)}')

    def _refuse(self, _manager: object, entry_point: typing.Any, error: BaseException) -> None:
        self._degrade(entry_point.name, f'it does not load: {_tell(error)}')

    def _degrade(self, name: str, reason: str, waited: float = 0) -> None:
        self._set(name, State('degraded', reason, waited=math.ceil(waited)))

    def _set(self, name: str, state: State) -> None:
        state.reason = state.reason[:1000]
        if self._states.get(name) != state:
            LOG.log(
                log.INFO if state.state == 'ok' else log.WARNING,
                'Host %s: driver %s is %s',
                *(self._host.name, name, state.words),
            )
        self._states[name] = state

    @property
    def _limit(self) -> float:
        """The time after which a driver without an answer is degraded, in seconds."""
        return float(min(self._conf.agent.driver_timeout, self._conf.agent.report_interval))

    @property
    def deadline(self) -> float:
        """The earliest time at which a driver without an answer becomes degraded."""
        pending = [scanner for scanner in self._scanners.values() if scanner.pending]
        limits = (self._limit, self._conf.agent.driver_timeout)
        times = [scanner.begun + limit for scanner in pending for limit in limits]
        return min((each for each in times if each > time.monotonic()), default=math.inf)

    @property
    def settled(self) -> bool:
        """Whether each driver has answered once, or has timed out."""
        limit = time.monotonic() - self._conf.agent.driver_timeout
        return all(s.answered or s.begun <= limit for s in self._scanners.values())

    def discover(
        self, anew: bool = True, patience: float | None = None, moment: int = 0
    ) -> Findings:
        """Run the drivers in parallel; a failed or late driver does not affect others.

        A late driver is waited for once, for at most half an interval, so that the report is not
        late. Its last answer is used until it times out.

        :param anew: start new scans; otherwise only collect late answers.
        :param patience: the timeout for answers, in seconds.
        :param moment: what is noted of the scans that start now: see Findings.after.
        """
        scanners = self._scanners.values()
        interval = self._conf.agent.report_interval
        if patience is None:
            patience = min(self._limit, interval / 2)
        if anew:
            self._host.tree.begin()
        for scanner in scanners if anew else ():
            scanner.ask(moment)
        concurrent.futures.wait([s.awaited for s in scanners if s.awaited], patience)
        devices: list[model.Device] = []
        owners: dict[tuple[str, str], str] = {}
        names = self._conf.agent.enabled_drivers
        # If two drivers find a device, the first of them owns it.
        for name in names:
            if name in self._scanners:
                self._scanners[name].take(interval)
                devices += self._answer(self._scanners[name], owners, patience)
        states = {name: self._states[name] for name in names}
        looks = {name: scanner.looks for name, scanner in self._scanners.items()}
        samples = {name: scanner.samples for name, scanner in self._scanners.items()}
        after = {name: scanner.after for name, scanner in self._scanners.items()}
        return Findings(devices, states, looks, samples, after)

    def _answer(
        self, scanner: Scanner, owners: dict[tuple[str, str], str], patience: float
    ) -> list[model.Device]:
        """The reported state and devices of one driver.

        :param owners: the devices that earlier drivers claim, each with its driver.
        """
        if scanner.pending:
            scanner.leave()
        waited = self._delay(scanner, patience)
        if waited is not None:
            self._degrade(scanner.name, f'no answer within {waited:g} s', waited)
            kept: list[model.Device] = []
        else:
            kept = self._share(scanner, owners)
        owners.update(dict.fromkeys(scanner.claims - owners.keys(), scanner.name))
        return kept

    def _delay(self, scanner: Scanner, patience: float) -> float | None:
        """How long a late driver was waited for, in seconds; None if it does not count as late."""
        if not scanner.pending:
            return None
        if time.monotonic() - scanner.begun >= self._limit:
            return self._limit
        return None if scanner.answered else patience

    def _share(self, scanner: Scanner, owners: dict[tuple[str, str], str]) -> list[model.Device]:
        """The devices of a driver that no earlier driver claims."""
        kept: list[model.Device] = []
        reasons = [scanner.state.reason] if scanner.state.reason else []
        claims: contract.Seen = set()
        for device in scanner.devices:
            taken: contract.Seen = set()
            contract.check([device], taken)
            if clash := taken & owners.keys():
                reasons.append(
                    f'device {device.address} is left out: driver {owners[min(clash)]} has it'
                )
            else:
                kept.append(device)
                claims |= taken
        # A degraded driver may have missed a card: no other driver may claim it.
        well = scanner.state.state == 'ok' or scanner.state.complete
        scanner.claims = claims if well else scanner.claims | claims
        found = dataclasses.replace(scanner.state, reason='; '.join(reasons), devices=len(kept))
        self._set(scanner.name, self._judged(scanner.name, found))
        return kept

    def _judged(self, name: str, found: State) -> State:
        """The state of a driver after an answer: degraded if expected devices are absent."""
        expected = self._conf.agent.expected_devices.get(name, 0)
        if found.devices >= expected:
            return found
        lack = f'it finds {found.devices} of the {expected} expected devices'
        reason = '; '.join(filter(None, (lack, found.reason)))
        complete = found.complete or found.state == 'ok'
        return dataclasses.replace(found, state='degraded', reason=reason, complete=complete)


def _tell(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'[:500]
